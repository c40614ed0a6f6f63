"""Fits a model's calibration on val and measures it on the split under test.

Both meet the same mixture: 60% clean, 20% damaged (DAMAGE in equal parts), 20% of species that the model does not
know, for which naming any species is wrong. On val those are made: the query's own species is taken from the
candidates. Under test they are the specimens of `<split>_unseen` where the shards have them (the model was trained
without these species), else they are made in the same way. Val is never under test.

Legend: N queries, R ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tqdm import tqdm

from engine.config import DegradeConfig
from engine.pipeline import label_columns
from engine.schema import uniforms_for
from engine.taxonomy import RANKS
from train.evaluation import evidence, subsets
from train.evaluation.calibration import Calibration, Calibrator, Disagreement, Rule, columns_of, fit_rule
from train.evaluation.evidence import AGREEMENTS, INPUTS, Answers
from train.evaluation.predict import QUERIES, Encoded
from train.evaluation.setting import Setting

DAMAGE = {
    "preset": DegradeConfig(severity=1.0, blur_kernel=5),
    "preset_2x": DegradeConfig(severity=2.0, blur_kernel=9),
    "fragment_100": DegradeConfig(severity=0.0, fragment=100, blur_kernel=15),
    "fragment_200": DegradeConfig(severity=0.0, fragment=200, blur_kernel=5),
}
CLEAN, DAMAGED, WITHHELD = 0.6, 0.2, 0.2  # shares of the mixture
FLAGGED = 0.05  # of the queries of known species, at most
PREVALENCE = 0.02  # of swapped pairs
SPECIES, GENUS = RANKS.index("species"), RANKS.index("genus")


@dataclass(frozen=True)
class Cases:
    """Answered queries, and what is true of them."""

    answers: Answers
    right: np.ndarray  # bool [N, R]
    scored: np.ndarray  # bool [N, R], has a label there
    withheld: np.ndarray  # bool [N], the model does not know the species
    genus_known: np.ndarray  # bool [N]
    group: np.ndarray  # int64 [N]
    weight: np.ndarray  # float64 [N]

    @classmethod
    def concatenate(cls, parts: Sequence["Cases"]) -> "Cases":
        names = ("right", "scored", "withheld", "genus_known", "group", "weight")
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(Answers.concatenate([part.answers for part in parts]), **joined)


class Part:
    """The specimens of one split, encoded clean and with every damage."""

    def __init__(self, setting: Setting, split: str) -> None:
        self.setting, self.split = setting, split
        self.rows = subsets.without_provisional(setting.rows(split))[0]
        names = label_columns(self.rows)
        self.labels = setting.taxonomy.encode(names)
        self.named = np.column_stack([[bool(name) for name in names[rank]] for rank in RANKS])
        self.group = subsets.barcode_groups(subsets.read_barcodes(self.rows))
        species = setting.taxonomy.candidates(SPECIES)
        counts = np.bincount(species[species[:, GENUS] >= 0, GENUS], minlength=len(setting.taxonomy.names[GENUS]))
        genus = self.labels[:, GENUS]
        self.others = np.where(genus >= 0, counts[np.maximum(genus, 0)] - (self.labels[:, SPECIES] >= 0), 0)

    @cached_property
    def clean(self) -> Encoded:
        return self.setting.encoded(self.split)

    @cached_property
    def damaged(self) -> dict[str, Encoded]:
        """Damage -> features of the damaged forms."""
        found = {}
        for name, degrade in tqdm(DAMAGE.items(), desc=f"damage of {self.split}", disable=None, leave=False):
            found[name] = self.setting.encode(self.rows, f"{self.split}_{name}", degrade=degrade)
        return found

    def mask(self, query: str) -> np.ndarray:
        """The specimens that have what the query needs, bool [N]."""
        return self.clean.mask(query)

    def cases(self, query: str, rows: np.ndarray, damage: str = "", *, withhold: bool = False,
              weight: float = 1.0) -> Cases:  # fmt: skip
        """Answer some rows (int64 [n]), clean or damaged.

        Args:
            withhold: take each query's own species from the candidates; rows without one are left out.
            weight: of all of them together.
        """
        if withhold:
            rows = rows[self.labels[rows, SPECIES] >= 0]
        encoded = self.damaged[damage] if damage else self.clean
        condition = list(QUERIES[query])[-1] if damage else "clean"
        features = encoded.query(query, condition, fuse_with(self.setting), rows)
        without = self.labels[rows, SPECIES] if withhold else None
        answers = evidence.answers(self.setting.scorer, features, without)
        right = (answers.path == self.labels[rows]) & (answers.path >= 0)
        unknown = self.named[rows, SPECIES] & (self.labels[rows, SPECIES] < 0)
        withheld = np.ones(len(rows), dtype=bool) if withhold else unknown
        right[withheld, SPECIES] = False
        return Cases(
            answers, right, self.named[rows], withheld, self.others[rows] > 0, self.group[rows],
            np.full(len(rows), weight / max(1, len(rows))),
        )  # fmt: skip


def fuse_with(setting: Setting) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The model's fusion, for features on any device."""
    return lambda image, dna: setting.model.fuse(image.to(setting.device), dna.to(setting.device))


