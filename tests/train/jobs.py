"""Training jobs that tests run in a process of their own, because they start and kill Ray's processes.

python tests/train/jobs.py train SHARDS STORAGE [key=value ...]        prints one JSON line: the history
python tests/train/jobs.py kill SHARDS STORAGE [key=value ...]         kills the train worker after a checkpoint
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT)] + [p for p in sys.path if Path(p).resolve() != ROOT / "tests" / "train"]


def descendants(pid: int) -> set[int]:
    """All processes below `pid`."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found, added = {pid}, True
    while added:
        new = {child for child, parent in parents.items() if parent in found} - found
        found, added = found | new, bool(new)
    return found - {pid}


def train_workers() -> list[int]:
    """Process ids of this job's train workers."""
    titles = {
        pid: Path(f"/proc/{pid}/cmdline").read_bytes()
        for pid in descendants(os.getpid())
        if os.path.exists(f"/proc/{pid}")
    }
    return [pid for pid, title in titles.items() if b"RayTrainWorker" in title]


def kill_after_checkpoint(folder: Path, killed: list[int]) -> None:
    """Wait for the second checkpoint, let two more seconds of work pass, then SIGKILL the worker."""
    while len(list(folder.glob("checkpoint_*"))) < 2:
        time.sleep(0.1)
    for pid in train_workers():
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)


def main() -> None:
    import ray

    from tests.train.small import small_config
    from train.trainer import train

    what, shards, storage, *settings = sys.argv[1:]
    config = small_config(Path(shards), f"run.storage={storage}", "run.name=job", *settings)
    ray.init(address="local", num_cpus=2, object_store_memory=300 * 1024**2, log_to_driver=False, logging_level="ERROR")
    killed: list[int] = []
    if what == "kill":
        arguments = (Path(storage) / "job", killed)
        threading.Thread(target=kill_after_checkpoint, args=arguments, daemon=True).start()
    done = train(config)
    print(json.dumps({"history": done.history, "steps": done.steps, "killed": killed}))
    ray.shutdown()


if __name__ == "__main__":
    main()
