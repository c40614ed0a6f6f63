"""Dropout is drawn by lane: the number of workers, the parts of a batch and recomputation change nothing."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.train.ranks import run_ranks
from tests.train.small import small_config, small_session
from train import dist
from train.learning.loop import Session
from train.models.trimodal import Features

pytestmark = [pytest.mark.middle, pytest.mark.usefixtures("one_thread")]
DROPOUT = ("model.dropout=0.3", "model.dna=kmer_transformer", "data.kmer_stride=4", "loss.hierarchy_weight=0.5")
FIELDS = ("image", "image_view2", "dna", "text", "fused")


def prepared(shards: Path, *settings: str) -> tuple[Session, dict[str, Any]]:
    """A session about to train, and its first batch, numbered, with a row that has no barcode."""
    session = small_session(small_config(shards, *DROPOUT, *settings))
    batch: dict[str, Any] = dict(next(session.batches(None)))
    batch["has_dna"][3] = False
    session.captions.attach(batch)
    session._number_rows(batch)
    session.model.train()
    return session, batch


def part(batch: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    return {name: value if name == "text_tokens" else value[first:last] for name, value in batch.items()}


def features_of(session: Session, parts: list[dict[str, Any]]) -> dict[str, Tensor]:
    found: list[Features] = [session.model(rows) for rows in parts]
    return {name: torch.cat([getattr(features, name) for features in found]) for name in FIELDS}


@pytest.mark.parametrize("cuts", [(0, 16, 32), (0, 8, 16, 24, 32), (0, 4, 32)])
def test_parts_of_a_batch_get_the_masks_of_the_whole(cuts: tuple[int, ...], simulated_shards: Path) -> None:
    """Lanes have 4 rows here."""
    session, batch = prepared(simulated_shards)
    whole = features_of(session, [batch])
    pieces = features_of(session, [part(batch, *ends) for ends in itertools.pairwise(cuts)])
    for name in FIELDS:
        assert torch.allclose(whole[name], pieces[name], atol=1e-6), name
    session.masks.seed("0/1")
    assert not torch.allclose(whole["dna"], features_of(session, [batch])["dna"], atol=1e-3)


def test_lanes_draw_unlike_masks(simulated_shards: Path) -> None:
    session, batch = prepared(simulated_shards)
    for name in ("dna_tokens", "dna_mask", "has_dna"):
        batch[name] = batch[name][:1].expand_as(batch[name])  # one barcode in every row
    dna = session.model(batch).dna
    assert (torch.cdist(dna, dna) + torch.eye(len(dna)) > 1e-2).all()


def test_shares_of_zeros_and_scale() -> None:
    from train.learning.lane_dropout import LaneDropout, Rows

    dropout = LaneDropout(0.25, 7, Rows("0/0", [(0, 64), (64, 64)]))
    out = dropout(torch.ones(128, 100))
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float((out == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    short = LaneDropout(0.25, 7, Rows("0/0", [(0, 4)]))
    long = short(torch.ones(4, 9, 100))
    assert torch.equal(short(torch.ones(4, 5, 100)), long[:, :5])  # a tower that cuts its tokens
    assert torch.equal(dropout.eval()(torch.ones(3, 2)), torch.ones(3, 2))


def test_activations_made_again_meet_the_same_masks(simulated_shards: Path) -> None:
    gradients = []
    for setting in ("model.gradient_checkpointing=false", "model.gradient_checkpointing=true"):
        session, batch = prepared(simulated_shards, setting)
        session.model(batch).dna[:, 0].sum().backward()
        gradients.append([p.grad for p in session.model.dna_encoder.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_every_dropout_of_tower_and_gate_is_replaced(simulated_shards: Path) -> None:
    session, _ = prepared(simulated_shards)
    for tower in (session.model.dna_encoder, session.model.fusion):
        assert not [module for module in tower.modules() if type(module) is nn.Dropout]
    assert set(session.model.state_dict()) == set(
        small_session(small_config(simulated_shards, *DROPOUT)).model.state_dict()
    )


def _trajectory(shards: Path, settings: tuple[str, ...]) -> tuple[list[float], dict[str, Tensor]]:
    """10 steps -> the loss of every step over the global batch, and the weights."""
    session = small_session(small_config(shards, *DROPOUT, *settings))
    batches = session.batches(None)
    losses = [dist.reduce_metrics(session.train_step(next(batches)))["loss/total"] for _ in range(10)]
    return losses, session.model.state_dict()


@pytest.mark.parametrize("settings", [(), ("run.micro_batch_size=4",)])
def test_1_2_and_4_workers_share_one_trajectory(
    settings: tuple[str, ...], simulated_shards: Path, tmp_path: Path
) -> None:
    """With dropout, over 10 steps: losses to 1e-5 of their size. `pytest -s` prints the largest differences."""
    losses, weights = _trajectory(simulated_shards, settings)
    for workers in (2, 4):
        folder = tmp_path / str(workers)
        folder.mkdir()
        found, theirs = run_ranks(_trajectory, workers, folder, simulated_shards, settings)[0]
        of_loss = max(abs(a - b) / abs(a) for a, b in zip(losses, found, strict=True))
        off = torch.cat([(weights[name] - theirs[name]).flatten() for name in weights])
        size = torch.cat([value.flatten() for value in weights.values()]).norm()
        print(f"\n{workers} workers {settings}: loss {of_loss:.1e}, weights {off.norm() / size:.1e} (relative)")
        assert of_loss < 1e-5
        assert off.norm() / size < 1e-5
