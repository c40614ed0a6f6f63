"""Machines and clusters: what a run needs, whether it is there, and one word for every command."""
