"""Records that are left out stand in a result where they stood in the input."""

from pathlib import Path

import pytest

from serve.bulk import plan
from serve.bulk.sources import open_source

GOOD = "ACGTTGCA" * 20


def keys_of(paths: list[Path], folder: Path) -> list[str]:
    folder.mkdir()
    made = plan.write_plan(open_source([str(path) for path in paths]), folder, {})
    return [row["key"] for rows in made.rows() for row in rows.to_pylist()]


@pytest.mark.parametrize("step", [1 << 14, 3])
def test_a_fasta_keeps_the_place_of_other_markers(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_ROWS", step)
    expected, paths = [], []
    for name in ("one", "two"):
        markers = ["16S" if number % 4 in (0, 3) else "COI-5P" for number in range(11)]
        names = [f"{name}{number}" for number in range(11)]
        paths.append(tmp_path / f"{name}.fasta")
        lines = [f">{key}|Musca domestica|{marker}\n{GOOD}\n" for key, marker in zip(names, markers, strict=True)]
        paths[-1].write_text("".join(lines))
        expected += names
    assert keys_of(paths, tmp_path / "state") == expected


@pytest.mark.parametrize("step", [1 << 14, 2])
def test_a_table_keeps_the_place_of_rows_that_cannot_be_read(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_ROWS", step)
    rows = [f"wide,{GOOD},x,y", f"a,{GOOD},COI", f",{GOOD},COI", f"b,{GOOD},16S", f"c,{GOOD},COI", f"wide2,{GOOD},x,y"]
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["id,barcode,marker", *rows, f"d,{GOOD},COI", ""]))
    keys = keys_of([path], tmp_path / "state")
    assert [key.split("'")[1].split(",")[0] if "'" in key else key for key in keys] == [
        *("wide", "a", "x.csv row 2", "b", "c", "wide2", "d")
    ]


def test_bold_keeps_the_place_of_other_records(tmp_path: Path) -> None:
    path = tmp_path / "bold.tsv"
    rows = [("a", "COI-5P", 100), ("b", "28S", 100), ("c", "COI-5P", 90), ("d", "COI-5P", 100), ("c", "COI-5P", 100)]
    lines = [
        f"{key}\tB{key}\tDiptera\tMuscidae\tMusca\tMusca domestica\t{marker}\t{GOOD[:length]}"
        for key, marker, length in rows
    ]
    ranks = "order_name\tfamily_name\tgenus_name\tspecies_name"
    head = f"processid\tsampleid\t{ranks}\tmarkercode\tnucleotides"
    path.write_text("\n".join([head, *lines, ""]))
    assert keys_of([path], tmp_path / "state") == ["a", "b", "c", "d", "c"]


def test_a_table_that_is_parsed_in_blocks_keeps_the_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.formats import delimited

    monkeypatch.setattr(delimited, "_BLOCK_SIZE", 2000)
    path = tmp_path / "x.csv"
    names = [f"k{number}" for number in range(100)]
    lines = [f"{name},{GOOD}{',x' if number % 7 == 3 else ''}" for number, name in enumerate(names)]
    path.write_text("\n".join(["id,barcode", *lines, ""]))
    keys = keys_of([path], tmp_path / "state")
    assert [key.split("'")[1].split(",")[0] if "'" in key else key for key in keys] == names
