"""Scoring against the taxonomy, compared with plain loops and with answers worked out by hand."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.specimens.captions import caption
from engine.specimens.taxonomy import RANKS, Taxonomy
from train import metrics
from train.inference import scoring
from train.inference.scoring import Scorer, positions

SPECIMENS = [
    ("Diptera", "Culicidae", "Aedes", "Aedes aegypti"),
    ("Diptera", "Culicidae", "Aedes", "Aedes vexans"),
    ("Diptera", "Culicidae", "Culex", "Culex pipiens"),
    ("Diptera", None, "Musca", "Musca domestica"),  # a hole: nobody knows the family of Musca
    ("Diptera", "Phoridae", None, None),
    ("Lepidoptera", "Noctuidae", "Noctua", "Noctua pronuba"),
    ("Hemiptera", None, None, None),
]
DIMENSIONS = 16


def columns(rows: Sequence[Sequence[str | None]]) -> dict[str, list[str | None]]:
    return {rank: [row[i] for row in rows] for i, rank in enumerate(RANKS)}


class FakeModel(torch.nn.Module):
    """Plants a unit vector for every caption: drawn from the caption's hash."""

    logit_scale = torch.tensor(5.0)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def tokenizer(self, captions: list[str]) -> Tensor:
        digests = [hashlib.blake2b(text.encode(), digest_size=4).digest() for text in captions]
        return torch.tensor([[int.from_bytes(digest, "big")] for digest in digests])

    def encode_text(self, tokens: Tensor) -> Tensor:
        rows = [np.random.default_rng(int(token)).normal(size=DIMENSIONS) for token in tokens[:, 0]]
        return torch.nn.functional.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=1)


@pytest.fixture
def taxonomy() -> Taxonomy:
    return Taxonomy.build(columns(SPECIMENS))


@pytest.fixture
def scorer(taxonomy: Taxonomy) -> Scorer:
    model = FakeModel()
    return Scorer(model, taxonomy, model.tokenizer)


def unit(seed: int, count: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(seed)))


def text_of(taxonomy: Taxonomy, row: Sequence[int]) -> np.ndarray:
    model = FakeModel()
    return model.encode_text(model.tokenizer([caption(taxonomy.lineage_names(row))]))[0].numpy()


def test_equal_scores_go_to_the_first_candidate() -> None:
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.5, 0.1]]).repeat(4, 1)
    assert positions(scores, torch.tensor([0, 1, 3, -1])).tolist() == [1, 0, 3, metrics.MISSED]
    assert positions(torch.zeros(1, 3), torch.tensor([0])).tolist() == [0]  # argmax of equals is the first, too


def test_rollup_equals_a_plain_loop(scorer: Scorer, taxonomy: Taxonomy) -> None:
    features = unit(0, 9)
    leaves = taxonomy.leaves()
    assert len(leaves) == 7 and len({tuple(row) for row in leaves.tolist()}) == 7
    found = [torch.cat(parts).numpy() for parts in zip(*scorer.rollup(features), strict=True)]
    for row, feature in enumerate(features.numpy()):
        weights = np.exp([5.0 * feature @ text_of(taxonomy, leaf) for leaf in leaves])
        for rank, names in enumerate(taxonomy.names):
            for taxon in range(len(names)):
                expected = (
                    sum(w for w, leaf in zip(weights, leaves, strict=True) if leaf[rank] == taxon) / weights.sum()
                )
                assert found[rank][row, taxon] == pytest.approx(expected, abs=1e-6)


def test_children_add_up_to_their_parent_and_holes_count_for_nobody(scorer: Scorer, taxonomy: Taxonomy) -> None:
    order, family, genus, species = (torch.cat(parts) for parts in zip(*scorer.rollup(unit(1, 6)), strict=True))
    ids = [{name: i for i, name in enumerate(names)} for names in taxonomy.names]
    torch.testing.assert_close(order.sum(1), torch.ones(6))
    musca = genus[:, ids[2]["Musca"]]
    diptera = order[:, ids[0]["Diptera"]]
    torch.testing.assert_close(diptera, family[:, ids[1]["Culicidae"]] + family[:, ids[1]["Phoridae"]] + musca)
    torch.testing.assert_close(musca, species[:, ids[3]["Musca domestica"]])
    aedes = species[:, ids[3]["Aedes aegypti"]] + species[:, ids[3]["Aedes vexans"]]
    torch.testing.assert_close(genus[:, ids[2]["Aedes"]], aedes)
    assert (family.sum(1) < 1.0).all()  # what Musca and Hemiptera hold belongs to no known family


