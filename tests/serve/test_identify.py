"""Files in, names out: references as files or a library, the same answers as in bulk, every kind of result."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from serve import identify
from serve.bulk import again, job
from serve.bulk.review import reasons_of
from serve.bulk.writers import WRITERS
from tests.serve.conftest import Served

pytestmark = pytest.mark.middle  # they ask git for the version


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(identify.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "libraries"


@pytest.fixture(scope="module")
def files(simulated_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table of known specimens, and a FASTA of some of them under other ids, the first twice."""
    folder = tmp_path_factory.mktemp("files")
    from serve.bulk.sources import open_source

    known = pa.concat_tables(open_source([str(simulated_shards)]).batches()).drop_columns(["image"]).to_pylist()
    known = [row for row in known if row["barcode"]]
    for row in known:
        row["country"] = "Canada" if len(row["species"] or "") % 2 else "Peru"
    table = folder / "known.csv"
    columns = ("key", "order", "family", "genus", "species", "barcode", "country")
    lines = [",".join(columns), *(",".join(row[name] or "" for name in columns) for row in known)]
    table.write_text("\n".join(lines) + "\n")
    fasta = folder / "unnamed.fasta"
    asked = [known[0], *known[:6], {"barcode": "!"}]
    fasta.write_text("".join(f">q{number}\n{row['barcode']}\n" for number, row in enumerate(asked)))
    return table, fasta


