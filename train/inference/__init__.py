"""What a service needs of a model: scores, evidence, calibrated probabilities."""
