"""Shards to batches through Ray Data, in an order that no number of workers changes."""
