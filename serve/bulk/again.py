"""Judge a stored result by other thresholds: no model, no library, seconds for a million rows.

    taxafuse again result.parquet --threshold 0.9 --out lenient.parquet
    taxafuse again result.csv --threshold 0.95 --threshold species=0.99 --out strict.csv

An answer is the deepest rank whose probability reaches the threshold of that rank, as when the records are asked anew.
The answer that the result had stays in original_name, original_rank and original_probability.
"""

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from engine.commandline import Parser, answered
from engine.errors import UserError
from engine.specimens.taxonomy import RANKS
from engine.store.shards import file_sha256
from engine.store.storage import Location
from serve.answers.answer import RankAnswer
from serve.bulk.columns import schema
from serve.bulk.writers import WRITERS, check_kind

KINDS = (".parquet", ".csv")  # that can be read again
KEPT = ("name", "rank", "probability")  # of the answer that was there
_ROWS = 1 << 14  # judged at a time


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    found = Parser(prog="taxafuse again", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = found.add_argument
    add(
        "result", type=Path, metavar="RESULT", help="of taxafuse identify or bulk, .parquet or .csv, with our own names"
    )
    add(
        "--threshold",
        action="append",
        required=True,
        metavar="P|RANK=P",
        help=f"probability that an answer needs, for all ranks or for one of {', '.join(RANKS)}; may be repeated",
    )
    add("--out", type=Path, required=True, metavar="FILE", help=f"new file, in {', '.join(WRITERS)}")
    return found


def thresholds_of(given: Sequence[str]) -> dict[str, float]:
    """Return the threshold of every rank. Raises UserError for what is no probability or no rank, or lacks a rank."""
    found: dict[str, float] = {}
    for one in sorted(given, key=lambda text: "=" in text):  # that of all ranks comes first
        rank, _, text = one.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1 or rank not in ("", *RANKS):
            raise UserError("--threshold", repr(one), f"0..1, or RANK=0..1 with a rank of {', '.join(RANKS)}")
        found |= dict.fromkeys([rank] if rank else RANKS, value)
    if absent := [rank for rank in RANKS if rank not in found]:
        raise UserError("--threshold", f"none for {', '.join(absent)}", "one for all ranks (--threshold P) beside it")
    return found


def run(options: argparse.Namespace) -> str:
    """Write the result anew; return what to print. Raises ValueError for what the user can mend."""
    result, out = options.result, options.out
    thresholds = thresholds_of(options.threshold)
    check_kind(str(out), out.suffix)
    if out.exists():
        raise UserError("--out", f"{out}, which is there already", "another name")
    if result.suffix not in KINDS or not result.is_file():
        raise UserError("result", result, f"a file that exists and ends in {', '.join(KINDS)}")
    counts: Counter[str] = Counter()
    changed = 0
    tables = _read(result)
    columns = _judged(next(tables), thresholds).schema
    with Location.parse(out).writing() as sink, WRITERS[out.suffix](sink, columns) as writer:
        for table in tables:
            judged = _judged(table, thresholds)
            writer.write_table(judged)
            rows = zip(*(judged[name].to_pylist() for name in ("error", "rank", "original_rank")), strict=True)
            for error, rank, original in rows:
                counts["error" if error else rank or "none"] += 1
                changed += rank != original
    _describe(result, out, thresholds, counts)
    stops = ", ".join(f"{name} {counts[name]:,}" for name in (*reversed(RANKS), "none", "error") if counts[name])
    return f"{out}: {sum(counts.values()):,} records, {changed:,} at another rank; the answer stops at: {stops}"


def _read(path: Path) -> Iterator[pa.Table]:
    """Yield its columns without rows, then some thousand rows at a time.

    Raises UserError for what is no result with our own names.
    """
    kinds = {column.name: column.type for column in schema()}
    kinds |= {f"original_{name}": kinds[name] for name in KEPT}
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                _check(path, file.schema_arrow.names)
                yield file.schema_arrow.empty_table()
                for batch in file.iter_batches(_ROWS):
                    yield pa.Table.from_batches([batch])
        else:
            convert = pa_csv.ConvertOptions(
                column_types=kinds, strings_can_be_null=True, quoted_strings_can_be_null=False
            )
            with pa_csv.open_csv(path, convert_options=convert) as reader:
                _check(path, reader.schema.names)
                yield reader.schema.empty_table()
                for batch in reader:
                    yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        raise UserError("result", f"{path} ({str(error).splitlines()[0]})", "a result of taxafuse bulk") from None


def _check(path: Path, names: Sequence[str]) -> None:
    needed = ("key", "error", *KEPT, "stopped", "why", *RANKS, *(f"{rank}_probability" for rank in RANKS))
    if absent := [name for name in needed if name not in names]:
        raise UserError("result", f"{path} without columns {', '.join(absent)}", "a result with --names own")


def _judged(table: pa.Table, thresholds: Mapping[str, float]) -> pa.Table:
    """Return rows with the answers that the thresholds give."""
    for name in KEPT:
        if f"original_{name}" not in table.column_names:
            table = table.append_column(f"original_{name}", table[name])
    asked = ("error", "stopped", *KEPT, "why", *RANKS, *(f"{rank}_probability" for rank in RANKS))
    rows = [_answer(row, thresholds) for row in table.select(asked).to_pylist()]
    for name in (*KEPT, "stopped", "why"):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array([row[name] for row in rows], table.schema.field(name).type))
    return table


def _answer(row: Mapping[str, Any], thresholds: Mapping[str, float]) -> Mapping[str, Any]:
    from serve.answers.compose import stop_of  # torch: --help does not wait for it

    if row["error"]:
        return row
    ranks = []
    for rank in RANKS:
        probability = row[f"{rank}_probability"]
        reached = row[rank] is not None and probability >= thresholds[rank]
        ranks.append(RankAnswer(rank, row[rank], probability, reached, ()))
    refused = row["stopped"] == "not_coi"
    answer = None if refused else next((one for one in reversed(ranks) if one.reached), None)
    stopped, why = stop_of(ranks, answer, thresholds, refused)
    values = (answer.name, answer.rank, answer.probability) if answer else (None, None, None)
    return {**dict(zip(KEPT, values, strict=True)), "stopped": stopped, "why": why}


def _describe(result: Path, out: Path, thresholds: Mapping[str, float], counts: Counter[str]) -> None:
    """Write OUT.json: what RESULT.json says, with the thresholds and where the answers came from."""
    beside = result.with_name(result.name + ".json")
    before = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    value = {
        **before,
        "settings": {**before.get("settings", {}), "threshold": dict(thresholds)},
        "stops_at": dict(counts),
        "judged_again": {"result": result.name, "sha256": file_sha256(result)},
    }
    text = json.dumps(value, indent=1, ensure_ascii=False)
    Location.parse(out.with_name(out.name + ".json")).write_atomically(text.encode())


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code (2 = something the user can mend, said in one line)."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return answered(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
