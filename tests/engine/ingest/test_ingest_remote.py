"""Ingest to an S3 server (and an fsspec file system): same bytes as locally, continued, verified, read for training."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.batches.pipeline import label_columns, load_index
from engine.batches.prepare import Prepare, Specimens
from engine.config import DataConfig
from engine.formats.registry import open_dataset
from engine.ingest import shard as ingest_shard
from engine.ingest.job import IngestOptions, ingest
from engine.main import main
from engine.specimens.schema import BadSpecimen
from engine.specimens.taxonomy import Taxonomy
from engine.store.shards import ShardReader, check_files, read_index, read_manifest
from engine.store.storage import Location
from engine.store.verify import verify

PER_SHARD = 10


@pytest.fixture
def table(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for n in range(4):
        (folder / f"{n}.jpg").write_bytes(make_jpeg(n, 40 + n, 40))
    barcode = "ACGTTGCA" * 60
    rows = [f"s{n},{n % 4}.jpg,{barcode[n:]},train,Diptera,Muscidae,Musca" for n in range(45)]
    path = folder / "specimens.csv"
    path.write_text("\n".join(["id,image,barcode,split,order,family,genus", *rows]) + "\n")
    return path


def run(path: Path, out: Path | str, **options: Any) -> dict[str, Any]:
    settings = IngestOptions(**{"parallel": False, "specimens_per_shard": PER_SHARD, **options})
    return ingest(open_dataset("table", [path]), out, settings)


def assert_same(remote: Location, local: Path) -> None:
    names = sorted(path.name for path in local.iterdir())
    assert remote.list() == names
    for name in names:
        assert (remote / name).read_bytes() == (local / name).read_bytes(), name


def test_s3_holds_what_a_local_folder_holds(
    table: Path, tmp_path: Path, s3: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(table, tmp_path / "local", source={"format": "table", "paths": [str(table)], "options": {}})
    assert main(["ingest", "table", str(table), "--out", s3, "--specimens-per-shard", "10", "--serial"]) == 0
    assert_same(Location.parse(s3), tmp_path / "local")
    assert verify(s3) == [] and read_index(s3).equals(read_index(tmp_path / "local"))
    capsys.readouterr()
    assert main(["inspect", s3]) == 0 and "45 specimens in 5 shards" in capsys.readouterr().out
    assert main(["verify", s3]) == 0 and "no problems" in capsys.readouterr().out
    assert main(["ingest", "table", str(table), "--out", s3, "--serial"]) == 2
    assert "which is not empty; allowed" in capsys.readouterr().err
    shard = Location.parse(s3) / "000002.tar"
    data = shard.read_bytes()
    shard.write_atomically(data[:600] + b"X" + data[601:])
    assert verify(s3) == ["000002.tar: its sha256 is not the manifest's"]
    shard.write_atomically(data[:-512])
    with pytest.raises(ValueError, match=f"000002.tar.*, which has {len(data) - 512} bytes; allowed: {len(data)}"):
        check_files(s3)
    shard.delete()
    assert "000002.tar is missing" in verify(s3)


def test_s3_ingest_continues(table: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(table, tmp_path / "local")
    write = ingest_shard.ShardWriter.write

    def stopping(self: ingest_shard.ShardWriter, number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt
        write(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ingest_shard.ShardWriter, "write", stopping)
        run(table, s3)
    folder = Location.parse(s3)
    assert folder.list() == [".ingest", "000000.tar", "000001.tar", "000002.tar"]
    with pytest.raises(ValueError, match="unfinished ingest with other seed"):
        run(table, s3, seed=1)
    run(table, s3)
    assert_same(folder, tmp_path / "local")


def test_ray_tasks_write_to_s3(table: Path, tmp_path: Path, s3: str, ray_session: None) -> None:
    """With the credentials in the URL, which no file tells: these workers started before the server."""
    run(table, tmp_path / "local")
    private = s3.replace("s3://", "s3://test:secret@")
    run(table, private, parallel=True)
    assert_same(Location.parse(s3), tmp_path / "local")
    assert read_manifest(private) == read_manifest(tmp_path / "local")


def test_training_reads_from_s3(table: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(table, s3)
    run(table, tmp_path / "local")
    columns = []
    for folder in (s3, str(tmp_path / "local")):
        index = load_index([folder])
        specimens = Specimens.from_index(index, Taxonomy.build(label_columns(index)))
        prepare = Prepare(specimens, DataConfig(image_size=32), 0, training=True)
        rows = np.random.default_rng(0).permutation(len(index))[:30]
        requests: list[object] = []
        read = ShardReader._try_read
        with monkeypatch.context() as patch:
            patch.setattr(ShardReader, "_try_read", lambda self, one: (requests.append(one), read(self, one))[1])  # type: ignore[func-returns-value]  # noqa: B023
            columns.append(prepare(rows, 0))
        assert len(requests) <= (5 if folder == s3 else 0), "neighbours in one request, none asked for twice"
    remote, local = columns
    for name, values in local.items():
        assert np.array_equal(remote[name], values), name
    assert remote["has_image"].all() and remote["has_dna"].all() and not remote["problem"].astype(bool).any()


def test_a_reader_of_s3(table: Path, s3: str) -> None:
    run(table, s3)
    reader, rows = ShardReader(s3), read_index(s3).to_pylist()
    plain = [reader.read(row["shard"], row["image_offset"], row["image_size"]) for row in rows]
    reader.fetch((row["shard"], row["offset"], row["size"]) for row in rows)
    reader._files.clear()
    reader._open = lambda shard: pytest.fail("fetched bytes are not asked for again")  # type: ignore[method-assign]
    assert [reader.read(row["shard"], row["image_offset"], row["image_size"]) for row in rows] == plain
    assert all(data[:2] == b"\xff\xd8" for data in plain)
    reader = ShardReader(s3)
    reader.fetch([("000009.tar", 0, 10), (rows[0]["shard"], 10**9, 10)])
    with pytest.raises(BadSpecimen, match=r"000009.tar: cannot be opened"):
        reader.read("000009.tar", 0, 10)
    with pytest.raises(BadSpecimen, match=r"000000\.tar"):
        reader.read(rows[0]["shard"], 10**9, 10)


def test_an_fsspec_file_system(table: Path, tmp_path: Path) -> None:
    logging.getLogger("fsspec").setLevel(logging.ERROR)
    url = f"memory://{tmp_path.name}/shards"
    run(table, url)
    run(table, tmp_path / "local")
    assert_same(Location.parse(url), tmp_path / "local")
    assert verify(url) == []
    Location.parse(url).delete()


def test_specimens_behind_urls(
    table: Path, tmp_path: Path, s3: str, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Table and photos in a bucket, shards into another folder of it; photos that are not there are named."""
    table.write_text(table.read_text() + "s99,gone.jpg,ACGT,train,Diptera,Muscidae,Musca\n")
    private = Location.parse(s3.replace("s3://", "s3://test:secret@"))
    for path in table.parent.iterdir():
        (private / "in" / path.name).write_atomically(path.read_bytes())
    arguments = ["--specimens-per-shard", "10"]
    assert main(["ingest", "table", str(private / "in" / table.name), "--out", str(private / "out"), *arguments]) == 0
    assert main(["ingest", "table", str(table), "--out", str(tmp_path / "local"), "--serial", *arguments]) == 0
    out = Location.parse(s3) / "out"
    for name in [*(f"{number:06d}.tar" for number in range(5)), "index.parquet"]:
        assert (out / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
    report = json.loads((out / "report.json").read_bytes())
    assert report["image_removed"]["by_reason"] == {"missing image file": 1} and report["written"]["specimens"] == 46
    assert not any(b"secret" in (out / name).read_bytes() for name in out.list())
    capsys.readouterr()
    for wrong, told in (
        (private / "in" / "none.csv", "which does not exist"),
        (private / "in" / "0.jpg", "URL: got s3:"),
    ):
        assert main(["ingest", "table", str(wrong), "--out", str(tmp_path / "no")]) == 2
        assert told in (error := capsys.readouterr().err) and "secret" not in error
    (private / "bad" / "bad.csv").write_atomically(b"foo,bar\n1,2\n")
    assert main(["ingest", "table", str(private / "bad"), "--out", str(tmp_path / "no"), "--serial"]) == 2
    assert "bad.csv" in (error := capsys.readouterr().err) and "allowed names" in error


def test_a_bucket_that_is_not_there_is_one_line(
    table: Path, s3_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ingest", "table", str(table), "--out", f"s3://nobody/x{s3_server}", "--serial"]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("ingest")]
    assert len(error) == 1 and error[0].startswith("error: --out: got s3://nobody/x")
