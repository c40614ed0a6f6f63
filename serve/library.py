"""The reference library of a service: known specimens whose barcodes answers are compared with.

    python -m serve.library build shards/bold --out libraries/bold
    python -m serve.library build downloads/ --format bold --out libraries/downloads
    python -m serve.library add libraries/bold new.fasta
    python -m serve.library inspect libraries/bold
    python -m serve.library rebuild libraries/bold     # of an older format

A library is one folder (`train.reference`): records, the index of their barcodes, checksums; nothing is trained. A
service or a job that has it open goes on with what it opened; `add` puts the next version in its place.
"""

import argparse
import dataclasses
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.commandline import Parser, guarded
from engine.specimens.taxonomy import RANKS
from engine.store.shards import file_sha256
from serve.bulk.sources import NAMES, SHARDS, format_of, open_source
from train.reference import Encoder, Library, References, read_shards, read_source
from train.reference.library import MANIFEST, read_manifest, rebuilt

_SHOWN = 5  # of what was left out


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m serve.library", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="build | add | inspect | rebuild")
    build = commands.add_parser("build", help="make a library of known specimens")
    add = commands.add_parser("add", help="put further specimens into a library, as its next version")
    add.add_argument("library", metavar="LIBRARY", type=Path, help="folder of a library")
    for command in (build, add):
        command.add_argument("paths", nargs="+", metavar="PATH", help="shards, FASTA, tables, downloads, photo folders")
        command.add_argument("--format", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)} (found out)")
        command.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the format")
        command.add_argument("--split", default="train", help="of shards (default: %(default)s)")
        command.add_argument("--checkpoint", metavar="DIR", help="also keep this model's features of each specimen")
        command.add_argument("--licence", metavar="TEXT", help="of the records, e.g. CC-BY-4.0; answers name it")
    build.add_argument("--out", required=True, type=Path, metavar="DIR", help="new or empty folder")
    inspect = commands.add_parser("inspect", help="what a library holds; exit code 1 if its files were changed")
    rebuild = commands.add_parser("rebuild", help="bring a library of an older format up to date")
    for command in (inspect, rebuild):
        command.add_argument("library", metavar="LIBRARY", type=Path)
    return parser


def read(arguments: argparse.Namespace) -> References:
    """The specimens that a command line names. Raises ValueError for what the user can mend."""
    encoder = None
    if arguments.checkpoint:
        from serve.models.registry import resolve_checkpoint
        from train.models import checkpoint

        loaded = checkpoint.load(resolve_checkpoint(arguments.checkpoint).path)
        encoder = Encoder(loaded.model, loaded.config.data)
    if (arguments.format or format_of(arguments.paths)) == SHARDS:
        return read_shards(arguments.paths, arguments.split, encoder)
    return read_source(open_source(arguments.paths, arguments.format or "", arguments.option), encoder)


def build(found: References, out: Path, licence: str | None = None) -> Library:
    """Make a library in a new folder. Raises ValueError when something is there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out: got {out}, which is not empty; allowed: a new or empty folder")
    library = _licensed(Library.build(found.records, found.barcodes, found.features), licence)
    _put(library, out)
    return library


def add(folder: Path, found: References, licence: str | None = None) -> tuple[Library, int]:
    """Put specimens into a library; those whose key it has already stay out. Its licence stays unless one is given.

    Returns the next version, which stands in the folder, and how many specimens stayed out.
    Raises ValueError when there is no library, or nothing new.
    """
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
    _put(library, folder)
    return library, len(known) - len(fresh)


def _licensed(library: Library, licence: str | None) -> Library:
    return library if licence is None else dataclasses.replace(library, licence=licence)


def _put(library: Library, folder: Path) -> None:
    """Write beside the folder and rename: who has the old one open keeps it, and nobody sees half of the new one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)
    library.save(part)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def describe(folder: Path) -> tuple[str, list[str]]:
    """What a library holds, as text, and the files that are not those that were saved."""
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


def run(arguments: argparse.Namespace) -> int:
    """Run one command; returns its exit code. Raises ValueError for what the user can mend."""
    if arguments.command == "inspect":
        told, changed = describe(arguments.library)
        print(told)
        return 1 if changed else 0
    if arguments.command == "rebuild":
        library = rebuilt(arguments.library)
        _put(library, arguments.library)
        print(f"{arguments.library}: version {library.version}, {library.num_haplotypes:,} different barcodes, rebuilt")
        return 0
    if arguments.command == "add":
        read_manifest(arguments.library)  # before minutes of reading
    found = read(arguments)
    if arguments.command == "build":
        library, known, folder = build(found, arguments.out, arguments.licence), 0, arguments.out
    else:
        (library, known), folder = add(arguments.library, found, arguments.licence), arguments.library
    print(
        f"{folder}: version {library.version}, {len(library.records):,} specimens, "
        f"{library.num_haplotypes:,} different barcodes"
    )
    if known:
        print(f"stayed out: {known:,} whose key the library has already")
    if found.skipped:
        print(f"could not be used: {len(found.skipped):,} barcodes, photos or records, e.g.")
        print("\n".join(f"  {key}: {reason}" for key, reason in found.skipped[:_SHOWN]))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code (2 = something the user can mend, said in one line)."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
