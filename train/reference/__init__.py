"""The reference library: known barcodes and their names, searched and aligned exactly, extended without training."""

from train.reference.answer import WITHIN, RankScores, answers, consensus, nearest_labels, rank_scores
from train.reference.apart import Apart, apart
from train.reference.features import Encoder
from train.reference.library import Library
from train.reference.search import Hits, SearchOptions
from train.reference.sources import References, read_shards, read_source

__all__ = [
    "WITHIN",
    "Apart",
    "Encoder",
    "Hits",
    "Library",
    "RankScores",
    "References",
    "SearchOptions",
    "answers",
    "apart",
    "consensus",
    "nearest_labels",
    "rank_scores",
    "read_shards",
    "read_source",
]
