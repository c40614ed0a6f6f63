"""The curation report: errors are put into a small set, each check must name them and nothing else."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
import simplejpeg

from engine.curation import SpecimenSet, peptides
from engine.curation.coi import check_coi, read_frames
from engine.curation.labels import check_bins, check_shared_barcodes
from engine.curation.leaks import check_set_leaks, check_split_leaks
from engine.curation.neighbours import nearest
from engine.curation.photos import difference, likely_pairs, photo_hash, thumbnail
from engine.curation.suspicion import check_suspicion, judge
from engine.main import main
from engine.signals import barcodes
from engine.signals.nucleotides import GENETIC_CODE
from engine.specimens.schema import INDEX_SCHEMA

CODONS = ["".join(letters) for letters in itertools.product("ACGT", repeat=3)]
WEIGHTS = np.exp(barcodes.CODON_SCORES / 10.0)


def coi_like(rng: np.random.Generator, codons: int = 220) -> str:
    """Peptides of COI in codons as frequent as in COI."""
    acids = "".join(rng.choice(peptides.MOTIFS, codons // 4 + 1))[:codons]
    of_acid = {acid: [i for i, other in enumerate(GENETIC_CODE) if other == acid] for acid in set(acids)}
    chosen = [rng.choice(of_acid[acid], p=WEIGHTS[of_acid[acid]] / WEIGHTS[of_acid[acid]].sum()) for acid in acids]
    return "".join(CODONS[i] for i in chosen)


def mutate(rng: np.random.Generator, sequence: str, count: int) -> str:
    """Change third positions of some codons, keeping clear of stops."""
    letters = list(sequence)
    for codon in rng.choice(len(sequence) // 3, count, replace=False):
        letters[3 * codon + 2] = {"A": "T", "T": "A", "C": "T", "G": "A"}[letters[3 * codon + 2]]
        if "".join(letters[3 * codon : 3 * codon + 3]) in ("TAA", "TAG"):
            letters[3 * codon + 2] = "T"
    return "".join(letters)


def make_set(rows: list[dict[str, object]], name: str = "set") -> SpecimenSet:
    """A set in memory; what a row leaves out is null."""
    barcode = [str(row.pop("barcode", "")) for row in rows]
    for number, row in enumerate(rows):
        row.setdefault("key", f"k{number}")
    unique = list(dict.fromkeys(one for one in barcode if one))
    place = np.array([unique.index(one) if one else -1 for one in barcode])
    return SpecimenSet(name, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), unique, place)


def library(seed: int = 0, num_species: int = 12, per_species: int = 8) -> list[dict[str, object]]:
    """Species in 2 orders, each of several haplotypes 1% apart, species far apart."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for species in range(num_species):
        centre = coi_like(rng)
        genus = "ABCDEFGHIJKLMNOPQR"[species // 2] + "us"
        for _ in range(per_species):
            rows.append(
                {
                    "order": ("Diptera", "Coleoptera")[species % 4 // 2],
                    "family": f"{genus[0]}idae",
                    "genus": genus,
                    "species": f"{genus} {'abcdefghijklmnopqr'[species] * 2}us",
                    "bin_uri": f"BOLD:{species}",
                    "split": "train",
                    "barcode": mutate(rng, centre, int(rng.integers(0, 4))),
                }
            )
    return rows


def relabel(rows: list[dict[str, object]], target: int, source: int) -> None:
    rows[target] |= {name: rows[source][name] for name in ("order", "family", "genus", "species")}


def test_suspicion_names_swapped_labels_and_nothing_else() -> None:
    rows = library()
    relabel(rows, 3, 90)  # another order
    relabel(rows, 17, 30)  # another genus
    relabel(rows, 41, 33)  # its genus's other species
    found = check_suspicion(make_set(rows)).table.to_pylist()
    excluded = {row["key"]: row for row in found if row["exclude"]}
    assert set(excluded) == {"k3", "k17", "k41"}
    assert excluded["k3"]["neighbours_say"] == rows[0]["order"] and excluded["k3"]["rank"] == "order"
    assert excluded["k41"]["same_name_elsewhere"] == 8
    assert not check_suspicion(make_set(library())).table.num_rows


def test_suspicion_leaves_what_it_cannot_know() -> None:
    rows = library()
    rows[5] |= {"species": "Aus novus"}  # close to another species, but known from nowhere else
    rows[6] |= {"species": "Aus sp. 7"}  # an interim name beside a binomial
    assert not any(row["exclude"] for row in check_suspicion(make_set(rows)).table.to_pylist())
    assert check_suspicion(make_set(library()[:1])).count == 0 and check_suspicion(make_set([])).count == 0


def test_votes_by_hand() -> None:
    # barcode 0: 5 of name 0 and 1 of name 1; barcode 1 (near): 2 of name 0; barcode 2 (far): 4 of name 1
    place = np.array([0] * 6 + [1] * 2 + [2] * 4 + [-1])
    codes = np.array([0] * 5 + [1] + [0] * 2 + [1] * 4 + [0])
    places = np.array([[0, 1], [1, 0], [2, -1]])
    result = judge(place, codes, places, places >= 0, needs_elsewhere=True)
    assert result["against"].tolist() == [1] * 5 + [5] + [1] * 2 + [0] * 4 + [
        0
    ]  # at most 3 votes of a name per barcode
    assert result["agree"].tolist() == [5] * 5 + [0] + [4] * 2 + [3] * 4 + [0]
    assert result["elsewhere"].tolist() == [0] * 5 + [4] + [0] * 2 + [1] * 4 + [0]
    assert np.flatnonzero(result["exclude"]).tolist() == [5] and result["score"][5] == pytest.approx(5 / 6)
    assert result["other"][5] == 0 and result["other"][0] == 1 and result["other"][8] == -1


def test_neighbours_in_cells_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    centres = [coi_like(rng) for _ in range(30)]
    sequences = list(dict.fromkeys(mutate(rng, centres[i % 30], int(rng.integers(1, 8))) for i in range(360)))
    whole = nearest(sequences)
    monkeypatch.setattr("engine.curation.neighbours.EXACT", 100)
    monkeypatch.setattr("engine.curation.neighbours._CELL", 60)
    cells = nearest(sequences)
    same = [len(set(a[:5]) & set(b[:5])) / 5 for a, b in zip(whole[0].tolist(), cells[0].tolist(), strict=True)]
    assert np.mean(same) > 0.95
    assert (whole[0] != np.arange(len(sequences))[:, None]).all() and (np.diff(whole[1], axis=1) >= 0).all()


def test_coi_problems_are_told_apart() -> None:
    rng = np.random.default_rng(1)
    good = [coi_like(rng) for _ in range(40)]
    broken = {
        "short": good[0][:240],
        "long": good[1] * 3,
        "n": good[2][:100] + "N" * 12 + good[2][112:],
        "stop": good[3][:300] + "TAATAG" + good[3][306:],
        "frameshift": good[4][:300] + good[4][301:],
        "unlike": "".join(rng.permutation(list(good[5]))),
        "strand": barcodes.reverse_complement(good[6]),
    }
    rows: list[dict[str, object]] = [{"barcode": one} for one in good[7:]]
    rows += [{"barcode": one, "key": name} for name, one in broken.items()] + [{"key": "photo only"}]
    finding = check_coi(make_set(rows))
    assert {row["key"]: row["problems"] for row in finding.table.to_pylist()} == {name: name for name in broken}
    assert finding.count == len(broken) - 1  # the other strand does no harm


def test_frames_by_hand() -> None:
    rng = np.random.default_rng(2)
    sequence = coi_like(rng, 60)
    read = read_frames([sequence, "C" + sequence, sequence[:90] + sequence[91:]])
    assert read["frame"].tolist()[:2] == [0, 1] and read["stops"].tolist()[:2] == [0, 0]
    assert read["gain"][2] > read["gain"][0] and abs(read["at"][2] - 90) < 15


def test_bags_grades() -> None:
    def some(species: str, bins: str, count: int) -> list[dict[str, object]]:
        return [{"species": species, "bin_uri": bins} for _ in range(count)]

    rows = [*some("Aus a2a", "B0", 20), *some("Aus aa", "B1", 11), *some("Aus bb", "B2", 10), *some("Aus cc", "B3", 2)]
    rows += [*some("Aus dd", "B4", 5), *some("Aus dd", "B5", 5), *some("Aus ee", "B6", 30), *some("Aus ff", "B6", 1)]
    rows += [*some("Aus gg", "B7", 9), *some("Aus sp.", "B7", 4), {"species": "Aus hh"}]
    grades = {row["species"]: row["grade"] for row in check_bins(make_set(rows)).table.to_pylist()}
    assert grades == {
        "Aus aa": "A",
        "Aus bb": "B",
        "Aus cc": "D",
        "Aus dd": "C",
        "Aus ee": "E",
        "Aus ff": "E",
        "Aus gg": "B",
    }


def test_shared_barcodes() -> None:
    rows: list[dict[str, object]] = [
        {"species": name, "barcode": "ACGT"} for name in ("Aus aa", "Aus aa", "Bus bb", "Bus sp.")
    ]
    rows += [{"species": "Bus cc", "barcode": "ACGA"}, {"barcode": "ACGA"}, {"species": "Aus bb"}]
    finding = check_shared_barcodes(make_set(rows))
    assert [row["species"] for row in finding.table.to_pylist()] == ["Aus aa (2); Bus bb (1)"]
    assert finding.facts["barcodes across genera"] == 1


def test_leaks_between_splits_and_sets() -> None:
    rng = np.random.default_rng(3)
    pool = [coi_like(rng) for _ in range(6)]
    rows: list[dict[str, object]] = [
        {"key": "train", "split": "train", "barcode": pool[0]},
        {"key": "same", "split": "test", "barcode": pool[0]},
        {"key": "inside", "split": "val", "barcode": pool[0][50:600]},
        {"key": "clean", "split": "test", "barcode": pool[1]},
        {"key": "end", "split": "train", "barcode": pool[2][:500]},
        {"key": "begin", "split": "test", "barcode": pool[2][290:]},
        {"key": "chained", "split": "test", "barcode": pool[3] + pool[4][:250]},
        {"key": "between", "split": "test", "barcode": pool[4][:250] + pool[5][:200]},
        {"key": "pretrain", "split": "pretrain", "barcode": pool[5]},
        {"key": "none", "split": "test"},
    ]
    one = make_set(rows)
    finding = check_split_leaks(one)
    found = {row["key"]: (row["how"], row["other_key"]) for row in finding.table.to_pylist()}
    assert found == {
        "same": ("identical", "train"),
        "inside": ("contained", "train"),
        "begin": ("overlap", "end"),
        "between": ("overlap", "pretrain"),
        "chained": ("chain", "pretrain"),
    }
    assert finding.count == 4
    other = make_set([{"key": "o", "split": "train", "barcode": pool[1][3:]}], "other")
    between = check_set_leaks(one, other)
    assert [(row["key"], row["other_key"], row["how"]) for row in between.table.to_pylist()] == [
        ("clean", "o", "contained")
    ]


def photo(seed: int) -> np.ndarray:
    """Smooth random shapes, so that a resaved copy stays alike."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.kron(small, np.ones((16, 16, 1), dtype=np.uint8))


def test_copies_of_photos_are_found_and_others_not() -> None:
    saved = [simplejpeg.encode_jpeg(photo(seed), 90) for seed in range(30)]
    brighter = np.clip(photo(4).astype(int) + 9, 0, 255).astype(np.uint8)
    copies = [
        simplejpeg.encode_jpeg(photo(2), 60),
        simplejpeg.encode_jpeg(brighter, 90),
        simplejpeg.encode_jpeg(np.ascontiguousarray(photo(7)[::2, ::2]), 90),
    ]
    hashes = np.frombuffer(b"".join(map(photo_hash, saved + copies)), dtype=np.uint8).reshape(-1, 16)
    assert likely_pairs(hashes).tolist() == [[2, 30], [4, 31], [7, 32]]
    assert (
        difference(thumbnail(saved[2]), thumbnail(copies[0]))
        < 0.05
        < difference(thumbnail(saved[2]), thumbnail(saved[3]))
    )


@pytest.fixture
def shards(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder of shards of the library with photos, a wrong label, and a copied photo across splits."""

    def make(name: str) -> Path:
        rows = library(num_species=4, per_species=6)
        relabel(rows, 2, 20)
        lines = ["id,image,barcode,order,family,genus,species,bin_uri,split"]
        for number, row in enumerate(rows):
            (tmp_path / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(photo(number if number != 9 else 1), 90))
            fields = [row[column] for column in ("barcode", "order", "family", "genus", "species", "bin_uri")]
            lines.append(
                ",".join(map(str, [f"s{number}", f"{number}.jpg", *fields, "test" if number == 9 else "train"]))
            )
        (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
        assert main(["ingest", "table", str(tmp_path / "t.csv"), "--out", str(tmp_path / name), "--serial"]) == 0
        return tmp_path / name

    return make


def test_command_writes_a_report(
    shards: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shards("one")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert main(["check", str(folder), "--out", str(tmp_path / "report"), "--serial"]) == 1
    told = capsys.readouterr().out
    assert "Near-duplicate photos" in told and "1 suggested exclusions" in told
    report = json.loads((tmp_path / "report" / "check.json").read_text())
    counts = {one["check"]: one["count"] for one in report["findings"]}
    assert counts["suspicion"] == 1 and counts["photos"] == 1 and counts["lineages"] == 0 and counts["coi"] == 0
    excluded = pa_csv.read_csv(tmp_path / "report" / "suggested_exclusions.csv").to_pylist()
    assert [row["key"] for row in excluded] == ["s2"]
    pair = pa_csv.read_csv(tmp_path / "report" / "check_photos.csv").to_pylist()[0]
    assert {pair["key"], pair["other_key"]} == {"s1", "s9"} and {pair["split"], pair["other_split"]} == {
        "train",
        "test",
    }
    page = (tmp_path / "report" / "check.html").read_text()
    assert "Near-duplicate photos: 1 pairs" in page and "http" not in page.split("<body>")[1].replace(
        "http://www.w3", ""
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_nothing_found_and_wrong_input(
    shards: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(shards("one"))
    assert main(["check", folder, "--out", str(tmp_path / "r"), "--only", "names,lineages"]) == 0
    for wrong in (["--only", "nmaes"], [folder]):
        capsys.readouterr()
        assert main(["check", folder, *wrong]) == 2
        assert "allowed: " in capsys.readouterr().err
    assert main(["check", str(tmp_path / "none")]) == 2


@pytest.mark.usefixtures("ray_session")
def test_photos_through_ray_as_here(shards: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.curation import job as module
    from engine.curation import read_set

    specimens = read_set(str(shards("one")))
    monkeypatch.setattr(module, "_PHOTOS_PER_TASK", 5)
    assert module._hash_all(specimens, True) == module._hash_all(specimens, False)


def test_real_bold_names_known_errors(real_data: Path) -> None:
    """Hand-checked in bold: two bacterial sequences as ground beetles, a drone fly and a hoverfly exchanged."""
    import pyarrow.parquet as pq

    wanted = ["Amara lunicollis", "Eristalis tenax", "Episyrphus balteatus"]
    table = pq.read_table(real_data / "bold" / "barcodes.parquet", filters=[("species", "in", wanted)])
    columns = ["order", "family", "genus", "species", "bin_uri", "split", "barcode", "processid"]
    rows = [dict(row) for row in table.select(columns).to_pylist()]
    for row in rows:
        row["key"], row["barcode"] = row.pop("processid"), barcodes.clean(str(row["barcode"]))
    specimens = make_set(rows)
    unlike = {row["key"] for row in check_coi(specimens).table.to_pylist() if "unlike" in row["problems"]}
    assert unlike == {"YBIVV4035-23", "BETN14393-22"}
    excluded = {row["key"] for row in check_suspicion(specimens).table.to_pylist() if row["exclude"]}
    assert {"GBMNF29566-22", "UZINS371-23"} <= excluded and len(excluded) <= 5
