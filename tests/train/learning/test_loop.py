"""One worker's training, without Ray."""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.ranks import run_ranks
from tests.train.small import small_config, small_session
from train import dist
from train.config import Config, OptimConfig
from train.learning import loop
from train.learning.loop import CaptionTable, Session, phases
from train.learning.optim import build_optimizer

pytestmark = pytest.mark.usefixtures("one_thread")
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "curve.json"


def advance(session: Session, steps: int) -> list[dict[str, float]]:
    batches = session.batches(None)
    return [
        {name: float(value) for name, value in session.train_step(next(batches)).items() if name.startswith("loss/")}
        for _ in range(steps)
    ]


def curve(config: Config) -> list[dict[str, float]]:
    return advance(small_session(config), 30)


def differences(found: list[dict[str, float]], golden: list[dict[str, float]]) -> list[str]:
    """Terms that are not within 1e-3 (relative) of the golden curve."""
    assert len(found) == len(golden) == 30
    return [
        f"step {step} {name}: {got[name]} instead of {value}"
        for step, (got, want) in enumerate(zip(found, golden, strict=True))
        for name, value in want.items()
        if abs(got[name] - value) > 1e-3 * max(abs(value), 1e-3)
    ]


@pytest.fixture(scope="module")
def golden_config(simulated_shards: Path) -> Config:
    return small_config(simulated_shards, "run.epochs=10", "loss.hierarchy_weight=0.5")


@pytest.mark.middle
def test_golden_curve(golden_config: Config, pytestconfig: pytest.Config) -> None:
    """The first 30 steps, as committed. Move it: pytest tests/train/learning/test_loop.py --update-golden."""
    found = curve(golden_config)
    if pytestconfig.getoption("--update-golden"):
        GOLDEN.write_text(json.dumps([{k: round(v, 6) for k, v in step.items()} for step in found], indent=0) + "\n")
    assert not differences(found, json.loads(GOLDEN.read_text()))


