"""Name photos from a library of known ones, without training: build, extend, shrink, ask.

    python -m train.embed shards/moths --out features/moths
    python -m train.photos build features/moths --split train --out libraries/moths
    python -m train.photos add libraries/moths features/new
    python -m train.photos remove libraries/moths KEY KEY
    python -m train.photos identify libraries/moths photo.jpg other.jpg

Photos of one specimen in a row are given as a.jpg,b.jpg. Answers are JSON, one line a specimen: name and probability
per rank, whether the species is likely none of the library's, and the nearest reference photos.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]  # as a script, this file's folder stands first on the path: put ours there
sys.path[:] = [str(ROOT)] + [p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "train")]

from engine.commandline import Parser, answered  # noqa: E402
from engine.errors import UserError  # noqa: E402

NEAREST = 5


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m train.photos", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="build | add | remove | identify")
    build = commands.add_parser("build", help="make a library of embedded photos")
    add = commands.add_parser("add", help="put further embedded photos into a library")
    remove = commands.add_parser("remove", help="take photos out, as if they had never been there")
    identify = commands.add_parser("identify", help="name photos")
    for command in (add, remove, identify):
        command.add_argument("library", type=Path, metavar="LIBRARY")
    for command in (build, add):
        command.add_argument("features", type=Path, metavar="FEATURES", help="folder of `train.embed`")
        command.add_argument("--split", default="", metavar="NAME", help="only photos of this split")
    build.add_argument("--out", required=True, type=Path, metavar="DIR", help="new folder")
    build.add_argument("--licence", default="not stated", metavar="TEXT", help="of the photos; answers name it")
    remove.add_argument("keys", nargs="+", metavar="KEY")
    identify.add_argument("photos", nargs="+", metavar="PHOTO", help="a file, or several of one specimen: a.jpg,b.jpg")
    identify.add_argument(
        "--weights", default="", metavar="FILE", help="of the trunk, where `train.embed` was given it"
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> str:
    """Run one command and return what to print. Raises UserError for what the user can mend."""
    import dataclasses

    from train.photo_head import PhotoLibrary

    if options.command == "build":
        if options.out.exists() and any(options.out.iterdir()):
            raise UserError("--out", f"{options.out}, which is not empty", "a new or empty folder")
        library = PhotoLibrary.build(*_embedded(options.features, options.split))
        library, place = dataclasses.replace(library, licence=options.licence), options.out
    else:
        library, place = PhotoLibrary.load(options.library), options.library
        if options.command == "identify":
            return "\n".join(json.dumps(answer) for answer in identify(library, options.photos, options.weights))
        if options.command == "add":
            library = library.add(*_embedded(options.features, options.split))
        else:
            library = library.remove(options.keys)
    library.save(place)
    sizes = ", ".join(str(size) for size in library.taxonomy.sizes)
    return f"{place}: {len(library.records):,} photos; orders, families, genera, species: {sizes}; {library.settings}"


def _embedded(folder: Path, split: str) -> tuple[Any, np.ndarray, dict[str, Any]]:
    """Read embedded photos, of one split if it is named."""
    import pyarrow.compute as pc

    from train.embed import read

    records, views, trunk = read(folder)
    if split:
        chosen = pc.equal(records["split"], split) if "split" in records.column_names else pc.is_null(records["key"])
        records, views = records.filter(chosen), views[np.asarray(pc.fill_null(chosen, False))]
        if not len(records):
            raise UserError("--split", f"{split!r}, of which {folder} has no photo", "a split that it has, or none")
    return records, views, trunk


def identify(library: Any, photos: Sequence[str], weights: str = "") -> list[dict[str, Any]]:
    """Answer specimens, each one or several photo files, with the library's own trunk.

    Raises ValueError for a photo that cannot be read and for a trunk or weights that are not the library's.
    """
    from engine.specimens.taxonomy import RANKS
    from train.embed import PhotoEncoder

    weights = "random" if library.trunk["weights_sha256"] == "random" else weights
    encoder = PhotoEncoder(library.trunk["name"], weights, library.trunk["side"])
    features = []
    for group in photos:
        views = [encoder.view(Path(file).read_bytes()) for file in group.split(",")]
        features.append(library.specimen(encoder.encode(views), encoder.description))
    answer = library.posterior(np.stack(features))
    rows, cosines = library.nearest(np.stack(features), NEAREST)
    found = []
    for number, group in enumerate(photos):
        ranks = {}
        for rank, probabilities, names in zip(RANKS, answer.ranks, library.taxonomy.names, strict=True):
            if len(names):
                best = int(probabilities[number].argmax())
                ranks[rank] = {"name": names[best], "probability": round(float(probabilities[number, best]), 4)}
        nearest = [
            {"key": library.records["key"][row].as_py(), "species": library.records["species"][row].as_py()}
            | {"similarity": round(float(cosine), 4)}
            for row, cosine in zip(rows[number].tolist(), cosines[number].tolist(), strict=True)
        ]
        found.append({"photo": group, **ranks, "novel": bool(answer.novel[number]), "nearest": nearest})
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code (2 = something the user can mend, said in one line)."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return answered(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
