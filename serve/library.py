"""The reference library of a service: known specimens whose barcodes answers are compared with.

    python -m serve.library build shards/bold --out libraries/bold
    python -m serve.library build downloads/ --format bold --out libraries/downloads
    python -m serve.library add libraries/bold new.fasta
    python -m serve.library add libraries/bold --review names.review.csv --by "A. Curator"
    python -m serve.library calibrate libraries/bold
    python -m serve.library inspect libraries/bold
    python -m serve.library names libraries/bold norway.txt
    python -m serve.library rebuild libraries/bold     # of an older format

A library is one folder (`train.reference`): records, the index of their barcodes, checksums; nothing is trained. A
service or a job that has it open goes on with what it opened; `add` puts the next version in its place.
"""

import argparse
import csv
import dataclasses
import io
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.commandline import Parser, guarded
from engine.errors import UserError
from engine.formats.understood import describe_names, is_nameless, warn_of_names
from engine.specimens.taxonomy import RANKS
from engine.store.commits import new_folder, owned, recover
from engine.store.shards import file_sha256
from serve.bulk.sources import NAMES, SHARDS, format_of, open_source

if TYPE_CHECKING:  # the commands' own imports take seconds, which --help does not need
    from train.reference import Library, References

WAIT_S = 600.0  # for another process that adds to the same library
_SHOWN = 5  # of what was left out


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m serve.library", description=__doc__, formatter_class=raw)
    kinds = "build | add | calibrate | inspect | names | rebuild"
    commands = parser.add_subparsers(dest="command", required=True, metavar=kinds)
    build = commands.add_parser("build", help="make a library of known specimens")
    add = commands.add_parser("add", help="put further specimens into a library, as its next version")
    add.add_argument("library", metavar="LIBRARY", type=Path, help="folder of a library")
    for command in (build, add):
        command.add_argument(
            "paths",
            nargs="+" if command is build else "*",
            metavar="PATH",
            help="shards, FASTA, tables, downloads, photo folders",
        )
        command.add_argument("--format", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)} (found out)")
        command.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the format")
        command.add_argument("--split", default="train", help="of shards (default: %(default)s)")
        command.add_argument("--checkpoint", metavar="DIR", help="also keep this model's features of each specimen")
        command.add_argument("--licence", metavar="TEXT", help="of the records, e.g. CC-BY-4.0; answers name it")
    add.add_argument(
        "--review", type=Path, metavar="FILE", help="put corrected names of a review back, instead of PATH"
    )
    add.add_argument("--by", default="", metavar="NAME", help="who corrected, where the review does not say it")
    build.add_argument("--unnamed", action="store_true", help="build though no specimen has a name")
    build.add_argument("--out", required=True, type=Path, metavar="DIR", help="new or empty folder")
    calibrate = commands.add_parser("calibrate", help="fit the probabilities of a library that answers without a model")
    calibrate.add_argument("library", metavar="LIBRARY", type=Path)
    inspect = commands.add_parser("inspect", help="what a library holds; exit code 1 if its files were changed")
    rebuild = commands.add_parser("rebuild", help="bring a library of an older format up to date, probabilities too")
    names = commands.add_parser("names", help="which species can be named at all: their references and nearest others")
    for command in (inspect, rebuild, names):
        command.add_argument("library", metavar="LIBRARY", type=Path)
    names.add_argument("list", metavar="LIST", type=Path, nargs="?", help="checklist (default: all of the library)")
    return parser


def tellable(folder: Path, checklist: Path | None) -> str:
    """Return a table of names as CSV: references, nearest other species, whether barcodes keep them apart."""
    from serve.bulk.name_files import read_checklist
    from train.reference import Library, apart

    library = Library.load(folder)
    names = read_checklist(checklist) if checklist else library.taxonomy.names[-1]
    found = apart(library, names, threads=os.cpu_count() or 1)
    lines = io.StringIO()
    rows = csv.writer(lines, lineterminator="\n")
    rows.writerow(["name", "references", "barcodes", "nearest_other", "distance", "told_apart"])
    for one in found:
        distance = None if one.distance is None else f"{one.distance:.4f}"
        verdict = {True: "yes", False: "no", None: "no reference"}[one.is_apart]
        rows.writerow([one.name, one.references, one.barcodes, one.other, distance, verdict])
    return lines.getvalue().rstrip("\n")


