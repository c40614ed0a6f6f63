"""What listens on the network where a command starts Ray, against the list of infra/SECURITY.md."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow  # starts Ray
def test_listeners_are_those_of_the_list() -> None:
    text = (ROOT / "infra" / "SECURITY.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (all addresses|the node's address|loopback) \|", text, re.MULTILINE)
    listed = {name: where for name, where in rows}
    assert len(listed) > 5
    command = [sys.executable, "-m", "tests.infra.listeners"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) <= set(listed), "a process listens that SECURITY.md does not name"
    for name, addresses in found.items():
        if listed[name] == "loopback":
            assert set(addresses) <= {"127.0.0.1", "::1"}, name
        elif listed[name] == "the node's address":
            assert not {"0.0.0.0", "::"} & set(addresses), name
