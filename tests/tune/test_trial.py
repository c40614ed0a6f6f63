"""A trial without Ray: it pauses at validations, goes on from its last commit, and shares what does not differ."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.small import small_config
from train.config import Config, to_dict
from train.models import checkpoint
from train.models.text_encoder import TextEncoder
from train.run import commits
from tune.trial import Task, Trial, on_split, score_of

pytestmark = pytest.mark.middle

METRICS = {
    "val/dna/clean/order/top1": 0.9,
    "val/dna/clean/order/rows": 40.0,
    "val/dna/noisy/order/top1": 0.5,
    "val/fused/noisy_both/species/top1": 0.1,
    "test/dna/clean/order/top1": 0.7,
    "loss/total": 3.0,
}


def test_scores() -> None:
    assert score_of(METRICS, "val/*/top1") == pytest.approx(0.5)
    assert score_of(METRICS, "val/*noisy*/top1") == pytest.approx(0.3)
    assert score_of(METRICS, "val/image/*/top1") is None
    assert score_of(METRICS, on_split("val/*/top1", "test")) == pytest.approx(0.7)


def task_of(config: Config, **changes: Any) -> dict[str, Any]:
    task = Task(
        name=config.run.name,
        number=1,
        config=json.dumps(to_dict(config)),
        run_id="",
        metric="val/*/top1",
        final=False,
        distributed=False,
        budget=None,
        threads=1,
    )
    return dataclasses.asdict(dataclasses.replace(task, **changes))


def trial_of(config: Config, **changes: Any) -> Trial:
    trial = Trial.__new__(Trial)  # without what Ray Tune sets up around it
    trial._begin(task_of(config, **changes))
    return trial


def config_at(shards: Path, storage: Path, *settings: str) -> Config:
    more = (f"run.storage={storage}", "run.name=trial-001", "run.epochs=4", "run.validate_every=2")
    return small_config(shards, *more, "eval.validate_noisy=true", *settings)


def test_a_trial_pauses_and_another_process_goes_on(simulated_shards: Path, tmp_path: Path, one_thread: None) -> None:
    config = config_at(simulated_shards, tmp_path)
    first = trial_of(config)
    result = first.step()
    assert (result["epoch"], result["done"]) == (2, False)
    measured = json.loads(result["measured"])
    assert result["score"] == score_of(measured, "val/*/top1")
    assert {"val/dna/noisy/species/top1", "val/fused/noisy_both/family/top1"} <= set(measured)
    first.cleanup()  # as when its process ends: the epoch is committed
    final = dataclasses.replace(config, run=dataclasses.replace(config.run, name="trial-001"))
    second = trial_of(final, final=True)
    again = second.step()
    assert (again["epoch"], again["score"]) == (2, result["score"])  # whoever judges may not have heard of it
    last = second.step()
    assert (last["epoch"], last["done"]) == (4, True)
    assert last["test"] == score_of(json.loads(last["measured"]), "test/*/top1") != last["score"]
    assert checkpoint.load(tmp_path / "trial-001").meta["step"] == 28
    second.reset_config(task_of(dataclasses.replace(config, run=dataclasses.replace(config.run, name="trial-002"))))
    assert not (tmp_path / "trial-001" / commits.FOLDER).exists()


def test_what_explodes_is_a_result(simulated_shards: Path, tmp_path: Path, one_thread: None) -> None:
    trial = trial_of(config_at(simulated_shards, tmp_path, "optim.max_lr=1e30", "optim.clip_norm=0"))
    result = trial.step()
    assert result["done"] and "nan" in result["failed"]
    trial.cleanup()


def test_frozen_text_features_are_made_once(
    simulated_shards: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = ("model.freeze_text=true", "run.epochs=2", "run.validate_every=1")
    results, made = [], []
    forward = TextEncoder._cut_forward

    def counted(self: TextEncoder, tokens: torch.Tensor) -> torch.Tensor:
        if len(tokens) == 1:  # a caption that is remembered is encoded by itself
            made.append(tokens)
        return forward(self, tokens)

    monkeypatch.setattr(TextEncoder, "_cut_forward", counted)
    for name in ("a", "b"):
        trial = trial_of(config_at(simulated_shards, tmp_path, *frozen, f"run.name={name}"))
        results.append([trial.step()["score"] for _ in range(2)])
        trial.cleanup()
        results.append(len(made))
        made.clear()
    assert results[0] == results[2]
    assert results[1] > 10 and results[3] < results[1] / 4  # captions that epoch 1 did not meet are made by both
    assert len(list(tmp_path.glob("texts-*.safetensors"))) == 1
