"""The contracts of what Ray Serve does not promise and `serve.front` relies on (`pytest -m ray_contract`)."""

import inspect
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from ray.serve._private import constants, haproxy_templates, http_util

from serve import front

pytestmark = pytest.mark.middle  # they run `sed`
OURS = "RAY_SERVE_"


def asked_of_ray(folder: Path) -> dict[str, str]:
    """Return what `use_haproxy` leaves in the environment for Ray Serve."""
    with mock.patch.dict(os.environ):
        assert front.use_haproxy(folder)
        return {name: value for name, value in os.environ.items() if name.startswith(OURS)}


def contract_names(folder: Path) -> None:
    """Ray Serve reads each variable by this name."""
    source = inspect.getsource(constants)
    for name in asked_of_ray(folder):
        assert f'"{name}"' in source, f"Ray Serve does not read {name}"


def contract_header(_: Path) -> None:
    """A request that is marked with this header is not watched."""
    marked: list[tuple[bytes, bytes]] = []

    async def app(scope: dict[str, list[tuple[bytes, bytes]]], *_: object) -> None:
        marked.extend(scope["headers"])

    with pytest.raises(StopIteration):
        front.Unwatched(app)({"type": "http", "headers": []}, None, None).send(None)
    assert marked == [(constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER.encode(), b"?1")]
    assert '"?1"' in inspect.getsource(http_util)


def contract_binds(folder: Path) -> None:
    """Each address that HAProxy's file opens to the network is one that the wrapper closes."""
    template = "\n".join(text for text in vars(haproxy_templates).values() if isinstance(text, str))
    template = template.replace("{{ config.metrics_port }}", "9101").replace("{{ config.stats_port }}", "8404")
    file = folder / "cfg"
    file.write_text(template)
    found = asked_of_ray(folder)
    wrapper = Path(found["RAY_SERVE_HAPROXY_BINARY_PATH"])
    wrapper.write_text(re.sub('exec ".*"', "exec true", wrapper.read_text()))
    subprocess.run([wrapper, "-db", "-f", file], check=True)
    open_lines = [line for line in file.read_text().splitlines() if re.match(r"\s*bind \*?:\d+", line)]
    assert "127.0.0.1:9101" in file.read_text() and not open_lines


CONTRACTS: dict[str, Callable[[Path], None]] = {
    "names": contract_names,
    "header": contract_header,
    "binds": contract_binds,
}
BREAKS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "names": lambda patch: patch.setattr(front, "CLUSTER", {f"{OURS}RENAMED": "1"}),
    "header": lambda patch: patch.setattr(constants, "SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER", "x-renamed"),
    "binds": lambda patch: patch.setattr(haproxy_templates, "ONE_MORE", "    bind *:9999 ssl\n", raising=False),
}


@pytest.mark.ray_contract
@pytest.mark.parametrize("name", CONTRACTS)
def test_contract(name: str, tmp_path: Path) -> None:
    CONTRACTS[name](tmp_path)


@pytest.mark.ray_contract
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_seam_breaks_its_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BREAKS[name](monkeypatch)
    with pytest.raises(AssertionError):
        CONTRACTS[name](tmp_path)
