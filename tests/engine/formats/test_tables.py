"""BOLD v5, FASTA, BarcodeBERT and photo folders in their layouts; the ways cells say "missing"."""

import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.formats.columns import MISSING, tidy
from engine.formats.fasta import read_header
from engine.formats.image_folders import guess_labels
from engine.formats.registry import open_dataset
from engine.formats.source import read_all
from engine.specimens.taxonomy import RANKS
from tests.engine.formats import fixtures
from tests.engine.formats.fixtures import FLY, names_of, read, write


@settings(deadline=None)
@given(
    cells=st.lists(
        st.tuples(
            st.sampled_from([*MISSING, "Musca", "NANA", "nonesuch"]), st.sampled_from([str.upper, str.title, str])
        ),
        max_size=20,
    ),
    space=st.sampled_from(["", " ", "\t", "\u00a0"]),
)
def test_every_spelling_of_missing(cells: list[tuple[str, Any]], space: str) -> None:
    spelled = [f"{space}{change(word)}{space}" for word, change in cells]
    expected = [None if word in MISSING else change(word) for word, change in cells]
    assert tidy(pa.chunked_array([pa.array(spelled, pa.string())])).to_pylist() == expected


@given(
    rows=st.lists(
        st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=12)] * 3), max_size=8
    ),
    delimiter=st.sampled_from([",", "\t", ";"]),
    packed=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.middle
def test_any_table_of_text_is_read_as_pandas_wrote_it(
    rows: list[tuple[str, ...]], delimiter: str, packed: bool, tmp_path: Path
) -> None:
    rows = [("k0", "ACGT", "x"), *rows]
    frame = pd.DataFrame(rows, columns=["id", "barcode", "country"])
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    frame.to_csv(path, sep=delimiter, index=False, lineterminator="\n")
    ours, source = read("table", path)
    cells = {name: tidy(pa.chunked_array([pa.array(frame[name])])).to_pylist() for name in frame}
    kept = [row for row in zip(*cells.values(), strict=True) if row[0] is not None]
    got = [tuple(None if pd.isna(cell) else cell for cell in row) for row in ours[["key", "barcode", "country"]].values]
    assert got == kept and len(source.skipped) == len(rows) - len(kept)


@pytest.mark.parametrize("num_rows", [40, 60_000])  # of which the second takes several blocks
def test_a_quote_that_nobody_closes_costs_its_own_row(tmp_path: Path, num_rows: int) -> None:
    rows = [f"k{n},{'ACGT' * 50},Peru" for n in range(num_rows)]
    odd = {
        5: 'k5,ACGT,"Peru',
        9: 'k9,"ACGT,Peru',
        11: 'k11,ACGT,"Great\nBritain"',
        13: 'k13,AC"GT,5" nails',
        15: 'k15,ACGT,5" nails',
        17: 'k17,ACGT,"a ""word"""',
        30: 'k30,"ACGT,"x","Peru',
        num_rows - 1: 'end,ACGT,"Peru',
    }
    for place, row in odd.items():
        rows[place] = row
    ours, source = read("table", write(tmp_path / "t.csv", "\n".join(["id,barcode,country", *rows])))
    assert len(ours) == num_rows - 4 and not {"k5", "k9", "k30", "end"} & set(ours["key"])
    countries = {"k11": "Great\nBritain", "k13": '5" nails', "k15": '5" nails', "k17": 'a "word"'}
    assert {key: ours["country"][key] for key in countries} == countries
    named = [f"t.csv row {odd[place]!r}" for place in (5, 9, 30, num_rows - 1)]
    assert sorted(source.skipped) == sorted((name, "unclosed quote") for name in named)


# ---- BOLD v5, BarcodeBERT

BCDM = ["processid", "record_id", "sampleid", "marker_code", *RANKS, "nuc", "bin_uri", "coord", "country/ocean"]
BCDM_ROWS = [
    ["A1", "A1.COI-5P", "S1", "COI-5P", *FLY, "--acgtRYN--", "BOLD:AAA1", "[10.5,-84.25]", "Costa Rica"],
    ["A1", "A1.COI-5P", "S1", "COI-5P", *FLY, "ACGTACGTACGT", "BOLD:AAA1", "10.5,-84.25", "Costa Rica"],
    ["A2", "A2.COI-3P", "S2", "COI-3P", *FLY, "ACGT", "", "", ""],
    ["A3", "A3.COI-5P", "S3", "COI-5P", "Diptera", "None", "NA", "", "AC-GT", "None", "(-1.5, 200)", "Peru"],
    ["A4", "A4.COI-5P", "S4", "COI-5P", "Diptera", "", "", "", "ACGT", "", "somewhere", "Peru"],
]


