"""Several machines on one, and what happens when parts of them die: `python -m tests.drills --help`."""
