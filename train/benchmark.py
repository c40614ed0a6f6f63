"""Measure barcode encoders by the field's benchmarks: task I (probe, unseen genera) and task II (clusters).

    python -m train.benchmark --task 1 --shards shards/mine --checkpoint runs/PRETRAINED runs/CLIBD --unseen test_unseen
    python -m train.benchmark --task 2 --shards shards/mine --checkpoint runs/PRETRAINED --out results

One line of a table for each checkpoint, its tower at random weights, 6-mer counts and (task 1) VSEARCH's nearest where
the program is installed. With --out the numbers are written to benchmark-1.json or benchmark-2.json there. BIOSCAN-5M
ingested with its own splits (`engine.main ingest bioscan5m`) is measured by the same line.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]  # as a script, this file's folder stands first on the path: put ours there
sys.path[:] = [str(ROOT)] + [p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "train")]

from engine.commandline import Parser, answered  # noqa: E402

if TYPE_CHECKING:
    from train.tasks.bioscan import Represent

COLUMNS = {
    "1": {"probe": "probe, species", "nearest": "1-NN species", "unseen_genus": "1-NN genus, unseen", "ms": "ms"},
    "2": {"ami": "AMI", "ms": "ms"},
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="python -m train.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--task", choices=sorted(COLUMNS), default="1", help="1: probe and unseen genera; 2: clusters (default: 1)")
    add("--shards", metavar="DIR", required=True, nargs="+", help="folders written by `engine.main ingest`")
    add("--checkpoint", metavar="DIR", nargs="*", default=[], help="runs or checkpoints; each is a line of the table")
    add("--seen", metavar="SPLIT", default="test", help="queries whose species are in train (default: test)")
    add("--unseen", metavar="SPLIT", default="test_unseen", help="queries of other species (default: test_unseen)")
    add("--genera", metavar="N", type=int, default=0, help="of the unseen species, drawn at random; 0 = all (default)")
    add("--device", default="cpu", help="torch device, e.g. cuda (default: cpu)")
    add("--out", metavar="DIR", type=Path, help="folder for the numbers as JSON; made if it is not there")
    return parser.parse_args(arguments)


def _encoders(options: argparse.Namespace) -> "dict[str, Represent]":
    """Return what is measured, by its line's name: each checkpoint, and each architecture at random weights."""
    import torch

    from train.models import checkpoint
    from train.tasks.bioscan import BASELINES, tower_features

    found = {}
    try:
        device = torch.device(options.device)
    except RuntimeError as error:
        raise ValueError(f"--device: got {options.device!r}, allowed a torch device ({error})") from None
    shapes = set()
    for path in options.checkpoint:
        loaded = checkpoint.load(path)
        found[Path(path).name] = tower_features(loaded.model.to(device), loaded.config.data)
        shape = json.dumps([loaded.config.model.dna, loaded.meta["architecture"].get("dna"), loaded.config.data.kmer])
        if shape not in shapes:
            torch.manual_seed(0)
            fresh = checkpoint.build(loaded.config, loaded.taxonomy, loaded.meta["architecture"]).eval().to(device)
            found[f"random weights ({Path(path).name})"] = tower_features(fresh, loaded.config.data)
        shapes.add(shape)
    return found | BASELINES


def run(options: argparse.Namespace) -> str:
    """Measure and write; return the table. Raises ValueError for what the user can mend."""
    from engine.batches.pipeline import load_index
    from train.tasks import bioscan

    if options.genera < 0:
        raise ValueError(f"--genera must not be negative, got {options.genera}")
    encoders = _encoders(options)
    task = bioscan.read_task(load_index(options.shards), options.seen, options.unseen, options.genera)
    measure = bioscan.task_one if options.task == "1" else bioscan.task_two
    found = {name: measure(task, represent) for name, represent in encoders.items()}
    if options.task == "1":
        found["VSEARCH, nearest"] = bioscan.vsearch(task)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"benchmark-{options.task}.json").write_text(json.dumps(found, indent=1))
    sizes = (len(part.barcodes) for part in (task.train, task.seen, task.unseen))
    return "{:,} barcodes of train, {:,} seen, {:,} unseen\n".format(*sizes) + _table(found, COLUMNS[options.task])


def _table(found: dict[str, dict[str, float]], columns: dict[str, str]) -> str:
    lines = [f"| encoder | {' | '.join(columns.values())} |", "|---" * (1 + len(columns)) + "|"]
    for name, values in found.items():
        cells = [
            "-" if key not in values else f"{values[key]:.2f}" if key in ("ms", "ami") else f"{100 * values[key]:.1f}%"
            for key in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return answered(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
