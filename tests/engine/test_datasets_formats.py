"""CLIBD's files, BOLD v5, FASTA, BarcodeBERT and photo folders in their layouts; the ways cells say "missing"."""

import gzip
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.datasets import open_dataset, read_all
from engine.datasets.clibd_hir_csv import read_caption
from engine.datasets.columns import MISSING, tidy
from engine.datasets.fasta import read_header
from engine.datasets.image_folders import guess_labels
from engine.schema import SPECIMEN_SCHEMA
from engine.taxonomy import RANKS
from tests.engine import datasets_fixtures as fixtures

FLY = ("Diptera", "Chironomidae", "Chironomus", "Chironomus plumosus")


def read(format_name: str, *paths: Path, **options: Any) -> tuple[pd.DataFrame, Any]:
    source = open_dataset(format_name, list(paths), **options)
    table = read_all(source)
    assert table.schema.equals(SPECIMEN_SCHEMA)
    return table.to_pandas().set_index("key", drop=False), source


def names_of(frame: pd.DataFrame, key: str) -> tuple[str | None, ...]:
    return tuple(None if pd.isna(name) else name for name in frame.loc[key, list(RANKS)])


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


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


# ---- CLIBD's HDF5


def test_clibd_hdf5_of_bioscan1m(tmp_path: Path) -> None:
    groups = {name: list(range(10 * i, 10 * i + 8)) for i, name in enumerate(fixtures.CLIBD_GROUPS)}
    for name, parts in fixtures.CLIBD_UNIONS.items():
        groups[name] = [n for part in parts for n in groups[part]]
    made = fixtures.clibd_hdf5(tmp_path / "BioScan_data_in_splits.hdf5", groups)
    ours, source = read("clibd-hdf5", tmp_path)
    assert set(ours["key"]) == set(made) and ours["key"].is_unique
    load = pickle.loads(pickle.dumps(source.load_image))
    for key, specimen in made.items():
        assert names_of(ours, key) == tuple(
            None if specimen[rank] == "not_classified" else specimen[rank] for rank in RANKS
        )
        assert ours["barcode"][key] == specimen["barcode"]
        if specimen["photo"]:
            assert load(ours["image"][key]) == specimen["photo"]
        else:
            with pytest.raises(ValueError, match="missing image file: length 0"):
                load(ours["image"][key])
    split = {f"id{n}": name for name in fixtures.CLIBD_GROUPS for n in groups[name]}
    assert ours["split"]["id0"] == "pretrain" and ours["split"]["id10"] == "train"
    keys = ours["key"][ours["split"] == "key_unseen"]
    assert set(keys) == {f"id{n}" for n in groups["all_keys"]}
    assert set(ours["key"][ours["split"] == "other_heldout"]) == {k for k, v in split.items() if v == "single_species"}
    repeated = "specimens already taken from another group: "
    assert sorted(source.skipped) == [
        ("BioScan_data_in_splits.hdf5 group all_keys", f"{repeated}24"),
        ("BioScan_data_in_splits.hdf5 group no_split_and_seen_train", f"{repeated}16"),
    ]


def test_clibd_hdf5_of_bioscan5m(tmp_path: Path) -> None:
    groups = {
        "all_keys": [1, 7, 21, 22],
        "seen_keys": [1, 7],
        "unseen_keys": [21, 22],
        "no_split_and_seen_train": [0, 1, 2, 7],
        "val_seen": [31],
        "other_heldout": [41],
    }
    fixtures.clibd_hdf5(tmp_path / "BIOSCAN_5M.hdf5", groups, "processid")
    ours, _ = read("clibd-hdf5", tmp_path / "BIOSCAN_5M.hdf5")
    assert ours["split"].to_dict() == {
        "id0": "pretrain",  # no species
        "id1": "train",
        "id2": "pretrain",
        "id7": "train",
        "id21": "key_unseen",
        "id22": "key_unseen",
        "id31": "val",
        "id41": "other_heldout",
    }


def test_clibd_hdf5_errors(tmp_path: Path) -> None:
    photos = fixtures.hdf5_of({"1.jpg": b"x"}, tmp_path / "photos.hdf5")
    with pytest.raises(ValueError, match=r"photos.hdf5 with bioscan_dataset at the top; allowed: groups named after"):
        read("clibd-hdf5", photos)
    with pytest.raises(ValueError, match=r"junk.h5, which cannot be read .*; allowed: an HDF5 file"):
        read("clibd-hdf5", write(tmp_path / "junk.h5", b"junk"))


# ---- CLIBD-HiR


@pytest.mark.parametrize(
    ("caption", "known", "names"),
    [
        ("Diptera Chironomidae Chironomus Chironomus plumosus", (1, 1, 1, 1), FLY),
        ("Diptera Chironomidae Chironomus plumosus", (1, 1, 1, 1), FLY),
        ("Diptera Chironomidae Chironomus not_classified", (1, 1, 1, 0), (*FLY[:3], None)),
        ("Diptera Chironomidae", (1, 1, 0, 0), (*FLY[:2], None, None)),
        ("Diptera Chironomus", (1, 0, 1, 0), ("Diptera", None, "Chironomus", None)),
        ("Diptera Formica rufa", (1, 0, 0, 1), ("Diptera", None, None, "Formica rufa")),
        ("", (0, 0, 0, 0), (None,) * 4),
        ("Diptera", (1, 1, 0, 0), None),
        ("Diptera Chironomidae Chironomus", (1, 1, 0, 0), None),
        ("Diptera Chironomidae Chironomus Chironomus plumosus", None, FLY),
        ("Diptera Chironomidae", None, (*FLY[:2], None, None)),
        ("Chironomidae", None, (None, "Chironomidae", None, None)),
        ("Diptera", None, ("Diptera", None, None, None)),
        ("Chironomus Chironomus plumosus", None, (None, None, *FLY[2:])),
        ("Diptera Chironomidae Chironomus", None, (*FLY[:3], None)),
    ],
)
def test_captions(caption: str, known: tuple[int, ...] | None, names: Any) -> None:
    assert read_caption(caption, known if known is None else [bool(one) for one in known]) == names


