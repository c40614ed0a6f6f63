"""Accuracy, calibration and speed of a photo library on one set of embedded photos.

    python -m train.embed shards/moths --out features/moths
    python -m tests.benchmarks.photo_library features/moths [--shards shards/moths --blur 7 15 31]

The library is built from the train split, its settings chosen there by cross-validation; the split --split is measured.
--blur also measures it with every view blurred by a box of k pixels (`engine.signals.degrade`), embedded anew.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score

from engine.signals import degrade
from engine.specimens.taxonomy import RANKS
from train.embed import PhotoEncoder, open_photos, read
from train.evaluation.reliability import calibration_error
from train.photo_head import PhotoLibrary
from train.photo_head.discriminant import UNIT, normalise, quantise, unit

SPECIES = RANKS.index("species")


def features_of(views: np.ndarray) -> np.ndarray:
    return unit(quantise(normalise(views)) / UNIT)


def interval(right: np.ndarray, group: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95% of the accuracy over species drawn with replacement."""
    _, code = np.unique(group, return_inverse=True)
    hits, count = np.bincount(code, right), np.bincount(code)
    chosen = np.random.default_rng(0).integers(0, len(count), (draws, len(count)))
    low, high = np.percentile(hits[chosen].sum(1) / count[chosen].sum(1), (2.5, 97.5))
    return float(low), float(high)


def measure(library: PhotoLibrary, records: pa.Table, views: np.ndarray, name: str) -> None:
    """Print accuracy, calibration and coverage at every rank."""
    answer = library.posterior(features_of(views))
    labels = library.taxonomy.encode({rank: records[rank] for rank in RANKS})
    group = np.array(records["species"].to_pylist(), dtype=object)
    for rank in range(1, len(RANKS)):
        named = np.array([value is not None for value in records[RANKS[rank]].to_pylist()])
        probability, truth = answer.ranks[rank][named], labels[named, rank]
        right, sure = probability.argmax(1) == truth, probability.max(1)
        taxa = np.unique(truth)
        macro = np.mean([right[truth == taxon].mean() for taxon in taxa])
        of = group[named].astype(str)
        low, high = interval(right, of)
        line = (
            f"{name} {RANKS[rank]:8} n={named.sum()} micro {right.mean():.1%} ({low:.1%}-{high:.1%}) macro {macro:.1%}"
        )
        high_ones = sure >= 0.9
        if high_ones.any():
            low, high = interval(right[high_ones], of[high_ones])
            line += f" ECE {calibration_error(sure, right):.3f}"
            line += f" at 0.9: {right[high_ones].mean():.1%} ({low:.1%}-{high:.1%})"
            line += f" of {high_ones.mean():.1%}"
        print(line, flush=True)


def measure_blurred(library: PhotoLibrary, shards: str, split: str, kernels: list[int]) -> None:
    """Embed a split's photos blurred, and print as `measure`."""
    photos = open_photos([shards], split=split)
    encoder = PhotoEncoder(library.trunk["name"])
    library._check_trunk(encoder.description)
    views = [encoder.view(photos.load(row)) for row in range(len(photos.records))]
    for k in kernels:
        measure(library, photos.records, encoder.encode([degrade.blur(view, k) for view in views]), f"k={k}")


def curve(library: PhotoLibrary, records: pa.Table, views: np.ndarray, given: np.ndarray) -> None:
    """Print species accuracy with the first n photos of each lineage in five random orders; settings as chosen."""
    lineage = np.unique(library.labels, axis=0, return_inverse=True)[1].ravel()
    truth = np.array(records["species"].to_pylist(), dtype=object)
    for count in (1, 2, 3, 5):
        found = []
        for seed in range(5):
            order = np.random.default_rng(seed).permutation(len(lineage))
            kept = np.concatenate([order[lineage[order] == one][:count] for one in np.unique(lineage)])
            rows = quantise(normalise(given[np.sort(kept)]))
            gram = rows.astype(np.float64).T @ rows.astype(np.float64)
            small = PhotoLibrary(library.records.take(pa.array(np.sort(kept))), rows, gram, library.trunk)
            names = np.array([*small.taxonomy.names[SPECIES]], dtype=object)
            answer = names[small.posterior(features_of(views)).ranks[SPECIES].argmax(1)]
            named = truth != None  # noqa: E711
            found.append((answer == truth)[named].mean())
        print(
            f"{count} photos a class: species {np.mean(found):.1%} (five draws {min(found):.1%}-{max(found):.1%})",
            flush=True,
        )


