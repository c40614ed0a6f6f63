"""Retrieval and probes against scikit-learn, and CLIBD's seen and unseen halves worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from tests.train.planted import columns
from train import metrics
from train.evaluation import probes, retrieval
from train.evaluation.retrieval import Side

ROWS = [("A", "Aa", "Aaa", f"Aaa {name}") for name in ("alba", "nigra", "rufa", "viva")]


def unit(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)), dim=1)


def side(rows: int, seed: int, hole: float = 0.0) -> Side:
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((rows, 4)) < hole, -1, rng.integers(0, 5, (rows, 4)))
    return Side(unit(rows, seed), labels, np.arange(rows))


def test_nearest_equals_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", 7)
    queries, keys = unit(20, 1), unit(33, 2)
    expected = NearestNeighbors(n_neighbors=5, metric="cosine").fit(keys.numpy()).kneighbors(queries.numpy())[1]
    np.testing.assert_array_equal(retrieval.nearest(queries, keys, 5), expected)
    assert retrieval.nearest(queries, keys[:3], 5).shape == (20, 3)


def test_a_key_without_a_label_is_no_candidate_at_that_rank() -> None:
    queries, keys = side(15, 3, hole=0.2), side(40, 4, hole=0.5)
    found = retrieval.retrieved(queries, keys)
    for row in range(15):
        for rank in range(4):
            truth = queries.labels[row, rank]
            known = [m for m in range(40) if keys.labels[m, rank] >= 0]
            known.sort(key=lambda m: -float(keys.features[m] @ queries.features[row]))
            right = [place for place, m in enumerate(known[:5]) if keys.labels[m, rank] == truth]
            expected = metrics.UNSCORED if truth < 0 else right[0] if right else metrics.MISSED
            assert found[row, rank] == expected


def test_accuracies_at_k_by_hand() -> None:
    position = np.array([[0], [2], [4], [metrics.MISSED], [metrics.UNSCORED]], dtype=np.int32).repeat(4, axis=1)
    labels = np.array([0, 0, 1, 1, -1])[:, None].repeat(4, axis=1)
    found = retrieval.accuracies(position, Side(unit(5, 0), labels, np.arange(5)), resamples=30)
    assert [found[f"species/top{k}"] for k in (1, 3, 5)] == [0.25, 0.5, 0.75]
    assert [found[f"species/macro_top{k}"] for k in (1, 3, 5)] == [0.25, 0.5, 0.75]
    assert found["species/rows"] == 4 and found["species/top1_low"] <= 0.25 <= found["species/top1_high"]
    assert retrieval.harmonic(0.9, 0.1) == pytest.approx(0.18) and retrieval.harmonic(0.0, 0.0) == 0.0


class PlantedSetting:
    """Species i lies on axis i in every modality; of the unseen species "viva" there is a key and a query."""

    split, device = "test", torch.device("cpu")
    config = SimpleNamespace(eval=SimpleNamespace(bootstrap=20))
    species = {"train": [0, 1, 2, 2], "key_unseen": [3], "test": [0, 1, 2], "test_unseen": [3, 3]}  # noqa: RUF012
    says = {"train": [0, 1, 2, 2], "key_unseen": [3], "test": [0, 1, 1], "test_unseen": [3, 0]}  # noqa: RUF012

    def has(self, split: str) -> bool:
        return split in self.species

    def rows(self, split: str) -> pa.Table:
        return pa.table(columns([ROWS[i] for i in self.species[split]]))

    def encoded(self, split: str, noisy: bool = True) -> SimpleNamespace:
        features = np.eye(4, dtype=np.float32)[self.says[split]]
        there = {"dna": np.ones(len(features), dtype=bool), "image": np.zeros(len(features), dtype=bool)}
        return SimpleNamespace(features={"dna": features}, mask=there.__getitem__)

    @property
    def scorer(self) -> SimpleNamespace:
        names = [row[3] for row in ROWS]
        place = {text: i for text in names for i in range(4) if text == names[i]}
        return SimpleNamespace(encode=lambda texts: torch.eye(4)[[place[" ".join(t.split()[-2:])] for t in texts]])


def test_seen_and_unseen_species_and_their_harmonic_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval.subsets, "read_barcodes", lambda rows: [""] * len(rows))
    found = retrieval.measure(PlantedSetting())
    assert found["test/retrieval/dna_to_dna/seen/species/top1"] == pytest.approx(2 / 3)
    assert found["test/retrieval/dna_to_text/unseen/species/macro_top1"] == pytest.approx(1 / 2)
    assert found["test/retrieval/text_to_dna/unseen/species/top1"] == 1.0
    expected = 2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2)
    assert found["test/retrieval/dna_to_dna/harmonic/species/macro_top1"] == pytest.approx(expected)
    assert found["test/retrieval/dna_to_dna/seen/genus/top1"] == 1.0
    assert not any("image" in name for name in found)
    text = retrieval.section(found, "test").blocks
    assert "57.1" in text[2] and "66.7" in text[2]
    monkeypatch.setattr(PlantedSetting, "species", {"test": [0]})
    with pytest.raises(ValueError, match="retrieval needs keys: specimens of train or key_unseen"):
        retrieval.measure(PlantedSetting())


def blobs(rows: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, rows)
    middle = np.random.default_rng(99).normal(size=(6, 8))
    return F.normalize(torch.from_numpy((middle[labels] + 0.9 * rng.normal(size=(rows, 8))).astype(np.float32))), labels


def test_linear_probe_is_as_good_as_scikit_learns(one_thread: None) -> None:
    (train, labels), (queries, truth) = blobs(600, 0), blobs(400, 1)
    own = (probes.linear_probe(train, labels * 7, queries) == truth * 7).mean()
    theirs = LogisticRegression(C=10, max_iter=500).fit(train.numpy(), labels).score(queries.numpy(), truth)
    assert own > 0.6 and abs(own - theirs) < 0.03


def as_side(features: torch.Tensor, species: np.ndarray) -> Side:
    return Side(features, np.column_stack([species] * 4), np.arange(len(species)))


def test_few_shot_asks_about_species_with_as_many_specimens() -> None:
    eye = torch.eye(8)
    train = as_side(eye[[0, 0, 0, 1, 1, 2]], np.array([0, 0, 0, 1, 1, 2]))
    queries = as_side(eye[[0, 1, 1, 2, 0, 0]], np.array([0, 1, 0, 2, 1, -1]))
    micro, macro = probes.few_shot(train, queries, shots=2)  # species 2 is not asked about, the last has no species
    np.testing.assert_allclose(micro, [2 / 4] * probes.DRAWS)
    np.testing.assert_allclose(macro, [(1 / 2 + 1 / 2) / 2] * probes.DRAWS)
    assert np.isnan(probes.few_shot(train, queries, shots=4)[0]).all()
    (features, labels), (asked, truth) = blobs(60, 2), blobs(80, 3)
    one, five = (probes.few_shot(as_side(features, labels), as_side(asked, truth), shots)[0] for shots in (1, 5))
    assert one.std() > 0 and one.mean() < five.mean()


def test_clusters_that_are_the_taxa_score_one() -> None:
    labels = np.repeat(np.arange(4), 10)
    apart = np.eye(8, dtype=np.float32)[labels] + 0.01 * np.random.default_rng(0).normal(size=(40, 8))
    found = probes.clustering(apart, labels)
    assert found["ami"] == pytest.approx(1) and found["v_measure"] == pytest.approx(1)
    assert (found["rows"], found["taxa"]) == (40, 4)
    assert probes.clustering(apart, np.random.default_rng(1).permutation(labels))["ami"] < 0.2
    assert probes.clustering(apart, np.zeros(40, dtype=int)) == {}


def test_probes_need_a_train_split() -> None:
    with pytest.raises(ValueError, match="probes learn from the train split"):
        probes.measure(SimpleNamespace(split="train", has=lambda split: True))