def read(arguments: argparse.Namespace) -> "References":
    """Read the specimens that a command line names. Raises ValueError for a user's mistake."""
    from train.reference import Encoder, read_shards, read_source

    encoder = None
    if arguments.checkpoint:
        from serve.models.registry import resolve_checkpoint
        from train.models import checkpoint

        loaded = checkpoint.load(resolve_checkpoint(arguments.checkpoint).path)
        encoder = Encoder(loaded.model, loaded.config.data)
    if (arguments.format or format_of(arguments.paths)) == SHARDS:
        return read_shards(arguments.paths, arguments.split, encoder)
    return read_source(open_source(arguments.paths, arguments.format or "", arguments.option), encoder)


def build(found: "References", out: Path, licence: str | None = None) -> "Library":
    """Make a library in a new folder. Raises ValueError when something is there, or another process writes there."""
    from train.reference import Library

    with owned(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"--out: got {out}, which is not empty; allowed: a new or empty folder")
        library = _licensed(Library.build(found.records, found.barcodes, found.features), licence)
        with new_folder(out) as part:
            library.save(part)
    return library


def add(folder: Path, found: "References", licence: str | None = None) -> tuple["Library", int]:
    """Put specimens into a library; those whose key it has already stay out. Its licence stays unless one is given.

    Waits for another process that writes the library. Returns the next version, which stands in the folder, and how
    many specimens stayed out. Raises ValueError when there is no library, nothing new, or the other takes too long.
    """
    from train.reference import Library

    with owned(folder, WAIT_S):
        recover(folder)
        library = Library.load(folder)
        known = pc.is_in(found.records["key"], library.records["key"].combine_chunks())
        fresh = np.flatnonzero(~np.asarray(known))
        if not len(fresh):
            raise ValueError(f"reference library: got {len(found.records):,} specimens, all of which it has already")
        library = library.extend(
            found.records.take(pa.array(fresh)),
            [found.barcodes[row] for row in fresh.tolist()],
            {name: part[fresh] for name, part in found.features.items()},
        )
        library = _licensed(library, licence)
        with new_folder(folder, replace=True) as part:
            library.save(part)
    return library, len(known) - len(fresh)


def rebuild(folder: Path) -> "Library":
    """Make the index of a library anew, where it stands. Raises ValueError when there is none, or it was changed."""
    from train.reference import Library

    with owned(folder, WAIT_S):
        recover(folder)
        library = Library.rebuilt(folder)
        with new_folder(folder, replace=True) as part:
            library.save(part)
    return library


def put_back(folder: Path, review: Path, by: str) -> str:
    """Put corrected names into a library as its next version; return what to print. Raises UserError as `read_review`.

    Waits for another process that writes the library.
    """
    from serve.bulk.review import corrected, read_review
    from train.reference import Library

    corrections = read_review(review, by)
    with owned(folder, WAIT_S):
        recover(folder)
        library, there = corrected(Library.load(folder), corrections)
        with new_folder(folder, replace=True) as part:
            library.save(part)
    fresh = len(corrections) - there
    return f"{folder}: version {library.version}, {fresh:,} records added and {there:,} renamed as reviewed"


def _licensed(library: "Library", licence: str | None) -> "Library":
    return library if licence is None else dataclasses.replace(library, licence=licence)


def calibrate(folder: Path) -> str:
    """Fit the probabilities of a library alone, and return what to print; one that is too small for that has none."""
    from train.evaluation.calibrate_library import fit_folder

    try:
        fitted = fit_folder(folder, threads=os.cpu_count() or 1)
    except ValueError as error:
        return f"{folder}: no probabilities without a model ({error})"
    return f"{folder}: probabilities without a model, fitted with {fitted.library}"


