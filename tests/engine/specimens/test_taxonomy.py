"""Taxonomy: identity of taxa, lineages with holes, conflicts, coding of labels, files."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.specimens.taxonomy import RANKS, Taxonomy

Row = tuple[str | None, ...]

ROWS: Sequence[Row] = [
    ("Diptera", "Muscidae", "Musca", "Musca domestica"),
    ("Diptera", "Muscidae", "Musca", None),
    ("Diptera", None, "Musca", "Musca domestica"),  # hole: family
    ("Diptera", "Sciaridae", None, None),
    ("Lepidoptera", "Noctuidae", "Abrostola", "Abrostola triplasia"),
    ("Lepidoptera", None, "Orphanata", None),  # a genus whose family nobody knows
    (None, None, "Musca", None),
]


def columns(rows: Sequence[Row]) -> dict[str, list[str | None]]:
    return {rank: [row[position] for row in rows] for position, rank in enumerate(RANKS)}


def names_of(taxonomy: Taxonomy, labels: np.ndarray) -> Sequence[Row]:
    return [taxonomy.lineage_names(row) for row in labels]


def test_taxa_and_completed_lineages() -> None:
    taxonomy = Taxonomy.build(columns(ROWS))
    assert taxonomy.names == (
        ("Diptera", "Lepidoptera"),
        ("Muscidae", "Noctuidae", "Sciaridae"),
        ("Abrostola", "Musca", "Orphanata"),
        ("Abrostola triplasia", "Musca domestica"),
    )
    assert taxonomy.sizes == (2, 3, 3, 2)
    assert names_of(taxonomy, taxonomy.candidates(3))[1] == ROWS[0]
    assert names_of(taxonomy, taxonomy.candidates(2))[2] == ("Lepidoptera", None, "Orphanata", None)
    assert not taxonomy.conflicts


def test_candidates_are_cut_at_their_rank() -> None:
    taxonomy = Taxonomy.build(columns(ROWS))
    for rank in range(len(RANKS)):
        candidates = taxonomy.candidates(rank)
        assert candidates.dtype == np.int64
        assert (candidates[:, rank] == np.arange(taxonomy.sizes[rank])).all()
        assert (candidates[:, rank + 1 :] == -1).all()


def test_leaves_are_the_taxa_without_descendants() -> None:
    taxonomy = Taxonomy.build(columns(ROWS))
    assert set(names_of(taxonomy, taxonomy.leaves())) == {
        ("Diptera", "Muscidae", "Musca", "Musca domestica"),
        ("Lepidoptera", "Noctuidae", "Abrostola", "Abrostola triplasia"),
        ("Diptera", "Sciaridae", None, None),
        ("Lepidoptera", None, "Orphanata", None),
    }


def test_encode_keeps_holes_and_places_specimens_without_an_order() -> None:
    taxonomy = Taxonomy.build(columns(ROWS))
    assert names_of(taxonomy, taxonomy.encode(columns(ROWS))) == ROWS
    assert taxonomy.encode(columns([("Diptera", "Unheardidae", "Musca", "")])).tolist() == [[0, -1, 1, -1]]


def test_one_name_in_two_orders_is_two_taxa() -> None:
    rows: Sequence[Row] = [("Diptera", "F1", "Same", None)] * 3 + [("Coleoptera", "F2", "Same", None)]
    taxonomy = Taxonomy.build(columns(rows))
    assert taxonomy.names[2] == ("Same", "Same")
    assert names_of(taxonomy, taxonomy.candidates(2)) == [("Coleoptera", "F2", "Same", None), rows[0]]
    (conflict,) = taxonomy.conflicts
    assert (conflict.kind, conflict.name, conflict.counts) == ("homonym", "Same", (("Diptera", 3), ("Coleoptera", 1)))
    # the family tells the order where it is missing; the name alone does not
    labels = taxonomy.encode(columns([(None, "F2", "Same", None), (None, None, "Same", None)]))
    assert labels[:, 2].tolist() == [0, -1]


def test_ambiguous_names_are_reported() -> None:
    taxonomy = Taxonomy.build(columns([("A", None, "G", None), ("B", None, "G", None), (None, None, "G", None)]))
    assert [conflict.kind for conflict in taxonomy.conflicts] == ["homonym", "ambiguous"]
    assert taxonomy.sizes == (2, 0, 2, 0)


def test_one_name_under_two_parents_takes_the_majority() -> None:
    rows: Sequence[Row] = [("Diptera", "F1", "G", "s")] * 2 + [("Diptera", "F2", "G", "s")] * 3
    taxonomy = Taxonomy.build(columns(rows))
    assert taxonomy.sizes == (1, 2, 1, 1)
    assert taxonomy.lineage_names(taxonomy.candidates(3)[0]) == ("Diptera", "F2", "G", "s")
    (conflict,) = taxonomy.conflicts
    assert (conflict.kind, conflict.rank, conflict.chosen) == ("parents", "genus", "F2")
    assert conflict.counts == (("F2", 3), ("F1", 2))
    assert names_of(taxonomy, taxonomy.encode(columns(rows)))[0] == rows[0], "labels stay as given"


def test_missing_values_and_kinds_of_columns() -> None:
    rows = [*ROWS, ("", "", "", "")]
    wanted = Taxonomy.build(columns(ROWS))
    frame = pd.DataFrame(columns(rows))
    arrays: Any = {k: np.array(v, object) for k, v in frame.items()}
    for given_columns in (frame, pa.Table.from_pandas(frame), arrays):
        assert Taxonomy.build({rank: given_columns[rank] for rank in RANKS}) == wanted
    assert Taxonomy.build({rank: [] for rank in RANKS}).leaves().shape == (0, 4)
    assert Taxonomy.build({rank: [None] for rank in RANKS}).encode({rank: [None] for rank in RANKS}).tolist() == [
        [-1] * 4
    ]


def test_file_round_trip_and_fingerprint(tmp_path: Path) -> None:
    taxonomy = Taxonomy.build(columns([*ROWS, ("Diptera", "Elsewhere", "Musca", None)]))
    taxonomy.save(tmp_path / "taxonomy.json")
    loaded = Taxonomy.load(tmp_path / "taxonomy.json")
    assert loaded == taxonomy and loaded.conflicts == taxonomy.conflicts and len(taxonomy.conflicts) == 1
    assert (loaded.encode(columns(ROWS)) == taxonomy.encode(columns(ROWS))).all()
    assert Taxonomy.build(columns(ROWS[:3])).fingerprint != taxonomy.fingerprint


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"without \['species'\]"):
        Taxonomy.build({rank: [] for rank in RANKS[:3]})
    value = Taxonomy.build(columns(ROWS)).to_json()
    with pytest.raises(ValueError, match="format version: got 99, allowed: 1"):
        Taxonomy.from_json({**value, "format_version": 99})
    with pytest.raises(ValueError, match="taxonomy file: got"):
        Taxonomy.load(tmp_path / "missing.json")


name = st.one_of(st.none(), st.sampled_from("ABCD"))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(name, name, name, name), max_size=30), st.randoms(use_true_random=False))
@pytest.mark.middle
def test_invariants_for_any_labels(rows: Sequence[Row], shuffler: random.Random) -> None:
    taxonomy = Taxonomy.build(columns(rows))
    labels = taxonomy.encode(columns(rows))
    for row, label in zip(rows, labels, strict=True):
        for rank in range(len(RANKS)):
            assert label[rank] < 0 or taxonomy.names[rank][label[rank]] == row[rank]
            assert label[rank] >= 0 or row[rank] is None or row[0] is None, "only names without an order get lost"
    for rank in range(len(RANKS)):
        for lineage in taxonomy.candidates(rank):
            for coarser in range(rank):
                if lineage[coarser] >= 0:  # an ancestor's own lineage is the start of its descendants'
                    own = taxonomy.candidates(coarser)[lineage[coarser]][: coarser + 1]
                    assert (lineage[: coarser + 1] == own).all()
    used = {(r, x) for row in taxonomy.leaves() for r, x in enumerate(row) if x >= 0}
    assert used == {(r, x) for r in range(len(RANKS)) for x in range(taxonomy.sizes[r])}, "every taxon is above a leaf"
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    assert Taxonomy.build(columns(shuffled)) == taxonomy
    assert Taxonomy.from_json(taxonomy.to_json()) == taxonomy
