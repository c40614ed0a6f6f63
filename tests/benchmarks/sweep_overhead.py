"""What a sweep costs beside its trainings: the same trainings once by themselves, once as trials.

    python tests/benchmarks/sweep_overhead.py --out /data/overhead                    single-process trials
    python tests/benchmarks/sweep_overhead.py --out /data/overhead --distributed      trials of two workers

Single-process: N trainings one after another in this process on one core, against a sweep of N trials on one actor that
is used again, one at a time, no early stopping; both with MLflow on sqlite and with the same validations, the imports
of the first actor included in the sweep's time. The overhead is a share of the time.
Distributed: N trainings of two workers by `trainer.train`, against a sweep of N such trials. The overhead is in
seconds a trial.

Prints one JSON line. Ray's start is in neither; run it on a machine that does nothing else.
"""

import argparse
import dataclasses
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT)] + [p for p in sys.path if Path(p).resolve() != ROOT / "tests" / "benchmarks"]


def plain(sweep: Any, trials: int) -> list[float]:
    """Seconds of each training by itself, under the configuration of a trial."""
    from train.run.tracking import create_run
    from train.run.trainer import train
    from tune.ledger import Entry
    from tune.spaces import defaults
    from tune.trial import InProcess, Task, keep_memory

    keep_memory()
    values, taken = defaults(sweep.space, sweep.config), []
    for number in range(trials):
        started = time.perf_counter()
        config = sweep.trial_config(Entry(number, values, number))
        run = dataclasses.replace(config.run, name=f"plain-{number}")
        config = dataclasses.replace(config, run=run)
        if sweep.slots.distributed:
            train(config)
        else:
            given: dict[str, Any] = {field.name: "" for field in dataclasses.fields(Task)}
            given |= {"run_id": create_run(config, {}), "budget": None, "threads": 1, "final": False}
            training = InProcess(Task(**given), config)
            while training.next() is not None:
                pass
            training.close()
        taken.append(time.perf_counter() - started)
    return taken


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs; simulated specimens are made there")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    from train.config import override
    from train.recipes import make
    from tune import spaces
    from tune.settings import Settings
    from tune.sweep import Sweep, settled

    # the temperature changes no cost of a step, a hierarchy weight of 0 would
    spaces.SPACES["temperature"] = lambda: {"loss.temperature": spaces.LogUniform(low=0.01, high=0.2)}
    own = [f"run.storage={options.out}", f"run.name=overhead-{int(time.time())}"]
    own += ["run.num_workers=2"] if options.distributed else []
    config = settled(override(make("sweep"), [*own, *options.overrides]))
    settings = Settings(
        space="temperature", algorithm="random", trials=options.trials, concurrent=1, early_stopping=False
    )
    sweep = Sweep(settings, config)
    sweep.start()
    alone = plain(sweep, options.trials)
    started = time.perf_counter()
    sweep.stage(final=False)
    together = time.perf_counter() - started
    states = [entry.state for entry in sweep.ledger.search()]
    assert states == ["finished"] * options.trials, states
    print(
        json.dumps(
            {
                "distributed": options.distributed,
                "trials": options.trials,
                "plain_s": [round(s, 1) for s in alone],
                "sweep_s": round(together, 1),
                "overhead_share": round(together / sum(alone) - 1, 3),
                "overhead_s_per_trial": round((together - sum(alone)) / options.trials, 1),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