def rows_of(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".csv":
        return pa_csv.read_csv(path, convert_options=pa_csv.ConvertOptions(strings_can_be_null=True)).to_pylist()
    if path.suffix == ".json":
        return json.loads(path.read_text())
    names, *rows = openpyxl.load_workbook(path).active.iter_rows(values_only=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_references_become_a_library_once_and_answer_as_in_bulk(
    files: tuple[Path, Path], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, fasta = files
    results = {}
    for ending in WRITERS:
        out = tmp_path / f"names-{ending[1:]}{ending}"
        assert identify.main([str(fasta), "--reference", str(table), "--out", str(out)]) == 0
        results[ending] = rows_of(out)
        with out.with_suffix(".review.csv").open() as file:
            reviewed = [row["key"] for row in csv.DictReader(file)]
        assert sorted(reviewed) == sorted(str(row["key"]) for row in results[ending] if reasons_of(row))
    (made,) = cache.iterdir()
    assert made.name.startswith("known-")
    plain = tmp_path / "bulk.parquet"
    assert job.main([str(fasta), "--library", str(made), "--out", str(plain), "--serial"]) == 0
    expected = rows_of(plain)
    assert results[".parquet"] == results[".json"] == expected
    assert [row["key"] for row in expected] == [f"q{number}" for number in range(8)]
    for ending in (".csv", ".xlsx"):
        for row, same in zip(results[ending], expected, strict=True):
            assert (row["key"], row["name"]) == (same["key"], same["name"])
            assert row["probability"] == pytest.approx(same["probability"])
    capsys.readouterr()
    assert identify.main([str(fasta), "--reference", str(made)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == [name for name in identify.SHOWN if any(row[name] for row in expected)]
    assert len(shown) == 9 and shown[1].startswith("q0 ") and len(list(cache.iterdir())) == 1


def test_a_region_leaves_the_species_of_its_references(
    files: tuple[Path, Path], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, fasta = files
    known = pa_csv.read_csv(table).to_pylist()
    country = next(row["country"] for row in known if row["country"])
    there = {row["species"] for row in known if row["country"] == country and row["species"]}
    out = tmp_path / "there.parquet"
    words = [str(fasta), "--reference", str(table), "--region"]
    assert identify.main([*words, country.upper(), "--out", str(out)]) == 0
    assert {row["species"] for row in rows_of(out) if row["species"]} <= there
    (made,) = cache.iterdir()
    assert identify.species_of(made, [country]) == sorted(there)
    assert json.loads(out.with_name("there.parquet.json").read_text())["settings"]["only"] == sorted(there)
    assert identify.main([*words, "Atlantis"]) == 2
    assert "'Atlantis', allowed: a country of the references: " in capsys.readouterr().err


def test_a_region_may_be_a_checklist_strict_or_soft(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, fasta = files
    species = next(row["species"] for row in pa_csv.read_csv(table).to_pylist() if row["species"])
    listed = tmp_path / "list.txt"
    listed.write_text(f"{species} (Linnaeus, 1758)\nNowhere known\n")
    words = [str(fasta), "--reference", str(table), "--region", str(listed)]
    strict, soft = tmp_path / "strict.parquet", tmp_path / "soft.parquet"
    assert identify.main([*words, "--out", str(strict)]) == 0
    assert {row["species"] for row in rows_of(strict)} <= {species, None}
    assert identify.main([*words, "--soft", "0.1", "--out", str(soft)]) == 0
    settings = json.loads(soft.with_name("soft.parquet.json").read_text())["settings"]
    assert (settings["checklist"], settings["weight"], settings["only"]) == ([species], 0.1, [])
    rows = [row for row in rows_of(soft) if not row["error"]]
    assert {row["on_checklist"] for row in rows} == {True, False}
    assert all((row["species"] == species) == row["on_checklist"] for row in rows)
    listed.write_text("Nowhere known\n")
    assert identify.main([*words, "--out", str(tmp_path / "no.csv")]) == 2
    assert "no name of the references" in capsys.readouterr().err
    assert identify.main([str(fasta), "--reference", str(table), "--soft", "0.1"]) == 2


def test_contaminants_are_flagged_and_named_at_the_end(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, fasta = files
    lines = fasta.read_text().splitlines()
    foreign = "".join("ACGT"[(number * number // 7 + number // 3) % 4] for number in range(600))
    odd, asked = tmp_path / "odd.fasta", tmp_path / "asked.fasta"
    odd.write_text(f">h1 Homo sapiens\n{foreign}\n>copy Musca domestica\n{lines[1][:-40]}\n")
    asked.write_text(f"{fasta.read_text()}>stranger\n{foreign[5:]}\n")
    words = [str(asked), "--reference", str(table), "--contaminants", str(odd)]
    out = tmp_path / "out.csv"
    assert identify.main([*words, "--out", str(out)]) == 0
    assert "contaminants: 3 records (Musca domestica 2, Homo sapiens 1), see" in capsys.readouterr().out
    found = {row["key"]: row for row in rows_of(out)}
    assert (found["stranger"]["contaminant"], found["stranger"]["contaminant_identity"]) == ("Homo sapiens", 1.0)
    assert json.loads(out.with_name("out.csv.json").read_text())["contaminants"]["Homo sapiens"] == 1
    assert identify.main([*words]) == 0
    assert "contaminants: 3 records" in capsys.readouterr().out
    assert identify.main([*words[:-1], str(tmp_path / "no.fasta")]) == 2


@pytest.mark.parametrize("ending", again.KINDS)
def test_a_result_judged_again_is_that_of_asking_again(files: tuple[Path, Path], tmp_path: Path, ending: str) -> None:
    table, fasta = files
    results = []
    for threshold in ("0.2", "0.999"):
        results.append(tmp_path / f"at-{threshold}{ending}")
        words = ["--reference", str(table), "--threshold", threshold, "--out", str(results[-1])]
        assert identify.main([str(fasta), *words]) == 0
    judged = tmp_path / "judged.parquet"
    assert again.main([str(results[0]), "--threshold", "0.999", "--out", str(judged)]) == 0
    asked, found = (rows_of(path) for path in (results[1], judged))
    assert [row["rank"] for row in asked] != [row["rank"] for row in rows_of(results[0])]
    for row, same in zip(found, asked, strict=True):
        shown = {name: value for name, value in same.items() if isinstance(value, str) or value is None}
        assert {name: row[name] or None for name in shown} == shown


def test_other_content_is_another_library(files: tuple[Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "known.csv"
    copy.write_text(files[0].read_text())
    assert identify.checksum([str(copy)]) == identify.checksum([str(files[0])])
    copy.write_text(files[0].read_text() + "\n")
    assert identify.checksum([str(copy)]) != identify.checksum([str(files[0])])


def test_with_a_model_the_same_as_in_bulk(served: Served, tmp_path: Path) -> None:
    fasta = tmp_path / "q.fasta"
    fasta.write_text("".join(f">{one.key}\n{one.dna}\n" for one in served.specimens()[:8] if one.dna))
    library, model = str(served.library), str(served.checkpoint)
    one, other = (str(tmp_path / name) for name in ("identify.parquet", "bulk.parquet"))
    assert identify.main([str(fasta), "--reference", library, "--model", model, "--out", one]) == 0
    assert job.main([str(fasta), "--library", library, "--checkpoint", model, "--out", other]) == 0
    assert rows_of(Path(one)) == rows_of(Path(other))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["{fasta}"], "neither --reference nor --model"),
        (["{photos}", "--reference", "{fasta}"], "and no --model"),
        (["{fasta}", "--reference", "/nowhere"], "--reference: got /nowhere"),
        (["{fasta}", "--reference", "{table}", "--out", "x.docx"], "a file ending in .csv, .parquet, .xlsx, .json"),
        (["{fasta}", "--reference", "{fasta}"], "of which none has a name"),
    ],
)
def test_mistakes_take_one_line(
    words: list[str],
    part: str,
    files: tuple[Path, Path],
    cache: Path,
    tmp_path: Path,
    make_jpeg: Callable[..., bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(make_jpeg())
    places = {"table": files[0], "fasta": files[1], "photos": photos}
    assert identify.main([word.format(**places) for word in words]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and part in last
    assert not cache.exists() or not [one for one in cache.iterdir() if one.name.startswith("unnamed")]


def test_text_in_excel_is_no_formula(tmp_path: Path) -> None:
    columns = pa.schema([("name", pa.string()), ("value", pa.float64())])
    path = tmp_path / "a.xlsx"
    with path.open("wb") as sink, WRITERS[".xlsx"](sink, columns) as writer:
        writer.write_table(pa.table({"name": ["=1+1", "a\x07b", None], "value": [0.5, None, 1.0]}, columns))
    cells = list(openpyxl.load_workbook(path).active.iter_rows(min_row=2))
    assert [(row[0].value, row[0].data_type, row[1].value) for row in cells] == [
        ("=1+1", "s", 0.5),
        ("ab", "s", None),
        (None, "n", 1.0),
    ]
