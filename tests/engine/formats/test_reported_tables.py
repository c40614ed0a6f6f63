"""Tables and folders of photos that people reported, made small: the specimens and names that must come of each."""

import csv
import io
import json
import os
import re
import time
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.formats.registry import open_dataset
from engine.formats.source import read_all
from engine.formats.understood import describe_names
from tests.engine.formats import fixtures
from tests.engine.formats.test_reported_cases import DNA, FLY, PACKINGS, taken, write


def ranked(tmp_path: Path, *rows: str, header: str = "id,barcode,order,family,genus,species") -> list:
    text = "\n".join([header, *(f"k{n},{DNA},{row}" for n, row in enumerate(rows))])
    return list(taken(write(tmp_path / "t.csv", text))[0].values())


def test_epithets_spaces_authors_and_placeholders_in_tables(tmp_path: Path) -> None:
    names = ranked(tmp_path, *(f"Diptera,Xidae,{genus},communis" for genus in ("Aus", "Bus", "Cus")))
    assert [name[3] for name in names] == ["Aus communis", "Bus communis", "Cus communis"]
    spaces = ("\u00a0", "\u2009", " \u200b", "\u3000", "  ", "_")
    assert set(ranked(tmp_path, *(f"Diptera,Muscidae,Musca,Musca{space}domestica" for space in spaces))) == {FLY}
    authors = ("Smith", "L.", "Smith & Jones", "de Geer", "(Linnaeus)", "Smith et al.", "1758")
    assert set(ranked(tmp_path, *(f"Diptera,Muscidae,Musca,Musca domestica {author}" for author in authors))) == {FLY}
    assert set(ranked(tmp_path, '"Diptera","Muscidae L., 1758","Musca","Musca domestica (Linnaeus, 1758)"')) == {FLY}
    assert ranked(tmp_path, "DIPTERA,MUSCIDAE,MUSCA,MUSCA DOMESTICA") == [FLY]
    for word in (
        "Unknown",
        "unidentified",
        "indet.",
        "incertae sedis",
        "unassigned",
        "?",
        "0",
        "n.d.",
        "not identified",
    ):
        assert ranked(tmp_path, f"Diptera,{word},{word},{word}") == [("Diptera", None, None, None)]


@pytest.mark.parametrize(
    "column", ["scientificName", "taxon", "identification", "Art", "scientific_name", "Taxon_name"]
)
def test_columns_of_names_of_any_rank(tmp_path: Path, column: str) -> None:
    rows = ["Musca domestica Linnaeus", "Muscidae", "Diptera", "Insecta", "Musca"]
    found = ranked(tmp_path, *rows, header=f"id,barcode,{column}")
    assert found == [
        (None, None, *FLY[2:]),
        (None, FLY[1], None, None),
        (FLY[0], None, None, None),
        (None,) * 4,
        (None, None, "Musca", None),
    ]


@pytest.mark.parametrize("end", ["tsv", "csv"])
def test_stray_quotes_cost_no_other_row(tmp_path: Path, end: str) -> None:
    between = "\t" if end == "tsv" else ","
    places = ["fine", '"Old mill', "x", "y", 'trap 6"', "z"]
    rows = [between.join([f"S{n}", place, DNA + "A" * n]) for n, place in enumerate(places)]
    path = write(tmp_path / f"t.{end}", "\n".join([between.join(["id", "locality", "barcode"]), *rows]) + "\n")
    source = open_dataset("auto", [path])
    barcodes = dict(read_all(source).select(["key", "barcode"]).to_pandas().values)
    assert barcodes == {f"S{n}": DNA + "A" * n for n in range(6) if n != 1}
    assert [reason for _, reason in source.skipped] == ["unclosed quote"]


def test_quotes_that_nobody_closes_are_letters_and_cost_no_time(tmp_path: Path) -> None:
    rows = [f'S{n}\t"a note that was cut at a fix\t{DNA}' for n in range(20_000)]
    path = write(tmp_path / "t.tsv", "\n".join(["id\tnote\tbarcode", *rows]))
    started = time.process_time()
    assert len(taken(path)[0]) == 20_000
    assert time.process_time() - started < 20


