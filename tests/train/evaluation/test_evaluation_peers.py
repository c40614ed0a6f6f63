"""Plain baselines against loops and answers worked out by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from train.evaluation import peers


def test_nearest_neighbour_equals_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "BLOCK", 7)
    rng = np.random.default_rng(0)
    queries, references = (F.normalize(torch.from_numpy(rng.normal(size=(n, 8)))).numpy() for n in (20, 31))
    labels = np.where(rng.random((31, 4)) < 0.6, rng.integers(0, 9, (31, 4)), -1)
    labels[:, 3] = -1
    found = peers.nearest_labels((20, lambda rows: queries[rows]), (31, lambda rows: references[rows]), labels)
    for row, query in enumerate(queries):
        for rank in range(3):
            near = max((m for m in range(31) if labels[m, rank] >= 0), key=lambda m: float(references[m] @ query))
            assert found[row, rank] == labels[near, rank]
    assert (found[:, 3] == -1).all()


def test_kmer_features_count_clean_kmers() -> None:
    features = peers.kmer_features(["ACGTACGTAC", "ACGTANGTACG", "", "ACG"])
    assert features.shape == (4, 4096)
    assert (features[0] > 0).sum() == 4  # five windows, the first occurs again at the end
    assert features[0].max() == pytest.approx(2 / 7**0.5)
    assert not features[1:].any()  # the N leaves no window of six


def test_kmer_peer_compares_equal_barcodes_once_and_takes_the_first() -> None:
    rng = np.random.default_rng(1)
    library = ["".join(rng.choice(list("ACGT"), 60)) for _ in range(3)]
    labels = np.array([[0, 5, -1, 7], [1, 6, 2, 8], [0, 5, 3, 9]])
    doubled = peers.kmer_peer(
        [library[1], library[0][5:], library[1]], [*library, library[1]], np.vstack([labels, [9] * 4])
    )
    np.testing.assert_array_equal(doubled[0], labels[1])
    np.testing.assert_array_equal(doubled[2], labels[1])
    assert doubled[1, 0] == 0 and doubled[1, 2] >= 0
