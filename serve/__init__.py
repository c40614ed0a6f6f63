"""A model answers: in bulk, over HTTP, from a notebook."""
