"""The losses on 1, 2 and 4 gloo ranks: same values and same gradient of a DDP model as one process without a group."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.train.losses import reference
from tests.train.losses.batches import NUM_TAXA, presence, random_targets
from tests.train.ranks import run_ranks
from train import dist
from train.config import LossConfig
from train.losses import Targets, hierarchy_loss, total_loss

pytestmark = pytest.mark.middle

NUM_ROWS, WIDTH, DIM = 12, 6, 4
WEIGHTS: dict[str, Any] = {"hierarchy_weight": 0.7, "rank_heads_weight": 0.3, "rank_weights": (1.0, 0.5, 2.0, 1.0)}
CONFIGS = {
    "default": LossConfig(),
    "clibd": LossConfig(hierarchy_weight=0.0, fusion_weight=0.0),
    "means-up": LossConfig(**WEIGHTS, positives="bin", fused_direction="symmetric", representatives="one_per_label"),
    "means-down": LossConfig(**WEIGHTS, rectify="coarse_to_fine", positives="caption", denominator="negatives"),
    "pairs-up": LossConfig(**WEIGHTS, rectify_unit="pair", denominator="negatives", detach_dna=True),
    "pairs-down": LossConfig(
        **WEIGHTS, rectify_unit="pair", rectify="coarse_to_fine", fused_direction="text_to_fused", positives="specimen"
    ),
    "thinned-pairs": LossConfig(**WEIGHTS, rectify_unit="pair", representatives="one_per_label"),
    "plain": LossConfig(**WEIGHTS, rectify="none"),
}
LOCAL = {
    "local-means": LossConfig(**WEIGHTS, hierarchy_gather=False),
    "local-pairs": LossConfig(**WEIGHTS, hierarchy_gather=False, rectify_unit="pair"),
    "local-thinned": LossConfig(
        **WEIGHTS, hierarchy_gather=False, rectify_unit="pair", representatives="one_per_label"
    ),
}
SCENARIOS = ("everything", "nothing valid", "no image", "no barcode", "no label", "nothing valid anywhere")
FEW = ("default", "means-down", "pairs-up")  # configs that meet every scenario; the others, for time, two
CASES = [(scenario, name) for scenario in SCENARIOS for name in CONFIGS if scenario in SCENARIOS[:2] or name in FEW]
LOCAL_CASES = [(scenario, name) for scenario in SCENARIOS[:2] for name in LOCAL]
WORLDS = (1, 2, 4)


def cases_of(world: int) -> list[tuple[str, str]]:
    """Four ranks compute every case; one and two ranks some of them."""
    shown = SCENARIOS[:1] if world == 1 else SCENARIOS
    return [case for case in CASES if world == 4 or (case[0] in shown and case[1] in FEW)] + LOCAL_CASES


def scenario_targets(scenario: str) -> Targets:
    """12 rows; in all but the first scenario half of them lack something: 1 rank of 2, 2 ranks of 4."""
    targets = random_targets(11, num_rows=NUM_ROWS)
    last = torch.arange(NUM_ROWS) >= (0 if scenario.endswith("anywhere") else NUM_ROWS // 2)
    no_image, no_dna = scenario == "no image", scenario == "no barcode"
    nothing = scenario.startswith("nothing")
    targets = targets._replace(
        has_image=targets.has_image & ~(last & (no_image | nothing)),
        has_dna=targets.has_dna & ~(last & (no_dna | nothing)),
        has_text=targets.has_text & ~(last & (scenario == "no label" or nothing)),
    )
    if scenario == "no label":
        labels, caption = (part.masked_fill(last[:, None], -1) for part in (targets.labels, targets.caption))
        targets = targets._replace(labels=labels, caption=caption, bin=targets.bin.masked_fill(last, -1))
    return targets


def random_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    names = ("image", "image_view2", "dna", "text")
    return {n: torch.randn(NUM_ROWS, WIDTH, generator=generator, dtype=torch.float64) for n in names}


class Towers(nn.Module):
    """Linear towers, a gate and heads: every kind of parameter whose gradient the losses form."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({name: nn.Linear(WIDTH, DIM) for name in ("image", "dna", "text")})
        self.fuse = nn.Linear(2 * DIM, DIM)
        self.heads = nn.ModuleList([nn.Linear(DIM, taxa) for taxa in NUM_TAXA])
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> SimpleNamespace:
        def unit(rows: Tensor, name: str) -> Tensor:
            return functional.normalize(rows, dim=1) * present[name][:, None]

        image, view2 = (unit(self.towers["image"](inputs[n]), n) for n in ("image", "image_view2"))
        dna, text = (unit(self.towers[n](inputs[n]), n) for n in ("dna", "text"))
        fused = unit(self.fuse(torch.cat([image, dna], dim=1)), "fused")
        heads = tuple(head(fused) for head in self.heads)
        return SimpleNamespace(
            image=image,
            image_view2=view2,
            dna=dna,
            text=text,
            fused=fused,
            logit_scale=self.log_scale.exp(),
            rank_logits=heads,
        )


def towers() -> Towers:
    torch.manual_seed(3)
    return Towers().double()


