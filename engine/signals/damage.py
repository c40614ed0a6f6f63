"""What of `degrade` happens to each specimen's photo and barcode in each epoch of training, and in evaluation.

Every choice is drawn from (seed, epoch, specimen key), so that it depends on no batch and no worker.

Legend: N specimens.
"""

from collections.abc import Sequence

import numpy as np

from engine.config import DegradeConfig, RobustConfig
from engine.signals.barcodes import orient_batch
from engine.signals.degrade import degrade_batch, fragment, window_at
from engine.signals.nucleotides import reverse_complement
from engine.specimens.schema import rng_for, uniforms_for

NOTHING, IMAGE, DNA = 0, 1, 2  # what is withheld from the fusion


def damaged_barcodes(
    sequences: Sequence[str], keys: Sequence[str], seed: int, epoch: int, config: RobustConfig, orient: bool
) -> list[str]:
    """Return clean barcodes ("" = none), of which the share `config.dna` is damaged.

    Damage is the paper's preset at a random severity (max_severity u^2, so half of them are below a quarter of it). Of
    some only a random piece is left, whose length is log-uniform; some come on the other strand.

    With `orient` they are then turned to the coding strand, as in evaluation, so that the few short pieces that are
    turned wrongly (METHOD: 0.5% at 100 nt) are met in training, too.
    """
    result = list(sequences)
    draws = uniforms_for(seed, epoch, keys, "damaged barcode", 6)
    rows = [row for row in np.flatnonzero(draws[:, 0] < config.dna).tolist() if sequences[row]]
    rngs = [rng_for(seed, epoch, keys[row], "damaged letters") for row in rows]
    damaged = degrade_batch([sequences[row] for row in rows], rngs, config.max_severity * draws[rows, 1] ** 2)
    for place, (sequence, (cut, length, start, strand)) in enumerate(
        zip(damaged, draws[rows, 2:].tolist(), strict=True)
    ):
        if cut < config.fragments and len(sequence) > config.min_fragment:
            left = config.min_fragment * (len(sequence) / config.min_fragment) ** length
            sequence = window_at(sequence, round(left), start)
        damaged[place] = reverse_complement(sequence) if strand < config.other_strand else sequence
    for row, sequence in zip(rows, orient_batch(damaged) if orient else damaged, strict=True):
        result[row] = sequence
    return result


def measured_barcodes(
    sequences: Sequence[str], keys: Sequence[str], seed: int, config: DegradeConfig, orient: bool
) -> list[str]:
    """Return clean barcodes ("" = none) as evaluation damages them.

    A fragment may lie on either strand; with `orient` it is turned like any barcode that comes in.
    """
    rngs = [rng_for(seed, 0, key, "degrade") for key in keys]
    result = degrade_batch(sequences, rngs, np.full(len(sequences), config.severity))
    if config.fragment:
        rngs = [rng_for(seed, 0, key, "fragment") for key in keys]
        result = [fragment(sequence, rng, config.fragment) for sequence, rng in zip(result, rngs, strict=True)]
    return orient_batch(result) if config.fragment and orient else result


def blur_kernels(keys: Sequence[str], seed: int, epoch: int, config: RobustConfig) -> list[list[int]]:
    """Return the side of the mean filter for both views of each photo; 0 = this view stays sharp."""
    draws = uniforms_for(seed, epoch, keys, "blur", 4)
    kernels = 3 + 2 * (draws[:, 2:] * ((config.max_kernel - 1) // 2)).astype(np.int64)
    return np.where(draws[:, :2] < config.image, kernels, 0).tolist()


def withheld(keys: Sequence[str], seed: int, epoch: int, config: RobustConfig) -> np.ndarray:
    """Return what the fusion does not get of each specimen: uint8 [N] of NOTHING, IMAGE, DNA.

    The last two are equally frequent. The encoders get both members all the same.
    """
    draw = uniforms_for(seed, epoch, keys, "withheld", 1)[:, 0]
    return np.where(draw < config.withheld, np.where(draw < config.withheld / 2, IMAGE, DNA), NOTHING).astype(np.uint8)
