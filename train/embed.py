"""Encode photos once with a frozen trunk: features of every photo, for a photo library, a training or other programs.

    python -m train.embed shards/moths --out features/moths
    python -m train.embed photos/ --format images --model timm:resnet50 --weights resnet50.safetensors --out f
    python -m train.embed shards/moths --model hf-hub:imageomics/bioclip-2 --workers 4 --gpu --out features/bioclip2

Written to --out: part-*.npy (float16 [n, V, F]: photos, views, features), records.parquet (key, names, split, one row
a feature in order), manifest.json (the trunk, its weights' sha256, the views, sha256 of every file). A command that was
interrupted goes on when it is given again. `--one-file` also writes the mean over the views
into one file.

Legend: n photos, V views (the photo, and mirrored), S side, F features.
"""

import argparse
import functools
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]  # as a script, this file's folder stands first on the path: put ours there
sys.path[:] = [str(ROOT)] + [p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "train")]

from engine.commandline import Parser, answered  # noqa: E402
from engine.errors import UserError  # noqa: E402

FORMAT_VERSION = 1
MANIFEST, RECORDS = "manifest.json", "records.parquet"
PART = 256  # photos of a file, the step of going on
BATCH = 16  # photos encoded at once: 32 take as long each and twice the memory
log = logging.getLogger(__name__)


class PhotoEncoder:
    """Photos -> a trunk's features of their views; built once per process."""

    def __init__(self, model: str, weights: str = "", side: int = 0, device: str = "cpu") -> None:
        """Find and build the trunk; `side` 0 = its own. Raises UserError as `trunks.resolve` and `trunks.build`."""
        from engine.store.shards import file_sha256
        from train.models import trunks

        self.again = functools.partial(PhotoEncoder, model, weights, side, device)  # in another process
        self.source = trunks.resolve(model, weights)
        if side and self.source.fixed and side != self.source.side:
            raise UserError("--side", side, f"{self.source.side}, which {self.source.name} takes")
        self.side = side or self.source.side
        self.trunk = trunks.build(self.source).to(device)
        sha256 = file_sha256(self.source.weights) if self.source.weights else "random"
        architecture = {key: value for key, value in self.source.to_dict().items() if key not in ("name", "side")}
        self.description: dict[str, Any] = {
            "name": self.source.name,
            "weights_sha256": sha256,
            "side": self.side,
            "views": ["photo", "mirrored"],
            "architecture": json.loads(json.dumps(architecture)),
        }

    def view(self, photo: bytes) -> np.ndarray:
        """Return a photo's centre square, uint8 [S, S, 3]. Raises ValueError for what is no photo."""
        from engine.signals import images

        return images.evaluation_view(images.decode(photo, self.side), self.side)

    def encode(self, views: Sequence[np.ndarray]) -> np.ndarray:
        """Encode n views uint8 [S, S, 3] and their mirror images: float16 [n, V, F]."""
        import torch

        from train.models import trunks

        parts = []
        for start in range(0, len(views), BATCH):
            square = np.stack(views[start : start + BATCH])
            both = [torch.from_numpy(one) for one in (square, np.ascontiguousarray(square[:, :, ::-1]))]
            parts.append(torch.stack([trunks.encode(self.trunk, self.source, one) for one in both], 1).cpu().numpy())
        return np.concatenate(parts).astype(np.float16)


@dataclass(frozen=True)
class Photos:
    """n photos to encode, in order."""

    records: Any  # pa.Table: key, RANKS, perhaps split
    load: Callable[[int], bytes]  # raises ValueError or OSError for what cannot be read


def open_photos(paths: Sequence[str], form: str = "", split: str = "") -> Photos:
    """Open the photos of shards or of a source of `engine.formats`. Raises UserError when there is none."""
    import pyarrow.compute as pc

    from engine.batches.pipeline import load_index, select_split
    from engine.formats.registry import open_dataset
    from engine.formats.source import read_all
    from engine.store.members import COLUMNS, Members
    from engine.store.shards import MANIFEST_NAME
    from engine.store.storage import Location

    if not form and (Location.parse(paths[0]) / MANIFEST_NAME).is_file():
        index = load_index(list(paths))
        index = select_split(index, split) if split else index
        index = index.filter(pc.greater(index["image_size"], 0))
        members, rows = Members(), index.select(["folder", *COLUMNS]).to_pylist()
        photos = Photos(index, lambda row: members.photo(rows[row]) or b"")
    else:
        source = open_dataset(form or "auto", [Location.parse(path).path for path in paths])
        records = read_all(source)
        records = records.filter(pc.is_valid(records["image"]))
        names = records["image"].to_pylist()
        photos = Photos(records, lambda row: source.load_image(names[row]))
    if not len(photos.records):
        raise UserError("photos", f"{', '.join(map(str, paths))}, which has none", "some with photos")
    return photos


