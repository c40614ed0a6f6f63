"""How much the neighbours of a barcode speak against its name, rank by rank.

Near barcodes vote for the names of their specimens: those within LIMITS of a rank, each name of a barcode by at most 3
specimens, the specimen itself left out. score = votes against / (votes against + votes for + 1): with nobody near it is
0, with three votes against and none for it is 0.75. Unknown names do not vote; at species only binomials do, for an
interim name beside a binomial is no contradiction.

An exclusion is suggested from 0.75 on with ten times more votes against than for the name: where both are many, species
share barcodes and no specimen is wrong. At species and genus also only if the name has at least two specimens
elsewhere: where it has none, the species may really be that close. A wrong name that many specimens of one species
share (a whole plate) supports itself and is not found.

Legend: U different barcodes, K neighbours, M (barcode, name) combinations; a claim is such a combination.
"""

import numpy as np
import pyarrow as pa

from engine.curation import Finding, SpecimenSet
from engine.curation.neighbours import nearest
from engine.specimens.names import is_species
from engine.specimens.taxonomy import RANKS

LIMITS = {"order": 0.06, "family": 0.045, "genus": 0.03, "species": 0.01}
"""Estimated share of differing nucleotides up to which a neighbour votes at a rank."""
SUGGESTED = 0.75
LISTED = 0.5
_MOST_VOTES = 3
_MAJORITY = 10
_ELSEWHERE = 2
_MIN_LENGTH = 150  # nucleotides; a shorter barcode neither votes nor is judged


def check_suspicion(specimens: SpecimenSet) -> Finding:
    """Report specimens whose neighbours carry another name, coarsest rank first.

    `exclude` marks the suggested exclusions.
    """
    sequences, _ = specimens.oriented
    long = np.flatnonzero(np.array([len(sequence) for sequence in sequences]) >= _MIN_LENGTH)
    rows: list[dict[str, object]] = []
    seen: set[int] = set()
    if len(long) > 1:
        of_unique = np.full(len(sequences) + 1, -1)
        of_unique[long] = np.arange(len(long))
        place = of_unique[specimens.place]
        places, distances = nearest([sequences[number] for number in long.tolist()])
        places = np.concatenate([np.arange(len(long))[:, None], places], axis=1)  # itself first: its other specimens
        distances = np.concatenate([np.zeros((len(long), 1), dtype=np.float32), distances], axis=1)
        for rank in RANKS:
            codes, names = specimens.codes(rank)
            if rank == "species":
                codes = np.where(np.append(is_species(names), False)[codes], codes, -1)
            near = (places >= 0) & (distances <= LIMITS[rank])
            judged = judge(place, codes, places, near, needs_elsewhere=rank in ("genus", "species"))
            for row in np.flatnonzero(judged["score"] >= LISTED).tolist():
                if row not in seen:
                    seen.add(row)
                    rows.append(_row_of(row, rank, names, codes, judged))
        _add_nearest(rows, specimens, place, places, distances)
    where = [int(str(row.pop("row"))) for row in rows]
    species = specimens.index["species"].take(pa.array(where, pa.int64())).to_pylist()
    table = [
        {"key": key, "labelled": label, **row}
        for key, label, row in zip(specimens.keys(where), species, rows, strict=True)
    ]
    table.sort(
        key=lambda row: (not row["exclude"], RANKS.index(str(row["rank"])), -float(str(row["score"])), row["key"])
    )
    suggested = sum(bool(row["exclude"]) for row in table)
    facts = {
        "listed": len(table),
        "suggested by rank": {
            rank: sum(bool(row["exclude"]) and row["rank"] == rank for row in table) for rank in RANKS
        },
    }
    meaning = (
        "Their nearest barcodes carry another name at the rank given: a wrong name, a mixed-up sample, contamination, "
        "or species that share barcodes. Suggested exclusions are in suggested_exclusions.csv; look before you delete."
    )
    title = "Specimens whose barcode's neighbours have another name"
    return Finding("suspicion", title, suggested, "suggested exclusions", meaning, pa.Table.from_pylist(table), facts)


def _add_nearest(
    rows: list[dict[str, object]],
    specimens: SpecimenSet,
    place: np.ndarray,
    places: np.ndarray,
    distances: np.ndarray,
) -> None:
    """Name the nearest other barcode by its first specimen, for whoever looks the case up."""
    numbers, first = np.unique(place, return_index=True)
    example = np.zeros(len(places), dtype=np.int64)
    example[numbers[numbers >= 0]] = first[numbers >= 0]
    own = place[[int(str(row["row"])) for row in rows]] if rows else np.empty(0, dtype=np.int64)
    other = example[places[own, 1]]
    named = specimens.index["species"].take(pa.array(other)).to_pylist()
    for row, key, name, distance in zip(rows, specimens.keys(other), named, distances[own, 1].tolist(), strict=True):
        row |= {"nearest": key, "nearest_named": name, "nearest_distance": round(distance, 4)}
        row["length"] = len(specimens.unique[specimens.place[int(str(row["row"]))]])