@pytest.mark.middle
def test_a_broken_sign_leaves_the_golden_curve(golden_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    right = loop.total_loss

    def broken(*args: Any) -> dict[str, torch.Tensor]:
        terms = dict(right(*args))
        terms["loss/total"] = terms["loss/total"] - 2 * 0.5 * terms["loss/hierarchy"]
        return terms

    monkeypatch.setattr(loop, "total_loss", broken)
    assert differences(curve(golden_config), json.loads(GOLDEN.read_text()))


def test_resuming_changes_nothing(simulated_shards: Path) -> None:
    """3 steps, a checkpoint, 4 more, with dropout: bit-identical to 7 steps in one go."""
    config = small_config(simulated_shards, "model.dropout=0.1")
    whole, first = small_session(config), small_session(config)
    advance(whole, 7)
    advance(first, 3)
    weights, state = copy.deepcopy(first.model.state_dict()), copy.deepcopy(first.state())
    second = small_session(config)
    second.restore(weights, state)
    advance(second, 4)
    assert second.step == whole.step == 7
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_resuming_another_data_order_is_refused(simulated_shards: Path) -> None:
    session = small_session(small_config(simulated_shards))
    other = small_session(small_config(simulated_shards, "run.global_batch_size=64"))
    with pytest.raises(ValueError, match=r"resume: got a checkpoint whose plan is .*'global_batch_size': 32"):
        other.restore(session.model.state_dict(), session.state())


@pytest.mark.parametrize("change", ["data.window=64", "data.partners=true", "data.lanes=4", "run.seed=1"])
def test_resuming_in_another_order_is_refused(simulated_shards: Path, change: str) -> None:
    session, other = (small_session(small_config(simulated_shards, *more)) for more in ((), (change,)))
    with pytest.raises(ValueError, match=rf"resume: got .*'{change.split('.')[1].split('=')[0]}'"):
        other.restore(session.model.state_dict(), session.state())


def test_resuming_on_other_rows_is_refused(simulated_shards: Path) -> None:
    """As many specimens in another stored order, such as another layout's."""
    session, other = (small_session(small_config(simulated_shards)) for _ in range(2))
    state = copy.deepcopy(session.state())
    other.restore(session.model.state_dict(), state)
    state["plan"]["rows"] = "0" * 16
    with pytest.raises(ValueError, match=r"resume: got .*'rows': '0000"):
        other.restore(session.model.state_dict(), state)


def test_resuming_with_another_length_is_refused(simulated_shards: Path) -> None:
    """The one-cycle schedule is made for a number of steps."""
    session, longer = (small_session(small_config(simulated_shards, f"run.epochs={n}")) for n in (1, 2))
    with pytest.raises(ValueError, match=r"resume: got .*'steps': 7.*'steps': 14"):
        longer.restore(session.model.state_dict(), session.state())


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 7), (0.1, 10), (0.5, 2), (0.5, 1), (0.3, 7), (0.99, 3)])
def test_every_warm_up_has_a_schedule(warmup: float, steps: int) -> None:
    optimizer, schedule = build_optimizer(torch.nn.Linear(2, 2), OptimConfig(warmup=warmup), steps)
    for _ in range(steps):
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    "settings",
    [
        "loss.learn_temperature=true model.freeze_text=true",
        "loss.image_dna_weight=0 loss.fusion_weight=0 loss.hierarchy_weight=0",
        "loss.rank_weights=0,0,0,0 loss.hierarchy_gather=false loss.rectify_unit=pair",
        "loss.detach_dna=true loss.detach_dna_in_fusion=true loss.fused_direction=symmetric",
        "loss.rank_heads_weight=1 loss.positives=bin optim.warmup=0.9 optim.clip_norm=0",
        "model.dna=kmer_transformer data.kmer_stride=4 data.random_offset=true data.orient=false",
        "data.kmer=8 data.lanes=1 data.window=8 data.partners=false data.caption_cut=1 optim.warmup=0",
        "run.precision=bf16 model.dna=kmer_transformer data.kmer_stride=4",
        "data.augment.min_area=0 data.augment.rotate_degrees=90 data.augment.vertical_flip=1 data.rows_per_task=1",
    ],
)
@pytest.mark.middle
def test_every_option_trains_every_parameter(settings: str, simulated_shards: Path) -> None:
    """A whole epoch; DDP would wait for ever for a parameter that requires a gradient and gets none."""
    session = small_session(small_config(simulated_shards, "run.epochs=1", *settings.split()))
    advance(session, session.total_steps)
    assert not [name for name, p in session.model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.middle
def test_bf16_trains_like_float32(simulated_shards: Path) -> None:
    """Towers round to 8 bits of mantissa, losses and weights do not: the same loss within a few percent."""
    curves = [
        [terms["loss/total"] for terms in advance(small_session(small_config(simulated_shards, setting)), 7)]
        for setting in ("run.precision=fp32", "run.precision=bf16")
    ]
    assert curves[0] != curves[1]
    assert curves[1] == pytest.approx(curves[0], rel=0.03)


@pytest.mark.middle
def test_compiled_towers_train_alike(simulated_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced like any, but run without the C++ compiler, which takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain = advance(small_session(small_config(simulated_shards)), 2)
    compiled = small_session(small_config(simulated_shards, "run.compile=true"))
    assert [terms["loss/total"] for terms in advance(compiled, 2)] == pytest.approx(
        [terms["loss/total"] for terms in plain], rel=1e-4
    )
    assert set(compiled.model.state_dict()) == set(small_session(compiled.config).model.state_dict())


def test_a_loss_that_is_not_finite_stops_before_the_step(simulated_shards: Path) -> None:
    session = small_session(small_config(simulated_shards))
    advance(session, 1)
    with torch.no_grad():
        session.model.dna_encoder.project.bias.fill_(float("nan"))
    before = {name: value.clone() for name, value in session.model.named_parameters()}
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1 .*keys \w"):
        advance(session, 1)
    for name, value in session.model.named_parameters():
        assert torch.equal(value, before[name]) or "dna_encoder.project.bias" in name


def _step_with_one_bad_rank(shards: Path) -> str:
    """A loss that is finite on rank 0 only -> what each rank says, or "went on"."""
    session = small_session(small_config(shards))
    batch = next(session.batches(None))
    right = loop.total_loss

    def bad(*args: Any) -> dict[str, torch.Tensor]:
        terms = dict(right(*args))
        terms["loss/total"] = terms["loss/total"] * (float("nan") if dist.rank() else 1.0)
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "total_loss", bad)
        try:
            session.train_step(batch)
        except FloatingPointError as error:
            return str(error)
    return "went on"


@pytest.mark.middle
def test_a_loss_that_is_not_finite_on_one_rank_stops_all(simulated_shards: Path, tmp_path: Path) -> None:
    """Rank 0 would wait in the backward's collectives for ever."""
    said = run_ranks(_step_with_one_bad_rank, 2, tmp_path, simulated_shards)
    assert "(rank 0)" in said[0] and "loss is nan at step 0 (rank 1)" in said[1]


def test_posthoc_fusion_trains_the_gate_alone_at_the_end(simulated_shards: Path) -> None:
    options = ["run.fusion_training=posthoc", "run.fusion_epochs=1", "run.epochs=2", "optim.posthoc_lr=0.0004"]
    config = small_config(simulated_shards, *options)
    session = small_session(config)
    turn = session.plan.steps_per_epoch
    assert [(p.first, p.last, p.part) for p in session.phases] == [(0, turn, "encoders"), (turn, 2 * turn, "fusion")]
    batches = session.batches(None)
    gate = {name: value.clone() for name, value in session.model.fusion.named_parameters()}
    for _ in range(turn):
        assert "loss/fusion" not in session.train_step(next(batches))
    before = {name: value.clone() for name, value in session.model.named_parameters()}
    peaks = [group["max_lr"] for group in session.optimizer.param_groups]
    for _ in range(turn):
        session.train_step(next(batches))
    assert set(peaks) == {config.optim.max_lr} != {0.0004}
    assert {group["max_lr"] for group in session.optimizer.param_groups} == {0.0004}
    for name, value in session.model.named_parameters():
        assert torch.equal(value, before[name]) != name.startswith("fusion."), name
    assert all(torch.equal(gate[name], before[f"fusion.{name}"]) for name in gate)


def test_posthoc_fusion_needs_epochs_before_it(simulated_shards: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.fusion_epochs: got 4, allowed: below run\.epochs=4"):
        phases(small_config(simulated_shards, "run.fusion_training=posthoc", "run.fusion_epochs=4"), 10)


def test_captions_are_tokenised_once(simulated_shards: Path) -> None:
    session = small_session(small_config(simulated_shards))
    calls: list[list[str]] = []

    def tokenizer(captions: list[str]) -> torch.Tensor:
        calls.append(captions)
        return session.tokenizer(captions)

    table = CaptionTable(tokenizer, session.taxonomy)
    batch = next(session.batches(None))
    for _ in range(2):
        table.attach(batch)
    asked = [caption for captions in calls for caption in captions if caption]
    assert len(asked) == len(set(asked)) == len(batch["text_tokens"])
    known = (batch["caption"] >= 0).any(dim=1)
    assert torch.equal(batch["text_index"] >= 0, known)
