"""Measurements of a trained model on a split."""
