"""Faults met while reading for training: each is named and counted, nothing else is lost, shapes and steps stay.

Every damaged specimen stands in the middle of shards of 24 sound ones; batches go through the whole pipeline, some of
them through Ray.
"""

import io
import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image

from engine.batches.collate import Batch
from engine.batches.pipeline import CpuBudget, Specimens, evaluation_batches, load_index, training_batches
from engine.batches.sampling import EpochPlan
from engine.config import AugmentConfig, DataConfig
from engine.signals import images
from engine.specimens.schema import Specimen
from engine.specimens.taxonomy import RANKS, Taxonomy
from engine.store.shards import FORMAT_VERSION, INDEX_NAME, MANIFEST_NAME, shard_name
from engine.store.tars import write_shard

BUDGET = CpuBudget(execution_cpus=2.0, task_cpus=1.0, object_store_bytes=1e8)
BARCODE = "AACTTTATATTTTATTTTTGGTATTTGAGCAGGAATAGTAGGAACTTCTTTAAGATTATTAATTCGAGCAGAATTAGG"
COUNT, PER_SHARD = 24, 8


def picture(seed: int = 0, side: int = 40) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def specimen(number: int, image: bytes | None, barcode: str | None = BARCODE) -> Specimen:
    names = ("Lepidoptera", "Noctuidae", "Abrostola", f"Abrostola s{number % 4}")
    return Specimen(
        id=f"S{number:03d}", image=image, barcode=barcode, barcode_length=len(barcode or ""), names=names, split="train"
    )


def write(folder: Path, specimens: list[Specimen]) -> list[pa.Table]:
    """Shards, index and manifest, whatever the specimens hold: ingest would refuse most of the damaged ones."""
    folder.mkdir()
    parts = [specimens[first : first + PER_SHARD] for first in range(0, len(specimens), PER_SHARD)]
    tables = [write_shard(folder / shard_name(i), part).index for i, part in enumerate(parts)]
    finish(folder, pa.concat_tables(tables))
    return tables


def finish(folder: Path, index: pa.Table) -> None:
    pq.write_table(index, folder / INDEX_NAME)
    shards = [{"file": path.name, "bytes": path.stat().st_size} for path in sorted(folder.glob("*.tar"))]
    manifest = {"format_version": FORMAT_VERSION, "counts": {}, "index_sha256": "", "shards": shards}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def sound(count: int = COUNT) -> list[Specimen]:
    return [specimen(i, images.encode_jpeg(picture(i))) for i in range(count)]


def epoch(folder: Path, budget: CpuBudget | None = None) -> list[Batch]:
    """All batches of one epoch of training."""
    index = load_index([folder])
    specimens = Specimens.from_index(index, Taxonomy.build({rank: index[rank] for rank in RANKS}))
    plan = EpochPlan(labels=specimens.labels, seed=0, global_batch_size=8)
    data = DataConfig(shards=(str(folder),), image_size=16, rows_per_task=16)
    return list(training_batches(specimens, plan, data, (0, plan.steps_per_epoch), (0, 1), budget))


def check_only(batches: list[Batch], key: str, lost: str, kept: str | None) -> None:
    """Three batches of eight; of all specimens only this one lacks what it lost."""
    assert [tuple(batch["image"].shape) for batch in batches] == [(8, 16, 16, 3)] * 3
    rows = {k: (batch, i) for batch in batches for i, k in enumerate(batch["keys"])}
    assert len(rows) == COUNT
    for other, (batch, i) in rows.items():
        there = {"image": bool(batch["has_image"][i]), "dna": bool(batch["has_dna"][i])}
        assert there == {"image": True, "dna": True} | ({lost: False} if other == key else {}), other
        assert bool(batch["valid"][i])
    batch, i = rows[key]
    if lost == "image":
        assert not batch["image"][i].any() and not batch["image_view2"][i].any()
    else:
        assert not batch["dna_mask"][i].any() and batch["barcode"][i] == -1
    assert kept is None or bool(batch[f"has_{kept}"][i])  # type: ignore[literal-required]


