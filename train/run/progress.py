"""Show one progress bar in the driver while workers train, and the few lines that workers log.

Ray forwards every line of every process to the driver; a user waits for a bar and for warnings. So Ray's forwarding is
off, and workers report to a small actor instead, which the driver reads twice a second.
"""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

POLL_SECONDS = 0.5


class Board:
    """Hold the step, the text beside the bar, the lines not yet shown, and whether to stop."""

    def __init__(self) -> None:
        self._step, self._beside, self._stop = 0, "", False
        self._lines: list[str] = []
        self._epochs: dict[float, dict[str, float]] = {}

    def add_epoch(self, metrics: dict[str, float]) -> None:
        """Keep the metrics of an epoch; one that was repeated after a restart counts once."""
        self._epochs[metrics["epoch"]] = metrics

    def epochs(self) -> list[dict[str, float]]:
        """Return the metrics of every epoch so far, in order."""
        return [self._epochs[epoch] for epoch in sorted(self._epochs)]

    def set(self, step: int, beside: str = "") -> bool:
        """Move the bar; an empty `beside` changes no text. Returns whether the run is to stop."""
        self._step, self._beside = step, beside or self._beside
        return self._stop

    def stop(self) -> None:
        """Ask the workers to stop after their step, with a checkpoint."""
        self._stop = True

    def say(self, line: str) -> None:
        """Show a line above the bar."""
        self._lines.append(line)

    def read(self) -> tuple[int, str, list[str]]:
        """Return (step, text beside the bar, lines since the last call)."""
        lines, self._lines = self._lines, []
        return self._step, self._beside, lines


def new_board() -> Any:
    """Start a Board that takes no CPU; return its handle for the workers. After a kill it starts empty."""
    import ray

    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board).remote()


class Reporter:
    """Report to the board (None = there is none) from a worker, and hear its answer, without ever waiting for it."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._answer: Any = None
        self.stop = False  # the driver wants the run to stop

    def step(self, step: int, beside: str) -> None:
        """Move the bar; read from the latest answer whether the run is to stop."""
        import ray

        if self._board is None:
            return
        if self._answer is None or ray.wait([self._answer], timeout=0)[0]:
            self.stop = self.stop or (self._answer is not None and ray.get(self._answer))
            self._answer = self._board.set.remote(step, beside)

    def epoch(self, metrics: dict[str, float]) -> None:
        """Report the metrics of an epoch."""
        if self._board is not None:
            self._board.add_epoch.remote(metrics)


class _BoardHandler(logging.Handler):
    def __init__(self, board: Any) -> None:
        super().__init__(logging.INFO)
        self._board = board

    def emit(self, record: logging.LogRecord) -> None:
        self._board.say.remote(self.format(record))


def log_to(board: Any, rank: int) -> None:
    """Send this worker's log to the board: rank 0 speaks, the others only warn."""
    for package in ("engine", "train"):
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        logger.handlers, logger.propagate = [_BoardHandler(board)], False


class View:
    """Remember whether workers have done a step since the driver looks."""

    def __init__(self) -> None:
        self.begun, self._first = False, -1

    def see(self, step: int) -> None:
        """Note the board's step."""
        self._first = step if self._first < 0 else self._first
        self.begun = self.begun or step != self._first


@contextmanager
def shown(board: Any, total: int, stop: threading.Event) -> Iterator["View"]:
    """Show the board while the block runs; ask the workers to stop when `stop` is set."""
    done, view = threading.Event(), View()
    bar = tqdm(
        total=total, desc="training", unit="step", file=sys.stderr, mininterval=1.0 if sys.stderr.isatty() else 20
    )

    def refresh() -> None:
        import ray

        step, beside, lines = ray.get(board.read.remote())
        for line in lines:
            bar.write(line, file=sys.stderr)
        bar.set_postfix_str(beside, refresh=False)
        view.see(step)
        bar.update(step - bar.n)  # a resumed run jumps ahead, a restarted one goes back

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            if stop.is_set():
                board.stop.remote()
            with contextlib.suppress(OSError):  # a terminal that was closed
                refresh()

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield view
        if not stop.is_set():
            refresh()
    finally:
        done.set()
        thread.join(timeout=10)
        with contextlib.suppress(OSError):
            bar.close()