def run_case(model: nn.Module, scenario: str, config: LossConfig) -> dict[str, Any]:
    """This rank's share of the batch -> global values and DDP's gradient."""
    share = NUM_ROWS // dist.world_size()
    rows = slice(dist.rank() * share, (dist.rank() + 1) * share)
    targets = Targets(*(part[rows] for part in scenario_targets(scenario)))
    inputs = {name: part[rows] for name, part in random_inputs().items()}
    model.zero_grad()
    terms = total_loss(model(inputs, presence(targets)), targets, config)
    terms["loss/total"].backward()
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    gradient = {name: parameter.grad.clone() for name, parameter in inner.named_parameters()}
    return {"terms": dist.reduce_metrics(terms), "gradient": gradient}


def tied_gradient(rectify: Any) -> Tensor:
    """d HiR / d image features of all ranks where many pairs share the largest loss to the last bit.

    Vectors along the axes at temperature 0.01: similarities are 0 and 100, and exp(-100) vanishes beside 1, so that
    sums are exact in any order. Which of the tied pairs takes the gradient then shows.
    """
    share = NUM_ROWS // dist.world_size()
    rows = torch.arange(NUM_ROWS)[dist.rank() * share : (dist.rank() + 1) * share]
    labels = torch.stack([rows % 1, rows % 2, rows % 4, rows % 4], dim=1)
    targets = Targets(labels, labels, rows, rows, *([rows >= 0] * 3))
    # Axis 0 is the most crowded, so its anchors reach the maximum: second views on rank 0, first views on later ranks.
    axes = torch.tensor([[1, 2, 3, 1, 2, 3, 0, 0, 0, 0, 0, 0], [0, 0, 0, 4, 4, 1, 2, 3, 4, 4, 4, 1]])
    views = [torch.eye(5, dtype=torch.float64)[axis[rows]].requires_grad_() for axis in axes]
    features: Any = SimpleNamespace(image=views[0], image_view2=views[1], logit_scale=torch.tensor(1.0))
    config = LossConfig(rectify=rectify, rectify_unit="pair", hierarchy_temperature=0.01)
    hierarchy_loss(features, targets, config)["loss/hierarchy"].backward()
    return dist.gather(torch.stack([view.grad for view in views if view.grad is not None], dim=1)) / dist.world_size()


def all_cases() -> dict[Any, Any]:
    model = nn.parallel.DistributedDataParallel(towers())
    configs = CONFIGS | LOCAL
    results = {
        (scenario, name): run_case(model, scenario, configs[name]) for scenario, name in cases_of(dist.world_size())
    }
    return results | {rectify: tied_gradient(rectify) for rectify in ("fine_to_coarse", "coarse_to_fine")}


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[Any, Any]]]:
    return {world: run_ranks(all_cases, world, tmp_path_factory.mktemp(f"ranks{world}")) for world in WORLDS}


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got["terms"].keys() == expected["terms"].keys()
    for name, value in expected["terms"].items():
        assert got["terms"][name] == pytest.approx(value, abs=1e-9, rel=1e-9), name
    for name, value in expected["gradient"].items():
        torch.testing.assert_close(got["gradient"][name], value, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize(("scenario", "config"), CASES)
def test_ranks_equal_one_process(on_ranks: dict[int, Any], scenario: str, config: str) -> None:
    expected = run_case(towers(), scenario, CONFIGS[config])
    if scenario == "nothing valid anywhere":
        assert expected["terms"]["loss/total"] == 0.0
    else:
        assert expected["terms"]["loss/total"] > 0.1
        assert any(gradient.abs().max() > 1e-3 for gradient in expected["gradient"].values())
    for world in WORLDS:
        for result in on_ranks[world]:
            if (scenario, config) in cases_of(world):
                assert_same(result[scenario, config], expected)


def plain_case(scenario: str, config: LossConfig, world: int) -> dict[str, Any]:
    """By plain loops over the whole batch, HiR within each rank's block of rows."""
    model, targets, share = towers(), scenario_targets(scenario), NUM_ROWS // world
    blocks = [list(range(start, start + share)) for start in range(0, NUM_ROWS, share)]
    features = model(random_inputs(), presence(targets))
    terms = reference.total(features, reference.Rows.of(targets), config, blocks)
    (terms["loss/total"] + 0.0 * sum(p.sum() for p in model.parameters())).backward()
    return {
        "terms": {name: torch.as_tensor(term, dtype=torch.float64).item() for name, term in terms.items()},
        "gradient": {name: parameter.grad for name, parameter in model.named_parameters()},
    }


@pytest.mark.parametrize(("scenario", "config"), LOCAL_CASES)
def test_hierarchy_local_to_each_rank(on_ranks: dict[int, Any], scenario: str, config: str) -> None:
    for world in WORLDS:
        expected = plain_case(scenario, LOCAL[config], world)
        for result in on_ranks[world]:
            assert_same(result[scenario, config], expected)


@pytest.mark.parametrize("rectify", ["fine_to_coarse", "coarse_to_fine"])
def test_ties_go_to_the_same_pair_on_any_number_of_ranks(on_ranks: dict[int, Any], rectify: str) -> None:
    expected = tied_gradient(rectify)
    for world in WORLDS:
        for result in on_ranks[world]:
            torch.testing.assert_close(result[rectify], expected, atol=1e-9, rtol=1e-9)


def test_the_test_sees_local_means(on_ranks: dict[int, Any]) -> None:
    """Ranks do hold different numbers of anchors, so that a mean of local means would not have passed."""
    targets = scenario_targets("everything")
    counts = targets.has_image.reshape(4, -1).sum(dim=1)
    assert counts.min() < counts.max()
