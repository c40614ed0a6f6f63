"""Command line of the data engine: ingest specimens into shards, inspect, verify and check them.

Run from the repository root as `python -m engine.main` or `python engine/main.py`.
"""

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # the script form puts engine/ first on the path, where `import engine` fails
    ROOT = Path(__file__).resolve().parents[1]
    sys.path[:] = [str(ROOT)] + [entry for entry in sys.path if entry and Path(entry).resolve() != ROOT / "engine"]

from engine.commandline import Parser, guarded
from engine.curation.report import HTML_NAME
from engine.errors import UserError
from engine.formats.excluded import Excluding
from engine.formats.registry import FORMATS, Option, open_dataset
from engine.formats.understood import warn_of_names
from engine.ingest.plan import LAYOUTS
from engine.relations.splits import DEFAULT_FRACTIONS, GROUPINGS, SCHEMES, SplitOptions
from engine.store.storage import Location
from engine.store.verify import verify

EVENT = "event"  # of --group
EXAMPLES = """\
examples:
  python -m engine.main ingest simulated --out shards/simulated --num-specimens 9200
  python -m engine.main ingest auto downloads/ --out shards/mine
  python -m engine.main ingest table moths/specimens.parquet --out shards/moths
  python -m engine.main ingest table specimens.csv --images photos --split-fractions 0.8,0.1,0.1 --out shards/mine
  python -m engine.main ingest bold downloads/ --split-scheme seen-unseen --out shards/bold
  python -m engine.main ingest table specimens.csv --max-side 512 --layout clustered --out s3://bucket/shards
  python -m engine.main inspect shards/moths
  python -m engine.main verify shards/moths
  python -m engine.main check shards/moths shards/bold --out report

An interrupted ingest goes on when the same command is given again; the result is the same, byte for byte.
exit codes: 0 done, 1 verify or check found something, 2 wrong input (one line on stderr says what, got, allowed)
"""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m engine.main", description=__doc__, epilog=EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="ingest | inspect | verify | check")
    ingest = commands.add_parser(
        "ingest",
        help="write specimens of a FORMAT as shards",
        description="Write specimens as WebDataset shards with index.parquet, manifest.json and report.json. A bad row "
        "never stops an ingest: it is counted and named in report.json.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    formats = ingest.add_subparsers(dest="format", required=True, metavar="FORMAT", title="formats")
    for name, entry in FORMATS.items():
        command = formats.add_parser(
            name, help=entry.help, description=entry.help, epilog=EXAMPLES, formatter_class=raw
        )
        if entry.takes_paths:
            command.add_argument("paths", nargs="+", type=_path, metavar="PATH", help="file or folder, or a URL")
        command.add_argument(
            "--out",
            required=True,
            metavar="DIR",
            help="new or empty folder for the shards, or a URL (s3://bucket/folder?endpoint_override=...); one whose "
            "ingest was interrupted is continued",
        )
        for option in entry.options:
            command.add_argument(_flag(option), metavar=option.metavar, help=option.help)
        _add_ingest_options(command)
    for name, text in (
        ("inspect", "print counts per split, label coverage, taxa, barcode lengths and labels that disagree"),
        ("verify", "check checksums, offsets and counts; exit code 1 and a list if something is wrong"),
    ):
        commands.add_parser(name, help=text, description=text).add_argument("directory", metavar="DIR")
    _add_check(commands)
    return parser


def _add_check(commands: Any) -> None:
    text = "find what a curator must look at before training; exit code 1 if there is anything"
    command = commands.add_parser(
        "check",
        help=text,
        description="Look for lineage conflicts, names that are no binomials, barcodes and BINs under several species, "
        "barcodes unlike COI, names that a barcode's neighbours contradict, near-duplicate photos, and leaks between "
        "splits and sets. Writes check.json, check.html and CSVs; changes no shard.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("directories", nargs="+", metavar="DIR", help="folder of shards; several are compared")
    command.add_argument("--out", metavar="DIR", help="folder for the report (default: the first set's)")
    command.add_argument("--only", metavar="NAMES", help="some of the checks, e.g. names,coi (a wrong one lists them)")
    command.add_argument("--serial", action="store_true", help="hash photos in this process, without starting Ray")


def _add_ingest_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--specimens-per-shard", type=int, default=1000, metavar="N", help="default: %(default)s")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="of the stored order (default: %(default)s)")
    command.add_argument(
        "--split-scheme",
        choices=SCHEMES,
        help="assign specimens that have no split: closed-set (val and test hold only taxa of train; equal, contained "
        "and overlapping barcodes together; default with --split-fractions), by-specimen (the same, barcodes apart), "
        "seen-unseen (species held out, with keys and queries); default: all train",
    )
    command.add_argument(
        "--split-fractions", metavar="TRAIN,VAL,TEST", help="shares of barcode groups (default: 0.8,0.1,0.1)"
    )
    command.add_argument(
        "--split-grouping",
        choices=GROUPINGS,
        default="overlap",
        help="barcodes that stay together: containment, overlap (also one's end = another's beginning over 200 nt), "
        "stretch (also any 200 nt in common) (default: %(default)s)",
    )
    command.add_argument(
        "--group",
        metavar="COLUMN|event",
        help="what stays in one split beside equal photos and barcodes: rows with the same cell in this COLUMN of a "
        "table, or the photos of an event, whose names differ in the last number alone (night2_f1.jpg, night2_f2.jpg)",
    )
    command.add_argument(
        "--exclude",
        type=Path,
        metavar="FILE",
        help="leave out records: suggested_exclusions.csv of check, or keys one a line",
    )
    command.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="random",
        help="stored order: random, or clustered: runs of 16-64 specimens of one lowest known taxon, in random order "
        "(default: %(default)s)",
    )
    command.add_argument(
        "--max-side",
        type=int,
        metavar="PIXELS",
        help="shrink photos whose longer side has more (default: upright JPEGs are copied byte for byte)",
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the shards in a folder that has some; start an interrupted ingest anew",
    )
    command.add_argument("--serial", action="store_true", help="write in this process, without starting Ray")


def _flag(option: Option) -> str:
    return "--" + option.name.replace("_", "-")


def _path(text: str) -> Path | Location:
    return Location.parse(text) if "://" in text else Path(text)


def _parse_option(option: Option, text: str) -> Any:
    try:
        return option.parse(text)
    except ValueError:
        raise UserError(_flag(option), repr(text), option.metavar) from None


def _split_options(arguments: argparse.Namespace) -> SplitOptions | None:
    scheme, text = arguments.split_scheme, arguments.split_fractions
    if scheme is None and text is None:
        if arguments.group:
            raise UserError("--group", f"{arguments.group!r} without splits to draw", "it with --split-fractions")
        return None
    try:
        train, val, test = (float(part) for part in text.split(",")) if text is not None else DEFAULT_FRACTIONS
    except ValueError:
        raise UserError("--split-fractions", repr(text), "three numbers like 0.8,0.1,0.1") from None
    return SplitOptions(
        scheme=scheme or SCHEMES[0],
        fractions=(train, val, test),
        grouping=arguments.split_grouping,
        seed=arguments.seed,
        by_event=arguments.group == EVENT,
    )


def _ingest(arguments: argparse.Namespace) -> int:
    from engine.ingest.description import describe_report
    from engine.ingest.job import IngestOptions, ingest  # starts Ray's import, which the other commands do not need

    entry = FORMATS[arguments.format]
    paths = arguments.paths if entry.takes_paths else []
    given = {option: getattr(arguments, option.name) for option in entry.options}
    chosen = {option.name: _parse_option(option, text) for option, text in given.items() if text is not None}
    if arguments.group not in (None, EVENT):
        if "columns" not in (option.name for option in entry.options):
            raise UserError("--group", f"{arguments.group!r} for the format {arguments.format}", f"{EVENT}, or a table")
        chosen["columns"] = {**chosen.get("columns", {}), "group": arguments.group}
    if entry.takes_seed:
        chosen["seed"] = arguments.seed
    options = IngestOptions(
        specimens_per_shard=arguments.specimens_per_shard,
        seed=arguments.seed,
        layout=arguments.layout,
        max_side=arguments.max_side,
        splits=_split_options(arguments),
        overwrite=arguments.overwrite,
        parallel=not arguments.serial,
        source={
            "format": arguments.format,
            "paths": [path.shown if isinstance(path, Location) else str(path) for path in paths],
            "options": {option.name: text for option, text in given.items() if text is not None}
            | ({"group": arguments.group} if arguments.group else {})
            | ({"exclude": str(arguments.exclude)} if arguments.exclude else {}),
        },
    )
    started = time.monotonic()
    source = open_dataset(arguments.format, paths, **chosen)
    source = Excluding(source, arguments.exclude) if arguments.exclude else source
    report = ingest(source, arguments.out, options)
    print("\n".join(describe_report(report)))
    written = report["written"]
    modalities = ", ".join(f"{name} {count}" for name, count in written["modalities"].items())
    print(f"with:            {modalities}")
    print("per split:       " + ", ".join(f"{name} {count}" for name, count in written["splits"].items()))
    seconds = time.monotonic() - started
    shown = Location.parse(arguments.out).shown
    warn_of_names(report["names"])
    print(f"{shown} written in {seconds:.1f} s; its report.html says what is in it, and what was left out and why")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from engine.ingest.description import describe

    print(describe(arguments.directory))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    problems = verify(arguments.directory)
    for problem in problems:
        print(problem)
    print(f"{arguments.directory}: " + (f"{len(problems)} problems" if problems else "no problems"))
    return 1 if problems else 0


def _check(arguments: argparse.Namespace) -> int:
    from engine.curation.job import NAMES, check

    only = arguments.only.split(",") if arguments.only is not None else NAMES
    outcome = check(arguments.directories, arguments.out, only=only, parallel=not arguments.serial)
    print(outcome.text)
    found = outcome.report["found"]
    print(f"\n{found} checks found something; {outcome.out.shown}/{HTML_NAME} shows it")
    return 1 if found else 0


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    command = {"ingest": _ingest, "inspect": _inspect, "verify": _verify, "check": _check}[arguments.command]
    return guarded(lambda: command(arguments))


if __name__ == "__main__":
    sys.exit(main())
