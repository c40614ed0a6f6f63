"""The photo library: exact addition and removal, one-photo classes, lineages, novelty, files, bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from train.photo_head import PhotoLibrary
from train.photo_head.discriminant import UNIT, Counts, Discriminant, Settings, shrink
from train.photo_head.library import FEATURES

TRUNK = {"name": "test", "weights_sha256": "0" * 64}
WIDTH, GENERA, PER_GENUS = 24, 6, 3
SPECIES = GENERA * PER_GENUS


def draw(species: np.ndarray, seed: int) -> np.ndarray:
    """Views [M, 2, D] about a mean of each species, which lies about its genus'."""
    centres = np.random.default_rng(1).normal(0, 3, (GENERA, WIDTH)).repeat(PER_GENUS, 0)
    centres += np.random.default_rng(2).normal(0, 1.5, centres.shape)
    return centres[species][:, None] + np.random.default_rng(seed).normal(0, 1, (len(species), 2, WIDTH))


def table(species: np.ndarray, prefix: str) -> pa.Table:
    genus = species // PER_GENUS
    return pa.table(
        {
            "key": [f"{prefix}{row}" for row in range(len(species))],
            "order": ["Lepidoptera"] * len(species),
            "family": [f"Family{number % 2}" for number in genus.tolist()],
            "genus": [f"Genus{number}" for number in genus.tolist()],
            "species": [f"Genus{g} species{s}" for g, s in zip(genus.tolist(), species.tolist(), strict=True)],
        }
    )


@pytest.fixture(scope="module")
def known() -> np.ndarray:
    return np.repeat(np.arange(SPECIES), 4)


@pytest.fixture(scope="module")
def library(known: np.ndarray) -> PhotoLibrary:
    return PhotoLibrary.build(table(known, "a"), draw(known, 3), TRUNK)


def answers(library: PhotoLibrary, views: np.ndarray) -> Any:
    return library.posterior(np.stack([library.specimen(one[None], TRUNK) for one in views]))


def test_photos_are_named_and_probabilities_follow_the_lineage(library: PhotoLibrary) -> None:
    asked = np.repeat(np.arange(SPECIES), 3)
    answer = answers(library, draw(asked, 9))
    labels = library.taxonomy.encode(
        {rank: table(asked, "q")[rank] for rank in ("order", "family", "genus", "species")}
    )
    for rank in range(4):
        assert (answer.ranks[rank].argmax(1) == labels[:, rank]).mean() > 0.9
        np.testing.assert_allclose(answer.ranks[rank].sum(1), 1.0)
    rows, cosine = library.nearest(library.features[:2] / UNIT, 3)
    assert rows[:, 0].tolist() == [0, 1] and (np.diff(cosine) <= 0).all()
    strange = answers(library, np.random.default_rng(5).normal(0, 3, (200, 2, WIDTH)))
    assert strange.novelty.mean() > answer.novelty.mean() and strange.novel.mean() > answer.novel.mean() + 0.3


def test_what_is_added_and_removed_leaves_no_trace(library: PhotoLibrary, known: np.ndarray, tmp_path: Path) -> None:
    fewer = np.flatnonzero(known != 4)
    before = library.remove([f"a{row}" for row in np.flatnonzero(known == 4)])
    assert len(before.records) == len(fewer)
    new = draw(np.array([4, 4]), 7)
    after = before.add(table(np.array([4, 4]), "new"), new, TRUNK)
    found = after.taxonomy.names[3][answers(after, new[:1]).ranks[3].argmax()]
    assert found == "Genus1 species4"
    assert before.save(tmp_path / "before") == after.remove(["new0", "new1"]).save(tmp_path / "back")
    for file in (tmp_path / "before").iterdir():
        assert file.read_bytes() == (tmp_path / "back" / file.name).read_bytes()


def test_a_library_reads_back_and_a_changed_file_is_found(library: PhotoLibrary, tmp_path: Path) -> None:
    library.save(tmp_path)
    again = PhotoLibrary.load(tmp_path)
    views = draw(np.arange(SPECIES), 8)
    for first, second in zip(answers(library, views).ranks, answers(again, views).ranks, strict=True):
        assert np.array_equal(first, second)
    assert again.settings == library.settings
    (tmp_path / FEATURES).write_bytes(b"changed")
    with pytest.raises(ValueError, match="not the file that was saved"):
        PhotoLibrary.load(tmp_path)


def test_one_photo_a_lineage_is_enough_and_photos_of_a_specimen_are_averaged() -> None:
    one = np.arange(SPECIES)
    library = PhotoLibrary.build(table(one, "a"), draw(one, 3), TRUNK)
    assert (answers(library, draw(one, 4)).ranks[3].argmax(1) == library.labels[:, 3]).mean() > 0.5
    several = np.stack([library.specimen(draw(np.repeat(s, 8), 10 + s), TRUNK) for s in range(SPECIES)])
    assert (library.posterior(several).ranks[3].argmax(1) == library.labels[:, 3]).mean() > 0.8
    np.testing.assert_allclose(np.linalg.norm(several, axis=1), 1.0)


def test_scores_are_those_of_the_definition() -> None:
    """log N(x; m_c, S) - log N(x; m, S), written out."""
    rng = np.random.default_rng(0)
    features = np.rint(rng.normal(0, 5000, (40, 6))).astype(np.int16)
    lineage, lineages = np.repeat(np.arange(4), 10), np.array([[0, 0, g // 2, g] for g in range(4)])
    settings = Settings(alpha=0.3, beta=0.1, kappa=0.7)
    counts = Counts.of(features, lineage, 4)
    odds, novelty = Discriminant(counts, lineages, settings).log_odds(features / UNIT)
    x = features / UNIT
    means = np.stack([x[lineage == c].mean(0) for c in range(4)])
    within, spread = (r.T @ r for r in (x - means[lineage], x - x.mean(0)))
    covariance = (within + 0.1 * spread) / (36 + 0.1 * 39)
    covariance = 0.7 * covariance + 0.3 * np.trace(covariance) / 6 * np.eye(6)
    pulled = shrink(means, counts.counts, lineages, 0.7)

    def distance(point: np.ndarray) -> np.ndarray:
        return np.einsum("nd,de,ne->n", x - point, np.linalg.inv(covariance), x - point)

    expected = np.stack([(distance(x.mean(0)) - distance(point)) / 2 for point in pulled], 1)
    np.testing.assert_allclose(odds, expected, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(novelty, -expected.max(1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda one, rows, views: one.add(rows, views, TRUNK | {"name": "other"}),
            "features with name .*those of its trunk",
        ),
        (lambda one, rows, views: one.add(rows.slice(0, 1), views, TRUNK), "got 1 records, 2 photos"),
        (lambda one, rows, views: one.add(one.records.slice(0, 2), views, TRUNK), "keys that it has already"),
        (lambda one, rows, views: one.remove(["nobody"]), "got 1 keys to remove, 0 of them"),
        (lambda one, rows, views: one.remove(one.records["key"].to_pylist()), "not all of them"),
        (lambda one, rows, views: PhotoLibrary.load("absent"), "cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(library: PhotoLibrary, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        change(library, table(np.array([1, 2]), "n"), draw(np.array([1, 2]), 6))
    assert "\n" not in str(caught.value)
