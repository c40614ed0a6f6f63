"""Splits: the paper's closed set, and seen/unseen species with keys and queries. Pure functions of names and seed.

A row is one specimen; rows whose barcodes are the same evidence (`containment`) are one group, and a group never
crosses splits. What a group or species is given depends on a hash of (seed, its own name), not on the order of rows.

Legend: N rows, G groups, R = 4 ranks, C taxa of a rank; splits are codes, positions in SPLITS, -1 = none yet.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from engine.errors import UserError
from engine.relations.containment import containment_groups, join, related_groups, shared_stretch_groups
from engine.specimens.schema import SPLITS
from engine.specimens.taxonomy import RANKS

SCHEMES = ("closed-set", "by-specimen", "seen-unseen")
GROUPINGS = {"overlap": related_groups, "stretch": shared_stretch_groups, "containment": containment_groups}
DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)
MIN_SEEN_RECORDS = 10  # a species with fewer is never seen (CLIBD's recipe)
SEEN_SHARE = 0.8  # of the other species (CLIBD's recipe)

PRETRAIN, TRAIN, VAL, TEST, KEY_UNSEEN, VAL_UNSEEN, TEST_UNSEEN, OTHER_HELDOUT = range(len(SPLITS))
_SPECIES = RANKS.index("species")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How rows without a split get one. Raises ValueError for values that are not allowed."""

    scheme: str = "closed-set"
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS  # train, val, test, of groups
    grouping: str = "overlap"  # which barcodes are one group; by-specimen only counts with it
    seed: int = 0
    by_event: bool = False  # photos of a folder whose names differ in the last number alone are one group

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise UserError("split scheme", repr(self.scheme), ", ".join(SCHEMES))
        if self.grouping not in GROUPINGS:
            raise UserError("split grouping", repr(self.grouping), ", ".join(GROUPINGS))
        parts = self.fractions
        if len(parts) != 3 or any(not 0 <= part <= 1 for part in parts) or abs(sum(parts) - 1) > 1e-6:
            got = ",".join(map(str, parts))
            raise UserError("split fractions", got, "three of 0..1 (train, val, test) that sum to 1")
        if self.scheme == "closed-set" and parts[0] == 0:
            raise UserError("split fractions", "no train", "a train share above 0 in a closed set")


@dataclasses.dataclass(frozen=True)
class Splits:
    """What was drawn. `groups` int64 [N], `codes` int64 [N]."""

    codes: np.ndarray
    groups: np.ndarray
    crossing_given: int  # groups whose rows came with different splits: nothing here can mend that
    identical: float | None  # share of val and test barcodes that train has letter for letter; None = no such barcode
    related: float | None  # ... that are in one group with a barcode of train


def draw_splits(
    keys: Sequence[str],
    barcodes: Sequence[str],
    labels: np.ndarray,
    given: np.ndarray,
    options: SplitOptions,
    ties: Sequence[np.ndarray] = (),
) -> Splits:
    """Return the split of every row.

    Args:
        keys: [N] names of the specimens, for those without a barcode (and all of them by specimen).
        barcodes: [N] clean barcodes, "" = none.
        labels: int64 [N, R], -1 = unknown.
        given: int64 [N] splits that came with the source; they stay, and rows of their groups join them (the first in
            the order of SPLITS where they disagree).
        options: the scheme, its shares and its seed.
        ties: each int64 [N], -1 = none; rows with the same number are one group too, whatever the scheme (a burst, a
            sheet, one photo).
    """
    groups = _tied(GROUPINGS[options.grouping](barcodes), ties)
    names = [barcode or f"key {key}" for key, barcode in zip(keys, barcodes, strict=True)]
    units = groups
    if options.scheme == "by-specimen":
        units, names = _tied(np.arange(len(groups)), ties), list(keys)
    num_units = int(units.max()) + 1 if len(units) else 0
    draws = _unit_draws(units, num_units, _hashes(names, options.seed))
    fixed = np.full(num_units, len(SPLITS))
    np.minimum.at(fixed, units[given >= 0], given[given >= 0])
    fixed[fixed == len(SPLITS)] = -1
    scheme = _seen_unseen if options.scheme == "seen-unseen" else _closed_set
    codes = np.where(given >= 0, given, scheme(units, labels, fixed, draws, options)[units])
    return Splits(codes, groups, _crossing(groups, given), *found_in_train(barcodes, groups, codes))


