"""Amplified parts by hand; curves against the pipeline's own damage, which other code makes."""

import numpy as np
import pytest

from engine.signals.degrade import PAPER
from engine.signals.nucleotides import reverse_complement
from train.evaluation import robustness
from train.evaluation.amplicons import AMPLICONS, FOLMER, Amplicon
from train.evaluation.robustness import Point

LERAY, FWH, ZBJ = AMPLICONS
RNG = np.random.default_rng(0)
RANDOM = "".join(RNG.choice(list("ACGT"), FOLMER))
FITS = {"W": "A", "Y": "T", "D": "G", "H": "A"}


def concrete(primer: str) -> str:
    """One of the sequences that a primer stands for."""
    return "".join(FITS.get(letter, letter) for letter in primer)


def with_site(primer: str, place: int) -> str:
    site = concrete(primer)
    return RANDOM[:place] + site + RANDOM[place + len(site) :]


@pytest.mark.parametrize("one", [LERAY, FWH])
def test_part_begins_behind_its_forward_primer(one: Amplicon) -> None:
    barcode = with_site(one.primer, 319)
    assert one.find(barcode) == 345 == one.start
    assert one.cut(barcode) == barcode[345 : 345 + one.length]
    shifted = barcode[40:600]  # other ends: the primer still tells
    assert one.find(shifted) == 305
    assert one.cut(shifted) == ("" if one is LERAY else shifted[305:510])  # 255 of 313 nucleotides are too few


def test_part_ends_before_its_reverse_primer() -> None:
    site = reverse_complement(concrete(ZBJ.primer))
    barcode = RANDOM[:178] + site + RANDOM[178 + len(site) :]
    assert ZBJ.find(barcode) == 21 == ZBJ.start
    assert ZBJ.cut(barcode) == barcode[21:178]
    assert ZBJ.cut(barcode[30:]) == ""  # it begins before the barcode, which is too short to be cut by position


def test_mismatches_up_to_a_limit_and_then_position() -> None:
    letters = list(with_site(LERAY.primer, 330))
    for place in range(331, 337):
        letters[place] = {"A": "C", "C": "A", "G": "C", "T": "C"}[letters[place]]
    worn = "".join(letters)
    assert LERAY.find(worn) == 356  # found where it is, not where it usually is
    assert LERAY.find(RANDOM) == -1 and LERAY.cut(RANDOM) == RANDOM[345:658]
    assert LERAY.cut(RANDOM[:500]) == "" and LERAY.find("ACGT") == -1
    assert LERAY.find(with_site(LERAY.primer, 330).replace("A", "N")) == -1


def test_single_operations_do_nothing_else() -> None:
    points = robustness.dna_points()
    barcode = RANDOM
    assert points[Point("preset", 0.0)](barcode, "k") == barcode
    changed = points[Point("substitution", 4.0)](barcode, "k")
    assert len(changed) == FOLMER and "N" not in changed
    assert 0 < sum(a != b for a, b in zip(changed, barcode, strict=True)) < 0.1 * FOLMER
    assert points[Point("truncation", 2.0)](barcode, "k") == barcode[: FOLMER - int(0.2 * FOLMER)]
    assert points[Point("run", 1.0)](barcode, "k").count("N") == int(PAPER.run * FOLMER)
    assert set(points[Point("masking", 4.0)](barcode, "k")) == set("ACGTN")
    piece = points[Point("fragment", 100.0)](barcode, "k")
    assert len(piece) == 100 and (piece in barcode or reverse_complement(piece) in barcode)
    assert points[Point("amplicon", "Leray 313")](barcode, "k") == barcode[345:]


def test_area_is_the_mean_height_between_the_ends() -> None:
    values = {f"test/curves/preset/{at}/dna/species/top1": v for at, v in (("0", 1.0), ("1", 0.8), ("4", 0.2))}
    values["test/curves/run/2/dna/species/top1"] = 0.6
    values["test/curves/blur/3/image/species/top1"] = 0.5  # one point is no curve
    found = robustness.areas(values, "test")
    assert found["test/curves/preset/dna/species/area"] == pytest.approx((0.9 * 1 + 0.5 * 3) / 4)
    assert found["test/curves/run/dna/species/area"] == pytest.approx(0.8)  # begins at severity 0 of the preset
    assert len(found) == 2
