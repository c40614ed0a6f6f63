"""All drills, one after the other, and their table: what must hold beside what was seen.

    python -m tests.drills --out DIR [--only NAME ...] [--keep] [--list]

Needs root (network namespaces), Debian's postgresql, redis-server and iproute2, and `pip install -e ".[test,server]"`.
Every drill has a limit of its own (--limit overrides it); a machine's processes are ended by their ids, and at the end
no namespace, bridge or process is left. DIR/rows.jsonl keeps the rows, DIR/logs what Ray said.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.drills.cluster import authenticate
from tests.drills.machines import Network

SPECIMENS = 600


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """TimeoutError in the block when it takes longer."""

    def over(*_: Any) -> None:
        raise TimeoutError(f"the drill took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def shards_of(folder: Path) -> Path:
    """Simulated specimens of 16 species."""
    from engine.formats.registry import open_dataset
    from engine.ingest.job import IngestOptions, ingest

    source = open_dataset("simulated", [], seed=0, num_specimens=SPECIMENS, num_species=16)
    ingest(source, folder, IngestOptions(specimens_per_shard=200, parallel=False, overwrite=True))
    return folder


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| what dies | expected | observed | | s |", "|---|---|---|---|---:|"]
    for row in rows:
        held = "held" if row["held"] else "**NOT HELD**"
        lines.append(f"| {row['what']} | {row['expected']} | {row['observed']} | {held} | {row['seconds']} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.drills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("drills"), help="a folder that is emptied (default: drills)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="some of the drills (see --list)")
    parser.add_argument("--list", action="store_true", help="names of the drills, and stop")
    parser.add_argument(
        "--keep", action="store_true", help="do not empty the folder: what held there is not done again"
    )
    parser.add_argument("--limit", type=float, default=0.0, help="seconds for each drill")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the drills; 1 when one did not hold."""
    options = parse()
    out: Path = options.out.resolve()
    if not options.keep:
        shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(out / "services", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    authenticate(out)  # before Ray is imported
    from tests.drills.drills import DRILLS, Bench
    from tests.drills.services import Services

    if options.list:
        print("\n".join(f"{name:14} {drill.what}: {drill.expected}" for name, drill in DRILLS.items()))
        return 0
    if unknown := set(options.only) - set(DRILLS):
        print(f"error: --only {sorted(unknown)[0]}; allowed: {', '.join(DRILLS)}", file=sys.stderr)
        return 2
    if os.geteuid():
        print("error: network namespaces need root", file=sys.stderr)
        return 2
    file = out / "rows.jsonl"
    rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {row["drill"] for row in rows if row["held"]}
    chosen = [name for name in DRILLS if not options.only or name in ("undisturbed", *options.only)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what it started is to end with it
    with Network() as network, Services(out / "services", network.host) as services, ExitStack() as stack:
        bench = Bench(network, services, out, shards_of(out / "shards"))
        stack.callback(bench.clear)
        for name in (name for name in chosen if name not in done):
            drill, started = DRILLS[name], time.monotonic()
            try:
                with limit(options.limit or drill.limit_s):
                    observed, held = drill.run(bench), True
            except Exception as error:  # whatever breaks: the other drills and the table must come
                observed, held = " ".join(f"{type(error).__name__}: {error}".split())[-600:], False
                bench.clear()
            row = {
                "drill": name,
                "what": drill.what,
                "expected": drill.expected,
                "observed": observed,
                "held": held,
                "seconds": round(time.monotonic() - started),
            }
            rows.append(row)
            with file.open("a") as kept:
                kept.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    last = {row["drill"]: row for row in rows}
    print(table([last[name] for name in DRILLS if name in last]))
    return int(not all(row["held"] for row in last.values()))


if __name__ == "__main__":
    sys.exit(main())
