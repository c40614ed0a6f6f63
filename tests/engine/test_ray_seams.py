"""Which cluster a command runs on, and the contracts of what Ray does not promise (`pytest -m ray_contract`)."""

import importlib
import inspect
import logging
import mmap
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray._private import utils

from engine import ray_seams


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
    monkeypatch.setattr(utils, "read_ray_address", lambda _: f"127.0.0.1:{port}")
    ray_seams.start_ray()
    assert asked and "address" not in asked


@pytest.mark.parametrize("noted", ["closed", "", "no address"])
def test_a_cluster_that_is_gone_is_not_looked_for(
    noted: str, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if noted == "closed":
        with socket.create_server(("127.0.0.1", 0)) as server:
            noted = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(utils, "read_ray_address", lambda _: noted)
    ray_seams.start_ray(num_cpus=2)
    assert asked["num_cpus"] == 2
    assert asked.get("address") == ("local" if noted else None)
    assert (noted in caplog.text) if noted else not caplog.text


def test_what_the_environment_says_goes_first(asked: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "read_ray_address", lambda _: "127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    ray_seams.start_ray()
    assert "address" not in asked


@pytest.mark.parametrize("given", ["", "1000"])
def test_a_ray_that_is_started_keeps_waiting_processes_unless_told_otherwise(
    given: str, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    ((name, value),) = ray_seams.NODE.items()
    monkeypatch.setenv(name, given)  # so that it is as before afterwards
    if not given:
        monkeypatch.delenv(name)
    ray_seams.start_ray(address="local")
    assert asked["address"] == "local" and os.environ[name] == (given or value)


# The contracts. Each is a function that fails when a seam of `engine.ray_seams` no longer does what it is there for.


def contract_noted_cluster(tmp_path: Path) -> None:
    """The note of the last cluster is where we read it."""
    assert ray_seams.noted_cluster(str(tmp_path)) is None
    Path(utils.get_ray_address_file(str(tmp_path))).write_text("127.0.0.1:6379\n")
    assert ray_seams.noted_cluster(str(tmp_path)) == "127.0.0.1:6379"


def contract_idle_processes(_: Path) -> None:
    """The program that runs on every node reads the setting of this name from its environment."""
    program = Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet"
    with program.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        for name in ray_seams.NODE:
            assert whole.find(name.removeprefix("RAY_").encode()) >= 0, f"raylet does not know {name}"


def contract_polling(_: Path) -> None:
    """The executor still has both constants, and reads them at the moment when it waits."""
    assert ray_seams.poll_every(ray_seams.POLL_S)
    from ray.data._internal.execution import resource_manager, streaming_executor_state

    waits = inspect.getsource(streaming_executor_state.process_completed_tasks)
    assert "timeout=WAIT_FOR_TASK_COMPLETION_TIMEOUT_S" in waits
    assert "self.GLOBAL_LIMITS_UPDATE_INTERVAL_S" in inspect.getsource(resource_manager.ResourceManager)


def contract_loggers(_: Path) -> None:
    """The loggers that are quietened are those that talk."""
    ray_seams.quiet_data()
    for name in ("ray.data", ray_seams.PROGRESS_LOGGER):
        module = importlib.import_module(name)
        assert logging.getLogger(module.__name__).getEffectiveLevel() >= logging.WARNING
    progress = sys.modules[ray_seams.PROGRESS_LOGGER]
    assert progress.logger.name == ray_seams.PROGRESS_LOGGER and "logger.warning" in inspect.getsource(progress)


def contract_execution(_: Path) -> None:
    """A real execution: each number is one task and one block, in order; the callback is asked and sees the tasks."""
    seen: list[int | None] = []
    asked = ray_seams.ExecutorRest.on_execution_step
    ray_seams.ExecutorRest.on_execution_step = (  # type: ignore[method-assign]
        lambda self, executor: seen.append(ray_seams.running_tasks(executor))
    )
    try:
        dataset = ray_seams.numbered_tasks(6).map_batches(lambda batch: {"twice": batch["item"] * 2}, batch_size=1)
        dataset.context.execution_options.preserve_order = True
        assert hasattr(dataset, "iter_internal_ref_bundles")
        blocks = list(ray_seams.started_blocks(dataset))
    finally:
        ray_seams.ExecutorRest.on_execution_step = asked  # type: ignore[method-assign]
    assert [block["twice"].tolist() for block in blocks] == [[0], [2], [4], [6], [8], [10]]
    assert seen and None not in seen and max(count or 0 for count in seen) > 0


CONTRACTS = {
    contract.__name__.removeprefix("contract_"): contract
    for contract in (contract_noted_cluster, contract_idle_processes, contract_polling, contract_loggers)
}


@pytest.mark.ray_contract
@pytest.mark.parametrize("name", CONTRACTS)
def test_contract(name: str, tmp_path: Path) -> None:
    CONTRACTS[name](tmp_path)


@pytest.mark.ray_contract
def test_contract_of_an_execution(ray_session: None, tmp_path: Path) -> None:
    contract_execution(tmp_path)


BREAKS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "noted_cluster": lambda patch: patch.delattr(utils, "read_ray_address"),
    "idle_processes": lambda patch: patch.setattr(ray_seams, "NODE", {"RAY_idle_worker_renamed_ms": "1"}),
    "polling": lambda patch: patch.delattr(
        "ray.data._internal.execution.streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S"
    ),
    "loggers": lambda patch: patch.setattr(ray_seams, "PROGRESS_LOGGER", "ray.data._internal.renamed"),
}


@pytest.mark.ray_contract
@pytest.mark.parametrize("name", CONTRACTS)
def test_a_broken_seam_breaks_its_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the tests: with the seam taken away by hand, its contract fails."""
    BREAKS[name](monkeypatch)
    with pytest.raises((AssertionError, AttributeError, ImportError)):
        CONTRACTS[name](tmp_path)


def test_without_its_seams_engine_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that hides all of it costs time, not results."""
    from ray.data._internal.execution import streaming_executor_state

    monkeypatch.delattr(utils, "read_ray_address")
    assert ray_seams.noted_cluster() is None
    monkeypatch.delattr(streaming_executor_state, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S")
    assert not ray_seams.poll_every(0.1)
    monkeypatch.undo()
    assert ray_seams.running_tasks(SimpleNamespace()) is None
    with ray_seams.unhurried():
        monkeypatch.setattr(ray_seams.ExecutorRest.wanted, "wait", lambda _: pytest.fail("rested beside running tasks"))
        ray_seams.ExecutorRest().on_execution_step(SimpleNamespace())
    blocks = [{"item": np.arange(2)}]
    public = SimpleNamespace(iter_batches=lambda **_: blocks)
    assert list(ray_seams.started_blocks(public)) == blocks
