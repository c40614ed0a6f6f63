"""Killed at every file operation, two writers at once, a full disk, a read-only folder: the old state or the new one.

Operations are seen by Python's audit hook (open for writing, rename, mkdir, remove, rmdir), and fsync and the exchange
of names by wrappers; the process ends by os._exit just before the n-th, for every n.
"""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from engine.store import commits
from engine.store.commits import exchange, new_folder, owned, recover
from engine.store.storage import Location
from serve import library as command
from tests.engine.store.killed import OPERATIONS, killed_at
from train.reference import Library, References
from train.reference.library import read_manifest

OLD, NEW = "old" * 1000, "new" * 1000
MAX_OPERATIONS = 200


def put_files(folder: Path, text: str) -> None:
    with owned(folder), new_folder(folder, replace=True) as part:
        for number in range(3):
            (part / f"{number}.txt").write_text(text)


def state_of(folder: Path) -> str | None:
    """Return the one text of a folder's three files; None = there is no folder."""
    if not folder.exists():
        return None
    texts = {path.read_text() for path in folder.iterdir()}
    assert len(texts) == 1 and len(list(folder.iterdir())) == 3, sorted(folder.iterdir())
    return texts.pop()


def known(first: int) -> References:
    """Return ten specimens with barcodes of their own."""
    keys = [f"s{number}" for number in range(first, first + 10)]
    letters = [
        "".join("ACGT"[(number * 7 + place * place + number // 3 * place) % 4] for place in range(120))
        for number in range(first, first + 10)
    ]
    return References(pa.table({"key": keys, "species": ["Musca domestica"] * 10}), letters, {}, [], {})


@pytest.mark.parametrize("before", [None, OLD])
@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_old_or_new_wherever_its_writer_dies(
    tmp_path: Path, before: str | None, can_exchange: bool
) -> None:
    seen = set()
    for number in range(MAX_OPERATIONS):
        place = tmp_path / str(number) / "lib"
        place.parent.mkdir()
        if before:
            put_files(place, before)

        def write(place: Path = place) -> None:
            if not can_exchange:
                commits.exchange = lambda one, other: False
            put_files(place, NEW)

        died = killed_at(number, write)
        with owned(place):  # the next start; the dead owner's lock is free
            recover(place)
        seen.add(state_of(place))
        assert state_of(place) in (before, NEW)
        assert [path.name for path in place.parent.iterdir()] in ([], ["lib"])
        if not died:
            break
    assert not died and number > 10
    assert seen == {before, NEW}


def test_a_file_is_old_or_new_wherever_its_writer_dies(tmp_path: Path) -> None:
    for number in range(MAX_OPERATIONS):
        place = Location.parse(tmp_path / f"{number}.json")
        place.write_atomically(OLD.encode())
        died = killed_at(number, lambda place=place: place.write_atomically(NEW.encode()))  # type: ignore[misc]
        assert place.read_bytes() in (OLD.encode(), NEW.encode())
        if not died:
            break
    assert not died and number > 2 and place.read_bytes() == NEW.encode()


@pytest.mark.slow
def test_a_library_keeps_its_specimens_wherever_add_dies(tmp_path: Path) -> None:
    versions = set()
    command.build(known(0), tmp_path / "before")
    for number in range(MAX_OPERATIONS):
        place = tmp_path / str(number) / "lib"
        shutil.copytree(tmp_path / "before", place)
        died = killed_at(number, lambda place=place: command.add(place, known(10)))  # type: ignore[misc]
        command.describe(place)
        library = Library.load(place)
        assert (library.version, len(library.records)) in ((1, 10), (2, 20))
        versions.add(library.version)
        if not died:
            break
    assert not died and versions == {1, 2}


@pytest.mark.slow
def test_two_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    place = tmp_path / "lib"
    command.build(known(0), place)
    code = (
        "import sys; from pathlib import Path; from serve import library as command; "
        "from tests.engine.store.test_commits import known; command.add(Path(sys.argv[1]), known(int(sys.argv[2])))"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(place), str(first)], cwd=Path(__file__).parents[3])
        for first in (10, 20)
    ]
    assert [writer.wait(timeout=300) for writer in writers] == [0, 0]
    assert read_manifest(place)["version"] == 3
    assert sorted(Library.load(place).records["key"].to_pylist()) == sorted(f"s{number}" for number in range(30))


def test_who_waits_too_long_is_given_the_owner(tmp_path: Path) -> None:
    place = tmp_path / "lib"
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with owned(place):
            entered.set()
            leave.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()
    with pytest.raises(ValueError, match=rf"process {os.getpid()} of .*, for \d+ s, is writing; allowed"), owned(place):
        pass
    threading.Timer(0.3, leave.set).start()
    start = time.monotonic()
    with owned(place, 30):
        assert time.monotonic() - start > 0.2
    holder.join()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_error_at_any_operation_leaves_the_old_state_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    place = tmp_path / "lib"
    put_files(place, OLD)
    real: Callable[..., object] = getattr(os, operation)

    def fail(path: object, *rest: object, **options: object) -> object:
        if operation in ("fsync", "mkdir") or "lock" not in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, fail)
        if operation == "rename":
            patch.setattr(commits, "exchange", lambda one, other: False)
        with pytest.raises(OSError, match="No space left") as caught:
            put_files(place, NEW)
    assert caught.value.filename and "\n" not in str(caught.value)
    with owned(place):
        recover(place)
    assert state_of(place) == OLD


def test_exchange_swaps_two_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange(tmp_path / "a", tmp_path / "b") and (tmp_path / "a" / "b").exists()
    with pytest.raises(OSError, match="No such file"):
        exchange(tmp_path / "a", tmp_path / "nothing")


@pytest.mark.parametrize("kind", ["pipe", "device", "socketless link"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    for read in (Location.parse(place).read_bytes, Location.parse(place).open_input):
        with pytest.raises(OSError, match="neither a regular file"):
            read()


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    place = tmp_path / "sparse"
    with place.open("wb") as file:
        file.truncate(100 << 30)
    with pytest.raises(OSError, match="allowed at most"):
        Location.parse(place).read_bytes()
