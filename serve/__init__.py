"""The predictor as a service. Nothing here yet."""
