"""A model's scores moved by a library: distances down the taxonomy, evidence, species that are taken away."""

import numpy as np
import pytest
import torch

from engine.specimens.taxonomy import RANKS, Taxonomy
from tests.train.planted import PlantedModel
from tests.train.reference.test_reference import Planted, mutate, random_barcode
from train.inference import evidence
from train.inference.calibration import LIBRARY_INPUTS, Combination
from train.inference.combination import WHOLE, Combiner
from train.inference.scoring import Scorer

SPECIES = RANKS.index("species")
HOW = Combination(per_edit=0.5, step=8.0)


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


def test_distances_go_down_the_taxonomy(planted: Planted, scorer: Scorer, combiner: Combiner) -> None:
    rng = np.random.default_rng(1)
    queries = [mutate(planted.barcodes[row], rng, 0.01) for row in (0, 7, 33)]
    nearest = combiner.find(queries)
    found = nearest.leaf_distances(scorer, slice(0, 3), HOW.step).numpy()
    for row, query in enumerate(queries):
        np.testing.assert_allclose(found[row], plain_distances(combiner, scorer, query, HOW.step), atol=1e-5)
    assert (found[0, 3:] > found[0, :3].max()).all()  # species of other genera are farther
    np.testing.assert_array_equal(nearest.leaf_distances(scorer, slice(1, 3), HOW.step).numpy(), found[1:])


def test_a_query_that_finds_nothing_moves_nothing(scorer: Scorer, combiner: Combiner) -> None:
    nearest = combiner.find([random_barcode(np.random.default_rng(9), 300), ""])
    assert (nearest.leaf_distances(scorer, slice(0, 2), HOW.step) == 0).all()
    features = np.eye(16, dtype=np.float32)[:2]
    alone = evidence.answers(scorer, features)
    both = evidence.answers(scorer, features, library=(nearest, HOW))
    np.testing.assert_array_equal(alone.path, both.path)
    np.testing.assert_array_equal(alone.evidence["probability"], both.evidence["probability"])


def test_library_and_model_are_multiplied(planted: Planted, scorer: Scorer, combiner: Combiner) -> None:
    nearest = combiner.find(planted.barcodes[:15])
    rng = np.random.default_rng(2)
    features = rng.normal(size=(15, 16)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    (plain,) = scorer.leaf_probabilities(features)
    moved = plain[1].numpy() * np.exp(-HOW.per_edit * nearest.leaf_distances(scorer, slice(0, 15), HOW.step).numpy())
    (chunk,) = evidence.scored(scorer, features, library=(nearest, HOW))
    species = chunk.probabilities[SPECIES].numpy()
    leaf = scorer.taxonomy.leaves()[:, SPECIES]
    np.testing.assert_allclose(species[:, leaf], moved / moved.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-9)
    right = combiner.labels[:15, SPECIES]
    alone = evidence.answers(scorer, features).path[:, SPECIES]
    assert (chunk.answers.path[:, SPECIES] == right).sum() > 5 + (alone == right).sum()


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
