"""Train CLIBD, CLIBD-HiR or CLIBD-HiR-Fuse and write the paper's tables: parse, build, run.

python train/main.py --recipe quickstart
python train/main.py --recipe bold --set data.shards=/data/bold --set loss.hierarchy_weight=0
python train/main.py --resume bold-20261121-093000-a1b2          or --resume /disk/runs/bold-..., wherever it lies now
ray job submit --working-dir . -- python train/main.py --recipe quickstart --set run.storage=$PWD/runs
"""

import argparse
import dataclasses
import json
import logging
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]  # as a script, this file's folder stands first on the path: put ours there
sys.path[:] = [str(ROOT)] + [p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "train")]

from engine.commandline import Parser, guarded  # noqa: E402
from train.config import Config, override, to_dict  # noqa: E402
from train.recipes import RECIPES, make  # noqa: E402

if TYPE_CHECKING:
    from train.run.trainer import Run

log = logging.getLogger(__name__)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    described = "\n".join(
        f"  {name:14} {(function.__doc__ or '').strip().splitlines()[0]}" for name, function in sorted(RECIPES.items())
    )
    parser = Parser(
        prog="python train/main.py",
        description=f"{__doc__}\nrecipes:\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", default="quickstart", help="a named run (see above); default: quickstart")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="change one setting, e.g. loss.hierarchy_weight=0; may be repeated; --dry-run lists every key",
    )
    parser.add_argument(
        "--resume",
        metavar="NAME|FOLDER",
        default="",
        help="go on with this run from its last checkpoint, where it lies; --set changes rates, epochs, intervals ...",
    )
    parser.add_argument("--wait", action="store_true", help="wait for nodes that the cluster does not have yet")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--no-evaluation", action="store_true", help="stop after training")
    return parser.parse_args(arguments)


def resolve(options: argparse.Namespace) -> Config:
    """Return the configuration of this run, named; a resumed run keeps its own, then takes the overrides."""
    from train.run import folder

    config = folder.at_home(override(make(options.recipe), options.overrides))
    if options.resume:
        from train.run import resume

        return resume.reopened(folder.find(options.resume, config.run.storage), options.overrides)
    if config.run.name and (Path(config.run.storage) / config.run.name).exists():
        raise ValueError(
            f"run {config.run.name!r} exists in {config.run.storage}; go on with --resume {config.run.name}"
        )
    unique = f"{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    return dataclasses.replace(config, run=dataclasses.replace(config.run, name=config.run.name or unique))


def run(config: Config, options: argparse.Namespace) -> Path:
    """Make shards, train, evaluate, record everything. Returns the run's folder."""
    from train.run import cluster, folder, interrupts

    cluster.check_address()  # before what takes seconds
    from engine.batches.pipeline import load_index, select_split
    from train.run.simulated_shards import with_simulated
    from train.run.trainer import make_folder, train

    evaluate = not options.no_evaluation and config.loss.objective == "contrastive"  # a pretrained tower names nothing
    make_folder(Path(config.run.storage))
    with interrupts.heard(), folder.held(folder.place(config.run.storage) / config.run.name, new=not options.resume):
        config = with_simulated(config)
        if evaluate:
            select_split(load_index(config.data.shards), config.eval.split)  # refused now, not after the training
        done = train(config, wait=options.wait)
        print(f"\ntrained {config.run.name} in {done.seconds / 60:.1f} min; weights: {done.model}")
        _evaluate(config, done, evaluate)
    if done.run_id:
        from train.run.tracking import where_to_look

        print(f"experiments: {where_to_look(config)}")
    return done.folder


def _evaluate(config: Config, done: "Run", evaluate: bool) -> None:
    """Measure the trained model, record and print what was found; end the run in MLflow."""
    from train.models import checkpoint
    from train.run.interrupts import Interrupted
    from train.run.tracking import open_tracker

    tracker, status = open_tracker(config, done.run_id), "FAILED"
    try:
        if evaluate:
            from engine.batches.pipeline import load_index
            from train.pages.evaluation import Setting, run_evaluation

            model = checkpoint.load(done.model).model
            out = done.folder / "evaluation"
            shards = load_index(config.data.shards)
            found = run_evaluation(Setting(model, config, done.taxonomy, shards, config.eval.split), out)
            tracker.metrics(found.metrics, done.steps)
            for name in found.files:
                tracker.artifact(out / name, "evaluation")
            print(f"\n{found.headline(config.eval.scoring)}\n")
            print(f"evaluation: {', '.join(str(out / name) for name in found.files)}")
        status = "FINISHED"
    except Interrupted as stopped:
        status = "KILLED"
        log.warning("%s: trained, not evaluated; go on with --resume %s", stopped.name, config.run.name)
        raise
    finally:
        tracker.close(status)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code (2 = something the user can mend, said in one line)."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return guarded(lambda: _command(options))


def _command(options: argparse.Namespace) -> int:
    config = resolve(options)
    if options.dry_run:
        print(json.dumps(to_dict(config), indent=2))
    else:
        run(config, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
