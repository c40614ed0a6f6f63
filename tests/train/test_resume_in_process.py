"""run.num_workers=0: a run that broke off goes on from its last checkpoint and ends where it would have ended.

Checkpoints at the ends of epochs, or within them.
"""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.small import small_config, small_session
from train import checkpoint, trainer
from train.loop import Session


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder).model.state_dict()


@pytest.mark.parametrize(("settings", "kept_step"), [((), 7), (("run.checkpoint_steps=3",), 9)])
def test_an_interrupted_run_goes_on(
    settings: tuple[str, ...], kept_step: int, simulated_shards: Path, ray_session: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(trainer.progress, "log_to", lambda board, rank: None)  # it would take the log from caplog
    common = ["run.num_workers=0", "run.epochs=2", f"run.storage={tmp_path}", "model.dropout=0.1"]
    whole = trainer.train(small_config(simulated_shards, *common, "run.name=whole"))
    config = small_config(simulated_shards, *common, *settings, "run.name=broken")
    step = Session.train_step

    def breaks_off(self: Session, batch: Any) -> Any:
        if self.step == 10:
            raise RuntimeError("power cut")
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "train_step", breaks_off)
        with pytest.raises(Exception, match="power cut"):
            trainer.train(config)
    kept = tmp_path / "broken" / "checkpoint_in_process"
    assert [path.name for path in kept.iterdir()] == [f"step-{kept_step:09d}"]
    (kept / "part").mkdir()  # a checkpoint that was being written when the next cut came
    with caplog.at_level(logging.INFO, "train"):
        resumed = trainer.train(config)
    assert f"resumed at step {kept_step} of 14" in caplog.text
    assert resumed.steps == whole.steps == 14
    assert [record["epoch"] for record in resumed.history] == [1.0, 2.0]
    expected = weights(whole.model)
    assert expected.keys() == weights(resumed.model).keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed.model).items())
    again = trainer.train(config)  # a finished run is left as it is
    assert again.steps == 14
    assert all(torch.equal(value, expected[name]) for name, value in weights(again.model).items())


def small_checkpoint(folder: Path, shards: Path, step: int) -> Path:
    session = small_session(small_config(shards))
    folder.mkdir(parents=True)
    session.step = step
    checkpoint.save(folder, session.model, session.config, session.taxonomy, step=step, state=session.state())
    return folder


@pytest.mark.parametrize(("in_process", "stored", "expected"), [(14, 7, 14), (7, 14, 14), (7, None, 7), (None, 7, 7)])
def test_the_farthest_checkpoint_counts_whoever_wrote_it(
    in_process: int | None, stored: int | None, expected: int, simulated_shards: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """From run.num_workers=0 to workers of Ray Train and back: neither starts the run anew or goes back."""
    import ray.train

    run = tmp_path / "run"
    if in_process:
        small_checkpoint(run / "checkpoint_in_process" / f"step-{in_process:09d}", simulated_shards, in_process)
    (run / "checkpoint_in_process" / "part").mkdir(parents=True)
    if stored:
        folder = small_checkpoint(run / "checkpoint_2026-11-21_12-00-00", simulated_shards, stored)
        monkeypatch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint.from_directory(folder))
    else:
        monkeypatch.setattr(ray.train, "get_checkpoint", lambda: None)
    for workers in (0, 2):
        config = small_config(simulated_shards, f"run.storage={tmp_path}", "run.name=run", f"run.num_workers={workers}")
        with trainer._last_checkpoint(config) as found:
            assert found is not None
            assert checkpoint.load(found).meta["step"] == expected


def test_a_new_run_has_no_checkpoint(simulated_shards: Path, tmp_path: Path) -> None:
    config = small_config(simulated_shards, f"run.storage={tmp_path}", "run.name=new", "run.num_workers=0")
    with trainer._last_checkpoint(config) as found:
        assert found is None
