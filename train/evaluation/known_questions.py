"""Questions whose true answer is known: specimens of a split, clean, damaged, or of a species that is taken away.

Legend: N queries, R ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from tqdm import tqdm

from engine.batches.pipeline import label_columns
from engine.config import DegradeConfig
from engine.signals.barcodes import orient_batch
from engine.signals.damage import measured_barcodes
from engine.specimens.taxonomy import RANKS
from train.evaluation import subsets
from train.evaluation.model_under_test import Setting
from train.evaluation.outsiders import Outsiders, make, training_looks
from train.evaluation.predict import LOOKS, QUERIES, SHARPNESS, Encoded, combined
from train.inference import evidence, scope
from train.inference.calibration import POOLED, WITH_LIBRARY, Scope
from train.inference.evidence import Answers
from train.inference.experts import Inputs, barcode_quality
from train.inference.looks import PHOTO_FAR, Photos
from train.inference.nearest import Combiner, Nearest
from train.inference.pool import Pool

DAMAGE = {
    "preset": DegradeConfig(severity=1.0, blur_kernel=5),
    "preset_2x": DegradeConfig(severity=2.0, blur_kernel=9),
    "fragment_100": DegradeConfig(severity=0.0, fragment=100, blur_kernel=15),
    "fragment_200": DegradeConfig(severity=0.0, fragment=200, blur_kernel=5),
}
CLEAN, DAMAGED, WITHHELD = 0.6, 0.2, 0.2  # shares of the mixture that probabilities are fitted for
OUTSIDE = 0.02  # of WITHHELD, in the fit: of nothing that anybody knows
OUTSIDE_ASKED = 300
SCOPED = ("dna", POOLED)  # queries of which the scope says how far the barcode is from all that is known
SPECIES, GENUS = RANKS.index("species"), RANKS.index("genus")


@dataclass(frozen=True)
class Cases:
    """Answered queries, and what is true of them."""

    answers: Answers
    right: np.ndarray  # bool [N, R]
    scored: np.ndarray  # bool [N, R], has a label there
    withheld: np.ndarray  # bool [N], the model does not know the species
    genus_known: np.ndarray  # bool [N]
    unknown: np.ndarray  # bool [N, R], the true taxon is none that could be answered
    group: np.ndarray  # int64 [N]
    weight: np.ndarray  # float64 [N]

    @classmethod
    def concatenate(cls, parts: Sequence["Cases"]) -> "Cases":
        """Join parts, in order."""
        names = ("right", "scored", "withheld", "genus_known", "unknown", "group", "weight")
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(Answers.concatenate([part.answers for part in parts]), **joined)


class Part:
    """The specimens of one split, encoded clean and with every damage.

    `combiner` is the library that queries WITH_LIBRARY are looked up in.
    """

    def __init__(self, setting: Setting, split: str, combiner: Combiner | None = None) -> None:
        self.setting, self.split, self.combiner = setting, split, combiner
        self.rows = subsets.without_provisional(setting.rows(split))[0]
        names = label_columns(self.rows)
        self.labels = setting.taxonomy.encode(names)
        self.named = np.column_stack([[bool(name) for name in names[rank]] for rank in RANKS])
        self.barcodes = subsets.read_barcodes(self.rows)
        self.group = subsets.barcode_groups(self.barcodes)
        species = setting.taxonomy.candidates(SPECIES)
        counts = np.bincount(species[species[:, GENUS] >= 0, GENUS], minlength=len(setting.taxonomy.names[GENUS]))
        genus = self.labels[:, GENUS]
        self.others = np.where(genus >= 0, counts[np.maximum(genus, 0)] - (self.labels[:, SPECIES] >= 0), 0)

    @cached_property
    def scope(self) -> Scope:
        """Return what a calibration keeps of the library's barcodes and of the training photos."""
        seen = training_looks(self.setting) if self.mask("image").any() else ()
        if self.combiner is None:
            return Scope(photos=seen)
        return replace(scope.choose(self.combiner.library, self.setting.taxonomy), photos=seen)

    @cached_property
    def _searched(self) -> Combiner | None:
        return scope.opened(self.scope, self.setting.taxonomy)

    @cached_property
    def _photos(self) -> Photos:
        return Photos(self.scope.photos)

    def near(self, query: str, barcodes: Sequence[str], without: np.ndarray | None = None) -> Nearest | None:
        """Search the scope, for queries that are asked with a barcode and without a library; else None."""
        return self._searched.find(barcodes, without=without) if query in SCOPED and self._searched else None

    def photo_far(self, query: str, looks: np.ndarray | None) -> np.ndarray | None:
        """Return how far photos are from those of the scope, for queries of a photo alone; else None."""
        return self._photos.far(looks) if query == "image" and looks is not None and self.scope.photos else None

    @cached_property
    def clean(self) -> Encoded:
        """Return the features of the specimens as they are."""
        return self.setting.encoded(self.split)

    @cached_property
    def damaged(self) -> dict[str, Encoded]:
        """Damage -> features of the damaged forms."""
        found = {}
        for name, degrade in tqdm(DAMAGE.items(), desc=f"damage of {self.split}", disable=None, leave=False):
            found[name] = self.setting.encode(self.rows, f"{self.split}_{name}", degrade=degrade)
        return found

    @cached_property
    def outside(self) -> Outsiders:
        """Return outsiders made of some specimens, `outside_rows`."""
        rows = self.outside_rows
        barcodes = [self.barcodes[row] for row in rows.tolist()]
        return make(self.setting, self.rows.take(rows), barcodes)

    @cached_property
    def outside_rows(self) -> np.ndarray:
        """Return OUTSIDE_ASKED specimens spread over the part, int64 [n]."""
        return np.unique(np.linspace(0, len(self.labels) - 1, min(len(self.labels), OUTSIDE_ASKED)).astype(int))

    def asked_outside(self, query: str, weight: float = 1.0) -> "Asked":
        """Return outsiders, asked with a query of `queries`; no answer to them is right."""
        found, rows = self.outside, self.outside_rows
        there = self.mask(query)[rows] & (found.image.any(axis=1) if _sees(query) else True)
        place = np.flatnonzero(there)
        barcodes = [found.barcodes[one] for one in place.tolist()]
        image, dna = found.image[place], found.dna[place]
        features: np.ndarray | Inputs
        if is_pooled(query):
            nearest = None
            if query.endswith(WITH_LIBRARY):
                assert self.combiner is not None
                nearest = self.combiner.find(barcodes)
            measured = barcode_quality(barcodes) | {SHARPNESS: found.sharp[place]}
            features = Inputs(image if _sees(query) else None, dna, nearest, measured)
        else:
            parts = {"image": [image], "dna": [dna]}.get(query, [image, dna])
            features = combined(query, parts, fuse_with(self.setting))
        near, far = self.near(query, barcodes), self.photo_far(query, found.looks[place])
        return Asked(self, rows[place], "", features, None, weight, near, far, outside=True)

    def queries(self) -> list[str]:
        """Return what some specimen can be asked with: of QUERIES, POOLED, and with a library those with a barcode."""
        there = [query for query in (*QUERIES, POOLED) if self.mask(query).any()]
        return there + [f"{query}{WITH_LIBRARY}" for query in ("dna", POOLED) if self.combiner and query in there]

    def mask(self, query: str) -> np.ndarray:
        """Return the specimens that have what the query needs, bool [N]."""
        return self.clean.mask(query.removesuffix(WITH_LIBRARY))

    def asked(
        self, query: str, rows: np.ndarray, damage: str = "", *, withhold: bool = False, weight: float = 1.0
    ) -> "Asked":
        """Return a query of some rows (int64 [n]), clean or damaged.

        Args:
            damage: of DAMAGE; "" = clean.
            query: of `queries`.
            rows: int64 [n], rows of the part.
            withhold: take each query's own species from the candidates and its references from the library; rows
                without one are left out.
            weight: of all of them together.
        """
        if withhold:
            rows = rows[self.labels[rows, SPECIES] >= 0]
        without = self.labels[rows, SPECIES] if withhold else None
        encoded, suffix = (self.damaged[damage], "_noisy") if damage else (self.clean, "")
        barcodes = self.given(rows, damage)
        near = self.near(query, barcodes, without)
        if is_pooled(query):
            measured = barcode_quality(barcodes)
            image = None
            if query.startswith(POOLED):
                image = encoded.features[f"image{suffix}"][rows]
                measured[SHARPNESS] = encoded.features[SHARPNESS + suffix][rows][:, 0].astype(np.float64)
            nearest = None
            if query.endswith(WITH_LIBRARY):
                assert self.combiner is not None
                nearest = self.combiner.find(barcodes, without=without)
            inputs = Inputs(image, encoded.features[f"dna{suffix}"][rows], nearest, measured)
            return Asked(self, rows, damage, inputs, without, weight, near)
        condition = list(QUERIES[query])[-1] if damage else "clean"
        features = encoded.query(query, condition, fuse_with(self.setting), rows)
        looks = encoded.features[LOOKS + suffix][rows] if query == "image" else None
        return Asked(self, rows, damage, features, without, weight, near, self.photo_far(query, looks))

    def given(self, rows: np.ndarray, damage: str) -> list[str]:
        """Return the cleaned barcodes of some rows as they are asked about, "" = none."""
        data = self.setting.config.data
        whole = [self.barcodes[row] for row in rows.tolist()]
        whole = orient_batch(whole) if data.orient else whole
        if not damage:
            return whole
        keys = [self.clean.keys[row] for row in rows.tolist()]
        return measured_barcodes(whole, keys, 0, DAMAGE[damage], data.orient)


