"""From batches to a model and its tables: losses, towers, training, evaluation, reference libraries."""
