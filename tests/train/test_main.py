"""The command line of training: what is wrong is said in one line, with exit code 2."""

import json
from pathlib import Path

import pytest

from train.main import main


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
        (["--set", "data.shards="], ["data.shards is empty"]),
        (["--set", "run.global_batch_size=100"], ["multiple of data.lanes=8, got 100"]),
        (["--set", "run.num_workers=3"], ["one of [1, 2, 4, 8], got 3"]),
        (["--set", "model.image_text=ViT-Z"], ["unknown model 'ViT-Z'"]),
        (["--resume", "gone"], ["no run 'gone'", "runs there: none"]),
    ],
)
def test_mistakes(
    arguments: list[str], parts: list[str], simulated_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    ray_session: None,
) -> None:  # fmt: skip
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


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "ray job submit" in text
    assert "quickstart" in text
