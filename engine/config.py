"""How specimens become batches: every setting of the data engine, validated where it is declared.

The classes are frozen, keyword-only dataclasses; `train.config` nests them in its tree and turns dotted `key=value`
pairs into them. Bounds stand in the annotations, so that a value out of range is refused before anything starts.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]


def _is_odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("allowed: odd numbers")
    return value


Odd = Annotated[int, Field(gt=0), AfterValidator(_is_odd)]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The random changes that make a training view; each is drawn from (seed, epoch, specimen key, view)."""

    min_area: Probability = 0.5  # smallest share of the photo that a random crop keeps
    max_aspect: Annotated[float, Field(ge=1.0)] = 1.33
    brightness: Probability = 0.3
    contrast: Probability = 0.3
    saturation: Probability = 0.3
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.02
    horizontal_flip: Probability = 0.5
    vertical_flip: Probability = 0.0
    rotate_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class RobustConfig:
    """Damage done to training inputs, so that one model serves clean and damaged ones; off by default.

    Everything is drawn from (seed, epoch, specimen key).
    """

    dna: Probability = 0.0  # share of the barcodes that are damaged
    max_severity: Annotated[float, Field(ge=0.0, lt=10.0)] = 4.0  # of the paper preset; 10 would cut all
    fragments: Probability = 0.8  # share of the damaged barcodes of which a random piece is left
    min_fragment: Positive = 50  # nucleotides; lengths are log-uniform from here to the whole
    other_strand: Probability = 0.5  # share of the damaged barcodes that come on the other strand, before `orient`
    image: Probability = 0.0  # share of the training views that are blurred, each by itself
    max_kernel: Annotated[Odd, Field(ge=3)] = 31  # side of the mean filter, in pixels of the encoder's input; uniform
    withheld: Probability = 0.0  # share of the specimens whose photo or barcode, in turn, the fusion does not get


@dataclass(frozen=True, kw_only=True)
class DegradeConfig:
    """Damage done to evaluation inputs. The rates at severity 1 are the authors' release's (METHOD: paper preset)."""

    severity: Annotated[float, Field(ge=0.0)] = 1.0
    fragment: Annotated[int, Field(ge=0)] = 0  # nucleotides of a random piece, either strand; 0 = the whole barcode
    blur_kernel: Odd = 5  # side of the mean filter, in pixels of the encoder's input


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where specimens come from, what is read of them, and in which order."""

    shards: tuple[str, ...] = ()  # one or more folders written by `python -m engine.main ingest`
    image_size: Positive = 64  # side of the square that the image encoder sees, pixels
    tokenizer: Literal["kmer", "bpe"] = "kmer"
    tokenizer_file: str = ""  # tokenizers JSON, for bpe only
    kmer: Annotated[int, Field(ge=1, le=8)] = 6
    kmer_stride: Positive = 1  # 1 = overlapping; equal to kmer = BarcodeBERT's non-overlapping form
    max_nucleotides: Positive = 660
    orient: bool = True  # turn barcodes to the coding strand before tokenising
    random_offset: bool = False  # start training tokens at a random offset below kmer_stride
    caption_cut: Probability = 0.3  # share of training captions cut to a random rank
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    robust: RobustConfig = field(default_factory=RobustConfig)
    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    lanes: Positive = 8  # parallel sequences an epoch's order is written in; worker counts must divide it
    window: Positive = 4096  # specimens that are ordered together
    partners: bool = False  # bring a partner of the same taxon next to each anchor; costs accuracy (results/order.md)
    rows_per_task: Positive = 512  # specimens one data task prepares
    prefetch_batches: Annotated[int, Field(ge=0)] = 2
