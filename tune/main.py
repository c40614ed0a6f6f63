"""Find good settings of a recipe on a cluster, within a budget: parse, build, run.

python tune/main.py --recipe sweep                                     16 trials of a small simulated set
python tune/main.py --recipe moths --set data.shards=shards/moths --trials 30 --budget 2h
python tune/main.py --recipe bold --space wide --search random --set data.shards=shards/bold
python tune/main.py --resume sweep-moths-20261121-093000-a1b2          after an interruption
ray job submit --working-dir . -- python tune/main.py --recipe sweep --set run.storage=$PWD/runs

1. Search. Trial 000 has the recipe's own values and is never stopped; the others are proposed by --search. At the first
   validation after an eighth of the epochs, and again after four times as many, the best quarter goes on (ASHA):
   `--set run.validate_every=N` says how early a trial can be stopped. The score is a mean of accuracies on val: every
   rank, photo, barcode and both, clean and damaged.
2. Finals. The best two and the recipe's own values, trained again with fresh seeds, scored on test.
3. The end: a table, the `--set` line to train with, its difference from the recipe with its interval, pictures, and the
   winner's model in MLflow's registry (alias champion). All of it lies in RUNS/SWEEP/ and in MLflow.

Trials of one worker run in one process on one core each (run.threads), as many as there are cores; with
`--set run.num_workers=N` every trial is a distributed training. No finished trial is ever repeated by --resume.
"""

import argparse
import json
import logging
import re
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]  # as a script, this file's folder stands first on the path: put ours there
sys.path[:] = [str(ROOT)] + [p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "tune")]

from engine.commandline import Parser, guarded  # noqa: E402
from train.config import override, to_dict  # noqa: E402
from train.recipes import RECIPES, make  # noqa: E402
from tune.settings import ALGORITHMS, METRIC, Settings  # noqa: E402
from tune.spaces import SPACES, describe, find  # noqa: E402

if TYPE_CHECKING:
    from tune.sweep import Sweep

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    described = "\n".join(
        f"  {name:8} {' '.join((function.__doc__ or '').split())}" for name, function in sorted(SPACES.items())
    )
    parser = Parser(
        prog="python tune/main.py",
        description=f"{__doc__}\nspaces (tune/spaces.py):\n{described}\n\nrecipes: {', '.join(sorted(RECIPES))}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--recipe", default="sweep", help="what is trained, a recipe of train/main.py; default: sweep")
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="change one setting of all trials, as in train/main.py; may be repeated",
    )
    add("--space", default="pair", help="which settings are varied; default: pair")
    add("--trials", metavar="N", type=int, help="trials of the search, the recipe's own values included; default: 16")
    add("--budget", metavar="TIME", default="", help="time for search and finals, e.g. 90m or 2h; default: no limit")
    add("--search", choices=ALGORITHMS, default="tpe", help="how values are proposed; default: tpe")
    add(
        "--metric",
        metavar="PATTERN",
        default=METRIC,
        help=f"accuracies on val whose mean is the score; default: {METRIC} (all of them)",
    )
    add("--seeds", metavar="N", type=int, default=3, help="trainings of each finalist; default: 3")
    add("--concurrent", metavar="N", type=int, default=0, help="trials at once, at most; default: what fits")
    add("--no-early-stopping", action="store_true", help="run every trial to its end")
    add("--name", default="", help="of the sweep's folder in run.storage; default: a unique one")
    add(
        "--resume",
        metavar="NAME|FOLDER",
        default="",
        help="go on with a sweep, where it lies",
    )
    add("--dry-run", action="store_true", help="print the space and the resolved configuration, and stop")
    return parser.parse_args(arguments)


def seconds(text: str) -> float:
    """Return the seconds of "90m" (5400); 0 (no limit) for "". Raises ValueError for anything else."""
    if not text:
        return 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not match or not float(match[1]):
        raise ValueError(f"--budget: got {text!r}; allowed: a time above 0 such as 90s, 45m, 2h or 1d")
    return float(match[1]) * SECONDS[match[2]]


def build(options: argparse.Namespace) -> "Sweep":
    """Return the sweep that the command line asks for, new or resumed. Raises ValueError for what the user can mend."""
    from train.run import cluster, folder

    budget = seconds(options.budget)
    for name in ("trials", "seeds"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name} must be 1 or more, got {getattr(options, name)}")
    if options.concurrent < 0:
        raise ValueError(f"--concurrent must be 0 (what fits) or more, got {options.concurrent}")
    cluster.check_address()
    config = folder.at_home(override(make(options.recipe), options.overrides))
    if not options.resume:
        find(options.space, config)  # refused before imports of seconds
    from tune.ledger import SWEEP
    from tune.sweep import Sweep, resumed, settled

    storage = folder.place(config.run.storage)
    if options.resume:
        settings, config = resumed(folder.find(options.resume, storage, SWEEP), options.overrides, options.trials)
        return Sweep(settings, config, budget)
    unique = f"sweep-{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    name = options.name or config.run.name or unique
    if (storage / name).exists():
        raise ValueError(f"{name!r} exists in {config.run.storage}; go on with --resume {name}")
    config = override(config, [f"run.name={name}"])
    settings = Settings(
        space=options.space,
        algorithm=options.search,
        trials=options.trials or Settings.trials,
        seeds=options.seeds,
        metric=options.metric,
        concurrent=options.concurrent,
        early_stopping=not options.no_early_stopping,
    )
    return Sweep(settings, settled(config), budget)


def command(options: argparse.Namespace) -> int:
    """Run the sweep and print its end."""
    from train.run import folder, interrupts
    from train.run.tracking import where_to_look

    if options.dry_run:
        config = override(make(options.recipe), options.overrides)
        print(describe(find(options.space, config), config))
        print(json.dumps(to_dict(config), indent=2))
        return 0
    with interrupts.heard():
        sweep = build(options)
        name = sweep.config.run.name
        with folder.held(sweep.folder, new=not options.resume):
            try:
                sweep.start()
                logging.info("sweep %s: %s; after an interruption: --resume %s", name, sweep.slots.describe(), name)
                outcome = sweep.run()
            except interrupts.Interrupted as stopped:
                logging.warning("%s: stopped; go on with --resume %s", stopped.name, name)
                raise
    print(f"\n{outcome.report}\n")
    print(f"train with it: python train/main.py --recipe {sweep.config.recipe} {outcome.settings}")
    registered = f", version {outcome.version} in MLflow's registry" if outcome.version else ""
    print(f"model of the winner: {outcome.model}{registered}")
    print(f"pictures and tables: {sweep.folder}")
    if sweep.parent:
        print(f"experiments: {where_to_look(sweep.config)}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code (2 = something the user can mend, said in one line)."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return guarded(lambda: command(options))


if __name__ == "__main__":
    sys.exit(main())
