"""What all commands share: one line on stderr and exit code 2 for a wrong command line or a user's mistake."""

import argparse
import io
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from engine.errors import UserError

MISTAKE = 2
called_as = ""  # what the console script puts before a command's options; a module that is run is called by its name
INTERRUPTED = 130  # as a shell says it of a process that SIGINT ended


class Parser(argparse.ArgumentParser):
    """Report a wrong command line in one line; know `--version`; name the command as it was called."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if called_as and self.prog.startswith("python "):
            self.prog = called_as
        self.add_argument("--version", action=_Version, help="print the version and stop")

    def error(self, message: str) -> NoReturn:
        """End the program with exit code 2 and one line on stderr."""
        self.exit(MISTAKE, f"error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Print the version of the installed package, which is looked up only then."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "nargs": 0})

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"taxafuse {version('taxafuse')}\n")
        parser.exit()


def answered(command: Callable[[], str]) -> int:
    """Print what a command returns, guarded; return the exit code."""

    def run() -> int:
        sys.stdout.write(f"{command()}\n")
        return 0

    return guarded(run)


def guarded(command: Callable[[], int]) -> int:
    """Run a command and return its exit code, or 2 after one line on stderr about what the user can mend.

    That is a ValueError (a `UserError` says what, got, allowed) and a file or folder that cannot be read or written.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal cannot show must not end a command
    try:
        return command()
    except ValueError as error:
        line = f"error: {' '.join(str(error).split())}"
    except OSError as error:
        if error.filename is None:
            raise
        line = f"error: {UserError('file', f'{error.filename} ({error.strerror})', 'what this user may read or write')}"
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return INTERRUPTED
    sys.stderr.write(f"{line}\n")
    return MISTAKE
