"""Gradient caching: the step of a batch seen in parts is the step of the whole batch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train.ranks import run_ranks
from tests.train.small import small_config, small_session
from train.learning import gradient_cache

pytestmark = [pytest.mark.middle, pytest.mark.usefixtures("one_thread")]
HEADS = ("loss.rank_heads_weight=0.3", "loss.hierarchy_weight=0.5", "loss.learn_temperature=true")


def gradients(shards: Path, settings: tuple[str, ...]) -> dict[str, Tensor]:
    """Every parameter's gradient in the first step. (AdamW turns the rounding of small ones into whole steps.)"""
    session = small_session(small_config(shards, "optim.clip_norm=0", *settings))
    session.train_step(next(session.batches(None)))
    return {name: p.grad.clone() for name, p in session.model.named_parameters() if p.grad is not None}


def assert_close(ours: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
    assert ours.keys() == whole.keys() and len(whole) > 10
    for name, gradient in whole.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("rows", [1, 10, 31])
def test_parts_give_the_gradient_of_the_whole(rows: int, simulated_shards: Path) -> None:
    whole = gradients(simulated_shards, HEADS)
    assert_close(gradients(simulated_shards, (*HEADS, f"run.micro_batch_size={rows}")), whole)


def test_parts_on_two_ranks(simulated_shards: Path, tmp_path: Path) -> None:
    """Replicas are averaged once a step, in the last part."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = run_ranks(gradients, 2, tmp_path / "whole", simulated_shards, HEADS)
    parts = (*HEADS, "run.micro_batch_size=5")
    ours = run_ranks(gradients, 2, tmp_path / "parts", simulated_shards, parts)
    for mine, theirs in zip(ours, whole, strict=True):
        assert_close(mine, theirs)
    assert_close(ours[0], ours[1])


def test_both_passes_see_the_same_dropout(simulated_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = small_session(small_config(simulated_shards, "model.dropout=0.5", "run.micro_batch_size=12"))
    seen: list[Tensor] = []
    hook = session.model.register_forward_hook(lambda module, inputs, features: seen.append(features.dna.detach()))
    session.train_step(next(session.batches(None)))
    hook.remove()
    assert len(seen) == 6
    for first, again in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, again)
    assert not torch.equal(seen[0][:4], seen[1][:4])


def test_parts_carry_their_own_captions(simulated_shards: Path) -> None:
    session = small_session(small_config(simulated_shards))
    batch = next(session.batches(None))
    session.captions.attach(batch)
    start = 0
    for part in gradient_cache.split(batch, 7):
        stop = start + len(part["valid"])
        index = batch["text_index"][start:stop]
        assert torch.equal(part["text_index"] < 0, index < 0)
        known = index >= 0
        assert torch.equal(part["text_tokens"][part["text_index"][known]], batch["text_tokens"][index[known]])
        assert part["keys"] == batch["keys"][start:stop]
        assert len(part["text_tokens"]) == len(index[known].unique())
        start = stop
    assert start == 32
