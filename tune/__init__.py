"""Sweeps over training configurations: spaces, search, trials, finals."""
