"""Ingest: what becomes of good and bad rows, the same bytes at any parallelism, real specimens end to end."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.formats.registry import open_dataset
from engine.formats.source import read_all
from engine.ingest import plan as ingest_plan
from engine.ingest.job import IngestOptions, ingest
from engine.ingest.plan import LAYOUTS, stored_order
from engine.relations.splits import SplitOptions
from engine.signals.images import decode
from engine.store.shards import ShardReader, read_index, read_manifest
from engine.store.verify import verify

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


def test_clustered_layout_stores_runs_of_one_taxon(source_folder: Path, tmp_path: Path) -> None:
    """Runs of 16 to 63 of one lowest known taxon, as many as its specimens need; the same specimens as at random."""
    rng = np.random.default_rng(0)
    species = np.repeat(np.arange(12), [1, 5, 20, 31, 32, 33, 64, 65, 100, 200, 320, 7])
    lines = [f"s{n},ACGT,Diptera,Muscidae,Musca,{f'Musca s{code}' if code else ''}" for n, code in enumerate(species)]
    rng.shuffle(lines)
    path = source_folder / "labels.csv"
    path.write_text("\n".join(["id,barcode,order,family,genus,species", *lines]))
    for name, options in (("a", {}), ("b", {}), ("c", {"seed": 1}), ("random", {"layout": "random"})):
        run(path, tmp_path / name, specimens_per_shard=100, **{"layout": "clustered", **options})
    index = read_index(tmp_path / "a")
    taxon = np.array([name or "genus only" for name in index["species"].to_pylist()])
    starts = np.flatnonzero(np.concatenate(([True], taxon[1:] != taxon[:-1])))
    lengths = np.diff([*starts, len(taxon)])
    for start, length in zip(starts, lengths, strict=True):
        total = int((taxon == taxon[start]).sum())
        assert length >= min(total, 16), "neighbouring runs of one taxon look like one longer run"
    assert len(starts) > 15 and (np.sort(lengths)[-5:] <= 5 * 64).all()
    order = list(dict.fromkeys(taxon))
    assert order != sorted(order)
    keys = {name: read_index(tmp_path / name)["key"].to_pylist() for name in ("a", "b", "c", "random")}
    assert keys["a"] == keys["b"] != keys["c"] and sorted(keys["a"]) == sorted(keys["random"])
    layouts = [read_manifest(tmp_path / name)["layout"] for name in ("a", "random")]
    assert layouts == ["clustered", "random"]


@given(st.lists(st.integers(0, 6), max_size=400), st.integers(0, 3))
def test_stored_orders_are_permutations_in_runs(taxa: list[int], seed: int) -> None:
    codes = np.array(taxa, dtype=np.int32)
    for layout in LAYOUTS:
        order = stored_order(len(codes), seed, layout, codes)
        assert np.array_equal(np.sort(order), np.arange(len(codes)))
    for code in set(taxa):
        places = np.flatnonzero(codes[order] == code)
        runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        assert all(len(run) >= min(16, len(places)) for run in runs)


def test_max_side_shrinks_what_is_larger(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "large.jpg").write_bytes(make_jpeg(0, 90, 120))
    (folder / "small.jpg").write_bytes(make_jpeg(1, 48, 30))
    (folder / "cut.jpg").write_bytes(make_jpeg(2, 90, 120)[:-400])
    checks = np.indices((300, 200)).sum(axis=0) % 2 * 255  # single pixels black and white: grey when averaged
    for name in ("checks.png", "checks.jpg"):
        pixels = np.repeat(checks[..., None], 3, axis=2).astype(np.uint8)
        (folder / name).write_bytes(cv2.imencode(name[-4:], pixels, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes())
    names = ["large.jpg", "small.jpg", "checks.png", "checks.jpg", "cut.jpg"]
    path = make_table(folder, [(name.replace(".", "-"), name, "ACGT", "train") for name in names])
    report = run(path, tmp_path / "out", max_side=48)
    assert (report["images_shrunk"], report["images_converted"], report["image_removed"]["count"]) == (3, 0, 1)
    rows = {row["key"]: row for row in read_index(tmp_path / "out").to_pylist()}
    reader = ShardReader(tmp_path / "out")
    stored = {
        key: reader.read(row["shard"], row["image_offset"], row["image_size"])
        for key, row in rows.items()
        if row["image_size"]
    }
    assert stored["small-jpg"] == make_jpeg(1, 48, 30)
    assert decode(stored["large-jpg"]).shape == (36, 48, 3)
    for key in ("checks-png", "checks-jpg"):
        pixels = decode(stored[key])
        assert pixels.shape == (48, 32, 3) and 120 < pixels.mean() < 135 and pixels.std() < 8, "antialiased"
    assert read_manifest(tmp_path / "out")["max_side"] == 48
    with pytest.raises(ValueError, match="max side: got 0, allowed: 1 or more pixels"):
        IngestOptions(max_side=0)


def test_rows_are_brought_into_order_in_parts(
    source_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of 16 rows and batches of 7 instead of 65,536 and some 10^4: nothing changes."""
    rows = [
        (f"s{n:03d}", "good.jpg" if n % 3 else "", f"ACGT{'AC' * (n % 9)}", ("train", "")[n % 2]) for n in range(90)
    ]
    path = make_table(source_folder, [*rows[:50], rows[3], *rows[50:], rows[77]])
    options = {"specimens_per_shard": 8, "layout": "clustered", "splits": SplitOptions(fractions=(0.6, 0.2, 0.2))}
    one = run(path, tmp_path / "one", **options)
    monkeypatch.setattr(ingest_plan, "_PART_ROWS", 16)
    source = open_dataset("table", [path])
    whole = read_all(source)

    class Pieces:
        inner = source  # of which the names are
        skipped = source.skipped
        load_image = source.load_image

        def batches(self) -> Iterator[pa.Table]:
            for first in range(0, whole.num_rows, 7):
                yield whole.slice(first, 7)

    many = ingest(Pieces(), tmp_path / "many", IngestOptions(parallel=False, **options))
    assert one == many and one["skipped"]["by_reason"] == {"duplicate key": 2}
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "many" / path.name).read_bytes(), path.name


