"""Specimens of a split with every damage of the barcode crossed with blur of the photo, as a pool is fitted on them.

Legend: N cases, n specimens, M experts, K lineages kept of each case, Q qualities of an expert, D embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from engine.config import DegradeConfig
from engine.signals.damage import measured_barcodes
from engine.specimens.schema import uniforms_for
from train.evaluation.known_questions import DAMAGE, GENUS, SPECIES, Part
from train.evaluation.predict import SHARPNESS, lacking
from train.inference.calibration import POOLED, WITH_LIBRARY
from train.inference.experts import Inputs, barcode_quality, opinions
from train.inference.scoring import Scorer

DNA_DAMAGE = {
    "preset_4x": DegradeConfig(severity=4.0),
    "fragment_50": DegradeConfig(severity=0.0, fragment=50),
    "fragment_75": DegradeConfig(severity=0.0, fragment=75),
    "fragment_150": DegradeConfig(severity=0.0, fragment=150),
    "fragment_300": DegradeConfig(severity=0.0, fragment=300),
}
"""Of the barcode alone, beside DAMAGE."""
BLUR = DegradeConfig(severity=0.0, blur_kernel=31)
_PHOTOS = ("", "preset_2x", "fragment_100", "blur")  # clean, and blurred by 9, 15 and 31
SPECIMENS = 2000  # at most
CASES = 24_000  # up to which every damage is crossed with every blur; else each meets one blur, drawn from the key
KEPT = 512  # lineages kept of each case, the most probable by any expert; the others count as one of their mean


@dataclass(frozen=True)
class Crossed:
    """N cases; all that a pool is fitted on."""

    experts: tuple[str, ...]
    log_p: Tensor  # float32 [N, M, K]; a last column of the lineages that were not kept, if there are any
    size: Tensor  # float32 [N, K], log of the lineages in a column
    leaf: np.ndarray  # int64 [N, K], -1 = those not kept
    qualities: tuple[np.ndarray, ...]  # of each expert, float64 [N, Q]
    speaks: np.ndarray  # bool [N, M]
    measured: dict[str, np.ndarray]  # float64 [N]
    labels: np.ndarray  # int64 [N, R]
    lineages: np.ndarray  # int64 [L, R]
    group: np.ndarray  # int64 [N]
    weight: np.ndarray  # float64 [N], adds up to 1
    condition: np.ndarray  # str [N], damage of the barcode and of the photo

    def truth(self, rank: int) -> Tensor:
        """Return the columns of the true taxon, bool [N, K]; none where it has no label."""
        taxa = np.where(self.leaf >= 0, self.lineages[self.leaf, rank], -1)
        own = self.labels[:, rank, None]
        return torch.from_numpy((taxa == own) & (own >= 0))


class Crossing:
    """The forms in which specimens of a part are asked."""

    def __init__(self, part: Part, query: str) -> None:
        self.part, self.query = part, query
        rows = np.flatnonzero(part.mask(query) & (part.labels[:, GENUS] >= 0))
        self.rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SPECIMENS)).astype(int))]
        photos = _PHOTOS if query.startswith(POOLED) else ("",)
        self.pairs = [(dna, photo) for dna in ("", *DAMAGE, *DNA_DAMAGE) for photo in photos]
        self.thinned = len(self.rows) * len(self.pairs) > CASES

    @cached_property
    def _index(self) -> pa.Table:
        return self.part.rows.take(self.rows)

    @cached_property
    def dna(self) -> dict[str, tuple[np.ndarray, list[str]]]:
        """Damage -> features float32 [n, D] and the barcodes themselves."""
        part, data = self.part, self.part.setting.config.data
        found = {"": (part.clean.features["dna"][self.rows], part.given(self.rows, ""))}
        for name in DAMAGE:
            found[name] = (part.damaged[name].features["dna_noisy"][self.rows], part.given(self.rows, name))
        keys = [part.clean.keys[row] for row in self.rows.tolist()]
        for name, degrade in DNA_DAMAGE.items():
            index = lacking(self._index, "image")
            encoded = part.setting.encode(index, f"{part.split}_{self.query}_{name}", degrade=degrade)
            found[name] = (
                encoded.features["dna_noisy"][:],
                measured_barcodes(found[""][1], keys, 0, degrade, data.orient),
            )
        return found

    @cached_property
    def photos(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Blur -> features float32 [n, D] and sharpness float64 [n]."""
        part = self.part
        found = {}
        for name in _PHOTOS:
            if name == "blur":
                index = lacking(self._index, "dna")
                features = part.setting.encode(index, f"{part.split}_{self.query}_blur", degrade=BLUR).features
                found[name] = (features["image_noisy"][:], features[f"{SHARPNESS}_noisy"][:])
            else:
                encoded, suffix = (part.damaged[name], "_noisy") if name else (part.clean, "")
                features = encoded.features
                found[name] = (features[f"image{suffix}"][self.rows], features[SHARPNESS + suffix][self.rows])
        return {name: (image, sharp[:, 0].astype(np.float64)) for name, (image, sharp) in found.items()}

    def pieces(self) -> Iterator[tuple[str, np.ndarray, Inputs]]:
        """Yield each form: its name, the specimens asked in it (places among `rows`), and their inputs."""
        keys = [self.part.clean.keys[row] for row in self.rows.tolist()]
        blurs = len({photo for _, photo in self.pairs})
        for number, dna in enumerate(("", *DAMAGE, *DNA_DAMAGE)):
            features, barcodes = self.dna[dna]
            nearest = None
            if self.query.endswith(WITH_LIBRARY):
                assert self.part.combiner is not None
                nearest = self.part.combiner.find(barcodes)
            drawn = (uniforms_for(0, number, keys, "crossed", 1)[:, 0] * blurs).astype(int)
            for place, photo in enumerate(_PHOTOS[:blurs]):
                chosen = np.flatnonzero((drawn == place) | (not self.thinned))
                measured = barcode_quality([barcodes[row] for row in chosen.tolist()])
                image = None
                if self.query.startswith(POOLED):
                    image, measured[SHARPNESS] = (part[chosen] for part in self.photos[photo])
                one = None if nearest is None else nearest.take(chosen)
                yield f"{dna or 'clean'}/{photo or 'clean'}", chosen, Inputs(image, features[chosen], one, measured)


