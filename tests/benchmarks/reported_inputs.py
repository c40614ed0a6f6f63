"""Run the commands of the reported inputs (`../shared/cases`) in this process and print what each gave, a row a case.

    python tests/benchmarks/reported_inputs.py ../shared/cases --out /tmp/cases > after.tsv

Only ingests and builds of libraries are run: what needs a trained model is not. With `--compare before.tsv` a Markdown
table of both is printed.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from engine import main as engine_main
from serve import library

RANKS = ("order", "family", "genus", "species")


def run(arguments: list[str], main: object) -> tuple[int, str, float]:
    """Return (exit code, the last line on stderr, seconds) of a command."""
    errors = io.StringIO()
    logging.getLogger().handlers.clear()
    started = time.monotonic()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(arguments)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        except Exception as error:  # a traceback is what some commands gave
            code, _ = 1, errors.write(f"traceback: {error!r}\n")
    lines = [line for line in errors.getvalue().splitlines() if line.strip() and "%|" not in line]
    return code, " ".join((lines or [""])[-1].split())[:110], time.monotonic() - started


def summary(out: Path) -> str:
    """Return what a folder of shards or a library holds: records, those named per rank, reasons for the others."""
    if (out / "report.json").is_file():
        report = json.loads((out / "report.json").read_bytes())
        labelled = report["written"]["labelled"]
        named = "/".join(str(labelled.get(rank, 0)) for rank in RANKS)
        species = sorted(set(pq.read_table(out / "index.parquet")["species"].to_pylist()) - {None})
        reasons = [
            f"{count} {reason}"
            for kind in ("skipped", "image_removed", "barcode_removed")
            for reason, count in report[kind]["by_reason"].items()
        ]
        return (
            f"{report['written']['specimens']} of {report['records_read']}, named {named}, {len(species)} species"
            + (f"; {', '.join(reasons)}" if reasons else "")
        )
    if (out / "records.parquet").is_file():
        table = pq.read_table(out / "records.parquet")
        named = "/".join(str(len(table) - table[rank].null_count) for rank in RANKS)
        return f"library of {len(table)}, named {named}"
    return ""


def prepare(case: Path, place: Path) -> list[list[str]]:
    """Copy a case and return its commands' arguments; the few lines of shell that make files are run."""
    shutil.copytree(case, place, symlinks=True)
    commands = []
    for line in (place / "commands.txt").read_text().splitlines():
        line = line.replace("CASE", str(place)).split(";")[0].split(" #")[0].strip()
        if found := re.search(r"python -m (engine\.main|serve\.library) (.*)", line):
            trees = ("above", "below") if "$tree" in line else ("",)
            commands += [[found[1], *found[2].replace("$tree", tree).split()] for tree in trees]
        elif line.startswith(("ln ", "cp ", "python make.py")) and "1,000" not in case.name:
            subprocess.run(["bash", "-c", line.replace("python ", f"{sys.executable} ")], cwd=place, check=False)
    return [command for command in commands if command[1] in ("ingest", "build")]


def main() -> None:
    """Run all cases, or compare two runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--out", type=Path, default=Path("/tmp/reported_inputs"))
    parser.add_argument("--only", default="")
    parser.add_argument("--compare", type=Path)
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    rows = []
    for case in sorted((options.cases / "files").iterdir()):
        if options.only and not case.name.startswith(tuple(options.only.split(","))):
            continue
        if case.name.startswith("56"):  # of the memory of `serve.bulk`
            continue
        place = options.out.resolve() / case.name
        try:
            commands = prepare(case, place)
        except OSError as error:
            rows.append((case.name, "", f"not prepared: {error}"))
            continue
        os.chdir(place)
        for number, (module, *arguments) in enumerate(commands):
            out = place / f"OUT{number}"
            at = arguments.index("--out") + 1
            arguments[at] = str(out)
            arguments += ["--serial"] if module == "engine.main" and "--serial" not in arguments else []
            code, line, seconds = run(arguments, engine_main.main if module == "engine.main" else library.main)
            shown = summary(out)
            slow = f" ({seconds:.0f} s)" if seconds > 5 else ""
            what = " ".join(part.replace(str(place) + "/", "") for part in arguments[:3] if part != "--out")
            rows.append((case.name, what, f"exit {code}{slow}: {shown or line}"))
    before = {}
    if options.compare:
        before = {tuple(line.split("\t")[:2]): line.split("\t")[2] for line in options.compare.read_text().splitlines()}
        print("| case | command | before | after |\n|---|---|---|---|")
    for name, what, result in rows:
        result = "".join(letter if letter.isprintable() else "\N{MIDDLE DOT}" for letter in result)  # a case is packed
        cells = (name, what, before.get((name, what), "-"), result) if options.compare else (name, what, result)
        print(
            "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |" if options.compare else "\t".join(cells)
        )


if __name__ == "__main__":
    main()
