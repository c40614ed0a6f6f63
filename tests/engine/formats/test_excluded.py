"""An ingest without the records that `check` suggests to leave out."""

import json
from pathlib import Path

import pytest

from engine import main as engine_main
from engine.formats.excluded import read_keys

BARCODE = "ACGTTGCA" * 40


def test_suggested_exclusions_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table, out = tmp_path / "x.csv", tmp_path / "shards"
    table.write_text("id,barcode,species\n" + "".join(f"k{n},{BARCODE}{'A' * n},Musca domestica\n" for n in range(4)))
    exclusions = tmp_path / "suggested_exclusions.csv"
    exclusions.write_text("set,key,rank,name,score\nx,k1,species,Musca domestica,0.9\nx,k9,species,Musca,0.8\n")
    words = ["ingest", "table", str(table), "--out", str(out), "--serial", "--exclude", str(exclusions)]
    assert engine_main.main(words) == 0
    report = json.loads((out / "report.json").read_text())
    assert (report["records_read"], report["written"]["specimens"]) == (4, 3)
    assert report["skipped"]["by_reason"] == {"excluded": 1}
    assert "1 keys are not in the input, e.g. k9" in caplog.text


def test_keys_may_stand_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("a\n\n b \n")
    assert read_keys(path) == {"a", "b"}
    path.write_text("")
    for wrong in (path, tmp_path / "none"):
        with pytest.raises(ValueError, match="--exclude: got"):
            read_keys(wrong)
