"""A library that answers without a model: by itself, in bulk, and after it has grown."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from engine.specimens.taxonomy import RANKS
from serve.answers.answer import Answer, Query, QueryError
from serve.answers.library_predictor import LibraryPredictor
from serve.bulk import job as bulk
from tests.serve.conftest import Served
from train.evaluation.calibrate_library import answers_of, fit_folder
from train.inference.calibration import FILE
from train.inference.library_alone import QUERY

pytestmark = pytest.mark.middle


@pytest.fixture(scope="module")
def folder(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("alone") / "library"
    shutil.copytree(served.library, place)
    fit_folder(place)
    return place


@pytest.fixture(scope="module")
def predictor(folder: Path) -> LibraryPredictor:
    return LibraryPredictor.load(folder)


def test_answers_have_the_rules_probabilities(served: Served, predictor: LibraryPredictor) -> None:
    given = [one for one in served.specimens("test") if one.dna]
    found = predictor.identify([Query(one.key, dna=one.dna) for one in given], threshold=0.5)
    assert predictor.calibration is not None
    rules = predictor.calibration.queries[QUERY]
    clean = [predictor.prepare(Query(one.key, dna=one.dna)) for one in given]
    evidence = answers_of(predictor.source, [one.dna for one in clean if not isinstance(one, QueryError)]).evidence
    told, unknown = rules.probabilities(evidence), rules.unknown_taxa(evidence)
    for row, answer in enumerate(found):
        assert isinstance(answer, Answer) and answer.calibrated and answer.evidence
        np.testing.assert_allclose([rank.probability for rank in answer.ranks], told[row], atol=1e-5)
        np.testing.assert_allclose([one.probability for one in answer.unknown], unknown[row], atol=1e-5)
        assert [one.within for one in answer.unknown] == [None, *(rank.name for rank in answer.ranks[:-1])]
        for upper, lower in zip(answer.ranks, answer.ranks[1:], strict=False):
            children = sum(taxon.probability for taxon in lower.taxa if taxon.name == lower.name)
            assert children <= (upper.probability or 0) + 1e-9
        assert [one["within"] for one in answer.to_dict()["unknown"]] == [one.within for one in answer.unknown]


def test_bulk_without_a_checkpoint_answers_alike(
    served: Served, folder: Path, predictor: LibraryPredictor, tmp_path: Path
) -> None:
    given = [one for one in served.specimens("test") if one.dna][:20]
    fasta, out = tmp_path / "b.fasta", tmp_path / "r.parquet"
    fasta.write_text("".join(f">{one.key}\n{one.dna}\n" for one in given))
    assert bulk.main([str(fasta), "--library", str(folder), "--out", str(out), "--serial"]) == 0
    rows = pq.read_table(out).to_pylist()
    found = predictor.identify([Query(one.key, dna=one.dna) for one in given], top=1)
    for row, answer in zip(rows, found, strict=True):
        assert isinstance(answer, Answer)
        assert (row["key"], row["name"], row["calibrated"]) == (answer.key, answer.answer_name, True)
        for rank, one, unknown in zip(RANKS, answer.ranks, answer.unknown, strict=True):
            assert row[rank] == one.name and row[f"unknown_{rank}"] == pytest.approx(unknown.probability, abs=1e-5)
            assert row[f"{rank}_probability"] == pytest.approx(one.probability, abs=1e-5)
            assert rank == RANKS[0] or row[f"unknown_{rank}_of"] == unknown.within
    assert json.loads((tmp_path / "r.parquet.json").read_text())["model"]["calibration_sha256"]
    assert bulk.main([str(fasta), "--out", str(tmp_path / "no.csv"), "--serial"]) == 2


def test_photos_and_names_that_are_not_there_are_refused(served: Served, predictor: LibraryPredictor) -> None:
    photo = next(one.image for one in served.specimens("test") if one.image)
    barcode = next(one.dna for one in served.specimens("test") if one.dna)
    alone, both, ok = predictor.identify([Query("a", (photo,)), Query("b", (photo,), barcode), Query("c", dna=barcode)])
    for one in (alone, both):
        assert (
            isinstance(one, QueryError) and "a library alone cannot read" in one.what and "one barcode" in one.allowed
        )
    assert isinstance(ok, Answer)
    (one,) = predictor.identify([Query("c", dna=barcode)], subset=["Nothing known"])
    assert isinstance(one, QueryError) and "none of them" in one.what


def test_a_notebook_shows_an_answer(served: Served, predictor: LibraryPredictor) -> None:
    barcode = next(one.dna for one in served.specimens() if one.dna)
    (answer,) = predictor.identify([Query("<b>1", dna=barcode)])
    shown = answer._repr_html_()
    assert "&lt;b&gt;1: " in shown and "<b>1" not in shown and answer.why in shown.replace("&#x27;", "'")
    assert all(rank.name in shown for rank in answer.ranks if rank.name) and shown.count("<tr>") == 4


def test_a_checklist_leaves_its_taxa_alone(served: Served, predictor: LibraryPredictor) -> None:
    barcode = next(one.dna for one in served.specimens("test") if one.dna)
    (plain,) = predictor.identify([Query("a", dna=barcode)])
    assert isinstance(plain, Answer)
    family = next(name for name in predictor.taxonomy.names[1] if name != plain.ranks[1].name)
    (other,) = predictor.identify([Query("a", dna=barcode)], subset=[family])
    assert isinstance(other, Answer) and other.ranks[1].name in (family, None)


def test_rules_of_another_version_are_refused(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "other"
    shutil.copytree(folder, place)
    rules = json.loads((place / FILE).read_text())
    rules["library"]["checksum"] = "0" * 64
    (place / FILE).write_text(json.dumps(rules))
    with pytest.raises(ValueError, match=r"serve\.library calibrate"):
        LibraryPredictor.load(place)
    (place / FILE).unlink()
    assert LibraryPredictor.load(place).calibration is None
