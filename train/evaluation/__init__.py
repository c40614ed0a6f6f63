"""Evaluation of a trained model on a split of shards."""

from train.evaluation.predict import accuracy_of
from train.evaluation.scoring import Scorer

__all__ = ["Scorer", "accuracy_of"]
