"""The doubtful rows of a result, and the names that come back from whoever looked at them."""

import csv
import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from engine.specimens.taxonomy import RANKS
from serve import library as door
from serve.bulk.columns import schema
from serve.bulk.review import MOST, Review, read_review, reasons_of
from train.reference import Library

ROW = {"rank": "species", "stopped": "deepest", "name": "Musca domestica", "species_probability": 0.99}


def table_of(*rows: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist([ROW | row for row in rows], schema=schema())


def barcodes(count: int) -> list[str]:
    return ["".join(row) for row in np.random.default_rng(4).choice(list("ACGT"), (count, 300))]


def written(path: Path, rows: pa.Table) -> list[dict[str, str]]:
    review = Review()
    review.add(rows)
    review.write(path)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_doubtful_rows_come_likeliest_first(tmp_path: Path) -> None:
    rows = written(
        tmp_path / "r.csv",
        table_of(
            {"key": "sure"},
            {"key": "novel", "novel": True, "species_probability": 0.3},
            {"key": "genus", "rank": "genus", "stopped": "threshold", "species_probability": 0.9},
            {"key": "odd", "likely_numt": True, "barcode_primers": "LCO1490", "species_probability": None},
            {"key": "broken", "error": "a fault", "rank": None},
        ),
    )
    assert [row["key"] for row in rows] == ["genus", "novel", "odd"]
    assert [row["reasons"] for row in rows] == [
        "stops at genus: threshold",
        "may be an unknown species",
        "likely NUMT; primers left on",
    ]
    assert {row["corrected_name"] for row in rows} == {""} and reasons_of(ROW | {"error": "a fault"}) == []


def test_a_long_review_keeps_the_likeliest() -> None:
    review = Review()
    rows = [
        {"key": str(number), "novel": True, "species_probability": number / (MOST + 5)} for number in range(MOST + 5)
    ]
    review.add(table_of(*rows))
    assert review.left_out == 5 and len(review._rows) == MOST and review._rows[-1]["key"] == "5"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    known = [("Diptera", "Muscidae", "Musca", "Musca domestica"), ("Diptera", "Syrphidae", "Eristalis", None)]
    rows = [{"key": f"k{number}", **dict(zip(RANKS, names, strict=True))} for number, names in enumerate(known)]
    Library.build(pa.Table.from_pylist(rows), barcodes(4)[:2]).save(tmp_path / "library")
    return tmp_path / "library"


def test_corrected_names_go_back_with_who_and_when(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, sequences = tmp_path / "r.csv", barcodes(4)
    likeliest = {"order": "Diptera", "family": "Faniidae", "genus": "Fannia", "species": "Fannia manicata"}
    rows = [
        {"key": "new", "novel": True, "barcode": sequences[2]},
        {"key": "k1", "novel": True, "barcode": sequences[1]},
        {"key": "other", "novel": True, "barcode": sequences[3], **likeliest},
        {"key": "untouched", "novel": True, "barcode": sequences[3]},
    ]
    filled = written(path, table_of(*rows))
    given = {"new": "Musca autumnalis De Geer, 1776", "k1": "Eristalis tenax", "other": "Fannia canicularis"}
    for row in filled:
        row["corrected_name"] = given.get(row["key"], "")
        row |= {"corrected_by": "B. Botanist", "corrected_on": "2026-01-02"} if row["key"] == "k1" else {}
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # as a spreadsheet of some countries
        writer = csv.DictWriter(file, list(filled[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(filled)
    assert door.main(["add", str(folder), "--review", str(path), "--by", "A. Curator"]) == 0
    assert "version 2, 2 records added and 1 renamed as reviewed" in capsys.readouterr().out
    library = Library.load(folder)
    found = {row["key"]: row for row in library.records.to_pylist()}
    assert list(found) == ["k0", "k1", "new", "other"] and library.version == 2
    assert [found["new"][rank] for rank in RANKS] == ["Diptera", "Muscidae", "Musca", "Musca autumnalis"]
    assert [found["k1"][rank] for rank in RANKS] == ["Diptera", "Syrphidae", "Eristalis", "Eristalis tenax"]
    assert [found["other"][rank] for rank in RANKS] == ["Diptera", "Faniidae", "Fannia", "Fannia canicularis"]
    assert (found["k1"]["identified_by"], found["k1"]["identified_on"]) == ("B. Botanist", "2026-01-02")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    assert found["new"]["identified_by"] == "A. Curator" and found["new"]["identified_on"] <= today
    assert found["k0"]["identified_by"] is None
    assert library.search([sequences[2]]).distance.min() == 0


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a,b\n1,2\n", "without columns corrected_name"),
        ("corrected_name,key,barcode\n,a,ACGT\n", "no corrected_name is filled in"),
        ("corrected_name,key,barcode\n???,a,ACGT\n", "'???', allowed: the name of a taxon"),
        ("corrected_name,key,barcode\nMusca,a,\n", "without a barcode"),
        ("corrected_name,key,barcode\nMusca,a,ACGT\nMusca,a,ACGT\n", "a twice"),
    ],
)
def test_reviews_that_cannot_be_read(text: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(ValueError, match=part.replace("?", r"\?")):
        read_review(tmp_path / "r.csv", "me")


def test_somebody_answers_for_a_name(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.csv").write_text("corrected_name,key,barcode\nMusca,a,ACGT\n")
    assert door.main(["add", str(folder), "--review", str(tmp_path / "r.csv")]) == 2
    assert "or --by NAME" in capsys.readouterr().err
    assert door.main(["add", str(folder)]) == 2
    assert "both or none of PATH and --review" in capsys.readouterr().err