ODDITIES = {
    "commas": "id;barcode;species;locality (city, region, land);notes, other, more, and, so, on\nS0;D;N;x;y\nS1;D;N;x;y\n",  # noqa: E501
    "sep": "sep=;\nid;barcode;species\nS0;D;N\nS1;D;N\n",
    "blank": "\n\nid,barcode,species\nS0,D,N\nS1,D,N\n",
    "comment": "# export of 2024\nid,barcode,species\nS0,D,N\nS1,D,N\n",
    "trailing": "id,barcode,species\nS0,D,N,\nS1,D,N,\n",
    "rownames": 'id,barcode,species\n"1",S0,D,N\n"2",S1,D,N\n',
    "pipes": "id|barcode|species\nS0|D|N\nS1|D|N\n",
    "cut": "id,barcode,species,country,lat\nS0,D,N\nS1,D,N,Peru\n",
}


@pytest.mark.parametrize("case", ODDITIES)
@pytest.mark.parametrize("end", ["csv", "tsv", "txt"])
def test_odd_headers_and_rows(tmp_path: Path, case: str, end: str) -> None:
    text = ODDITIES[case].replace("D", DNA).replace("N", "Musca domestica")
    found, skipped = taken(write(tmp_path / f"t.{end}", text))
    assert found == dict.fromkeys(("S0", "S1"), (None, None, *FLY[2:])) and not skipped


def test_a_column_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "t.csv", f"id,species,barcode,species\nS0,Musca domestica,{DNA},Aus bus\n")
    assert taken(path)[0] == {"S0": (None, None, *FLY[2:])}
    assert "2 columns are named 'species'; the first is taken" in caplog.text
    table = pa.table([["S0"], [DNA], ["Musca domestica"], ["Aus bus"]], names=["id", "barcode", "species", "species"])
    pq.write_table(table, tmp_path / "t.parquet")
    assert taken(tmp_path / "t.parquet")[0] == {"S0": (None, None, *FLY[2:])}


def test_coordinates_and_namibia(tmp_path: Path) -> None:
    cells = [
        "48,1833;16,05",
        "48.1833;16.05",
        "48°11'N;16°3'E",
        "48.1833 N;16.05 E",
        "48 11 0 N;16 3 0 E",
        "-91;181",
        "x;y",
    ]
    rows = [f"P{n};{DNA};{cell};{'NA' if n else 'DE'}" for n, cell in enumerate(cells)]
    source = open_dataset(
        "table", [write(tmp_path / "t.csv", "\n".join(["id;barcode;latitude;longitude;country", *rows]))]
    )
    table = read_all(source).to_pandas()
    assert np.allclose(table["latitude"][:5], 48.1833, atol=1e-3) and np.allclose(
        table["longitude"][:5], 16.05, atol=1e-3
    )
    assert table["latitude"][5:].isna().all() and source.names.notes["latitude that cannot be read"] == 2  # type: ignore[attr-defined]
    assert list(table["country"]) == ["DE", *["NA"] * 6]


def test_several_photos_windows_paths_addresses_and_spellings(tmp_path: Path) -> None:
    names = ["photos/a.jpg", "photos/B.JPG", f"photos/{unicodedata.normalize('NFD', 'Käfer')}.jpg"]
    for number, name in enumerate(names):
        write(tmp_path / name, fixtures.photo(number))
    rows = ["S0,photos/a.jpg", "S0,photos/b.jpg", "S1,photos/a.jpg|photos/b.jpg", r"S2,photos\a.jpg"]
    rows += [r"S3,C:\Users\me\photos\a.jpg", "S4,https://example.org/1.jpg", "S5,photos/Käfer.jpg"]
    source = open_dataset("table", [write(tmp_path / "t.csv", "\n".join(["id,image", *rows]))])
    table = read_all(source)
    photos: dict[str, bytes | str] = {}
    for key, image in zip(table["key"].to_pylist(), table["image"].to_pylist(), strict=True):
        try:
            photos[key] = source.load_image(image)
        except ValueError as error:
            photos[key] = str(error)
    a, b, c = (fixtures.photo(number) for number in range(3))
    web = "web address, which is not fetched: https://example.org/1.jpg"
    assert photos == {"S0": a, "S0#2": b, "S1": a, "S1#2": b, "S2": a, "S3": a, "S4": web, "S5": c}


