"""The scope of a model: which barcodes and photos it keeps, and how far from them others are."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from engine.specimens.taxonomy import RANKS, Taxonomy
from tests.train.reference.test_reference import mutate, random_barcode
from train.inference import scope
from train.inference.calibration import Calibration, Scope
from train.inference.evidence import Answers
from train.inference.looks import NUMBERS, Photos, blurred, looks
from train.reference import Library

SPECIES = ("Aa bb", "Aa cc", "Dd ee", "Ff gg")


@pytest.fixture(scope="module")
def library() -> Library:
    """4 species of 3 genera of 2 families, 5 barcodes each; the last specimen of each has no species."""
    rng = np.random.default_rng(0)
    rows, barcodes = [], []
    for name, family in zip(SPECIES, "XXXY", strict=True):
        centre = random_barcode(rng, 400)
        for number in range(5):
            names = ("Order", family, name.split()[0], name if number < 4 else None)
            rows.append(dict(zip(RANKS, names, strict=True)) | {"key": f"{name}{number}"})
            barcodes.append(mutate(centre, rng, 0.01))
    return Library.build(pa.Table.from_pylist(rows), barcodes)


def test_few_barcodes_are_of_as_many_taxa_as_they_can(library: Library) -> None:
    known = library.taxonomy
    first = np.cumsum([0, *known.sizes])
    for most, rank in ((2, 1), (3, 2), (4, 3)):
        kept = scope.choose(library, known, most)
        opened = scope.opened(kept, known)
        assert opened is not None and len(kept.barcodes) == most
        assert len(set(opened.labels[:, rank].tolist())) == most
        assert all(first[3] <= taxon < first[4] for taxon in kept.taxa)
    every = scope.choose(library, known)
    assert len(every.barcodes) == library.num_haplotypes and sum(taxon < first[3] for taxon in every.taxa) == 4
    assert scope.opened(Scope(), known) is None


def test_the_scope_says_how_far_a_barcode_is(library: Library) -> None:
    known = library.taxonomy
    opened = scope.opened(scope.choose(library, known), known)
    assert opened is not None
    own, other = library.barcode(0), random_barcode(np.random.default_rng(9), 400)
    asked = [own, own[:100], mutate(own, np.random.default_rng(1), 0.1), other]
    answers = Answers(np.tile(known.candidates(3)[0], (4, 1)), {"probability": np.zeros((4, 4))})
    far = scope.told(answers, opened.find(asked)).evidence["far"][:, 0]
    assert far[0] < 0.01 < far[1] < 0.04 < 0.1 < far[2] < 0.19 < 0.25 < far[3]  # few letters say less
    later = scope.told(Answers(answers.path[2:], {}), opened.find(asked), 2).evidence["far"][:, 0]
    np.testing.assert_array_equal(later, far[2:])


def test_taxa_that_the_scope_has_no_barcode_of_are_not_judged(library: Library) -> None:
    columns = {rank: [*library.records[rank].to_pylist(), name] for rank, name in zip(RANKS, "PQRS", strict=True)}
    wider = Taxonomy.build(columns | {"species": [*library.records["species"].to_pylist(), "Rr ss"]})
    opened = scope.opened(scope.choose(library, wider), wider)
    assert opened is not None
    path = wider.encode({"order": ["P"], "family": ["Q"], "genus": ["R"], "species": ["Rr ss"]})
    assert (scope.told(Answers(path, {}), opened.find([library.barcode(0)])).evidence["far"] == 0).all()


def test_photos_of_nothing_are_far_and_blurred_ones_are_not() -> None:
    rng = np.random.default_rng(0)

    def insect() -> np.ndarray:
        view = rng.normal(200, 6, (96, 96, 3))
        view[30:66, 24:72] = rng.normal((90, 70, 50), 15, (36, 48, 3))
        return np.clip(view + rng.normal(0, 5), 0, 255).astype(np.uint8)

    kept = [insect() for _ in range(60)]
    seen = Photos([looks(view).tolist() for view in (*kept, *(blurred(view, n) for n, view in enumerate(kept)))])
    noise, plain = rng.integers(0, 256, (96, 96, 3)).astype(np.uint8), np.full((96, 96, 3), 128, np.uint8)
    own = [insect() for _ in range(10)]
    asked = (*own, *(blurred(view, n) for n, view in enumerate(own)), noise, plain)
    far = seen.far(np.array([looks(view) for view in asked]))
    assert far[:20].max() < far[20:].min() and looks(noise).shape == (NUMBERS,)


def test_the_file_keeps_the_scope(library: Library, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("scope") / "c.json"
    kept = dataclasses.replace(scope.choose(library, library.taxonomy), photos=((0.5, 1.25), (2.0, 3.0)))
    Calibration("print", {}, scope=kept).save(place)
    assert Calibration.load(place).scope == kept