class PartWriter:
    """Encodes photos part by part into files of a folder; built once per process, in Ray Data's actors too."""

    def __init__(self, photos: Photos, encoder: Callable[[], PhotoEncoder], out: Path, part: int) -> None:
        self.photos, self.encoder, self.out, self.part = photos, encoder(), out, part

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Write the parts {"item": [numbers]}; return their names, sha256 and unreadable photos (JSON)."""
        from engine.store.shards import file_sha256
        from engine.store.storage import Location

        written: dict[str, list[Any]] = {"name": [], "sha256": [], "skipped": []}
        for number in batch["item"]:
            first = int(number) * self.part
            array, reasons = self._encode(range(first, min(first + self.part, len(self.photos.records))))
            name = _part_name(int(number))
            with Location.parse(self.out / name).writing() as file:
                np.save(file, array, allow_pickle=False)
            written["name"].append(name)
            written["sha256"].append(file_sha256(self.out / name))
            keys = self.photos.records["key"]
            written["skipped"].append(json.dumps({keys[row].as_py(): reason for row, reason in reasons.items()}))
        return written

    def _encode(self, rows: range) -> tuple[np.ndarray, dict[int, str]]:
        """Encode some photos, float16 [n, V, F]; zeros for those that cannot be read, whose reasons are returned."""
        views, reasons = [], {}
        for row in rows:
            try:
                views.append(self.encoder.view(self.photos.load(row)))
            except (ValueError, OSError) as error:
                views.append(np.zeros((self.encoder.side, self.encoder.side, 3), np.uint8))
                reasons[row] = str(error)
        array = self.encoder.encode(views)
        array[[row - rows.start for row in reasons]] = 0
        return array, reasons


def _part_name(number: int) -> str:
    return f"part-{number:05d}.npy"


def embed(photos: Photos, encoder: PhotoEncoder, out: Path, workers: int = 0, gpus: float = 0.0) -> dict[str, Any]:
    """Encode all photos into a folder, going on with the parts that are there; return its manifest.

    Args:
        photos: of `open_photos`.
        encoder: used here, or as the pattern of those in the actors.
        out: folder, made if it is not there.
        workers: actors of Ray Data, a core each; 0 = in this process.
        gpus: of each actor.

    Raises:
        UserError: the folder holds features of another trunk or of other photos.
    """
    from engine.specimens.taxonomy import RANKS
    from engine.store.shards import file_sha256
    from engine.store.storage import Location

    out.mkdir(parents=True, exist_ok=True)
    keys = photos.records["key"].to_pylist()
    digest = hashlib.sha256(json.dumps(keys).encode()).hexdigest()
    manifest = _begun(out, {"format_version": FORMAT_VERSION, "trunk": encoder.description, "keys_sha256": digest})
    done = manifest["files"]
    count = -(-len(keys) // PART)
    missing = [
        number
        for number in range(count)
        if not (out / (name := _part_name(number))).is_file() or file_sha256(out / name) != done.get(name)
    ]
    for name, sha256, skipped in _written(photos, encoder, out, missing, workers, gpus):
        done[name] = sha256
        manifest["skipped"] |= json.loads(skipped)
        Location.parse(out / MANIFEST).write_atomically(json.dumps(manifest, indent=1).encode())
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name for name in ("key", *RANKS, "split") if name in photos.records.column_names]
    encoded = pa.array([key not in manifest["skipped"] for key in keys])
    pq.write_table(photos.records.select(names).append_column("encoded", encoded), out / RECORDS)
    manifest["records_sha256"] = file_sha256(out / RECORDS)
    Location.parse(out / MANIFEST).write_atomically(json.dumps(manifest, indent=1).encode())
    return manifest


def _written(
    photos: Photos, encoder: PhotoEncoder, out: Path, missing: Sequence[int], workers: int, gpus: float
) -> Iterator[tuple[str, str, str]]:
    """Yield (name, sha256, unreadable photos) of each part as it is written."""
    if not workers:
        from tqdm import tqdm

        writer = PartWriter(photos, lambda: encoder, out, PART)
        for number in tqdm(missing, desc="photos", unit=f" x {PART}", disable=None, leave=False):
            written = writer({"item": [number]})
            yield written["name"][0], written["sha256"][0], written["skipped"][0]
        return
    import ray.data

    from engine.ray_seams import start_ray

    start_ray()
    again = encoder.again
    rows = ray.data.from_items([{"item": number} for number in missing], override_num_blocks=max(1, len(missing)))
    done = rows.map_batches(
        PartWriter,
        fn_constructor_args=(photos, again, out.resolve(), PART),
        batch_size=1,
        concurrency=min(workers, max(1, len(missing))),
        num_cpus=1,
        num_gpus=gpus or None,
    )
    for row in done.iter_rows():
        yield row["name"], row["sha256"], row["skipped"]


def _begun(out: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of an embedding that has begun here, or a new one."""
    if not (out / MANIFEST).is_file():
        return {**wanted, "files": {}, "skipped": {}}
    there = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    for key, value in wanted.items():
        if there.get(key) != value:
            raise UserError("--out", f"{out}, which holds features with another {key}", "a new folder")
    return there


