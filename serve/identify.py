"""Name the specimens of files by the references of other files: files in, a table out.

    taxafuse identify barcodes.fasta --reference bold_download.tsv
    taxafuse identify barcodes.fasta --reference libraries/mine --out names.xlsx
    taxafuse identify specimens.csv --reference bold_download.tsv --model runs/NAME --out names.csv
    taxafuse identify barcodes.fasta --reference bold_download.tsv --region Canada --region "United States"

References are made a library the first time, calibrated by itself, and kept below ~/.cache/taxafuse (TAXAFUSE_CACHE
names another folder) under their checksum. One row a record, in the input's order; without --out a short table, with it
all columns of `taxafuse bulk`, which does the work and goes on where it was killed. Beside x.csv stands x.review.csv,
the doubtful rows, the likeliest first: fill in corrected_name, then `taxafuse library add LIBRARY --review FILE`.
"""

import argparse
import contextlib
import hashlib
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from engine.commandline import Parser, answered
from engine.errors import UserError
from engine.specimens.taxonomy import RANKS
from engine.store.shards import file_sha256
from serve.bulk.name_files import read_checklist
from serve.bulk.sources import PHOTOS, format_of
from serve.bulk.writers import WRITERS, check_kind

log = logging.getLogger(__name__)

CACHE = "TAXAFUSE_CACHE"
SHOWN = (
    *("key", "name", "rank", "probability", "nearest_name", "nearest_identity"),
    *("provisional", "contaminant", "error"),  # each where there is one
)
ROWS, WIDTH = 40, 32  # of the short table
_SHOWN = 20  # countries that a mistake names
_KEY = 16  # letters of a checksum that name a library


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog="taxafuse identify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("input", nargs="+", metavar="INPUT", help="FASTA, tables, downloads, photos, shards: of one kind")
    add(
        "--reference",
        nargs="+",
        default=[],
        metavar="PATH",
        help="a library, or files of known specimens: FASTA with names, BOLD downloads, tables, shards",
    )
    add("--model", default="", metavar="RUN", help="a run's folder or models:/NAME@ALIAS; photos need one")
    add("--out", type=Path, metavar="FILE", help=f"all columns, in a file that ends in {', '.join(WRITERS)}")
    add("--threshold", metavar="P", help="probability that an answer needs (default: 0.95)")
    add(
        "--within",
        metavar="D",
        help="share of nucleotides by which references of the consensus may differ (default: 0.02: names most species)",
    )
    add("--only", metavar="FILE", help="names of the taxa that may be answered, one a line")
    add(
        "--region",
        action="append",
        default=[],
        metavar="COUNTRY|FILE",
        help="answer only species of which a reference comes from there, in the references' own words, or those of a "
        "checklist: names one a line, or GBIF's species list; may be repeated",
    )
    add("--soft", metavar="W", help="0..1: species outside the region stay, and count so much (default: they go)")
    add("--groups", metavar="FILE", help="species that count as one taxon, lines of GROUP: species, species")
    add("--contaminants", metavar="PATH", help="FASTA or library of what is no specimen: its hits are flagged")
    add("--cluster", metavar="D", help="distance that joins records of unknown species (default: 0.02)")
    add("--overwrite", action="store_true", help="replace a result that is there")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> str:
    """Do what a command line asks; return what to print. Raises ValueError for what the user can mend."""
    if not options.reference and not options.model:
        raise UserError("identify", "neither --reference nor --model", "known specimens, a model, or both")
    if not options.model and format_of(options.input) == PHOTOS:
        raise UserError(
            "identify",
            f"photos ({', '.join(options.input)}) and no --model",
            "--model RUN, trained on photos; or `taxafuse photos identify LIBRARY PHOTO ...` with a library of photos",
        )
    if options.out:
        check_kind(str(options.out), options.out.suffix)
    if options.region and (options.only or not options.reference):
        raise UserError("--region", "it with --only, or without --reference", "it with --reference, without --only")
    if options.soft and not options.region:
        raise UserError("--soft", f"{options.soft} and no --region", "it with --region")
    options.checklist = None
    library = library_of(options.reference) if options.reference else None
    with tempfile.TemporaryDirectory() as folder:
        if options.region and library:
            names = region_names(library, options.region)
            listed = Path(folder) / "region.txt"
            listed.write_text("\n".join(names), encoding="utf-8")
            options.only, options.checklist = (None, listed) if options.soft else (listed, None)
        if options.out:
            return _named(options, library, options.out)
        out = Path(folder) / "names.parquet"
        summary = _named(options, library, out).splitlines()
        return "\n".join([short_table(out), *(line for line in summary if line.startswith("contaminants: "))])


