"""Simulated barcodes beside real ones: divergence per rank, codon positions, base composition, haplotypes.

    python -m tests.benchmarks.simulated_divergence --bold BARCODES.parquet [--seed S]

The parquet needs the columns barcode, order, family, genus, species. Only full Folmer fragments take part (658 nt of
ACGT, no stop codon in the frame that starts at the second base), so that position i is the same site in all of them
without alignment.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.simulated.source import open_dataset

LENGTH = 658
RANKS = ("order", "family", "genus", "species")
LEVELS = (  # name, ranks that agree, first rank that differs (None: none)
    ("within species", 4, None),
    ("species of a genus", 3, "species"),
    ("genera of a family", 2, "genus"),
    ("families of an order", 1, "family"),
    ("orders", 0, "order"),
)
STOPS = (b"TAA", b"TAG")  # invertebrate mitochondrial code


def full_barcodes(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(sequences uint8 [N, 658] of ASCII letters, names str [N, 4]) of the rows named to species with a clean full
    barcode."""
    columns = [table.column(name).to_pylist() for name in ("barcode", *RANKS)]
    sequences, names = [], []
    for barcode, *lineage in zip(*columns, strict=True):
        letters = (barcode or "").encode()
        if len(letters) != LENGTH or set(letters) - set(b"ACGT") or None in lineage:
            continue
        if any(letters[i : i + 3] in STOPS for i in range(1, LENGTH - 2, 3)):
            continue
        sequences.append(np.frombuffer(letters, np.uint8))
        names.append(lineage)
    return np.stack(sequences), np.array(names, dtype=str)


def sample_pairs(names: np.ndarray, agree: int, num_pairs: int, rng: np.random.Generator) -> np.ndarray:
    """Row pairs [P, 2] whose first `agree` ranks are equal and whose next differs; species weigh equally, not
    records."""
    lineages = [tuple(row) for row in names.tolist()]
    rows_of: dict[tuple[str, ...], list[int]] = {}
    for row, lineage in enumerate(lineages):
        rows_of.setdefault(lineage, []).append(row)
    relatives: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for lineage in rows_of:
        relatives.setdefault(lineage[:agree], []).append(lineage)
    species, pairs = list(rows_of), []
    for _ in range(20 * num_pairs):
        first = species[rng.integers(len(species))]
        family = relatives[first[:agree]]
        second = family[rng.integers(len(family))]
        if agree < len(RANKS) and second[: agree + 1] == first[: agree + 1]:
            continue
        a, b = (rows_of[s][rng.integers(len(rows_of[s]))] for s in (first, second))
        if a != b:
            pairs.append((a, b))
        if len(pairs) == num_pairs:
            break
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def divergence_table(table: pa.Table, num_pairs: int = 4000, seed: int = 0) -> dict[str, float]:
    """Named figures of one set of barcodes: p-distances in percent, shares in percent, counts."""
    sequences, names = full_barcodes(table)
    rng = np.random.default_rng(seed)
    figures: dict[str, float] = {"full barcodes": len(sequences), "species": len({tuple(n) for n in names.tolist()})}
    transitions = {frozenset(b"AG"), frozenset(b"CT")}
    for name, agree, _ in LEVELS:
        pairs = sample_pairs(names, agree, num_pairs, rng)
        a, b = sequences[pairs[:, 0]], sequences[pairs[:, 1]]
        differs = a != b
        distance = 100 * differs.mean(axis=1)
        low, middle, high = np.percentile(distance, (10, 50, 90))
        figures |= {f"{name}: p-distance mean %": distance.mean(), f"{name}: 10th": low, f"{name}: median": middle}
        figures[f"{name}: 90th"] = high
        if agree == len(RANKS):
            figures[f"{name}: identical pairs %"] = 100 * (distance == 0).mean()
        by_position = np.array([differs[:, start::3].sum() for start in (1, 2, 0)], dtype=float)
        for position, share in enumerate(100 * by_position / by_position.sum(), start=1):
            figures[f"{name}: differences at codon position {position} %"] = share
        is_transition = np.zeros((256, 256), bool)
        for x, y in (tuple(pair) for pair in transitions):
            is_transition[x, y] = is_transition[y, x] = True
        figures[f"{name}: transitions %"] = 100 * is_transition[a[differs], b[differs]].mean()
    for base in "ACGT":
        figures[f"base {base} %"] = 100 * (sequences == ord(base)).mean()
    is_at = np.isin(sequences, list(b"AT"))
    for position, start in enumerate((1, 2, 0), start=1):
        figures[f"A+T at codon position {position} %"] = 100 * is_at[:, start::3].mean()
    per_order = [is_at[names[:, 0] == order].mean() for order in np.unique(names[:, 0])]
    figures |= {"A+T lowest order %": 100 * min(per_order), "A+T highest order %": 100 * max(per_order)}
    return figures | _haplotype_figures(sequences, names)


def _haplotype_figures(sequences: np.ndarray, names: np.ndarray) -> dict[str, float]:
    per_species: dict[tuple[str, ...], dict[bytes, int]] = {}
    for sequence, lineage in zip(sequences, names.tolist(), strict=True):
        counts = per_species.setdefault(tuple(lineage), {})
        counts[sequence.tobytes()] = counts.get(sequence.tobytes(), 0) + 1
    many = [counts for counts in per_species.values() if sum(counts.values()) >= 10]
    if not many:
        return {}
    return {
        "haplotypes per specimen (species of >= 10)": float(np.mean([len(c) / sum(c.values()) for c in many])),
        "specimens of the commonest haplotype %": 100
        * float(np.mean([max(c.values()) / sum(c.values()) for c in many])),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bold", type=Path, required=True, help="parquet of real barcodes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulated specimens")
    options = parser.parse_args(arguments)
    simulated = open_dataset([], seed=options.seed)
    truth = pa.table({"barcode": simulated.haplotypes(), **simulated.true_labels()})
    columns = {"real": divergence_table(pq.read_table(options.bold)), "simulated": divergence_table(truth)}
    print(f"{'':58}{'real':>10}{'simulated':>12}")
    for name, value in columns["real"].items():
        print(f"{name:58}{value:10.2f}{columns['simulated'].get(name, float('nan')):12.2f}")


if __name__ == "__main__":
    main()
