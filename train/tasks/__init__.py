"""The tasks by which the field compares encoders; `train.benchmark` runs them."""
