"""Simulated specimens: reproducible, labelled as promised, coding barcodes without leaks, photos that decode."""

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg

from engine.formats.registry import open_dataset
from engine.formats.source import read_all
from engine.simulated import barcodes as simulated_barcodes
from engine.simulated import photos as simulated_photos
from engine.simulated.source import SimulatedSource
from engine.specimens.schema import SPECIMEN_SCHEMA, rng_for
from engine.specimens.taxonomy import RANKS, Taxonomy

_COMPLEMENT = str.maketrans("ACGT", "TGCA")


@pytest.fixture(scope="module")
def source() -> SimulatedSource:
    source: Any = open_dataset("simulated", [], seed=0)
    return source


@pytest.fixture(scope="module")
def table(source: SimulatedSource) -> pa.Table:
    return read_all(source)


def _small(seed: int = 3) -> SimulatedSource:
    source: Any = open_dataset("simulated", [], seed=seed, num_specimens=400, num_species=20)
    return source


def test_a_source_is_a_pure_function_of_its_arguments() -> None:
    first, second, other = _small(), pickle.loads(pickle.dumps(_small())), _small(seed=4)
    assert read_all(first).equals(read_all(second))
    assert not read_all(first).equals(read_all(other))
    ref = read_all(first)["image"].drop_null()[0].as_py()
    assert first.load_image(ref) == second.load_image(ref) != other.load_image(ref)


def test_schema_counts_and_splits(source: SimulatedSource, table: pa.Table) -> None:
    assert table.schema.equals(SPECIMEN_SCHEMA)
    assert table.num_rows == 9200 and source.skipped == []
    split = Counter(table["split"].to_pylist())
    assert 6000 <= split["train"] <= 8000 and 600 <= split["val"] <= 900 and 1300 <= split["test"] <= 1700
    assert split["val"] + split["test"] >= 2000
    assert len(set(table["key"].to_pylist())) == table.num_rows
    orders = Counter(source.true_labels()["order"])
    assert len(orders) == 8 and orders.most_common(1)[0][0] == "Diptera"


def test_labels_are_missing_in_train_as_in_bioscan_and_complete_elsewhere(
    source: SimulatedSource, table: pa.Table
) -> None:
    frame, truth = table.to_pandas(), source.true_labels()
    for rank in RANKS:
        known = frame[rank].notna()
        assert (frame[rank][known] == np.array(truth[rank])[known]).all()
    train, held_out = frame[frame.split == "train"], frame[frame.split != "train"]
    shares = train[list(RANKS)].notna().mean()
    assert shares["order"] > 0.99 and 0.93 < shares["family"] < 0.98
    assert 0.24 < shares["genus"] < 0.32 and 0.08 < shares["species"] < 0.14
    assert (train["genus"].notna() & train["family"].isna()).any()
    assert held_out[list(RANKS)].notna().all(axis=None)
    assert held_out["species"].nunique() >= 100
    named = train["species"].value_counts()
    assert all(named.get(species, 0) >= 2 for species in held_out["species"].unique())
    assert frame["bin_uri"].notna().mean() > 0.95
    assert 0.01 < frame["image"].isna().mean() < 0.06 and 0.01 < frame["barcode"].isna().mean() < 0.06
    assert (frame["image"].notna() | frame["barcode"].notna()).all()


def test_the_taxonomy_is_a_tree(source: SimulatedSource) -> None:
    taxonomy = Taxonomy.build(source.true_labels())
    assert taxonomy.conflicts == ()
    assert [len(names) for names in taxonomy.names] == [8, 26, 55, 120]


def test_a_bin_is_mostly_a_species(source: SimulatedSource, table: pa.Table) -> None:
    frame = table.to_pandas().assign(truth=source.true_labels()["species"]).dropna(subset=["bin_uri"])
    bins_of_species = frame.groupby("truth")["bin_uri"].nunique()
    species_of_bin = frame.groupby("bin_uri")["truth"].nunique()
    assert 0 < (bins_of_species > 1).sum() < 15 and 0 < (species_of_bin > 1).sum() < 15


def test_barcodes_code_for_a_protein_before_blemishes(source: SimulatedSource) -> None:
    haplotypes = set(source.haplotypes())
    for barcode in haplotypes:
        assert len(barcode) == simulated_barcodes.LENGTH and set(barcode) <= set("ACGT")
        codons = {barcode[i : i + 3] for i in range(simulated_barcodes.FRAME, len(barcode) - 2, 3)}
        assert not codons & {"TAA", "TAG"}
    letters = Counter("".join(haplotypes))
    assert 0.65 < (letters["A"] + letters["T"]) / letters.total() < 0.75


def test_a_good_share_of_test_barcodes_is_new(source: SimulatedSource, table: pa.Table) -> None:
    haplotypes, split = np.array(source.haplotypes()), np.array(table["split"].to_pylist())
    new = ~np.isin(haplotypes[split == "test"], haplotypes[split == "train"])
    assert 0.3 < new.mean() < 0.6


def test_blemishes_keep_records_recognisable() -> None:
    barcode = "".join(np.random.default_rng(0).choice(list("ACGT"), 658))
    seen: Counter[str] = Counter()
    for i in range(2000):
        record = simulated_barcodes.blemish(barcode, rng_for(0, 0, str(i), "test"))
        upper = record.upper().replace("-", "")
        assert 300 <= len(upper) <= 658 and set(upper) <= set("ACGTNRYKMSW")
        seen["clean"] += record == barcode
        seen["short"] += len(upper) < 658
        seen["N"] += "N" in upper
        seen["reverse"] += upper[300:330] in barcode.translate(_COMPLEMENT)[::-1] and upper[300:330] not in barcode
    assert seen["clean"] > 1000 and min(seen.values()) > 20


def test_photos_decode(source: SimulatedSource, table: pa.Table) -> None:
    for ref in table["image"].drop_null().to_pylist()[:24]:
        image = simplejpeg.decode_jpeg(source.load_image(ref))
        assert image.shape == (128, 128, 3) and image.std() > 5


def test_every_order_draws_a_different_body() -> None:
    plates = [simulated_photos.draw(0, (order, 0, 0, 0), specimen=1, nuisance=0.0) for order in range(8)]
    assert len({plate.tobytes() for plate in plates}) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_species": 4}, "num_species, got 4, allowed: 8"),
        ({"num_species": 100, "num_specimens": 500}, "num_specimens, got 500, allowed: 800"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_dataset("simulated", [], **options)