def open_set(records: pa.Table, views: np.ndarray, known: pa.Table, given: np.ndarray, trunk: Any) -> None:
    """Print how well the novelty finds photos of species that the library lacks: a fifth of the species at a time."""
    species = np.array([name or "" for name in known["species"].to_pylist()])
    asked = np.array([name or "" for name in records["species"].to_pylist()])
    out = np.random.default_rng(0).permutation(np.unique(species[species != ""]))
    areas, found, false = [], [], []
    for part in np.array_split(out, 5):
        kept = ~np.isin(species, part)
        library = PhotoLibrary.build(known.filter(pa.array(kept)), given[kept], trunk)
        answer = library.posterior(features_of(views))
        new = np.isin(asked, part)
        areas.append(roc_auc_score(new, answer.novelty))
        found.append(answer.novel[new].mean())
        false.append(answer.novel[~new].mean())
    print(
        f"species not in the library: AUROC {np.mean(areas):.3f}, flagged {np.mean(found):.1%} of theirs, "
        f"{np.mean(false):.1%} of others"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--shards", default="")
    parser.add_argument("--blur", nargs="*", type=int, default=[])
    parser.add_argument("--only-blur", action="store_true", help="leave out what needs no new features")
    options = parser.parse_args()
    records, views, trunk = read(options.features)
    train = np.asarray(pc.equal(records["split"], "train"))
    asked = np.asarray(pc.equal(records["split"], options.split))
    known, given = records.filter(pa.array(train)), views[train]
    start = time.perf_counter()
    library = PhotoLibrary.build(known, given, trunk)
    print(f"built from {len(known):,} photos in {time.perf_counter() - start:.1f} s: {library.settings}", flush=True)
    queries, seen = records.filter(pa.array(asked)), views[asked]
    measure(library, queries, seen, options.split)
    if options.blur:
        measure_blurred(library, options.shards, options.split, options.blur)
    if not options.only_blur:
        extend(known, given, queries, seen, trunk)
        curve(library, queries, seen, given)
        open_set(queries, seen, known, given, trunk)


def extend(known: pa.Table, given: np.ndarray, queries: pa.Table, seen: np.ndarray, trunk: Any) -> None:
    """Print what adding five species' photos to a library without them costs and moves, and removing them leaves."""
    species = np.array([name or "" for name in known["species"].to_pylist()])
    new = np.isin(species, np.unique(species[species != ""])[:5])
    before = PhotoLibrary.build(known.filter(pa.array(~new)), given[~new], trunk)
    start = time.perf_counter()
    after = before.add(known.filter(pa.array(new)), given[new], trunk)
    answered = np.isin([name or "" for name in queries["species"].to_pylist()], species[new])
    first, second = before.posterior(features_of(seen)), after.posterior(features_of(seen))
    seconds = time.perf_counter() - start
    names = [
        np.array([*one.taxonomy.names[SPECIES]])[a.ranks[SPECIES].argmax(1)]
        for one, a in ((before, first), (after, second))
    ]
    moved = (names[0] != names[1])[~answered].mean()
    hit = np.mean([a == b for a, b, c in zip(names[1], queries["species"].to_pylist(), answered, strict=True) if c])
    back = after.remove(known.filter(pa.array(new))["key"].to_pylist())
    same = np.array_equal(back.gram, before.gram) and np.array_equal(back.features, before.features)
    print(
        f"{new.sum()} photos of 5 new species added and answered in {seconds:.1f} s: {hit:.1%} of theirs right, "
        f"{moved:.1%} of other answers moved; removed again: the same library {same}"
    )


if __name__ == "__main__":
    main()
