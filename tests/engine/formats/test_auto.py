"""Which format files have: every layout, mixtures, and the errors for what fits none."""

import logging
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.formats.auto import detect, format_of_header
from engine.formats.registry import FORMATS, open_dataset
from engine.formats.source import read_all
from tests.engine.formats import fixtures

BOLD_4 = "processid sampleid bin_uri order_name family_name genus_name species_name nucleotides markercode lat lon"
BCDM = "processid record_id sampleid marker_code order family genus species nuc bin_uri coord country/ocean"
BARCODEBERT = "processid sampleid bin_uri order_name family_name genus_name species_name nucleotides sequence_len"
HIR = "image_file taxonomy nucraw unique_label order family genus species All_level_label"
TABLE = "museum_no id image barcode species"
HEADERS = {
    "bioscan1m": fixtures.COLUMNS_1M,
    "bioscan5m": fixtures.COLUMNS_5M,
    "bold": BOLD_4,
    "barcodebert": BARCODEBERT,
    "clibd-hir-csv": HIR,
    "table": TABLE,
}


def make_1m(root: Path) -> None:
    fixtures.bioscan1m(root, 6)


def make_5m(root: Path) -> None:
    fixtures.bioscan5m(root, 8)


def make_clibd(root: Path) -> None:
    fixtures.clibd_hdf5(root / "BioScan_data_in_splits.hdf5", {"train_seen": [1, 2]})


def text_file(name: str, text: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / name).write_text(text)

    return make


def csv_file(name: str, columns: str, separator: str = "\t") -> Callable[[Path], None]:
    """One row, of which every cell is "COI-5P"."""
    names = columns.split()
    return text_file(name, f"{separator.join(names)}\n{separator.join(['COI-5P'] * len(names))}\n")


def make_parquet(root: Path) -> None:
    pd.DataFrame({name: ["COI-5P"] for name in BCDM.split()}).to_parquet(root / "x.parquet")


def make_photos(root: Path) -> None:
    (root / "train" / "Musca_domestica").mkdir(parents=True)
    (root / "train" / "Musca_domestica" / "1.jpg").write_bytes(fixtures.photo(1))


def make_hir(root: Path) -> None:
    csv_file("train.csv", HIR, ",")(root)
    fixtures.hdf5_of({"image_file": fixtures.photo(1)}, root / "original_256.hdf5")


CASES = {
    "1m": (make_1m, "bioscan1m"),
    "5m": (make_5m, "bioscan5m"),
    "clibd": (make_clibd, "clibd-hdf5"),
    "hir": (make_hir, "clibd-hir-csv"),
    "bold4": (csv_file("bold_data.txt", BOLD_4), "bold"),
    "bcdm": (csv_file("BOLD_Public.tsv", BCDM), "bold"),
    "parquet": (make_parquet, "bold"),
    "barcodebert": (csv_file("unseen.csv", BARCODEBERT, ","), "barcodebert"),
    "fasta": (text_file("x.fas", ">a|b|c\nACGT\n"), "fasta"),
    "fasta.txt": (text_file("x.txt", "\n>a|b|c\nACGT\n"), "fasta"),
    "table": (csv_file("mine.csv", TABLE, ";"), "table"),
    "photos": (make_photos, "images"),
}


@pytest.mark.parametrize("case", CASES)
def test_formats_are_told_apart(tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture) -> None:
    make, name = CASES[case]
    make(tmp_path)
    by_name = [tmp_path / "x.txt"] if case == "fasta.txt" else [tmp_path]
    expected = read_all(open_dataset(name, by_name))
    (tmp_path / "README.txt").write_text("words and more words\n")
    with caplog.at_level(logging.WARNING):
        source = open_dataset("auto", [tmp_path])
    assert f"auto: format {name}, by {tmp_path}" in caplog.text
    table = read_all(source)
    assert table.num_rows and table.equals(expected)


def test_every_format_that_reads_files_is_detected() -> None:
    assert {name for _, name in CASES.values()} == set(FORMATS) - {"auto", "simulated"}


@given(st.data())
@settings(deadline=None)
def test_the_order_of_columns_their_case_and_others_beside_them_do_not_matter(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(HEADERS)))
    columns = data.draw(st.permutations([*HEADERS[name].split(), "comments", "collector"]))
    spelled = [data.draw(st.sampled_from([column, column.upper(), f" {column} "])) for column in columns]
    assert format_of_header(spelled) == name


def test_two_formats_side_by_side_are_an_error(tmp_path: Path) -> None:
    csv_file("a.tsv", BOLD_4)(tmp_path)
    csv_file("b.csv", TABLE, ",")(tmp_path)
    with pytest.raises(ValueError, match=r"got files of several formats: bold \(.*a.tsv\), table \(.*b.csv\); allowed"):
        detect([tmp_path])
    assert detect([tmp_path / "a.tsv"])[0] == "bold"


def test_unknown_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"auto: got .* with nothing; allowed: files of barcodebert, bioscan1m"):
        detect([tmp_path])
    path = tmp_path / "x.csv"
    path.write_text("colour,weight\nred,1\n")
    with pytest.raises(ValueError, match=r"x.csv with columns colour, weight; allowed"):
        detect([path])
    path.write_text("")
    with pytest.raises(ValueError, match=r"x.csv, which is empty; allowed"):
        detect([path])
    (tmp_path / "x.parquet").write_text("junk")
    with pytest.raises(ValueError, match=r"auto: .*x.parquet cannot be read"):
        detect([tmp_path / "x.parquet"])
    photos = fixtures.hdf5_of({"1.jpg": b"x"}, tmp_path / "original_256.hdf5")
    with pytest.raises(ValueError, match=r"original_256.hdf5, which is of no known kind"):
        detect([photos])


def test_real_folders(real_data: Path) -> None:
    for folder, name in (("bold/tsv", "bold"), ("bold", "table"), ("coi", "table"), ("moths", "table")):
        assert detect([real_data / folder])[0] == name
    assert detect([real_data / "moths" / "images"])[0] == "images"
    with pytest.raises(ValueError, match=r"with README.md, .*moths; allowed"):
        detect([real_data])
