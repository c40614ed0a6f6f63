"""BIOSCAN-1M and 5M in their exact layout, against the bioscan-dataset package reading the same files."""

import pickle
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bioscan_dataset
import pandas as pd
import pytest

from engine.formats.bioscan5m import chunk_of
from engine.formats.registry import open_dataset
from engine.formats.source import read_all
from engine.ingest.job import IngestOptions, ingest
from engine.specimens.taxonomy import RANKS
from engine.store.shards import ShardReader, read_index
from engine.store.verify import verify
from tests.engine.formats import fixtures
from tests.engine.formats.fixtures import Release, read

OUR_SPLITS = {  # as the package declares them, and CLIBD's other groups: keys together, single records held out
    "no_split": "pretrain",
    "train_seen": "train",
    "val_seen": "val",
    "test_seen": "test",
    "seen_keys": "key_unseen",
    "val_unseen_keys": "key_unseen",
    "test_unseen_keys": "key_unseen",
    "single_species": "other_heldout",
    "validation": "val",
}


@pytest.fixture
def release1m(tmp_path: Path) -> Release:
    return fixtures.bioscan1m(tmp_path / "one")


@pytest.fixture
def release5m(tmp_path: Path) -> Release:
    return fixtures.bioscan5m(tmp_path / "five")


def photos_of(frame: pd.DataFrame, source: Any) -> dict[str, bytes]:
    on_a_worker = pickle.loads(pickle.dumps(source.load_image))
    return {key: on_a_worker(ref) for key, ref in frame["image"].items()}


def known(column: pd.Series) -> dict[str, Any]:
    """{key: value} where there is one."""
    return column.dropna().astype(object).to_dict()


def same_labels(ours: pd.DataFrame, theirs: pd.DataFrame, columns: dict[str, str]) -> None:
    for our, their in columns.items():
        assert known(ours[our]) == known(theirs[their]), our


def oracle(monkeypatch: pytest.MonkeyPatch, name: str, root: Path, **options: Any) -> Any:
    cls = getattr(bioscan_dataset, name)
    monkeypatch.setattr(cls, "_check_integrity", lambda self, verbose=1: True)  # checksums of the real release
    return cls(str(root), output_format="dict", target_type="order", **options)


