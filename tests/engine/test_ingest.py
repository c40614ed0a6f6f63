"""Ingest: what becomes of good and bad rows, the same bytes at any parallelism, real specimens end to end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engine.datasets import open_dataset
from engine.ingest import IngestOptions, ingest
from engine.shards import ShardReader, read_index, read_manifest, verify

Rows = list[tuple[str, str, str, str]]  # id, image, barcode, split


def make_table(folder: Path, rows: Rows) -> Path:
    lines = [",".join(("id", "image", "barcode", "split", "order")), *(",".join([*row, "Diptera"]) for row in rows)]
    path = folder / "specimens.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def source_folder(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "good.jpg").write_bytes(make_jpeg(1))
    (folder / "cut.jpg").write_bytes(make_jpeg(2, 200, 200)[:900])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    (folder / "photo.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return folder


def run(path: Path, out: Path, **options: Any) -> dict[str, Any]:
    return ingest(open_dataset("table", [path]), out, IngestOptions(**{"parallel": False, **options}))


def test_bad_rows_and_modalities(source_folder: Path, tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    rows = [
        ("both", "good.jpg", " ac-gtn ", "train"),
        ("png", "photo.png", "", "val"),
        ("cut", "cut.jpg", "ACGT", "train"),
        ("text", "text.jpg", "ACGT", "train"),
        ("gone", "gone.jpg", "ACGT", "train"),
        ("letters", "good.jpg", "ACGTXZ", "train"),
        ("gaps", "good.jpg", "--NN--", "train"),
        ("hopeless", "empty.jpg", "hello!", "train"),
        ("nothing", "", "", "train"),
        ("both", "good.jpg", "ACGT", "train"),
        ("", "good.jpg", "ACGT", "train"),
    ]
    out = tmp_path / "out"
    report = run(make_table(source_folder, rows), out)
    assert verify(out) == []
    index = {row["key"]: row for row in read_index(out).to_pylist()}
    assert sorted(index) == ["both", "cut", "gaps", "gone", "letters", "png", "text"]
    has = {key: (row["image_offset"] >= 0, row["dna_offset"] >= 0) for key, row in index.items()}
    assert {key for key, (image, _) in has.items() if image} == {"both", "png", "letters", "gaps"}
    assert {key for key, (_, dna) in has.items() if dna} == {"both", "cut", "text", "gone"}
    assert index["both"]["barcode_length"] == 4 and index["gaps"]["barcode_length"] == 0
    reader = ShardReader(out)
    row = index["both"]
    assert reader.read(row["shard"], row["dna_offset"], row["dna_size"]) == b"ac-gtn", "stored as given, trimmed"
    assert reader.read(row["shard"], row["image_offset"], row["image_size"]) == make_jpeg(1), "a JPEG is copied"
    row = index["png"]
    assert reader.read(row["shard"], row["image_offset"], 2) == b"\xff\xd8" and report["images_converted"] == 1

    assert report == json.loads((out / "report.json").read_text())
    assert report["records_read"] == len(rows) and report["written"]["specimens"] == 7
    named = {kind: sorted(x["key"] for x in report[kind]["named"]) for kind in ("image_removed", "barcode_removed")}
    assert named == {
        "image_removed": ["cut", "gone", "hopeless", "text"],
        "barcode_removed": ["gaps", "hopeless", "letters"],
    }
    assert report["image_removed"]["by_reason"] == {"no usable image": 3, "missing image file": 1}
    assert report["skipped"]["by_reason"] == {
        "no key": 1,
        "duplicate key": 1,
        "neither image nor barcode": 1,
        "neither image nor barcode is usable": 1,
    }
    letters = next(x for x in report["barcode_removed"]["named"] if x["key"] == "letters")
    assert "'XZ'" in letters["reason"], "the report names the letters"


def test_manifest_counts_and_seeded_order(source_folder: Path, tmp_path: Path) -> None:
    rows = [(f"s{n:03d}", "", "ACGT" * (1 + n % 5), ("train", "val", "test")[n % 3]) for n in range(95)]
    path = make_table(source_folder, rows)
    keys = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(path, tmp_path / name, seed=seed, specimens_per_shard=20, source={"format": "table", "paths": [str(path)]})
        keys[name] = read_index(tmp_path / name)["key"].to_pylist()
    assert keys["a"] == keys["b"] != keys["c"] and sorted(keys["a"]) == sorted(keys["c"]) == [row[0] for row in rows]
    assert keys["a"] != sorted(keys["a"])
    manifest = read_manifest(tmp_path / "a")
    assert [shard["specimens"] for shard in manifest["shards"]] == [20, 20, 20, 20, 15]
    assert manifest["counts"]["splits"] == {"train": 32, "val": 32, "test": 31}
    assert manifest["counts"]["labelled"] == {"order": 95, "family": 0, "genus": 0, "species": 0}
    assert manifest["seed"] == 1 and manifest["source"]["paths"] == [str(path)]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        *(f"{n:06d}.tar" for n in range(5)),
        "index.parquet",
        "manifest.json",
        "report.html",
        "report.json",
    ]


def test_a_shard_without_usable_specimens_leaves_no_file(source_folder: Path, tmp_path: Path) -> None:
    rows = [(f"s{n}", "", "ACGT" if n == 3 else "!!!!", "train") for n in range(6)]
    run(make_table(source_folder, rows), tmp_path / "out", specimens_per_shard=1)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 1 and verify(tmp_path / "out") == []


def test_out_folder_is_protected(source_folder: Path, tmp_path: Path) -> None:
    path, out = make_table(source_folder, [(f"s{n}", "", "ACGT", "") for n in range(5)]), tmp_path / "out"
    run(path, out, specimens_per_shard=1)
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"--out: got .*, which is not empty; allowed: .* --overwrite"):
        run(path, out)
    report = run(path, out, overwrite=True)
    assert verify(out) == [] and len(list(out.glob("*.tar"))) == 1 and (out / "mine.txt").exists()
    assert report["splits"]["assigned"] == 5 and report["written"]["splits"] == {"train": 5}
    with pytest.raises(ValueError, match="which is a file"):
        run(path, out / "mine.txt")
    nothing = make_table(source_folder, [("x", "", "", "train"), ("y", "", "", "train")])
    with pytest.raises(ValueError, match=r"2 records of which none is usable: neither image nor barcode \(2\)"):
        run(nothing, out, overwrite=True)
    assert verify(out) == [], "input that is no good leaves the old shards as they were"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"specimens_per_shard": 0}, "specimens per shard: got 0, allowed: 1 or more"),
    ],
)
def test_options_are_validated(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IngestOptions(**options)


def test_same_bytes_through_ray(source_folder: Path, tmp_path: Path, ray_session: None) -> None:
    images = ("good.jpg", "photo.png", "text.jpg", "")
    rows = [(f"s{n}", images[n % 4], "ACGT" * (n % 7) + "A", "train") for n in range(60)]
    path = make_table(source_folder, rows)
    serial = run(path, tmp_path / "serial", specimens_per_shard=9)
    parallel = run(path, tmp_path / "parallel", specimens_per_shard=9, parallel=True)
    assert serial == parallel and serial["image_removed"]["count"] == 15 and serial["images_converted"] == 15
    files = sorted(p.name for p in (tmp_path / "serial").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "parallel").iterdir()) and len(files) == 7 + 4
    for name in files:
        assert (tmp_path / "serial" / name).read_bytes() == (tmp_path / "parallel" / name).read_bytes(), name


def test_real_moths(real_data: Path, tmp_path: Path) -> None:
    import webdataset

    report = run(real_data / "moths" / "specimens.parquet", tmp_path / "out", specimens_per_shard=800)
    assert verify(tmp_path / "out") == []
    assert report["written"]["specimens"] == 1638 and report["images_converted"] == 0
    assert report["written"]["splits"] == {"train": 1092, "val": 182, "test": 364}
    assert report["written"]["modalities"] == {"image": 1638, "barcode": 1488, "both": 1488}
    assert not report["skipped"]["count"] + report["image_removed"]["count"] + report["barcode_removed"]["count"]
    samples = webdataset.WebDataset(str(tmp_path / "out" / "000000.tar"), shardshuffle=False)
    keys = [(sample["__key__"], "dna" in sample) for sample in samples]
    index = read_index(tmp_path / "out").slice(0, 800).to_pylist()
    assert keys == [(row["key"], row["dna_offset"] >= 0) for row in index]
