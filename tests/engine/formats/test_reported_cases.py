"""FASTA and packed files that people reported, made small: each with the specimens and names that must come of it."""

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path

import pytest

from engine.formats.headers import read_header
from engine.formats.markers import is_coi
from engine.formats.registry import open_dataset
from engine.formats.source import read_all
from engine.specimens.taxonomy import RANKS

DNA = "AACTTTATATTTTATTTTTGGAGC"
FLY = ("Diptera", "Muscidae", "Musca", "Musca domestica")
LINEAGE = "Animalia,Arthropoda,Insecta,Diptera,Muscidae,None,Musca,Musca domestica,None"
PREFIXED = "k__Animalia;p__Arthropoda;c__Insecta;o__Diptera;f__Muscidae;g__Musca;s__Musca domestica"
DESCRIBED = "Musca domestica voucher 7 cytochrome oxidase subunit I (COI) gene, partial cds; mitochondrial"


def taken(path: Path, name: str = "auto", **options: object) -> tuple[dict[str, tuple[str | None, ...]], list]:
    """Return {id: names} and what was left out."""
    source = open_dataset(name, [path], **options)
    table = read_all(source)
    assert len(set(table["key"].to_pylist())) == len(table), "ids that repeat are lost later"
    return {row["key"]: tuple(row[rank] for rank in RANKS) for row in table.to_pylist()}, source.skipped


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


HEADERS = {
    f"ZQ1-21|COI-5P|Canada|{LINEAGE}": ("ZQ1-21", FLY),
    "Eukaryota;Arthropoda;Insecta;Diptera;Muscidae;Musca;Musca domestica;": (None, FLY),
    "Eukaryota_1;Arthropoda_2;Insecta_3;Diptera_4;Muscidae_5;Musca_6;Musca domestica_7": (None, FLY),
    PREFIXED: (None, FLY),
    f"Z1.1 {DESCRIBED}": ("Z1.1", (None, None, *FLY[2:])),
    "Z1.1 Musca domestica": ("Z1.1", (None, None, *FLY[2:])),
    "Z1.1.<1.>658 root_1;superkingdom_Eukaryota_2;class_Insecta_3;order_Diptera_4;family_Muscidae_5;genus_Musca_6;"
    "species_Musca domestica_7": ("Z1.1", FLY),
    f"Z1.1 Root;{LINEAGE.replace(',', ';').replace('None;', '').replace(';None', '')}": ("Z1.1", FLY),
    f"Musca_domestica|KY123456|SH1.08FU|reps|{PREFIXED}": ("KY123456", FLY),
    f"Z1 {PREFIXED}": ("Z1", FLY),
    "Z1;tax=k:Animalia,o:Diptera,f:Muscidae,g:Musca,s:Musca_domestica;size=3": ("Z1", FLY),
    "run:1:7 count=2; species_name=Musca domestica; family_name=Muscidae; order_name=Diptera;": ("run:1:7", FLY),
    'run:1:7 {"count":2,"scientific_name":"Musca domestica","family_name":"Muscidae","order_name":"Diptera"}': (
        "run:1:7",
        FLY,
    ),
    'run:1:7 {"taxid":"taxon:7370 [Musca domestica]@species"}': ("run:1:7", (None, None, *FLY[2:])),
    f"gi|100|gb|Z1.1| {DESCRIBED}": ("Z1.1", (None, None, *FLY[2:])),
    "gb|Z1.1|": ("Z1.1", (None,) * 4),
    "ref|NC_1.2| Musca domestica mitochondrion, complete genome": ("NC_1.2", (None, None, *FLY[2:])),
    "emb|X12345.1|": ("X12345.1", (None,) * 4),
    "gnl|base|id7 Musca domestica": ("id7", (None, None, *FLY[2:])),
    "lcl|Z1.1_cds_1 [gene=COX1] [organism=Musca domestica]": ("Z1.1_cds_1", (None, None, *FLY[2:])),
    "P1|SMPL-0001|Musca domestica|COI-5P": ("P1", (None, None, *FLY[2:])),
    "P1|Musca domestica|BOLD:AAA0001|Canada|COI-5P": ("P1", (None, None, *FLY[2:])),
    "P1|Diptera|Muscidae|Muscinae|Musca|Musca domestica": ("P1", FLY),
    "P1|Diptera|Muscidae||Musca|Musca domestica": ("P1", FLY),
    "P1|Chironominae|COI-5P": ("P1", (None,) * 4),
    "P1|Tanytarsini|COI-5P": ("P1", (None,) * 4),
    "P1|Apoidea|COI-5P": ("P1", (None,) * 4),
    "P1|Insecta|COI-5P": ("P1", (None,) * 4),
    "P1|Odonata|COI-5P": ("P1", ("Odonata", None, None, None)),
    "P1|Brachyptera|COI-5P": ("P1", (None, None, "Brachyptera", None)),
    "P1|Diptera sp.|COI-5P": ("P1", ("Diptera", None, None, None)),
    "P1|Noctuidae sp. 1|COI-5P": ("P1", (None, "Noctuidae", None, None)),
    "P1|SUPPRESSED|COI-5P": ("P1", (None,) * 4),
    "P1|Aus ×bus|COI-5P": ("P1", (None, None, "Aus", "Aus × bus")),
    "seq1;size=12;": ("seq1", (None,) * 4),
    "Sample 1": ("Sample 1", (None,) * 4),
}


@pytest.mark.parametrize("header", HEADERS)
def test_headers_of_portals_and_pipelines(header: str) -> None:
    key, names = HEADERS[header]
    found = read_header(header)
    assert (found.get("key"), tuple(found.get(rank) for rank in RANKS)) == (key, names)


