"""Hold what a train worker is given: plain data that a process without torch can read."""

import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.batches.pipeline import CpuBudget, load_index
from engine.specimens.taxonomy import Taxonomy
from train.config import Config, from_dict

asked_to_end = threading.Event()  # this process was asked to end


def listen() -> None:
    """Let signals ask for a checkpoint at the next step. Call it in the main thread of a worker's process."""
    signal.signal(signal.SIGTERM, lambda *_: asked_to_end.set())


@dataclass(frozen=True)
class Job:
    """Hold what every worker needs, as plain data that survives pickling to another node."""

    config: dict[str, Any]
    taxonomy: dict[str, Any]
    run_id: str
    budget: CpuBudget | None
    threads: int
    board: Any  # actor handle of train.run.progress; None = nobody looks
    measured_last: str = ""  # a split that is measured once, after the last epoch
    frozen_texts: str = ""  # a folder in which runs share the features of a frozen text tower; "" = none

    def open(self) -> tuple[Config, Taxonomy, pa.Table]:
        """Return configuration, taxonomy and index as objects."""
        config = from_dict(self.config)
        return config, Taxonomy.from_json(self.taxonomy), load_index(config.data.shards)


def run_folder(config: Config) -> Path:
    """Return the folder that keeps everything of a run."""
    return Path(config.run.storage).resolve() / config.run.name