def test_report_tells_counts_duplicates_and_tails(source_folder: Path, tmp_path: Path) -> None:
    barcodes = ["ACGT" * 5, "AC-GT" * 4 + "ACGT", "ACGT" * 6, "ACGT" * 6, "AAAA"]
    lines = [
        f"s{n},good.jpg,{barcode},Diptera,Muscidae,Musca,{'Musca <b>' if n < 4 else ''},{'train' if n else 'val'}"
        for n, barcode in enumerate(barcodes)
    ]
    path = source_folder / "labels.csv"
    bad = ["bad,gone.jpg,XX!,Diptera,,,,train", "s1,,ACGT,Diptera,,,,train"]
    path.write_text("\n".join(["id,image,barcode,order,family,genus,species,split", *lines, *bad]))
    report = run(path, tmp_path / "out")
    assert report["per_split"]["val"] == {
        **{"specimens": 1, "image": 1, "barcode": 1, "both": 1},
        **{"order": 1, "family": 1, "genus": 1, "species": 1},
    }
    assert report["missing"]["species"] == 1 and report["missing"]["bin_uri"] == report["missing"]["country"] == 5
    shared = {"stored": 5, "different": 3, "shared_by_specimens": 4, "most_specimens_of_one": 2}
    assert report["duplicates"] == {
        "keys_skipped": 1,
        "barcodes": shared,
        "photos": {"stored": 5, "different": 1, "shared_by_specimens": 5, "most_specimens_of_one": 5},
    }
    assert report["taxa"]["species"] == {"number": 1, "largest": [["Musca <b>", 4]], "taxa_by_specimens": [[4, 1]]}
    assert report["barcode_lengths"] == [[4, 1], [20, 2], [24, 2]]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 2 and "Musca &lt;b&gt;" in page and "<b>" not in page
    for told in ("missing image file", "duplicate key", "letters that are no nucleotides", "gone.jpg"):
        assert told in page


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