def describe(folder: Path) -> tuple[str, list[str]]:
    """Describe what a library holds, as text, and name the files that are not those that were saved."""
    from train.reference import Library
    from train.reference.library import MANIFEST, read_manifest

    recover(folder)
    manifest = read_manifest(folder)
    names = [name for name in manifest["files"] if (folder / name).is_file()]
    changed = [
        name for name, digest in manifest["files"].items() if name not in names or file_sha256(folder / name) != digest
    ]
    if changed:
        return f"{folder}: not the files that were saved: {', '.join(changed)}", changed
    library = Library.load(folder, verify=False)
    records = library.records
    lengths = np.diff(library.starts)
    size = sum((folder / name).stat().st_size for name in (*names, MANIFEST))
    lines = [
        f"version:        {manifest['version']}, checksum {manifest['checksum'][:16]}, {size / 2**20:,.0f} MiB",
        f"licence:        {library.licence}",
        f"specimens:      {len(records):,}, different barcodes {library.num_haplotypes:,}",
    ]
    if len(lengths):
        low, middle, high = np.percentile(lengths, (5, 50, 95)).astype(int).tolist()
        lines.append(f"barcode length: median {middle} nt, 5% below {low}, 5% above {high}")
    for rank, taxa in zip(RANKS, library.taxonomy.sizes, strict=True):
        column = library.labels[:, RANKS.index(rank)]
        lines.append(f"{rank + ':':<15} {taxa:,} taxa, named in {(column >= 0).mean():.1%} of the specimens")
    bins, countries = (pc.count_distinct(records[name]).as_py() for name in ("bin_uri", "country"))
    lines.append(f"BINs:           {bins:,}; countries: {countries:,}")
    widths = {name: part.shape[1] for name, part in library.features.items()}
    lines.append(f"features:       {json.dumps(widths) if widths else 'none'}")
    return "\n".join(lines), []


def _rebuilt(arguments: argparse.Namespace) -> str:
    library = rebuild(arguments.library)
    size = f"version {library.version}, {library.num_haplotypes:,} different barcodes"
    return f"{arguments.library}: {size}, rebuilt\n{calibrate(arguments.library)}"


_OF_A_LIBRARY: dict[str, Callable[[argparse.Namespace], str]] = {  # commands that print one text
    "names": lambda arguments: tellable(arguments.library, arguments.list),
    "calibrate": lambda arguments: calibrate(arguments.library),
    "rebuild": _rebuilt,
}


def _check_add(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before minutes of reading."""
    from train.reference.library import read_manifest

    if bool(arguments.paths) == bool(arguments.review):
        raise UserError("add", "both or none of PATH and --review", "one of them")
    recover(arguments.library)
    read_manifest(arguments.library)


def run(arguments: argparse.Namespace) -> int:
    """Run one command; return its exit code. Raises ValueError for a user's mistake."""
    if arguments.command == "inspect":
        text, changed = describe(arguments.library)
        print(text)
        return 1 if changed else 0
    if arguments.command in _OF_A_LIBRARY:
        print(_OF_A_LIBRARY[arguments.command](arguments))
        return 0
    if arguments.command == "add":
        _check_add(arguments)
        if arguments.review:
            print(put_back(arguments.library, arguments.review, arguments.by))
            print(calibrate(arguments.library))
            return 0
    found = read(arguments)
    print("\n".join(describe_names(found.names)))
    warn_of_names(found.names)
    if arguments.command == "build":
        if is_nameless(found.names) and not arguments.unnamed:
            raise ValueError(
                f"library: got {len(found.records):,} specimens of which none has a name; allowed: names that can be "
                "read (--option taxonomy=FILE for FASTA, --option columns=species=COLUMN for tables), or --unnamed"
            )
        library, known, folder = build(found, arguments.out, arguments.licence), 0, arguments.out
    else:
        (library, known), folder = add(arguments.library, found, arguments.licence), arguments.library
    print(
        f"{folder}: version {library.version}, {len(library.records):,} specimens, "
        f"{library.num_haplotypes:,} different barcodes"
    )
    print(calibrate(folder))
    if known:
        print(f"stayed out: {known:,} whose key the library has already")
    if found.skipped:
        print(f"could not be used: {len(found.skipped):,} barcodes, photos or records, e.g.")
        print("\n".join(f"  {key}: {reason}" for key, reason in found.skipped[:_SHOWN]))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code (2 = something the user can mend, said in one line)."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