def test_folders_of_photos(tmp_path: Path) -> None:
    places = {
        "Meadow/Night2/Biston_betularia/1.jpg": "Biston betularia",
        "Forest/2024-06-01/Biston_betularia/1.jpg": "Biston betularia",
        **{f"Pieris_napi/{name}/1.jpg": "Pieris napi" for name in ("dorsal", "Female", "100MEDIA", "batch_1")},
        "AUS_BUS/1.jpg": "Aus bus",
        "Chrysomelidae_Aus_bus/1.jfif": "Aus bus",
        "Aus bus/2.gif": "Aus bus",
        "Unsorted/1.jpe": None,
        "Noctuinae/1.jpg_large": None,
        "Odonata/no_ending": None,
        "Diptera sp/1.jpg": None,
    }
    for place in places:
        write(tmp_path / place, fixtures.photo(1))
    found, skipped = taken(tmp_path)
    assert {key: names[3] for key, names in found.items()} == places and not skipped
    assert {key: names[:3] for key, names in found.items() if names[3] is None} == {
        "Unsorted/1.jpe": (None, None, None),
        "Noctuinae/1.jpg_large": (None, None, None),
        "Odonata/no_ending": ("Odonata", None, None),
        "Diptera sp/1.jpg": ("Diptera", None, None),
    }


def test_cards_links_clouds_and_what_lies_beside_photos(tmp_path: Path) -> None:
    for card in ("north", "south"):
        write(tmp_path / card / "DCIM" / "Vespa_crabro" / "IMG_1.jpg", fixtures.photo(1))
    source = open_dataset("images", [tmp_path / "north/DCIM", tmp_path / "south/DCIM"])
    keys = read_all(source)["key"].to_pylist()
    assert keys == ["north/DCIM/Vespa_crabro/IMG_1.jpg", "south/DCIM/Vespa_crabro/IMG_1.jpg"]
    folder = tmp_path / "north" / "DCIM" / "Vespa_crabro"
    (folder / "up").symlink_to("..")
    (folder / "self").symlink_to("self")
    for name in ("Thumbs.db", ".IMG_2.JPG.icloud", "._IMG_1.jpg", ".DS_Store", "raw.nef"):
        write(folder / name, b"II*\0" if name == "raw.nef" else b"x")
    raw_name = os.fsdecode("Käfer.jpg".encode("latin-1"))
    (folder / raw_name).write_bytes(fixtures.photo(2))
    source = open_dataset("auto", [tmp_path / "north"])
    table = read_all(source)
    assert table["key"].to_pylist() == ["DCIM/Vespa_crabro/IMG_1.jpg", "DCIM/Vespa_crabro/Käfer.jpg"]
    assert set(table["species"].to_pylist()) == {"Vespa crabro"}
    assert source.load_image(table["image"][1].as_py()) == fixtures.photo(2)
    reasons = {key.split("/")[-1]: reason.partition(":")[0] for key, reason in source.skipped}
    assert reasons == {
        "up": "link to a folder that is read anyway",
        "self": "link that leads nowhere",
        "IMG_2.JPG": "photo left in the cloud",
        "Thumbs.db": "no photo",
        "raw.nef": "raw photo, which is not read",
    }


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("Carabus_auratus", "lost+found"):
        write(tmp_path / place / "1.jpg", fixtures.photo(1))
    scandir = os.scandir

    def refuse(path: str | Path) -> object:
        if str(path).rstrip("/").endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found, skipped = taken(tmp_path, "images")
    assert list(found) == ["Carabus_auratus/1.jpg"]
    assert skipped == [("lost+found", "folder that cannot be read: Permission denied")]


BOLD = "processid\tsampleid\torder_name\tfamily_name\tgenus_name\tspecies_name\tmarkercode\tnucleotides"


