"""Shards: webdataset reads them, offsets lead to the payloads, bytes are reproducible, verify finds damage."""

import json
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.signals.images import decode
from engine.specimens.schema import INDEX_SCHEMA, BadSpecimen, Specimen, rng_for
from engine.specimens.taxonomy import RANKS
from engine.store.shards import (
    MANIFEST_NAME,
    ShardReader,
    check_files,
    count_specimens,
    file_sha256,
    read_index,
    read_manifest,
)
from engine.store.tars import tar_header, tar_key, write_shard
from engine.store.verify import verify


def specimens(make_jpeg: Callable[..., bytes], start: int = 0) -> list[Specimen]:
    common = {"split": "train", "bin_uri": "BOLD:AAA0001", "country": "Costa Rica"}
    names = ("Diptera", "Muscidae", None, None)
    return [
        Specimen(id=f"a.b/{start}", image=make_jpeg(1), barcode="AC-GTN", barcode_length=4, names=names, **common),
        Specimen(id=f"only-dna-{start}", image=None, barcode="ACGT", barcode_length=4, names=names, **common),
        Specimen(id=f"only image {start}", image=make_jpeg(2), barcode=None, barcode_length=0, names=names, **common),
    ]


def write_folder(folder: Path, make_jpeg: Callable[..., bytes]) -> pa.Table:
    """Two shards with index and manifest, as ingest leaves them."""
    written = [write_shard(folder / f"00000{n}.tar", specimens(make_jpeg, n)) for n in range(2)]
    index = pa.concat_tables([shard.index for shard in written])
    pq.write_table(index, folder / "index.parquet")
    shards = [
        {"file": path.name, "specimens": 3, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.glob("*.tar"))
    ]
    index_sha256 = file_sha256(folder / "index.parquet")
    manifest = {"format_version": 1, "counts": count_specimens(index), "index_sha256": index_sha256, "shards": shards}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    return index


@pytest.fixture
def folder(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> Path:
    write_folder(tmp_path, make_jpeg)
    return tmp_path


def test_plain_webdataset_reads_a_shard(folder: Path, make_jpeg: Callable[..., bytes]) -> None:
    import webdataset

    samples = list(webdataset.WebDataset(str(folder / "000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["a%2Eb%2F0", "only-dna-0", "only%20image%200"]
    assert [sorted(set(sample) & {"jpg", "dna", "json"}) for sample in samples] == [
        ["dna", "jpg", "json"],
        ["dna", "json"],
        ["jpg", "json"],
    ]
    assert samples[0]["jpg"] == make_jpeg(1) and samples[0]["dna"] == b"AC-GTN"
    meta = json.loads(samples[0]["json"])
    assert meta == {
        "id": "a.b/0",
        "order": "Diptera",
        "family": "Muscidae",
        "genus": None,
        "species": None,
        "split": "train",
        "bin_uri": "BOLD:AAA0001",
        "country": "Costa Rica",
    }


def test_offsets_lead_to_the_payloads(folder: Path, make_jpeg: Callable[..., bytes]) -> None:
    index, reader = read_index(folder), ShardReader(folder)
    assert index.schema.equals(INDEX_SCHEMA)
    for row in index.to_pylist():
        if row["image_offset"] >= 0:
            data = reader.read(row["shard"], row["image_offset"], row["image_size"])
            assert data == make_jpeg(1 if row["key"].startswith("a") else 2)
        if row["dna_offset"] >= 0:
            assert reader.read(row["shard"], row["dna_offset"], row["dna_size"]) in (b"AC-GTN", b"ACGT")
        assert (row["image_offset"] < 0) == (row["image_size"] == 0)
        block = reader.read(row["shard"], row["offset"], row["size"])
        assert block[: len(row["key"])].decode() == row["key"] and len(block) % 512 == 0
    offsets = index["offset"].to_pylist()
    assert offsets[0] == 0 and offsets[1] == index["size"][0].as_py()


def test_same_specimens_same_bytes_and_nothing_left_behind(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name, make_jpeg)
    for file in ("000000.tar", "000001.tar", "index.parquet"):
        assert (tmp_path / "x" / file).read_bytes() == (tmp_path / "y" / file).read_bytes()
    with tarfile.open(tmp_path / "x" / "000000.tar") as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}

    def broken() -> Iterator[Specimen]:
        yield specimens(make_jpeg)[0]
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "x" / "000009.tar", broken())
    assert not list((tmp_path / "x").glob("*000009*")), "no half-written shard stays"


def test_reader_survives_pickling_threads_and_many_shards(folder: Path) -> None:
    reader = ShardReader(folder, max_open=1)
    row = read_index(folder).to_pylist()[0]

    def read(number: int) -> bytes:
        return reader.read(f"00000{number % 2}.tar", row["dna_offset"], row["dna_size"])

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(read, range(200))) == {b"AC-GTN"}
    reader = pickle.loads(pickle.dumps(reader))
    assert read(0) == b"AC-GTN"
    reader.close()
    assert read(1) == b"AC-GTN"


def test_reader_names_the_shard_it_cannot_read(folder: Path) -> None:
    with pytest.raises(BadSpecimen, match=r"000007.tar: cannot be opened") as caught:
        ShardReader(folder).read("000007.tar", 0, 1)
    assert pickle.loads(pickle.dumps(caught.value)).shard == "000007.tar"
    with pytest.raises(BadSpecimen, match="ends early"):
        ShardReader(folder).read("000000.tar", 0, 10**9)


@given(st.text("abc-_%0123456789", min_size=1, max_size=100), st.integers(0, 8**11 - 1))
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    assert tar_header(name.encode(), size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_a_written_shard_tells_its_size_and_checksum(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    path = tmp_path / "000000.tar"
    written = write_shard(path, specimens(make_jpeg))
    assert (written.num_bytes, written.sha256) == (path.stat().st_size, file_sha256(path))
    assert written.num_bytes % tarfile.RECORDSIZE == 0 and written.index.schema.equals(INDEX_SCHEMA)
    empty = write_shard(tmp_path / "000001.tar", iter([]))
    assert empty.index.num_rows == 0 == empty.num_bytes and [p.name for p in tmp_path.iterdir()] == [path.name]


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_keys_are_plain_and_differ(left: str, right: str) -> None:
    assert tar_key(left).isascii() and not set(tar_key(left)) & set("./\\ \n") and 0 < len(tar_key(left)) <= 90
    assert (tar_key(left) == tar_key(right)) == (left == right)


def test_keys_keep_plain_identifiers() -> None:
    assert tar_key("GBLN2174-09") == "GBLN2174-09"
    assert tar_key("x" * 200) != tar_key("x" * 201)


def test_verify_accepts_what_was_written(folder: Path) -> None:
    assert verify(folder) == []


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda d: _flip(d / "000001.tar", 520), "000001.tar: its sha256"),
        (lambda d: (d / "000000.tar").unlink(), "000000.tar is missing"),
        (lambda d: (d / "000000.tar").write_bytes((d / "000000.tar").read_bytes()[:3000]), "000000.tar: 3000 bytes"),
        (lambda d: (d / "000005.tar").write_bytes(b""), "000005.tar is not in the manifest"),
        (lambda d: (d / "index.parquet").unlink(), "index.parquet is missing"),
        (lambda d: (d / "index.parquet").write_bytes(b"junk"), "cannot be read"),
        (lambda d: pq.write_table(read_index(d).slice(1), d / "index.parquet"), "its counts are not"),
        (lambda d: _shift(d), "members differ from the index"),
    ],
)
def test_verify_names_damage(folder: Path, damage: Callable[[Path], object], told: str) -> None:
    damage(folder)
    assert told in "\n".join(verify(folder))


