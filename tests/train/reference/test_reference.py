"""The reference library on barcodes with planted relations: nearest references, ties, strands, files, extension."""

import json
from pathlib import Path

import edlib
import numpy as np
import pyarrow as pa
import pytest

from engine.signals import degrade
from engine.signals.nucleotides import reverse_complement
from train.evaluation.peers import library_peer
from train.reference import Apart, Hits, Library, SearchOptions, answers, apart, consensus, nearest_labels
from train.reference.library import MANIFEST, POSTINGS, RECORDS
from train.reference.search import FIRST, Targets, search


def random_barcode(rng: np.random.Generator, length: int = 600) -> str:
    return "".join(rng.choice(list("ACGT"), length))


def mutate(sequence: str, rng: np.random.Generator, rate: float) -> str:
    return degrade.degrade_barcode(sequence, rng, 1.0, degrade.BarcodePreset.only(substitution=rate))


class Planted:
    """4 genera of 3 species, 8% apart within a genus; 5 specimens a species with 0.5% between them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(18)  # made letters have no coding strand: here those of a genus turn alike
        rows: list[dict[str, str | None]] = []
        self.barcodes: list[str] = []
        for genus in range(4):
            root = random_barcode(rng)
            for species in range(3):
                centre = mutate(root, rng, 0.08)
                for specimen in range(5):
                    self.barcodes.append(mutate(centre, rng, 0.005))
                    rows.append(
                        {
                            "key": f"k{genus}{species}{specimen}",
                            "order": "Diptera",
                            "family": f"Famil{'ab'[genus // 2]}idae",
                            "genus": f"Genus{'abcd'[genus]}",
                            "species": f"Genus{'abcd'[genus]} epithet{'abc'[species]}",
                            "bin_uri": f"BOLD:{genus}{species}",
                            "country": "Norway",
                        }
                    )
        self.rows = rows
        self.records = pa.Table.from_pylist(rows)
        self.library = Library.build(self.records, self.barcodes)


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.mark.parametrize("strand", [1, -1])
@pytest.mark.parametrize(("start", "length"), [(0, 600), (140, 100), (400, 150)])
def test_nearest_species_is_found_from_wholes_and_fragments_on_either_strand(
    planted: Planted, strand: int, start: int, length: int
) -> None:
    rng = np.random.default_rng(6)
    pieces = [mutate(sequence, rng, 0.005)[start : start + length] for sequence in planted.barcodes]
    queries = pieces if strand == 1 else [reverse_complement(piece) for piece in pieces]
    hits = planted.library.search(queries)
    assert (nearest_labels(planted.library, hits) == planted.library.labels).all()
    if length < 600:  # all 60 references at once, by edlib's own infix search
        expected = [
            min(edlib.align(piece, reference, mode="HW")["editDistance"] for reference in planted.barcodes)
            for piece in pieces
        ]
        assert hits.distance[hits.start[:-1]].tolist() == expected


def test_a_search_goes_on_while_a_nearer_reference_may_have_been_passed_over(planted: Planted) -> None:
    rng = np.random.default_rng(9)
    whole, damaged = planted.barcodes, [mutate(sequence, rng, 0.08) for sequence in planted.barcodes]
    library = planted.library
    nobody = np.full(library.num_haplotypes, -1)
    targets = Targets(library.index, library.clusters, library.letters, library.starts, nobody)
    narrow = SearchOptions(entries=1, least=2, leaders=1)
    first, both, second = (
        search([*whole, *damaged, ""], targets, rounds) for rounds in ((narrow,), (narrow, FIRST), (FIRST,))
    )

    def nearest(hits: Hits) -> np.ndarray:
        return hits.difference[hits.start[:-2][np.diff(hits.start)[:-1] > 0]]

    assert first.exact[: len(whole)].sum() > 50 and not first.exact[len(whole) :].any()
    assert (both.rounds[first.exact] == 1).all() and both.rounds[-1] == 1, "nothing is nearer than an equal barcode"
    assert (both.rounds[len(whole) : -1] == 2).mean() > 0.9
    assert nearest(first).sum() > nearest(both).sum() or len(nearest(first)) < len(nearest(both))
    np.testing.assert_array_equal(nearest(both), nearest(second))


def test_wider_rounds_leave_the_names_of_a_small_library_alone(planted: Planted) -> None:
    rng = np.random.default_rng(10)
    queries = [degrade.degrade_barcode(sequence, rng, severity) for sequence in planted.barcodes for severity in (1, 4)]
    names = [nearest_labels(planted.library, planted.library.search(queries, options)) for options in (None, FIRST)]
    np.testing.assert_array_equal(*names)


def test_answers_do_not_depend_on_threads_or_on_company(planted: Planted) -> None:
    rng = np.random.default_rng(7)
    queries = [degrade.degrade_barcode(sequence, rng, 2.0) for sequence in planted.barcodes] * 3 + [""]
    together = answers(planted.library, planted.library.search(queries, threads=2))
    for number in (0, 17, 100, 180):
        assert answers(planted.library, planted.library.search([queries[number]])) == [together[number]]
    assert together[-1]["rank"] is None and together[-1]["evidence"] == []


def test_an_answer_tells_evidence_and_the_nearest_other_species(planted: Planted) -> None:
    told = answers(planted.library, planted.library.search([planted.barcodes[0]]))[0]
    assert told["names"] == {rank: planted.rows[0][rank] for rank in ("order", "family", "genus", "species")}
    assert (told["rank"], told["tied"], told["strand"] in (1, -1)) == ("species", {}, True)
    assert (told["identity"], told["overlap"], told["bin_uri"], told["records_of_species"]) == (1.0, 600, "BOLD:00", 5)
    assert told["other_species"]["name"].startswith("Genusa ") and 0.8 < told["other_species"]["identity"] < 0.95
    first = told["evidence"][0]
    assert (first["key"], first["bin_uri"], first["country"], first["specimens"]) == ("k000", "BOLD:00", "Norway", 1)


def test_equally_near_species_are_all_named_and_the_answer_stops_above_them(planted: Planted) -> None:
    twin = dict(planted.rows[0], key="twin", species="Genusa doubtful")
    other_genus = dict(planted.rows[15], key="alien")
    library = planted.library.extend(
        pa.Table.from_pylist([twin, other_genus]), [planted.barcodes[0], reverse_complement(planted.barcodes[5])]
    )
    assert library.num_haplotypes == planted.library.num_haplotypes, "equal barcodes, on either strand, are one"
    species, genus = answers(library, library.search([planted.barcodes[0], planted.barcodes[5]]))
    assert species["rank"] == "genus" and species["names"]["genus"] == "Genusa"
    assert sorted(species["tied"]["species"]) == ["Genusa doubtful", "Genusa epitheta"]
    assert genus["rank"] == "family" and sorted(genus["tied"]["genus"]) == ["Genusa", "Genusb"]


def test_the_consensus_is_the_lowest_taxon_of_all_references_so_near(planted: Planted) -> None:
    twin = dict(planted.rows[0], key="twin", species="Genusa doubtful")
    library = planted.library.extend(pa.Table.from_pylist([twin]), [planted.barcodes[0]])
    foreign = random_barcode(np.random.default_rng(11))
    hits = library.search([planted.barcodes[0], planted.barcodes[5], planted.barcodes[5], foreign])
    both, one, none, nothing = consensus(library, hits, [0.0, 0.02, 0.0, 0.02])
    assert (both["rank"], both["name"], both["species"], both["conflict"]) == ("genus", "Genusa", 2, True)
    assert both["names"] == {"Genusa doubtful": 1, "Genusa epitheta": both["references"] - 1}
    row = planted.rows[5]
    assert (one["name"], one["rank"], one["conflict"]) == (row["species"], "species", False)
    assert (
        none["name"] == row["species"] and 1 <= none["references"] <= one["references"] == one["names"][row["species"]]
    )
    assert (nothing["name"], nothing["references"], nothing["conflict"]) == (None, 0, False)


def test_names_that_barcodes_keep_apart(planted: Planted) -> None:
    twin = dict(planted.rows[0], key="twin", species="Genusa doubtful")
    library = planted.library.extend(pa.Table.from_pylist([twin]), [planted.barcodes[0]])
    row = str(planted.rows[0]["species"])
    far = next(str(one["species"]) for one in planted.rows if one["genus"] != "Genusa")
    first, second, third, absent = apart(library, [row, "Genusa doubtful", far, "Nowhere known"])
    assert (first.other, first.distance, first.is_apart) == ("Genusa doubtful", 0.0, False)
    assert (second.other, second.references, second.is_apart) == (row, 1, False)
    assert third.is_apart and (third.distance is None or third.distance > 0) and third.references >= third.barcodes > 0
    assert absent == Apart("Nowhere known", 0, 0, None, None, None)


def test_only_binomials_name_species_while_all_references_name_higher_ranks(planted: Planted) -> None:
    rng = np.random.default_rng(8)
    near = planted.barcodes[0][:300] + reverse_complement(planted.barcodes[0][300]) + planted.barcodes[0][301:]
    code = {"key": "x", "order": "Diptera", "family": "Familaidae", "genus": "Genusa", "species": "Genusa sp. 1ES"}
    alone = {"key": "y", "order": "Diptera", "family": "Familcidae", "genus": "Genusz", "species": "Genusz sp."}
    lonely = random_barcode(rng)
    library = planted.library.extend(pa.Table.from_pylist([code, alone]), [near, lonely])
    first, second = answers(library, library.search([near, lonely]))
    assert first["evidence"][0]["species"] == "Genusa sp. 1ES" and first["names"]["species"] == "Genusa epitheta"
    assert second["rank"] == "genus" and second["names"]["genus"] == "Genusz"


def test_saved_loaded_and_extended_libraries_answer_alike(planted: Planted, tmp_path: Path) -> None:
    half = Library.build(planted.records.slice(0, 30), planted.barcodes[:30])
    grown = half.extend(planted.records.slice(30), planted.barcodes[30:])
    checksum = grown.save(tmp_path)
    loaded = Library.load(tmp_path)
    assert (loaded.version, len(checksum)) == (2, 64) and isinstance(loaded.index.postings.base, np.memmap)
    queries = [sequence[100:300] for sequence in planted.barcodes]
    expected = answers(planted.library, planted.library.search(queries))
    assert answers(loaded, loaded.search(queries)) == expected
    assert checksum == Library.load(tmp_path).save(tmp_path / "again")


def test_damaged_and_foreign_folders_are_refused(planted: Planted, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        Library.load(tmp_path / "nowhere")
    planted.library.save(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"format_version": 1}))
    with pytest.raises(
        ValueError, match=r"format version 1, allowed: 2; bring it up to date: taxafuse library rebuild "
    ):
        Library.load(tmp_path)
    changed = manifest | {"files": manifest["files"] | {RECORDS: "0" * 64}}
    (tmp_path / MANIFEST).write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="was changed"):
        Library.load(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    postings = bytearray((tmp_path / POSTINGS).read_bytes())
    postings[-1] ^= 1
    (tmp_path / POSTINGS).write_bytes(postings)
    with pytest.raises(ValueError, match=r"postings\.npy is not the file that was saved"):
        Library.load(tmp_path)


def test_what_cannot_be_a_library_is_said(planted: Planted) -> None:
    with pytest.raises(ValueError, match="2 records and 1 barcodes"):
        Library.build(planted.records.slice(0, 2), planted.barcodes[:1])
    with pytest.raises(ValueError, match="at least one to search in"):
        Library.build(planted.records.slice(0, 1), [""])
    with pytest.raises(ValueError, match="one of 2 records"):
        Library.build(planted.records.slice(0, 2), planted.barcodes[:2], {"image": np.zeros((1, 4))})


def test_as_a_peer_of_an_evaluation_it_answers_in_the_evaluations_labels(planted: Planted) -> None:
    labels = planted.library.labels[:, ::-1] + 100
    labels[0] = -1
    queries = ["", *(sequence[50:300] for sequence in planted.barcodes)]
    found = library_peer(queries, planted.barcodes, labels)
    assert (found[0] == -1).all()
    np.testing.assert_array_equal(found[2:], labels[1:])
    assert found[1].tolist() == labels[1].tolist(), "a reference without labels leaves the answer to the next one"
