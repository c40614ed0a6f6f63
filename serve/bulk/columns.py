"""Answers as a table: one row a record, the columns documented here, also under Darwin Core's and BOLD's names.

In the styles `dwc` (Darwin Core terms, https://dwc.tdwg.org/terms) and `bold` (BOLD's data packages, BCDM) the columns
of the ranks hold the identification alone, so they are empty below the rank where the answer stops; `own` names the
likeliest lineage down to species, each name with its probability. What has no term there keeps our name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.specimens.taxonomy import RANKS
from serve.answers.answer import Answer, Neighbour, QueryError, Tie

STYLES = ("own", "dwc", "bold")
GROUP = "group"  # rank of an answer that names a group of species
TOP = 5  # species with their probabilities, of which rules read that are applied afterwards (`serve.bulk.rules`)
_LEAST = 5e-7  # probability of a candidate: less shows as 0
_TEXT, _NUMBER, _WHOLE, _YES = pa.string(), pa.float64(), pa.int64(), pa.bool_()


@dataclass(frozen=True)
class Column:
    """A column of a result."""

    name: str
    kind: pa.DataType
    meaning: str
    dwc: str = ""  # Darwin Core's term; "" = our name
    bold: str = ""  # BOLD's

    def named(self, style: str) -> str:
        """Return the column's name in a style."""
        return {"dwc": self.dwc, "bold": self.bold}.get(style) or self.name


def _rank_columns() -> list[Column]:
    found = []
    for rank in RANKS:
        found.append(Column(rank, _TEXT, f"{rank} of the likeliest lineage", "specificEpithet" * (rank == "species")))
        found.append(Column(f"{rank}_probability", _NUMBER, f"that this {rank} is right"))
    return found


def _unknown_columns() -> list[Column]:
    found = [Column(f"unknown_{RANKS[0]}", _NUMBER, f"that it is of no {RANKS[0]} that could be answered")]
    for above, rank in pairwise(RANKS):
        found.append(
            Column(f"unknown_{rank}_of", _TEXT, f"the {above} answered, where a {rank} without a name may lie")
        )
        found.append(Column(f"unknown_{rank}", _NUMBER, f"that it is of such a {rank}: known and unknown add up"))
    return found


