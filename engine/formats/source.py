"""What a format gives to ingest: rows without photos, and photos by reference."""

from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa

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
    """All rows of a source in one table, for tests and small sources."""
    return pa.concat_tables([SPECIMEN_SCHEMA.empty_table(), *source.batches()])
