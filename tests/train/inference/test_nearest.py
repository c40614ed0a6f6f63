"""The nearest references by a model's taxa: distances down the taxonomy, evidence, species that are taken away."""

import numpy as np
import pytest
import torch

from engine.specimens.taxonomy import RANKS, Taxonomy
from tests.train.planted import PlantedModel
from tests.train.reference.test_reference import Planted, mutate, random_barcode
from train.inference import nearest as nearest_module
from train.inference.calibration import LIBRARY_INPUTS
from train.inference.experts import PER_EDIT, STEP, Inputs, opinions
from train.inference.nearest import WHOLE, Combiner, Nearest
from train.inference.scoring import Scorer
from train.reference import RankScores

SPECIES = RANKS.index("species")


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.fixture(scope="module")
def scorer(planted: Planted) -> Scorer:
    taxonomy = Taxonomy.build({rank: [row[rank] for row in planted.rows] for rank in RANKS})
    model = PlantedModel(taxonomy)
    text = torch.randn(sum(taxonomy.sizes), 16, generator=torch.Generator().manual_seed(0))
    return Scorer(model, taxonomy, model.tokenizer, text=torch.nn.functional.normalize(text, dim=1))


@pytest.fixture(scope="module")
def combiner(planted: Planted, scorer: Scorer) -> Combiner:
    return Combiner(planted.library, scorer.taxonomy)


def plain_distances(combiner: Combiner, scorer: Scorer, barcode: str, step: float) -> np.ndarray:
    """The definition, taxon by taxon: the nearest found reference, or `step` more than the taxon that it lies in."""
    hits = combiner.library.search([barcode])
    rows, begin = combiner.library.rows_of
    nearest: dict[tuple[int, int], float] = {}
    for reference, difference in zip(hits.reference.tolist(), hits.difference.tolist(), strict=True):
        for row in rows[begin[reference] : begin[reference + 1]].tolist():
            for rank, taxon in enumerate(combiner.labels[row].tolist()):
                whole = difference * WHOLE / len(barcode)
                nearest[rank, taxon] = min(whole, nearest.get((rank, taxon), np.inf))
    least = min(nearest.values())
    result = []
    for lineage in scorer.taxonomy.leaves().tolist():
        distance = 0.0
        for rank, taxon in enumerate(lineage):
            distance = min(distance + step, nearest.get((rank, taxon), np.inf) - least, 0.3 * WHOLE - least)
        result.append(distance)
    return np.array(result)


def test_of_equally_near_species_the_one_with_more_specimens_is_nearer(scorer: Scorer, combiner: Combiner) -> None:
    one = np.zeros(2, dtype=np.int64)
    pairs = RankScores(one, np.array([1, 0]), np.array([3.0, 3.0]), np.array([5, 2]), one)
    none = RankScores(one[:0], one[:0], np.empty(0), one[:0], one[:0])
    distance = Nearest((none, none, none, pairs), np.array([600])).leaf_distances(scorer, slice(0, 1), STEP)[0]
    leaf = {int(row): place for place, row in enumerate(scorer.leaves[:, SPECIES])}
    assert distance[leaf[1]] == 0 and 0 < distance[leaf[0]] < 0.1


def test_distances_go_down_the_taxonomy(
    planted: Planted, scorer: Scorer, combiner: Combiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest_module, "MORE", 0.0)
    rng = np.random.default_rng(1)
    queries = [mutate(planted.barcodes[row], rng, 0.01) for row in (0, 7, 33)]
    nearest = combiner.find(queries)
    found = nearest.leaf_distances(scorer, slice(0, 3), STEP).numpy()
    for row, query in enumerate(queries):
        np.testing.assert_allclose(found[row], plain_distances(combiner, scorer, query, STEP), atol=1e-5)
    assert (found[0, 3:] > found[0, :3].max()).all()  # species of other genera are farther
    np.testing.assert_array_equal(nearest.leaf_distances(scorer, slice(1, 3), STEP).numpy(), found[1:])


