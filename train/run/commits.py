"""The committed checkpoints of a run: written by a thread while training goes on, renamed when whole.

    RUN/checkpoints/step-000000042   committed: there is no other mark than this name
    RUN/checkpoints/part-...         being written or removed; what a killed process left goes at the next start

The last few are kept, and the best by its score. Ray Train's own checkpoint manager is not used: it keeps the last or
the best, leaves unfinished folders for ever, and refuses a run whose list of checkpoints was cut off in the writing.
"""

import errno
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from train.models.checkpoint import META, STATE, read_json

log = logging.getLogger(__name__)

FOLDER = "checkpoints"  # in a run's folder
LEAST_BYTES = 2**20  # a disk with less room is full for any checkpoint


def path_of(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return run / FOLDER / f"step-{step:09d}"


def steps(run: Path) -> list[int]:
    """Return the steps from which a run can go on, in order."""
    return sorted(int(folder.name[5:]) for folder in (run / FOLDER).glob("step-*") if (folder / STATE).is_file())


def score_of(run: Path, step: int) -> float | None:
    """Return the validation score of a checkpoint; None where it has none."""
    return read_json(path_of(run, step) / META).get("score")


def best(run: Path) -> int | None:
    """Return the step with the highest score, the latest of equal ones; None where no checkpoint has a score."""
    scored = [(score, step) for step in steps(run) if (score := score_of(run, step)) is not None]
    return max(scored)[1] if scored else None


class Commits:
    """Write the checkpoints of a run. Only one process at a time may hold one (rank 0)."""

    def __init__(self, run: Path, keep: int) -> None:
        """Remove what an earlier process did not finish. `keep`: how many of the latest checkpoints stay."""
        self._run, self._keep = run, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.seconds = 0.0  # that the latest one took to write
        (run / FOLDER).mkdir(parents=True, exist_ok=True)
        for orphan in (run / FOLDER).glob("part-*"):
            log.info("removing %s, a checkpoint that was never finished", orphan)
            shutil.rmtree(orphan, ignore_errors=True)

    def submit(self, step: int, write: Callable[[Path], None]) -> None:
        """Commit what `write` puts into a folder, after the commit before it; raise what that one raised.

        `write` runs in another thread: it must hold copies of what training changes.
        """
        self.wait()
        self._thread = threading.Thread(target=self._commit, args=(step, write), name="checkpoint")
        self._thread.start()

    def join(self) -> None:
        """Wait until nothing is being written."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Wait until everything submitted is committed. Raises what writing raised."""
        self.join()
        if self._error:
            error, self._error = self._error, None
            raise error

    def _commit(self, step: int, write: Callable[[Path], None]) -> None:
        started = time.perf_counter()
        part = self._run / FOLDER / _part()
        try:
            part.mkdir()
            write(part)
            for file in part.iterdir():
                _to_disk(file)
            kept = path_of(self._run, step)
            if kept.exists():  # of the same step, before the run went back to an earlier one
                self._remove(kept)
            part.rename(kept)
            _to_disk(kept.parent)
            self._tidy()
        except BaseException as error:  # raised in the thread that trains, at its next commit
            self._error = _full(error, self._run, part) or error
            shutil.rmtree(part, ignore_errors=True)
        self.seconds = time.perf_counter() - started

    def _tidy(self) -> None:
        there = steps(self._run)
        for step in set(there[: -self._keep]) - {best(self._run)}:
            self._remove(path_of(self._run, step))

    @staticmethod
    def _remove(committed: Path) -> None:
        """Remove first the name, then the files: a process killed in between leaves nothing that looks committed."""
        orphan = committed.with_name(_part())
        committed.rename(orphan)
        shutil.rmtree(orphan)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*")) if folder.is_dir() else 0


def _full(error: BaseException, run: Path, part: Path) -> OSError | None:
    """Return the error of a full disk behind `error`; writers of tensors hide it in texts of their own."""
    last = max(steps(run), default=0)
    free, needed = shutil.disk_usage(run).free, _size(path_of(run, last)) or LEAST_BYTES
    hidden = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not hidden and free >= max(LEAST_BYTES, needed - _size(part)):
        return None
    whole = f"step {last} is whole" if last else "no checkpoint is there yet"
    text = f"No space left on device: {free / 1e6:.0f} MB free, a checkpoint takes {needed / 1e6:.0f} MB; {whole}"
    return OSError(errno.ENOSPC, text, str(run / FOLDER))


def _part() -> str:
    return f"part-{uuid.uuid4().hex}"


def _to_disk(path: Path) -> None:
    """Flush a file or folder to the disk, so that a power cut after the rename leaves no empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