def _tied(groups: np.ndarray, ties: Sequence[np.ndarray]) -> np.ndarray:
    """Return the groups int64 [N], joined where rows have a number of `ties` in common, numbered from 0."""
    roots = np.arange(int(groups.max(initial=-1)) + 1)
    for tie in ties:
        rows = np.flatnonzero(tie >= 0)
        _, first, number = np.unique(tie[rows], return_index=True, return_inverse=True)
        roots = join(roots, groups[rows], groups[rows[first[number]]])
    joined: np.ndarray = np.unique(roots[groups], return_inverse=True)[1] if ties else groups
    return joined


def found_in_train(barcodes: Sequence[str], groups: np.ndarray, codes: np.ndarray) -> tuple[float | None, float | None]:
    """Return the shares of the barcodes of val and test (rows with one) that train or pretrain has.

    Identical, in one group.
    """
    present = np.fromiter((bool(barcode) for barcode in barcodes), dtype=bool, count=len(barcodes))
    training = present & ((codes == TRAIN) | (codes == PRETRAIN))
    query = np.flatnonzero(present & ((codes == VAL) | (codes == TEST))).tolist()
    if not query:
        return None, None
    known = {barcodes[row] for row in np.flatnonzero(training).tolist()}
    identical = sum(barcodes[row] in known for row in query) / len(query)
    return identical, float(np.isin(groups[query], groups[training]).mean())


