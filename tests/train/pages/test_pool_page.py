"""The pool on the evaluation page: bands in words, verdicts in a table, weights as lines."""

import numpy as np

from train.inference.calibration import Calibrator, Rule
from train.inference.experts import BARCODE, PHOTO
from train.inference.pool import ANY, POOL, Cell, Guarantee, Pool, Weight
from train.pages import pool_page

AXES = {"length": (np.log(100.0), np.log(300.0)), "n_share": (0.03,), "sharpness": (-4.0, -2.0)}


def weight(expert: str) -> Weight:
    return Weight(expert, 1.0, (), (), (), (), 0.0)


def metrics() -> dict[str, float]:
    """Of a pool that stands by length, and leaves whole barcodes with clean letters to the photo."""
    rule = Rule(("a",), (0.0,), (1.0,), (1.0,), 0.0)
    cells = [Cell((band, ANY, ANY), POOL, BARCODE, 90, 30, 0.02, 0.001, (1.0, 0.5 + band)) for band in range(3)]
    cells += [Cell((2, 0, band), PHOTO, PHOTO, 90, 30, -0.02, -0.05, (band + 0.25, 2.0)) for band in range(3)]
    pool = Pool((weight(PHOTO), weight(BARCODE)), Guarantee(AXES, tuple(cells)))
    return pool_page.as_metrics(Calibrator((rule,) * 4, rule, 0.5, (rule,) * 4, pool), "test/pool/pooled")


def test_verdicts_are_told_and_weights_drawn() -> None:
    values = metrics()
    picture, table = pool_page.blocks(values, "test/pool/pooled", "pool of photo and barcode")
    assert "<svg" in picture and "known nucleotides" in picture
    assert table.count("<tr") == 7 and "above 300 nt" in table and "best without it: photo" in table and "-5.0" in table
    left, right = pool_page.weights_plot(values, "test/pool/pooled").axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in left.get_lines()}
    assert drawn == {PHOTO: [1.0, 1.0, 1.0], BARCODE: [0.5, 1.5, 2.5]}
    assert list(right.get_lines()[0].get_ydata()) == [0.25, 1.25, 2.25]


def test_without_a_pool_there_is_nothing_to_show() -> None:
    rule = Rule(("a",), (0.0,), (1.0,), (1.0,), 0.0)
    assert pool_page.as_metrics(Calibrator((rule,) * 4, rule, 0.5, (rule,) * 4), "test/pool/dna") == {}
    assert pool_page.blocks({}, "test/pool/dna", "barcode") == []


def test_bands_in_words() -> None:
    lengths = [float(edge) for edge in AXES["length"]]
    assert [pool_page.band_text("length", band, lengths) for band in (ANY, 0, 1, 2)] == [
        "any",
        "up to 100 nt",
        "100 nt to 300 nt",
        "above 300 nt",
    ]
    assert pool_page.band_text("n_share", 1, [0.03]) == "above 3%"
    assert pool_page.band_text("sharpness", 1, [-4.0, -2.0]) == "-4.0 to -2.0"
