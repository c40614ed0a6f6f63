"""All writers killed at every file operation, by a full disk and by each other: the old state or the new one.

`tests/engine/store/test_commits.py` does the same for folders, single files and libraries.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from engine.formats.registry import open_dataset
from engine.ingest.job import IngestOptions, ingest
from engine.store.commits import finish_files, locked, new_files
from engine.store.storage import Location
from engine.store.verify import verify
from serve import library as command
from serve.answers import candidates
from serve.bulk import job as bulk
from tests.engine.store.killed import killed_at
from tests.engine.store.test_commits import known
from train.inference.calibration import Calibration
from train.pages import report

pytestmark = pytest.mark.middle  # forks a writer for each of its file operations

MAX_OPERATIONS = 400
Writer = Callable[[Path, str], object]
"""Writes the state "old" or "new" into a folder."""


def write_calibration(folder: Path, state: str) -> None:
    Calibration(state, {}).save(folder / "calibration.json")


def write_candidates(folder: Path, state: str) -> None:
    candidates._write(folder / candidates.FILE, torch.full((2, 3), float(len(state))), state)


def write_evaluation(folder: Path, state: str) -> None:
    with locked(folder):
        report.write(folder, {"accuracy": 0.5}, state * 100, state, pa.table({"key": [state]}))


def write_files(folder: Path, state: str) -> None:
    with locked(folder), new_files(folder) as part:
        for number in range(3):
            (part / f"{number}.txt").write_text(state * 1000)


def write_shards(folder: Path, state: str) -> None:
    """The old state is a folder that is empty: what an ingest would replace it removes on demand, and first."""
    if state == "old":
        return
    source = folder.parent.parent / "records.csv"
    if not source.exists():
        source.write_text("id,dna,species\n" + "".join(f"s{n},{'ACGT' * (9 + n)},Musca domestica\n" for n in range(8)))
    options = IngestOptions(specimens_per_shard=4, parallel=False)
    ingest(open_dataset("table", [source]), folder, options)


WRITERS: dict[str, Writer] = {
    "calibration": write_calibration,
    "candidates": write_candidates,
    "evaluation": write_evaluation,
    "files": write_files,
    "ingest": write_shards,
}


def state_of(folder: Path) -> dict[str, str]:
    """Return {file: sha256} of a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


NAMES = [pytest.param(name, marks=pytest.mark.slow if name == "ingest" else ()) for name in WRITERS]


@pytest.mark.parametrize("name", NAMES)
def test_a_writer_leaves_the_old_state_or_the_new_one_wherever_it_dies(tmp_path: Path, name: str) -> None:
    write, states = WRITERS[name], {}
    for state in ("old", "new"):
        place = tmp_path / state / "out"
        place.mkdir(parents=True)
        write(place, state)
        (place / "other.txt").write_text("of the user")
        states[state] = state_of(place)
    seen = set()
    for number in range(MAX_OPERATIONS):
        place = tmp_path / str(number) / "out"
        place.mkdir(parents=True)
        write(place, "old")
        died = killed_at(number, lambda place=place: write(place, "new"))  # type: ignore[misc]
        recover(name, place)
        (place / "other.txt").write_text("of the user")
        found = [state for state, files in states.items() if state_of(place) == files]
        assert len(found) == 1, (number, sorted(set(state_of(place)) ^ set(states["old"])))
        seen.add(found[0])
        if not died:
            break
    assert not died and number > 2 and seen == ({"new"} if name == "ingest" else {"old", "new"})


def recover(name: str, place: Path) -> None:
    """Do what the next start does before it writes: an ingest goes on, a writer of files finishes or clears up."""
    if name == "ingest":
        try:
            write_shards(place, "new")
        except ValueError as error:
            assert "not empty" in str(error)  # it was finished
        assert verify(place) == []
        return
    with locked(place):
        finish_files(place)
        for left in place.glob(".*.part"):  # a name of the dead process' own: nobody reads it
            left.unlink()


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "ingest"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_or_read_only_disk_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    WRITERS[name](tmp_path, "old")
    before = state_of(tmp_path)

    def fail(number: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        try:
            WRITERS[name](tmp_path, "new")
        except OSError as error:
            assert error.filename and "\n" not in str(error)
        else:
            assert name == "candidates"  # features that are made anew at each start: a warning
    assert state_of(tmp_path) == before


def test_an_ingest_on_a_full_disk_says_so_in_a_line_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    place = tmp_path / "a" / "out"

    def fail(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(ValueError, match="No space left on device") as caught:
            write_shards(place, "new")
    assert "\n" not in str(caught.value)
    write_shards(place, "new")
    assert verify(place) == []


@pytest.mark.parametrize("name", ["evaluation", "files", "ingest"])
def test_the_second_writer_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    place = tmp_path / "a" / "out"
    place.mkdir(parents=True)
    WRITERS[name](place, "old")
    before = state_of(place)
    with locked(place), pytest.raises(ValueError, match="another process is writing"):
        WRITERS[name](place, "new")
    assert state_of(place) == before
    WRITERS[name](place, "new")


def bulk_run(folder: Path, threshold: float, *more: str) -> str:
    arguments = ["--library", str(folder.parent.parent / "lib"), "--out", str(folder / "result.csv"), "--serial"]
    parser = bulk.parser()
    source = str(folder.parent.parent / "records.csv")
    return bulk.run(parser.parse_args([source, *arguments, "--threshold", str(threshold), *more]))


@pytest.mark.slow  # each of some 60 operations is a whole bulk run
def test_a_bulk_result_is_old_or_new_wherever_it_dies(tmp_path: Path) -> None:
    command.build(known(0), tmp_path / "lib")
    records = known(0)
    rows = zip(records.records["key"].to_pylist(), records.barcodes, strict=True)
    (tmp_path / "records.csv").write_text("id,dna\n" + "".join(f"{key},{dna}\n" for key, dna in rows))
    states = {}
    for state, threshold in (("old", 0.2), ("new", 0.9)):
        place = tmp_path / state / "out"
        place.mkdir(parents=True)
        bulk_run(place, threshold)
        states[state] = state_of(place)["result.csv"]
    for number in range(0, MAX_OPERATIONS, 3):
        place = tmp_path / str(number) / "out"
        shutil.copytree(tmp_path / "old" / "out", place)
        died = killed_at(number, lambda place=place: bulk_run(place, 0.9, "--overwrite"))  # type: ignore[misc]
        assert state_of(place)["result.csv"] in states.values()
        bulk_run(place, 0.9, "--overwrite")
        assert state_of(place)["result.csv"] == states["new"]
        assert {path.name for path in place.iterdir()} == {"result.csv", "result.csv.json"}
        if not died:
            break
    assert not died and number > 6


def test_a_location_names_the_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system")))
    with pytest.raises(OSError, match="Read-only") as caught:
        Location.parse(tmp_path / "a").write_atomically(b"x")
    assert caught.value.filename == str(tmp_path / "a") and list(tmp_path.iterdir()) == []