@pytest.mark.parametrize("column", ["large_diptera_family", "small_insect_order", "clibd"])
def test_bioscan1m_reads_what_its_package_reads(
    release1m: Release, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    options: dict[str, Any] = {"split_column": column}
    if column == "clibd":
        options = {"partitions": release1m.metadata.parent / "CLIBD_partitioning"}
    ours, source = read("bioscan1m", release1m.root, **options)
    theirs = oracle(monkeypatch, "BIOSCAN1M", release1m.root, split="all", partitioning_version=column)
    metadata = theirs.metadata.set_index("sampleid", drop=False)
    assert list(ours["key"]) == list(metadata["sampleid"]) and not source.skipped
    same_labels(ours, metadata, {**{rank: rank for rank in RANKS}, "bin_uri": "uri", "barcode": "nucraw"})
    split = metadata["clibd_split" if column == "clibd" else column].astype(str)
    assert ours["split"].to_dict() == split.replace(OUR_SPLITS).to_dict()
    assert ours["split"].nunique() >= 4 and ours["barcode"].str.len().max() == 660
    files = [Path(theirs.image_dir, f"part{row.chunk_number}", row.image_file) for row in metadata.itertuples()]
    assert photos_of(ours, source) == {key: path.read_bytes() for key, path in zip(metadata.index, files, strict=True)}


def test_the_packages_aliases_name_the_same_clibd_specimens(
    release1m: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = read("bioscan1m", release1m.root, partitions=release1m.metadata.parent / "CLIBD_partitioning")
    for alias in ("pretrain", "train", "val", "test", "all_keys"):
        theirs = oracle(monkeypatch, "BIOSCAN1M", release1m.root, split=alias, partitioning_version="clibd")
        mine = ours[ours["split"] == ("key_unseen" if alias == "all_keys" else alias)]
        assert set(mine["key"]) == set(theirs.metadata["sampleid"]), alias


def test_bioscan5m_reads_what_its_package_reads(release5m: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, source = read("bioscan5m", release5m.root)
    theirs = oracle(monkeypatch, "BIOSCAN5M", release5m.root, split="all")
    metadata = theirs.metadata.set_index("processid", drop=False)
    assert list(ours["key"]) == list(metadata["processid"]) and not source.skipped
    places = {"country": "country", "latitude": "coord-lat", "longitude": "coord-lon"}
    labels = {**{rank: rank for rank in RANKS}, "bin_uri": "dna_bin", "barcode": "dna_barcode", "split": "split"}
    same_labels(ours, metadata, labels | places)
    expected = {key: Path(theirs.image_dir, place).read_bytes() for key, place in metadata["image_path"].items()}
    assert photos_of(ours, source) == expected
    for split in ("train", "unseen", "other_heldout"):
        names = {"unseen": ["key_unseen", "val_unseen", "test_unseen"]}.get(split, [split])
        part = oracle(monkeypatch, "BIOSCAN5M", release5m.root, split=split)
        assert set(ours["key"][ours["split"].isin(names)]) == set(part.metadata["processid"])


@pytest.mark.parametrize("form", ["uint8", "bytes", "void"])
@pytest.mark.parametrize("top", [True, False])
def test_bioscan1m_photos_in_hdf5(release1m: Release, tmp_path: Path, form: str, top: bool) -> None:
    file = fixtures.hdf5_of(release1m.photos, tmp_path / "cropped_256.hdf5", form, top)
    ours, source = read("bioscan1m", release1m.metadata, file)
    assert ours["image"].str.startswith("hdf5:").all()
    assert list(photos_of(ours, source).values()) == list(release1m.photos.values())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("prefix", ["bioscan/images/cropped_256", "cropped_256", "elsewhere"])
def test_bioscan1m_photos_in_a_zip(release1m: Release, tmp_path: Path, method: int, prefix: str) -> None:
    images = release1m.metadata.parent / "images" / "cropped_256"
    archive = fixtures.zipped(images, tmp_path / "cropped_256.zip", prefix, method)
    ours, source = read("bioscan1m", release1m.metadata, archive)
    assert ours["image"].str.startswith("zip:").all()
    assert list(photos_of(ours, source).values()) == list(release1m.photos.values())


def test_bioscan5m_photos_in_several_zips(release5m: Release, tmp_path: Path) -> None:
    images = release5m.metadata.parents[2] / "images" / "cropped_256"
    folder = tmp_path / "download"
    folder.mkdir()
    for split in ("pretrain", "train"):
        prefix = f"bioscan5m/images/cropped_256/{split}"
        fixtures.zipped(images / split, folder / f"BIOSCAN_5M_cropped_256_{split}.zip", prefix)
        shutil.rmtree(images / split)
    fixtures.zipped(images, folder / "BIOSCAN_5M_cropped_256_eval.zip", "bioscan5m/images/cropped_256")
    fixtures.zipped(images, folder / "BIOSCAN_5M_original_256_eval.zip", "bioscan5m/images/original_256")
    shutil.copy(release5m.metadata, folder)
    ours, source = read("bioscan5m", folder)
    assert [photos_of(ours, source)[row.key] for row in ours.itertuples()] == list(release5m.photos.values())
    other, _ = read("bioscan5m", folder, package="original_256")
    assert (~other["image"].str.startswith("zip:")).sum() == release5m.frame["split"].isin(["pretrain", "train"]).sum()


def test_photos_in_one_flat_folder(release5m: Release, tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    for name, data in release5m.photos.items():
        (folder / name).write_bytes(data)
    ours, source = read("bioscan5m", release5m.metadata, images=folder)
    assert list(photos_of(ours, source).values()) == list(release5m.photos.values())


@pytest.mark.parametrize("kind", ["zip", "hdf5"])
def test_many_threads_read_one_archive(release1m: Release, tmp_path: Path, kind: str) -> None:
    images = release1m.metadata.parent / "images" / "cropped_256"
    if kind == "zip":
        archive = fixtures.zipped(images, tmp_path / "cropped_256.zip", "x", zipfile.ZIP_DEFLATED)
    else:
        archive = fixtures.hdf5_of(release1m.photos, tmp_path / "cropped_256.hdf5")
    ours, source = read("bioscan1m", release1m.metadata, archive)
    load = pickle.loads(pickle.dumps(source.load_image))  # nothing is open yet
    refs = list(ours["image"]) * 30
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(load, refs)) == list(release1m.photos.values()) * 30


def test_missing_and_damaged_photos_are_named(release5m: Release, tmp_path: Path) -> None:
    images = release5m.metadata.parents[2] / "images" / "cropped_256"
    keys = list(release5m.frame["processid"])
    gone, bent = (next(images.rglob(f"{key}.jpg")) for key in keys[:2])
    gone.unlink()
    ours, source = read("bioscan5m", release5m.root)
    with pytest.raises(ValueError, match=f"missing image file: .*{keys[0]}.jpg"):
        source.load_image(ours["image"].iloc[0])
    archive = fixtures.zipped(images, tmp_path / "cropped_256.zip", "x")
    data = bytearray(archive.read_bytes())
    data[data.index(release5m.photos[bent.name]) + 20] ^= 255
    archive.write_bytes(data)
    ours, source = read("bioscan5m", release5m.metadata, archive)
    with pytest.raises(ValueError, match=f"missing image file: {keys[0]}.jpg in .*cropped_256.zip"):
        source.load_image(ours["image"].iloc[0])
    with pytest.raises(ValueError, match=f"damaged, its checksum differs .*{keys[1]}.jpg"):
        source.load_image(ours["image"].iloc[1])
    assert source.load_image(ours["image"].iloc[2]) == release5m.photos[f"{keys[2]}.jpg"]
    archive.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cropped_256.zip, which cannot be read \(no directory at its end"):
        open_dataset("bioscan5m", [release5m.metadata, archive])
    hdf5 = fixtures.hdf5_of({"other.jpg": b"x"}, tmp_path / "photos.h5")
    (tmp_path / "cut.h5").write_bytes(hdf5.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"hdf5: got .*cut.h5, which cannot be read"):
        open_dataset("bioscan5m", [release5m.metadata, tmp_path / "cut.h5"])
    ours, source = read("bioscan5m", release5m.metadata, hdf5)
    with pytest.raises(ValueError, match=f"missing image file: {keys[0]}.jpg in .*photos.h5"):
        source.load_image(ours["image"].iloc[0])


def test_an_old_metadata_file_and_chunks_that_lost_their_zeros(release5m: Release) -> None:
    old = release5m.frame.rename(
        columns={"dna_barcode": "nucleotides", "dna_bin": "uri", "chunk": "chunk_number", "order": "order_name"}
    ).rename(columns={rank: f"{rank}_name" for rank in RANKS})
    old["chunk_number"] = [text.lstrip("0") if text.isdigit() else text for text in old["chunk_number"]]
    old["family_name"] = old["family_name"].replace("", "no_data")
    path = release5m.metadata.with_suffix(".tsv")
    old.to_csv(path, sep="\t", index=False)
    new, _ = read("bioscan5m", release5m.metadata, release5m.root)
    ours, _ = read("bioscan5m", path, release5m.root)
    pd.testing.assert_frame_equal(ours, new)


@pytest.mark.parametrize(  # real places of real photos
    "place",
    ["pretrain/00/AACTA1040-20", "pretrain/ff/YGEN686-22", "train/0/AACTA1026-20", "other_heldout/f/YDBB6502-21"],
)
def test_chunks_are_the_processids_checksum(place: str) -> None:
    split, chunk, processid = place.split("/")
    assert chunk_of(processid, split) == chunk and chunk_of(processid, "val") == ""


def test_clibd_partitions_that_do_not_fit(release1m: Release) -> None:
    folder = release1m.metadata.parent / "CLIBD_partitioning"
    lines = (folder / "val_seen.txt").read_text().splitlines()
    (folder / "val_seen.txt").write_text("\r\n".join([*lines[1:], "BIOUG-unknown", "BIOUG-unknown"]))
    ours, source = read("bioscan1m", release1m.root, partitions=folder)
    assert lines[0] not in ours.index and len(ours) == len(release1m.frame) - 1
    assert source.skipped == [
        (lines[0], "in none of the partition files"),
        (str(folder), "ids without a record: 1"),
        (str(folder), "ids listed twice: 1"),
    ]
    (folder / "no_split.txt").unlink()
    with pytest.raises(ValueError, match=r"--partitions: got .* without no_split.txt; allowed: a folder with"):
        read("bioscan1m", release1m.root, partitions=folder)


def test_bioscan_errors(release1m: Release, release5m: Release, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--split-column: got 'large', allowed: large_diptera_family"):
        open_dataset("bioscan1m", [release1m.root], split_column="large")
    with pytest.raises(ValueError, match="--package: got 'small', allowed: cropped_256"):
        open_dataset("bioscan5m", [release5m.root], package="small")
    with pytest.raises(ValueError, match=r"bioscan5m: .* lacks columns split; got sampleid"):
        read_all(open_dataset("bioscan5m", [release1m.metadata]))
    with pytest.raises(ValueError, match="without a metadata file; allowed: one that is named"):
        open_dataset("bioscan1m", [tmp_path])
    with pytest.raises(ValueError, match=r"--images: got .*nowhere without photos"):
        open_dataset("bioscan1m", [release1m.metadata], images=tmp_path / "nowhere")
    plain, _ = read("bioscan1m", release1m.metadata, split_column="none", max_nucleotides=0)
    assert plain["image"].isna().all() and plain["split"].isna().all() and plain["barcode"].str.len().max() == 700


@pytest.mark.parametrize("kind", ["folder", "zip", "hdf5", "clibd"])
def test_ingest_through_ray_copies_photos_and_names_missing_ones(tmp_path: Path, kind: str, ray_session: None) -> None:
    if kind == "clibd":
        made = fixtures.clibd_hdf5(tmp_path / "clibd.hdf5", {"train_seen": list(range(1, 30)), "val_seen": [31, 35]})
        photos = {key: specimen["photo"] or None for key, specimen in made.items()}
        source = open_dataset("clibd-hdf5", [tmp_path / "clibd.hdf5"])
    else:
        release = fixtures.bioscan1m(tmp_path / "one")
        photos = dict(zip(release.frame["sampleid"], release.photos.values(), strict=True))
        gone = release.frame.iloc[4]
        photos[gone["sampleid"]] = None
        images = release.metadata.parent / "images" / "cropped_256"
        (images / f"part{gone['chunk_number']}" / gone["image_file"]).unlink()
        held = {name: data for name, data in release.photos.items() if name != gone["image_file"]}
        place = {
            "folder": lambda: release.root,
            "zip": lambda: fixtures.zipped(images, tmp_path / "cropped_256.zip", "bioscan/images/cropped_256"),
            "hdf5": lambda: fixtures.hdf5_of(held, tmp_path / "cropped_256.hdf5"),
        }[kind]()
        source = open_dataset("bioscan1m", [release.metadata], images=place)
    report = ingest(source, tmp_path / "out", IngestOptions(specimens_per_shard=8))
    assert verify(tmp_path / "out") == []
    reader, got = ShardReader(tmp_path / "out"), {}
    for row in read_index(tmp_path / "out").to_pylist():
        has = row["image_offset"] >= 0
        got[row["key"]] = reader.read(row["shard"], row["image_offset"], row["image_size"]) if has else None
    assert got == photos
    missing = sorted(key for key, data in photos.items() if data is None)
    assert missing and sorted(one["key"] for one in report["image_removed"]["named"]) == missing
    assert report["image_removed"]["by_reason"] == {"missing image file": len(missing)}
