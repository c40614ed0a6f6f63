"""Name many specimens: a FASTA, a folder of photos, a table of both, or shards, to one row a record.

    python -m serve.bulk barcodes.fasta --checkpoint runs/NAME --library libraries/bold --out result.parquet
    python -m serve.bulk barcodes.fasta --library libraries/bold --out result.csv
    python -m serve.bulk photos/ --checkpoint models:/taxafuse@champion --out result.csv
    python -m serve.bulk specimens.csv --option images=photos --checkpoint runs/NAME --out result.csv --names dwc
    python -m serve.bulk shards/moths --split test --checkpoint runs/NAME --out result.parquet

Every record of the input has one row in the result, in the same order: an answer, or an error that says what was wrong.
Equal barcodes are asked once. A run that was killed goes on when its command is given again; the result is the same.
Beside the result stands RESULT.json: which model and library answered, with checksums, and how many stop at which rank.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from engine.commandline import Parser, answered
from engine.formats.source import SpecimenSource
from engine.ray_seams import numbered_tasks, start_ray
from engine.specimens.taxonomy import RANKS
from engine.store.commits import owned
from engine.store.shards import file_sha256
from engine.store.storage import Location, named_errors
from serve.bulk.actors import CARD, Answerer, BulkOptions
from serve.bulk.columns import COLUMNS, GROUP, STYLES, described
from serve.bulk.contaminants import digest, open_contaminants
from serve.bulk.plan import PLAN, Plan, load_plan, write_plan
from serve.bulk.result import write_result
from serve.bulk.review import Review
from serve.bulk.rules import Rules, add_options, rules_of
from serve.bulk.sources import NAMES, open_source
from serve.bulk.writers import WRITERS, check_kind
from serve.models.registry import resolve_checkpoint

log = logging.getLogger(__name__)

TRIES = 3  # deaths of workers in which nothing got done
TASK_POLL_S = 0.03  # between two looks at tasks of about a second
UNFINISHED = ".unfinished"  # what the folder beside the result is called until that stands


class WorkerDied(Exception):
    """Report that a worker process ended, by a signal, for want of memory or by a fault."""


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = Parser(
        prog="python -m serve.bulk",
        description=__doc__,
        epilog=f"columns of the result:\n{described()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("input", nargs="+", metavar="INPUT", help="files or folders of one kind")
    add(
        "--checkpoint",
        default="",
        metavar="MODEL",
        help="a run's folder, a checkpoint, or models:/NAME@ALIAS (default: none, barcodes by --library alone)",
    )
    add("--registry", default="", metavar="URI", help="MLflow's address (default: the sqlite file in runs/)")
    add(
        "--library",
        default="",
        metavar="DIR",
        help="of serve.library: names the nearest references (default: the model's own)",
    )
    add("--out", required=True, type=Path, metavar="FILE", help=f"the result, in {', '.join(WRITERS)}")
    add("--names", choices=STYLES, default="own", help="of the columns: our own, Darwin Core's, BOLD's")
    add("--threshold", type=float, metavar="P", help="probability that an answer needs (default: 0.95)")
    add(
        "--within",
        type=float,
        metavar="D",
        help="share of nucleotides by which references of the consensus may differ (default: 0.02: names most species)",
    )
    add("--only", type=Path, metavar="FILE", help="names of the taxa that may be answered, one a line")
    add_options(parser)
    add(
        "--contaminants",
        default="",
        metavar="PATH",
        help="FASTA or library of what is no specimen (human, Wolbachia, laboratory animals): its hits are flagged",
    )
    add("--format", choices=NAMES, default="", metavar="NAME", help=f"of the input: {', '.join(NAMES)} (found out)")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="of the format, e.g. columns=key=museum_no")
    add("--split", action="append", default=[], metavar="NAME", help="of shards (default: all); may be repeated")
    add("--workers", type=int, metavar="N", help="processes, each with the model (default: one a CPU, or a GPU)")
    add("--threads", type=int, default=1, metavar="N", help="of each worker (default: %(default)s)")
    add("--device", default="cpu", help="torch device, e.g. cuda: one GPU for each worker (default: cpu)")
    add("--review", type=Path, metavar="FILE", help="also write the doubtful rows, as CSV, for a person to look at")
    add("--serial", action="store_true", help="answer in this process, without starting Ray")
    add("--overwrite", action="store_true", help="replace a result, and start an unfinished one anew")
    return parser


def run(arguments: argparse.Namespace) -> str:
    """Do what a command line asks; returns what to print. Raises ValueError for what the user can mend."""
    _check(arguments)
    with owned(arguments.out), named_errors(str(arguments.out)):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> str:
    from serve.answers.answering import THRESHOLD, Options
    from train.reference import WITHIN

    started = time.monotonic()
    threshold = THRESHOLD if arguments.threshold is None else arguments.threshold
    subset = tuple(_names(arguments.only)) if arguments.only else ()
    within = WITHIN if arguments.within is None else arguments.within
    Options(threshold=threshold, subset=subset or None, top=1, within=within)  # refuses what is out of range
    rules = rules_of(arguments, dict.fromkeys(RANKS, threshold))
    state = _state(arguments.out).resolve()
    if arguments.overwrite:
        shutil.rmtree(state, ignore_errors=True)
    model = None
    if arguments.checkpoint:
        model = resolve_checkpoint(arguments.checkpoint, registry=arguments.registry, cache=state)
    asking = BulkOptions(
        model=model,
        library=str(Path(arguments.library).resolve()) if arguments.library else model.library if model else "",
        threshold=threshold,
        subset=subset,
        within=within,
        contaminants=arguments.contaminants,
        device=arguments.device,
        threads=arguments.threads,
    )
    if asking.contaminants:
        open_contaminants(asking.contaminants)  # refuses what cannot be read before anything is asked
    source = open_source(arguments.input, arguments.format, arguments.option, arguments.split)
    plan = make_plan(source, state, _settings(arguments, asking))
    answer(plan, source, asking, arguments)
    counts, contaminants = finish(plan, arguments, rules)
    return _summary(plan, counts, contaminants, arguments.out, time.monotonic() - started)


def _state(out: Path) -> Path:
    return out.with_name(out.name + UNFINISHED)


def make_plan(source: SpecimenSource, state: Path, settings: dict[str, Any]) -> Plan:
    """Return the plan of a new run, or that of the unfinished one with the same records and settings.

    Raises ValueError when the folder holds an unfinished run of something else.
    """
    settings = json.loads(json.dumps(settings))
    before = load_plan(state)
    if before is None:
        state.mkdir(parents=True, exist_ok=True)
        try:
            return write_plan(source, state, settings)
        except BaseException:
            shutil.rmtree(state, ignore_errors=True)  # nothing to go on with
            raise
    differing = [name for name, value in settings.items() if before.settings.get(name) != value]
    if not differing:
        with tempfile.TemporaryDirectory(dir=state, prefix="again-") as again:
            differing = ["records"] if write_plan(source, Path(again), settings).digest != before.digest else []
    if differing:
        raise ValueError(
            f"--out: got {state}, an unfinished run with other {', '.join(differing)}; allowed: the same command as "
            "before, or --overwrite to start anew"
        )
    return before


def answer(plan: Plan, source: SpecimenSource, asking: BulkOptions, arguments: argparse.Namespace) -> None:
    """Answer what is left of a plan, with a progress bar. Workers that die are replaced.

    Raises:
        ValueError: the model cannot be loaded.
        RuntimeError: workers died TRIES times without getting anything done.
    """
    left, tries = plan.unfinished(), 0
    run = _here if arguments.serial or len(left) <= 1 else _through_ray
    done = min(plan.questions, (plan.tasks - len(left)) * plan.per_task)
    with tqdm(total=plan.questions, initial=done, desc="naming", unit=" specimens", disable=None) as bar:
        while left:
            try:
                for row in run(Answerer(asking, plan, source, left), arguments):
                    if row["error"]:
                        raise ValueError(row["error"])
                    bar.update(row["answered"])
                return
            except WorkerDied as error:
                before, left = len(left), plan.unfinished()
                tries = tries + 1 if len(left) == before else 0
                if tries == TRIES:
                    raise RuntimeError(f"workers die at one of the tasks {left[:10]} of {plan.folder}") from error
                log.warning("a worker died (%s); going on", str(error).splitlines()[0])


def _here(answerer: Answerer, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for item in range(len(answerer.tasks)):
        yield from answerer(pa.table({"item": [item]})).to_pylist()


def _through_ray(answerer: Answerer, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Answer through a pool of workers, each with the model; they write to disk, so no row carries data.

    Raises WorkerDied. Ray does not restart workers by itself: what is left is known better here.
    """
    import ray

    start_ray(include_dashboard=False)
    kind, each = ("GPU", 1) if arguments.device.startswith("cuda") else ("CPU", arguments.threads)
    workers = arguments.workers or max(1, int(ray.cluster_resources().get(kind, 1)) // each)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 2.60 has no other name yet for max_restarts
        rows = numbered_tasks(len(answerer.tasks), TASK_POLL_S).map_batches(
            Answerer,
            fn_constructor_args=answerer.arguments(),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(answerer.tasks))),
            num_cpus=arguments.threads,
            num_gpus=1 if kind == "GPU" else None,
            max_restarts=0,
        )
    for name in ("ray.data", "ray.data._internal.progress"):
        logging.getLogger(name).setLevel(logging.ERROR)  # failures come as exceptions
    try:
        yield from rows.iter_rows()
    except ray.exceptions.RayError as error:  # some are ValueErrors too, but this is no input of the user's
        raise WorkerDied(str(error)) from error