@pytest.mark.parametrize("kind", ["tsv", "parquet", "renamed"])
def test_bold_v5(tmp_path: Path, kind: str) -> None:
    frame = pd.DataFrame(BCDM_ROWS, columns=BCDM)
    if kind == "renamed":
        frame = frame.rename(columns={"country/ocean": "country.ocean"})
    path = tmp_path / f"BOLD_Public.{'parquet' if kind == 'parquet' else 'tsv'}"
    frame.to_parquet(path) if kind == "parquet" else frame.to_csv(path, sep="\t", index=False)
    ours, source = read("bold", path)
    assert list(ours["key"]) == ["A1", "A3", "A4"] and ours["barcode"]["A1"] == "ACGTACGTACGT"
    assert names_of(ours, "A1") == FLY and names_of(ours, "A3") == ("Diptera", None, None, None)
    assert tuple(ours.loc["A1", ["latitude", "longitude", "country"]]) == (10.5, -84.25, "Costa Rica")
    assert ours["latitude"]["A3"] == -1.5 and np.isnan(ours["longitude"]["A3"]) and np.isnan(ours["latitude"]["A4"])
    assert pd.isna(ours["bin_uri"]["A3"])
    assert source.skipped == [
        ("A2", "record of another marker: COI-3P"),
        ("A1", "another COI-5P record of the same processid"),
    ]


@given(
    records=st.lists(st.tuples(st.sampled_from("ABCDE"), st.text("ACGT-", max_size=6)), min_size=1, max_size=30),
    cuts=st.integers(1, 3),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_longest_record_of_a_processid_is_taken(records: list[tuple[str, str]], cuts: int, tmp_path: Path) -> None:
    for file in tmp_path.glob("*.tsv"):
        file.unlink()
    for part in range(cuts):
        rows = [f"{key}\t{barcode}\tCOI-5P\t\t\t\t" for key, barcode in records[part::cuts]]
        header = "processid\tnuc\tmarker_code\torder\tfamily\tgenus\tspecies"
        if rows:
            write(tmp_path / f"{part}.tsv", "\n".join([header, *rows]) + "\n")
    in_order = [record for part in range(cuts) for record in records[part::cuts]]
    best: dict[str, tuple[int, str]] = {}
    for key, barcode in in_order:
        length = sum(letter in "ACGT" for letter in barcode)
        if key not in best or length > best[key][0]:
            best[key] = (length, barcode)
    ours, source = read("bold", tmp_path)
    got = {key: barcode or "" for key, barcode in zip(ours["key"], ours["barcode"].fillna(""), strict=True)}
    expected = {key: "" if barcode in MISSING else barcode for key, (_, barcode) in best.items()}
    assert got == expected and len(source.skipped) == len(records) - len(best)


def test_barcodebert_files_give_the_split(tmp_path: Path) -> None:
    header = "processid,sampleid,bin_uri,order_name,family_name,genus_name,species_name,nucleotides,sequence_len"
    for n, name in enumerate(("pre_training", "supervised_train", "supervised_test", "unseen", "other")):
        write(tmp_path / f"{name}.csv", f"{header}\nP{n},S{n},BOLD:AAA{n},Diptera,,,,ACGT,4\n")
    ours, _ = read("barcodebert", tmp_path)
    splits = {key: None if pd.isna(split) else split for key, split in ours["split"].items()}
    assert splits == {"P0": "pretrain", "P1": "train", "P2": "test", "P3": "test_unseen", "P4": None}
    assert names_of(ours, "P0") == ("Diptera", None, None, None)
    renamed = header.replace("_name", "").replace("nucleotides", "dna_barcode").replace("bin_uri", "dna_bin")
    path = write(tmp_path / "x" / "all.csv", f"{renamed},split\nQ,S,BOLD:AAA9,{','.join(FLY)},ACGT,4,validation\n")
    ours, _ = read("barcodebert", path)
    assert names_of(ours, "Q") == FLY and (ours["split"]["Q"], ours["bin_uri"]["Q"]) == ("val", "BOLD:AAA9")


# ---- FASTA


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("GBA1-19|Chironomus plumosus|COI-5P|KM571234", {"key": "GBA1-19", "marker": "COI-5P", "species": FLY[3]}),
        ("GBA1-19|Chironomus plumosus|COI-5P", {"key": "GBA1-19", "genus": "Chironomus", "species": FLY[3]}),
        ("GBA1-19|Chironomidae|COI-5P|", {"key": "GBA1-19", "family": "Chironomidae"}),
        ("GBA1-19|Diptera|16S", {"key": "GBA1-19", "order": "Diptera", "marker": "16S"}),
        ("GBA1-19||COI-5P|KM571234", {"key": "GBA1-19", "marker": "COI-5P"}),
        ("AANIC216-11|BOLD:AAA8924", {"key": "AANIC216-11", "bin_uri": "BOLD:AAA8924"}),
        (
            "BOLD:AAA8924_KM616161;tax=k:Animalia,p:Arthropoda,c:Insecta,o:Diptera,f:Chironomidae,g:Chironomus,"
            "s:Chironomus_plumosus;",
            {"key": "BOLD:AAA8924_KM616161", "bin_uri": "BOLD:AAA8924", **dict(zip(RANKS, FLY, strict=True))},
        ),
        ("x;tax=o:Diptera,g:Chironomus,s:plumosus", {"key": "x", "genus": "Chironomus", "species": FLY[3]}),
        ("P1|Chironomus|Chironomus plumosus", {"key": "P1", "genus": "Chironomus", "species": FLY[3]}),
        ("P1|Chironomus|plumosus", {"key": "P1", "genus": "Chironomus", "species": FLY[3]}),
        ("P1|Chironomus|", {"key": "P1", "genus": "Chironomus"}),
        ("P1|Diptera|Chironomidae|Chironomus|Chironomus_plumosus", dict(zip(RANKS, FLY, strict=True))),
        ("any words at all", {"key": "any words at all"}),
        ("", {"key": ""}),
    ],
)
def test_fasta_headers(header: str, expected: dict[str, str]) -> None:
    found = read_header(header)
    assert {field: found.get(field) for field in expected} == expected
    others = {field for field in found if field in RANKS} - set(expected)
    assert not others or (others == {"genus"} and "species" in expected) or "tax=" in header


