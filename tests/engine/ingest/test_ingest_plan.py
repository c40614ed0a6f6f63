"""The plan's parts alone: keys seen before, the fingerprint of rows, layouts."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from engine.ingest.plan import _Keys, _RowsDigest, _TaxonNumbers
from engine.specimens.schema import SPECIMEN_SCHEMA

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "key": st.text(max_size=3),
            "barcode": st.one_of(st.none(), st.text("ACGT", max_size=4)),
            "species": st.sampled_from([None, "", "a b"]),
            "genus": st.sampled_from([None, "a"]),
            "latitude": st.one_of(st.none(), st.floats(-90, 90).map(lambda degrees: degrees + 0.0)),
        }
    ),
    max_size=12,
)


def as_table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SPECIMEN_SCHEMA)


def digest(*tables: pa.Table) -> str:
    whole = _RowsDigest()
    for table in tables:
        whole.update(table)
    return whole.hexdigest()


@given(ROWS, st.integers(0, 12), st.integers(0, 12))
def test_the_fingerprint_is_of_the_rows_alone(rows: list[dict], first: int, second: int) -> None:
    table = as_table(rows)
    cut, other = sorted((min(first, len(rows)), min(second, len(rows))))
    assert digest(table) == digest(table.slice(0, cut), table.slice(cut, other - cut), table.slice(other))


@given(ROWS, ROWS)
def test_other_rows_have_another_fingerprint(left: list[dict], right: list[dict]) -> None:
    tables = as_table(left), as_table(right)
    assert (digest(tables[0]) == digest(tables[1])) == (tables[0].to_pylist() == tables[1].to_pylist())


@given(st.lists(st.lists(st.text("abc", max_size=2), max_size=20), max_size=10))
def test_keys_are_first_once(batches: list[list[str]]) -> None:
    keys, seen = _Keys(), set()
    for batch in batches:
        expected = [key not in seen and key not in batch[:place] for place, key in enumerate(batch)]
        assert keys.first(pa.chunked_array([batch], pa.string())).tolist() == expected
        seen |= set(batch)


def test_taxa_are_numbered_by_their_lowest_known_name() -> None:
    numbers = _TaxonNumbers()
    names = [("Diptera", None, "Musca", None), (None, None, "Musca", None), ("Diptera",) + (None,) * 3, (None,) * 4]
    rows = [dict(zip(("order", "family", "genus", "species"), one, strict=True)) for one in names]
    rows += [{"family": "Musca"}, {"species": "Musca"}, {"species": "Musca x", "genus": "Musca"}]
    assert numbers.numbers(as_table(rows[:3])).tolist() == [0, 0, 1]
    assert numbers.numbers(as_table(rows[2:])).tolist() == [1, 2, 3, 4, 5]
