"""Speed of ingest on two cores against the same functions in one process, and against a plain loop; and its memory.

    python -m tests.benchmarks.ingest_speed copy png shrink [--rounds 7] [--out ingest.json]
    python -m tests.benchmarks.ingest_speed memory --specimens 10000 200000
    python -m tests.benchmarks.ingest_speed memory --table ../shared/data/coi/barcodes.parquet

Cases: copy = 256-pixel JPEGs (25 kB), whose bytes are copied; png = the same as PNG, made JPEGs; shrink = 1024-pixel
JPEGs to a longer side of 256. Contestants, each in a process of its own, in a new order every round:
    ours    engine.ingest through Ray Data, 2 CPUs; Ray and its workers run before the clock starts
    alone   the same call without Ray, in one process
    loop    webdataset.ShardWriter fed by a loop that reads the files; pixels by PIL: open, convert("RGB"), resize
            (its default, bicubic), save with quality 95
    draft   shrink only: the loop with PIL's `thumbnail`, which lets libjpeg shrink while it decodes
All write shards of photo, barcode and labels, equally many specimens each; ours also makes index, checksums and report,
which the loop does not. Files are in the page cache. CPU is that of the process and all its children.

Memory: the driver's peak (VmHWM) and the peak of its anonymous part, the rest being files and shared memory.
"""

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from engine.formats.registry import open_dataset
from engine.ingest.job import IngestOptions, ingest
from engine.signals import images
from tests.benchmarks.engine_ops import photo

CONTESTANTS: dict[str, tuple[str, ...]] = {
    "copy": ("ours", "alone", "loop"),
    "png": ("ours", "alone", "loop"),
    "shrink": ("ours", "alone", "loop", "draft"),
}
SPECIMENS = {"copy": 16_000, "png": 12_000, "shrink": 5_000}
PER_SHARD = {"copy": 1000, "png": 1000, "shrink": 500}
NUM_FILES = {"copy": 512, "png": 512, "shrink": 128}
MAX_SIDE = {"copy": None, "png": None, "shrink": 256}


def make_source(folder: Path, case: str, specimens: int) -> Path:
    """Write photos and a table that uses them over and over; returns the table."""
    for number in range(NUM_FILES[case]):
        data = photo(number, 1024 if case == "shrink" else 256)
        if case == "png":
            data = cv2.imencode(".png", images.decode(data)[..., ::-1])[1].tobytes()
        (folder / f"{number}.{'png' if case == 'png' else 'jpg'}").write_bytes(data)
    names = sorted(path.name for path in folder.iterdir())
    rng = np.random.default_rng(0)
    letters = np.array(list("ACGT"))
    table = folder / "specimens.csv"
    with table.open("w") as file:
        file.write("id,image,barcode,order,family,genus,species,split\n")
        for n in range(specimens):
            barcode = "".join(rng.choice(letters, 658))
            file.write(f"S{n:07d},{names[n % len(names)]},{barcode},Diptera,F{n % 9},G{n % 40},G s{n % 400},train\n")
    return table


def run_ours(table: Path, case: str, out: Path, parallel: bool) -> tuple[float, float]:
    """Wall and CPU seconds of one ingest."""
    start, cpu = time.perf_counter(), cpu_seconds()
    options = IngestOptions(
        max_side=MAX_SIDE[case], specimens_per_shard=PER_SHARD[case], overwrite=True, parallel=parallel
    )
    ingest(open_dataset("table", [table]), out, options)
    return time.perf_counter() - start, cpu_seconds() - cpu


def start_ray(table: Path, out: Path) -> None:
    """Start Ray with two CPUs, and its workers with a small ingest."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
    small = table.with_name("warm.csv")
    with table.open() as file:
        small.write_text("".join(line for line, _ in zip(file, range(41), strict=False)))
    ingest(open_dataset("table", [small]), out, IngestOptions(specimens_per_shard=2, overwrite=True))


def run_loop(table: Path, case: str, out: Path, draft: bool) -> tuple[float, float]:
    """Wall and CPU seconds of the plain loop."""
    import csv

    import webdataset
    from PIL import Image

    start, cpu = time.perf_counter(), cpu_seconds()
    with table.open() as file, webdataset.ShardWriter(f"{out}/%06d.tar", maxcount=PER_SHARD[case], verbose=0) as writer:
        for row in csv.DictReader(file):
            data = (table.parent / row["image"]).read_bytes()
            if case != "copy":
                opened, side = Image.open(io.BytesIO(data)), MAX_SIDE[case]
                if draft and side:
                    opened.thumbnail((side, side))
                image = opened.convert("RGB")
                if not draft and side:
                    scale = side / max(image.size)
                    image = image.resize((round(image.width * scale), round(image.height * scale)))
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=95)
                data = buffer.getvalue()
            labels = {name: row[name] for name in ("order", "family", "genus", "species", "split")}
            writer.write({"__key__": row["id"], "jpg": data, "dna": row["barcode"].encode(), "json": labels})
    return time.perf_counter() - start, cpu_seconds() - cpu


def cpu_seconds() -> float:
    """CPU time of this process and all its living descendants, and of those that they waited for."""
    times: dict[int, tuple[int, float]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        times[int(path.parent.name)] = (int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK"))
    total, family = 0.0, {os.getpid()}
    for _ in range(8):  # generations
        family |= {pid for pid, (parent, _) in times.items() if parent in family}
    for pid in family:
        total += times.get(pid, (0, 0.0))[1]
    return total


def one(contestant: str, case: str, table: Path) -> None:
    """The body of a contestant's process: one measurement for every line that comes in."""
    with tempfile.TemporaryDirectory(dir=table.parent.parent) as folder:
        out = Path(folder)
        if contestant == "ours":
            start_ray(table, out)
        print("ready", flush=True)
        for _ in sys.stdin:
            if contestant in ("loop", "draft"):
                wall, cpu = run_loop(table, case, out, contestant == "draft")
            else:
                wall, cpu = run_ours(table, case, out, contestant == "ours")
            print(json.dumps({"wall": wall, "cpu": cpu}), flush=True)


