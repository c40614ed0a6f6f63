"""How fast a format is read and how much memory that takes: rows and photos, one process and several threads.

    python -m tests.benchmarks.formats_reading auto ../shared/data/coi
    python -m tests.benchmarks.formats_reading --make 1000000 /tmp/made      # BIOSCAN-5M's metadata and a zip

Rows: a pass over `batches`, nothing kept; the peak is the process's highest resident memory above that after imports.
Photos: bytes by reference, in random order, no decoding. Each round is a pass; median and range are printed.
"""

import argparse
import csv
import hashlib
import resource
import statistics
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from engine.formats.registry import open_dataset
from engine.formats.source import SpecimenSource
from tests.engine.formats import fixtures

PHOTOS_KEPT = 20_000  # references that the photo part reads


def make_bioscan5m(folder: Path, num_rows: int, num_photos: int) -> None:
    """Write metadata of `num_rows` pretrain specimens, and a zip with the photos of the first `num_photos`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = fixtures.COLUMNS_5M.split()
    barcodes = [fixtures.barcode(seed, 658) for seed in range(500)]
    photos = [fixtures.photo(seed, 128) for seed in range(100)]
    archive = folder / "BIOSCAN_5M_cropped_256_pretrain.01.zip"
    with (folder / "BIOSCAN_5M_Insect_Dataset_metadata.csv").open("w") as file, zipfile.ZipFile(archive, "w") as zipped:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        for row in range(num_rows):
            key = f"AACTA{row}-20"
            chunk = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()[:2]
            known = {"processid": key, "order": "Diptera", "family": "Cecidomyiidae", "split": "pretrain"}
            facts = {"dna_barcode": barcodes[row % 500], "dna_bin": f"BOLD:AAA{row % 9999:04d}", "chunk": chunk}
            writer.writerow({**known, **facts, "country": "Costa Rica", "coord-lat": 10.5, "coord-lon": -84.2})
            if row < num_photos:
                zipped.writestr(f"bioscan5m/images/cropped_256/pretrain/{chunk}/{key}.jpg", photos[row % 100])


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read_rows(source: SpecimenSource) -> tuple[int, float, list[str]]:
    """Return (rows, seconds, some references of photos)."""
    started, num_rows = time.perf_counter(), 0
    refs: list[str] = []
    for batch in source.batches():
        num_rows += batch.num_rows
        if len(refs) < PHOTOS_KEPT:
            refs += batch["image"].drop_null().to_pylist()
    return num_rows, time.perf_counter() - started, refs[:PHOTOS_KEPT]


def read_photos(source: SpecimenSource, refs: list[str], threads: int) -> tuple[float, int]:
    """Return (photos per second, how many could not be read)."""

    def load(ref: str) -> bool:
        try:
            return bool(source.load_image(ref))
        except ValueError:
            return False

    order = np.random.default_rng(0).permutation(len(refs))
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        num_good = sum(pool.map(load, [refs[place] for place in order]))
    return num_good / (time.perf_counter() - started), len(refs) - num_good


def told(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} .. {max(values):,.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", nargs="?", default="auto", help="default: %(default)s")
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--make", type=int, metavar="ROWS", help="write such a release into the folder and read that")
    parser.add_argument("--photos", type=int, default=PHOTOS_KEPT, help="that --make writes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    arguments = parser.parse_intermixed_args()
    if arguments.make:
        make_bioscan5m(arguments.paths[0], arguments.make, arguments.photos)
    before, started = peak_mib(), time.perf_counter()
    source = open_dataset(arguments.format, arguments.paths)
    print(f"opened in {time.perf_counter() - started:.2f} s")
    speeds: list[float] = []
    for _ in range(arguments.rounds):
        num_rows, seconds, refs = read_rows(source)
        speeds.append(num_rows / seconds)
    print(f"rows: {num_rows:,}, left out: {len(source.skipped):,}, rows/s: {told(speeds)}")
    print(f"peak memory above imports: {peak_mib() - before:.0f} MiB")
    for threads in (1, 4) if refs else ():
        rates, num_bad = zip(*(read_photos(source, refs, threads) for _ in range(arguments.rounds)), strict=True)
        print(f"photos/s, {threads} threads: {told(list(rates))} of {len(refs):,}, not readable: {num_bad[0]}")


if __name__ == "__main__":
    main()