@pytest.mark.parametrize("quote", ['"', ""])
@pytest.mark.parametrize("between", ["\t", ",", ";"])
def test_bold_saved_by_r_or_excel(tmp_path: Path, quote: str, between: str) -> None:
    cells = [["P1", "S1", *FLY, "COI-5P", DNA], ["P2", "S2", *FLY, "16S", DNA], ["P3", "S3", *FLY, "ITS2", DNA]]
    lines = [between.join(f"{quote}{cell}{quote}" for cell in row) for row in (BOLD.split("\t"), *cells)]
    found, skipped = taken(write(tmp_path / "r.csv", "\n".join(lines)))
    assert found == {"P1": FLY}
    assert [reason for _, reason in skipped] == ["record of another marker: 16S", "record of another marker: ITS2"]


def test_photos_beside_a_bold_download(tmp_path: Path) -> None:
    rows = ["\t".join([f"P{n}", f"S{n}", *FLY, "COI-5P", DNA]) for n in (1, 2, 3)]
    write(tmp_path / "bold.tsv", "\n".join([BOLD, *rows]))
    for number, name in enumerate(("P1.jpg", "s2+dorsal.JPG", "stranger.jpg")):
        write(tmp_path / "photos" / name, fixtures.photo(number))
    source = open_dataset("auto", [tmp_path])
    images = dict(zip(*read_all(source).select(["key", "image"]).to_pydict().values(), strict=True))
    assert {key: image and Path(image).name for key, image in images.items()} == {
        "P1": "P1.jpg",
        "P2": "s2+dorsal.JPG",
        "P3": None,
    }
    assert source.load_image(images["P1"]) == fixtures.photo(0)
    assert [key for key, _ in source.skipped] == ["photos/stranger.jpg"]


def test_darwin_core_archive(tmp_path: Path) -> None:
    core = "gbifID\torder\tscientificName\n1\tDiptera\tMusca domestica Linnaeus, 1758\n2\tDiptera\tMuscidae\n"
    media = "gbifID\ttype\tidentifier\n1\tStillImage\tp/1.jpg\n1\tStillImage\tp/2.jpg\n"
    for name, text in (("meta.xml", "<archive/>"), ("occurrence.txt", core), ("multimedia.txt", media)):
        write(tmp_path / "dwca" / name, text)
    with zipfile.ZipFile(tmp_path / "dwca.zip", "w") as archive:
        for file in (tmp_path / "dwca").iterdir():
            archive.write(file, file.name)
    for path in (tmp_path / "dwca", tmp_path / "dwca.zip"):
        found, _ = taken(path)
        assert found["1"] == found["1#2"] == ("Diptera", None, *FLY[2:]) and found["2"] == (
            "Diptera",
            "Muscidae",
            None,
            None,
        )
    with pytest.raises(ValueError, match=r"occurrence.txt lacks barcodes or image files"):
        taken(tmp_path / "dwca" / "occurrence.txt")


def test_excel(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="no openpyxl")
    book = openpyxl.Workbook()
    for row in (["id", "barcode", "species"], [12, DNA, "Musca domestica"], [13.0, DNA, None]):
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    assert taken(tmp_path / "t.xlsx")[0] == {"12": (None, None, *FLY[2:]), "13": (None,) * 4}


@pytest.mark.parametrize(
    "columns", ["processid nucleotides genus_name species_name", "processid dna_barcode split chunk order"]
)
def test_parquet_of_published_sets(tmp_path: Path, columns: str) -> None:
    names = columns.split()
    values = {"split": "train", "genus_name": "Musca", "species_name": "Musca domestica", "order": "Diptera"}
    row = {name: [values.get(name, DNA)] for name in names}
    pq.write_table(pa.table(row), tmp_path / "x.parquet")
    assert len(taken(tmp_path / "x.parquet")[0]) == 1