def read(folder: str | Path) -> tuple[Any, np.ndarray, dict[str, Any]]:
    """Read a folder of `embed`: records (pa.Table) and features float16 [n, V, F] of the photos encoded, the trunk.

    Raises UserError when a file is missing or not the one that was written.
    """
    import pyarrow.parquet as pq

    from engine.store.shards import file_sha256

    place = Path(folder)
    if not (place / RECORDS).is_file():
        raise UserError("features", place, "a folder that `python -m train.embed` has finished")
    manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    for name, digest in {**manifest["files"], RECORDS: manifest["records_sha256"]}.items():
        if not (place / name).is_file() or file_sha256(place / name) != digest:
            raise UserError("features", f"{place / name}, not the file that was written", "photos embedded again")
    records = pq.read_table(place / RECORDS)
    features = np.concatenate([np.load(place / name, allow_pickle=False) for name in sorted(manifest["files"])])
    good = np.asarray(records["encoded"])
    return records.filter(records["encoded"]).drop_columns("encoded"), features[good], manifest["trunk"]


def write_one_file(folder: Path, file: Path) -> None:
    """Write a folder's features, the mean over views, into one .npy (float32 [n, F]) or .parquet (key, feature)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    records, features, _ = read(folder)
    mean = features.astype(np.float32).mean(1)
    if file.suffix == ".npy":
        np.save(file, mean, allow_pickle=False)
        return
    column = pa.FixedSizeListArray.from_arrays(pa.array(mean.ravel()), mean.shape[1])
    pq.write_table(records.append_column("feature", column), file)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m train.embed", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="shards, or what --format reads: photo folders, tables, downloads")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the features")
    add("--model", default="pretrained", metavar="NAME", help="package:, timm:, local-dir:, hf-hub:, open_clip's")
    add("--weights", default="", metavar="FILE", help="of the trunk, in place of its own; random = none")
    add("--side", type=int, default=0, metavar="PIXELS", help="of the photos as the trunk sees them (its own)")
    add("--format", default="", metavar="NAME", help="of `engine.main ingest`, for what is no shards (found out)")
    add("--split", default="", metavar="NAME", help="of shards (default: all)")
    add("--workers", type=int, default=0, metavar="N", help="Ray Data actors, a core each (0 = in this process)")
    add("--gpu", action="store_true", help="a GPU for the process, or for each actor")
    add("--one-file", type=Path, metavar="FILE", help="also write all features into one .npy or .parquet file")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> str:
    """Encode and return what to print. Raises UserError for what the user can mend."""
    if options.one_file and options.one_file.suffix not in (".npy", ".parquet"):
        raise UserError("--one-file", options.one_file, "a name that ends in .npy or .parquet")
    if options.workers < 0 or options.side < 0:
        raise UserError("--workers, --side", f"{options.workers}, {options.side}", "0 or more")
    photos = open_photos(options.paths, options.format, options.split)
    encoder = PhotoEncoder(options.model, options.weights, options.side, "cuda" if options.gpu else "cpu")
    manifest = embed(photos, encoder, options.out, options.workers, float(options.gpu))
    if options.one_file:
        write_one_file(options.out, options.one_file)
    skipped = "".join(f"\n  {key}: {reason}" for key, reason in list(manifest["skipped"].items())[:5])
    return (
        f"{options.out}: {len(photos.records) - len(manifest['skipped']):,} photos by {encoder.source.name} at "
        f"{encoder.side} pixels; could not be read: {len(manifest['skipped']):,}{skipped}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code (2 = something the user can mend, said in one line)."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return answered(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
