"""The peer of the benchmarks: PROTAX's formula, on a small library of which some species have one specimen."""

import numpy as np
import pyarrow as pa

from engine.specimens.taxonomy import RANKS
from tests.benchmarks.protax import Protax, pairs_of
from tests.train.reference.test_reference import mutate, random_barcode
from train.reference import Library


def test_known_and_unknown_add_up_and_new_species_are_seen() -> None:
    rng = np.random.default_rng(0)
    rows: list[dict[str, str]] = []
    barcodes: list[str] = []
    new: list[str] = []
    for genus in range(4):
        root = random_barcode(rng, 300)
        for species in range(3):
            centre = mutate(root, rng, 0.06)
            for number in range(1 if species == 1 else 4):
                names = ("Order", "Family", f"G{'abcd'[genus]}", f"G{'abcd'[genus]} {'pqr'[species]}pi")
                rows.append(dict(zip(RANKS, names, strict=True)) | {"key": str(len(rows) + number)})
                barcodes.append(mutate(centre, rng, 0.01))
        new.append(mutate(root, rng, 0.06))
    library = Library.build(pa.Table.from_pylist(rows), barcodes)
    hits = library.search([*barcodes, *new])
    best = pairs_of(library, hits)[3]
    assert (best.best >= best.second).all()
    alone = pairs_of(library, hits, np.append(np.arange(len(rows)), [-1] * len(new)))[3]
    assert len(alone.query) < len(best.query)  # a species of one specimen is not found when that is left out
    path, told, unknown = Protax(library).fit().answers(hits)
    assert (np.diff(told, axis=1) <= 1e-9).all() and (told[:, 3] + unknown.sum(axis=1) <= 1 + 1e-9).all()
    assert (path[: len(rows), 3] == library.labels[:, 3]).mean() > 0.9
    assert unknown[len(rows) :].sum(axis=1).min() > 0.5 > unknown[: len(rows)].sum(axis=1).mean()
