"""What keeps Ray from starting is named before it is tried; what is asked is compared with what is there."""

import os
import socket
import time
from pathlib import Path

import pytest

from train.run import cluster, ray_seams


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment without anything of Ray's."""
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray_seams, "owner_of_noted_cluster", lambda: None)
    monkeypatch.setattr(ray_seams, "counted_cpus", lambda: 2.0)
    return monkeypatch


def test_an_address_where_nobody_answers(plain: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        plain.setenv("RAY_ADDRESS", address)
        assert cluster._where() == {}
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"RAY_ADDRESS: got {address}, where nobody answers; allowed: .*local"):
        cluster._where()
    assert time.monotonic() - started < 10


def test_somebody_elses_ray_is_left_alone(plain: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    plain.setattr(ray_seams, "owner_of_noted_cluster", lambda: os.getuid() + 1)
    assert cluster._where() == {"address": "local"}
    assert "another user's Ray stands on this machine" in caplog.text
    plain.setattr(ray_seams, "owner_of_noted_cluster", os.getuid)
    assert cluster._where() == {}


def test_half_a_cpu_counts_as_one(plain: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    plain.setattr(ray_seams, "counted_cpus", lambda: 0.0)
    assert cluster._where() == {"num_cpus": 1, "address": "local"}
    assert "less than one CPU" in caplog.text


def test_a_folder_too_long_for_sockets(plain: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    plain.setenv("TMPDIR", "/tmp/" + "x" * 85)
    cluster.short_folder()
    assert os.environ["RAY_TMPDIR"] == "/tmp" and "TMPDIR is too long" in caplog.text
    plain.setenv("RAY_TMPDIR", "/tmp/" + "y" * 85)
    with pytest.raises(ValueError, match=r"RAY_TMPDIR: got /tmp/y+, 90 letters; allowed: at most"):
        cluster.short_folder()


def test_a_home_that_cannot_be_written(plain: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    plain.setenv("HOME", "/proc")
    cluster.writable_home()
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert len(token.read_text()) == 64 and token.parent.stat().st_mode & 0o077 == 0
    assert "HOME=/proc cannot be written" in caplog.text


def test_what_the_cluster_lacks_is_said_at_once(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.require({"CPU": 0.01}, 2, wait=False)
    with pytest.raises(
        ValueError, match=r"training needs 1 GPU, there are 0; 1 trian, there are 0; allowed: .* or --wait"
    ):
        cluster.require({"CPU": 0.01, "GPU": 1.0, "trian": 1.0}, 1, wait=False)


def test_waiting_says_for_what(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    answers = iter([{"CPU": 2.0}, {"CPU": 2.0, "train": 1.0}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: next(answers))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    cluster.require({"train": 1.0}, 1, wait=True)
    assert "waiting for nodes: training needs 1 train, there are 0" in caplog.text


def test_silence_is_broken(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(cluster, "FIRST_WORD_S", 0.02)
    with cluster.said("starting Ray"):
        time.sleep(0.2)
    assert caplog.text.count("starting Ray (0 s)") == 1
