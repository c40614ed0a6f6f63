"""The command line: what it prints, its exit codes, one line per user error."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.main import main

pytestmark = pytest.mark.middle

ROOT = Path(__file__).resolve().parents[2]
BOLD_HEADER = "processid\tnucleotides\tmarkercode\torder_name\tfamily_name\tgenus_name\tspecies_name"
HEADER = "id,image,barcode,order,family,genus,species,split\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [
        f"s{n},,{'ACGT' * (n + 1)},Diptera,Muscidae,Musca,{'Musca domestica' if n % 2 else ''},train" for n in range(8)
    ]
    rows += [
        "h1,,ACGT,Coleoptera,Carabidae,Musca,,test",
        "bad,,XXXX,Diptera,,,,test",
        "c1,,AC,Diptera,Fanniidae,Musca,,val",
    ]
    path = tmp_path / "specimens.csv"
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def test_ingest_inspect_verify(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "shards")
    assert main(["ingest", "table", str(table), "--out", out, "--serial", "--specimens-per-shard", "4"]) == 0
    told = capsys.readouterr().out
    assert "specimens written: 10" in told and "train 8, val 1, test 1" in told
    assert "barcode removed: 1 (letters that are no nucleotides: 1)" in told
    assert main(["inspect", out]) == 0
    told = capsys.readouterr().out
    for line in (
        "10 specimens in 3 shards",
        "taxa:            order 2, family 3, genus 2, species 1",
        "labels that disagree: 2",
        "genus Musca stands under several parents: Muscidae (8), Fanniidae (1); taken: Muscidae",
        "genus Musca is a name in several orders: Diptera (9), Coleoptera (1); kept as different taxa",
        "quantiles 0% 2",
    ):
        assert line in told
    train = next(line for line in told.splitlines() if line.startswith("train")).split()
    assert train == ["train", "8", "8", "0", "0", "100.0%", "100.0%", "100.0%", "50.0%"]
    assert main(["verify", out]) == 0
    (tmp_path / "shards" / "000001.tar").unlink()
    capsys.readouterr()
    assert main(["verify", out]) == 1
    assert capsys.readouterr().out.splitlines()[0] == "000001.tar is missing"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "required: ingest | inspect | verify"),
        (["ingest", "tabel", "x"], "invalid choice: 'tabel' (choose from"),
        (["ingest", "table", "{tmp}/none.csv", "--out", "{tmp}/o"], "none.csv, which does not exist; allowed"),
        (["ingest", "table", "{tmp}/specimens.csv", "--out", "{tmp}"], "which is not empty; allowed"),
        (
            ["ingest", "table", "{tmp}/specimens.csv", "--out", "{tmp}/o", "--columns", "x"],
            "--columns: got 'x', allowed",
        ),
        (["ingest", "table", "{tmp}/specimens.csv", "--out", "{tmp}/o", "--columns", "key=a"], "got 'a', allowed"),
        (["ingest", "table", "{tmp}/empty.csv", "--out", "{tmp}/o"], "which has no rows; allowed"),
        (["ingest", "table", "{tmp}/strange.csv", "--out", "{tmp}/o"], "got columns foo, bar; allowed names"),
        (["ingest", "table", "{tmp}/bad.csv", "--out", "{tmp}/o", "--serial"], "1 records of which none is usable"),
        (["ingest", "bold", "{tmp}/specimens.csv", "--out", "{tmp}/o"], "lacks columns processid"),
        (["ingest", "table", "{tmp}/specimens.csv", "--out", "{tmp}/o", "--split-fractions", "1"], "got '1', allowed"),
        (["ingest", "table", "{tmp}/specimens.csv", "--out", "{tmp}/o", "--split-fractions", "1,1,1"], "sum to 1"),
        (["ingest", "table", "{tmp}/specimens.csv", "--out", "{tmp}/o", "--group", "event"], "without splits to draw"),
        (
            ["ingest", "images", "{tmp}", "--out", "{tmp}/o", "--split-fractions", "0.8,0.1,0.1", "--group", "night"],
            "--group: got 'night' for the format images, allowed: event, or a table",
        ),
        (
            [
                *("ingest", "table", "{tmp}/specimens.csv", "--out", "{tmp}/o", "--split-fractions", "0.8,0.1,0.1"),
                *("--group", "night"),
            ],
            "column of field group: got 'night', allowed (columns",
        ),
        (["ingest", "simulated", "--out", "{tmp}/o", "--num-specimens", "x"], "--num-specimens: got 'x', allowed: N"),
        (
            ["ingest", "table", "{tmp}/specimens.csv", "--out", "/proc/none/o"],
            "--out: got /proc/none/o, which cannot be made",
        ),
        (["inspect", "{tmp}"], "it has no manifest.json"),
        (["verify", "{tmp}/none"], "none, but it does not exist"),
        (["ingest", "table", "{tmp}/short.csv", "--out", "{tmp}/o"], "none is usable: wrong number of columns (1)"),
        (["ingest", "table", "{tmp}/quote.csv", "--out", "{tmp}/o"], "none is usable: unclosed quote (1)"),
        (["ingest", "bold", "{tmp}/marker.tsv", "--out", "{tmp}/o"], "none is usable: record of another marker (1)"),
    ],
)
def test_user_errors_are_one_line(
    arguments: list[str], told: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.csv").write_text(HEADER)
    (tmp_path / "strange.csv").write_text("foo,bar\n1,2\n")
    (tmp_path / "bad.csv").write_text("id,barcode\nx,!!!\n")
    (tmp_path / "short.csv").write_text("id,barcode\nx\n")
    (tmp_path / "quote.csv").write_text('id,barcode\n"x,ACGT\n')
    (tmp_path / "marker.tsv").write_text(BOLD_HEADER + "\nx\tACGT\t16S\ta\tb\tc\td\n")
    try:
        code = main([argument.format(tmp=tmp_path) for argument in arguments])
    except SystemExit as stop:  # how argparse ends
        code = int(stop.code or 0)
    error = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("ingest:")
    ]  # the progress bar
    assert code == 2 and len(error) == 1, error
    assert error[0].startswith("error: ") and told in error[0]


@pytest.mark.parametrize("form", [["-m", "engine.main"], ["engine/main.py"], [str(ROOT / "engine" / "main.py")]])
def test_ways_to_start(form: list[str]) -> None:
    done = subprocess.run([sys.executable, *form, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "examples:" in done.stdout and not done.stderr


def test_simulated_specimens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--num-specimens", "160", "--num-species", "16", "--seed", "3", "--serial"]
    assert main(["ingest", "simulated", "--out", str(tmp_path / "shards"), *options]) == 0
    assert "specimens written: 160" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "shards")]) == 0
