"""Losses against plain loops written from the definitions: value and gradient to 1e-9 in float64."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.losses import reference
from tests.train.losses.batches import gradients, random_features, random_targets
from train.config import LossConfig
from train.losses import Targets, contrastive_loss, fusion_loss, hierarchy_loss, total_loss
from train.losses import masks as loss_masks
from train.losses import total as losses
from train.models.trimodal import Features

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-9
HIERARCHY_OPTIONS = [
    dict(zip(("rectify", "rectify_unit", "denominator", "representatives"), values, strict=True))
    for values in itertools.product(
        ("none", "fine_to_coarse", "coarse_to_fine"), ("rank", "pair"), ("all", "negatives"), ("all", "one_per_label")
    )
]
POSITIVES = ("masked", "caption", "bin", "specimen")


def assert_parity(
    ours: Callable[..., dict[str, Tensor]], plain: Callable[..., dict[str, Any]], config: LossConfig, seed: int
) -> None:
    """All terms, and the gradient of the first, for one random batch; the seed also decides how much is missing."""
    targets = random_targets(seed, hole=(0.0, 0.2, 0.5)[seed % 3], missing=(0.2, 0.0, 0.5)[seed % 3])
    features = random_features(seed, targets)
    got, expected = ours(features, targets, config), plain(features, reference.Rows.of(targets), config)
    assert set(got) == set(expected)
    for name in expected:
        mine, theirs = (torch.as_tensor(terms[name], dtype=torch.float64).item() for terms in (got, expected))
        assert mine == pytest.approx(theirs, abs=TOLERANCE, rel=TOLERANCE), name
    first = next(iter(expected))
    our_gradient, plain_gradient = gradients(features, got[first]), gradients(features, expected[first])
    for name in plain_gradient:
        torch.testing.assert_close(our_gradient[name], plain_gradient[name], atol=TOLERANCE, rtol=TOLERANCE, msg=name)


@pytest.mark.parametrize("detach_dna", [False, True])
@pytest.mark.parametrize("positives", POSITIVES)
def test_contrastive(positives: Any, detach_dna: bool) -> None:
    config = LossConfig(positives=positives, detach_dna=detach_dna, image_dna_weight=0.7)
    for seed in range(9):
        assert_parity(contrastive_loss, reference.contrastive, config, seed)


@pytest.mark.parametrize("options", HIERARCHY_OPTIONS, ids=lambda options: "-".join(options.values()))
@pytest.mark.middle
def test_hierarchy(options: dict[str, Any]) -> None:
    for seed in range(6):
        weights = ((1.0, 1.0, 1.0, 1.0), (0.0, 2.0, 0.5, 1.0))[seed % 2]
        config = LossConfig(hierarchy_temperature=0.11, rank_weights=weights, **options)
        assert_parity(hierarchy_loss, reference.hierarchy, config, seed)


@pytest.mark.parametrize("direction", ["fused_to_text", "text_to_fused", "symmetric"])
@pytest.mark.parametrize("positives", POSITIVES)
def test_fusion(positives: Any, direction: Any) -> None:
    for seed in range(6):
        heads = 0.5 * (seed % 2)
        config = LossConfig(positives=positives, fused_direction=direction, rank_heads_weight=heads)
        assert_parity(fusion_loss, reference.fusion, config, seed)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hierarchy_weight": 0.0, "fusion_weight": 0.0},
        {"hierarchy_weight": 0.5, "fusion_weight": 2.0, "rank_heads_weight": 0.3},
        {"fusion_weight": 0.0, "rank_heads_weight": 0.3},
        {"hierarchy_gather": False, "hierarchy_weight": 0.5},
    ],
    ids=str,
)
def test_total(options: dict[str, Any]) -> None:
    for seed in range(3):
        assert_parity(total_loss, reference.total, LossConfig(**options), seed)


@pytest.fixture
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 of 9 anchors at a time, 1 of 18 views."""
    monkeypatch.setitem(loss_masks.PAIRS_AT_ONCE, "cpu", 22)


@pytest.mark.parametrize("options", HIERARCHY_OPTIONS, ids=lambda options: "-".join(options.values()))
@pytest.mark.middle
def test_in_parts(options: dict[str, Any], few_pairs: None) -> None:
    """Anchors a part at a time, each computed again for its gradient."""
    for seed, positives in enumerate(POSITIVES):
        config = LossConfig(hierarchy_weight=0.5, fused_direction="symmetric", positives=positives, **options)
        assert_parity(total_loss, reference.total, config, seed)


