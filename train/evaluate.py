"""Measure a trained model on a split of shards: one page of tables and pictures, and one row per specimen.

    python -m train.evaluate --checkpoint runs/NAME --shards data/shards --out results
    python train/evaluate.py --checkpoint runs/NAME/model --shards a b --split val --scoring prompt

Written to --out: report.html (the page; loads nothing from elsewhere), metrics.json (every number), tables.md (the
paper's tables by both scorings, micro and macro, novel barcodes), predictions.parquet (name and score per rank for
image, dna, average and fused, clean and damaged) and accuracy.png. An evaluation that was interrupted goes on when the
same command is given again.
"""

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # as a script, this file's folder stands first on the path: put ours there
sys.path[:] = [str(ROOT)] + [p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "train")]

from engine.commandline import Parser, answered  # noqa: E402

SCORINGS = ("rollup", "prompt")
EXTRAS = {
    "retrieval": "also CLIBD's protocol: each modality retrieves each, seen and unseen species",
    "calibration": "also fit probabilities on val, alone and with a reference library of the train split, keep them "
    "beside the model as calibration.json, and measure them",
    "curves": "also accuracy against damage: severity, single operations, fragments, amplified parts, blur",
    "probes": "also linear, 1-NN and few-shot probes of the features, and clustering",
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="python -m train.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", required=True, type=Path, help="a run's folder, or a checkpoint inside it")
    add(
        "--shards",
        metavar="DIR",
        required=True,
        nargs="+",
        help="folders written by `engine.main ingest`; their train split serves baselines and novelty",
    )
    add("--split", default="test", help="which specimens to measure (default: test)")
    add("--out", metavar="DIR", required=True, type=Path, help="folder for the results; made if it is not there")
    add("--batch-size", metavar="N", type=int, default=0, help="specimens encoded at once (default: the run's)")
    add("--scoring", choices=SCORINGS, help="of the printed tables; tables.md holds both (default: the run's)")
    add("--device", default="cpu", help="torch device, e.g. cuda (default: cpu)")
    add(
        "--ray", action="store_true", help="read and decode with Ray Data on all cores or on the cluster at RAY_ADDRESS"
    )
    for name, text in EXTRAS.items():
        add(f"--{name}", action="store_true", help=text)
    add(
        "--library",
        metavar="DIR",
        type=Path,
        help="of --calibration: the library of `serve.library` that is to "
        "answer, in place of one of the train split; specimens of val and test in it are left out",
    )
    add("--no-baselines", action="store_true", help="leave out the nearest-neighbour baselines")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> str:
    """Load, measure, write; return what to print. Raises ValueError for what the user can mend."""
    import torch

    from train.models import checkpoint
    from train.pages.evaluation import Setting, load_index, run_evaluation

    if options.batch_size < 0:
        raise ValueError(f"--batch-size must be positive, got {options.batch_size}")
    if options.library is not None and not options.calibration:
        raise ValueError(f"--library {options.library} is what --calibration fits with: give that, too")
    try:
        device = torch.device(options.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {options.device!r}: {str(error).splitlines()[0]}") from None
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {options.out}: the folder cannot be made ({error.strerror})") from None
    loaded = checkpoint.load(options.checkpoint)
    config = loaded.config
    chosen = dataclasses.replace(
        config.eval,
        batch_size=options.batch_size or config.eval.batch_size,
        scoring=options.scoring or config.eval.scoring,
    )
    config = dataclasses.replace(config, eval=chosen)
    if options.ray:
        from train.run.trainer import start_ray

        start_ray()
    setting = Setting(
        loaded.model.to(device),
        config,
        loaded.taxonomy,
        load_index(options.shards),
        options.split,
        checkpoint=loaded.path,
        library=options.library,
    )
    extras = [name for name in EXTRAS if getattr(options, name)]
    found = run_evaluation(setting, options.out, baselines=not options.no_baselines, extras=extras)
    return f"{found.headline(chosen.scoring)}\n\nWritten to {options.out}: {', '.join(found.files)}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code (2 = something the user can mend, said in one line)."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return answered(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
