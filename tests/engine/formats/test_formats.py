"""Formats: what tables and BOLD downloads look like in the wild, and the errors a user gets."""

import gzip
import importlib.util
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from engine.formats.registry import FORMATS, open_dataset
from engine.formats.source import read_all
from engine.specimens.schema import SPECIMEN_SCHEMA

BARCODE = "AACTTTATATTTTATTTTTGG"


def read(format_name: str, path: Path, **options: Any) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    source = open_dataset(format_name, [path], **options)
    table = read_all(source)
    assert table.schema.equals(SPECIMEN_SCHEMA)
    return table.to_pandas(), source.skipped


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "header",
    [
        "id,image,barcode,order,family,genus,species,split,bin_uri,country",
        "processid,image_path,nucleotides,order_name,family_name,genus_name,species_name,split,dna_bin,country",
        " SampleID , IMAGE_FILE,nucraw,Order,Family,Genus,Species,Split,uri,Country/Ocean",
    ],
)
def test_columns_are_found_by_their_aliases(tmp_path: Path, header: str) -> None:
    row = "001,photos/1.jpg,ACGT,Diptera,Muscidae,Musca,Musca domestica,validation,BOLD:AAA1,Peru"
    frame, skipped = read("table", write(tmp_path / "t.csv", f"{header}\n{row}\n"))
    image = str(tmp_path / "photos/1.jpg")
    ranks = ["Diptera", "Muscidae", "Musca", "Musca domestica"]
    assert frame[SPECIMEN_SCHEMA.names[:-3]].values.tolist() == [
        ["001", image, "ACGT", *ranks, "val", "BOLD:AAA1", "Peru"]
    ]
    assert not skipped


@pytest.mark.parametrize("word", ["", " ", "not_classified", "NA", "None", "nan"])
def test_words_that_mean_missing(tmp_path: Path, word: str) -> None:
    frame, _ = read("table", write(tmp_path / "t.csv", f"id,barcode,genus,split\nx,ACGT,{word},{word}\n"))
    assert frame["genus"].isna().all() and frame["split"].isna().all()


def test_names_are_trimmed_and_barcodes_kept_as_given(tmp_path: Path) -> None:
    frame, _ = read("table", write(tmp_path / "t.tsv", "id\tbarcode\tspecies\nx\t ac--gt n \t Olla   v-nigrum \n"))
    assert frame["species"][0] == "Olla v-nigrum" and frame["barcode"][0] == "ac--gt n"


def test_csv_with_quotes_newlines_semicolons_bom_and_gzip(tmp_path: Path) -> None:
    text = '\ufeffid;barcode;country\r\n"a;1";ACGT;"Great\nBritain"\r\n"b";"AC""GT";x\r\n'
    plain, _ = read("table", write(tmp_path / "t.csv", text))
    assert plain["key"].tolist() == ["a;1", "b"] and plain["barcode"].tolist() == ["ACGT", 'AC"GT']
    packed, _ = read("table", write(tmp_path / "t.csv.gz", gzip.compress(text.encode())))
    assert packed.equals(plain)
    sixteen, _ = read("table", write(tmp_path / "u.csv", text.removeprefix("\ufeff").encode("utf-16")))
    assert sixteen.equals(plain)


def test_bytes_that_are_no_utf8_are_latin1(tmp_path: Path) -> None:
    text = "id,barcode,country\n1,ACGT,Perú\n2,ACGT,".encode() + b"Per\xfa\n"
    frame, _ = read("table", write(tmp_path / "t.csv", text))
    assert frame["country"].tolist() == ["Perú", "Perú"]


def test_bad_rows_are_named_and_the_others_stay(tmp_path: Path) -> None:
    text = "id,barcode\nx,ACGT\ny,ACGT,extra\n,ACGT\nz,ACGT\n"
    frame, skipped = read("table", write(tmp_path / "t.csv", text))
    assert frame["key"].tolist() == ["x", "z"]
    assert [reason.partition(": ")[0] for _, reason in skipped] == ["wrong number of columns", "no key"]
    assert "'y,ACGT,extra'" in skipped[0][0]


