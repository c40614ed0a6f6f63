"""The command line of training: what is wrong is said in one line, with exit code 2."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from train.main import main

pytestmark = pytest.mark.middle

ROOT = Path(__file__).resolve().parents[2]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--recipe", "nope"], ["unknown recipe 'nope'", "quickstart"]),
        (["--set", "loss.colour=1"], ["unknown configuration key 'loss.colour'", "loss.hierarchy_weight"]),
        (["--set", "run.epochs=many"], ["run.epochs", "integer", "'many'"]),
        (["--set", "data.shards=simulated:x"], ["simulated:SEED takes a whole number", "'simulated:x'"]),
        (["--set", "data.shards=/no/such/folder"], ["/no/such/folder"]),
        (["--set", "data.shards="], ["data.shards: got nothing"]),
        (["--set", "run.global_batch_size=100"], ["got 100, allowed: a multiple of data.lanes=8"]),
        (["--set", "run.num_workers=3"], ["got 3", "one of [1, 2, 4, 8]"]),
        (["--set", "model.image_text=ViT-Z"], ["unknown model 'ViT-Z'"]),
        (["--resume", "gone"], ["no run 'gone'", "runs there: none"]),
        (["--set", "eval.split=holdout"], ["no specimen of split 'holdout'", "splits there: test, train, val"]),
        (["--set", "run.storage=/proc/none"], ["run.storage: got /proc/none, which cannot be written"]),
        (["--set", "data.tokenizer=bpe"], ["data.tokenizer_file: got ''"]),
        (["--set", "model.dna=kmer_transformer", "--set", "model.dna_heads=5"], ["must divide model.dna_width"]),
    ],
)
def test_mistakes(
    arguments: list[str],
    parts: list[str],
    simulated_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ray_session: None,
) -> None:
    settings = [f"run.storage={tmp_path}", f"data.shards={simulated_shards}", "run.global_batch_size=64"]
    settings = [part for setting in settings for part in ("--set", setting)]
    message = refused(capsys, *settings, *arguments)
    assert all(part in message for part in parts), message


def test_names_are_unique_and_not_reused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").mkdir()
    message = refused(capsys, "--set", f"run.storage={tmp_path}", "--set", "run.name=taken", "--dry-run")
    assert "run 'taken' exists" in message
    names = []
    for _ in range(2):
        assert main(["--dry-run", "--set", f"run.storage={tmp_path}"]) == 0
        names.append(json.loads(capsys.readouterr().out)["run"]["name"])
    assert len(set(names)) == 2


def test_a_wrong_command_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--recipes"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: unrecognized arguments: --recipes (see python train/main.py --help)"
    ]


def test_mistakes_are_told_before_ray_starts(simulated_shards: Path, tmp_path: Path) -> None:
    """In a process of its own, so that no Ray runs yet: the line is all there is on stderr."""
    (tmp_path / "shards").mkdir()
    for name in ("index.parquet", "manifest.json"):  # the tars are lost
        shutil.copy(simulated_shards / name, tmp_path / "shards")
    settings = [f"data.shards={tmp_path / 'shards'}", f"run.storage={tmp_path}", "run.global_batch_size=64"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "train/main.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: shards: got") and "000000.tar, which is missing" in line


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "ray job submit" in text
    assert "quickstart" in text
