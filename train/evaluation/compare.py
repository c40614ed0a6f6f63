"""Does fusion beat the better single modality? Which one that is, is chosen on val, never on the split under test."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.specimens.taxonomy import RANKS
from train import metrics
from train.metrics import Difference, paired_difference, prefix


@dataclass(frozen=True)
class Comparison:
    """Fused minus single, both inputs noisy, at one rank."""

    modality: str  # the better single modality, by val
    difference: Difference  # first = fused, second = single


def better_single(values: Mapping[str, float], rank: str, split: str = "val") -> str:
    """Return the single modality with the higher noisy top-1 among specimens that have both; image in a tie.

    Raises ValueError when `values` does not hold both.
    """
    keys = {name: f"{prefix(split, name, 'noisy', scope='both')}/{rank}/top1" for name in ("image", "dna")}
    missing = [key for key in keys.values() if key not in values]
    if missing:
        raise ValueError(f"choosing the better single modality needs the metric {missing[0]!r}, which is not there")
    return "dna" if values[keys["dna"]] > values[keys["image"]] else "image"


def compare_fused(
    val_metrics: Mapping[str, float], test_predictions: pa.Table, resamples: int = 1000, split: str = "val"
) -> dict[str, Comparison]:
    """Paired difference of fused (noisy both) and the better single modality (its own noise), per rank.

    Args:
        resamples: bootstrap draws.
        val_metrics: of `measure.measure` on the split that chooses.
        test_predictions: predictions.parquet of the split under test.
        split: name of the choosing split in the keys of `val_metrics`.

    Returns:
        rank -> Comparison with a bootstrap 95% interval over barcode groups; a rank that no specimen with both
        modalities is labelled at is left out, and {} is returned where there are no such specimens.
    """
    if "fused_noisy_both_species_position" not in test_predictions.column_names:
        return {}
    result = {}
    both = pc.and_(test_predictions["has_image"], test_predictions["has_dna"]).to_numpy()
    group = test_predictions["group"].to_numpy()
    for rank in RANKS:
        modality = better_single(val_metrics, rank, split)
        columns = (f"fused_noisy_both_{rank}_position", f"{modality}_noisy_{rank}_position")
        fused, single = (_positions(test_predictions[column]) for column in columns)
        rows = both & (fused != metrics.UNSCORED)
        if rows.any():
            found = paired_difference(
                metrics.hits(fused, 1)[rows], metrics.hits(single, 1)[rows], group[rows], resamples=resamples
            )
            result[rank] = Comparison(modality, found)
    return result


def as_metrics(found: Mapping[str, Comparison], split: str) -> dict[str, float]:
    """Numbers of `compare_fused` as `test/fused_minus_single/noisy_both/species/{difference,low,high,rows}`."""
    result: dict[str, float] = {}
    for rank, one in found.items():
        start, gap = f"{split}/fused_minus_single/noisy_both/{rank}", one.difference
        result |= {f"{start}/difference": gap.value, f"{start}/low": gap.low, f"{start}/high": gap.high}
        result[f"{start}/rows"] = gap.rows
    return result


def _positions(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(column, metrics.UNSCORED).to_numpy()