def test_parquet_with_categories_numbers_and_folders(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": [7, 8], "barcode": ["ACGT", None], "genus": pd.Categorical(["Musca", None])})
    frame.to_parquet(tmp_path / "a.parquet")
    write(tmp_path / "b.csv", "key,nuc\nc,ACGT\n")
    write(tmp_path / "notes.md", "nothing")
    read_back, _ = read("table", tmp_path)
    assert read_back["key"].tolist() == ["7", "8", "c"]
    assert read_back["genus"].isna().tolist() == [False, True, True]


def test_image_folder_and_absolute_paths(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    path = write(tmp_path / "t.csv", "id,image\n1,a.jpg\n2,/abs/b.jpg\n3,\n")
    frame, _ = read("table", path, images=tmp_path / "photos")
    assert frame["image"].tolist()[:2] == [str(tmp_path / "photos/a.jpg"), "/abs/b.jpg"] and pd.isna(frame["image"][2])
    source = open_dataset("table", [path])
    with pytest.raises(ValueError, match=r"missing image file: .*a.jpg"):
        source.load_image(str(tmp_path / "a.jpg"))


def test_named_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,museum,seq\n1,M1,ACGT\n")
    frame, _ = read("table", path, columns={"key": "museum", "barcode": "seq"})
    assert frame[["key", "barcode"]].values.tolist() == [["M1", "ACGT"]]


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("t.csv", "", {}, "t.csv, which is empty"),
        ("t.csv", "id,barcode\n", {}, "t.csv, which has no rows"),
        (
            "t.csv",
            "name,barcode\nx,ACGT\n",
            {},
            "column for id: none in .*got columns name, barcode; allowed names: id, key",
        ),
        ("t.csv", "id,colour\nx,red\n", {}, "column for image or barcode: .*got columns id, colour; allowed names"),
        ("t.csv", "id,barcode\nx,A\n", {"columns": {"barcode": "seq"}}, "got 'seq', allowed .*: id, barcode"),
        ("t.csv", "id,barcode\nx,A\n", {"columns": {"colour": "id"}}, "field of --columns: got 'colour', allowed: key"),
        ("t.csv", "id,barcode\nx,A\n", {"images": Path("/nowhere")}, "--images: got /nowhere, which is no folder"),
        ("t.parquet", "junk", {}, "t.parquet cannot be read"),
        ("t.docx", "junk", {}, "t.docx, allowed: files of type .parquet"),
    ],
)
def test_table_errors(tmp_path: Path, name: str, text: str, options: dict, message: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_all(open_dataset("table", [path], **options))
    assert "\n" not in str(caught.value)


def test_registry_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format: got 'tabel', allowed: table, bold, bioscan1m"):
        open_dataset("tabel", [tmp_path])
    with pytest.raises(ValueError, match="option of format barcodebert: got 'images', allowed: none"):
        open_dataset("barcodebert", [tmp_path], images=tmp_path)
    with pytest.raises(ValueError, match="nope, which does not exist"):
        open_dataset("table", [tmp_path / "nope"])
    with pytest.raises(ValueError, match="paths of format table: got none"):
        open_dataset("table", [])
    with pytest.raises(ValueError, match=r"paths of format simulated: got .*, allowed: none"):
        open_dataset("simulated", [tmp_path])
    with pytest.raises(ValueError, match=r"got folder .* without such files"):
        open_dataset("bold", [tmp_path])
    assert all(importlib.util.find_spec(entry.module) for entry in FORMATS.values())


BOLD_HEADER = ["processid", "bin_uri", "order_name", "family_name", "genus_name", "species_name", "notes", "country"]
BOLD_HEADER += ["markercode", "nucleotides", "\rimage_ids"]


def bold_line(key: str, marker: str = "COI-5P", barcode: str = BARCODE, notes: str = " ", country: str = " ") -> str:
    return "\t".join([key, " ", "Diptera", "Muscidae", "Musca", " ", notes, country, marker, barcode, "\r1234"])


def test_bold_download_as_users_have_it(tmp_path: Path) -> None:
    lines = [
        "\t".join(BOLD_HEADER),
        bold_line("A1", notes='a "quote that nobody closes', country="Perú"),
        bold_line("A2", marker="COI-3P"),
        bold_line("A2", barcode="ACGT"),
        bold_line("A2", barcode="--" + BARCODE),
        bold_line("A2", barcode="A" * 10 + "-" * 40),
        bold_line("A3", marker=" ", barcode=" "),
        bold_line(" "),
        "short\tline",
        bold_line("A4", barcode=" "),
    ]
    data = "\n".join(lines).encode() + b"\n" + bold_line("A5", country="Per?").encode().replace(b"Per?", b"Per\xfa")
    frame, skipped = read("bold", write(tmp_path / "x.tsv", data))
    assert frame["key"].tolist() == ["A1", "A2", "A4", "A5"]
    assert frame["barcode"].tolist()[:2] == [BARCODE, "--" + BARCODE] and pd.isna(frame["barcode"][2])
    assert frame["country"].tolist()[0] == frame["country"].tolist()[3] == "Perú"
    assert frame["species"].isna().all() and (frame["genus"] == "Musca").all() and frame["image"].isna().all()
    assert sorted(skipped) == [
        ("A2", "another COI-5P record of the same processid"),
        ("A2", "another COI-5P record of the same processid"),
        ("A2", "record of another marker: COI-3P"),
        ("A3", "record of another marker: none given"),
        ("x.tsv row 'short\\tline'", "wrong number of columns: 2, the header has 11"),
        ("x.tsv row 7", "no key"),
    ]


def test_bold_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "processid\tnucleotides\nA\tACGT\n")
    with pytest.raises(ValueError, match=r"lacks columns markercode, order_name.*got processid, nucleotides; allowed"):
        read_all(open_dataset("bold", [path]))
    with pytest.raises(ValueError, match="has no records"):
        read_all(open_dataset("bold", [write(path, "\t".join(BOLD_HEADER) + "\n")]))


def test_real_tables(real_data: Path) -> None:
    bold, skipped = read("table", real_data / "bold" / "barcodes.parquet")
    assert len(bold) == 33_100 and bold["species"].nunique() == 876 and not skipped
    assert bold["split"].value_counts().to_dict() == {"train": 22_614, "test": 7_164, "val": 3_322}
    moths, skipped = read("table", real_data / "moths" / "specimens.parquet")
    assert len(moths) == 1_638 and moths["species"].isna().sum() == 63 and moths["barcode"].isna().sum() == 150
    assert all(Path(image).is_file() for image in moths["image"])


def test_real_bold_downloads(real_data: Path) -> None:
    frame, skipped = read("bold", real_data / "bold" / "tsv")
    assert len(frame) == 274 and frame["species"].nunique() == 8 and frame["order"].nunique() == 4
    assert {reason for _, reason in skipped} == {
        "record of another marker: COI-3P",
        "record of another marker: none given",
    }
    assert len(skipped) == 11
