"""The one reader of stored members: what it gives, and what an index that lies about places gets."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.specimens.schema import BadSpecimen
from engine.store.members import Members
from engine.store.shards import INDEX_NAME, ShardReader, read_index, read_manifest


def linked(folder: Path, tmp_path: Path) -> Path:
    """Return a folder with links to the shards, whose index can be changed."""
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / INDEX_NAME).unlink()
    return tmp_path


def test_gives_what_the_shards_hold(simulated_shards: Path) -> None:
    index, members, reader = read_index(simulated_shards), Members(str(simulated_shards)), ShardReader(simulated_shards)
    rows = index.to_pylist()[:200]
    for row in rows:
        for kind, found in (("dna", members.barcode(row)), ("image", members.photo(row))):
            if row[f"{kind}_offset"] < 0:
                assert found is None
                continue
            raw = reader.read(row["shard"], row[f"{kind}_offset"], row[f"{kind}_size"])
            assert found == (raw.decode() if kind == "dna" else raw)
        assert members.description(row)["split"] == row["split"]
    assert list(members.barcodes(index.slice(0, 200))) == [members.barcode(row) for row in rows]
    away = Members()
    assert away.barcode(rows[0] | {"folder": str(simulated_shards)}) == members.barcode(rows[0])


def test_exchanged_and_shifted_members_are_errors(simulated_shards: Path) -> None:
    members = Members(str(simulated_shards))
    rows = [row for row in read_index(simulated_shards).to_pylist() if row["dna_size"] and row["image_size"]]
    one, other = rows[0], next(row for row in rows[1:] if row["dna_size"] == rows[0]["dna_size"])
    taken: dict[str, Any] = {name: other[name] for name in ("dna_offset", "dna_size", "shard")}
    for change in (
        taken,
        {"dna_offset": one["dna_offset"] + 1},
        {"dna_size": one["dna_size"] - 1},
        {"dna_size": 1 << 62},
    ):
        with pytest.raises(BadSpecimen, match=str(one["key"])):
            members.barcode(one | change)
    with pytest.raises(BadSpecimen, match="no member"):
        members.photo(one | {"image_offset": one["dna_offset"], "image_size": one["dna_size"]})
    with pytest.raises(BadSpecimen, match="description of"):
        members.description(one | {"size": 1 << 40})


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "/dev/zero", "../../x", "http://127.0.0.1:1/x", "s3://b/x?endpoint_override=h", "000000.tar/../x"],
)
def test_an_index_that_leaves_its_folder_is_refused(simulated_shards: Path, tmp_path: Path, name: str) -> None:
    index = read_index(simulated_shards)
    folder = linked(simulated_shards, tmp_path)
    changed = index.set_column(index.column_names.index("shard"), "shard", pa.array([name] * len(index)))
    pq.write_table(changed, folder / INDEX_NAME)
    with pytest.raises(ValueError, match=r"names the shard .*allowed"):
        read_index(folder)


@pytest.mark.parametrize(
    ("column", "value"), [("image_size", 2**62), ("dna_offset", 2**62), ("offset", -5), ("size", -1)]
)
def test_a_place_outside_its_shard_is_refused(simulated_shards: Path, tmp_path: Path, column: str, value: int) -> None:
    index = read_index(simulated_shards)
    folder = linked(simulated_shards, tmp_path)
    values = index[column].to_pylist()
    values[7] = value
    place = index.column_names.index(column)
    pq.write_table(index.set_column(place, column, pa.array(values, pa.int64())), folder / INDEX_NAME)
    with pytest.raises(ValueError, match="in row 7, allowed"):
        read_index(folder)
    assert read_manifest(folder)["shards"]