@given(
    records=st.lists(
        st.tuples(
            st.from_regex(r"[A-Z]{2,5}[0-9]{1,4}-[0-9]{2}", fullmatch=True), st.text("ACGTacgtN-RY", max_size=300)
        ),
        min_size=1,
        max_size=12,
    ),
    width=st.integers(1, 90),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    packed=st.booleans(),
    blank=st.booleans(),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fasta_round_trip(
    records: list[tuple[str, str]], width: int, newline: str, packed: bool, blank: bool, tmp_path: Path
) -> None:
    lines = []
    for key, sequence in records:
        lines += [f">{key}|Chironomus|Chironomus plumosus"]
        lines += [sequence[at : at + width] for at in range(0, len(sequence), width)] + [""] * blank
    text = newline.join([*lines, ""]).encode()
    path = write(tmp_path / ("r.fasta.gz" if packed else "r.fasta"), gzip.compress(text, 1) if packed else text)
    table = read_all(open_dataset("fasta", [path]))
    expected = [sequence if sequence and sequence != "-" else None for _, sequence in records]
    assert table["barcode"].to_pylist() == [None if (s or "").lower() in MISSING else s for s in expected]
    assert table["key"].to_pylist() == [key for key, _ in records]


def test_fasta_with_a_taxonomy_table_and_bad_records(tmp_path: Path) -> None:
    text = "stray\n>A1|BOLD:AAA0001\nACGT\n>A2|BOLD:AAA0002\nAC\nGT\n>A3|x|28S\nACGT\n>\nACGT\n>A4|BOLD:AAA0009\nA\n"
    path = write(tmp_path / "BOLDistilled_COI_SEQUENCES.fasta", text)
    table = "bin\tkingdom\torder\tfamily\tgenus\tspecies\n"
    table += f"BOLD:AAA0002\tAnimalia\tDiptera\tNone\t\t\nBOLD:AAA0001\tAnimalia\t{chr(9).join(FLY)}\n"
    write(tmp_path / "BOLDistilled_COI_TAXONOMY.tsv.gz", gzip.compress(table.encode()))
    ours, source = read("fasta", tmp_path)
    assert names_of(ours, "A1") == FLY and names_of(ours, "A2") == ("Diptera", None, None, None)
    assert names_of(ours, "A4") == (None,) * 4 and ours["barcode"]["A2"] == "ACGT"
    assert sorted(source.skipped) == [
        ("A3", "record of another marker: 28S"),
        (f"{path.name} line 'stray'", "text before the first header"),
        (f"{path.name} row 3", "no key"),
    ]
    named, _ = read("fasta", path, taxonomy=write(tmp_path / "t.tsv", f"processid\tspecies\nA4\t{FLY[3]}\n"))
    assert named["species"]["A4"] == FLY[3] and pd.isna(named["species"]["A1"])
    with pytest.raises(ValueError, match=r"t.tsv has no column of ids or none of names; got name; allowed: processid"):
        read("fasta", path, taxonomy=write(tmp_path / "t.tsv", "name\nA4\n"))


# ---- folders of photos


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("Chironomus_plumosus", {"genus": "Chironomus", "species": FLY[3]}),
        ("Chironomidae", {"family": "Chironomidae"}),
        ("Chironomus", {"genus": "Chironomus"}),
        ("Diptera", {"order": "Diptera"}),
        ("train/Chironomus plumosus", {"split": "train", "genus": "Chironomus", "species": FLY[3]}),
        ("validation/Diptera/Chironomidae", {"split": "val", "order": "Diptera", "family": "Chironomidae"}),
        ("Diptera/Chironomidae/Chironomus/plumosus", dict(zip(RANKS, FLY, strict=True))),
        ("Chironomidae/Chironomus/Chironomus_plumosus", dict(zip(RANKS[1:], FLY[1:], strict=True))),
        (
            "00012_Animalia_Arthropoda_Insecta_Diptera_Chironomidae_Chironomus_plumosus",
            dict(zip(RANKS, FLY, strict=True)),
        ),
        ("photos/Chironomus/plumosus", {"genus": "Chironomus", "species": FLY[3]}),
        ("moths/images", {}),
        ("test/my_photos", {"split": "test"}),
        ("", {}),
    ],
)
def test_folder_names(place: str, expected: dict[str, str]) -> None:
    assert guess_labels([part for part in place.split("/") if part]) == expected


