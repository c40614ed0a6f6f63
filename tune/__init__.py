"""Sweeps over training configurations. Nothing here yet."""
