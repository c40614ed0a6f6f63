"""Prepared numpy columns -> a Batch of torch tensors. The only file of `engine` that imports torch.

Legend: B specimens, S image side in pixels, L tokens, R ranks.
"""

import warnings
from collections.abc import Mapping
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

TOKEN_COLUMNS = ("dna_tokens", "dna_tokens_noisy")


class Batch(TypedDict):
    """One worker's batch. Rows that are not `valid` (padding, or a specimen that could not be read) count nowhere."""

    keys: list[str]
    valid: Tensor  # bool [B]
    image: Tensor  # uint8 [B, S, S, 3]; all zero where has_image is False
    has_image: Tensor  # bool [B]
    dna_tokens: Tensor  # int64 [B, L]
    dna_mask: Tensor  # bool [B, L], True = real token
    has_dna: Tensor  # bool [B]
    labels: Tensor  # int64 [B, R], -1 = unknown
    caption: Tensor  # int64 [B, R], the labels that the caption names
    bin: Tensor  # int64 [B], -1 = unknown
    barcode: Tensor  # int64 [B], equal for equal cleaned barcodes, -1 = none
    image_view2: NotRequired[Tensor]  # training: the second augmented view
    image_noisy: NotRequired[Tensor]  # evaluation
    dna_tokens_noisy: NotRequired[Tensor]
    dna_mask_noisy: NotRequired[Tensor]
    withheld: NotRequired[Tensor]  # uint8 [B], training: what the fusion does not get, 1 = the photo, 2 = the barcode
    problems: NotRequired[list[str]]  # "KEY: what could not be used of it", [] nearly always
    text_tokens: NotRequired[Tensor]  # int64 [U, T], the unique captions; added by the training loop
    text_index: NotRequired[Tensor]  # int64 [B], row of text_tokens, -1 = no caption
    hidden: NotRequired[Tensor]  # bool [B, L], tokens that pretraining hides; added by the training loop
    row: NotRequired[Tensor]  # int64 [B], place in the step's global batch; added by the training loop


def collate(columns: Mapping[str, np.ndarray], pad_to: int = 0) -> Batch:
    """Turn columns of `engine.batches.prepare.Prepare` into a Batch, padded with invalid rows up to `pad_to`.

    Photos may stay where Ray keeps them, in read-only pages of the object store (copying a batch costs a core a seventh
    of its time): nobody may write into a batch. Where no specimen of the run has an image the pipeline sends images of
    side 0, and so they stay.
    """
    missing = max(0, pad_to - len(columns["key"]))
    batch: dict[str, object] = {"keys": [str(key) for key in columns["key"]] + [""] * missing}
    if "problem" in columns:
        rows = np.flatnonzero(np.asarray(columns["problem"]) != "").tolist()
        batch["problems"] = [f"{columns['key'][row]}: {columns['problem'][row]}" for row in rows]
    for name, values in columns.items():
        if name in ("key", "problem"):
            continue
        values = np.asarray(values)
        if name in TOKEN_COLUMNS or name in ("labels", "caption", "bin", "barcode"):
            values = values.astype(np.int64)
        if missing:
            fill = -1 if name in ("labels", "caption", "bin", "barcode") else 0
            tail = np.full((missing, *values.shape[1:]), fill, dtype=values.dtype)
            values = np.concatenate([values, tail])
        batch[name] = _tensor(values)
        if name in TOKEN_COLUMNS:
            batch[name.replace("tokens", "mask")] = _tensor(values != 0)
    return batch  # type: ignore[return-value]


def _tensor(values: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(values))
