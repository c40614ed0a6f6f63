"""Judge a stored result by other thresholds and rules: no model, no library, seconds for a million rows.

    taxafuse again result.parquet --threshold 0.9 --out lenient.parquet
    taxafuse again result.csv --threshold 0.95 --threshold species=0.99 --out strict.csv
    taxafuse again result.csv --groups complexes.txt --checklist norway.txt --soft 0.1 --cluster 0.03 --out again.csv

An answer is the deepest rank whose probability reaches the threshold of that rank, as when the records are asked anew.
The answer that the result had stays in original_name, original_rank, original_probability and original_provisional.
Columns of the ranks and `candidates` stay as they are, so that every call starts from what the model or library said.
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
from serve.bulk.columns import GROUP, schema
from serve.bulk.rules import READ, Rules, add_options, applied, rules_of
from serve.bulk.writers import WRITERS, check_kind

KINDS = (".parquet", ".csv")  # that can be read again
KEPT = ("name", "rank", "probability", "provisional")  # of the answer that was there
THRESHOLD = 0.95  # of a result that says none
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
        default=[],
        metavar="P|RANK=P",
        help=f"probability that an answer needs, for all ranks or for one of {', '.join(RANKS)}; may be repeated "
        "(default: that of RESULT.json)",
    )
    add_options(found)
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
    before = _described(result)
    thresholds = thresholds_of(options.threshold or _given(before.get("settings", {}).get("threshold", THRESHOLD)))
    rules = rules_of(options, thresholds, anew=True)
    check_kind(str(out), out.suffix)
    if out.exists():
        raise UserError("--out", f"{out}, which is there already", "another name")
    if result.suffix not in KINDS or not result.is_file():
        raise UserError("result", result, f"a file that exists and ends in {', '.join(KINDS)}")
    counts: Counter[str] = Counter()
    changed = 0

    def tables() -> Iterator[pa.Table]:
        return map(_with_originals, _read(result))

    judged_tables = applied(tables, rules)
    columns = next(judged_tables).schema
    with Location.parse(out).writing() as sink, WRITERS[out.suffix](sink, columns) as writer:
        for judged in judged_tables:
            writer.write_table(judged)
            rows = zip(*(judged[name].to_pylist() for name in ("error", "rank", "original_rank")), strict=True)
            for error, rank, original in rows:
                counts["error" if error else rank or "none"] += 1
                changed += rank != original
    _describe(result, out, before, rules, counts)
    order = (RANKS[-1], GROUP, *reversed(RANKS[:-1]), "none", "error")
    stops = ", ".join(f"{name} {counts[name]:,}" for name in order if counts[name])
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
    if absent := [name for name in ("key", *READ, "novel", "barcode") if name not in names]:
        raise UserError("result", f"{path} without columns {', '.join(absent)}", "a result with --names own")


def _with_originals(table: pa.Table) -> pa.Table:
    """Return rows that also hold the answer that they had first."""
    for name in KEPT:
        if f"original_{name}" not in table.column_names:
            values = table[name] if name in table.column_names else pa.nulls(len(table), pa.string())
            table = table.append_column(f"original_{name}", values)
    return table


def _described(result: Path) -> dict[str, Any]:
    """Return what RESULT.json says; {} where there is none."""
    beside = result.with_name(result.name + ".json")
    return json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}


def _given(threshold: float | Mapping[str, float]) -> list[str]:
    """Return a threshold of RESULT.json as a command line would say it."""
    if isinstance(threshold, Mapping):
        return [str(max(threshold.values())), *(f"{rank}={value}" for rank, value in threshold.items())]
    return [str(threshold)]


def _describe(result: Path, out: Path, before: Mapping[str, Any], rules: Rules, counts: Counter[str]) -> None:
    """Write OUT.json: what RESULT.json says, with the rules and where the answers came from."""
    value = {
        **before,
        "settings": {**before.get("settings", {}), **rules.settings(), "threshold": dict(rules.thresholds)},
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
