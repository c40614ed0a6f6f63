"""A writer in a forked process that ends just before its n-th file operation."""

import os
import sys
from collections.abc import Callable
from typing import Any

from engine.store import commits

OPERATIONS = ("fsync", "mkdir", "rename")
KILLED = 137
_EVENTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}


def killed_at(number: int, write: Callable[[], object]) -> bool:
    """Run `write` in a forked process that ends before its operation `number`; return whether it came to that."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _count_down(number)
            write()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), f"the writer failed with {code}"
    return code == KILLED


def _count_down(number: int) -> None:
    left = number

    def step() -> None:
        nonlocal left
        if left == 0:
            os._exit(KILLED)
        left -= 1

    def hook(event: str, arguments: Any) -> None:
        opened = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if opened or event in _EVENTS:
            step()

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            step()
            return real(*arguments)

        return call

    sys.addaudithook(hook)
    os.fsync = wrapped(os.fsync)
    commits.exchange = wrapped(commits.exchange)
