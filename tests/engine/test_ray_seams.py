"""Which cluster a command runs on."""

import os
import socket
from collections.abc import Iterator

import pytest
import ray
from ray._private import utils

from engine import ray_seams as tasks


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What `ray.init` is called with."""
    given: dict[str, object] = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return given


@pytest.fixture
def port() -> Iterator[int]:
    """A port at which somebody answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_cluster_that_stands_is_joined(asked: dict[str, object], port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "read_ray_address", lambda: f"127.0.0.1:{port}")
    tasks.start_ray()
    assert asked and "address" not in asked


@pytest.mark.parametrize("noted", ["closed", "", "no address"])
def test_a_cluster_that_is_gone_is_not_looked_for(
    noted: str, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if noted == "closed":
        with socket.create_server(("127.0.0.1", 0)) as server:
            noted = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(utils, "read_ray_address", lambda: noted)
    tasks.start_ray(num_cpus=2)
    assert asked["num_cpus"] == 2
    assert asked.get("address") == ("local" if noted else None)
    assert (noted in caplog.text) if noted else not caplog.text


def test_what_the_environment_says_goes_first(asked: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "read_ray_address", lambda: "127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    tasks.start_ray()
    assert "address" not in asked


@pytest.mark.parametrize("given", ["", "1000"])
def test_a_ray_that_is_started_keeps_waiting_processes_unless_told_otherwise(
    given: str, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    ((name, value),) = tasks.NODE.items()
    monkeypatch.setenv(name, given)  # so that it is as before afterwards
    if not given:
        monkeypatch.delenv(name)
    tasks.start_ray(address="local")
    assert asked["address"] == "local" and os.environ[name] == (given or value)