def test_a_query_that_finds_nothing_says_nothing(scorer: Scorer, combiner: Combiner) -> None:
    nearest = combiner.find([random_barcode(np.random.default_rng(9), 300), ""])
    assert (nearest.leaf_distances(scorer, slice(0, 2), STEP) == 0).all()
    features = np.eye(16, dtype=np.float32)[:2]
    barcode, library = opinions(scorer, Inputs(None, features, nearest), slice(0, 2))
    assert barcode.speaks.all() and not library.speaks.any()
    assert np.isfinite(library.quality).all()


def test_a_library_says_how_near_the_references_are(planted: Planted, scorer: Scorer, combiner: Combiner) -> None:
    nearest = combiner.find(planted.barcodes[:15])
    (library,) = opinions(scorer, Inputs(dna=None, image=None, nearest=nearest), slice(0, 15))
    expected = (-PER_EDIT * nearest.leaf_distances(scorer, slice(0, 15), STEP)).log_softmax(1)
    np.testing.assert_allclose(library.log_p.numpy(), expected.numpy(), atol=1e-5)
    species = scorer.taxonomy.leaves()[library.log_p.argmax(1).numpy(), SPECIES]
    assert (species == combiner.labels[:15, SPECIES]).all()
    chosen = np.array([2, 3, 9])
    few = nearest.take(chosen)
    (again,) = opinions(scorer, Inputs(nearest=few), slice(0, 3))
    np.testing.assert_array_equal(again.log_p.numpy(), library.log_p.numpy()[chosen])
    np.testing.assert_array_equal(again.quality, library.quality[chosen])


def test_evidence_is_of_the_answered_taxon_and_of_the_others(
    planted: Planted, scorer: Scorer, combiner: Combiner
) -> None:
    nearest = combiner.find([planted.barcodes[0], planted.barcodes[20]])
    right = combiner.labels[[0, 20]]
    told = nearest.evidence(right, 0)
    assert list(told) == list(LIBRARY_INPUTS)
    assert (told["edits"] == 0).all()
    assert (told["edits_to_other"][:, SPECIES] > np.log(10)).all()  # sisters are 8% away
    np.testing.assert_allclose(told["length"], np.log([600, 600]))
    wrong = nearest.evidence(right[::-1], 0)
    assert (wrong["edits_to_other"][:, SPECIES] == 0).all() and (wrong["edits"][:, SPECIES] > np.log(10)).all()
    np.testing.assert_array_equal(nearest.evidence(right[1:], 1)["edits"], told["edits"][1:])


def test_a_species_that_is_taken_away_is_not_found(planted: Planted, scorer: Scorer, combiner: Combiner) -> None:
    rows = np.arange(0, 60, 5)
    species = combiner.labels[rows, SPECIES]
    kept = species.copy()
    kept[::2] = -1
    nearest = combiner.find([planted.barcodes[row] for row in rows.tolist()], without=kept)
    ranks = [one.best(len(rows)) for one in nearest.ranks]
    assert (ranks[SPECIES][::2] == species[::2]).all()
    assert (ranks[SPECIES][1::2] != species[1::2]).all() and (ranks[SPECIES][1::2] >= 0).all()
    assert (ranks[SPECIES - 1] == combiner.labels[rows, SPECIES - 1]).all()  # a sister is the nearest
    pairs = nearest.ranks[SPECIES]
    assert not (pairs.taxon == kept[pairs.query]).any()


def test_parents_of_the_candidates(scorer: Scorer) -> None:
    parent = scorer.parent
    for row, lineage in enumerate(scorer.candidates.tolist()):
        rank = max(rank for rank, taxon in enumerate(lineage) if taxon >= 0 and row >= scorer.first[rank])
        above = [int(scorer.first[r]) + lineage[r] for r in range(rank) if lineage[r] >= 0]
        assert int(parent[row]) == (above[-1] if above else -1)
    assert torch.equal(parent[: scorer.sizes[0]], torch.full((scorer.sizes[0],), -1))