def collect(part: Part, query: str) -> Crossed:
    """Ask specimens of a part in every form.

    Species that are only taken from the candidates are not asked about: the model was trained with them and names their
    genera better than those of species that it never met (bold: 4 points, results/reference_library.md).

    Raises:
        ValueError: when no specimen is labelled at the genus.
    """
    crossing, scorer = Crossing(part, query), part.setting.scorer
    if not len(crossing.rows):
        raise ValueError(f"calibration: no specimen of {part.split} that is labelled at genus can be asked {query}")
    found: list[tuple[Any, ...]] = []
    for name, chosen, inputs in crossing.pieces():
        if not len(chosen):
            continue
        rows = crossing.rows[chosen]
        for chunk in scorer.chunks(len(chosen)):
            said = opinions(scorer, inputs, chunk)
            labels = part.labels[rows[chunk]]
            log_p, size, leaf = _kept(scorer, [one.log_p.cpu() for one in said], labels)
            measured = {key: inputs.of(key, chunk) for key in inputs.measured or {}}
            quality, speaks = [one.quality for one in said], np.column_stack([one.speaks for one in said])
            of_form = np.full(len(labels), 1 / len(chosen))
            form = np.full(len(labels), name)
            found.append((log_p, size, leaf, quality, speaks, measured, labels, part.group[rows[chunk]], of_form, form))
    columns: list[Any] = list(zip(*found, strict=True))
    total = np.concatenate(columns[8])
    return Crossed(
        experts=tuple(one.expert for one in said),
        log_p=torch.cat(columns[0]),
        size=torch.cat(columns[1]),
        leaf=np.concatenate(columns[2]),
        qualities=tuple(np.concatenate(parts) for parts in zip(*columns[3], strict=True)),
        speaks=np.concatenate(columns[4]),
        measured={key: np.concatenate([one[key] for one in columns[5]]) for key in columns[5][0]},
        labels=np.concatenate(columns[6]),
        lineages=scorer.leaves.cpu().numpy(),
        group=np.concatenate(columns[7]),
        weight=total / total.sum(),
        condition=np.concatenate(columns[9]),
    )


def _kept(scorer: Scorer, log_p: list[Tensor], labels: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return opinions [b, M, K] of the most probable lineages and of the true one, log sizes [b, K], leaves [b, K]."""
    whole = torch.stack(log_p, dim=1).clamp(min=-1e4)
    count = whole.shape[2]
    if count <= KEPT:
        return whole, torch.zeros(len(whole), count), np.tile(np.arange(count), (len(whole), 1))
    best = whole.amax(1)
    species = torch.from_numpy(labels[:, SPECIES])
    true = scorer.leaf_of.cpu()[int(scorer.first[-1]) + species.clamp(min=0)]
    there = (species >= 0) & (true >= 0)
    best[there.nonzero()[:, 0], true[there]] = torch.inf
    leaf = best.topk(KEPT, dim=1).indices
    kept = whole.gather(2, leaf[:, None].expand(-1, whole.shape[1], -1))
    rest = (whole.sum(2) - kept.sum(2)) / (count - KEPT)
    size = torch.cat([torch.zeros(len(whole), KEPT), torch.full((len(whole), 1), float(np.log(count - KEPT)))], dim=1)
    leaves = np.concatenate([leaf.numpy(), np.full((len(whole), 1), -1)], axis=1)
    return torch.cat([kept, rest[:, :, None]], dim=2), size, leaves
