"""Sweeps that need a Ray of their own, in processes of their own; each prints one JSON line.

python tests/tune/jobs.py distributed SHARDS STORAGE      trials of two workers on two CPUs, Ray's dashboard off
python tests/tune/jobs.py shrink SHARDS STORAGE           two nodes of one CPU, of which one goes away
"""

import json
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT)] + [p for p in sys.path if Path(p).resolve() != ROOT / "tests" / "tune"]

STORE = 300 * 1024**2


def slow_learners() -> Any:
    """Rates at which nothing is learned: ASHA stops them at the first rung."""
    from tune.spaces import Choice

    return {"optim.max_lr": Choice(values=(1e-9, 1e-8))}


def sweep_of(shards: str, storage: str, *settings: str, **asked: Any) -> Any:
    """A sweep of tiny trainings."""
    from tests.train.small import small_config
    from tune import spaces
    from tune.settings import Settings
    from tune.sweep import Sweep

    spaces.SPACES["slow_learners"] = slow_learners
    config = small_config(shards, f"run.storage={storage}", "run.name=s", *settings)
    return Sweep(Settings(algorithm="random", **asked), config)


def groups() -> list[str]:
    """The states of all placement groups that were not removed."""
    from ray.util import placement_group_table

    return [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]


def distributed(shards: str, storage: str) -> dict[str, Any]:
    """Search with a stopped trial, then one final: nothing waits, no placement group is left."""
    import ray

    from tune.ledger import Entry

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    settings = ("run.num_workers=2", "run.epochs=6", "run.validate_every=2", "run.tracking=mlflow")
    sweep = sweep_of(shards, storage, *settings, space="slow_learners", trials=2, seeds=1)
    sweep.start()
    sweep.stage(final=False)
    left = groups()
    default = sweep.ledger.search()[0]
    sweep.ledger.put(Entry(default.number, default.values, 1, final=True))
    sweep.stage(final=True)
    return {
        "slots": sweep.slots.describe(),
        "states": [entry.state for entry in sweep.ledger.search()],
        "epochs": [[epoch for epoch, _ in entry.history] for entry in sweep.ledger.search()],
        "test": sweep.ledger.finals()[0].test,
        "model": (sweep.folder / "final-000-seed-1" / "model" / "meta.json").is_file(),
        "groups": left + groups(),
    }


def shrink(shards: str, storage: str) -> dict[str, Any]:
    """The node of one of two trials dies: its trial goes on where there is room."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    )
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    sweep = sweep_of(
        shards, storage, "run.epochs=60", "run.validate_every=10", space="pair", trials=2, early_stopping=False
    )
    sweep.start()

    def cut() -> None:
        while sum(entry.epoch > 0 for entry in sweep.ledger.search()) < 2:
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    cutting = threading.Thread(target=cut)
    cutting.start()
    sweep.stage(final=False)
    cutting.join()
    return {
        "slots": sweep.slots.describe(),
        "nodes": sum(node["Alive"] for node in ray.nodes()),
        "states": [entry.state for entry in sweep.ledger.search()],
        "epochs": [[epoch for epoch, _ in entry.history] for entry in sweep.ledger.search()],
    }


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    job, *places = sys.argv[1:]
    print(json.dumps({"distributed": distributed, "shrink": shrink}[job](*places)))
