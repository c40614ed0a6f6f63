"""Make simulated specimens for `simulated:SEED` among a run's shards."""

import dataclasses
import logging
from pathlib import Path

from train.config import Config

log = logging.getLogger(__name__)


def with_simulated(config: Config) -> Config:
    """Replace `simulated:SEED` in data.shards by a folder of simulated specimens, written here where it is missing.

    `simulated:SEED:COUNT` makes that many specimens, of fewer species.

    Raises ValueError for a seed or a count that is no number, and for a count that is too small.
    """
    from engine.formats.registry import open_dataset
    from engine.ingest.job import IngestOptions, ingest
    from engine.store.shards import MANIFEST_NAME
    from train.run.trainer import start_ray

    folders = []
    for name in config.data.shards:
        kind, colon, numbers = name.partition(":")
        if kind != "simulated" or not colon:
            folders.append(name)
            continue
        seed, colon, count = numbers.partition(":")
        if not seed.isdigit() or (colon and not count.isdigit()):
            raise ValueError(f"data.shards: simulated:SEED takes a whole number, got {name!r}")
        size = {"num_specimens": int(count), "num_species": min(120, int(count) // 40)} if colon else {}
        source = open_dataset("simulated", [], seed=int(seed), **size)
        folder = Path(config.run.storage).resolve() / f"simulated-{numbers.replace(':', '-')}"
        if not (folder / MANIFEST_NAME).is_file():
            log.info("writing simulated specimens to %s", folder)
            start_ray()
            ingest(source, folder, IngestOptions(overwrite=True))
        folders.append(str(folder))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, shards=tuple(folders)))
