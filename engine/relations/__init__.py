"""Which barcodes are related, and splits that keep related ones together."""