def test_parts_are_counted(few_pairs: None) -> None:
    sizes: list[int] = []

    def count(start: int, stop: int) -> Tensor:
        sizes.append(stop - start)
        return torch.ones(())

    assert loss_masks.over_parts(count, 9, 9, "cpu") == 5 and sizes == [2, 2, 2, 2, 1]


@pytest.mark.parametrize("rank", range(4))
def test_rank_without_labels_does_not_occur(rank: int) -> None:
    targets = random_targets(3, hole=0.0, missing=0.0)
    targets.labels[:, rank] = -1
    features = random_features(3, targets)
    for options in HIERARCHY_OPTIONS:
        config = LossConfig(**options)
        got = hierarchy_loss(features, targets, config)
        expected = reference.hierarchy(features, reference.Rows.of(targets), config)
        assert got[f"hierarchy/loss/{reference.RANKS[rank]}"] == 0.0
        assert got["loss/hierarchy"].item() == pytest.approx(expected["loss/hierarchy"].item(), abs=TOLERANCE)


def test_a_broken_sign_breaks_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    directed = losses._directed
    monkeypatch.setattr(losses, "_directed", lambda *args: directed(*args) * torch.tensor([-1.0, 1.0]))
    with pytest.raises(AssertionError):
        assert_parity(contrastive_loss, reference.contrastive, LossConfig(), 0)


