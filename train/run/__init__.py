"""A training as a Ray Train run: workers, commits, resumption, tracking."""
