"""Eight specimens of six species with planted features, and what an evaluation makes of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.specimens.taxonomy import RANKS, Taxonomy
from train.evaluation import predict, top1_accuracy
from train.inference.scoring import Scorer

NAMES = [("A", "Aa", "Aaa", f"Aaa s{i}") for i in range(3)] + [("B", "Bb", "Bbb", f"Bbb s{i}") for i in range(3)]
LABELS = np.array([0, 1, 2, 3, 4, 5, 0, 3])  # species of eight specimens
HAS_IMAGE = np.array([1, 1, 1, 1, 1, 1, 0, 1], dtype=bool)
HAS_DNA = np.array([1, 1, 1, 1, 1, 0, 1, 1], dtype=bool)
IMAGE_SAYS = np.array([0, 1, 0, 3, 3, 5, 0, 3])  # wrong for specimens 2 and 4, in the right genus
NOISY_IMAGE_SAYS = np.array([3, 4, 5, 3, 3, 5, 0, 0])
DNA_SAYS = np.array([0, 1, 2, 3, 4, 0, 0, 3])
NOISY_DNA_SAYS = np.array([0, 1, 2, 0, 4, 0, 1, 3])


def columns(rows: list[tuple[str | None, ...]]) -> dict[str, list[str | None]]:
    return {rank: [row[i] for row in rows] for i, rank in enumerate(RANKS)}


class PlantedModel(torch.nn.Module):
    """Species i is the i-th axis in every modality; an image's first pixel and a barcode's first token name it."""

    logit_scale = torch.tensor(10.0)

    def __init__(self, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.species = {name: i for i, name in enumerate(taxonomy.names[3])}
        self.rows_seen = 0

    def tokenizer(self, captions: list[str]) -> Tensor:
        places = [next((i for name, i in self.species.items() if c.endswith(name)), 6 + len(c)) for c in captions]
        return torch.tensor(places)[:, None]

    def encode_text(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens[:, 0], 16).float()

    def encode_image(self, image: Tensor) -> Tensor:
        self.rows_seen += len(image)
        return F.one_hot(image[:, 0, 0, 0].long(), 16).float()

    def encode_dna(self, tokens: Tensor, mask: Tensor) -> Tensor:
        assert mask.any(dim=1).all(), "a specimen without a barcode entered the encoder"
        return F.one_hot(tokens[:, 0] - 1, 16).float()

    def fuse(self, image: Tensor, dna: Tensor) -> Tensor:
        return F.normalize(0.1 * image + dna, dim=1)


@pytest.fixture
def taxonomy() -> Taxonomy:
    return Taxonomy.build(columns(list(NAMES)))


def batches(taxonomy: Taxonomy, size: int = 3) -> Iterator[dict[str, Any]]:
    """The eight specimens as padded batches; what is missing holds rubbish."""
    labels = taxonomy.encode(columns([NAMES[i] for i in LABELS]))
    for first in range(0, 8, size):
        rows = np.arange(first, min(8, first + size))
        pad = size - len(rows)

        def padded(values: np.ndarray, fill: int = 0, rows: np.ndarray = rows, pad: int = pad) -> Tensor:
            chosen = values[rows]
            return torch.from_numpy(np.concatenate([chosen, np.full((pad, *chosen.shape[1:]), fill, chosen.dtype)]))

        def image(species: np.ndarray) -> np.ndarray:
            return np.broadcast_to(species.astype(np.uint8)[:, None, None, None], (8, 2, 2, 3)).copy()

        def tokens(species: np.ndarray) -> np.ndarray:
            return (np.where(HAS_DNA, species + 1, 0))[:, None]

        yield {
            "keys": [f"k{i}" for i in rows] + [""] * pad,
            "valid": padded(np.ones(8, dtype=bool)),
            "labels": padded(labels, -1),
            "has_image": padded(HAS_IMAGE),
            "has_dna": padded(HAS_DNA),
            "image": padded(image(IMAGE_SAYS)),
            "image_noisy": padded(image(NOISY_IMAGE_SAYS)),
            "dna_tokens": padded(tokens(DNA_SAYS)),
            "dna_mask": padded(tokens(DNA_SAYS) > 0),
            "dna_tokens_noisy": padded(tokens(NOISY_DNA_SAYS)),
            "dna_mask_noisy": padded(tokens(NOISY_DNA_SAYS) > 0),
        }


@pytest.fixture
def encoded(taxonomy: Taxonomy, monkeypatch: pytest.MonkeyPatch) -> predict.Encoded:
    monkeypatch.setattr(predict, "evaluation_batches", lambda *arguments: batches(taxonomy))
    index = pa.table({"key": [f"k{i}" for i in range(8)]})
    return predict.encode_split(PlantedModel(taxonomy), index, taxonomy, None)


@pytest.fixture
def parts() -> top1_accuracy.Subsets:
    group = np.array([0, 0, 1, 2, 3, 4, 5, 2])
    novel = np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=bool)
    return top1_accuracy.Subsets(group=group, novel=novel, both=HAS_IMAGE & HAS_DNA)


@pytest.fixture
def rankings(taxonomy: Taxonomy, encoded: predict.Encoded) -> top1_accuracy.Rankings:
    model = PlantedModel(taxonomy)
    return top1_accuracy.rank_queries(model, Scorer(model, taxonomy, model.tokenizer), encoded)


@pytest.fixture
def values(
    rankings: top1_accuracy.Rankings, encoded: predict.Encoded, parts: top1_accuracy.Subsets
) -> dict[str, float]:
    return top1_accuracy.measure("test", rankings, encoded, parts, resamples=50)


def specimen_index() -> pa.Table:
    return pa.table({rank: [NAMES[i][r] for i in LABELS] for r, rank in enumerate(RANKS)})