def fit(setting: Setting, part: Part) -> Calibration:
    """Fit the rules of every query that some specimen of `part` can be asked with.

    Raises:
        ValueError: when no specimen of it is labelled at some rank.
    """
    queries = {}
    for query in QUERIES:
        rows = np.flatnonzero(part.mask(query))
        if not len(rows):
            continue
        pieces = [part.cases(query, rows, weight=CLEAN)]
        pieces += [part.cases(query, rows, damage, weight=DAMAGED / len(DAMAGE)) for damage in DAMAGE]
        pieces.append(part.cases(query, rows, withhold=True, weight=WITHHELD))
        queries[query] = fit_query(Cases.concatenate(pieces), tuple(pieces[0].answers.evidence))
    return Calibration(setting.taxonomy.fingerprint, queries, _fit_disagreement(part))


def fit_query(cases: Cases, inputs: tuple[str, ...] = INPUTS) -> Calibrator:
    """The rules of one query, on whatever evidence the cases carry under `inputs`.

    Raises:
        ValueError: when no case is labelled at some rank.
    """
    rules: list[Rule] = []
    for rank, name in enumerate(RANKS):
        weight = cases.weight * cases.scored[:, rank]
        if not weight.sum():
            raise ValueError(f"calibration: no specimen of val is labelled at {name}, required at every rank")
        columns = columns_of(cases.answers.evidence, inputs, rank)
        rules.append(fit_rule(inputs, columns, cases.right[:, rank], weight))
    columns = columns_of(cases.answers.evidence, inputs, SPECIES)
    named = cases.scored[:, SPECIES]
    known = fit_rule(inputs, columns, ~cases.withheld, cases.weight * named)
    score = 1 - known(columns)
    seen = named & ~cases.withheld
    share = flagged_share(len(np.unique(cases.group[seen])))
    return Calibrator(tuple(rules), known, weighted_quantile(score[seen], cases.weight[seen], 1 - share))


def flagged_share(num_groups: int) -> float:
    """Share to flag on val so that others flag more than FLAGGED in one of 20 draws of as many barcode groups."""
    return max(0.005, FLAGGED - 1.645 * (FLAGGED * (1 - FLAGGED) / max(1, num_groups)) ** 0.5)


def weighted_quantile(values: np.ndarray, weight: np.ndarray, share: float) -> float:
    """The smallest value that at least `share` of the weight does not exceed, and a little above it."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weight[order]) >= share * weight.sum() - 1e-12
    return float(np.nextafter(values[order][int(reached.argmax())], np.inf))


def swaps(labels: np.ndarray, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of specimens whose barcodes are exchanged: kind -> (rows, rows of the barcode), int64 each.

    Kinds: `genus` (another species of the genus), `family` (another genus of it), `order` (another family of it),
    `orders` (another order). A kind that no pair fits is left out.
    """
    rng = np.random.default_rng(seed)
    result = {}
    for kind, same, other in (("genus", 2, 3), ("family", 1, 2), ("order", 0, 1), ("orders", None, 0)):
        rows, partners = [], []
        for row, own in enumerate(labels):
            fits = (labels[:, other] >= 0) & (labels[:, other] != own[other]) & (own[other] >= 0)
            if same is not None:
                fits &= (labels[:, same] == own[same]) & (own[same] >= 0)
            there = np.flatnonzero(fits)
            if len(there):
                rows.append(row)
                partners.append(there[rng.integers(len(there))])
        if rows:
            result[kind] = (np.array(rows), np.array(partners))
    return result