def _hashes(names: Iterable[str], seed: int) -> np.ndarray:
    """Return uint64 [N]: the same name and seed give the same number anywhere."""
    prefix = f"{seed}\0split\0".encode()
    digests = b"".join(hashlib.blake2b(prefix + name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _unit_draws(units: np.ndarray, num_units: int, hashes: np.ndarray) -> np.ndarray:
    """Return float64 [G] in [0, 1).

    From the smallest hash among a unit's rows, mixed again so that size does not bend it.
    """
    smallest = np.full(num_units, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(smallest, units, hashes)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finaliser
        smallest = (smallest ^ (smallest >> np.uint64(shift))) * np.uint64(factor)
    return ((smallest ^ (smallest >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53


def _by_fractions(draws: np.ndarray, fractions: tuple[float, float, float]) -> np.ndarray:
    train, val, _ = fractions
    return np.where(draws < train, TRAIN, np.where(draws < train + val, VAL, TEST))


def _closed_set(
    units: np.ndarray, labels: np.ndarray, fixed: np.ndarray, draws: np.ndarray, options: SplitOptions
) -> np.ndarray:
    """Return the split of every unit [G]: by fractions, but val and test hold no taxon that train lacks.

    For every taxon of any rank that train would lack, the unit of it with the smallest draw goes to train.
    """
    result = np.where(fixed >= 0, fixed, _by_fractions(draws, options.fractions))
    into = np.where(fixed >= 0, -1, TRAIN)
    for rank in reversed(range(len(RANKS))):
        _ensure(result, units, labels[:, rank], draws, into)
    return result


def _ensure(result: np.ndarray, units: np.ndarray, taxon: np.ndarray, draws: np.ndarray, into: np.ndarray) -> None:
    """Move units so that every taxon (int64 [N], -1 = none) has a row in its split `into` [G] (-1 = leave this unit).

    Of a taxon that has none, the unit with the smallest draw goes there. Pretrain is as good as train.
    """
    goal, there = into[units], result[units]
    there = np.where(there == PRETRAIN, TRAIN, there)
    movable = (taxon >= 0) & (goal >= 0)
    goals = np.full(int(taxon.max(initial=-1)) + 1, -1)  # of each taxon; its movable units have one goal
    goals[taxon[movable]] = goal[movable]
    has = np.zeros(len(goals), dtype=bool)
    known = np.flatnonzero(taxon >= 0)
    has[taxon[known[there[known] == goals[taxon[known]]]]] = True
    lacking = np.flatnonzero(movable)
    lacking = lacking[~has[taxon[lacking]]]
    order = lacking[np.lexsort((units[lacking], draws[units[lacking]], taxon[lacking]))]
    _, first = np.unique(taxon[order], return_index=True)
    moved = units[order[first]]
    result[moved] = into[moved]


def _seen_unseen(
    units: np.ndarray, labels: np.ndarray, fixed: np.ndarray, draws: np.ndarray, options: SplitOptions
) -> np.ndarray:
    """Return the split of every unit [G], after CLIBD's recipe, counting groups where it counts records.

    Species that share a group stay together (a cluster). A cluster whose largest species has fewer than 10 records is
    unseen, of the others 20% are. Seen: train, val, test by fractions, train having all of their species (it also
    serves as keys, as in BIOSCAN-5M). Unseen: a cluster is val_unseen or test_unseen as a whole, half of its groups are
    key_unseen, and every species with a query has a key; a cluster of one group cannot have both: other_heldout.
    Groups without any species are pretrain.
    """
    species = labels[:, _SPECIES]
    known = np.flatnonzero(species >= 0)
    if not len(known):
        return np.where(fixed >= 0, fixed, PRETRAIN)
    cluster = _clusters(units[known], species[known], int(species.max()) + 1)
    of_unit = np.full(len(fixed), -1)
    of_unit[units[known]] = cluster[species[known]]
    seen, query, num_units = _decide_clusters(cluster, of_unit, species[known], draws, options)
    named = of_unit >= 0
    split = np.where(draws < 0.5, KEY_UNSEEN, query[of_unit])
    split[num_units[of_unit] < 2] = OTHER_HELDOUT
    split = np.where(seen[of_unit], _by_fractions(draws, options.fractions), split)
    result = np.where(fixed >= 0, fixed, np.where(named, split, PRETRAIN))
    free = (fixed < 0) & named
    _ensure(result, units, species, draws, np.where(free & seen[of_unit], TRAIN, -1))
    pairs = np.unique(np.stack([species[known], units[known]]), axis=1)
    enough = np.bincount(pairs[0], minlength=len(cluster)) > 1
    asking = np.where((species >= 0) & enough[species], species, -1)
    unseen = free & ~seen[of_unit] & (num_units[of_unit] > 1)
    _ensure(result, units, asking, -draws, np.where(unseen, query[of_unit], -1))
    _ensure(result, units, species, draws, np.where(unseen, KEY_UNSEEN, -1))
    return result


def _decide_clusters(
    cluster: np.ndarray, of_unit: np.ndarray, species: np.ndarray, draws: np.ndarray, options: SplitOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per cluster [C]: whether it is seen, the split of its queries if it is not, the number of its units."""
    used = np.flatnonzero(of_unit >= 0)
    records = np.zeros(len(cluster), dtype=np.int64)
    np.maximum.at(records, cluster, np.bincount(species, minlength=len(cluster)))
    lot = _unit_draws(of_unit[used], len(cluster), (draws[used] * 2**53).astype(np.uint64))
    frequent = records >= MIN_SEEN_RECORDS
    seen = frequent & (lot < SEEN_SHARE)
    rest = np.where(frequent, (lot - SEEN_SHARE) / (1 - SEEN_SHARE), lot)  # uniform again among the unseen
    _, val, test = options.fractions
    query = np.where(rest * (val + test) < val, VAL_UNSEEN, TEST_UNSEEN)
    return seen, query, np.bincount(of_unit[used], minlength=len(cluster))


def _clusters(units: np.ndarray, species: np.ndarray, num_species: int) -> np.ndarray:
    """int64 [C]: species with a unit in common have the same number."""
    order = np.lexsort((species, units))
    units, species = units[order], species[order]
    same = np.flatnonzero(units[1:] == units[:-1])
    return join(np.arange(num_species), species[same], species[same + 1])


def _crossing(groups: np.ndarray, given: np.ndarray) -> int:
    """Count groups of which rows came with different splits."""
    rows = given >= 0
    pairs = np.unique(np.stack([groups[rows], given[rows]]), axis=1)
    return int((np.bincount(pairs[0]) > 1).sum()) if pairs.size else 0