HIR_HEADER = "image_file,taxonomy,nucraw,unique_label,order,family,genus,species,All_level_label"
HIR_ROWS = [
    '1.jpg,Diptera Chironomidae Chironomus Chironomus plumosus,ACGT,0,3,12,7,5,"[3, 12, 7, 5]"',
    '2.jpg,Diptera Chironomidae not_classified not_classified,ACGA,1,3,12,0,0,"[3, 12, 0, 0]"',
    '3.jpg,a photo of something,ACGG,2,3,99,0,0,"[3, 99, 0, 0]"',
    '4.jpg,not_classified,,3,0,0,0,0,"[0, 0, 0, 0]"',
]


@pytest.mark.parametrize("only_lists", [False, True])
def test_clibd_hir_codes_get_their_names_from_captions(
    tmp_path: Path, only_lists: bool, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.read_csv(write(tmp_path / "in.csv", "\n".join([HIR_HEADER, *HIR_ROWS])), dtype=str)
    (tmp_path / "in.csv").unlink()
    kept = frame.drop(columns=list(RANKS)) if only_lists else frame
    kept.to_csv(tmp_path / "train_split.csv", index=False)
    write(tmp_path / "val.csv", f"{','.join(kept)}\n")
    kept.iloc[:1].replace("1.jpg", "9.jpg").to_csv(tmp_path / "val.csv", index=False)
    hdf5 = fixtures.hdf5_of({"1.jpg": fixtures.photo(1), "9.jpg": fixtures.photo(9)}, tmp_path / "original_256.hdf5")
    with caplog.at_level(logging.WARNING):
        ours, source = read("clibd-hir-csv", tmp_path / "train_split.csv", tmp_path / "val.csv", hdf5)
    assert names_of(ours, "1.jpg") == names_of(ours, "9.jpg") == FLY
    assert names_of(ours, "2.jpg") == (*FLY[:2], None, None)
    assert names_of(ours, "3.jpg") == ("Diptera", "family-99", None, None) and "family-99 (1)" in caplog.text
    assert names_of(ours, "4.jpg") == (None,) * 4 and pd.isna(ours["barcode"]["4.jpg"])
    assert ours["split"].to_dict() == {**{f"{n}.jpg": "train" for n in range(1, 5)}, "9.jpg": "val"}
    assert source.load_image(ours["image"]["9.jpg"]) == fixtures.photo(9)
    with pytest.raises(ValueError, match=r"missing image file: 2.jpg in"):
        source.load_image(ours["image"]["2.jpg"])


def test_clibd_hir_lists_are_never_evaluated(tmp_path: Path) -> None:
    trap = f'__import__("pathlib").Path({str(tmp_path / "evaluated")!r}).touch()'.replace('"', '""')
    lists = [f'"{trap}"', '"[1, 2, 3]"', '"[1, 2, 3, -4]"', '"[0, 0, 0, 0]"', ""]
    rows = [f"{n}.jpg,Diptera,ACGT,{text}" for n, text in enumerate(lists)]
    path = write(tmp_path / "test.csv", "\n".join(["image_file,taxonomy,nucraw,All_level_label", *rows]))
    ours, source = read("clibd-hir-csv", path)
    assert list(ours["key"]) == ["3.jpg"] and not (tmp_path / "evaluated").exists()
    assert source.skipped == [(f"{n}.jpg", "All_level_label that is no list of four integers") for n in (0, 1, 2, 4)]


def test_clibd_hir_inference_file_has_captions_only(tmp_path: Path) -> None:
    path = write(tmp_path / "test.csv", "image_file,taxonomy,nucraw\n1.jpg,Diptera Chironomidae,ACGT\n2.jpg,,AC\n")
    ours, _ = read("clibd-hir-csv", path)
    assert names_of(ours, "1.jpg") == (*FLY[:2], None, None) and names_of(ours, "2.jpg") == (None,) * 4


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
    records=st.lists(st.tuples(st.sampled_from("ABCDE"), st.text("ACGT-N", max_size=6)), min_size=1, max_size=30),
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
    best = {}
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
        ("", {}),
    ],
)
def test_folder_names(place: str, expected: dict[str, str]) -> None:
    assert guess_labels([part for part in place.split("/") if part]) == expected


def test_image_folders(tmp_path: Path) -> None:
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
    two, _ = read("images", root / "a", root / "b")
    assert sorted(two["key"])[-1] == "b/Diptera/x1/Musca_domestica/1.jpg"
    with pytest.raises(ValueError, match=r"--ranks: got 'tribe', allowed: order, family, genus, species, split, -"):
        read("images", root, ranks=("tribe",))
    with pytest.raises(ValueError, match=r"notes.txt, which is no folder"):
        read("images", root / "a" / "notes.txt")