def compare(case: str, names: list[str], rounds: int, specimens: int, scratch: Path) -> dict[str, Any]:
    """Interleaved rounds; prints medians with their range."""
    folder = scratch / case
    folder.mkdir()
    table = make_source(folder, case, specimens)
    command = [sys.executable, "-m", "tests.benchmarks.ingest_speed", case, "--source", str(table), "--one"]
    processes = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in names
    }
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for name in names:
        assert answer(processes[name]) == "ready"
    for number in range(rounds):
        for name in random.Random(number).sample(names, len(names)):
            print("go", file=processes[name].stdin, flush=True)
            results[name].append(json.loads(answer(processes[name])))
        print(case, "round", number, {name: round(runs[-1]["wall"], 2) for name, runs in results.items()}, flush=True)
    for process in processes.values():
        process.communicate()
    print(f"{case}: {specimens} specimens, {rounds} rounds")
    for name, runs in results.items():
        wall, cpu = ([run[what] for run in runs] for what in ("wall", "cpu"))
        print(f"  {name:<6} {spread([specimens / one for one in wall])} specimens/s, {spread(cpu)} CPU s")
    for other in names[1:]:
        pairs = zip(results["ours"], results[other], strict=True)
        print(f"  ours / {other}: {spread([theirs['wall'] / own['wall'] for own, theirs in pairs], 2)} times (pairs)")
    return {"case": case, "specimens": specimens, "results": results}


def answer(process: subprocess.Popen[str]) -> str:
    """The next line that is meant for us (libraries may print others)."""
    assert process.stdout is not None
    return next(line.strip() for line in process.stdout if line.startswith(("ready", "{")))


def spread(values: list[float], digits: int = 1) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def measure_memory(table: Path, scratch: Path) -> None:
    """One ingest in this process; prints its peaks."""
    anonymous = [0]

    def watch() -> None:
        while True:
            anonymous[0] = max(anonymous[0], status("RssAnon"))
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    before, start = status("VmHWM"), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        report = ingest(open_dataset("table", [table]), out, IngestOptions(overwrite=True))
    seconds, peak = time.perf_counter() - start, status("VmHWM")
    print(
        f"{report['written']['specimens']} specimens in {seconds:.0f} s; driver's peak {peak / 1024:.0f} MiB, of it "
        f"anonymous {anonymous[0] / 1024:.0f} MiB; {before / 1024:.0f} MiB before (imports)"
    )


def status(name: str) -> int:
    """A line of /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=[*SPECIMENS, "memory"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--specimens", type=int, nargs="+", help="of every case; for memory: photos, one run each")
    parser.add_argument(
        "--against", nargs="+", choices=CONTESTANTS["shrink"][1:], help="who beside ours (default: all)"
    )
    parser.add_argument("--table", type=Path, help="for memory: specimens to read instead of generated ones")
    parser.add_argument("--out", type=Path, help="JSON of all measurements")
    parser.add_argument("--scratch", type=Path, help="folder for what is written (default: a temporary one)")
    parser.add_argument("--one", choices=CONTESTANTS["shrink"], help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments.one, arguments.cases[0], arguments.source)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        scratch, found = Path(folder), []
        for case in arguments.cases:
            if case != "memory":
                specimens = (arguments.specimens or [SPECIMENS[case]])[0]
                names = [name for name in CONTESTANTS[case] if name == "ours" or name in (arguments.against or [name])]
                found.append(compare(case, names, arguments.rounds, specimens, scratch))
            elif arguments.source or arguments.table:
                measure_memory(arguments.source or arguments.table, scratch)
            else:
                for count in arguments.specimens or [10_000, 200_000]:
                    own = scratch / str(count)
                    own.mkdir()
                    table = make_source(own, "copy", count)
                    command = [sys.executable, "-m", "tests.benchmarks.ingest_speed", "memory", "--source", str(table)]
                    subprocess.run([*command, "--scratch", str(scratch)], check=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
