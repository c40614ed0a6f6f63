"""A split through the model: features of every specimen, clean and damaged, and the queries made of them.

Legend: N specimens, b rows of a batch, D embedding, R ranks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from engine.batches.pipeline import CpuBudget, evaluation_batches
from engine.config import DataConfig
from engine.specimens.taxonomy import RANKS, Taxonomy
from train.evaluation.store import FeatureStore
from train.inference.experts import sharpness
from train.inference.looks import looks
from train.inference.scoring import Scorer
from train.metrics import prefix

MODALITIES = ("image", "dna")
SHARPNESS, LOOKS = "sharpness", "looks"
QUERY_ROWS = 8192  # specimens whose features are in memory at once

QUERIES: dict[str, dict[str, tuple[str, ...]]] = {
    "image": {"clean": ("image",), "noisy": ("image_noisy",)},
    "dna": {"clean": ("dna",), "noisy": ("dna_noisy",)},
    "average": {
        "clean": ("image", "dna"),
        "noisy_dna": ("image", "dna_noisy"),
        "noisy_both": ("image_noisy", "dna_noisy"),
    },
    "fused": {
        "clean": ("image", "dna"),
        "noisy_dna": ("image", "dna_noisy"),
        "noisy_both": ("image_noisy", "dna_noisy"),
    },
}
"""query -> condition -> the features it is made of."""


@dataclass(frozen=True)
class Encoded:
    """The features of N specimens, in the order of the index; zero rows where a modality is missing or unreadable."""

    keys: list[str]
    labels: np.ndarray  # int64 [N, R], -1 = unknown
    has_image: np.ndarray  # bool [N]
    has_dna: np.ndarray  # bool [N]
    features: Mapping[str, Any]  # image, image_noisy, dna, dna_noisy -> float32 [N, D], or a StoredArray of it; and
    # sharpness, sharpness_noisy -> float32 [N, 1]; looks, looks_noisy -> float32 [N, looks.NUMBERS]

    @property
    def has_both(self) -> np.ndarray:
        """Return who has photo and barcode, bool [N]."""
        return self.has_image & self.has_dna

    def mask(self, query: str) -> np.ndarray:
        """Return the specimens that have what the query needs, bool [N]."""
        return {"image": self.has_image, "dna": self.has_dna}.get(query, self.has_both)

    def rows(self, query: str) -> Iterator[np.ndarray]:
        """Return the specimens of `mask`, int64 [n] row numbers, QUERY_ROWS at a time."""
        everyone = np.flatnonzero(self.mask(query))
        return (everyone[first : first + QUERY_ROWS] for first in range(0, len(everyone), QUERY_ROWS))

    def query(
        self, name: str, condition: str, fuse: Callable[[Tensor, Tensor], Tensor], rows: np.ndarray | None = None
    ) -> np.ndarray:
        """Return unit features [n, D] of one query of `QUERIES`, for the row numbers [n], by default all of its `mask`.

        `average` is the normalised mean of the two; `fused` is what `fuse` makes of them.
        """
        chosen = np.flatnonzero(self.mask(name)) if rows is None else rows
        parts = [self.features[part][chosen] for part in QUERIES[name][condition]]
        return combined(name, parts, fuse)


def combined(query: str, parts: Sequence[np.ndarray], fuse: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    """Return unit features [n, D] of a query from those it is made of: [image], [dna], or [image, dna]."""
    if query == "average":
        return F.normalize(torch.from_numpy(parts[0] + parts[1]), dim=1).numpy()
    if query == "fused":
        with torch.inference_mode():
            pairs = zip(*(torch.from_numpy(part).split(QUERY_ROWS) for part in parts), strict=True)
            fused = [fuse(image, dna).float().cpu() for image, dna in pairs]
        return torch.cat(fused).numpy() if fused else parts[0]
    return parts[0]


@torch.inference_mode()
def encode_batch(
    model: Any, batch: Mapping[str, Any], device: torch.device | str = "cpu", *, clean: bool = True, noisy: bool = True
) -> dict[str, Tensor]:
    """Return features [b, D] of a batch on `device`, as they are (`clean`) and damaged (`noisy`).

    Of photos sharpness [b, 1] and `looks`, too. Rows of zeros where a modality is missing; one that no row has is left
    out.
    """
    result = {}
    for suffix in [name for name, wanted in (("", clean), ("_noisy", noisy)) if wanted]:
        for modality in MODALITIES:
            rows = (batch["valid"] & batch[f"has_{modality}"]).nonzero()[:, 0]
            if not len(rows):
                continue
            if modality == "image":
                features = model.encode_image(batch[f"image{suffix}"][rows].to(device)).float()
                views = [view.numpy() for view in batch[f"image{suffix}"][rows]]
                seen = {SHARPNESS: np.array([[sharpness(view)] for view in views], dtype=np.float32)}
                seen[LOOKS] = np.stack([looks(view) for view in views])
                for name, values in seen.items():
                    nothing = torch.zeros(len(batch["valid"]), values.shape[1])
                    result[name + suffix] = nothing.index_copy(0, rows, torch.from_numpy(values))
            else:
                parts = (batch[f"dna_{part}{suffix}"][rows].to(device) for part in ("tokens", "mask"))
                features = model.encode_dna(*parts).float()
            everyone = features.new_zeros(len(batch["valid"]), features.shape[1])
            result[modality + suffix] = everyone.index_copy(0, rows.to(device), features)
    return result


def only(index: pa.Table, modality: str) -> pa.Table:
    """Return the rows of the index that have `modality`, without the other, which is then not read."""
    rows = index.filter(pa.compute.greater(index[f"{modality}_size"], 0))
    return lacking(rows, "dna" if modality == "image" else "image")


def lacking(rows: pa.Table, modality: str) -> pa.Table:
    """Return rows of the index as if no specimen had `modality`."""
    for part, nothing in (("size", 0), ("offset", -1)):
        column = rows.column_names.index(f"{modality}_{part}")
        rows = rows.set_column(column, f"{modality}_{part}", pa.array(np.full(len(rows), nothing, dtype=np.int64)))
    return rows


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a split is encoded."""

    batch_size: int = 256
    device: torch.device | str = "cpu"
    budget: CpuBudget | None = None  # of Ray tasks; None = inputs are prepared in this process
    clean: bool = True  # encode specimens as they are
    noisy: bool = True  # encode them damaged


