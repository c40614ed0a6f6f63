"""The reference library: known barcodes and their names, searched and aligned exactly, extended without training."""

from train.reference.answer import RankScores, answers, nearest_labels, rank_scores
from train.reference.library import Library
from train.reference.search import Hits, SearchOptions

__all__ = ["Hits", "Library", "RankScores", "SearchOptions", "answers", "nearest_labels", "rank_scores"]
