"""A run small enough for a test: tiny towers on the shards of the `simulated_shards` fixture."""

from pathlib import Path

import torch

from engine.batches.pipeline import label_columns, load_index, select_split
from engine.specimens.taxonomy import Taxonomy
from train.config import Config, override
from train.learning.loop import Session

SETTINGS = (
    "data.image_size=32",
    "model.embed_dim=32",
    "model.dna_width=64",
    "model.dna_depth=1",
    "model.dropout=0",
    "data.kmer=4",
    "run.global_batch_size=32",
    "run.epochs=4",
    "run.validate_every=4",
    "run.tracking=none",
    "eval.bootstrap=20",
    "optim.max_lr=1e-3",
    "run.threads=1",
)


def small_config(shards: Path | str, *assignments: str) -> Config:
    """The small run with some settings changed."""
    return override(Config(), [f"data.shards={shards}", *SETTINGS, *assignments])


def small_session(config: Config) -> Session:
    """One worker's training of the small run, in this process."""
    index = load_index(config.data.shards)
    taxonomy = Taxonomy.build(label_columns(select_split(index, "train")))
    return Session(config, index, taxonomy, torch.device("cpu"))