def encode_split(
    model: Any,
    index: pa.Table,
    taxonomy: Taxonomy,
    data: DataConfig,
    how: Encoding = Encoding(),
    store: FeatureStore | None = None,
) -> Encoded:
    """Encode every specimen of `index` (rows of `engine.batches.pipeline.load_index`) once, with a progress bar.

    A specimen of which nothing can be read has neither modality; the pipeline logs its key.

    Args:
        model: in evaluation mode, on the device of `how`.
        index: rows to encode.
        taxonomy: numbers the labels.
        data: views and tokens.
        how: batch size, device and which forms are encoded.
        store: where the features go, as many rows as `index`; what it holds already is not made again.
    """
    count = len(index)
    kept = FeatureStore(count) if store is None else store
    first = kept.done
    bar = tqdm(total=count, initial=first, desc="encoding", unit=" specimens", disable=None, leave=False)
    rest = index.slice(first)
    for batch in evaluation_batches(rest, taxonomy, data, how.batch_size, how.budget) if len(rest) else ():
        rows = min(len(batch["valid"]), count - first)
        values = {"labels": batch["labels"], **encode_batch(model, batch, how.device, clean=how.clean, noisy=how.noisy)}
        present = (("has_image", batch["has_image"]), ("has_dna", batch["has_dna"]))
        values |= {name: batch["valid"] & there for name, there in present}
        kept.write(first, {name: value[:rows].cpu().numpy() for name, value in values.items()})
        first += rows
        kept.commit(first)
        bar.update(rows)
    bar.close()
    assert first == count, f"the pipeline gave {first} of {count} specimens"
    known = {name: kept.arrays[name][:] for name in ("labels", "has_image", "has_dna")}
    features = {name: kept.arrays[name] for name in kept.arrays if name not in known}
    return Encoded(keys=index["key"].to_pylist(), features=features, **known)


def _quick_queries(
    model: Any, batch: Mapping[str, Any], device: torch.device | str, noisy: bool
) -> Iterator[tuple[tuple[str, str], Tensor, Tensor]]:
    """((query, condition), rows, unit features of these rows) of a batch: image, dna, fused."""
    features = encode_batch(model, batch, device, noisy=noisy)
    present = {name: batch["valid"] & batch[f"has_{name}"] for name in MODALITIES}
    present["fused"] = present["image"] & present["dna"]
    for query, rows in present.items():
        for condition, parts in QUERIES[query].items():
            if rows.any() and all(part in features for part in parts):
                values = [features[part][rows.to(features[part].device)] for part in parts]
                yield (query, condition), rows, model.fuse(*values).float() if query == "fused" else values[0]


@torch.inference_mode()
def accuracy_of(
    scorer: Scorer, batches: Iterable[Mapping[str, Any]], split: str = "val", noisy: bool = False
) -> dict[str, float]:
    """Quick validation: micro top-1 per rank by roll-up for image, dna and fused.

    Args:
        scorer: made anew for every state of its model, which is put into evaluation mode meanwhile.
        batches: of `evaluation_batches`.
        split: first part of the metrics' names.
        noisy: answer from damaged inputs, too; else their columns are not needed.

    Returns:
        `val/dna/clean/species/top1` and `.../rows`, with `noisy` also `val/dna/noisy/...` and
        `val/fused/noisy_both/...`; what no specimen has is left out.
    """
    model = scorer.model
    training = model.training
    model.eval()
    try:
        right: dict[tuple[str, str], np.ndarray] = {}
        total: dict[tuple[str, str], np.ndarray] = {}
        for batch in batches:
            for query, rows, features in _quick_queries(model, batch, scorer.device, noisy):
                position = scorer.rank(features, batch["labels"][rows].numpy()).position[:, : len(RANKS)]
                right[query] = right.get(query, 0) + (position == 0).sum(axis=0)
                total[query] = total.get(query, 0) + (position >= 0).sum(axis=0)
    finally:
        model.train(training)
    return _shares(right, total, split)


def _shares(
    right: Mapping[tuple[str, str], np.ndarray], total: Mapping[tuple[str, str], np.ndarray], split: str
) -> dict[str, float]:
    result: dict[str, float] = {}
    for asked in right:
        for column, rank in enumerate(RANKS):
            if total[asked][column]:
                start = f"{prefix(split, *asked)}/{rank}"
                result[f"{start}/top1"] = float(right[asked][column] / total[asked][column])
                result[f"{start}/rows"] = int(total[asked][column])
    return result
