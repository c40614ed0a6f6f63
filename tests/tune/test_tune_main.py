"""The command line of sweeps: what is wrong is said in one line, with exit code 2."""

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.batches.pipeline import load_index
from tests.train.small import SETTINGS
from tests.train.test_main import refused
from train.config import override
from train.recipes import make
from tune import spaces
from tune.main import main, seconds
from tune.spaces import Uniform
from tune.sweep import settled

pytestmark = pytest.mark.middle

ROOT = Path(__file__).resolve().parents[2]


def small(shards: Path, storage: Path, *more: str) -> list[str]:
    chosen = [f"data.shards={shards}", *SETTINGS, f"run.storage={storage}", *more]
    return [part for setting in chosen for part in ("--set", setting)]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--recipe", "nope"], ["unknown recipe 'nope'", "quickstart"]),
        (["--space", "nope"], ["unknown space 'nope'; spaces:", "pair", "wide"]),
        (["--space", "unknown_key"], ["space 'unknown_key': unknown configuration key 'loss.colour'"]),
        (["--space", "empty"], ["space 'empty' is empty"]),
        (["--set", "loss.colour=1"], ["unknown configuration key 'loss.colour'"]),
        (["--budget", "soon"], ["--budget: got 'soon'; allowed: a time above 0 such as 90s"]),
        (["--budget", "0h"], ["--budget: got '0h'"]),
        (["--trials", "0"], ["--trials must be 1 or more, got 0"]),
        (["--seeds", "0"], ["--seeds must be 1 or more, got 0"]),
        (["--concurrent", "-1"], ["--concurrent must be 0 (what fits) or more, got -1"]),
        (["--resume", "gone"], ["no sweep 'gone'", "sweeps there: none"]),
        (["--metric", "loss/total"], ["--metric is a pattern of accuracies on val, got 'loss/total'"]),
        (["--metric", "val/loss"], ["got 'val/loss'; allowed: val/...top1"]),
        (["--set", "data.shards=/no/such/folder"], ["/no/such/folder"]),
        (["--set", "eval.split=holdout"], ["no specimen of split 'holdout'"]),
        (["--name", "taken"], ["'taken' exists", "--resume taken"]),
        (["--set", "run.threads=64"], ["a trial needs 64 CPU on one node; the cluster has 2 CPUs"]),
    ],
)
def test_mistakes(
    arguments: list[str],
    parts: list[str],
    simulated_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ray_session: None,
) -> None:
    monkeypatch.setattr("tests.train.test_main.main", main)
    monkeypatch.setitem(spaces.SPACES, "empty", lambda: {})
    monkeypatch.setitem(spaces.SPACES, "unknown_key", lambda: {"loss.colour": Uniform(low=0, high=1)})
    (tmp_path / "taken").mkdir()
    message = refused(capsys, *small(simulated_shards, tmp_path), *arguments)
    assert all(part in message for part in parts), message


def test_no_val_split(
    simulated_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.train.test_main.main", main)
    shards = tmp_path / "shards"
    shutil.copytree(simulated_shards, shards)
    index = pq.read_table(shards / "index.parquet")
    split = pa.array(["train" if one == "val" else one for one in index["split"].to_pylist()])
    place = index.schema.get_field_index("split")
    pq.write_table(index.set_column(place, "split", split), shards / "index.parquet")
    message = refused(capsys, *small(shards, tmp_path))
    assert "no specimen of split 'val' in these shards; splits there: test, train" in message


def test_budgets() -> None:
    assert [seconds(text) for text in ("", "90s", "45m", "1.5h", "1d")] == [0, 90, 2700, 5400, 86400]


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for part in ("ray job submit", "--resume", "never stopped", "fresh seeds", "pair", "wide", "ASHA"):
        assert part in text


def test_as_a_script_before_ray_starts() -> None:
    """Its own folder must not be first on the path; the line is all there is on stderr."""
    done = subprocess.run(
        [sys.executable, "tune/main.py", "--recipe", "bold", "--space", "nope"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown space 'nope'; spaces: pair, wide\n"
    shown = subprocess.run(
        [sys.executable, "tune/main.py", "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert shown.stdout.startswith("loss.hierarchy_weight: LogUniform(low=0.001, high=1.0, zero=0.15) (recipe: 0.01)")


def test_the_recipe_of_sweeps_makes_its_specimens(tmp_path: Path, ray_session: None) -> None:
    """`simulated:SEED:COUNT` is no path, and a folder of its own for each count."""
    config = settled(override(make("sweep"), ["data.shards=simulated:0:320", f"run.storage={tmp_path}"]))
    assert config.data.shards == (str(tmp_path / "simulated-0-320"),)
    index = load_index(config.data.shards)
    assert len(index) == 320 and {"train", "val", "test"} == set(index["split"].to_pylist())
    assert len(set(index["species"].to_pylist()) - {None}) == 8
    assert config.run.experiment == "taxafuse-sweeps"
    assert settled(override(config, ["run.experiment=mine"])).run.experiment == "mine"
