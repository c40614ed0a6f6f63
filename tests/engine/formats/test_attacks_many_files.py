"""300 hostile files, drawn from a seed: changed copies of honest ones through every format, to the last photo.

Each is read in one child process, whose memory is bounded: what kills or hangs it is named.
"""

import gzip
import json
import multiprocessing
import random
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.formats.registry import open_dataset
from engine.signals.images import to_jpeg
from tests.engine.formats.fixtures import barcode, photo

pytestmark = pytest.mark.slow  # a child process, and some 40 s

COUNT = 300
SECONDS = 20  # of CPU for one file
MEMORY_MIB = 900  # that the child may grow by over all of them
KEYS = [f"k{number}" for number in range(12)]
ALLOWED = (ValueError, OSError)
ALLOWED_OUTCOMES = ("read", "ValueError", "UserError", "OSError", "FileNotFoundError")


def write_csv(path: Path) -> None:
    rows = [f'{key},{barcode(n)},Diptera,"Musca domestica",photo{n}.jpg' for n, key in enumerate(KEYS)]
    path.write_text("\n".join(["id,dna,order,species,image", *rows]) + "\n")
    for number in range(len(KEYS)):
        (path.parent / f"photo{number}.jpg").write_bytes(photo(number))


def write_gzip(path: Path) -> None:
    write_csv(path.with_suffix(""))
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    path.with_suffix("").unlink()


def write_fasta(path: Path) -> None:
    path.write_text("".join(f">{key}|COI-5P|Musca domestica\n{barcode(n, 700)}\n" for n, key in enumerate(KEYS)))


def write_parquet(path: Path) -> None:
    pq.write_table(
        pa.table({"id": KEYS, "dna": [barcode(n) for n in range(len(KEYS))], "order": ["Diptera"] * 12}), path
    )


def write_excel(path: Path) -> None:
    book = openpyxl.Workbook()
    for row in [("id", "dna"), *((key, barcode(n)) for n, key in enumerate(KEYS))]:
        book.active.append(row)
    book.save(path)


def write_core(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "meta.xml", "<archive><core><files><location>occurrence.txt</location></files></core></archive>"
        )
        archive.writestr("occurrence.txt", "id\tdna\n" + "".join(f"{key}\t{barcode(1)}\n" for key in KEYS))


def write_hdf5(path: Path) -> None:
    photos = [np.frombuffer(photo(number), np.uint8) for number in range(len(KEYS))]
    lengths = [len(one) for one in photos]
    with h5py.File(path, "w") as file:
        group = file.create_group("all_keys")
        group["processid"] = np.array(KEYS, "S8")
        group["barcode"] = np.array([barcode(n) for n in range(len(KEYS))], "S64")
        group["image"] = np.stack([np.pad(one, (0, max(lengths) - len(one))) for one in photos])
        group["image_mask"] = np.array(lengths)


def write_photo(kind: str) -> Callable[[Path], None]:
    import cv2

    def write(path: Path) -> None:
        pixels = np.random.default_rng(5).integers(0, 255, (40, 30, 3), dtype=np.uint8)
        path.write_bytes(bytes(cv2.imencode(kind, pixels)[1]))

    return write


FORMATS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a.csv": ("table", write_csv),
    "a.csv.gz": ("table", write_gzip),
    "a.fasta": ("fasta", write_fasta),
    "a.parquet": ("table", write_parquet),
    "a.xlsx": ("table", write_excel),
    "a.zip": ("table", write_core),
    "a.hdf5": ("clibd-hdf5", write_hdf5),
    "Musca domestica/a.jpg": ("images", write_photo(".jpg")),
    "Musca domestica/a.png": ("images", write_photo(".png")),
    "Musca domestica/a.tif": ("images", write_photo(".tif")),
    "Musca domestica/a.webp": ("images", write_photo(".webp")),
    "Musca domestica/a.bmp": ("images", write_photo(".bmp")),
}
NUMBERS = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, 0x80000000, 1 << 20, 30_000)