def test_image_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "photos"
    for place in ("b/Diptera/x1/Musca_domestica/1.jpg", "a/Diptera/x1/Musca_domestica/2.PNG", "a/Diptera/flat.jpg"):
        write(root / place, fixtures.photo(1))
    write(root / "a" / "notes.txt", "words")
    write(root / ".DS_Store", "x")
    ours, source = read("images", root, ranks=("-", "order", "-", "species"))
    assert list(ours["key"]) == ["a/Diptera/x1/Musca_domestica/2.PNG", "b/Diptera/x1/Musca_domestica/1.jpg"]
    assert names_of(ours, ours["key"].iloc[0]) == ("Diptera", None, "Musca", "Musca domestica")
    assert source.skipped == [
        ("a/Diptera/flat.jpg", "depth of folders: 2, --ranks names 4"),
        ("a/notes.txt", "no photo: suffix .txt"),
    ]
    assert source.load_image(ours["image"].iloc[0]) == fixtures.photo(1)
    write(tmp_path / "low" / "musca_domestica" / "1.jpg", fixtures.photo(1))
    low, _ = read("images", tmp_path / "low", ranks=("species",))
    assert names_of(low, "musca_domestica/1.jpg") == (None, None, "Musca", "Musca domestica")
    two, _ = read("images", root / "a", root / "b")
    assert sorted(two["key"])[-1] == "b/Diptera/x1/Musca_domestica/1.jpg"
    (root / "a" / "photos").mkdir()
    write(root / "a" / "photos" / "1.jpg", fixtures.photo(1))
    with caplog.at_level(logging.WARNING):
        assert len(read("images", root / "a")[0]) == 3
    assert "1 photos lie in folders that name no taxon" in caplog.text
    with pytest.raises(ValueError, match=r"--ranks: got 'tribe', allowed: order, family, genus, species, split, -"):
        read("images", root, ranks=("tribe",))
    with pytest.raises(ValueError, match=r"notes.txt, which is no folder"):
        read("images", root / "a" / "notes.txt")
