"""Arrays of one row per specimen that fill up batch by batch, in memory or in a folder from which a run goes on.

On disk every array is one .npy file that is opened for each access and closed again, so that memory holds the rows that
were asked for and never the whole. `progress.json` says how many rows are complete, and of what: another model, other
specimens or other settings have another fingerprint and start anew.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

PROGRESS = "progress.json"
COMMIT_ROWS = 4096  # between two notes of progress: what an interruption costs at most


class StoredArray:
    """A .npy file [N, ...]; every access maps it, copies the rows and lets go of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> "StoredArray":
        """Return a file of zeros."""
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        return cls(path)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return rows and columns on disk."""
        return tuple(np.load(self.path, mmap_mode="r").shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.array(np.load(self.path, mmap_mode="r")[rows])

    def __setitem__(self, rows: Any, values: np.ndarray) -> None:
        np.load(self.path, mmap_mode="r+")[rows] = values


class FeatureStore:
    """Named arrays of `count` rows, filled from the first row on.

    Args:
        count: rows N.
        folder: where they are kept; None = in memory.
        fingerprint: of everything the rows follow from.
    """

    def __init__(self, count: int, folder: Path | None = None, fingerprint: str = "") -> None:
        self.count, self.folder = count, folder
        self.arrays: dict[str, Any] = {}
        self.done = 0  # rows that are complete
        self._state = {"fingerprint": fingerprint, "count": count}
        if folder is None:
            return
        if (state := _read(folder / PROGRESS)) and all(state.get(key) == value for key, value in self._state.items()):
            self.done = int(state["rows"])
            self.arrays = {path.stem: StoredArray(path) for path in sorted(folder.glob("*.npy"))}
        else:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    def write(self, first: int, values: Mapping[str, np.ndarray]) -> None:
        """Rows `first`.. of some arrays; a name that is new begins as zeros [N, ...] of its values' dtype."""
        for name, rows in values.items():
            if name not in self.arrays:
                shape = (self.count, *rows.shape[1:])
                if self.folder is None:
                    self.arrays[name] = np.zeros(shape, rows.dtype)
                else:
                    self.arrays[name] = StoredArray.create(self.folder / f"{name}.npy", shape, rows.dtype)
            self.arrays[name][first : first + len(rows)] = rows

    def commit(self, rows: int) -> None:
        """Note that the first `rows` rows are complete; on disk every COMMIT_ROWS rows and at the end."""
        noted = self.done
        if self.folder is not None and (rows - noted >= COMMIT_ROWS or rows == self.count):
            part = self.folder / f"{PROGRESS}.part"
            part.write_text(json.dumps(self._state | {"rows": rows}))
            part.replace(self.folder / PROGRESS)
            self.done = rows

    def remove(self) -> None:
        """Delete the files; what was read from them stays."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def fingerprint(model: Any, keys: Iterable[str], *settings: object) -> str:
    """sha256 (hex) of a model's weights, the specimens' keys and dataclasses or plain values."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    for setting in settings:
        plain = dataclasses.asdict(setting) if dataclasses.is_dataclass(setting) else setting  # type: ignore[arg-type]
        digest.update(json.dumps(plain, sort_keys=True, default=str).encode())
    for key in keys:
        digest.update(key.encode() + b"\0")
    return digest.hexdigest()