def changed(data: bytes, draw: random.Random) -> bytes:
    """Return bytes that lie: flipped, cut, doubled, or with a number, a quote or a newline where none should be."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(found)) if found else 0
        kind = draw.randrange(8)
        if kind == 0 and found:
            found[at] = draw.randrange(256)
        elif kind == 1:
            found[at : at + 4] = struct.pack(draw.choice("<>") + "I", draw.choice(NUMBERS))
        elif kind == 2:
            found[at : at + 8] = struct.pack("<Q", draw.choice((1 << 62, (1 << 64) - 1, 1 << 40)))
        elif kind == 3:
            del found[at : at + draw.choice((1, 100, 1 << 20))]
        elif kind == 4:
            found[at:at] = found[: draw.randrange(1, 500)]
        elif kind == 5:
            found[at:at] = draw.choice((b'"', b"\n", b"\0" * 100, b"\xff" * 50, b">", b"," * 1000, b"A" * 100_000))
        elif kind == 6 and len(found) > 2:
            found[-(at // 2 + 1) :] = b""
        else:
            found[at : at + 16] = draw.randbytes(16)
    return bytes(found)


def read_all(form: str, path: Path) -> tuple[int, int]:
    """Return how many rows and photos came through."""
    rows = photos = 0
    source = open_dataset(form, [path])
    for table in source.batches():
        rows += table.num_rows
        for reference in table["image"].drop_null().to_pylist():
            try:
                to_jpeg(source.load_image(reference))
                photos += 1
            except (ValueError, FileNotFoundError, PermissionError, IsADirectoryError):
                continue
    return rows, photos


def child(folder: Path, results: Path) -> None:
    """Read hostile files one after another; note each before and after."""
    draw = random.Random(26)
    names = list(FORMATS)
    with results.open("w") as lines:
        for number in range(COUNT):
            name = names[number % len(names)]
            form, write = FORMATS[name]
            path = folder / str(number) / name
            path.parent.mkdir(parents=True)
            write(path)
            path.write_bytes(changed(path.read_bytes(), draw))
            print(json.dumps({"number": number, "name": name}), file=lines, flush=True)
            start, outcome = time.process_time(), "read"
            rows = photos = 0
            try:
                rows, photos = read_all(form, folder / str(number) if form == "images" else path)
            except ALLOWED as error:
                outcome = type(error).__name__ if "\n" not in str(error) else f"several lines: {error}"
            except BaseException as error:
                outcome = f"fault: {error!r}"[:300]
            seconds = time.process_time() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            found = {"outcome": outcome, "rows": rows, "photos": photos, "seconds": seconds, "peak": peak}
            print(json.dumps(found), file=lines, flush=True)


def lines_of(results: Path) -> Iterator[tuple[dict[str, object], dict[str, object]]]:
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(lines) == 2 * COUNT, f"the child ended with {lines[-1]}"
    yield from zip(lines[::2], lines[1::2], strict=True)


def test_hostile_files_cost_a_bounded_amount(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=child, args=(tmp_path, tmp_path / "results"))
    process.start()
    process.join(600)
    if process.is_alive():
        process.kill()
    outcomes: dict[str, int] = {}
    peaks, longest, faults = [], 0.0, []
    for asked, found in lines_of(tmp_path / "results"):
        outcome = str(found["outcome"])
        if outcome not in ALLOWED_OUTCOMES or float(str(found["seconds"])) > SECONDS:
            faults.append((asked, found))
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        peaks.append(int(str(found["peak"])))
        longest = max(longest, float(str(found["seconds"])))
    print(f"{outcomes}, longest {longest:.2f} s of CPU, memory {peaks[0]} -> {peaks[-1]} MiB")
    assert faults == []
    assert outcomes["read"] > COUNT // 4 and outcomes["ValueError"] > COUNT // 10
    assert peaks[-1] - peaks[0] < MEMORY_MIB
