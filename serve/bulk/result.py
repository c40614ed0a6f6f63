"""The result of a bulk identification: the parts of its tasks put together, one row a record, in the input's order."""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from engine.store.storage import Location
from serve.bulk.columns import errors_of, schema, styled
from serve.bulk.plan import Plan
from serve.bulk.review import Review
from serve.bulk.rules import Rules, applied
from serve.bulk.writers import WRITERS

_PARTS = 64  # of the tasks' parts held at a time: equal barcodes far apart refer to early ones


def write_result(
    plan: Plan, out: Path, style: str, rules: Rules, review: Review | None = None
) -> tuple[Counter[str], Counter[str]]:
    """Write the result from the parts of a plan whose tasks are all done; whole or not at all.

    Returns how many records stop at which rank ("none" = at no rank, "error" = without an answer), and how many are
    which contaminant. `review` takes the doubtful rows.
    """
    counts: Counter[str] = Counter()
    contaminants: Counter[str] = Counter()
    part = lru_cache(maxsize=_PARTS)(lambda task: pq.read_table(plan.part(task)))

    def tables() -> Iterator[pa.Table]:
        return (_rows(rows, part, plan.per_task) for rows in plan.rows())

    bar = tqdm(total=plan.records, desc="writing", unit=" records", disable=None, leave=False)
    with Location.parse(out).writing() as sink, WRITERS[out.suffix](sink, schema(style)) as writer:
        for table in applied(tables, rules):
            failed = table["error"].is_valid().to_numpy()
            ranks = np.asarray(table["rank"].fill_null("none").to_pylist(), dtype=object)
            contaminants.update(table["contaminant"].drop_null().to_pylist())
            counts.update(np.where(failed, "error", ranks).tolist())
            if review is not None:
                review.add(table)
            writer.write_table(styled(table, style))
            bar.update(len(table))
    bar.close()
    return counts, contaminants


def _rows(rows: pa.RecordBatch, part: Any, per_task: int) -> pa.Table:
    """Return the answers of some records, each under its own key."""
    question = rows["question"].to_numpy()
    asks = np.flatnonzero(question >= 0)
    rest = np.flatnonzero(question < 0)
    asks = asks[np.argsort(question[asks], kind="stable")]
    task = question[asks] // per_task
    groups = np.split(asks, np.flatnonzero(np.diff(task)) + 1) if len(asks) else []
    tables = [part(int(question[group[0]] // per_task)).take(pa.array(question[group] % per_task)) for group in groups]
    problems = rows["problem"].take(pa.array(rest)).to_pylist()
    tables.append(errors_of([""] * len(rest), problems))
    place = np.empty(len(question), dtype=np.int64)
    place[np.concatenate([asks, rest])] = np.arange(len(question))
    table = pa.concat_tables(tables).take(pa.array(place))
    return table.set_column(0, "key", rows["key"])