def truncated() -> bytes:
    data = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    return data[: len(data) // 2]


def bomb() -> bytes:
    jpeg = bytearray(images.encode_jpeg(picture()))
    frame = jpeg.find(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = (20_000).to_bytes(2, "big") * 2
    return bytes(jpeg)


BAD_PHOTOS = {
    "truncated": (truncated, "image damaged: .*damaged JPEG"),
    "zero bytes": (lambda: b"", "image damaged: photo: got 0 bytes"),
    "bomb": (bomb, "image damaged: photo: got 20000 x 20000 pixels, allowed: at most"),
    "a web page": (lambda: b"<html>not found</html>", "image damaged: photo: unknown format"),
}


@pytest.mark.parametrize("name", BAD_PHOTOS)
def test_a_bad_photo_costs_the_photo(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make, message = BAD_PHOTOS[name]
    specimens = sound()
    specimens[11] = specimen(11, make())
    write(tmp_path / "shards", specimens)
    batches = epoch(tmp_path / "shards")
    check_only(batches, "S011", "image", "dna")
    problems = [problem for batch in batches for problem in batch["problems"]]
    assert len(problems) == 1 and re.match(f"S011: {message}", problems[0])
    assert "specimen S011: image damaged" in caplog.text
    assert "epoch 0: members that could not be used: image damaged 1" in caplog.text


BAD_BARCODES = {"dna empty": "", "dna invalid": "ACGT!XQ", "dna empty ": "NNN---NN"}


@pytest.mark.parametrize("kind", BAD_BARCODES)
def test_a_bad_barcode_costs_the_barcode(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    specimens = sound()
    specimens[5] = specimen(5, images.encode_jpeg(picture(5)), BAD_BARCODES[kind])
    write(tmp_path / "shards", specimens)
    check_only(epoch(tmp_path / "shards"), "S005", "dna", "image")
    assert f"epoch 0: members that could not be used: {kind.strip()} 1" in caplog.text
    assert f"specimen S005: {kind.strip()}: " in caplog.text


def test_lower_case_gaps_and_iupac_letters_are_read_as_the_clean_barcode(tmp_path: Path) -> None:
    specimens = sound()
    odd = "-" + BARCODE[:30].lower() + "--\n " + BARCODE[30:40] + "RYK" + BARCODE[43:] + "nn.."
    specimens[3] = specimen(3, None, odd)
    specimens[4] = specimen(4, None, BARCODE[:40] + "NNN" + BARCODE[43:])
    write(tmp_path / "shards", specimens)
    rows = {k: (batch, i) for batch in epoch(tmp_path / "shards") for i, k in enumerate(batch["keys"])}
    (one, i), (other, j) = rows["S003"], rows["S004"]
    assert one["dna_tokens"][i].equal(other["dna_tokens"][j]) and one["dna_mask"][i].any()
    assert one["barcode"][i] == other["barcode"][j] >= 0
    assert all(batch["valid"].all() and not batch["problems"] for batch, _ in rows.values())


def saved(mode: str, kind: str, orientation: int = 1) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).convert(mode).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def sixteen_bits() -> bytes:
    return cv2.imencode(".png", picture()[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


@pytest.mark.parametrize(
    ("make", "turns"),
    [
        (lambda: saved("CMYK", "JPEG"), 0),
        (sixteen_bits, 0),
        (lambda: saved("RGB", "JPEG", 6), 3),
        (lambda: saved("RGB", "JPEG", 3), 2),
        (lambda: saved("RGBA", "PNG"), 0),
    ],
    ids=["CMYK", "16-bit PNG", "EXIF 6", "EXIF 3", "RGBA"],
)
def test_odd_photos_are_read_right(make: Callable[[], bytes], turns: int, tmp_path: Path) -> None:
    """Stored as they are, which ingest never does, they still give the picture, upright."""
    specimens = sound(8)
    specimens[2] = specimen(2, make())
    write(tmp_path / "shards", specimens)
    index = load_index([tmp_path / "shards"])
    taxonomy = Taxonomy.build({rank: index[rank] for rank in RANKS})
    (batch,) = evaluation_batches(index, taxonomy, DataConfig(image_size=40), 8)
    expected = np.rot90(picture(), turns).astype(int)
    assert np.abs(batch["image"][2].numpy().astype(int) - expected).mean() <= 4
    assert batch["valid"].all() and batch["problems"] == []


def test_a_truncated_tar_costs_what_lay_beyond_the_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Cut after the index and the look at the sizes: in the middle of the fourth of the shard's eight photos."""
    tables = write(tmp_path / "shards", sound())
    row = tables[1].to_pylist()[3]
    tar = tmp_path / "shards" / shard_name(1)
    with tar.open("r+b") as file:
        file.truncate(row["image_offset"] + row["image_size"] // 2)
    with pytest.raises(ValueError, match=r"000001\.tar, which has .* allowed: .* bytes, as the manifest says"):
        load_index([tmp_path / "shards"])
    finish(tmp_path / "shards", pa.concat_tables(tables))  # as if the manifest were of the same mind
    batches = epoch(tmp_path / "shards")
    valid = {k: bool(batch["valid"][i]) for batch in batches for i, k in enumerate(batch["keys"])}
    assert {k for k, ok in valid.items() if not ok} == {f"S{i:03d}" for i in range(12, 16)} and len(valid) == COUNT
    assert "image unreadable 5, dna unreadable 4" in caplog.text
    with_image = {k for batch in batches for i, k in enumerate(batch["keys"]) if batch["has_image"][i]}
    assert "S011" not in with_image and "S010" in with_image and valid["S011"]  # its barcode lay before the cut


def test_a_shard_that_vanishes_during_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "shards", sound())
    index = load_index([tmp_path / "shards"])
    (tmp_path / "shards" / shard_name(2)).unlink()
    taxonomy = Taxonomy.build({rank: index[rank] for rank in RANKS})
    batches = list(evaluation_batches(index, taxonomy, DataConfig(image_size=16), 8))
    assert [int(batch["valid"].sum()) for batch in batches] == [8, 8, 0]
    assert "dna unreadable 8" in caplog.text and "specimen S023" in caplog.text


def test_a_member_that_is_not_where_the_index_has_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The tar was written again without one specimen's photo, padded to its size: later offsets are wrong too."""
    tables = write(tmp_path / "shards", sound())
    tar = tmp_path / "shards" / shard_name(1)
    size = tar.stat().st_size
    write_shard(tar, [specimen(i, None if i == 10 else images.encode_jpeg(picture(i))) for i in range(8, 16)])
    tar.write_bytes(tar.read_bytes().ljust(size, b"\0"))
    finish(tmp_path / "shards", pa.concat_tables(tables))
    batches = epoch(tmp_path / "shards")
    assert "specimen S010: image unreadable: no member S010.jpg where the index has it" in caplog.text
    for batch in batches:  # nobody was given another one's photo or barcode
        for i, key in enumerate(batch["keys"]):
            assert bool(batch["valid"][i]) == (not 10 < int(key[1:]) < 16), key


def test_a_key_that_occurs_twice_in_the_index(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    specimens = sound()
    specimens[20] = specimens[2]
    write(tmp_path / "shards", specimens)
    index = load_index([tmp_path / "shards"])
    assert index["key"].to_pylist() == [f"S{i:03d}" for i in range(COUNT) if i != 20]
    assert "1 rows of the index repeat a key and are left out: S002" in caplog.text


def test_json_that_is_no_utf8_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Training reads no JSON member; a manifest that is no UTF-8 is one line."""
    tables = write(tmp_path / "shards", sound())
    tar = tmp_path / "shards" / shard_name(0)
    data = tar.read_bytes()
    tar.write_bytes(data.replace(b'"order":"Lepidoptera"', b'"order":"Lep\xff\xfeoptera"'))
    assert tar.read_bytes() != data
    finish(tmp_path / "shards", pa.concat_tables(tables))
    batches = epoch(tmp_path / "shards")
    assert sum(int(batch["valid"].sum()) for batch in batches) == COUNT and not caplog.records
    (tmp_path / "shards" / MANIFEST_NAME).write_bytes(b'{"format_version": "\xff\xfe"}')
    with pytest.raises(ValueError, match=r"manifest\.json is no manifest"):
        load_index([tmp_path / "shards"])


def test_several_faults_at_once_through_ray(
    tmp_path: Path, ray_session: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The same batches as without Ray; counts of two epochs, names once."""
    specimens = sound()
    specimens[1] = specimen(1, truncated(), "")
    specimens[9] = specimen(9, bomb())
    specimens[17] = specimen(17, b"", "ACGT!")
    write(tmp_path / "shards", specimens)
    here = epoch(tmp_path / "shards")
    caplog.clear()
    caplog.set_level(logging.WARNING)
    through_ray = epoch(tmp_path / "shards", BUDGET)
    assert [batch["keys"] for batch in here] == [batch["keys"] for batch in through_ray]
    for one, other in zip(here, through_ray, strict=True):
        assert one["image"].equal(other["image"]) and one["valid"].equal(other["valid"])
        assert one["problems"] == other["problems"]
    assert Counter(bool(ok) for batch in here for ok in batch["valid"]) == {True: COUNT - 2, False: 2}
    assert "image damaged 3, dna" in caplog.text and "dna empty 1" in caplog.text and "dna invalid 1" in caplog.text


def test_names_are_told_once_and_counts_every_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    specimens = sound()
    specimens[7] = specimen(7, b"")
    write(tmp_path / "shards", specimens)
    index = load_index([tmp_path / "shards"])
    stored = Specimens.from_index(index, Taxonomy.build({rank: index[rank] for rank in RANKS}))
    plan = EpochPlan(labels=stored.labels, seed=0, global_batch_size=8)
    data = DataConfig(image_size=16, augment=AugmentConfig())
    assert len(list(training_batches(stored, plan, data, (0, 9), (0, 1), None))) == 9
    assert caplog.text.count("specimen S007") == 1
    assert caplog.text.count("could not be used: image damaged 1") == 3


def test_a_copy_of_the_folder_reads_the_same(tmp_path: Path) -> None:
    """Nothing of where shards were written is stored in them."""
    write(tmp_path / "shards", sound())
    shutil.copytree(tmp_path / "shards", tmp_path / "copy")
    one, other = epoch(tmp_path / "shards"), epoch(tmp_path / "copy")
    assert all(a["image"].equal(b["image"]) for a, b in zip(one, other, strict=True))
