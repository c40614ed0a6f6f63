"""The data engine: what a specimen is, how it is stored, read, checked and made into batches."""
