"""A training job that tests run in a process of its own, because it starts Ray's processes.

python tests/train/jobs.py SHARDS STORAGE [key=value ...]        prints one JSON line: the history
"""

import json
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT)] + [p for p in sys.path if Path(p).resolve() != ROOT / "tests" / "train"]


def main() -> None:
    import ray

    from tests.train.small import small_config
    from train.run.trainer import train

    shards, storage, *settings = sys.argv[1:]
    config = small_config(shards, f"run.storage={storage}", "run.name=job", *settings)
    ray.init(
        address="local", num_cpus=2, object_store_memory=300 * 1024**2, log_to_driver=False, logging_level=logging.ERROR
    )
    done = train(config)
    print(json.dumps({"history": done.history, "steps": done.steps}))
    ray.shutdown()


if __name__ == "__main__":
    main()
