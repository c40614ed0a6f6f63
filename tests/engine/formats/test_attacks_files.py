"""Hostile files, one of each kind: refused or left out by name, in bounded time and memory, and the rest is read."""

import bz2
import gzip
import lzma
import os
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from engine.formats import archives, zips
from engine.formats.hdf5 import Hdf5Images
from engine.formats.photo_files import read_image_file
from engine.formats.registry import open_dataset
from engine.formats.source import read_all
from engine.formats.zips import ZipMembers
from engine.signals.images import to_jpeg
from engine.store.limits import MAX_BARCODE_BYTES, MAX_LINE_BYTES, MAX_ZERO_BYTES
from tests.engine.formats.fixtures import photo

SECRET = "root:x:0:0"


def read(form: str, path: Path) -> tuple[list[str], list[str]]:
    """Return the keys that a format gives of a file, and the reasons of what it leaves out."""
    source = open_dataset(form, [path])
    keys = read_all(source)["key"].to_pylist()
    return keys, [reason for _, reason in source.skipped]


def packed(path: Path, *pieces: bytes) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for piece in pieces:
            file.write(piece)
    return path


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse", "long path", "null"])
def test_a_photo_is_a_regular_file_of_bounded_size(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "a.jpg"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "sparse":
        with place.open("wb") as file:
            file.truncate(100 << 30)
    reference = {"device": "/dev/zero", "long path": "a/" * 500_000, "null": "a\0b"}
    start = time.process_time()
    with pytest.raises(ValueError, match=r"image file|null"):
        read_image_file(reference.get(kind, str(place)))
    assert time.process_time() - start < 1
    assert read_image_file("/proc/self/status")  # says that it has 0 bytes


@pytest.mark.parametrize("name", ["a.csv", "a.fasta", "a.parquet", "a.hdf5", "a.zip", "a.xlsx"])
@pytest.mark.parametrize("form", ["auto", "table", "fasta", "clibd-hdf5"])
def test_a_pipe_is_no_data_set(tmp_path: Path, name: str, form: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises((ValueError, OSError)):
        read(form, tmp_path / name)


def test_a_long_line_costs_its_row_only(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.csv.gz", b"id,dna\na,ACGT\nb,", b"A" * (3 * MAX_LINE_BYTES), b"\nc,ACGTA\n")
    keys, reasons = read("table", path)
    assert keys == ["a", "c"] and reasons == [f"row of more than {MAX_LINE_BYTES:,} bytes"]


@pytest.mark.parametrize(
    ("head", "message"),
    [(b"id,dna," + b"x" * (MAX_LINE_BYTES + 9), "header line"), (b"id,dna" + b",x" * 30_000, "columns")],
)
def test_a_header_has_bounds(tmp_path: Path, head: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read("table", packed(tmp_path / "a.csv.gz", head, b"\na,ACGT,x\n"))


@pytest.mark.parametrize("line", [b'b,"' + b'x""' * 3333, b'"' + b'x""' * 3333, b'"' + b'x""' * 3333 + b'","'])
def test_quotes_that_never_close_cost_time_in_proportion(tmp_path: Path, line: bytes) -> None:
    """Each line used to be joined with up to 200 others, and all of it split at every further line: 1 MB took hours."""
    path = packed(tmp_path / "a.csv.gz", b"id,dna\na,ACGT\n", (line + b"\n") * 100, b"c,ACGTA\n")
    start = time.process_time()
    keys, _ = read("table", path)
    assert keys[0] == "a" and keys[-1] == "c" and time.process_time() - start < 10


def test_many_unreadable_rows_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.formats.delimited.MAX_NAMED_ROWS", 10)
    (tmp_path / "a.csv").write_bytes(b"id,dna\na,ACGT\n" + b"x\n" * 50)
    keys, reasons = read("table", tmp_path / "a.csv")
    assert keys == ["a"] and len(reasons) == 11 and reasons[-1] == "further rows that cannot be read: 40"


def test_zero_bytes_are_no_text(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("wb") as file:
        file.write(b"id,dna\na,ACGT\n")
        file.truncate(100 << 30)
    with pytest.raises(ValueError, match="zero bytes in a row"):
        read("table", tmp_path / "a.csv")
    assert MAX_ZERO_BYTES < 1 << 30


def test_long_records_of_fasta_are_left_out(tmp_path: Path) -> None:
    long = b"ACGT" * (MAX_BARCODE_BYTES // 4) + b"A"
    wrapped = b"\n".join([b"ACGTACGT"] * (MAX_BARCODE_BYTES // 8 + 1))
    path = packed(
        *(tmp_path / "a.fasta.gz", b"text\n>a1\nACGT\n>long1\n", long, b"\n>wrapped1\n", wrapped),
        *(b"\n>" + b"x" * (1 << 17) + b"\nACGT\n>most1\n", long[:-1], b"\n>b1\nACGTA\n"),
    )
    keys, reasons = read("fasta", path)
    assert keys == ["a1", "most1", "b1"]
    assert [reason.split(":")[0][:20] for reason in reasons] == [
        "text before the firs",
        "barcode of more than",
        "barcode of more than",
        "header of 65,536 let",
    ]


def test_an_xz_file_may_not_ask_for_any_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"id,dna\na,ACGT\n"

    (tmp_path / "two.csv.xz").write_bytes(lzma.compress(text) + bytes(8) + lzma.compress(b"b,ACGT\n"))
    assert read("table", tmp_path / "two.csv.xz")[0] == ["a", "b"]
    (tmp_path / "cut.csv.xz").write_bytes(lzma.compress(text * 1000)[:-9])
    with pytest.raises(ValueError, match="cut off"):
        read("table", tmp_path / "cut.csv.xz")
    monkeypatch.setattr("engine.formats.unpacked.MAX_XZ_BYTES", 1 << 20)
    (tmp_path / "greedy.csv.xz").write_bytes(lzma.compress(text, preset=6))  # asks for 9 MiB
    with pytest.raises(ValueError, match="emory"):
        read("table", tmp_path / "greedy.csv.xz")


def test_a_bomb_unpacks_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.formats.unpacked.MAX_RATIO", 10)
    (tmp_path / "a.csv.bz2").write_bytes(bz2.compress(b"id,dna\n" + b"a,ACGT\n" * 500_000))
    with pytest.raises(ValueError, match="times its size"):
        read("table", tmp_path / "a.csv.bz2")


def test_a_zip_of_many_files_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.formats.unpacked.MAX_TABLE_MEMBERS", 3)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("meta.xml", "occurrence.txt", "a", "b"):
            archive.writestr(name, "id\tassociatedMedia\n")
    with pytest.raises(ValueError, match="with 4 files"):
        read("table", tmp_path / "a.zip")


def test_parts_of_archives_have_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_META_BYTES", 1000)
    monkeypatch.setattr(archives, "MAX_SHEET_PARTS_BYTES", 1000)
    for name in ("dwc.zip", "book.xlsx"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("meta.xml", "<archive>" + " " * 2000 + "</archive>")
            archive.writestr("occurrence.txt", "id\tdna\n")
        with pytest.raises(ValueError, match="bytes"):
            read("table", tmp_path / name)


def photos_zip(path: Path, change: Callable[[bytearray], None] = lambda data: None) -> ZipMembers:
    """Return the members a.jpg, b.jpg (deflated) of an archive whose bytes were changed."""
    with zipfile.ZipFile(path, "w") as archive:
        for seed, name in enumerate(("a.jpg", "b.jpg")):
            archive.writestr(name, photo(seed), zipfile.ZIP_DEFLATED if seed else zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return ZipMembers([path], lambda member: member)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (20, 0xFFFFFFF0, "outside the archive"),  # packed bytes
        (42, 0xFFFFFFF0, "outside the archive"),  # offset of the local header
        (42, 10, "inside another|no member"),
        (10, 99, "method 99"),
        (16, 1, "checksum"),
    ],
)
def test_a_lying_member_costs_itself_only(tmp_path: Path, field: int, value: int, message: str) -> None:
    def lie(data: bytearray) -> None:
        second = data.rfind(b"PK\1\2")
        struct.pack_into("<H" if field == 10 else "<I", data, second + field, value)

    members = photos_zip(tmp_path / "a.zip", lie)
    good, bad = members.refs(["a.jpg", "b.jpg"])
    assert good and members.load(good) == photo(0)
    with pytest.raises(ValueError, match=message):
        members.load(str(bad))


@pytest.mark.parametrize("size", [1 << 31, 0xFFFFFFFE])
def test_a_directory_longer_than_its_file_is_refused(tmp_path: Path, size: int) -> None:
    def lie(data: bytearray) -> None:
        struct.pack_into("<I", data, data.rfind(b"PK\5\6") + 12, size)

    with pytest.raises(ValueError, match="cannot be read"):
        photos_zip(tmp_path / "a.zip", lie)


def test_overlapping_members_lose_their_place(tmp_path: Path) -> None:
    """A thousand names of one member, or of parts of it: the first is read, the others are refused one by one."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(1000):
            archive.writestr(f"{number}.jpg", photo(0))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    place = data.find(b"PK\1\2")
    while place >= 0:
        struct.pack_into("<I", data, place + 42, 0)
        place = data.find(b"PK\1\2", place + 4)
    (tmp_path / "a.zip").write_bytes(data)
    members = ZipMembers([tmp_path / "a.zip"], lambda member: member)
    refs = members.refs([f"{number}.jpg" for number in range(1000)])
    read = 0
    for ref in refs:
        try:
            read += members.load(str(ref)) == photo(0)
        except ValueError as error:
            assert "inside another member" in str(error)
    assert read == 1


def test_a_member_unpacks_to_a_photo_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "MAX_PHOTO_BYTES", 5000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(1 << 20))
    members = ZipMembers([tmp_path / "a.zip"], lambda member: member)
    with pytest.raises(ValueError, match="more than 5,000 bytes unpacked"):
        members.load(str(members.refs(["a.jpg"])[0]))


def hostile_hdf5(path: Path, fifo: Path) -> list[str]:
    """Write a file of photos: honest ones and hostile ones, whose names are returned."""
    with h5py.File(path, "w") as file:
        file["good.jpg"] = np.frombuffer(photo(1), np.uint8)
        file["link.jpg"] = h5py.ExternalLink(str(fifo), "/x")
        file["soft.jpg"] = h5py.SoftLink("/link.jpg")
        file["dangling.jpg"] = h5py.SoftLink("/nowhere")
        file.create_group("group.jpg")
        file.create_dataset("raw.jpg", (20,), np.uint8, external=[("/etc/passwd", 0, 20)])
        file.create_dataset("pipe.jpg", (20,), np.uint8, external=[(str(fifo), 0, 20)])
        layout = h5py.VirtualLayout((20,), np.uint8)
        layout[:] = h5py.VirtualSource(str(fifo), "x", (20,))
        file.create_virtual_dataset("virtual.jpg", layout)
        file.create_dataset("huge.jpg", (1 << 40,), np.uint8, chunks=(1 << 20,))
        file.create_dataset("wrap.jpg", (1 << 33, 1 << 33), np.uint8, chunks=(1 << 10, 1 << 10))
        file.create_dataset("chunk.jpg", (100,), np.uint8, chunks=(100,), maxshape=(None,))
        file.create_dataset("bigchunk.jpg", (1 << 31,), np.uint8, chunks=(1 << 31,), compression="gzip")
        names = file.create_dataset("objects.jpg", (1000,), h5py.string_dtype())
        names[:] = "x" * 1000
        return [name for name in file if name not in ("good.jpg", "chunk.jpg")]


def test_hdf5_reads_only_what_lies_in_the_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    names = hostile_hdf5(tmp_path / "a.hdf5", tmp_path / "fifo")
    photos = Hdf5Images(tmp_path / "a.hdf5")
    assert photos.load("good.jpg") == photo(1) and photos.load("chunk.jpg") == bytes(100)
    for name in (*names, "link.jpg/x", "../good.jpg", "/"):
        with pytest.raises(ValueError, match="image file") as caught:
            photos.load(name)
        assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["barcode", "processid", "image", "species"])
@pytest.mark.parametrize("kind", ["link", "raw", "virtual", "huge", "long texts"])
def test_hdf5_of_clibd_reads_only_what_lies_in_the_file(tmp_path: Path, field: str, kind: str) -> None:
    fifo, path = tmp_path / "fifo", tmp_path / "a.hdf5"
    os.mkfifo(fifo)
    kinds: dict[str, Any] = {"barcode": "S8", "processid": "S8", "species": "S8", "image": np.uint8}
    with h5py.File(path, "w") as file:
        group = file.create_group("all_keys")
        for name, dtype in kinds.items():
            shape = (3, 4) if name == "image" else (3,)
            value: Any = 5 if name == "image" else b"ACGT"
            if name != field:
                group.create_dataset(name, shape, dtype, data=np.full(shape, value, dtype))
            elif kind == "link":
                group[name] = h5py.ExternalLink(str(fifo), "/x")
            elif kind == "raw":
                group.create_dataset(name, shape, dtype, external=[("/etc/passwd", 0, 24)])
            elif kind == "virtual":
                layout = h5py.VirtualLayout(shape, dtype)
                layout[:] = h5py.VirtualSource(str(fifo), "x", shape)
                group.create_virtual_dataset(name, layout)
            elif kind == "huge":
                group.create_dataset(name, (1 << 40, *shape[1:]), dtype, chunks=(1 << 10, *shape[1:]))
            else:
                texts = group.create_dataset(name, (3,), h5py.string_dtype())
                texts[:] = "A" * (MAX_BARCODE_BYTES + 1)
        group["image_mask"] = np.array([4, 2, 1 << 40])
    with pytest.raises(ValueError, match="hdf5") as caught:
        source = open_dataset("clibd-hdf5", [path])
        for ref in read_all(source)["image"].to_pylist():
            source.load_image(ref)
        raise ValueError("hdf5 was read")
    assert SECRET not in str(caught.value)


def tiff(*pages: tuple[int, int]) -> bytes:
    """Return a TIFF of pages with these widths and heights and no pixels."""
    data = struct.pack("<2sHI", b"II", 42, 8)
    for number, (width, height) in enumerate(pages):
        entries = struct.pack("<HHII", 256, 4, 1, width) + struct.pack("<HHII", 257, 4, 1, height)
        after = len(data) + 2 + len(entries) + 4 if number + 1 < len(pages) else 0
        data += struct.pack("<H", 2) + entries + struct.pack("<I", after)
    return data


def test_every_page_of_a_tiff_is_bounded() -> None:
    """The second page used to be decoded whatever it said: 30,000 x 30,000 in 3.4 GiB."""
    with pytest.raises(ValueError, match="page or tile"):
        to_jpeg(tiff((50, 50), (30_000, 30_000)))
    ring = bytearray(tiff((50, 50), (50, 50)))
    ring[-4:] = struct.pack("<I", 8)
    with pytest.raises(ValueError, match="ring"):
        to_jpeg(bytes(ring))


def test_a_long_line_in_a_table_of_names_is_passed_over(tmp_path: Path) -> None:
    lineage = "k__Animalia;p__Arthropoda;c__Insecta;o__Diptera;f__Muscidae;g__Musca;s__Musca domestica"
    (tmp_path / "a.fasta").write_text(">a1\nACGT\n>b1\nACGT\n")
    names = (tmp_path / "names_TAXONOMY.tsv").open("w")
    with names:
        names.write(f"a1\t{lineage}\n" + "x" * (2 * MAX_LINE_BYTES + 5) + f"\nb1\t{lineage}\n")
    found = read_all(open_dataset("fasta", [tmp_path / "a.fasta"]))
    assert found["order"].to_pylist() == ["Diptera", "Diptera"]
