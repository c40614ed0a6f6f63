"""The probabilities of a library alone: what is taken out of it, and what the fitted rules say of others."""

import numpy as np
import pyarrow as pa
import pytest

from engine.specimens.taxonomy import RANKS
from tests.train.reference.test_reference import mutate, random_barcode
from train.evaluation import calibrate_library, reliability
from train.evaluation.calibrate_library import answers_of, cases_of
from train.evaluation.known_questions import SPECIES
from train.inference.calibration import Calibration
from train.inference.library_alone import QUERY, LibraryScorer
from train.reference import Library, nearest_labels


def specimens(split: int) -> tuple[pa.Table, list[str]]:
    """Return 2 orders of 4 families of 3 genera of 3 species of 8 specimens; the same species in every split."""
    shared, own = np.random.default_rng(0), np.random.default_rng(100 + split)
    rows: list[dict[str, str]] = []
    barcodes: list[str] = []
    orders = [random_barcode(shared, 300) for _ in range(2)]
    for family in range(8):
        far = mutate(orders[family // 4], shared, 0.10)
        for genus in range(3):
            root = mutate(far, shared, 0.08)
            for species in range(3):
                centre = mutate(root, shared, 0.05)
                for _ in range(8):
                    names = (f"Order{family // 4}", f"Fam{family}", f"Gen{family}x{genus}")
                    name = f"Gen{'abcdefgh'[family]}{'abc'[genus]} epi{'abc'[species]}"
                    rows.append(dict(zip(RANKS, (*names, name), strict=True)) | {"key": f"{split}-{len(rows)}"})
                    barcodes.append(mutate(centre, own, 0.01))
    return pa.Table.from_pylist(rows), barcodes


@pytest.fixture(scope="module")
def library() -> Library:
    records, barcodes = specimens(0)
    kept = np.array([not name.endswith("epic") for name in records["species"].to_pylist()])
    return Library.build(records.filter(pa.array(kept)), [b for b, good in zip(barcodes, kept, strict=True) if good])


@pytest.fixture(scope="module")
def fitted(library: Library) -> Calibration:
    return calibrate_library.fit_library(library)


def test_what_is_asked_is_not_in_the_library(library: Library) -> None:
    held = calibrate_library.hold_out(library)
    left = set(held.library.records["key"].to_pylist())
    keys = np.array(library.records["key"].to_pylist())
    for question in held.questions:
        assert not left & set(keys[question.rows].tolist())
    species = library.records["species"].to_pylist()
    kept = set(held.library.records["species"].to_pylist())
    known, unknown = held.questions[0].rows, np.concatenate([one.rows for one in held.questions[5:8]])
    assert np.mean([species[row] in kept for row in known]) > 0.8
    assert not any(species[row] in kept for row in unknown)
    assert sum(question.weight for question in held.questions) == pytest.approx(1.0)
    again = calibrate_library.hold_out(library)
    assert [one.barcodes for one in again.questions] == [one.barcodes for one in held.questions]


def test_other_specimens_are_named_as_often_as_the_rules_say(library: Library, fitted: Calibration) -> None:
    records, barcodes = specimens(1)
    names = {rank: records[rank] for rank in RANKS}
    labels, scorer = library.taxonomy.encode(names), LibraryScorer(library)
    cases = cases_of(answers_of(scorer, barcodes), labels, np.ones_like(labels, dtype=bool))
    told = fitted.queries[QUERY].probabilities(cases.answers.evidence)
    nearest = nearest_labels(library, library.search(barcodes))
    for rank in range(len(RANKS)):
        right = cases.right[:, rank]
        assert right.mean() >= ((nearest[:, rank] == labels[:, rank]) & (labels[:, rank] >= 0)).mean() - 0.01
        assert reliability.calibration_error(told[:, rank], right) < 0.1  # few specimens to fit on
    new = cases.withheld
    assert new.mean() == pytest.approx(1 / 3)
    assert told[new, SPECIES].mean() < 0.2 < 0.8 < told[~new, SPECIES].mean()
    unknown = fitted.queries[QUERY].unknown_taxa(cases.answers.evidence)
    assert unknown[new, SPECIES].mean() > 0.5 > 0.2 > unknown[~new, SPECIES].mean()


def test_barcodes_from_elsewhere_are_named_at_no_rank(library: Library, fitted: Calibration) -> None:
    rng = np.random.default_rng(9)
    answers = answers_of(LibraryScorer(library), [random_barcode(rng, 300) for _ in range(20)] + [""])
    told = fitted.queries[QUERY].probabilities(answers.evidence)
    assert (told < 0.5).all()


def test_a_library_without_names_is_refused(library: Library) -> None:
    records, barcodes = specimens(0)
    nameless = records.set_column(records.column_names.index("species"), "species", pa.nulls(len(records), pa.string()))
    with pytest.raises(ValueError, match="named"):
        calibrate_library.fit_library(Library.build(nameless, barcodes))