def finish(plan: Plan, arguments: argparse.Namespace, rules: Rules) -> tuple[Counter[str], Counter[str]]:
    """Write the result and its description, then remove what the run needed; returns as `write_result`."""
    out, style = arguments.out, arguments.names
    review = Review() if arguments.review else None
    counts, contaminants = write_result(plan, out, style, rules, review)
    if review is not None:
        review.write(arguments.review)
    value = {
        "model": json.loads((plan.folder / CARD).read_text(encoding="utf-8")) if plan.questions else None,
        "settings": {**plan.settings, **rules.settings()},
        "records": plan.records,
        "questions": plan.questions,
        "stops_at": dict(counts),
        "contaminants": dict(contaminants),
        "columns": {column.named(style): column.meaning for column in COLUMNS},
    }
    text = json.dumps(value, indent=1, ensure_ascii=False)
    Location.parse(out.with_name(out.name + ".json")).write_atomically(text.encode())
    (plan.folder / PLAN).unlink()  # first: without it nothing in the folder counts
    shutil.rmtree(plan.folder)
    return counts, contaminants


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before anything is read."""
    import torch

    out = arguments.out
    check_kind(str(out), out.suffix)
    for path in (out, arguments.review):
        if path and path.exists() and not arguments.overwrite and load_plan(_state(out)) is None:
            raise ValueError(f"--out: got {path}, which is there already; allowed: another name, or --overwrite")
    if not arguments.checkpoint and not arguments.library:
        raise ValueError("got neither --checkpoint nor --library, allowed: a model, a library of barcodes, or both")
    for name in ("workers", "threads"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueError(f"--{name}: got {getattr(arguments, name)}, allowed: 1 or more")
    try:
        torch.zeros(1, device=torch.device(arguments.device))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {arguments.device!r}: {str(error).splitlines()[0]}") from None
    out.parent.mkdir(parents=True, exist_ok=True)


def _settings(arguments: argparse.Namespace, asking: BulkOptions) -> dict[str, Any]:
    """Return what decides about the answers; the result's name and style do not."""
    from serve.answers.candidates import FILE as TEXT
    from train.inference.calibration import FILE as CALIBRATION
    from train.models.checkpoint import STATE
    from train.reference.library import read_manifest

    passed = (STATE, TEXT)
    if asking.model is None:
        files = [path for path in (Path(asking.library) / CALIBRATION,) if path.is_file()]
    else:
        found = sorted(asking.model.path.iterdir())
        files = [path for path in found if path.is_file() and path.suffix != ".part" and path.name not in passed]
    return {
        "input": [str(Location.parse(path)) for path in arguments.input],
        "format": [arguments.format, *arguments.option, *arguments.split],
        "model": {path.name: file_sha256(path) for path in files},
        "library": read_manifest(asking.library)["checksum"] if asking.library else None,
        "threshold": asking.threshold,
        "only": list(asking.subset),
        "within": asking.within,
        "contaminants": digest(asking.contaminants) if asking.contaminants else None,
    }


def _names(path: Path) -> list[str]:
    """Return the names of a checklist, one a line, but for lines that begin with #. Raises ValueError for none."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ValueError(f"--only: got {path}, which names nothing; allowed: names of taxa, one a line")
    return names


def _summary(plan: Plan, counts: Counter[str], contaminants: Counter[str], out: Path, seconds: float) -> str:
    order = [RANKS[-1], GROUP, *reversed(RANKS[:-1]), "none", "error"]
    stops = ", ".join(f"{name} {counts[name]:,}" for name in order if counts[name])
    rate = plan.records / seconds
    odd = ", ".join(f"{name} {count:,}" for name, count in contaminants.most_common())
    return (
        f"{plan.records:,} records, {plan.questions:,} different questions; the answer stops at: {stops}\n"
        + (f"contaminants: {contaminants.total():,} records ({odd}), see the column contaminant\n" if odd else "")
        + f"{out} written in {seconds:.1f} s ({rate:,.0f} records/s); {out}.json says what answered"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code (2 = something the user can mend, said in one line)."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return answered(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
