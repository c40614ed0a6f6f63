"""Which model and library a service answers with."""