def test_prompt_ranks_the_captions_of_one_rank(scorer: Scorer, taxonomy: Taxonomy) -> None:
    features = unit(2, 5)
    truth = taxonomy.encode(columns([SPECIMENS[0]] * 5))
    ranking = scorer.rank(features, truth, "prompt")
    for row, feature in enumerate(features.numpy()):
        for rank in range(len(RANKS)):
            cosines = np.array([feature @ text_of(taxonomy, cut) for cut in taxonomy.candidates(rank)])
            assert ranking.position[row, rank] == (cosines > cosines[truth[row, rank]]).sum()
            assert ranking.taxon[row, rank] == cosines.argmax()
            assert ranking.score[row, rank] == pytest.approx(cosines.max(), abs=1e-6)


def test_globals_of_prompt_let_partial_lineages_compete(scorer: Scorer, taxonomy: Taxonomy) -> None:
    """The query is exactly the caption of Culicidae, so that candidate stands first among all taxa of all ranks."""
    family = int(taxonomy.encode(columns([("Diptera", "Culicidae", None, None)]))[0, 1])
    query = torch.from_numpy(text_of(taxonomy, taxonomy.candidates(1)[family])).repeat(4, 1)
    labels = taxonomy.encode(
        columns([SPECIMENS[0], ("Diptera", "Culicidae", None, None), ("Diptera", None, None, None), (None,) * 4])
    )
    exact, compatible = scorer.rank(query, labels, "prompt").position[:, 4:].T
    assert exact[0] > 0 and compatible[0] > 0  # labelled to species: a family does not agree at every labelled rank
    assert exact[1] == 0 and compatible[1] == 0  # labelled to family: the whole caption
    assert exact[2] > 0 and compatible[2] == 0  # labelled to order: a finer answer agrees, but is not the caption
    assert exact[3] == compatible[3] == metrics.UNSCORED


def test_globals_of_rollup_let_complete_lineages_compete(scorer: Scorer, taxonomy: Taxonomy) -> None:
    leaf = next(row for row in taxonomy.leaves() if taxonomy.lineage_names(row)[3] == "Culex pipiens")
    query = torch.from_numpy(text_of(taxonomy, leaf)).repeat(3, 1)
    labels = taxonomy.encode(
        columns([SPECIMENS[2], ("Diptera", "Culicidae", None, None), ("Diptera", None, "Musca", None)])
    )
    exact, compatible = scorer.rank(query, labels, "rollup").position[:, 4:].T
    assert (exact[0], compatible[0]) == (0, 0)
    assert (exact[1], compatible[1]) == (metrics.MISSED, 0)  # a family with genera is no complete lineage
    assert (exact[2], compatible[2] > 0) == (metrics.MISSED, True)


def test_a_label_that_contradicts_the_taxonomy_has_no_compatible_candidate(scorer: Scorer, taxonomy: Taxonomy) -> None:
    labels = taxonomy.encode(columns([("Diptera", "Phoridae", "Aedes", None)]))
    for name in scoring.SCORINGS:
        ranking = scorer.rank(unit(3, 1), labels, name)
        assert ranking.position[0, -1] == metrics.MISSED
        assert ranking.position[0, 2] >= 0


def test_unknown_labels_are_not_scored(scorer: Scorer, taxonomy: Taxonomy) -> None:
    labels = taxonomy.encode(columns([("Diptera", None, "Musca", "Musca nova")]))
    found = scorer.rank(unit(4, 1), labels).position[0]
    assert found[1] == found[3] == metrics.UNSCORED
    assert found[0] >= 0 and found[2] >= 0 and found[5] >= 0


def test_chunks_do_not_change_the_answer(scorer: Scorer, taxonomy: Taxonomy, monkeypatch: pytest.MonkeyPatch) -> None:
    features = unit(5, 23)
    labels = taxonomy.encode(columns([SPECIMENS[i % len(SPECIMENS)] for i in range(23)]))
    whole = {name: scorer.rank(features, labels, name) for name in scoring.SCORINGS}
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 4 * 4 * len(scorer.candidates))  # four specimens at a time
    for name, expected in whole.items():
        found = scorer.rank(features, labels, name)
        np.testing.assert_array_equal(found.position, expected.position)
        np.testing.assert_array_equal(found.taxon, expected.taxon)
        np.testing.assert_allclose(found.score, expected.score, atol=1e-6)


def test_unknown_scoring_and_empty_taxonomy_are_refused(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="allowed: rollup, prompt"):
        scorer.rank(unit(6, 1), np.full((1, 4), -1), "cosine")
    model = FakeModel()
    with pytest.raises(ValueError, match="knows no taxon"):
        Scorer(model, Taxonomy.build(columns([(None,) * 4])), model.tokenizer)