def test_what_was_understood(tmp_path: Path) -> None:
    rows = ["k0,D,Musca domestica,Diptera", "k1,D,???,Diptera", "k2,D,monsters,Diptera", "k3,D,,"]
    source = open_dataset(
        "auto", [write(tmp_path / "t.csv", "\n".join(["id,barcode,Art,order", *rows]).replace("D,", DNA + ","))]
    )
    read_all(source)
    names = source.names.to_json()  # type: ignore[attr-defined]
    assert names["records"] == 4 and names["named"] == {"order": 3, "family": 0, "genus": 1, "species": 1}
    assert names["from"]["species"] == ["column Art"] and names["from"]["order"] == ["column order"]
    assert set(names["not_understood"]["examples"]) == {"???", "monsters"}
    lines = "\n".join(describe_names(names))
    assert "species:         named in 1 of 4, from column Art" in lines and json.dumps(names)


@pytest.mark.parametrize("mode", ["RGBX", "LAB"])
def test_bands_and_lab_of_tiffs(mode: str) -> None:
    from PIL import ImageCms

    from engine.signals.images import decode

    rng = np.random.default_rng(0)
    picture = np.repeat(np.repeat(rng.integers(60, 250, (6, 8, 3), dtype=np.uint8), 8, axis=0), 8, axis=1)
    photo: Any = Image.fromarray(picture)
    if mode == "LAB":
        convert = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        photo = ImageCms.applyTransform(photo, convert)
    else:
        photo = Image.fromarray(np.dstack([picture, rng.integers(0, 255, picture.shape[:2], dtype=np.uint8)]), "RGBX")
    data = io.BytesIO()
    photo.save(data, "TIFF")
    assert np.abs(decode(data.getvalue()).astype(int) - picture).mean() < 2.5


WORDS = st.sampled_from(["plain", "a, b", "x; y", 'say "no"', "two\nlines", "Perú", "", "tab\there", "#1", "it's"])
SPECIES = st.sampled_from(["Musca domestica", "Apis mellifera", "Aëdes vexans", "Polygonia c-album", ""])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.text("ACGT", min_size=4, max_size=40), SPECIES, WORDS), min_size=2, max_size=12),
    between=st.sampled_from(["\t", ",", ";", "|"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    newline=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    packing=st.sampled_from([None, "gz", "bz2", "xz"]),
    end=st.sampled_from(["csv", "tsv", "txt"]),
)
def test_a_table_is_read_back_however_it_is_written(
    rows: list[tuple[str, str, str]],
    between: str,
    quoting: int,
    newline: str,
    encoding: str,
    packing: str | None,
    end: str,
    tmp_path: Path,
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=between, quoting=quoting, lineterminator=newline)
    writer.writerow(["id", "barcode", "species", "note", "locality"])
    for number, row in enumerate(rows):
        writer.writerow([f"k{number}", *row, "end"])
    data = text.getvalue().encode(encoding)
    path = write(tmp_path / f"t.{end}{'.' + packing if packing else ''}", PACKINGS[packing](data) if packing else data)
    source = open_dataset("auto", [path])
    table = read_all(source)
    got = list(zip(*(table[name].to_pylist() for name in ("key", "barcode", "species")), strict=True))
    assert got == [(f"k{number}", row[0], row[1] or None) for number, row in enumerate(rows)]
    assert not source.skipped
    path.unlink()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.tuples(st.sampled_from(['a"b', '"open', 'close"', "x", "", '"a" b', '"ok"']), st.integers(1, 5)), min_size=3
    )
)
def test_no_row_goes_unnamed(lines: list[tuple[str, int]], tmp_path: Path) -> None:
    cells = [cell for cell, _ in lines]
    assume('"open' not in cells or 'close"' not in cells)  # by CSV's rules one cell of several lines
    rows = [",".join([f"k{number}", DNA, *[cell] * (width - 2)]) for number, (cell, width) in enumerate(lines)]
    source = open_dataset("table", [write(tmp_path / "t.csv", "\n".join(["id,barcode,note,more", *rows, ""]))])
    text = " ".join([*read_all(source)["key"].to_pylist(), *(place for place, _ in source.skipped)])
    assert all(re.search(rf"\bk{number}\b", text) for number in range(len(lines)) if lines[number][0] != '"open')
    assert read_all(source).num_rows + len(source.skipped) <= len(lines)
