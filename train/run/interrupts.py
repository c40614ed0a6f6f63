"""Hear SIGTERM, SIGINT and SIGHUP in every phase of a command: end at once, or after the step at hand.

    signal -> training: a checkpoint of the step at hand -> exit 143, 130 or 129
           -> any other phase: `Interrupted` is raised in the main thread

A second signal ends the process at once.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(SystemExit):
    """Say that a signal ended the command; its code is what a shell says of a process that the signal ended."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.name = signal.Signals(signum).name


class Interrupts:
    """Remember the first signal, and whether it may end the command at once."""

    def __init__(self) -> None:
        self.signum = 0  # 0 = none yet
        self.stop = threading.Event()  # set by a signal while training
        self._patient = ""  # what a signal is answered with, while it only sets the event

    def heard(self, signum: int, frame: FrameType | None = None) -> None:
        """Handle a signal."""
        if self.signum:
            if signum == signal.SIGINT or not self._patient:
                os.write(2, b"ended at once\n")
                os._exit(128 + signum)
            return
        self.signum = signum
        if not self._patient:
            raise Interrupted(signum)
        self.stop.set()
        log.warning("%s: %s (Ctrl-C ends at once)", signal.Signals(signum).name, self._patient)

    @contextlib.contextmanager
    def patient(self, answer: str) -> Iterator[threading.Event]:
        """Let a signal only set the event while the block runs, and log `answer`: what happens now."""
        self._patient = answer
        try:
            yield self.stop
        finally:
            self._patient = ""

    def check(self) -> None:
        """Raise Interrupted when a signal was heard."""
        if self.signum:
            raise Interrupted(self.signum)


@contextlib.contextmanager
def heard() -> Iterator[Interrupts]:
    """Yield the process's `Interrupts`; outside the main thread it hears nothing. Blocks may be nested."""
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield _current or Interrupts()
        return
    _current = Interrupts()
    before = {}
    for one in SIGNALS:
        if signal.getsignal(one) is not signal.SIG_IGN or one == signal.SIGTERM:  # nohup ignores SIGHUP: so do we
            before[one] = signal.signal(one, _current.heard)
    try:
        yield _current
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        _current = None


_current: Interrupts | None = None


def restore() -> None:
    """Install the handlers again, after something has replaced them (Ray does when it starts)."""
    if _current is not None and threading.current_thread() is threading.main_thread():
        for one in SIGNALS:
            if signal.getsignal(one) is not signal.SIG_IGN or one == signal.SIGTERM:
                signal.signal(one, _current.heard)
