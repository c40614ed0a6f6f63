"""A source without the records that a file names: `check`'s suggested exclusions, or keys one a line."""

import csv
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.errors import UserError
from engine.formats.source import SpecimenSource

log = logging.getLogger(__name__)


class Excluding:
    """A source without some keys; these stand among what it left out. See `SpecimenSource`."""

    def __init__(self, source: SpecimenSource, path: Path) -> None:
        """Read the keys. Raises UserError for a file that is not there or names none."""
        self._source, self.path = source, path
        self.inner = getattr(source, "inner", source)  # that names were read by
        self.skipped = source.skipped
        self.keys = read_keys(path)

    def batches(self) -> Iterator[pa.Table]:
        """As the source gives them, without the keys; says in the end which of them it never met."""
        met: set[str] = set()
        for batch in self._source.batches():
            keys = batch["key"].to_pylist()
            out = np.array([key in self.keys for key in keys], dtype=bool)
            found = [key for key, is_out in zip(keys, out.tolist(), strict=True) if is_out]
            met.update(found)
            self.skipped += [(key, f"excluded: {self.path.name}") for key in found]
            yield batch.filter(pa.array(~out))
        if absent := sorted(self.keys - met):
            log.warning("--exclude %s: %d keys are not in the input, e.g. %s", self.path, len(absent), absent[0])

    def load_image(self, ref: str) -> bytes:
        """As the source."""
        return self._source.load_image(ref)


def read_keys(path: Path) -> frozenset[str]:
    """Return the cells of the column `key` of a CSV, or of a file without one its lines."""
    if not path.is_file():
        raise UserError("--exclude", path, "check's suggested_exclusions.csv, or a file of keys one a line")
    text = path.read_text(encoding="utf-8-sig")
    rows = csv.DictReader(io.StringIO(text))
    has_column = "key" in (rows.fieldnames or ())
    keys = (row["key"] for row in rows) if has_column else text.splitlines()
    found = frozenset(key.strip() for key in keys if key and key.strip())
    if not found and not has_column:
        raise UserError("--exclude", f"{path}, which names nothing", "keys, one a line or in a column key")
    return found
