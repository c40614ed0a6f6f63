"""Barcodes on COI's columns, and the exact search there: places, alignments, and an oracle over every reference."""

import edlib
import numpy as np
import pyarrow as pa
import pytest

from engine.signals import columns
from engine.signals.barcodes import reverse_complement
from engine.signals.columns import CONSENSUS, Placer, encode
from engine.signals.degrade import BarcodePreset, degrade_barcode, fragment
from engine.signals.placing import COLUMNS, MARGIN
from tests.benchmarks import nearest_gpu
from tests.benchmarks.nearest_queries import substitute
from tests.benchmarks.nearest_recall import aligned, differences, nearest
from train.reference import Library, answers, nearest_labels
from train.reference.finish import banded_edits

CONDITIONS = {
    "whole": lambda sequence, rng: sequence,
    "2x": lambda sequence, rng: degrade_barcode(sequence, rng, 2.0),
    "300": lambda sequence, rng: fragment(sequence, rng, 300),
    "100": lambda sequence, rng: fragment(sequence, rng, 100),
    "100+2%": lambda sequence, rng: substitute(fragment(sequence, rng, 100), rng, 0.02),
}


def relatives(rng: np.random.Generator, species: int, specimens: int) -> list[str]:
    """Barcodes like COI's: species 12% from the consensus, specimens 0.6% from their species."""
    centres = [substitute(CONSENSUS, rng, 0.12) for _ in range(species)]
    return [substitute(centre, rng, 0.006) for centre in centres for _ in range(specimens)]


@pytest.fixture(scope="module")
def known() -> tuple[list[str], Library]:
    rng = np.random.default_rng(1)
    barcodes = relatives(rng, 60, 6)
    barcodes[3] = barcodes[3][40:] + "ACGTTGCA" * 3  # beyond the columns
    barcodes[7] = barcodes[7][:300] + barcodes[7][303:]  # a codon less
    barcodes[11] = barcodes[11][:150] + "N" * 80 + barcodes[11][230:]
    barcodes += ["".join(rng.choice(list("ACGT"), 500)) for _ in range(5)]  # no COI
    rows = [
        {
            "key": f"k{row}",
            "order": "Diptera",
            "family": "Aidae",
            "genus": f"Genus{chr(97 + row // 60)}",
            "species": f"Genus{chr(97 + row // 60)} e{chr(97 + row // 6 % 10)}",
        }
        for row in range(len(barcodes))
    ]
    return barcodes, Library.build(pa.Table.from_pylist(rows), barcodes)


def test_a_barcode_stands_where_it_was_cut_out_on_either_strand(known: tuple[list[str], Library]) -> None:
    barcodes, library = known
    placer = library.planes.placer
    whole = placer.place(barcodes[20:24])
    assert whole.first.tolist() == [MARGIN] * 4 and set(whole.strand.tolist()) == {1}
    assert whole.known.tolist() == [len(CONSENSUS)] * 4
    pieces = placer.place([reverse_complement(barcode[200:350]) for barcode in barcodes[20:24]])
    assert pieces.first.tolist() == [MARGIN + 200] * 4 and set(pieces.strand.tolist()) == {-1}
    both = pieces.planes[:, columns.KNOWN]
    assert ((pieces.planes[:, :2] ^ whole.planes[:, :2]) & both[:, None] == 0).all()
    assert placer.place(["", "ACGT", barcodes[-1]]).strand.tolist() == [0, 0, 0]


def test_insertions_and_deletions_keep_the_other_letters_on_their_columns(known: tuple[list[str], Library]) -> None:
    barcodes, library = known
    placer = library.planes.placer
    for barcode in barcodes[20:30]:
        true = placer.place([barcode])
        changed = placer.place([barcode[:200] + barcode[202:400] + "G" + barcode[400:]])
        assert changed.gaps.tolist() == [3] and changed.strand.tolist() == [1]
        both = true.planes[:, columns.KNOWN] & changed.planes[:, columns.KNOWN]
        unlike = ((true.planes[:, :2] ^ changed.planes[:, :2]) & both[:, None]).any(axis=1)
        assert np.bitwise_count(both).sum() >= len(CONSENSUS) - 4 and np.bitwise_count(unlike).sum() <= 3


def test_a_path_over_all_letters_finds_gaps_that_lie_close_together(known: tuple[list[str], Library]) -> None:
    barcodes, library = known
    placer = library.planes.placer
    for barcode in barcodes[20:24]:
        true = placer.place([barcode])
        queries = encode([barcode[:300] + "G" + barcode[300:306] + barcode[307:312] + "T" + barcode[312:650]])
        changed = placer.place_codes(*queries)
        placer.replace(queries, changed, np.arange(1), np.ascontiguousarray(true.planes.transpose(0, 2, 1)))
        both = true.planes[:, columns.KNOWN] & changed.planes[:, columns.KNOWN]
        unlike = ((true.planes[:, :2] ^ changed.planes[:, :2]) & both[:, None]).any(axis=1)
        assert np.bitwise_count(both).sum() >= 640 and np.bitwise_count(unlike).sum() <= 5


def test_what_reaches_beyond_the_columns_is_compared_whole() -> None:
    rng = np.random.default_rng(9)
    barcodes = relatives(rng, 40, 3)
    tails = ["".join(rng.choice(list("ACGT"), 400)) for _ in range(2)]
    near, like = substitute(barcodes[0], rng, 0.01) + tails[0], barcodes[0] + tails[1]
    library = Library.build(pa.table({"key": [str(row) for row in range(122)]}), [*barcodes, near, like])
    hits = library.search([barcodes[0] + tails[0]])
    assert library.barcode(int(hits.reference[0])) == near and hits.overlap[0] == 1058


