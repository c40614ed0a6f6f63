"""The same specimens, however a table or a FASTA is written: delimiter, quotes, line ends, packing, encoding."""

import bz2
import csv
import gzip
import io
import lzma
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.formats.registry import open_dataset
from engine.formats.source import read_all
from engine.specimens.taxonomy import RANKS

SPECIES = (
    ("Lepidoptera", "Noctuidae", "Noctua", "Noctua pronuba"),
    ("Diptera", "Syrphidae", "Episyrphus", "Episyrphus balteatus"),
    ("Coleoptera", "Carabidae", "Carabus", "Carabus auratus"),
    ("Hymenoptera", "Apidae", "Apis", "Apis mellifera"),
)
Specimens = list[tuple[str, str, tuple[str, ...], str]]  # key, barcode, names, note

notes = st.text(st.sampled_from("abc ÄÖé°\"',;|\t#>="), max_size=12)  # of Latin-1
specimens = st.lists(
    st.tuples(
        st.from_regex(r"[A-Z]{2}[0-9]{3}-[a-z]{2}", fullmatch=True),
        st.text("ACGT", min_size=30, max_size=80),
        st.sampled_from(SPECIES),
        notes,
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda one: one[0],
)


def zipped(data: bytes) -> bytes:
    place = io.BytesIO()
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("specimens.txt", data)
    return place.getvalue()


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zip": zipped,
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "latin-1")


def read(kind: str, name: str, data: bytes) -> list[tuple[str, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        source = open_dataset(kind, [path])
        rows = read_all(source).to_pylist()
    assert not source.skipped
    return [(row["key"], row["barcode"], *(row[rank] for rank in RANKS)) for row in rows]


@settings(max_examples=40, deadline=None, database=None)
@given(
    told=specimens,
    delimiter=st.sampled_from("\t,;|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    packing=st.sampled_from(list(PACKINGS)),
    hidden=st.booleans(),
    encoding=st.sampled_from(ENCODINGS),
    ends=st.booleans(),
)
def test_a_table(
    told: Specimens,
    delimiter: str,
    quoting: int,
    end: str,
    packing: str,
    hidden: bool,
    encoding: str,
    ends: bool,
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerow(["processid", "notes", "nucleotides", *RANKS])
    for key, barcode, names, note in told:
        writer.writerow([key, note, barcode, *names])
    whole = text.getvalue() if ends else text.getvalue().removesuffix(end)
    data = PACKINGS[packing](whole.encode(encoding))
    name = "specimens.tsv" if delimiter == "\t" else "specimens.csv"
    found = read("table", name if hidden and packing != ".zip" else name + packing, data)
    assert found == [(key, barcode, *names) for key, barcode, names, _ in told]


@settings(max_examples=40, deadline=None, database=None)
@given(
    told=specimens,
    style=st.sampled_from(["bold", "sintax", "barcodebert"]),
    width=st.sampled_from([0, 7, 60]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    packing=st.sampled_from([name for name in PACKINGS if name != ".zip"]),
    encoding=st.sampled_from(ENCODINGS),
    blank=st.booleans(),
    ends=st.booleans(),
)
def test_a_fasta(
    told: Specimens, style: str, width: int, end: str, packing: str, encoding: str, blank: bool, ends: bool
) -> None:
    lines = []
    for key, barcode, names, _ in told:
        order, family, genus, species = names
        lines.append(
            {
                "bold": f">{key}|{species}|COI-5P",
                "sintax": f">{key};tax=o:{order},f:{family},g:{genus},s:{species}",
                "barcodebert": f">{key}|{genus}|{species}",
            }[style]
        )
        step = width or len(barcode)
        lines += [barcode[start : start + step] for start in range(0, len(barcode), step)]
        lines += [""] * blank
    whole = end.join(lines) + end * ends
    found = read("fasta", "b.fasta" + packing, PACKINGS[packing](whole.encode(encoding)))
    named = 0 if style == "sintax" else 2
    expected = [(key, barcode, *(None,) * named, *names[named:]) for key, barcode, names, _ in told]
    assert found == expected
