"""Features of references and queries by a checkpoint's towers, and their exact nearest neighbours.

Legend: N queries, M references, D dimensions, K neighbours, b rows of a batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from engine.config import DataConfig
from engine.signals import barcodes, images

_CHUNK = 1 << 16  # references compared at a time
_BATCH = 64  # photos or barcodes encoded at a time


class Encoder:
    """Photos and barcodes -> unit features, with the views and tokens of the evaluation; the model is in eval mode."""

    def __init__(self, model: Any, data: DataConfig) -> None:
        self.model, self.data = model, data
        self.device = next(model.parameters()).device
        self._tokenizer = barcodes.make_tokenizer(data)

    def view(self, photo: bytes) -> np.ndarray:
        """Decode a photo's file as the model sees it, uint8 [S, S, 3]. Raises ValueError for what is no photo."""
        return images.evaluation_view(images.decode(photo, self.data.image_size), self.data.image_size)

    def images(self, views: Sequence[np.ndarray | None]) -> np.ndarray:
        """Encode what `view` returns, None = no photo -> float32 [n, D], zeros there."""
        return self._encode(
            views, lambda batch: self.model.encode_image(torch.from_numpy(np.stack(batch)).to(self.device))
        )

    def dna(self, sequences: Sequence[str]) -> np.ndarray:
        """Clean barcodes, "" = none -> float32 [n, D], zeros there."""

        def encode(batch: list[str]) -> torch.Tensor:
            tokens = self._tokenizer.encode(barcodes.orient_batch(batch) if self.data.orient else batch)
            rows = torch.from_numpy(tokens.astype(np.int64)).to(self.device)
            return self.model.encode_dna(rows, rows != barcodes.PAD)

        return self._encode(sequences, encode)

    @torch.inference_mode()
    def _encode(self, given: Sequence[Any], encode: Callable[[list[Any]], torch.Tensor]) -> np.ndarray:
        result = np.zeros((len(given), self.model.embed_dim), dtype=np.float32)
        rows = np.array([row for row, one in enumerate(given) if one is not None and len(one)], dtype=np.int64)
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            result[batch] = encode([given[row] for row in batch.tolist()]).float().cpu().numpy()
        return result


def nearest_features(queries: np.ndarray, references: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the K references of highest cosine, compared with all of them in chunks.

    Args:
        queries: unit rows [N, D].
        k: neighbours wanted.
        references: unit rows [M, D] of any float type, memory-mapped or not; rows of zeros are no references.

    Returns:
        places int64 [N, K], best first, -1 where there are fewer references; cosines float32 [N, K], -inf there.
    """
    asked = torch.from_numpy(np.asarray(queries, dtype=np.float32))
    best = torch.full((len(asked), k), -torch.inf)
    place = torch.full((len(asked), k), -1)
    for start in range(0, len(references), _CHUNK):
        known = torch.from_numpy(np.asarray(references[start : start + _CHUNK], dtype=np.float32))
        cosine = asked @ known.T
        cosine[:, ~known.any(dim=1)] = -torch.inf
        found, at = cosine.topk(min(k, len(known)), dim=1)
        found, order = torch.cat([best, found], dim=1).sort(dim=1, descending=True, stable=True)
        place = torch.cat([place, at + start], dim=1).gather(1, order)[:, :k]
        best = found[:, :k]
    place[best == -torch.inf] = -1
    return place.numpy(), best.numpy()
