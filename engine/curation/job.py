"""The curation report: runs the checks of `engine.curation` on shard folders and writes what they find."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from tqdm import tqdm

from engine.curation import Finding, SpecimenSet, leaks, read_set, report
from engine.curation.coi import check_coi
from engine.curation.labels import check_bins, check_lineages, check_names, check_shared_barcodes
from engine.curation.photos import check_photos, hash_photos, stored_photos
from engine.curation.suspicion import check_suspicion
from engine.errors import UserError
from engine.ray_seams import numbered_tasks, quiet_data, start_ray
from engine.store.storage import Location

CHECKS: dict[str, Callable[[SpecimenSet], Finding]] = {
    "lineages": check_lineages,
    "names": check_names,
    "shared_barcodes": check_shared_barcodes,
    "bins": check_bins,
    "coi": check_coi,
    "suspicion": check_suspicion,
}
"""Of one set. Besides: leaks (barcodes across splits and sets) and photos."""
NAMES = (*CHECKS, "leaks", "photos")
_PHOTOS_PER_TASK = 512


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What `check` found: its lines for the screen, and what check.json holds."""

    text: str
    report: dict[str, Any]
    out: Location


def check(
    directories: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    only: Sequence[str] = NAMES,
    parallel: bool = True,
) -> Outcome:
    """Check one set of specimens or several, and write check.json, check.html and CSVs into `out`.

    Args:
        directories: shard folders, paths or URLs.
        out: a folder; None = the first set's own.
        only: names of checks, of NAMES.
        parallel: photos through Ray Data; False = in this process.

    Raises ValueError for a folder without shards, the same folder twice, or an unknown check.
    """
    wrong = [name for name in only if name not in NAMES]
    if wrong:
        raise UserError("--only", ", ".join(wrong), ", ".join(NAMES))
    places = [Location.parse(directory) for directory in directories]
    if len(set(places)) != len(places):
        raise UserError("sets", ", ".join(place.shown for place in places), "each folder once")
    sets = [read_set(str(place)) for place in places]
    findings = [
        dataclasses.replace(run(specimens), of_set=specimens.name)
        for specimens in sets
        for name, run in CHECKS.items()
        if name in only
    ]
    if "leaks" in only:
        findings += _leaks(sets)
    if "photos" in only and any(len(stored_photos(specimens)[0]) for specimens in sets):
        hashed = [_hash_all(specimens, parallel) for specimens in sets]
        findings.append(check_photos(sets, hashed))
    folder = places[0] if out is None else Location.parse(out)
    return Outcome(report.as_text(sets, findings), report.write(folder, sets, findings), folder)


def _leaks(sets: Sequence[SpecimenSet]) -> list[Finding]:
    found = [
        dataclasses.replace(leaks.check_split_leaks(specimens), of_set=specimens.name)
        for specimens in tqdm(sets, desc="leaks between splits", unit="set", disable=None)
    ]
    pairs = list(permutations(sets, 2))
    found += [leaks.check_set_leaks(*pair) for pair in tqdm(pairs, desc="leaks between sets", disable=None)]
    return found


def _hash_all(specimens: SpecimenSet, parallel: bool) -> list[bytes]:
    """Return the hash of every photo of a set, in the order of `stored_photos`."""
    _, photos = stored_photos(specimens)
    parts = [photos[start : start + _PHOTOS_PER_TASK] for start in range(0, len(photos), _PHOTOS_PER_TASK)]
    run = _hash_parallel if parallel and len(parts) > 1 else _hash_here
    progress = tqdm(run(specimens.name, parts), total=len(parts), desc="hash photos", unit="part", disable=None)
    return [code for _, codes in sorted(progress) for code in codes]


def _hash_here(directory: str, parts: list[Any]) -> Iterator[tuple[int, list[bytes]]]:
    for number, part in enumerate(parts):
        yield number, hash_photos(directory, part)


def _hash_parallel(directory: str, parts: list[Any]) -> Iterator[tuple[int, list[bytes]]]:
    """Yield hashes as they come, one Ray task per part; only places of photos go out, only hashes come back."""
    start_ray()
    quiet_data()
    places = ray.put(parts)

    def work(batch: pa.Table) -> pa.Table:
        number = batch["item"][0].as_py()
        codes = hash_photos(directory, ray.get(places)[number])
        return pa.table({"number": [number], "codes": pa.array([codes], pa.list_(pa.binary()))})

    tasks = numbered_tasks(len(parts), poll_s=0.03)
    for row in tasks.map_batches(work, batch_size=1, batch_format="pyarrow").iter_rows():
        yield row["number"], list(row["codes"])