@dataclass(frozen=True)
class Asked:
    """Rows of a part, asked in one way."""

    part: Part
    rows: np.ndarray  # int64 [N]
    damage: str  # of DAMAGE, "" = clean
    features: np.ndarray | Inputs  # float32 [N, D]; inputs of a pool
    without: np.ndarray | None  # int64 [N], species that are taken away
    weight: float
    near: Nearest | None = None  # what the scope says of the barcodes; None = not asked
    photo_far: np.ndarray | None = None  # float64 [N], the same of photos
    outside: bool = False  # of nothing that anybody knows

    def cases(self, pool: Pool | None = None) -> Cases:
        """Return the answers; `pool` for a query of several experts."""
        part, rows = self.part, self.rows
        scorer = part.setting.scorer
        if isinstance(self.features, Inputs):
            assert pool is not None
            chunks = evidence.pooled(scorer, self.features, pool, without=self.without)
            answers = Answers.concatenate([chunk.answers for chunk in chunks])
        else:
            answers = evidence.answers(scorer, self.features, self.without)
        if self.near is not None:
            answers = scope.told(answers, self.near)
        if self.photo_far is not None:
            answers = replace(answers, evidence=answers.evidence | {PHOTO_FAR: self.photo_far})
        right = (answers.path == part.labels[rows]) & (answers.path >= 0)
        unknown = part.named[rows, SPECIES] & (part.labels[rows, SPECIES] < 0)
        withheld = unknown if self.without is None else np.ones(len(rows), dtype=bool)
        right[withheld, SPECIES] = False
        named, genus_known = part.named[rows], part.others[rows] > 0
        missing = named & (part.labels[rows] < 0)
        missing[:, SPECIES] |= withheld
        if self.outside:
            named, missing = np.ones_like(named), np.ones_like(missing)
            right, withheld, genus_known = np.zeros_like(right), np.ones_like(withheld), np.zeros_like(genus_known)
        return Cases(
            answers,
            right,
            named,
            withheld,
            genus_known,
            missing,
            part.group[rows],
            np.full(len(rows), self.weight / max(1, len(rows))),
        )


def _sees(query: str) -> bool:
    """Say whether a query reads the photo."""
    return not query.startswith("dna")


def is_pooled(query: str) -> bool:
    """Say whether a query is answered by several experts."""
    return query.startswith(POOLED) or query.endswith(WITH_LIBRARY)


def fuse_with(setting: Setting) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the model's fusion, for features on any device."""
    return lambda image, dna: setting.model.fuse(image.to(setting.device), dna.to(setting.device))


def genus_parts(cases: Cases) -> Mapping[str, np.ndarray]:
    """Return the withheld cases, all and by whether the model knows another species of their genus: bool [N] each."""
    return {
        "withheld": cases.withheld,
        "genus_present": cases.withheld & cases.genus_known,
        "genus_absent": cases.withheld & ~cases.genus_known,
    }
