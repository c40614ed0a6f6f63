"""Simulated specimens: a taxonomy, barcodes evolved down it, photos drawn after it."""
