"""Taxa and their lineages, built from the labels of specimens.

A taxon is (rank, name) within an order: the same name in two orders is two taxa (a homonym), the same name under two
parents inside one order is one taxon whose parent is the majority's (a conflict). Both are reported. Labels of a
specimen may have holes (a genus without a family); they stay as given, only the taxonomy's lineages are completed.

Legend: N specimens, R = 4 ranks, C taxa of one rank, id = position of a taxon among those of its rank, -1 = unknown.
"""

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine.errors import UserError

RANKS = ("order", "family", "genus", "species")
FORMAT_VERSION = 1

Names = tuple[str | None, ...]  # one name per rank, None = unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conflict:
    """A name whose place is not the same in all specimens.

    kind "parents": one taxon under several parents of one order; `chosen` is the majority's (a tie: the first).
    kind "homonym": one name in several orders, kept as several taxa; nothing is chosen.
    kind "ambiguous": specimens without an order carry a name that several orders have; their label is unknown (-1).
    """

    kind: str
    rank: str
    name: str
    counts: tuple[tuple[str, int], ...]  # (parent or order, specimens), most frequent first
    chosen: str | None = None

    def __str__(self) -> str:
        places = ", ".join(f"{name} ({count})" for name, count in self.counts)
        if self.kind == "parents":
            return f"{self.rank} {self.name} stands under several parents: {places}; taken: {self.chosen}"
        if self.kind == "homonym":
            return f"{self.rank} {self.name} is a name in several orders: {places}; kept as different taxa"
        return f"{self.rank} {self.name} without an order is ambiguous: {places}; taken as unknown"


