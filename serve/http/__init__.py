"""The predictor over HTTP: routes, bodies, batches, counters, page."""
