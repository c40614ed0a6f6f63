"""Primers at the ends of a barcode, and what their absence leaves of a frame."""

import pytest

from engine.signals.nucleotides import reverse_complement
from engine.signals.primers import PRIMERS, primers_left

INSIDE = "AACATTATATTTTATTTTTGGAGCTTGAGCAGGAATAGTAGGAACATCACTAAGAATATTAATTCGAGCAGAACTAGGACATCCAGGTGCATTAATTGGAGACG"


@pytest.mark.parametrize("before", ["", "ACGTAC"])
def test_primers_are_found_at_their_ends(before: str) -> None:
    forward, reverse = PRIMERS["LCO1490"][1], reverse_complement(PRIMERS["HCO2198"][1])
    found, inside = primers_left(before + forward + INSIDE + reverse)
    assert set(found) == {"LCO1490", "HCO2198"} and inside == INSIDE
    assert found["LCO1490"] == len(before) + len(forward)


def test_a_clean_barcode_has_none() -> None:
    assert primers_left(INSIDE) == ({}, INSIDE)
    assert primers_left("ACG") == ({}, "ACG")
    middle = INSIDE + PRIMERS["LCO1490"][1] + INSIDE
    assert primers_left(middle) == ({}, middle)


def test_letters_that_were_misread_do_not_hide_a_primer() -> None:
    forward = PRIMERS["LepF1"][1]
    assert set(primers_left(forward[:10] + "N" + forward[11:] + INSIDE)[0]) == {"LepF1"}
    assert primers_left("C" * 4 + forward[4:] + INSIDE)[0] == {}
