"""Rules that judge answers as they stand in a table: thresholds, a checklist, groups of species, provisional taxa.

They read what the model or the library said (the columns of the ranks, `candidates`) and write `name`, `rank`,
`probability` and columns of their own, so that a stored result can be judged again, and again otherwise.

A checklist is a prior. Of the likeliest species those that are not on it count `weight` times; what is left to species
that are not among them keeps its weight, since an unknown species may occur anywhere. A group names several species
that count as one taxon: where none of them reaches the threshold alone, but all together do, the answer is the group.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import UserError
from engine.specimens.taxonomy import RANKS
from serve.answers.answer import RankAnswer
from serve.bulk.columns import COLUMNS, GROUP, candidates_of
from serve.bulk.name_files import read_checklist, read_groups
from serve.bulk.provisional import Provisional, provisional_taxa

JUDGED = ("name", "rank", "probability", "stopped", "why")
READ = ("error", *JUDGED, *RANKS, *(f"{rank}_probability" for rank in RANKS), "candidates", "consensus_names")
_SPECIES = RANKS[-1]
_TAXA = ("provisional", "provisional_size", "provisional_nearest", "provisional_identity")
_OWN = ("group", "group_probability", "consensus_group", "on_checklist")
_LEAST = 1e-6  # probability that a checklist must leave
CLUSTER, MAX_CLUSTER = 0.02, 0.1  # as the consensus; of 250 species of bold's val 90% become exactly one taxon
_KINDS = {column.name: column.kind for column in COLUMNS}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How answers are judged."""

    thresholds: Mapping[str, float]  # rank -> probability that an answer there needs
    groups: Mapping[str, str] = field(default_factory=dict)  # species -> its group
    checklist: frozenset[str] | None = None  # names of taxa of any rank; None = no list
    weight: float = 0.0  # of a species that is not on the list
    distance: float = CLUSTER  # between barcodes of one provisional taxon, share of nucleotides
    anew: bool = False  # the thresholds are others than those of the answers

    def settings(self) -> dict[str, Any]:
        """Return JSON values of what was chosen."""
        listed = None if self.checklist is None else sorted(self.checklist)
        chosen = {"groups": dict(self.groups), "checklist": listed, "weight": self.weight if listed else None}
        return {name: value for name, value in chosen.items() if value} | {"cluster": self.distance}

    def judged(self, table: pa.Table) -> pa.Table:
        """Return rows with the answers that the rules give."""
        if not (self.anew or self.groups or self.checklist is not None):
            return table
        rows = [self._judged(row) for row in table.select(READ).to_pylist()]
        for name in (*JUDGED, *_OWN):
            table = with_column(table, name, [row.get(name) for row in rows])
        return table

    def _judged(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["error"]:
            return row
        candidates = candidates_of(row["candidates"])
        lineage = {rank: (row[rank], row[f"{rank}_probability"]) for rank in RANKS}
        row["consensus_group"] = self._shared_group(row["consensus_names"])
        if self.checklist is not None:
            row["on_checklist"] = self._is_listed([row[rank] for rank in RANKS])
            lineage, candidates = self._with_prior(lineage, candidates)
        row |= self._answer(lineage, row["stopped"] == "not_coi")
        return self._grouped(row, candidates) if self.groups else row

    def _answer(self, lineage: Mapping[str, tuple[str | None, float | None]], refused: bool) -> dict[str, Any]:
        """Return name, rank, probability, stopped and why of a lineage."""
        from serve.answers.compose import stop_of  # torch: --help does not wait for it

        ranks = []
        for rank, (name, probability) in lineage.items():
            reached = name is not None and probability is not None and probability >= self.thresholds[rank]
            ranks.append(RankAnswer(rank, name, probability, reached, ()))
        answer = None if refused else next((one for one in reversed(ranks) if one.reached), None)
        values = (answer.name, answer.rank, answer.probability) if answer else (None, None, None)
        return dict(zip(JUDGED, (*values, *stop_of(ranks, answer, self.thresholds, refused)), strict=True))

    def _is_listed(self, names: Sequence[str | None]) -> bool:
        return any(name in (self.checklist or ()) for name in names if name)

    def _with_prior(
        self,
        lineage: Mapping[str, tuple[str | None, float | None]],
        candidates: Sequence[tuple[tuple[str, ...], float]],
    ) -> tuple[dict[str, tuple[str | None, float | None]], list[tuple[tuple[str, ...], float]]]:
        """Return lineage and candidates after the checklist; taxa off the lineage have what their candidates have."""
        weighed = [(names, share * (1.0 if self._is_listed(names) else self.weight)) for names, share in candidates]
        lost = [(names, share - after[1]) for (names, share), after in zip(candidates, weighed, strict=True)]
        whole = 1.0 - sum(share for _, share in lost)
        if whole < _LEAST:
            return dict.fromkeys(RANKS, (None, None)), []
        found: dict[str, tuple[str | None, float | None]] = {}
        chosen: tuple[str, ...] = ()
        for place, rank in enumerate(RANKS):
            shares: dict[str, float] = {}
            for names, share in weighed:
                if names[place] and tuple(names[:place]) == chosen:
                    shares[names[place]] = shares.get(names[place], 0.0) + share
            name, before = lineage[rank]
            if (
                name is not None
                and before is not None
                and chosen == tuple(lineage[above][0] for above in RANKS[:place])
            ):
                shares[name] = before - sum(share for names, share in lost if names[place] == name)
            best = max(shares, key=lambda one: (shares[one], one), default=None)
            found[rank] = (None, None) if best is None else (best, min(1.0, max(0.0, shares[best] / whole)))
            chosen = (*chosen, best or "")
        return found, [(names, share / whole) for names, share in weighed]

    def _grouped(self, row: dict[str, Any], candidates: Sequence[tuple[Sequence[str], float]]) -> dict[str, Any]:
        shares: dict[str, list[tuple[str, float]]] = {}
        for names, share in candidates:
            if (group := self.groups.get(names[-1])) is not None:
                shares.setdefault(group, []).append((names[-1], share))
        if not shares:
            return row
        group = max(shares, key=lambda one: (sum(share for _, share in shares[one]), one))
        whole = min(1.0, sum(share for _, share in shares[group]))
        row |= {"group": group, "group_probability": whole}
        if row["rank"] == _SPECIES or row["stopped"] == "not_coi" or whole < self.thresholds[_SPECIES]:
            return row
        members = ", ".join(f"{name} {share:.3f}" for name, share in shares[group])
        why = f"{group} has {whole:.3f}, at or above the threshold {self.thresholds[_SPECIES]:g}: {members}"
        return row | {"name": group, "rank": GROUP, "probability": whole, "stopped": GROUP, "why": why}

    def _shared_group(self, cell: str | None) -> str | None:
        """Return the group of all species of a consensus, None where they have no one group."""
        names = [one.rpartition(" (")[0] for one in (cell or "").split(" | ") if one]
        found = {self.groups.get(name) for name in names}
        return found.pop() if len(found) == 1 else None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `rules_of` reads."""
    add = parser.add_argument
    add("--groups", type=Path, metavar="FILE", help="species that count as one taxon, lines of GROUP: species, species")
    add(
        "--checklist",
        type=Path,
        metavar="FILE",
        help="names, one a line, or GBIF's species list: species that are not on it count --soft times",
    )
    add("--soft", type=float, metavar="W", help="0..1, weight of species that are not on the checklist (default: 0)")
    add(
        "--cluster",
        type=float,
        default=CLUSTER,
        metavar="D",
        help="distance by which records of unknown species become provisional taxa (default: %(default)s)",
    )


def rules_of(arguments: argparse.Namespace, thresholds: Mapping[str, float], anew: bool = False) -> Rules:
    """Return the rules that a command line asks for. Raises UserError for what is out of range or cannot be read."""
    soft, distance = arguments.soft, arguments.cluster
    if soft is not None and (arguments.checklist is None or not 0 <= soft <= 1):
        raise UserError("--soft", f"{soft} and {arguments.checklist or 'no checklist'}", "0..1, with a checklist")
    if not 0 <= distance <= MAX_CLUSTER:
        raise UserError("--cluster", distance, f"0..{MAX_CLUSTER}")
    for path in (arguments.groups, arguments.checklist):
        if path is not None and not path.is_file():
            raise UserError("file of names", path, "a file that exists")
    return Rules(
        thresholds=thresholds,
        groups=read_groups(arguments.groups) if arguments.groups else {},
        checklist=frozenset(read_checklist(arguments.checklist)) if arguments.checklist else None,
        weight=soft or 0.0,
        distance=distance,
        anew=anew,
    )


def with_column(table: pa.Table, name: str, values: Sequence[Any]) -> pa.Table:
    """Return a table with a column of ours put in, or behind the others where it had none of that name."""
    column = pa.array(values, _KINDS[name])
    if name not in table.column_names:
        return table.append_column(name, column)
    return table.set_column(table.column_names.index(name), name, column)


def applied(tables: Callable[[], Iterator[pa.Table]], rules: Rules) -> Iterator[pa.Table]:
    """Yield tables with the answers that rules give; `tables` opens them anew each time it is called.

    Only the barcodes of records that are flagged as of an unknown species are held in memory.
    """
    taxa = provisional_taxa((rules.judged(_flagged(table)) for table in tables()), rules.distance)
    for table in tables():
        yield _named(rules.judged(table), taxa)


def _flagged(table: pa.Table) -> pa.Table:
    there = pc.and_(table["novel"], pc.is_valid(table["barcode"]))
    return table.filter(pc.and_(there, pc.not_equal(table["stopped"], "not_coi")))


def _named(table: pa.Table, taxa: Mapping[str, Provisional]) -> pa.Table:
    """Return rows with their provisional taxa."""
    if not taxa and "provisional" in table.column_names and table["provisional"].null_count == len(table):
        return table
    rows = table.select(["novel", "barcode", "stopped"]).to_pylist()
    found = [taxa.get(row["barcode"]) if row["novel"] and row["stopped"] != "not_coi" else None for row in rows]
    for name, part in zip(_TAXA, ("name", "size", "nearest", "identity"), strict=True):
        table = with_column(table, name, [None if one is None else getattr(one, part) for one in found])
    return table