def pairs(part: Part) -> dict[str, np.ndarray]:
    """Columns of AGREEMENTS, float64 [n, R], of true pairs ("true") and of every kind of swapped ones; {} without."""
    both = np.flatnonzero(part.mask("fused"))
    if not len(both):
        return {}
    image, dna = part.clean.features["image"][both], part.clean.features["dna"][both]
    rows = {"true": (np.arange(len(both)), np.arange(len(both)))} | swaps(part.labels[both])
    found = {}
    for kind, (first, second) in rows.items():
        told = evidence.agreement(part.setting.scorer, image[first], dna[second])
        found[kind] = columns_of(told, AGREEMENTS, None)
    return found


def _fit_disagreement(part: Part) -> Disagreement | None:
    """None where no specimen has both, or none can be swapped."""
    columns = pairs(part)
    if len(columns) < 2:
        return None
    swapped = np.concatenate([columns[kind] for kind in columns if kind != "true"])
    weight = np.concatenate([np.full(len(columns["true"]), 1 / len(columns["true"])),
                             np.full(len(swapped), 1 / len(swapped))])  # fmt: skip
    is_swapped = np.arange(len(weight)) >= len(columns["true"])
    rule = fit_rule(AGREEMENTS, np.concatenate([columns["true"], swapped]), is_swapped, weight)
    return Disagreement(rule, _best_f1(rule(columns["true"]), rule(swapped)))


def _best_f1(true: np.ndarray, swapped: np.ndarray) -> float:
    """The threshold of the highest F1 at PREVALENCE."""
    candidates = np.unique(np.concatenate([true, swapped]))
    candidates = candidates[:: max(1, len(candidates) // 1000)]
    recall = (swapped[None] >= candidates[:, None]).mean(axis=1)
    precision = precision_at(recall, (true[None] >= candidates[:, None]).mean(axis=1))
    return float(candidates[np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-12))])


def precision_at(recall: np.ndarray, false_alarms: np.ndarray, prevalence: float = PREVALENCE) -> np.ndarray:
    """Share of flagged pairs that are swapped, from the shares flagged of swapped and of true pairs; 0 without any."""
    hits = prevalence * np.asarray(recall)
    return hits / np.maximum(hits + (1 - prevalence) * np.asarray(false_alarms), 1e-12)


def mixture(setting: Setting, part: Part, query: str, unseen: Part | None) -> Cases:
    """The cases under test: each specimen once, its condition drawn from its key.

    Args:
        unseen: specimens of species that the model does not know; None = they are made by withholding a query's own.
    """
    draws = uniforms_for(0, 0, part.rows["key"].to_pylist(), "mixture", 3)
    mask = part.mask(query)
    rest = draws[:, 0] >= (WITHHELD if unseen is None else 0.0)
    pieces = []
    if unseen is None:
        pieces.append(part.cases(query, np.flatnonzero(mask & ~rest), withhold=True))
    else:
        few = min(int(unseen.mask(query).sum()), round(mask.sum() * WITHHELD / (1 - WITHHELD)))
        there = np.flatnonzero(unseen.mask(query))
        lots = uniforms_for(0, 0, unseen.rows["key"].to_pylist(), "mixture", 1)[there, 0]
        pieces.append(unseen.cases(query, np.sort(there[np.argsort(lots, kind="stable")[:few]])))
        most = few * (1 - WITHHELD) / WITHHELD  # of the others, so that the shares are those of the mixture
        rest = draws[:, 0] < most / max(1, int(mask.sum()))
    clean = draws[:, 1] < CLEAN / (CLEAN + DAMAGED)
    kind = (draws[:, 2] * len(DAMAGE)).astype(int)
    pieces.append(part.cases(query, np.flatnonzero(mask & rest & clean)))
    for number, damage in enumerate(DAMAGE):
        pieces.append(part.cases(query, np.flatnonzero(mask & rest & ~clean & (kind == number)), damage))
    whole = Cases.concatenate([piece for piece in pieces if len(piece.weight)])
    first = len(pieces[0].weight)
    group = np.where(np.arange(len(whole.group)) < first, whole.group + part.group.max() + 1, whole.group)
    return Cases(**{**vars(whole), "group": group if unseen is not None else whole.group})


def genus_parts(cases: Cases) -> Mapping[str, np.ndarray]:
    """The withheld cases, all and by whether the model knows another species of their genus: bool [N] each."""
    return {
        "withheld": cases.withheld,
        "genus_present": cases.withheld & cases.genus_known,
        "genus_absent": cases.withheld & ~cases.genus_known,
    }