def _shift(folder: Path) -> None:
    """An index that is consistent with its checksum but points one byte off."""
    index = read_index(folder)
    place = index.schema.get_field_index("dna_offset")
    offsets = pa.array(np.where(index["dna_offset"].to_numpy() < 0, -1, index["dna_offset"].to_numpy() + 1))
    pq.write_table(index.set_column(place, INDEX_SCHEMA.field("dna_offset"), offsets), folder / "index.parquet")
    manifest = read_manifest(folder) | {"index_sha256": file_sha256(folder / "index.parquet")}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def test_manifest_of_another_version_is_refused(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_text(json.dumps(read_manifest(folder) | {"format_version": 2}))
    for use in (read_manifest, read_index, verify):
        with pytest.raises(ValueError, match="format version 2, allowed: 1"):
            use(folder)
    (folder / MANIFEST_NAME).write_text("{")
    with pytest.raises(ValueError, match="is no manifest"):
        read_manifest(folder)


def test_rng_is_a_function_of_all_its_parts() -> None:
    first = rng_for(1, 2, "key", "view1").random(4)
    assert (first == rng_for(1, 2, "key", "view1").random(4)).all()
    others = [(0, 2, "key", "view1"), (1, 3, "key", "view1"), (1, 2, "kex", "view1"), (1, 2, "key", "view2")]
    others += [(12, 2, "key", "view1"), (1, 22, "key", "view1")]
    assert all((rng_for(*parts).random(4) != first).all() for parts in others)
    assert abs(np.mean([rng_for(0, 0, str(i), "s").random() for i in range(2000)]) - 0.5) < 0.03


def test_a_lost_or_cut_shard_is_named_before_a_run(folder: Path) -> None:
    check_files(folder)
    path = folder / "000000.tar"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(ValueError, match=rf"000000\.tar, which has {size - 1} bytes; allowed: {size} bytes"):
        check_files(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"000000\.tar, which is missing"):
        check_files(folder)


def test_plain_webdataset_decodes_an_ingested_folder(simulated_shards: Path) -> None:
    """`.decode("rgb8")` gives the pixels of our own decoder and the JSON's labels, for every specimen of the index."""
    import webdataset

    urls = sorted(map(str, simulated_shards.glob("*.tar")))
    index = {row["key"]: row for row in read_index(simulated_shards).to_pylist()}
    seen = 0
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"):
        row = index[sample["__key__"]]
        assert ("jpg" in sample, "dna" in sample) == (row["image_size"] > 0, row["dna_size"] > 0)
        assert [sample["json"][rank] for rank in RANKS] == [row[rank] for rank in RANKS]
        if "jpg" in sample and seen < 20:  # Pillow decodes here, libjpeg-turbo there: within rounding of chroma
            data = ShardReader(simulated_shards).read(row["shard"], row["image_offset"], row["image_size"])
            assert np.abs(sample["jpg"].astype(int) - decode(data)).mean() < 1
        seen += 1
    assert seen == len(index) == 320