COLUMNS = (
    Column("key", _TEXT, "the record's own identifier, as the input has it", "occurrenceID", "processid"),
    Column("error", _TEXT, "why there is no answer: what was wrong, and what is allowed; else empty"),
    Column(
        "name",
        _TEXT,
        "the answer: the taxon of the deepest rank whose probability reaches the threshold",
        "scientificName",
        "identification",
    ),
    Column(
        "rank",
        _TEXT,
        "the answer's rank, group of a group; empty where not even the order is sure enough",
        "taxonRank",
        "identification_rank",
    ),
    Column("probability", _NUMBER, "that the answer is right"),
    *_rank_columns(),
    Column("stopped", _TEXT, "why the answer ends there: deepest, threshold, no_taxon, not_coi or group"),
    Column("why", _TEXT, "the same as a sentence", "identificationRemarks", "notes"),
    Column(
        "candidates", _TEXT, "the likeliest species with probabilities: order;family;genus;species=P | ...; up to 5"
    ),
    Column("group", _TEXT, "with --groups: the group that has most of the probability of the candidates"),
    Column("group_probability", _NUMBER, "that the species is one of its members"),
    Column("on_checklist", _YES, "with a checklist: a taxon of the likeliest lineage is on it"),
    Column("ties", _TEXT, "taxa that the evidence does not tell apart, as rank: A | B; ..."),
    Column("novelty", _NUMBER, "that the species is none that the model knows"),
    Column("novel", _YES, "that is likely"),
    *_unknown_columns(),
    Column("disagreement", _NUMBER, "that photo and barcode show different specimens; empty unless both were given"),
    Column("disagrees", _YES, "that is likely"),
    Column("asked_with", _TEXT, "image, dna or fused (both)", "", "identification_method"),
    Column("image_share", _NUMBER, "the photo's part in the weights of photo, barcode and library, 0 to 1"),
    Column("barcode", _TEXT, "the cleaned barcode on its coding strand", "", "nuc"),
    Column("barcode_length", _WHOLE, "nucleotides of the cleaned barcode", "", "nuc_basecount"),
    Column("barcode_strand", _WHOLE, "1 = given on the coding strand, -1 = on the other one and turned"),
    Column("barcode_is_coi", _YES, "it is COI by its peptides; empty = too short to tell, or no barcode"),
    Column("barcode_problems", _TEXT, "what a look at the barcode found, names separated by |"),
    Column("barcode_primers", _TEXT, "primers left on its ends, the name of one of a kind, separated by |"),
    Column(
        "likely_numt", _YES, "its reading frame breaks (stop codon, shift), primers aside; empty = not to be judged"
    ),
    Column("contaminant", _TEXT, "with --contaminants: what it is there, if that is at least as near as any reference"),
    Column("contaminant_identity", _NUMBER, "share of aligned nucleotides that agree with it, 0 to 1"),
    Column("nearest_key", _TEXT, "the nearest reference of the library"),
    Column("nearest_name", _TEXT, "its deepest known taxon"),
    Column("nearest_identity", _NUMBER, "share of aligned nucleotides that agree with it, 0 to 1"),
    Column("nearest_overlap", _WHOLE, "nucleotides aligned with it"),
    Column("nearest_bin", _TEXT, "its BIN"),
    Column("nearest_country", _TEXT, "where it was found"),
    Column(
        "consensus_name", _TEXT, "the lowest taxon that all references within --within of the barcode have in common"
    ),
    Column("consensus_rank", _TEXT, "its rank; empty where they have none in common, or none is so near"),
    Column("consensus_references", _WHOLE, "references within that distance, of those that were compared"),
    Column("consensus_species", _WHOLE, "how many species they are of"),
    Column("consensus_conflict", _YES, "they disagree at some rank"),
    Column("consensus_names", _TEXT, "the species, the commonest first, with their references: A (12) | B (1)"),
    Column("consensus_group", _TEXT, "with --groups: the group that all these species belong to"),
    Column("provisional", _TEXT, "of records of an unknown species (novel): those of like barcodes together"),
    Column("provisional_size", _WHOLE, "records in that provisional taxon"),
    Column("provisional_nearest", _TEXT, "the known taxon that is nearest to one of them"),
    Column("provisional_identity", _NUMBER, "share of aligned nucleotides that agree with it, 0 to 1"),
    Column("calibrated", _YES, "probabilities are calibrated; else they are the softmax's own"),
    Column("model", _TEXT, "model that answered: name, version, checksum", "identifiedBy", "identified_by"),
    Column("library", _TEXT, "reference library: version, checksum; empty = none", "identificationReferences", ""),
)
_OF_RANKS = {column.name for column in _rank_columns()}


def schema(style: str = "own") -> pa.Schema:
    """Return the columns of a result in a style."""
    return pa.schema([(column.named(style), column.kind) for column in COLUMNS])


def table_of(answers: Sequence[Answer | QueryError]) -> pa.Table:
    """Return answers as rows of our own style, in their order."""
    rows = [_error_row(one) if isinstance(one, QueryError) else _row(one) for one in answers]
    return pa.table({column.name: pa.array([row.get(column.name) for row in rows], column.kind) for column in COLUMNS})


def errors_of(keys: Sequence[str], problems: Sequence[str]) -> pa.Table:
    """Return rows without an answer."""
    given = {"key": keys, "error": problems}
    return pa.table(
        {
            column.name: pa.array(given[column.name], column.kind)
            if column.name in given
            else pa.nulls(len(keys), column.kind)
            for column in COLUMNS
        }
    )


def styled(table: pa.Table, style: str) -> pa.Table:
    """Convert rows to another style."""
    if style != "own":
        ranks = pc.if_else(pc.equal(table["rank"], GROUP), RANKS[-2], table["rank"])
        place = pc.fill_null(pc.index_in(ranks, pa.array(RANKS)), -1)
        for number, rank in enumerate(RANKS):
            shown = _epithet if style == "dwc" and rank == "species" else _same
            column = pc.if_else(pc.greater_equal(place, number), shown(table[rank]), None)
            table = table.set_column(table.column_names.index(rank), rank, column)
    return table.rename_columns([column.named(style) for column in COLUMNS]).cast(schema(style))


