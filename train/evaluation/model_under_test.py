"""What an evaluation works with: the model, its configuration, the shards' index, and where features are kept."""

import dataclasses
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from engine.batches.pipeline import CpuBudget, cpu_budget, select_split
from engine.config import DegradeConfig
from engine.specimens.taxonomy import Taxonomy
from train.config import Config
from train.evaluation.predict import Encoded, Encoding, encode_split
from train.evaluation.store import FeatureStore, fingerprint
from train.evaluation.subsets import without_provisional
from train.inference.scoring import Scorer
from train.models.trimodal import caption_tokenizer


@dataclass(frozen=True)
class Setting:
    """Model, data and place. `model` is in evaluation mode, on the device to use.

    `cache` is a folder in which encoded features are kept, so that an interrupted evaluation goes on; None = memory.
    """

    model: Any
    config: Config
    taxonomy: Taxonomy
    index: pa.Table  # of all splits
    split: str  # under test
    cache: Path | None = None
    checkpoint: Path | None = None  # folder of the model, where a calibration is kept
    library: Path | None = None  # folder of references to calibrate with; None = those of the train split

    @property
    def device(self) -> torch.device:
        """Return the model's device."""
        return next(self.model.parameters()).device

    @cached_property
    def budget(self) -> CpuBudget | None:
        """What Ray tasks may use when Ray runs in this process; None = inputs are prepared here, one by one."""
        import ray

        return cpu_budget(ray.cluster_resources(), 0, 0.0) if ray.is_initialized() else None

    @cached_property
    def scorer(self) -> Scorer:
        """Return the model's scorer of its own taxonomy."""
        return Scorer(self.model, self.taxonomy, caption_tokenizer(self.model), self.device)

    def rows(self, split: str) -> pa.Table:
        """Return the index rows of one split; ValueError naming the splits that there are."""
        return select_split(self.index, split)

    def has(self, split: str) -> bool:
        """Is there any specimen of this split?"""
        return bool(pc.any(pc.equal(self.index["split"], split)).as_py())

    @cached_property
    def train(self) -> pa.Table:
        """The training rows that are not under test; none where `train` itself is."""
        return self.index.filter(pc.equal(self.index["split"], "train")) if self.split != "train" else self.index[:0]

    def encode(self, rows: pa.Table, name: str, *, noisy: bool = True, degrade: DegradeConfig | None = None) -> Encoded:
        """Encode rows of the index, keeping the features under `name` in the cache.

        `degrade` stands for other damage than the configuration's; then only the damaged form is encoded.
        """
        data = self.config.data if degrade is None else dataclasses.replace(self.config.data, degrade=degrade)
        store = None
        if self.cache is not None:
            keys = rows["key"].to_pylist()
            plain = dataclasses.replace(data, shards=())
            sizes = [rows[column].to_pylist() for column in ("image_size", "dna_size")]
            print_of = fingerprint(self.model, keys, plain, self.taxonomy.fingerprint, noisy, sizes)
            store = FeatureStore(len(rows), self.cache / name, print_of)
        return encode_split(
            self.model,
            rows,
            self.taxonomy,
            data,
            Encoding(
                batch_size=self.config.eval.batch_size,
                device=self.device,
                budget=self.budget,
                clean=degrade is None,
                noisy=noisy,
            ),
            store,
        )

    def encoded(self, split: str, *, noisy: bool = True) -> Encoded:
        """Features of one split, made once; species labels that name no species are left out of its labels."""
        name = split if noisy else f"{split}_clean"
        if name not in self._encoded and not (not noisy and split in self._encoded):
            self._encoded[name] = self.encode(without_provisional(self.rows(split))[0], name, noisy=noisy)
        return self._encoded.get(name) or self._encoded[split]

    @cached_property
    def _encoded(self) -> dict[str, Encoded]:
        return {}

    def forget(self) -> None:
        """Delete the cache."""
        if self.cache is not None:
            shutil.rmtree(self.cache, ignore_errors=True)