def complete_labels(seed: int) -> Targets:
    """Every label known, every photo there."""
    targets = random_targets(seed, num_rows=12, hole=0.0, missing=0.0)
    species = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    labels = torch.stack([species // 4, species // 3, species // 2, species], dim=1)
    return targets._replace(labels=labels, has_image=torch.ones(12, dtype=torch.bool))


def test_printed_form_with_full_denominator_ignores_species() -> None:
    """Form 1 (fine pairs clamped by the coarser maximum): SupCon at order + M of order, family, genus, whatever the
    species are, as every species pair is a genus pair. The reason why it is not the default."""
    form_1 = LossConfig(rectify="coarse_to_fine", rectify_unit="pair", denominator="all")
    targets = complete_labels(0)
    features = random_features(0, targets)
    resplit = targets._replace(labels=targets.labels.clone())
    resplit.labels[:, 3] = torch.tensor([0, 10, 10, 0, 1, 2, 3, 4, 5, 5, 5, 5])  # other species inside the same genera
    first, second = (hierarchy_loss(features, t, form_1)["loss/hierarchy"] for t in (targets, resplit))
    assert first.item() == pytest.approx(second.item(), abs=1e-12)
    before, after = gradients(features, first), gradients(features, second)
    for name in before:
        torch.testing.assert_close(before[name], after[name], atol=1e-12, rtol=0)

    raw = reference.Hierarchy(features, reference.Rows.of(targets), form_1, [list(range(12))])
    maxima = [max(loss.item() for loss in raw.pairs[rank][0].values()) for rank in range(3)]
    order = raw.rank_mean(raw.pairs[0]).item()
    assert first.item() == pytest.approx((order + sum(maxima)) / 4, abs=1e-12)

    for other in (LossConfig(), LossConfig(rectify="none")):
        values = [hierarchy_loss(features, t, other)["hierarchy/loss/species"].item() for t in (targets, resplit)]
        assert abs(values[0] - values[1]) > 1e-3


@pytest.mark.parametrize("pairs_at_once", [1 << 22, 1 << 10])
@pytest.mark.parametrize("representatives", ["all", "one_per_label"])
def test_float32_gradient_of_hir(representatives: Any, pairs_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 takes other matrix products than float64. Largest difference seen: 7e-8, of gradients up to 0.3."""
    monkeypatch.setitem(loss_masks.PAIRS_AT_ONCE, "cpu", pairs_at_once)
    targets, config = random_targets(1, num_rows=40), LossConfig(representatives=representatives)
    found = []
    for dtype in (torch.float32, torch.float64):
        features = random_features(1, targets, dim=33, dtype=dtype)
        found.append(gradients(features, hierarchy_loss(features, targets, config)["loss/hierarchy"]))
    for name in ("image", "image_view2"):
        rough, exact = found[0][name].double(), found[1][name]
        torch.testing.assert_close(rough, exact, atol=3e-7, rtol=0.0, msg=name)


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_features_are_computed_in_float32(autocast: bool) -> None:
    targets = random_targets(1, num_rows=16)
    for options in HIERARCHY_OPTIONS:
        config = LossConfig(hierarchy_temperature=0.01, rank_heads_weight=0.1, hierarchy_weight=1.0, **options)
        rough = random_features(1, targets, dim=16, dtype=torch.bfloat16)
        rough.logit_scale = torch.tensor(100.0, requires_grad=True)
        exact = random_features(1, targets, dim=16, dtype=torch.bfloat16)
        for name in ("image", "image_view2", "dna", "text", "fused"):
            setattr(exact, name, getattr(exact, name).detach().double().requires_grad_())
        exact.logit_scale = torch.tensor(100.0, dtype=torch.float64, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            got, expected = total_loss(rough, targets, config), total_loss(exact, targets, config)
        assert got["loss/contrastive"].dtype == torch.float32
        assert got["loss/total"].item() == pytest.approx(expected["loss/total"].item(), rel=1e-4)
        for name, grad in gradients(rough, got["loss/total"]).items():
            assert torch.isfinite(grad).all(), name


@pytest.mark.parametrize("options", HIERARCHY_OPTIONS, ids=lambda options: "-".join(options.values()))
def test_nothing_valid_is_zero_with_a_graph(options: dict[str, Any]) -> None:
    targets = random_targets(2)
    nothing = torch.zeros(9, dtype=torch.bool)
    targets = targets._replace(has_image=nothing, has_dna=nothing, has_text=nothing)
    features = random_features(2, targets)
    for positives in POSITIVES:
        config = LossConfig(positives=positives, rank_heads_weight=1.0, fused_direction="symmetric", **options)
        terms = total_loss(features, targets, config)
        assert all(term.item() == 0.0 for term in terms.values())
        terms["loss/total"].backward()
    for name in ("image", "image_view2", "dna", "text", "fused", "logit_scale"):
        assert (getattr(features, name).grad == 0.0).all(), name


def test_every_feature_takes_part_whatever_the_weights() -> None:
    """DDP demands a gradient for every parameter: terms of weight 0 must not leave a tower out of the graph."""
    targets = random_targets(4)
    features = random_features(4, targets)
    total_loss(features, targets, LossConfig(hierarchy_weight=0.0, fusion_weight=0.0))["loss/total"].backward()
    leaves: list[Any] = [features.image_view2, features.fused, features.logit_scale, *(features.rank_logits or ())]
    assert all(leaf.grad is not None for leaf in leaves)


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        ({"image_view2": None}, LossConfig(), "image_view2"),
        ({"rank_logits": None}, LossConfig(rank_heads_weight=1.0), "without classification heads"),
    ],
)
def test_missing_input_is_named(change: dict[str, None], config: LossConfig, words: str) -> None:
    targets = random_targets(5)
    features = random_features(5, targets)
    for name, value in change.items():
        setattr(features, name, value)
    with pytest.raises(ValueError, match=words):
        total_loss(features, targets, config)


def test_features_of_the_model_without_second_view_and_heads() -> None:
    targets = random_targets(6)
    features = Features(**{**vars(random_features(6, targets)), "image_view2": None, "rank_logits": None})
    assert total_loss(features, targets, LossConfig(hierarchy_weight=0.0))["loss/total"] > 0


def test_targets_from_batch_ignore_padding() -> None:
    labels = torch.tensor([[0, 1, 2, 3], [0, -1, -1, -1], [-1] * 4, [0, 1, 2, 3]])
    batch = {
        "valid": torch.tensor([True, True, True, False]),
        "has_image": torch.tensor([True, False, True, True]),
        "has_dna": torch.tensor([False, True, True, True]),
        "labels": labels,
        "caption": labels,
        "bin": torch.zeros(4, dtype=torch.int64),
        "barcode": torch.zeros(4, dtype=torch.int64),
    }
    targets = Targets.from_batch(batch)
    assert targets.has_image.tolist() == [True, False, True, False]
    assert targets.has_dna.tolist() == [False, True, True, False]
    assert targets.has_text.tolist() == [True, True, False, False]
    uncaptioned = Targets.from_batch(batch | {"text_index": torch.tensor([-1, 0, -1, -1])})
    assert uncaptioned.has_text.tolist() == [False, True, False, False]
