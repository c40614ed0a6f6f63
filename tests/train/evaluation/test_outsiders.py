"""Outsiders: lengths and colours of what they are made of, and nothing of its order."""

import numpy as np

from train.evaluation.outsiders import CHANGED, outside_barcode, outside_view

BARCODE = "".join(np.random.default_rng(0).choice(list("ACGT"), 600))


def test_barcodes_keep_their_length_and_lose_their_taxon() -> None:
    for kind in range(4):
        found = outside_barcode(BARCODE, "a", kind)
        differs = np.mean([one != other for one, other in zip(found, BARCODE, strict=True)])
        assert CHANGED[0] - 0.04 < differs < 0.8 and found == outside_barcode(BARCODE, "a", kind)
    assert sorted(outside_barcode(BARCODE, "a", 0)) == sorted(BARCODE)
    codons = [outside_barcode(BARCODE, "a", 1)[at : at + 3] for at in range(0, 600, 3)]
    assert sorted(codons) == sorted(BARCODE[at : at + 3] for at in range(0, 600, 3))


def test_photos_keep_their_shape_and_tiles_their_pixels() -> None:
    view = np.random.default_rng(1).integers(0, 256, (67, 67, 3)).astype(np.uint8)
    for kind in range(4):
        found = outside_view(view, "a", kind)
        assert found.shape == view.shape and found.dtype == np.uint8 and (found != view).mean() > 0.5
    assert len(np.unique(outside_view(view, "a", 1).reshape(-1, 3), axis=0)) == 1
    assert (np.diff(outside_view(view, "a", 2).astype(int), axis=0) >= 0).all()
    tiles = outside_view(view, "a", 3)
    assert np.bincount(tiles.ravel(), minlength=256).tolist() == np.bincount(view.ravel(), minlength=256).tolist()
    assert outside_view(view[:4, :4], "a", 3).shape == (4, 4, 3)  # smaller than its tiles: turned over
