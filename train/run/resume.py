"""Go on with a run where it lies, with the settings that may change: each is used, or refused before anything starts.

run.json + the folder's own place + --set  ->  configuration  ->  checkpoint  ->  optimizer and schedule
"""

import dataclasses
import hashlib
import logging
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.store.shards import MANIFEST_NAME
from train.config import Config, flatten, from_dict, override, to_dict
from train.learning.loop import Session
from train.models.checkpoint import read_json
from train.run import commits
from train.run.folder import RECORD

log = logging.getLogger(__name__)

# What a checkpoint's weights or its order of specimens stand on. Everything else is read anew by every start.
FIXED = (
    "recipe",
    "model.",
    "data.image_size",
    "data.tokenizer",
    "data.kmer",
    "data.max_nucleotides",
    "data.orient",
    "data.lanes",
    "data.window",
    "data.partners",
    "loss.objective",
    "loss.mask_share",
    "loss.decoder_layers",
    "loss.rank_heads_weight",
    "run.name",
    "run.storage",
    "run.seed",
    "run.global_batch_size",
    "run.fusion_",
    "run.experiment",
)
FREE = ("model.dropout", "model.lora_dropout", "model.gradient_checkpointing")


def reopened(folder: Path, overrides: Iterable[str]) -> Config:
    """Return the configuration of the run in a folder: what it began with, its own place, then the overrides.

    Raises ValueError for an override that could not be used.
    """
    before = at_place(from_dict(read_json(folder / RECORD).get("config", {})), folder)
    overrides = [one for one in overrides if one.partition("=")[0] != "run.storage"]  # it said where to look
    config = override(before, overrides)
    changes = changed(before, config)
    for key, (old, new) in changes.items():
        if key.startswith(FIXED) and key not in FREE:
            raise ValueError(
                f"--resume {folder.name}: --set {key}: got {new!r}, allowed: {old!r}, with which the run began; "
                "start another run for another value"
            )
    if "run.epochs" in changes and config.run.fusion_training == "posthoc":
        raise ValueError(f"--resume {folder.name}: run.epochs cannot change with run.fusion_training=posthoc")
    for key, (old, new) in changes.items():
        log.info("from here on %s is %s (was %s)", key, new, old)
    return config


def changed(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Return key -> (old, new) of the settings that differ."""
    old, new = flatten(to_dict(before)), flatten(to_dict(after))
    return {key: (old[key], new[key]) for key in new if old[key] != new[key]}


def at_place(config: Config, folder: Path) -> Config:
    """Return the configuration with the folder's name and storage, and shards that were moved with the storage."""
    before = Path(config.run.storage)
    shards = tuple(_moved(shard, before, folder.parent) for shard in config.data.shards)
    return dataclasses.replace(
        config,
        run=override(config, [f"run.name={folder.name}", f"run.storage={folder.parent}"]).run,
        data=dataclasses.replace(config.data, shards=shards),
    )


def _moved(shard: str, before: Path, now: Path) -> str:
    """Return where shards below the old storage lie below the new one; the same place when they are not there."""
    path = Path(shard)
    if before != now and path.is_relative_to(before):
        beside = now / path.relative_to(before)
        if (beside / MANIFEST_NAME).is_file():
            return str(beside)
    return shard


def came_from(record: Mapping[str, Any], folder: Path) -> Path | None:
    """Return the run that a folder is a copy of: it still stands at the place that the record names; else None."""
    run = record.get("config", {}).get("run", {})
    first = Path(run.get("storage", "")) / run.get("name", "")
    same = first.exists() and folder.exists() and first.samefile(folder)
    return first if not same and (first / RECORD).is_file() else None


def fingerprint(train: pa.Table) -> str:
    """Return a checksum of the keys of the train split, in order: shards that were moved are recognised by it."""
    digest = hashlib.blake2b(digest_size=8)
    for chunk in train["key"].chunks:
        digest.update("\n".join(chunk.to_pylist()).encode())
    return digest.hexdigest()


def check(folder: Path, total_steps: int, rows: str) -> None:
    """Refuse, before anything starts, a resumed run whose specimens or length do not fit its checkpoints.

    Raises ValueError.
    """
    if not (folder / RECORD).is_file():
        return
    known = read_json(folder / RECORD).get("rows", rows)
    if known != rows:
        raise ValueError(
            f"data.shards: got shards with other specimens in their train split (checksum {rows}, the run began with "
            f"{known}); allowed: the shards that run {folder.name!r} began with, wherever they lie now"
        )
    reached = max(commits.steps(folder), default=0)
    if reached > total_steps:
        raise ValueError(
            f"run.epochs: got a run of {total_steps} steps, allowed: more than the {reached} that run {folder.name!r} "
            "has done"
        )


def restore(session: Session, weights: dict[str, Any], state: dict[str, Any], before: Config) -> None:
    """Continue from a checkpoint that was written under the configuration `before`.

    Where rates, decay or length have changed, the optimizer keeps its moments and takes the new settings, and the
    schedule is that of the new run at this step. Otherwise everything is restored as it was.

    Raises ValueError when the checkpoint's data order is not this run's.
    """
    optim, epochs = session.config.optim, session.config.run.epochs
    if (before.optim, before.run.epochs) == (optim, epochs):
        session.restore(weights, state)
        return
    state = state | {"plan": state["plan"] | {"steps": session.total_steps}}
    session.restore(weights, state)
    session._enter(session.phase)  # a fresh optimizer and schedule, as configured now
    kept = [{key: value for key, value in group.items() if key != "params"} for group in session.optimizer.param_groups]
    session.optimizer.load_state_dict(state["optimizer"])
    for group, fresh in zip(session.optimizer.param_groups, kept, strict=True):
        group.update(fresh)
    session.schedule.last_epoch = session.step - session.phase.first
    session.schedule._step_count = session.schedule.last_epoch + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # get_lr warns outside a step
        rates = session.schedule.get_lr()
    for group, rate in zip(session.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    session.schedule._last_lr = [group["lr"] for group in session.optimizer.param_groups]
