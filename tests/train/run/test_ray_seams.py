"""The contracts of what Ray does not promise and training relies on (`pytest -m ray_contract`)."""

import importlib
import inspect
import mmap
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from ray._private import services, utils

from train.run import ray_seams

HOMES = {  # switch -> where Ray reads it
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "ray.train.v2._internal.constants",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "ray.train.v2._internal.constants",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "ray._private.accelerators.accelerator",
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "ray.data.context",
    "RAY_AIR_NEW_OUTPUT": "ray.tune.experimental.output",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "ray.tune.utils.callback",
    "TUNE_DISABLE_SIGINT_HANDLER": "ray.tune.tune",
}


def contract_switches(_: Path) -> None:
    """Each environment switch is read where it was."""
    for name in ray_seams.SWITCHES:
        assert f'"{name}"' in inspect.getsource(importlib.import_module(HOMES[name])), f"Ray does not read {name}"


def contract_niceness(_: Path) -> None:
    """Ray's core, which runs in every worker, reads its niceness from the environment."""
    with Path(ray._raylet.__file__).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        for name in ray_seams.TRAIN_NICENESS:
            assert whole.find(name.removeprefix("RAY_").encode()) >= 0, f"Ray does not know {name}"


def contract_backend(_: Path) -> None:
    """What is called at the start of each worker is called in its main thread, by Ray's own backend."""
    asked: list[Any] = []

    class Group:
        def execute(self, function: Callable[[], None], *_: Any, **__: Any) -> list[Any]:
            asked.append(function)
            return []

    backend = ray_seams.torch_setup(signal.default_int_handler).backend_cls()
    base: Any = type(backend).__mro__[1]
    started = base.on_start
    base.on_start = lambda *_: None
    try:
        backend.on_start(Group(), None)
    finally:
        base.on_start = started
    assert asked == [signal.default_int_handler]
    assert "on_start(" in inspect.getsource(importlib.import_module("ray.train.v2._internal.callbacks.backend_setup"))


def contract_failures(_: Path) -> None:
    """A failed training says which rank raised what."""
    wrong = ValueError("a mistake")
    assert ray_seams.failures_of(ray.train.WorkerGroupError("failed", {1: wrong})) == {1: wrong}


def contract_started_apart(_: Path) -> None:
    """Ray starts its processes through the class that is replaced, and sets its handler through the function."""
    before = services.ConsolePopen, utils.set_sigterm_handler, signal.getsignal(signal.SIGTERM)
    with ray_seams.started_apart():
        assert services.ConsolePopen.keywords == {"start_new_session": True}  # type: ignore[attr-defined]
        utils.set_sigterm_handler(signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is before[2]
    assert (services.ConsolePopen, utils.set_sigterm_handler) == before[:2]
    assert "ConsolePopen(" in inspect.getsource(services.start_ray_process)


def contract_cpus(_: Path) -> None:
    """Ray counts the CPUs of a container as a fraction only when it is asked so, and cuts it off."""
    assert ray_seams.counted_cpus() >= 1
    assert "override_docker_cpu_warning" in inspect.signature(utils.get_num_cpus).parameters


def contract_note(tmp_path: Path) -> None:
    """The note of the last cluster belongs to whoever started it."""
    folder = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = str(tmp_path)
    try:
        note = Path(utils.get_ray_address_file(None))
        assert tmp_path in note.parents
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text("127.0.0.1:1")
        assert ray_seams.owner_of_noted_cluster() == os.getuid()
    finally:
        os.environ.pop("RAY_TMPDIR")
        if folder:
            os.environ["RAY_TMPDIR"] = folder


def contract_job(_: Path) -> None:
    """A job's driver is given its working folder in this variable."""
    from ray._private.runtime_env import constants

    assert constants.RAY_JOB_CONFIG_JSON_ENV_VAR == "RAY_JOB_CONFIG_JSON_ENV_VAR"


CONTRACTS: dict[str, Callable[[Path], None]] = {
    contract.__name__.removeprefix("contract_"): contract
    for contract in (
        contract_switches,
        contract_niceness,
        contract_backend,
        contract_failures,
        contract_started_apart,
        contract_cpus,
        contract_note,
        contract_job,
    )
}


@pytest.mark.ray_contract
@pytest.mark.parametrize("name", CONTRACTS)
def test_contract(name: str, tmp_path: Path) -> None:
    CONTRACTS[name](tmp_path)


BREAKS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "switches": lambda patch: patch.setitem(ray_seams.SWITCHES, "RAY_AIR_RENAMED", "0"),
    "niceness": lambda patch: patch.setattr(ray_seams, "TRAIN_NICENESS", {"RAY_worker_renamed": "0"}),
    "backend": lambda patch: patch.setitem(sys.modules, "ray.train.v2._internal.callbacks.backend_setup", None),
    "failures": lambda patch: patch.delattr("ray.train.WorkerGroupError"),
    "started_apart": lambda patch: patch.delattr(services, "ConsolePopen"),
    "cpus": lambda patch: patch.setattr(utils, "get_num_cpus", lambda: 1),
    "note": lambda patch: patch.setattr(utils, "get_ray_address_file", lambda _: "/nowhere"),
}


@pytest.mark.ray_contract
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_seam_breaks_its_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the tests: with the seam taken away by hand, its contract fails."""
    BREAKS[name](monkeypatch)
    with pytest.raises((AssertionError, AttributeError, ImportError, KeyError)):
        CONTRACTS[name](tmp_path)


def test_without_its_seams_training_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.torch import TorchConfig

    monkeypatch.delattr("ray.train.torch.config._TorchBackend")
    assert type(ray_seams.torch_setup(lambda: None)) is TorchConfig
    monkeypatch.delattr(utils, "get_num_cpus")
    assert ray_seams.counted_cpus() == os.cpu_count()
    monkeypatch.delattr(utils, "get_ray_address_file")
    assert ray_seams.owner_of_noted_cluster() is None
    assert ray_seams.failures_of(RuntimeError("another shape")) == {}
    monkeypatch.delattr(utils, "set_sigterm_handler")
    with ray_seams.started_apart():
        assert not hasattr(services.ConsolePopen, "keywords")
