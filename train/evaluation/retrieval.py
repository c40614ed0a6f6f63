"""CLIBD's protocol: queries of one modality retrieve keys of another; a retrieved key is right when its taxon is.

Keys: the specimens of train (species seen in training) and of key_unseen (species not seen), or the distinct captions
of these. Queries: the specimens of the split under test (seen) and of its `_unseen` counterpart. A query counts as
right at k when one of the k keys of highest cosine has its taxon. At each rank only keys with a label are candidates.
The harmonic mean is that of seen and unseen; shards without unseen species have the seen half only.

Legend: N queries, M keys, D embedding, R ranks, k keys retrieved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from engine import html, markdown
from engine.batches.pipeline import label_columns
from engine.html import Section
from engine.specimens.captions import caption
from engine.specimens.taxonomy import RANKS, Taxonomy
from train import metrics
from train.evaluation import subsets
from train.evaluation.model_under_test import Setting

TOP = (1, 3, 5)
MODALITIES = ("image", "dna", "text")
KEY_SPLITS = ("train", "key_unseen")
BLOCK = 4096
PARTS = ("seen", "unseen", "harmonic")


@dataclass(frozen=True)
class Side:
    """Queries or keys of one modality."""

    features: torch.Tensor  # float32 [N, D], unit rows
    labels: np.ndarray  # int64 [N, R], -1 = unknown
    group: np.ndarray  # int64 [N], specimens that are resampled together


@torch.inference_mode()
def nearest(queries: torch.Tensor, keys: torch.Tensor, k: int) -> np.ndarray:
    """Return the k keys of highest cosine, best first: int64 [N, min(k, M)]. Done in blocks."""
    found = []
    for rows in queries.split(BLOCK):
        score, place = torch.zeros(len(rows), 0), torch.zeros(len(rows), 0, dtype=torch.int64)
        score, place = score.to(rows.device), place.to(rows.device)
        for first in range(0, len(keys), BLOCK):
            cosine = rows @ keys[first : first + BLOCK].T
            columns = torch.arange(first, first + cosine.shape[1], device=rows.device).expand_as(cosine)
            score, place = torch.cat([score, cosine], 1), torch.cat([place, columns], 1)
            score, chosen = score.topk(min(k, score.shape[1]), dim=1)
            place = place.gather(1, chosen)
        found.append(place.cpu().numpy())
    return np.concatenate(found)


def retrieved(queries: Side, keys: Side, k: int = TOP[-1]) -> np.ndarray:
    """Return the place of the first right key among the k retrieved ones, per rank: int32 [N, R].

    It is MISSED without one, and UNSCORED where the query has no label or no key has one.
    """
    result = np.full(queries.labels.shape, metrics.UNSCORED, dtype=np.int32)
    known = keys.labels >= 0
    done: dict[bytes, np.ndarray] = {}  # ranks at which the same keys have labels share one search
    for rank in range(queries.labels.shape[1]):
        rows = np.flatnonzero(known[:, rank])
        if not len(rows) or not len(queries.labels):
            continue
        mark = known[:, rank].tobytes()
        if mark not in done:
            done[mark] = rows[nearest(queries.features, keys.features[rows], k)]
        truth = queries.labels[:, rank]
        right = keys.labels[done[mark], rank] == truth[:, None]
        result[:, rank] = np.where(right.any(axis=1), right.argmax(axis=1), metrics.MISSED)
        result[truth < 0, rank] = metrics.UNSCORED
    return result


def accuracies(position: np.ndarray, side: Side, resamples: int) -> dict[str, float]:
    """`<rank>/<top1 | macro_top1 | ...>`, the number of rows, and 95% intervals of the top-1."""
    result: dict[str, float] = {}
    for column, rank in enumerate(RANKS):
        scored = position[:, column] != metrics.UNSCORED
        kinds = np.where(scored, side.labels[:, column], -1)
        result[f"{rank}/rows"] = int(scored.sum())
        for k in TOP:
            correct = metrics.hits(position[:, column], k)
            result[f"{rank}/top{k}"] = metrics.micro(correct, scored)
            result[f"{rank}/macro_top{k}"] = metrics.macro(correct, kinds)
        correct = metrics.hits(position[:, column], 1)
        bounds = metrics.intervals(correct[:, None], scored[:, None], side.group, resamples)[0].tolist()
        result[f"{rank}/top1_low"], result[f"{rank}/top1_high"] = bounds
        low, high = metrics.macro_interval(correct, kinds, side.group, resamples)
        result[f"{rank}/macro_top1_low"], result[f"{rank}/macro_top1_high"] = low, high
    return result


def harmonic(first: float, second: float) -> float:
    """Harmonic mean of two shares; 0 where one is 0."""
    return 2 * first * second / (first + second) if first + second > 0 else 0.0


class Specimens:
    """The specimens of some splits with their features and captions, labelled by a taxonomy of all that take part."""

    def __init__(self, setting: Setting, splits: Sequence[str], taxonomy: Taxonomy) -> None:
        self.setting, self.taxonomy = setting, taxonomy
        self.encoded = [setting.encoded(split, noisy=False) for split in splits]
        rows = [named_rows(setting, split) for split in splits]
        self.labels = taxonomy.encode(label_columns(pa.concat_tables(rows)))
        self.group = subsets.barcode_groups([text for part in rows for text in subsets.read_barcodes(part)])

    def side(self, modality: str, *, distinct: bool = False) -> Side | None:
        """All that have the modality; None where nobody has. `distinct`: equal captions once."""
        if modality == "text":
            return self._captions(distinct)
        mask = np.concatenate([part.mask(modality) for part in self.encoded])
        if not mask.any():
            return None
        parts = [part.features[modality][part.mask(modality)] for part in self.encoded if part.mask(modality).any()]
        features = torch.from_numpy(np.concatenate(parts)).to(self.setting.device)
        return Side(features, self.labels[mask], self.group[mask])

    def _captions(self, distinct: bool) -> Side | None:
        named = np.flatnonzero((self.labels >= 0).any(axis=1))
        if not len(named):
            return None
        lineages, inverse = np.unique(self.labels[named], axis=0, return_inverse=True)
        features = self.setting.scorer.encode([caption(self.taxonomy.lineage_names(row)) for row in lineages.tolist()])
        if distinct:
            return Side(features, lineages, np.arange(len(lineages)))
        return Side(features[torch.from_numpy(inverse).to(features.device)], self.labels[named], self.group[named])


def named_rows(setting: Setting, split: str) -> pa.Table:
    """Index rows of a split whose species labels are species."""
    return subsets.without_provisional(setting.rows(split))[0]


def measure(setting: Setting) -> dict[str, float]:
    """Every pair of modalities: `test/retrieval/image_to_dna/unseen/species/macro_top1`.

    Raises:
        ValueError: when the shards have no keys apart from the split under test.
    """
    split = setting.split
    keys_of = [name for name in KEY_SPLITS if setting.has(name) and name != split]
    if not keys_of:
        raise ValueError(f"retrieval needs keys: specimens of {' or '.join(KEY_SPLITS)} beside those of {split}")
    queries_of = {"seen": split, "unseen": f"{split}_unseen"}
    queries_of = {part: name for part, name in queries_of.items() if setting.has(name)}
    rows = pa.concat_tables([named_rows(setting, name) for name in (*keys_of, *queries_of.values())])
    taxonomy = Taxonomy.build(label_columns(rows))
    keys = Specimens(setting, keys_of, taxonomy)
    queries = {part: Specimens(setting, [name], taxonomy) for part, name in queries_of.items()}
    result: dict[str, float] = {}
    pairs = [(one, other) for one in MODALITIES for other in MODALITIES]
    for one, other in tqdm(pairs, desc="retrieval", unit=" pairs", disable=None, leave=False):
        library = keys.side(other, distinct=True)
        if library is None:
            continue
        start = f"{split}/retrieval/{one}_to_{other}"
        for part, specimens in queries.items():
            asked = specimens.side(one)
            if asked is not None:
                found = accuracies(retrieved(asked, library), asked, setting.config.eval.bootstrap)
                result |= {f"{start}/{part}/{name}": value for name, value in found.items()}
    return result | harmonics(result)


def harmonics(values: Mapping[str, float]) -> dict[str, float]:
    """Return the harmonic means of all shares that exist for seen and unseen."""
    pairs = [(name, name.replace("/seen/", "/unseen/")) for name in values if "/seen/" in name and "top" in name]
    pairs = [pair for pair in pairs if pair[1] in values and not pair[0].endswith(("_low", "_high"))]
    return {one.replace("/seen/", "/harmonic/"): harmonic(values[one], values[other]) for one, other in pairs}


def section(values: Mapping[str, float], split: str) -> Section:
    """Return the tables of the page, made of the metrics."""
    blocks = [
        html.paragraph(
            "One modality retrieves another among the training specimens (and, where there are any, the keys of unseen "
            "species): top-1 in %, with 95% intervals. Text keys are the distinct captions."
        )
    ]
    for average, name in (("macro_", "mean over species (CLIBD's figure)"), ("", "every specimen the same")):
        shown = _table(values, split, "species", f"{average}top1")
        blocks += [html.paragraph(f"Species, {name}"), shown]
    folded: list[str] = []
    for rank in reversed(RANKS):
        for average in ("macro_", ""):
            for k in TOP if rank == "species" else TOP[:1]:
                if rank == "species" and k == 1:
                    continue
                folded += [html.paragraph(f"{rank}, {average}top{k}"), _table(values, split, rank, f"{average}top{k}")]
    return Section("Retrieval", [*blocks, html.folded("Other ranks, and k = 3 and 5", *folded)])


def _table(values: Mapping[str, float], split: str, rank: str, what: str) -> str:
    rows: list[list[Any]] = []
    for one in MODALITIES:
        for other in MODALITIES:
            keys = [f"{split}/retrieval/{one}_to_{other}/{part}/{rank}/{what}" for part in PARTS]
            if any(key in values for key in keys):
                count = values.get(f"{split}/retrieval/{one}_to_{other}/seen/{rank}/rows", 0)
                cells = [markdown.with_interval(values, key) for key in keys]
                rows.append([one, other, *cells, f"{count:,.0f}"])
    return html.table(["query", "key", *PARTS, "seen queries"], rows)
