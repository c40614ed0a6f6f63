"""Runs whose parts are killed at random steps, against runs that nobody disturbed: weights, specimens, restarts.

    python tests/benchmarks/kill_runs.py --out /tmp/kills [--workers 1 2 4] [--minutes 3] [--seed 0]

Simulated specimens, tiny towers with dropout, `run.threads=1`; every run is `python train/main.py` in processes of its
own. What was done stands in OUT/rows.jsonl and is not done again, so that the drill may be run in pieces (after
--minutes no further run is started); the table of all that is there comes at the end. SIGKILL unless SIGTERM is named.
"""

import argparse
import json
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT)] + [p for p in sys.path if Path(p).resolve() != ROOT / "tests" / "benchmarks"]

from tests.train.faults import Training, keys_of_epochs, weights_hash  # noqa: E402

DRILL = (  # workers, what is killed, how often in one run
    (1, "train worker", 1),
    (1, "data worker", 1),
    (1, "controller", 1),
    (1, "driver", 1),
    (1, "head", 1),
    (2, "train worker", 2),
    (2, "data worker", 1),
    (2, "controller", 1),
    (2, "driver", 1),
    (2, "head", 1),
    (2, "train worker SIGTERM", 1),
    (2, "driver SIGTERM", 1),
    (1, "train worker", 3),
    (1, "driver", 2),
    (4, "train worker", 1),
    (4, "data worker", 1),
    (4, "controller", 1),
    (4, "driver", 1),
)
SPECIMENS, EPOCHS = 600, 5


def shards_of(out: Path) -> Path:
    """600 simulated specimens of 16 species, written once."""
    from engine.formats.registry import open_dataset
    from engine.ingest.job import IngestOptions, ingest

    folder = out / "shards"
    if not (folder / "index.parquet").is_file():
        source = open_dataset("simulated", [], seed=0, num_specimens=SPECIMENS, num_species=16)
        ingest(source, folder, IngestOptions(specimens_per_shard=200, parallel=False, overwrite=True))
    return folder


def steps_of(folder: Path) -> tuple[int, int]:
    """Steps of an epoch, and of the run."""
    meta = json.loads((folder / "model" / "meta.json").read_text())
    return meta["step"] // EPOCHS, meta["step"]


def settings_of(workers: int) -> list[str]:
    """Four workers get larger data tasks, and so fewer of them: four executors of Ray Data share the cores."""
    return [f"run.num_workers={workers}", *(["data.rows_per_task=64"] if workers == 4 else [])]


def reference(out: Path, workers: int) -> Path:
    """The folder of the run that nobody disturbed, done where it is not there yet."""
    storage = out / f"whole-{workers}"
    if not (storage / "job" / "model" / "meta.json").is_file():
        shutil.rmtree(storage, ignore_errors=True)
        training = Training(shards_of(out), storage, *settings_of(workers))
        try:
            assert training.end() == 0, training.log[-3000:]
        finally:
            training.destroy()
    return storage / "job"


def difference(one: Path, other: Path) -> float:
    """The largest absolute difference of any weight."""
    from safetensors.torch import load_file

    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def strike(out: Path, number: int, seed: int) -> dict[str, Any]:
    """One run of the drill, killed as often as it says; its row of the table."""
    workers, what, times = DRILL[number]
    whole = reference(out, workers)
    epoch, total = steps_of(whole)
    rng = random.Random(f"{seed}/{number}")
    part, how = what.removesuffix(" SIGTERM"), signal.SIGTERM if "SIGTERM" in what else signal.SIGKILL
    settings = [*settings_of(workers), "run.max_failures=10"]
    storage, shards = out / f"run-{number}-{seed}", shards_of(out)
    shutil.rmtree(storage, ignore_errors=True)  # of a drill that was broken off
    training = Training(shards, storage, *settings)
    killed: list[Any] = []
    started, log = time.monotonic(), ""
    try:
        last = total // 3 if part == "data worker" else total - 10  # data tasks work ahead: late there are none
        # A run that has committed nothing does not say that it resumed, so one that is killed again has a commit first.
        first = 3 if times == 1 else 11
        for target in sorted(rng.sample(range(first, last), times)):
            killed.append(training.wait_for(max(target, *killed, 0)))
            training.kill(part, rng.randrange(workers), how)
            if part in ("driver", "head"):
                assert training.end() != 0
                log += training.log
                training = Training(shards, storage, *settings, resume=True)
            elif part == "train worker":
                seen = len(re.findall("resumed at", training.log))
                _until_resumed(training, seen)
        code = training.end()
        log += training.log
        assert code == 0, log[-3000:]
    finally:
        training.destroy()
    folder = training.folder
    return {
        "number": number,
        "seed": seed,
        "workers": workers,
        "killed": what,
        "at": killed,
        "steps": total,
        "resumed": [int(step) for step in re.findall(r"resumed at step (\d+)", log)],
        "by itself": len(re.findall(r"going on from the last checkpoint", log)),
        "hash": weights_hash(folder),
        "reference": weights_hash(whole),
        "difference": difference(folder, whole),
        "keys": keys_of_epochs(folder, epoch) == keys_of_epochs(whole, epoch),
        "orphans": len(list((folder / "checkpoints").glob("part-*"))),
        "seconds": round(time.monotonic() - started),
    }


def _until_resumed(training: Training, seen: int) -> None:
    """Until the log tells of one more restart: a second kill must not strike processes that are already going."""
    from tests.train.faults import until

    until(
        lambda: training.process.poll() is not None or len(re.findall("resumed at", training.log)) > seen, "a restart"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| workers | killed | at step | went on from | restarts by itself | weights | difference | keys per epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["workers"], row["killed"])):
        same = (
            f"{row['hash']} = reference" if row["hash"] == row["reference"] else f"{row['hash']} / {row['reference']}"
        )
        lines.append(
            f"| {row['workers']} | {row['killed']} | {', '.join(map(str, row['at']))} of {row['steps']} | "
            f"{', '.join(map(str, row['resumed'])) or '-'} | {row['by itself']} | {same} | {row['difference']:.1e} | "
            f"{'equal' if row['keys'] else 'DIFFERENT'} |"
        )
    return "\n".join(lines)


def main() -> int:
    """The drill; exit code 1 when a run ended elsewhere than its reference (beyond 1e-6) or with other specimens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], choices=[1, 2, 4])
    parser.add_argument("--minutes", type=float, default=120.0, help="after these no further run is started")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out.resolve() / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {row["number"] for row in rows if row["seed"] == options.seed}
    last_start = time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what it started is to end with it
    wanted = [number for number, (workers, *_) in enumerate(DRILL) if workers in options.workers]
    for number in [number for number in wanted if number not in done]:
        if time.monotonic() > last_start:
            break
        rows.append(strike(options.out.resolve(), number, options.seed))
        with file.open("a") as out:
            out.write(json.dumps(rows[-1]) + "\n")
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    return int(any(row["difference"] > 1e-6 or not row["keys"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
