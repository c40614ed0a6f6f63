"""Libraries from shards, FASTA and photos; features of a checkpoint's towers and their exact neighbours."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from engine.formats.registry import open_dataset
from tests.train.small import small_config, small_session
from train.models.trimodal import Trimodal
from train.reference import Encoder, Library, answers, nearest_labels, read_shards, read_source
from train.reference.features import nearest_features


@pytest.fixture(scope="module")
def model(simulated_shards: Path) -> tuple[Trimodal, Encoder]:
    config = small_config(simulated_shards)
    session = small_session(config)
    trimodal = session.model.eval()
    return trimodal, Encoder(trimodal, config.data)


def test_a_library_of_shards_holds_what_they_hold(simulated_shards: Path) -> None:
    found = read_shards([simulated_shards])
    assert found.features == {} and found.skipped == [] and len(found.barcodes) == len(found.records)
    library = Library.build(found.records, found.barcodes)
    assert library.num_haplotypes <= len(set(found.barcodes))
    hits = library.search(found.barcodes[:40])
    assert (hits.distance[hits.start[:-1]] == 0).all()
    known = library.labels[:40, :2]  # order and family are always there
    assert (nearest_labels(library, hits)[:, :2] == known).mean() > 0.95  # a few families may share a barcode
    with pytest.raises(ValueError, match="'train2'"):
        read_shards([simulated_shards], "train2")


def test_countries_come_from_the_specimens(tmp_path: Path) -> None:
    from engine.ingest.job import IngestOptions, ingest

    table = tmp_path / "table.csv"
    rows = [
        f"k{i},{'ACGT' * 40}{'ACGT'[i % 4]},Diptera,{country},train" for i, country in enumerate(("Peru", "", "Chad"))
    ]
    table.write_text("\n".join(["key,barcode,order,country,split", *rows]) + "\n")
    ingest(open_dataset("table", [table]), tmp_path / "shards", IngestOptions(parallel=False))
    found = read_shards([tmp_path / "shards"])
    told = dict(zip(found.records["key"].to_pylist(), found.records["country"].to_pylist(), strict=True))
    assert told == {"k0": "Peru", "k1": None, "k2": "Chad"}


def test_fasta_extends_a_library_without_training(simulated_shards: Path, tmp_path: Path) -> None:
    first = read_shards([simulated_shards])
    library = Library.build(first.records, first.barcodes)
    new = "".join(np.random.default_rng(0).choice(list("ACGT"), 400))
    (tmp_path / "more.fasta").write_text(f">NEW-1|Novum novum|COI-5P\n{new}\n>NEW-2|Novum malum\nACGT!ACGT\n")
    more = read_source(open_dataset("fasta", [tmp_path / "more.fasta"]))
    assert [key for key, _ in more.skipped] == ["NEW-2"]
    grown = library.extend(more.records, more.barcodes)
    assert (grown.version, len(grown.records)) == (2, len(library.records) + 1)
    told = answers(grown, grown.search([new[50:250]]))[0]
    assert (told["rank"], told["names"]["species"], told["evidence"][0]["key"]) == ("species", "Novum novum", "NEW-1")


def test_photos_extend_a_library_with_features(
    simulated_shards: Path, model: tuple[Trimodal, Encoder], tmp_path: Path, make_jpeg: Callable[..., bytes]
) -> None:
    encoder = model[1]
    first = read_shards([simulated_shards], encoder=encoder)
    library = Library.build(first.records, first.barcodes, first.features)
    folder = tmp_path / "photos" / "Novum_novum"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(make_jpeg(1))
    (folder / "b.jpg").write_bytes(b"no photo")
    more = read_source(open_dataset("images", [tmp_path / "photos"]), encoder)
    assert len(more.records) == 1 and len(more.skipped) == 1
    grown = library.extend(more.records, more.barcodes, more.features)
    places, cosines = nearest_features(encoder.images([encoder.view(make_jpeg(1))]), grown.features["image"], 2)
    assert places[0, 0] == len(library.records) and cosines[0, 0] == pytest.approx(1, abs=1e-3)
    grown.save(tmp_path / "library")
    loaded = Library.load(tmp_path / "library")
    assert nearest_features(more.features["image"], loaded.features["image"], 2)[0].tolist() == places.tolist()
    with pytest.raises(ValueError, match=r"allowed those of the library: .*'dna': 32"):
        library.extend(more.records, more.barcodes)


def test_features_are_the_models_own_alone_and_in_company(
    simulated_shards: Path, model: tuple[Trimodal, Encoder]
) -> None:
    trimodal, encoder = model
    found = read_shards([simulated_shards], "val", encoder)
    sequence = found.barcodes[0]
    assert found.features["dna"].shape == (len(found.records), 32)
    np.testing.assert_allclose(encoder.dna(["", sequence])[1], found.features["dna"][0], atol=1e-5)
    assert not encoder.dna(["", sequence])[0].any()
    np.testing.assert_allclose(np.linalg.norm(found.features["image"], axis=1), 1, atol=1e-5)
    assert next(trimodal.parameters()).requires_grad and not torch.is_inference_mode_enabled()


def test_nearest_features_are_all_references_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    references = rng.normal(size=(50, 8))
    references[::7] = 0
    queries = rng.normal(size=(6, 8))
    cosine = np.where(references.any(axis=1), queries @ references.T, -np.inf)
    expected = np.argsort(-cosine, axis=1)[:, :5]
    monkeypatch.setattr("train.reference.features._CHUNK", 12)
    places, found = nearest_features(queries, references.astype(np.float32), 5)
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(found, np.take_along_axis(cosine, expected, 1), rtol=1e-5)
    places, found = nearest_features(queries, references[:3].astype(np.float16), 4)
    assert (places[:, 2:] == -1).all() and np.isneginf(found[:, 2:]).all()


def test_features_alone_make_a_library() -> None:
    records = pa.table({"key": ["a", "b"], "species": ["Novum novum", None]})
    library = Library.build(records, ["", ""], {"image": np.eye(2)})
    assert nearest_features(np.eye(2)[1:], library.features["image"], 1)[0].tolist() == [[1]]
    assert answers(library, library.search(["ACGTACGTACGTACGT"]))[0]["rank"] is None