def _named(options: argparse.Namespace, library: Path | None, out: Path) -> str:
    """Write the result with `serve.bulk` and return its summary."""
    from serve.bulk import job

    review = out.with_suffix(".review.csv") if options.out else None
    words = [*options.input, "--out", str(out), *(["--overwrite"] if options.overwrite else [])]
    for name, value in (
        ("library", library),
        ("checkpoint", options.model),
        ("threshold", options.threshold),
        ("only", options.only),
        ("within", options.within),
        ("checklist", options.checklist),
        ("soft", options.soft),
        ("groups", options.groups),
        ("cluster", options.cluster),
        ("review", review),
        ("contaminants", options.contaminants),
    ):
        words += [f"--{name}", str(value)] if value else []
    return job.run(job.parser().parse_args(words))


def library_of(paths: Sequence[str]) -> Path:
    """Return the library of some references: the folder itself where it is one, else one made of the files once.

    Raises ValueError for paths that do not exist, and whatever building a library finds wrong.
    """
    from serve import library
    from train.inference.calibration import FORMAT_VERSION as RULES
    from train.reference.library import FORMAT_VERSION, MANIFEST, RECORDS

    if len(paths) == 1 and all((Path(paths[0]) / name).is_file() for name in (MANIFEST, RECORDS)):
        return Path(paths[0])
    for path in paths:
        if not Path(path).exists():
            raise UserError("--reference", path, "an existing library, file or folder of known specimens")
    made_by = f"{FORMAT_VERSION}.{RULES}"  # after an upgrade that raises one, another library is made
    folder = _cache() / f"{Path(paths[0]).stem[:40]}-{made_by}-{checksum(paths)[:_KEY]}"
    if (folder / MANIFEST).is_file():
        return folder
    log.warning("the references become a library once: %s", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder.parent) as place,  # whole, with its probabilities, or not at all
        contextlib.redirect_stdout(sys.stderr),  # only names go to stdout
    ):
        made = Path(place) / folder.name
        library.run(library.parser().parse_args(["build", *paths, "--out", str(made)]))
        with contextlib.suppress(FileExistsError):  # another process made the same meanwhile
            made.rename(folder)
    return folder


def region_names(library: Path, regions: Sequence[str]) -> list[str]:
    """Return the names of checklists, and the species that a library has from countries, sorted.

    Raises UserError as `species_of`, and for checklists of which the library knows no name.
    """
    import pyarrow.parquet as pq

    from train.reference.library import RECORDS

    files = [Path(one) for one in regions if Path(one).is_file()]
    listed = {name for file in files for name in read_checklist(file)}
    if files:
        records = pq.read_table(library / RECORDS, columns=list(RANKS))
        known = {name for rank in RANKS for name in records[rank].unique().to_pylist()}
        log.warning("the checklist: %s names, %s of them in the references", f"{len(listed):,}", len(listed & known))
        if not listed & known:
            raise UserError("--region", f"{', '.join(map(str, files))}: no name of the references", "names of theirs")
        listed &= known
    countries = [one for one in regions if not Path(one).is_file()]
    return sorted(listed.union(species_of(library, countries) if countries else ()))


def species_of(library: Path, countries: Sequence[str]) -> list[str]:
    """Return the species of which a library has a specimen from one of the countries.

    Raises UserError for a country that no specimen named to species has, naming those that are most frequent.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from train.reference.library import RECORDS

    records = pq.read_table(library / RECORDS, columns=["species", "country"]).drop_null()
    there = pc.utf8_lower(records["country"])
    frequent = Counter(records["country"].to_pylist()).most_common(_SHOWN)
    for country in countries:
        if not pc.any(pc.equal(there, country.lower())).as_py():
            known = ", ".join(f"{name} ({count:,})" for name, count in frequent)
            raise UserError("--region", repr(country), f"a country of the references: {known or 'none has one'}")
    wanted = pa.array([country.lower() for country in countries], there.type)
    return sorted(set(records["species"].filter(pc.is_in(there, wanted)).to_pylist()))


def _cache() -> Path:
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "taxafuse") / "libraries"


def checksum(paths: Sequence[str]) -> str:
    """Return the SHA-256 of files and folders: of what they hold, and of the names of files inside folders."""
    found = hashlib.sha256()
    for path in map(Path, paths):
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        for file in files:
            found.update(f"{file.relative_to(path)}\0{file_sha256(file)}\n".encode())
    return found.hexdigest()


def short_table(path: Path) -> str:
    """Return the first rows of a result as text in columns, and how many there are."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=list(SHOWN))
    rows = [[_cell(row[name]) for name in SHOWN] for row in table.slice(0, ROWS).to_pylist()]
    names = [name for place, name in enumerate(SHOWN) if any(row[place] for row in rows)]
    kept = [names, *([row[SHOWN.index(name)] for name in names] for row in rows)]
    widths = [max(len(row[place]) for row in kept) for place in range(len(names))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in kept]
    more = len(table) - len(rows)
    return "\n".join(lines) + (f"\n... and {more:,} more: --out FILE writes all rows and columns" if more else "")


def _cell(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code (2 = something the user can mend, said in one line)."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return answered(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