OTHER_GENES = [
    "CYTB",
    "ND1",
    "ND2",
    "ND4L",
    "ND5-0",
    "COII",
    "COXII",
    "COXIII",
    "COI-3P",
    "COI-PSEUDO",
    "COI-5PNMT1",
    "COI-LIKE",
    "ATP6",
    "D-loop",
    "28S",
    "28S-D2",
    "18S",
    "5.8S",
    "16S",
    "12S",
    "ITS",
    "ITS2",
    "CAD",
    "Wnt1",
    "WNT1",
    "wingless",
    "Rho",
    "EF1-alpha",
    "H3",
    "matK",
    "rbcL",
    "rbcLa",
    "trnH-psbA",
    "RpS5",
    "GAPDH",
    "MDH",
    "IDH",
    "TPI",
    "DDC",
    "ArgKin",
    "AATS",
    "RNF213",
    "RAG1",
    "TMO-4C4",
    "PGD",
    "ENO",
    "CK1",
    "hcpB",
    "LWRHO",
    "UPA",
    "TULP1",
    "PSBA",
    "ENOL9",
    "XDH2",
    "ZZ9",
]


@pytest.mark.parametrize("marker", OTHER_GENES)
def test_other_genes_are_left_out_and_named(marker: str, tmp_path: Path) -> None:
    text = f">P1|Musca domestica|{marker}|KM123456\n{DNA}\n>P2|Musca domestica|COI-5P|KM123457\n{DNA}\n"
    found, skipped = taken(write(tmp_path / "x.fasta", text))
    assert found == {"P2": (None, None, *FLY[2:])}
    assert skipped == [("P1", f"record of another marker: {marker}")]


@pytest.mark.parametrize(
    "name", ["COI", "COI-5P", "CO1", "COX1", "cox1", "COXI", "MT-CO1", "cytochrome oxidase subunit I"]
)
def test_names_of_coi(name: str) -> None:
    assert is_coi(name) and not is_coi(f"{name}I-3P")


def test_a_lineage_as_header_gets_an_id_of_its_own(tmp_path: Path) -> None:
    text = "".join(f">Eukaryota;Arthropoda;Insecta;Diptera;Muscidae;Musca;Musca domestica;\n{DNA}\n" for _ in range(3))
    found, skipped = taken(write(tmp_path / "t.fasta", text))
    assert found == {f"t.fasta#{number}": FLY for number in (1, 2, 3)} and not skipped


@pytest.mark.parametrize("table", ["Feature ID\tTaxon\n{}", "{}", "#OTU ID\ttaxonomy\n{}", "id,Taxon\n{}"])
def test_a_taxonomy_beside_or_named(tmp_path: Path, table: str) -> None:
    fasta = write(tmp_path / "pair" / "dna.fasta", f">Z0\n{DNA}\n>Z1 isolate 1 from trap\n{DNA}A\n")
    rows = "".join(f"{key}{',' if ',' in table else chr(9)}{PREFIXED}\n" for key in ("Z0", "Z1"))
    beside = write(tmp_path / "pair" / "taxonomy.tsv", table.format(rows))
    assert taken(fasta.parent)[0] == {"Z0": FLY, "Z1": FLY}
    beside.rename(named := tmp_path / "names.txt")
    assert taken(fasta, "fasta", taxonomy=named)[0] == {"Z0": FLY, "Z1": FLY}


@pytest.mark.parametrize(
    "text",
    [
        f">a|Musca domestica\r{DNA}\r>b|Musca domestica\n{DNA}\n>c|Musca domestica\n{DNA}\n",  # Mac, then Unix
        f">a|Musca domestica\n{DNA}>b|Musca domestica\n{DNA}\n>c|Musca domestica\n{DNA}",  # no newline between files
        f">a|Musca domestica\r\n{DNA}\r\n\r\n>b|Musca domestica\n{DNA}\r>c|Musca domestica\n{DNA}",
    ],
)
def test_line_ends_of_joined_files(tmp_path: Path, text: str) -> None:
    assert list(taken(write(tmp_path / "x.fasta", text))[0]) == ["a", "b", "c"]


PACKINGS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("kind", PACKINGS)
@pytest.mark.parametrize("name", ["x.fasta", "x.csv"])
def test_packed_files_by_content_and_cut_off(tmp_path: Path, kind: str, name: str) -> None:
    rows = "".join(f"k{n},{DNA}\n" for n in range(2000))
    text = f"id,barcode\n{rows}" if name == "x.csv" else "".join(f">k{n}\n{DNA}{n % 7 * 'A'}\n" for n in range(2000))
    data = PACKINGS[kind](text.encode())
    for named in (name, f"{name}.{kind}", f"{name.upper()}.{kind.upper()}"):
        assert len(taken(write(tmp_path / named, data), "table" if name == "x.csv" else "fasta")[0]) == 2000
    cut = write(tmp_path / f"cut.{name}.{kind}", data[: len(data) // 2])
    with pytest.raises(ValueError, match="cut off or damaged") as caught:
        taken(cut)
    assert "\n" not in str(caught.value)


def test_a_zip_of_one_table(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("t.csv", f"id,barcode,species\nk,{DNA},Musca domestica\n")
        archive.writestr("__MACOSX/._t.csv", "x")
    assert list(taken(tmp_path / "t.zip")[0]) == ["k"]
    with zipfile.ZipFile(tmp_path / "t.zip", "a") as archive:
        archive.writestr("u.csv", "id\n")
    with pytest.raises(ValueError, match=r"t.zip with t.csv, u.csv; allowed: one table"):
        taken(tmp_path / "t.zip", "table")
