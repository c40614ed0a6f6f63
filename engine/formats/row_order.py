"""Where the records of a file stand that are left out: a result of bulk has every record in the order of the input."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

ROW = "_row"
"""A column of rows as they are read: the number of each among the good ones of its file, from 0; says their order."""


class LeftOut(tuple[str, str]):
    """(key or place, reason) of a record that was left out; `row`: it stands before the good row of that number."""

    row: float

    def __new__(cls, key: str, reason: str, row: float) -> "LeftOut":
        """Make a pair that knows its row."""
        made = super().__new__(cls, (key, reason))
        made.row = row - 0.5
        return made


def with_rows(columns: pa.Table, first: int) -> pa.Table:
    """Return rows with the column ROW; `first` is the number of the first of them."""
    return columns.append_column(ROW, pa.array(np.arange(first, first + columns.num_rows)))


def located(left_out: Sequence[tuple[str, str]], columns: pa.Table, places: np.ndarray) -> list[tuple[str, str]]:
    """Return rows that were left out with where they stood: at `places` of a table, if that numbers its rows."""
    if ROW not in columns.column_names:
        return list(left_out)
    rows = columns[ROW].to_numpy()[places].tolist()
    return [LeftOut(*pair, row) for pair, row in zip(left_out, rows, strict=True)]
