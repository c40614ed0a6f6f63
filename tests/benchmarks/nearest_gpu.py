"""The nearest reference on columns as one integer product: one-hot letters of queries times those of all references.

    python -m tests.benchmarks.nearest_gpu LIBRARY [--queries 4096] [--batch 256] [--device cuda] [--references 0]

A letter on a column is a one among four; the product of two one-hot rows counts the columns on which both have the same
letter, and the product of what each knows counts the columns that both know: differences are the second minus the
first. Every reference is compared with every query; nothing is left out. On a GPU rows are int8 (`torch._int_mm`,
accumulated in int32), on a CPU float32, exact as well (counts are below 2**24). The distances of a few queries are
compared with those of the scan's own planes. Queries: barcodes of the library with 2% wrong letters.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from engine.signals.columns import WORDS
from engine.signals.placing import HIGH, KNOWN, LOW
from tests.benchmarks.nearest_queries import substitute
from train.reference import Library

_CHUNK = 1 << 16  # references multiplied at a time
_FAR = 1 << 20
_MOST = 60  # columns that both must know


def one_hot(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bit planes uint64 [n, W, 3] -> letters int8 [n, 4 x 64 W], a one where a column has the letter, and what is
    known, int8 [n, 64 W]."""
    low, high, known = (
        np.unpackbits(np.ascontiguousarray(planes[:, :, part]).view(np.uint8), axis=1, bitorder="little").astype(bool)
        for part in (LOW, HIGH, KNOWN)
    )
    letters = [known & (low == bool(letter & 1)) & (high == bool(letter & 2)) for letter in range(4)]
    return np.concatenate(letters, axis=1).astype(np.int8), known.astype(np.int8)


def product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """One [q, d] times other [n, d] transposed, exactly, int32 [q, n]; float32 on a CPU."""
    if one.is_cuda:
        return torch._int_mm(one, other.t())
    return one.float() @ other.float().t()


def nearest(
    queries: np.ndarray, references: np.ndarray, device: str, batch: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The reference of least 20 x differences + unknown columns: its number and that score, int64 [Q], and seconds."""
    resident = [
        tuple(torch.from_numpy(part).to(device) for part in one_hot(references[start : start + _CHUNK]))
        for start in range(0, len(references), _CHUNK)
    ]
    place, best, seconds = [], [], 0.0
    for first in range(0, len(queries), batch):
        letters, known = (torch.from_numpy(part).to(device) for part in one_hot(queries[first : first + batch]))
        asked = known.sum(1, dtype=torch.int32)[:, None]
        start = time.perf_counter()
        least = torch.full((len(letters),), _FAR, device=device)
        at = torch.zeros(len(letters), dtype=torch.int64, device=device)
        for number, (theirs, theirs_known) in enumerate(resident):
            both = product(known, theirs_known).int()
            score = 20 * (both - product(letters, theirs).int()) + asked - both
            score[both < _MOST] = _FAR
            value, row = score.min(1)
            at = torch.where(value < least, row + number * _CHUNK, at)
            least = torch.minimum(least, value)
        place.append(at.cpu().numpy())
        best.append(least.cpu().numpy())
        seconds += time.perf_counter() - start
    return np.concatenate(place), np.concatenate(best).astype(np.int64), seconds


def by_planes(query: np.ndarray, references: np.ndarray) -> int:
    """The least score of one query, uint64 [W, 3], by XOR and population count."""
    common = references[:, :, KNOWN] & query[:, KNOWN]
    unlike = (references[:, :, LOW] ^ query[:, LOW]) | (references[:, :, HIGH] ^ query[:, HIGH])
    differ, both = (np.bitwise_count(part).sum(axis=1, dtype=np.int64) for part in (unlike & common, common))
    score = 20 * differ + np.bitwise_count(query[:, KNOWN]).sum(dtype=np.int64) - both
    return int(score[both >= _MOST].min(initial=_FAR))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--references", type=int, default=0, help="the first of them; 0 = all")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    library = Library.load(options.library, verify=False)
    planes = np.asarray(library.planes.planes[: options.references or None])
    rng = np.random.default_rng(0)
    rows = library.planes.reference[rng.integers(0, len(planes), options.queries)].tolist()
    placed = library.planes.placer.place([substitute(library.barcode(row), rng, 0.02) for row in rows])
    queries = np.ascontiguousarray(placed.planes[placed.strand != 0].transpose(0, 2, 1))
    nearest(queries[: options.batch], planes[:_CHUNK], options.device, options.batch)
    _, best, seconds = nearest(queries, planes, options.device, options.batch)
    checked = min(20, len(queries))
    same = sum(by_planes(queries[row], planes) == best[row] for row in range(checked))
    size = f"{len(queries):,} queries, {len(planes):,} references, {64 * WORDS} columns, batch {options.batch}"
    each = f"{1e6 * seconds / len(queries):,.1f} us a query"
    print(f"{options.device}: {size}: {each}; {same} of {checked} scores equal the scan's")
    if same < checked:
        raise SystemExit("the product and the planes disagree")


if __name__ == "__main__":
    main()
