"""What a format gives to ingest: rows without photos, and photos by reference."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import pyarrow as pa

from engine.formats.understood import NameLog
from engine.specimens.schema import SPECIMEN_SCHEMA


class SpecimenSource(Protocol):
    """What a format gives to ingest."""

    skipped: list[tuple[str, str]]
    """(key or place, reason) of every record that `batches` left out; emptied when it starts, filled while it is
    consumed. What stands before a ": " in a reason is its category, by which a report counts."""

    def batches(self) -> Iterator[pa.Table]:
        """Yield one row per specimen, `SPECIMEN_SCHEMA`, without image bytes, some 10^4 rows at a time.

        Called on the driver; memory stays flat. The order is the source's own and the same at every call.
        """
        ...

    def load_image(self, ref: str) -> bytes:
        """Return an image file's bytes by the reference in the table. Picklable, called on workers.

        Raises ValueError with the reason when there are none.
        """
        ...


def read_all(source: SpecimenSource) -> pa.Table:
    """Return all rows of a source in one table, for tests and small sources."""
    return pa.concat_tables([SPECIMEN_SCHEMA.empty_table(), *source.batches()])


def names_of(source: SpecimenSource | None, total: int, named: Mapping[str, int]) -> dict[str, Any]:
    """Return what was understood of a source's names, `NameLog.to_json`, with counts of the records that were taken.

    Args:
        source: read to its end; one without a log of names (simulated ones, shards) gives counts only.
        total: records taken.
        named: per rank how many of them have a name.
    """
    log = getattr(getattr(source, "inner", source), "names", None)
    found = (log if isinstance(log, NameLog) else NameLog()).to_json()
    return found | {"records": total, "named": {rank: int(named[rank]) for rank in found["named"]}}
