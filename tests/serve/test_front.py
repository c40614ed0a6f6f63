"""The contracts of what Ray Serve does not promise and `serve.front` relies on (`pytest -m ray_contract`)."""

import inspect
import json
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
        for name in [name for name in os.environ if name.startswith(OURS)]:  # of a command that ran in this process
            del os.environ[name]
        assert front.use_haproxy(folder, "::1", 8000)
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


VALUES = {"metrics_port": "9101", "stats_port": "8404", "frontend_host": front.LOOPBACK, "frontend_port": "8000"}


def edited(folder: Path) -> list[str]:
    """Return the lines of Ray's template of a configuration as the wrapper of HAProxy leaves them."""
    text = "\n".join(text for text in vars(haproxy_templates).values() if isinstance(text, str))
    for name, value in VALUES.items():
        text = text.replace(f"{{{{ config.{name} }}}}", value)
    file = folder / "cfg"
    file.write_text(text)
    wrapper = Path(asked_of_ray(folder)["RAY_SERVE_HAPROXY_BINARY_PATH"])
    wrapper.write_text(re.sub('exec ".*"', "exec true", wrapper.read_text()))
    subprocess.run([wrapper, "-db", "-f", file], check=True)
    return [line.strip() for line in file.read_text().splitlines()]


def contract_binds(folder: Path) -> None:
    """Each address that HAProxy's file opens to the network is one that the wrapper closes."""
    lines = edited(folder)
    assert "bind 127.0.0.1:9101" in lines and "bind ipv6@::1:8000" in lines
    assert not [line for line in lines if re.match(r"bind \*?:\d+", line)]


def contract_later(folder: Path) -> None:
    """Where no replica answers, a client gets 503 with Retry-After: Ray's 500 and 404 are found and replaced."""
    lines = edited(folder)
    answers = [line for line in lines if line.startswith("errorfile")]
    assert answers == [f"errorfile {status} {folder}/later.http" for status in (502, 503, 504)]
    assert "http-request deny deny_status 503" in lines and not [line for line in lines if "return status 404" in line]
    assert lines[lines.index("frontend http_frontend") + 1].startswith("http-response return status 503 default-errorf")
    head, _, body = (folder / "later.http").read_bytes().partition(b"\r\n\r\n")
    assert b"Retry-After: 5\r\n" in head and f"Content-Length: {len(body)}".encode() in head
    assert set(json.loads(body)["error"]) == {"what", "allowed"}


CONTRACTS: dict[str, Callable[[Path], None]] = {
    "names": contract_names,
    "header": contract_header,
    "binds": contract_binds,
    "later": contract_later,
}
BREAKS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "names": lambda patch: patch.setattr(front, "CLUSTER", {f"{OURS}RENAMED": "1"}),
    "header": lambda patch: patch.setattr(constants, "SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER", "x-renamed"),
    "binds": lambda patch: patch.setattr(haproxy_templates, "ONE_MORE", "    bind *:9999 ssl crt x\n", raising=False),
    "later": lambda patch: patch.setattr(
        haproxy_templates, "ONE_MORE", "    errorfile 503 {{ other }}\n", raising=False
    ),
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
