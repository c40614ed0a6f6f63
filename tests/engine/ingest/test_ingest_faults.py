"""Ingest that is interrupted: killed driver, killed worker, no room; a second run ends with the same bytes."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.formats.registry import open_dataset
from engine.ingest import shard as ingest_shard
from engine.ingest.job import IngestOptions, ingest
from engine.store import storage
from engine.store.storage import Location
from engine.store.verify import verify

ROOT = Path(__file__).resolve().parents[3]
PER_SHARD = 6


class Stopped(Exception):
    """Stands for a process that ends in the middle."""


@pytest.fixture
def table(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> Path:
    """60 specimens, some of them without a usable photo or barcode, one a duplicate."""
    folder = tmp_path / "source"
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.jpg").write_bytes(make_jpeg(n))
    (folder / "3.jpg").write_bytes(b"no photo")
    rows = [f"s{n},{n % 4}.jpg,{'ACGT' * (n % 5)}{'X!' if n % 7 == 0 else ''},train,Diptera" for n in range(60)]
    path = folder / "specimens.csv"
    path.write_text("\n".join(["id,image,barcode,split,order", *rows, rows[5]]) + "\n")
    return path


def run(path: Path, out: Path, **options: Any) -> dict[str, Any]:
    return ingest(
        open_dataset("table", [path]),
        out,
        IngestOptions(**{"parallel": False, "specimens_per_shard": PER_SHARD, **options}),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop_after(monkeypatch: pytest.MonkeyPatch, shards: int, action: Callable[[], None]) -> None:
    """Let `action` happen instead of writing one more shard."""
    write, left = ingest_shard.ShardWriter.write, [shards]

    def stopping(self: ingest_shard.ShardWriter, number: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            action()
        write(self, number)

    monkeypatch.setattr(ingest_shard.ShardWriter, "write", stopping)


def stop() -> None:
    raise Stopped


@pytest.mark.parametrize(("done", "layout"), [(0, "random"), (4, "clustered"), (9, "random")])
def test_a_second_run_continues_and_gives_the_same_bytes(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int, layout: str
) -> None:
    report = run(table, tmp_path / "whole", layout=layout)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, done, stop)
        run(table, tmp_path / "out", layout=layout)
    there = contents(tmp_path / "out")
    assert sum(name.endswith(".tar") for name in there) == done and "manifest.json" not in there
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert run(table, tmp_path / "out", layout=layout) == report
    for name, changed in finished.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == changed, "finished shards are not written again"
    assert contents(tmp_path / "out") == contents(tmp_path / "whole") and verify(tmp_path / "out") == []
    assert report["skipped"]["by_reason"]["duplicate key"] == 1 and report["image_removed"]["count"] == 15


def test_damaged_leftovers_are_written_again(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(table, tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 5, stop)
        run(table, out)
    (out / "000000.tar").write_bytes(b"short")
    (out / "000001.tar").unlink()
    (out / ".ingest" / "000002.done").write_bytes(b"junk")
    (out / ".000003.tar.4711.part").write_bytes(b"half")
    run(table, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_another_plan_is_refused_and_overwritten_only_when_asked(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 3, stop)
        run(table, out)
    before = contents(out)
    for options, told in (({"seed": 1}, "seed"), ({"max_side": 9, "layout": "clustered"}, "layout, max_side")):
        with pytest.raises(ValueError, match=f"an unfinished ingest with other {told}; allowed: .* --overwrite"):
            run(table, out, **options)
    text = table.read_text()
    table.write_text(text.replace("s59,", "s59b,"))
    with pytest.raises(ValueError, match="an unfinished ingest with other specimens; allowed"):
        run(table, out)
    assert contents(out) == before
    table.write_text(text.replace("\n", "\r\n"))
    run(table, out, parallel=False)
    table.write_text(text)
    run(table, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole"), "the same rows in another spelling of the file"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 3, stop)
        run(table, out, seed=1, overwrite=True)
    run(table, out, overwrite=True)
    assert contents(out) == contents(tmp_path / "whole")


def test_an_end_between_manifest_and_tidying_up(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(table, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Path, "rename", lambda self, _: stop() if self.name == ".ingest" else None)
        run(table, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").is_file() and (tmp_path / "out" / ".ingest").is_dir()
    assert run(table, tmp_path / "out") == report
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_end_while_tidying_up_leaves_a_finished_ingest(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(table, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Location, "delete", lambda self: stop() if (self.parent / "manifest.json").is_file() else None)
        run(table, tmp_path / "out")
    assert (tmp_path / "out" / ".ingest-done").is_dir()
    with pytest.raises(ValueError, match="is not empty"):  # as a finished one is never written over
        run(table, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("room", [0, 2_000, 60_000])
def test_no_room_is_one_line_and_the_next_run_continues(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    run(table, tmp_path / "whole")
    real_open, left = open, [room]

    def full(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = real_open(path, mode, *args, **options)
        if str(path).endswith(".part"):
            write = file.write

            class Full:
                def write(self, data: bytes) -> int:
                    left[0] -= len(data)
                    if left[0] < 0:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    return write(data)

                def __getattr__(self, name: str) -> Any:
                    return getattr(file, name)

                def __enter__(self) -> "Full":
                    return self

                def __exit__(self, *error: object) -> None:
                    file.close()

            return Full()
        return file

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(storage, "open", full, raising=False)
        with pytest.raises(ValueError, match=r"^--out: got .*, which cannot be written .*No space left on device"):
            run(table, out)
    assert not [name for name in contents(out) if name.endswith(".part")] and not (out / "manifest.json").exists()
    for path in out.glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes(), "whole or not there"
    run(table, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_place_that_cannot_be_written_in_ray_tasks(table: Path, tmp_path: Path, ray_session: None) -> None:
    """A folder stands where a shard should go: one line; the others are whole or not there; without it all goes on."""
    run(table, tmp_path / "whole")
    out = tmp_path / "out"
    (out / "000005.tar" / "mine").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^--out: got .*/000005.tar, which cannot be written .*Is a directory"):
        run(table, out, overwrite=True, parallel=True)
    assert (out / "000005.tar" / "mine").is_dir() and not (out / "manifest.json").exists()
    (out / "000005.tar" / "mine").rmdir()
    (out / "000005.tar").rmdir()
    for path in out.glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    run(table, out, parallel=True)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_killed_worker_is_replaced(table: Path, tmp_path: Path, ray_session: None) -> None:
    """SIGKILL in the middle of a shard; Ray runs the task again."""
    run(table, tmp_path / "whole")
    source, marker = open_dataset("table", [table]), tmp_path / "killed"

    class Deadly:  # in a function, so that it travels to workers by value
        inner = source  # of which the names are
        skipped = source.skipped
        batches = source.batches

        def load_image(self, ref: str) -> bytes:
            if ref.endswith("2.jpg") and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return source.load_image(ref)

    ingest(Deadly(), tmp_path / "out", IngestOptions(specimens_per_shard=PER_SHARD))
    assert marker.exists() and contents(tmp_path / "out") == contents(tmp_path / "whole")


PROGRAM = """
import sys, time
from pathlib import Path
from engine.formats.registry import open_dataset
from engine.formats.table import TableSource
from engine.ingest.job import IngestOptions, ingest

def slowly(self, ref, load=TableSource.load_image):
    time.sleep(0.05)
    return load(self, ref)

TableSource.load_image = slowly
ingest(open_dataset("table", [Path(sys.argv[1])]), sys.argv[2], IngestOptions(specimens_per_shard=6, parallel=False))
"""


@pytest.mark.middle
def test_a_killed_driver_is_followed_by_another(table: Path, tmp_path: Path) -> None:
    """SIGKILL while shards are written; then the same ingest again."""
    run(table, tmp_path / "whole")
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(table), str(out)], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not list(out.glob("*.tar")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL and list(out.glob("*.tar")) and not (out / "manifest.json").exists()
    run(table, out)
    assert contents(out) == contents(tmp_path / "whole")