@dataclasses.dataclass(frozen=True, eq=False)
class Taxonomy:
    """All taxa known to a model, per rank, ids in the order of (name, order's name)."""

    names: tuple[tuple[str, ...], ...]  # per rank: display name of each taxon
    lineages: tuple[np.ndarray, ...]  # per rank r: int64 [C, R]; -1 for unknown ancestors and below r
    conflicts: tuple[Conflict, ...] = ()

    @classmethod
    def build(cls, columns: Mapping[str, Sequence[str | None]]) -> "Taxonomy":
        """Build from one label column per rank (lists, numpy, pandas or Arrow; None, NaN and "" = unknown).

        The work per specimen is vectorised; Python sees only the distinct combinations of four names. The result does
        not depend on the order of the specimens. Raises ValueError when a rank's column is missing.
        """
        combinations, inverse = _combinations(columns)
        counts = np.bincount(inverse, minlength=len(combinations)).tolist()
        order_of_name = _orders_by_name(combinations)
        taxa: list[set[tuple[str, str]]] = [set() for _ in RANKS]  # per rank: (name, order or "")
        for names in combinations:
            scope = _scope(names, order_of_name)
            for rank, name in enumerate(names):
                if name and (scope or len(order_of_name[rank].get(name, ())) < 2):
                    taxa[rank].add((name, scope))
        resolver = _Resolver(tuple(tuple(sorted(known)) for known in taxa))
        labels = [resolver.resolve(names) for names in combinations]
        lineages, conflicts = _lineages(resolver, labels, counts)
        conflicts += _homonyms(resolver, labels, counts) + _ambiguous(resolver, combinations, labels, counts)
        display = tuple(tuple(name for name, _ in known) for known in resolver.taxa)
        return cls(display, tuple(lineages), tuple(conflicts))

    def encode(self, columns: Mapping[str, Sequence[str | None]]) -> np.ndarray:
        """Return labels int64 [N, R]; -1 = missing or unknown to the taxonomy. Holes are not filled.

        A specimen without an order is placed by the coarsest of its names that stands in one order only; a name that
        stays ambiguous is -1.
        """
        combinations, inverse = _combinations(columns)
        labels = [self._resolver.resolve(names) for names in combinations]
        return np.asarray(labels, dtype=np.int64).reshape(-1, len(RANKS))[inverse]

    def lineage_names(self, labels_row: Sequence[int]) -> Names:
        """Return the name at each rank of one row of labels [R], None where it is -1."""
        return tuple(self.names[rank][label] if label >= 0 else None for rank, label in enumerate(labels_row))

    def candidates(self, rank: int) -> np.ndarray:
        """Return int64 [C, R]: the lineage, cut at `rank`, of every taxon of that rank, in the order of ids."""
        return self.lineages[rank]

    def leaves(self) -> np.ndarray:
        """Return int64 [number of leaves, R]: the lineages of all taxa that have no known descendant, coarse first."""
        rows = []
        for rank, lineage in enumerate(self.lineages):
            is_leaf = np.ones(len(lineage), dtype=bool)
            for finer in self.lineages[rank + 1 :]:
                is_leaf[finer[finer[:, rank] >= 0, rank]] = False
            rows.append(lineage[is_leaf])
        return np.concatenate(rows)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of taxa per rank."""
        return tuple(len(names) for names in self.names)

    def to_json(self) -> dict[str, Any]:
        """Return the taxonomy as JSON values; `from_json` is the inverse."""
        return {
            "format_version": FORMAT_VERSION,
            "ranks": list(RANKS),
            "names": [list(names) for names in self.names],
            "lineages": [lineage.tolist() for lineage in self.lineages],
            "conflicts": [dataclasses.asdict(conflict) for conflict in self.conflicts],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Taxonomy":
        """Read what `to_json` wrote. Raises ValueError on another format version or other ranks."""
        if value.get("format_version") != FORMAT_VERSION:
            raise UserError("taxonomy format version", repr(value.get("format_version")), FORMAT_VERSION)
        if tuple(value["ranks"]) != RANKS:
            raise UserError("taxonomy ranks", value["ranks"], list(RANKS))
        conflicts = [
            Conflict(**{**entry, "counts": tuple((name, count) for name, count in entry["counts"])})
            for entry in value["conflicts"]
        ]
        return cls(
            tuple(tuple(names) for names in value["names"]),
            tuple(np.asarray(rows, dtype=np.int64).reshape(-1, len(RANKS)) for rows in value["lineages"]),
            tuple(conflicts),
        )

    def save(self, path: Path | str) -> None:
        """Write the taxonomy as one JSON file."""
        Path(path).write_text(json.dumps(self.to_json(), ensure_ascii=False, sort_keys=True), encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> "Taxonomy":
        """Read a file written by `save`. Raises ValueError when it is none."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except UserError:
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError("taxonomy file", f"{path} ({error!r:.200})", "a file written by Taxonomy.save") from None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the canonical JSON of names and lineages: equal = the same ids mean the same taxa."""
        value = self.to_json()
        del value["conflicts"]  # how often a conflict was seen changes nothing about the ids
        return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def _resolver(self) -> "_Resolver":
        orders = self.names[0]
        return _Resolver(
            tuple(
                tuple((name, orders[row[0]] if row[0] >= 0 else "") for name, row in zip(names, rows, strict=True))
                for names, rows in zip(self.names, self.lineages, strict=True)
            )
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Taxonomy) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


class _Resolver:
    """Finds the taxa of four names. `taxa`: per rank (name, order or "") in the order of ids."""

    def __init__(self, taxa: tuple[tuple[tuple[str, str], ...], ...]) -> None:
        self.taxa = taxa
        self.ids = [{taxon: position for position, taxon in enumerate(known)} for known in taxa]
        self.orders_of: list[dict[str, set[str]]] = [defaultdict(set) for _ in taxa]
        for rank, known in enumerate(taxa):
            for name, order in known:
                if order:
                    self.orders_of[rank][name].add(order)

    def resolve(self, names: Names) -> tuple[int, ...]:
        """Return the id per rank, -1 where there is no name or no single taxon of that name."""
        scope = _scope(names, self.orders_of)
        return tuple(
            -1 if not name else self.ids[rank].get((name, scope), self.ids[rank].get((name, ""), -1))
            for rank, name in enumerate(names)
        )


def _scope(names: Names, orders_of: Sequence[Mapping[str, set[str]]]) -> str:
    """Return the order of four names: as given, else of the coarsest name found in one order only, else ""."""
    if names[0]:
        return names[0]
    for rank, name in enumerate(names):
        orders = orders_of[rank].get(name, ()) if name else ()
        if len(orders) == 1:
            return next(iter(orders))
    return ""


def _combinations(columns: Mapping[str, Sequence[str | None]]) -> tuple[list[Names], np.ndarray]:
    """Return the distinct combinations of four names, and which one each specimen has (int64 [N])."""
    missing = [rank for rank in RANKS if rank not in columns]
    if missing:
        raise UserError("label columns", f"{sorted(columns)} without {missing}", list(RANKS))
    codes, names = zip(*(_codes(columns[rank]) for rank in RANKS), strict=True)
    combined = codes[0]
    for rank in range(1, len(RANKS)):  # two at a time, so that the product of sizes stays far below 2^63
        _, combined = np.unique(combined * (len(names[rank]) + 1) + codes[rank], return_inverse=True)
    _, first, inverse = np.unique(combined, return_index=True, return_inverse=True)
    rows = np.stack([code[first] for code in codes], axis=1).tolist()
    return [tuple(names[rank][code] for rank, code in enumerate(row)) for row in rows], inverse


def _codes(column: Sequence[str | None]) -> tuple[np.ndarray, list[str | None]]:
    """Return int64 [N] codes and the name of each code; the last name is None, for missing ones."""
    if not isinstance(column, pa.Array | pa.ChunkedArray):
        column = pa.array(column, type=pa.string(), from_pandas=True)
    if not len(column):
        return np.empty(0, dtype=np.int64), [None]
    chunked = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    encoded = chunked.dictionary_encode().combine_chunks()
    names: list[str | None] = [name or None for name in encoded.dictionary.to_pylist()]
    codes = encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False).astype(np.int64)
    if None in names:  # an empty string is as missing as null
        codes[codes == names.index(None)] = len(names)
    return codes, [*names, None]


def _orders_by_name(combinations: list[Names]) -> list[dict[str, set[str]]]:
    orders_of: list[dict[str, set[str]]] = [defaultdict(set) for _ in RANKS]
    for names in combinations:
        if names[0]:
            for rank, name in enumerate(names):
                if name:
                    orders_of[rank][name].add(names[0])
    return orders_of


def _lineages(
    resolver: _Resolver, labels: list[tuple[int, ...]], counts: list[int]
) -> tuple[list[np.ndarray], list[Conflict]]:
    """Complete the lineage of each taxon by that of its parent: the majority at the nearest rank where one is known."""
    orders = {name: position for position, (name, _) in enumerate(resolver.taxa[0])}
    lineages: list[np.ndarray] = []
    conflicts: list[Conflict] = []
    for rank, known in enumerate(resolver.taxa):
        rows = np.full((len(known), len(RANKS)), -1, dtype=np.int64)
        rows[:, 0] = [orders.get(order, -1) for _, order in known]
        rows[:, rank] = np.arange(len(known))
        placed = np.zeros(len(known), dtype=bool)
        for coarser in range(rank - 1, 0, -1):
            for taxon, parents in _count_parents(labels, counts, rank, coarser).items():
                ranked = sorted(parents.items(), key=lambda item: (-item[1], item[0]))
                named = tuple((resolver.taxa[coarser][parent][0], count) for parent, count in ranked)
                if len(ranked) > 1:
                    name = known[taxon][0]
                    conflicts.append(
                        Conflict(kind="parents", rank=RANKS[rank], name=name, counts=named, chosen=named[0][0])
                    )
                if not placed[taxon]:
                    placed[taxon] = True
                    rows[taxon, : coarser + 1] = lineages[coarser][ranked[0][0], : coarser + 1]
        lineages.append(rows)
    return lineages, conflicts


def _count_parents(
    labels: list[tuple[int, ...]], counts: list[int], rank: int, coarser: int
) -> dict[int, Counter[int]]:
    """Count specimens per (taxon at `rank`, taxon at `coarser`), where no rank between the two is known."""
    parents: dict[int, Counter[int]] = defaultdict(Counter)
    for row, count in zip(labels, counts, strict=True):
        if row[rank] >= 0 and row[coarser] >= 0 and all(between < 0 for between in row[coarser + 1 : rank]):
            parents[row[rank]][row[coarser]] += count
    return parents


def _homonyms(resolver: _Resolver, labels: list[tuple[int, ...]], counts: list[int]) -> list[Conflict]:
    conflicts = []
    for rank in range(1, len(RANKS)):
        specimens: Counter[int] = Counter()
        for row, count in zip(labels, counts, strict=True):
            specimens[row[rank]] += count
        for name, orders in sorted(resolver.orders_of[rank].items()):
            if len(orders) > 1:
                ranked = sorted(
                    ((o, specimens[resolver.ids[rank][name, o]]) for o in orders), key=lambda p: (-p[1], p[0])
                )
                conflicts.append(Conflict(kind="homonym", rank=RANKS[rank], name=name, counts=tuple(ranked)))
    return conflicts


def _ambiguous(
    resolver: _Resolver, combinations: list[Names], labels: list[tuple[int, ...]], counts: list[int]
) -> list[Conflict]:
    lost: Counter[tuple[int, str]] = Counter()
    for names, row, count in zip(combinations, labels, counts, strict=True):
        for rank, name in enumerate(names):
            if name and row[rank] < 0:
                lost[rank, name] += count
    return [
        Conflict(
            kind="ambiguous",
            rank=RANKS[rank],
            name=name,
            counts=tuple((order, count) for order in sorted(resolver.orders_of[rank][name])),
        )
        for (rank, name), count in sorted(lost.items())
    ]
