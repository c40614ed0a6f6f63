"""Dropout that does not change with the number of workers: each lane's rows draw their masks from a seed of their own.

`nn.Dropout` draws one mask for all rows of a worker, so two workers sharing a batch would drop other values than one
worker with the whole of it. Here a mask is a function of (seed, step, module, lane), for the modules of the DNA tower
and of the gate. What stays with the worker's own seed: dropout inside attention (BarcodeBERT), in open_clip towers and
of LoRA's updates outside the DNA tower. On a GPU a tower that cuts its tokens to the longest of a call draws by that
length; on a CPU a shorter call meets the beginning of a longer one's mask.

Legend: B rows of a worker's batch, n rows of one call, M rows of a lane in a step.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Rows:
    """What stands in the rows of a tower's latest call: kept until the next, for activations that are made again."""

    seed: str = ""  # of the run and the step
    lanes: list[tuple[int, int]] = field(default_factory=list)  # (first row of the step, rows), in the call's order


class LaneDropout(nn.Dropout):
    """[n, ...] -> the same shape; n = the sum of rows in `rows.lanes`, whatever their number is."""

    def __init__(self, p: float, number: int, rows: Rows) -> None:
        super().__init__(p)
        self.number, self.rows = number, rows

    def forward(self, x: Tensor) -> Tensor:
        """[n, ...] of the rows that `rows` describes -> the same shape; in evaluation mode, or with p = 0, x itself."""
        return x * self._mask(x) if self.training and self.p > 0 else x

    @torch.compiler.disable
    def _mask(self, x: Tensor) -> Tensor:
        """Zeros and 1 / (1 - p), shaped like x."""
        parts, lanes = [], self.rows.lanes
        if len(x) == 1 != sum(count for _, count in lanes):
            lanes = [(-1, 1)]  # no row of the batch: what stands for a missing barcode
        for first, count in lanes:
            generator = torch.Generator(x.device).manual_seed(seed_of(f"{self.rows.seed}/{self.number}/{first}"))
            middle = x.shape[1:-1]  # a sequence goes first: its beginning does not depend on its length
            kept = torch.rand(*middle, count, x.shape[-1], generator=generator, device=x.device) >= self.p
            parts.append(kept.movedim(len(middle), 0))
        mask = torch.cat(parts).to(x.dtype)
        assert len(mask) == len(x), f"masks for {len(mask)} rows, {len(x)} rows came"
        return mask / (1.0 - self.p)


def seed_of(text: str) -> int:
    """Return a seed for torch from what identifies a draw."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


class LaneMasks:
    """Replaces dropout in a Trimodal's DNA tower and gate, and lets it know which rows each call brings."""

    def __init__(self, model: nn.Module, lane_rows: int) -> None:
        """`lane_rows`: M."""
        self._lane_rows = lane_rows
        self._dna, self._gate = Rows(), Rows()
        for number, (name, module) in enumerate(list(model.named_modules())):
            rows = {"dna_encoder": self._dna, "fusion": self._gate}.get(name.split(".")[0])
            if rows is not None and type(module) is nn.Dropout:
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, LaneDropout(module.p, number, rows))
        model.register_forward_pre_hook(self._before)

    def seed(self, text: str) -> None:
        """Set what the masks of the next step are drawn from: the run's seed and the step."""
        self._dna.seed = self._gate.seed = text

    def _before(self, model: nn.Module, arguments: tuple[dict[str, Any]]) -> None:
        """`batch["row"]` [B]: the place of each row in the step's global batch; training's batches have it."""
        (batch,) = arguments
        if "row" in batch:
            everyone = torch.ones_like(batch["valid"])
            self._gate.lanes = self._lanes(batch["row"], everyone)
            self._dna.lanes = self._lanes(batch["row"], batch["valid"] & batch["has_dna"])

    def _lanes(self, row: Tensor, present: Tensor) -> list[tuple[int, int]]:
        # A part of a batch (gradient caching) may start within a lane: then its first row tells it from other parts.
        first = torch.maximum(row // self._lane_rows * self._lane_rows, row[:1])
        starts, counts = torch.unique_consecutive(first[present], return_counts=True)
        return list(zip(starts.tolist(), counts.tolist(), strict=True))
