"""What all commands share: a wrong command line and a user's mistake are told in one line, with exit code 2."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

MISTAKE = 2
INTERRUPTED = 130  # as a shell says it of a process that SIGINT ended


class Parser(argparse.ArgumentParser):
    """Tells a wrong command line in one line."""

    def error(self, message: str) -> NoReturn:
        """End the program with exit code 2 and one line on stderr."""
        self.exit(MISTAKE, f"error: {message} (see {self.prog} --help)\n")


def guarded(command: Callable[[], int]) -> int:
    """Run a command; returns its exit code, or 2 after one line on stderr about what the user can mend.

    That is a ValueError (its message says what, got, allowed) and a file or folder that cannot be read or written.
    """
    try:
        return command()
    except ValueError as error:
        told = " ".join(str(error).split())
    except OSError as error:
        if error.filename is None:
            raise
        told = f"got {error.filename}: {error.strerror}; allowed: what this user may read or write"
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    print(f"error: {told}", file=sys.stderr)
    return MISTAKE
