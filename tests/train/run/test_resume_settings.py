"""--resume with --set: each setting is used, or refused before anything starts; the folder says name and storage."""

import json
import shutil
from pathlib import Path

import pytest

from engine.batches.pipeline import load_index, select_split
from tests.train.small import small_config, small_session
from train.config import Config, to_dict
from train.run import commits, resume
from train.run.folder import RECORD


def recorded(config: Config, **more: str) -> Path:
    folder = Path(config.run.storage) / config.run.name
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps({"run_id": "", "config": to_dict(config), **more}))
    return folder


def test_name_and_storage_are_the_folders(simulated_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(simulated_shards, tmp_path / "old" / "shards")
    folder = recorded(small_config(tmp_path / "old" / "shards", f"run.storage={tmp_path}/old", "run.name=a"))
    folder.rename(folder.with_name("b"))
    (tmp_path / "old").rename(tmp_path / "new")
    config = resume.reopened(tmp_path / "new" / "b", ["run.storage=elsewhere"])
    assert (config.run.storage, config.run.name) == (str(tmp_path / "new"), "b")
    assert config.data.shards == (str(tmp_path / "new" / "shards"),)


def test_settings_are_used_or_refused(simulated_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = recorded(small_config(simulated_shards, f"run.storage={tmp_path}", "run.name=a"))
    with caplog.at_level("INFO", "train"):
        config = resume.reopened(folder, ["optim.max_lr=0.5", "run.epochs=9", "run.checkpoint_every=3"])
    assert (config.optim.max_lr, config.run.epochs, config.run.checkpoint_every) == (0.5, 9, 3)
    assert "from here on optim.max_lr is 0.5 (was 0.001)" in caplog.text and "run.epochs is 9 (was 4)" in caplog.text
    for setting in ("run.seed=7", "run.name=c", "model.dna_width=8", "data.kmer=5", "run.global_batch_size=64"):
        key = setting.partition("=")[0]
        with pytest.raises(ValueError, match=f"--resume a: --set {key}: got .*, allowed: "):
            resume.reopened(folder, [setting])


def test_other_specimens_and_too_few_epochs_are_refused(simulated_shards: Path, tmp_path: Path) -> None:
    config = small_config(simulated_shards, f"run.storage={tmp_path}", "run.name=a")
    rows = resume.fingerprint(select_split(load_index(config.data.shards), "train"))
    folder = recorded(config, rows=rows)
    resume.check(folder, 28, rows)
    with pytest.raises(ValueError, match=f"checksum other, the run began with {rows}"):
        resume.check(folder, 28, "other")
    commits.path_of(folder, 14).mkdir(parents=True)
    (commits.path_of(folder, 14) / commits.STATE).write_bytes(b"")
    with pytest.raises(ValueError, match="got a run of 7 steps, allowed: more than the 14"):
        resume.check(folder, 7, rows)


def test_a_copy_is_known_by_its_first(simulated_shards: Path, tmp_path: Path) -> None:
    folder = recorded(small_config(simulated_shards, f"run.storage={tmp_path}", "run.name=a"))
    record = json.loads((folder / RECORD).read_text())
    assert resume.came_from(record, folder) is None
    shutil.copytree(folder, tmp_path / "b")
    assert resume.came_from(record, tmp_path / "b") == folder
    shutil.rmtree(folder)
    assert resume.came_from(record, tmp_path / "b") is None  # it was moved


@pytest.mark.parametrize("changes", [(), ("optim.max_lr=0.01", "optim.weight_decay=0.2"), ("run.epochs=8",)])
def test_rates_of_a_resumed_run_are_the_new_ones(changes: tuple[str, ...], simulated_shards: Path) -> None:
    """At every later step the rate is that of a run that had the new settings from its beginning."""
    before = small_config(simulated_shards)
    old, whole = small_session(before), small_session(small_config(simulated_shards, *changes))
    for batch, _ in zip(old.batches(None), range(5), strict=False):
        old.train_step(batch)
    resumed = small_session(small_config(simulated_shards, *changes))
    resume.restore(resumed, old.model.state_dict(), old.state(), before)
    for _ in range(5):
        whole.schedule.step()
        whole.step += 1
    assert resumed.step == 5 and resumed.optimizer.state_dict()["state"]
    for _ in range(3):
        for group, expected in zip(resumed.optimizer.param_groups, whole.optimizer.param_groups, strict=True):
            assert group["lr"] == pytest.approx(expected["lr"], rel=1e-12)
            assert group["weight_decay"] == expected["weight_decay"]
        resumed.schedule.step()
        whole.schedule.step()