def _same(names: pa.ChunkedArray) -> pa.ChunkedArray:
    return names


def _epithet(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the second word of a species' name; null for what is no binomial."""
    return pc.struct_field(pc.extract_regex(names, r"^\S+ (?P<epithet>\S+)"), "epithet")


def described() -> str:
    """Return the columns as lines of a help text, with their names in other styles."""
    lines = []
    for column in COLUMNS:
        terms = {"dwc": column.dwc, "bold": column.bold}
        others = ", ".join(f"{style} {term}" for style, term in terms.items() if term)
        lines.append(f"  {column.name:<20} {column.meaning}{f' ({others})' if others else ''}")
    return "\n".join(lines)


def _error_row(error: QueryError) -> dict[str, Any]:
    return {"key": error.key, "error": f"{error.what}; allowed: {error.allowed}"}


def _row(answer: Answer) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": answer.key,
        "name": answer.answer_name,
        "rank": answer.answer_rank,
        "probability": answer.answer_probability,
        "stopped": answer.stopped,
        "why": answer.why,
        "candidates": candidates_text(
            [(one.lineage, one.probability) for rank in answer.ranks if rank.rank == RANKS[-1] for one in rank.taxa]
        ),
        "ties": _ties(answer.ties),
        "novelty": answer.novelty.score,
        "novel": answer.novelty.flagged,
        **{f"unknown_{one.rank}": one.probability for one in answer.unknown},
        **{f"unknown_{one.rank}_of": one.within for one in answer.unknown},
        "asked_with": answer.asked_with,
        "image_share": answer.share.get("image", 0.0),
        "calibrated": answer.calibrated,
        "model": _identity(answer.model),
        "library": _identity(answer.model.get("library")),
    }
    for rank in answer.ranks:
        row[rank.rank], row[f"{rank.rank}_probability"] = rank.name, rank.probability
    if answer.disagreement is not None:
        row |= {"disagreement": answer.disagreement.score, "disagrees": answer.disagreement.flagged}
    if (check := answer.barcode) is not None:
        row |= {
            "barcode": check.sequence,
            "barcode_length": check.length,
            "barcode_strand": check.strand,
            "barcode_is_coi": check.is_coi,
            "barcode_problems": "|".join(check.problems) or None,
            "barcode_primers": "|".join(check.primers) or None,
            "likely_numt": check.numt,
        }
    if (near := answer.consensus) is not None:
        row |= {
            f"consensus_{name}": getattr(near, name) for name in ("name", "rank", "references", "species", "conflict")
        }
        row["consensus_names"] = " | ".join(f"{name} ({count})" for name, count in near.names.items()) or None
    return row | (_nearest(answer.evidence[0]) if answer.evidence else {})


def candidates_text(given: Sequence[tuple[Sequence[str | None], float]]) -> str | None:
    """Return lineages with their probabilities as a cell; None where there are none."""
    shown = [f"{';'.join(name or '' for name in names)}={p:.6f}" for names, p in given if p >= _LEAST]
    return " | ".join(shown) or None


def candidates_of(cell: str | None) -> list[tuple[tuple[str, ...], float]]:
    """Return what `candidates_text` wrote; ranks without a name are ""."""
    pairs = (one.rpartition("=") for one in (cell or "").split(" | ") if one)
    return [(tuple(names.split(";")), float(share)) for names, _, share in pairs]


def _ties(ties: Sequence[Tie]) -> str | None:
    return "; ".join(f"{tie.rank}: {' | '.join(tie.names)}" for tie in ties) or None


def _nearest(one: Neighbour) -> dict[str, Any]:
    return {
        "nearest_key": one.key,
        "nearest_name": one.name,
        "nearest_identity": one.identity,
        "nearest_overlap": one.overlap,
        "nearest_bin": one.bin,
        "nearest_country": one.country,
    }


def _identity(card: Mapping[str, Any] | None) -> str | None:
    """Return a model's or a library's name, version and the start of its checksum."""
    if not card:
        return None
    digest = str(card.get("weights_sha256") or card.get("checksum"))[:12]
    return " ".join(dict.fromkeys((str(card["name"]), str(card["version"]), digest)))