def _row_of(
    row: int, rank: str, names: list[str], codes: np.ndarray, judged: dict[str, np.ndarray]
) -> dict[str, object]:
    return {
        "row": row,
        "rank": rank,
        "name": names[codes[row]],
        "neighbours_say": names[judged["other"][row]],
        "score": round(float(judged["score"][row]), 3),
        "votes_against": int(judged["against"][row]),
        "votes_for": int(judged["agree"][row]),
        "same_name_elsewhere": int(judged["elsewhere"][row]),
        "exclude": bool(judged["exclude"][row]),
    }


def judge(
    place: np.ndarray, codes: np.ndarray, places: np.ndarray, near: np.ndarray, *, needs_elsewhere: bool
) -> dict[str, np.ndarray]:
    """Count the votes on every specimen's name at one rank.

    Args:
        place: int64 [N], the barcode of each specimen, -1 = none.
        codes: int64 [N], its name, -1 = unknown.
        places: int64 [U, 1 + K], barcodes near each barcode, itself first.
        near: bool [U, 1 + K], which of them vote.
        needs_elsewhere: whether an exclusion needs specimens of that name on other barcodes.

    Returns per specimen [N]: score float64, agree, against, elsewhere (specimens of that name on no near barcode),
    other (the name most voted for besides its own, -1 = none): int64, and exclude: bool.
    """
    scale = int(codes.max(initial=0)) + 1
    rows = np.flatnonzero((place >= 0) & (codes >= 0))
    claims, claim_of_row, count = np.unique(place[rows] * scale + codes[rows], return_inverse=True, return_counts=True)
    owner, name = claims // scale, claims % scale
    start = np.searchsorted(owner, np.arange(len(places) + 1))
    voter, column = np.nonzero(near)
    target = places[voter, column]
    held = start[target + 1] - start[target]  # names on each near barcode
    ballot = np.repeat(voter, held)
    vote = np.repeat(start[target], held) + np.arange(held.sum()) - np.repeat(np.cumsum(held) - held, held)
    pair, inverse = np.unique(ballot * scale + name[vote], return_inverse=True)
    votes = np.bincount(inverse, weights=np.minimum(count[vote], _MOST_VOTES), minlength=len(pair)).astype(np.int64)
    nearby = np.bincount(inverse, weights=count[vote], minlength=len(pair)).astype(np.int64)
    total = np.bincount(pair // scale, weights=votes, minlength=len(places)).astype(np.int64)
    at = np.searchsorted(pair, claims)  # every claim votes for itself, so it is there
    against = total[owner] - votes[at]
    agree = votes[at] - np.minimum(count, _MOST_VOTES) + np.minimum(count - 1, _MOST_VOTES)
    elsewhere = np.bincount(name, weights=count, minlength=scale).astype(np.int64)[name] - nearby[at]
    score = against / (against + agree + 1)
    exclude = (score >= SUGGESTED) & (against >= _MAJORITY * agree)
    if needs_elsewhere:
        exclude &= elsewhere >= _ELSEWHERE
    result = {"score": score, "agree": agree, "against": against, "elsewhere": elsewhere, "exclude": exclude}
    result["other"] = _rival(pair // scale, pair % scale, votes, owner, name)
    defaults = {"score": 0.0, "other": -1}
    spread = {}
    for key, values in result.items():
        spread[key] = np.full(len(place), defaults.get(key, 0), dtype=values.dtype)
        spread[key][rows] = values[claim_of_row]
    return spread


def _rival(voter: np.ndarray, named: np.ndarray, votes: np.ndarray, owner: np.ndarray, name: np.ndarray) -> np.ndarray:
    """int64 [M]: the name with most votes on the claim's barcode that is not the claim's own, -1 = none."""
    order = np.lexsort((named, -votes, voter))
    voter, named = np.append(voter[order], -1), np.append(named[order], -1)
    first = np.searchsorted(voter[:-1], owner)
    first_is_own = named[first] == name
    second = np.minimum(first + 1, len(voter) - 1)
    rival = np.where(first_is_own, named[second], named[first])
    return np.where(first_is_own & (voter[second] != owner), -1, rival)
