"""run.num_workers=0: a run that broke off goes on from its last checkpoint and ends where it would have ended.

Checkpoints at the ends of epochs, or within them.
"""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.small import small_config
from train.learning.loop import Session
from train.models import checkpoint
from train.run import commits, trainer

pytestmark = pytest.mark.middle


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder).model.state_dict()


JOINT, POSTHOC = ("run.fusion_training=joint",), ("run.fusion_training=posthoc", "run.fusion_epochs=1")
WITHIN = ("run.checkpoint_steps=3",)


@pytest.mark.parametrize(
    ("fusion", "settings", "kept"), [(JOINT, (), [7]), (JOINT, WITHIN, [7, 9]), (POSTHOC, WITHIN, [7, 9])]
)
def test_an_interrupted_run_goes_on(
    fusion: tuple[str, ...],
    settings: tuple[str, ...],
    kept: list[int],
    simulated_shards: Path,
    ray_session: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(trainer.progress, "log_to", lambda board, rank: None)  # it would take the log from caplog
    common = ["run.num_workers=0", "run.epochs=2", f"run.storage={tmp_path}", "model.dropout=0.1", *fusion]
    whole = trainer.train(small_config(simulated_shards, *common, "run.name=whole"))
    config = small_config(simulated_shards, *common, *settings, "run.name=broken")
    step = Session.train_step

    def breaks_off(self: Session, batch: Any, asked: Any) -> Any:
        if self.step == 10:
            raise RuntimeError("power cut")
        return step(self, batch, asked)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "train_step", breaks_off)
        with pytest.raises(Exception, match="power cut"):
            trainer.train(config)
    assert commits.steps(tmp_path / "broken") == kept
    orphan = tmp_path / "broken" / "checkpoints" / "part-0"
    orphan.mkdir()  # a checkpoint that was being written when the cut came
    with caplog.at_level(logging.INFO, "train"):
        resumed = trainer.train(config)
    assert f"resumed at step {kept[-1]} of 14" in caplog.text
    assert not orphan.exists()
    assert resumed.steps == whole.steps == 14
    assert [record["epoch"] for record in resumed.history] == [1.0, 2.0]
    expected = weights(whole.model)
    assert expected.keys() == weights(resumed.model).keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed.model).items())
    again = trainer.train(config)  # a finished run is left as it is
    assert again.steps == 14
    assert all(torch.equal(value, expected[name]) for name, value in weights(again.model).items())