def test_the_consensus_places_what_no_k_mer_knows() -> None:
    rng = np.random.default_rng(2)
    placer = Placer.learn([])
    far = [substitute(CONSENSUS[start : start + 200], rng, 0.25) for start in (0, 211, 400)]
    assert placer.place(far).first.tolist() == [MARGIN, MARGIN + 211, MARGIN + 400]
    assert COLUMNS == len(CONSENSUS) + 2 * MARGIN == 704


def test_the_band_finds_the_edits_that_edlib_finds() -> None:
    rng = np.random.default_rng(3)
    words = np.empty((4, 16), dtype=np.uint64)
    masks, gaps = BarcodePreset.only(masking=0.02), BarcodePreset.only(insertion=0.01, deletion=0.01)
    for _ in range(60):
        reference = degrade_barcode("".join(rng.choice(list("ACGT"), 500)), rng, 1.0, masks)
        start = int(rng.integers(-30, 250))
        query = substitute(("".join(rng.choice(list("ACGT"), 30)) + reference)[start + 30 : start + 330], rng, 0.05)
        query = degrade_barcode(degrade_barcode(query, rng, 1.0, gaps), rng, 1.0, masks)
        code, text = encode([query])[0], np.frombuffer(reference.encode(), dtype=np.uint8)
        found = banded_edits(code, text, False, start + int(rng.integers(-8, 9)), words)
        window = "N" * 40 + reference + "N" * 40
        expected = edlib.align(query, window, mode="HW", additionalEqualities=[(letter, "N") for letter in "ACGT"])
        assert found == expected["editDistance"]
        other = np.frombuffer(reverse_complement(reference).encode(), dtype=np.uint8)
        assert banded_edits(code, other, True, start, words) == found


@pytest.mark.parametrize("condition", list(CONDITIONS))
def test_the_first_hit_is_as_near_as_any_reference(known: tuple[list[str], Library], condition: str) -> None:
    barcodes, library = known
    rng = np.random.default_rng(4)
    queries = [CONDITIONS[condition](substitute(barcode, rng, 0.01), rng) for barcode in barcodes[:360:6]]
    hits = library.search(queries)
    kept = [library.barcode(number) for number in range(library.num_haplotypes)]
    for row, query in enumerate(queries):
        turned = query if hits.strand[row] > 0 else reverse_complement(query)
        own = aligned(turned, kept[hits.reference[hits.start[row]]], 700)
        own = differences([own], len(query) - query.count("N"))[0]
        least = min(own, nearest(turned, kept, own))
        assert own <= least + (0.5 if "x" in condition else 1e-3)
    assert hits.exact.mean() > (0.9 if condition in ("whole", "300", "100") else -1)
    assert not hits.exact[[bool(placed) for placed in library.planes.placer.place(queries).gaps]].any()


def test_alone_in_a_batch_and_on_two_threads_the_answers_are_equal(known: tuple[list[str], Library]) -> None:
    barcodes, library = known
    rng = np.random.default_rng(5)
    queries = [degrade_barcode(barcode, rng, 1.0) for barcode in barcodes] + ["", "ACGT"]
    together = answers(library, library.search(queries, threads=2))
    assert [answers(library, library.search([query]))[0] for query in queries[::40]] == together[::40]


def test_references_full_of_n_do_not_win(known: tuple[list[str], Library]) -> None:
    barcodes, _ = known
    masked = barcodes[100][:100] + "N" * 500 + barcodes[100][600:]
    rows = [{"key": "full", "order": "Diptera", "family": "Aidae"}, {"key": "masked", "family": "Other"}]
    library = Library.build(
        pa.Table.from_pylist(rows), [substitute(barcodes[100], np.random.default_rng(6), 0.01), masked]
    )
    hits = library.search([barcodes[100]])
    assert library.records["key"][int(hits.reference[0])].as_py() == "full"
    assert hits.overlap[0] == 658 and (hits.overlap[1:] == 158).all()


def test_a_group_that_is_left_out_is_not_found(known: tuple[list[str], Library]) -> None:
    barcodes, library = known
    own = library.labels[120, 3]
    kept = nearest_labels(library, library.search([barcodes[120]]))[0, 3]
    other = nearest_labels(library, library.search([barcodes[120]], without=[int(own)]))[0, 3]
    assert kept == own and other not in (own, -1)


def test_the_matrix_product_finds_the_scores_of_the_planes(known: tuple[list[str], Library]) -> None:
    barcodes, library = known
    rng = np.random.default_rng(7)
    placed = library.planes.placer.place([substitute(barcode, rng, 0.03) for barcode in barcodes[:360:60]])
    queries = np.ascontiguousarray(placed.planes.transpose(0, 2, 1))
    _, best, _ = nearest_gpu.nearest(queries, library.planes.planes, "cpu", 4)
    assert best.tolist() == [nearest_gpu.by_planes(query, library.planes.planes) for query in queries]


def test_more_candidates_than_there_is_room_for_lose_none_of_the_nearest() -> None:
    rng = np.random.default_rng(8)
    centre = relatives(rng, 1, 1)[0]
    crowd = [substitute(centre, rng, 0.02) for _ in range(6000)]
    nearest_of_all = substitute(centre, rng, 0.001)
    library = Library.build(pa.table({"key": [str(row) for row in range(6001)]}), [*crowd, nearest_of_all])
    hits = library.search([centre])
    assert library.barcode(int(hits.reference[0])) == nearest_of_all and hits.exact[0]
