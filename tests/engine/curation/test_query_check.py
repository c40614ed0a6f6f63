"""Barcodes that somebody asks about: strand, length, N, frame, stop codons, and what is no COI at all."""

import numpy as np
import pytest

from engine.curation.query import check_barcode
from engine.signals.nucleotides import reverse_complement
from engine.signals.primers import PRIMERS
from tests.engine.curation.test_check import coi_like

GOOD = coi_like(np.random.default_rng(0))


def test_a_good_barcode_is_fine_on_either_strand_and_in_any_writing() -> None:
    found = check_barcode(GOOD)
    assert found.usable and found.is_coi and found.sentences() == []
    assert (found.strand, found.length, found.frame, found.stops, found.n_share) == (1, 660, 0, 0, 0.0)
    turned = check_barcode("nn--" + reverse_complement(GOOD).lower().replace("t", "u") + "\n")
    assert turned.sequence == GOOD and turned.strand == -1
    assert turned.usable and turned.sentences() == ["given on the other strand; turned"]
    assert check_barcode("A" + GOOD).frame == 1


def test_damage_is_named() -> None:
    stop = GOOD[:300] + "TAA" + GOOD[303:]
    assert check_barcode(stop).problems == ("stop",) and check_barcode(stop).stops == 1
    assert check_barcode(GOOD[:300] + GOOD[301:]).problems == ("frameshift",)
    assert check_barcode(stop).numt and check_barcode(GOOD[:300] + GOOD[301:]).numt and not check_barcode(GOOD).numt
    primed = check_barcode(PRIMERS["LCO1490"][1] + GOOD)
    assert (primed.primers, primed.numt, check_barcode(GOOD).primers) == (("LCO1490",), False, ())
    masked = check_barcode(GOOD[:300] + "N" * 33 + GOOD[333:])
    assert masked.problems == ("n",) and masked.n_share == pytest.approx(0.05) and not masked.usable
    assert "long" in check_barcode(GOOD * 3).problems


def test_what_is_no_coi_is_told_and_what_is_short_is_not_judged() -> None:
    other = check_barcode("".join(np.random.default_rng(1).choice(list("ACGT"), 600)))
    assert other.is_coi is False and "unlike" in other.problems and not other.usable
    assert "not the COI barcode" in other.sentences()[0]
    piece = check_barcode(GOOD[100:220])
    assert piece.is_coi is None and piece.usable and "too short to tell" in piece.sentences()[0]
    assert check_barcode(GOOD[:60]).problems == ("short",)
    assert check_barcode(GOOD[:200]).is_coi and check_barcode(GOOD[:200]).usable


@pytest.mark.parametrize(("raw", "words"), [("NNN---", "no nucleotide but N"), ("ACGT5Z", "letters '5Z'")])
def test_what_is_no_sequence_is_refused(raw: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_barcode(raw)
