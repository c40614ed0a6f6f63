"""The doctor: every problem is found where it is made, and says what to do; on a healthy machine and cluster none."""

import dataclasses
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import checks, collective, doctor
from infra.checks import Finding, Request

pytestmark = pytest.mark.middle


def one(found: list[Finding], check: str) -> Finding:
    (finding,) = [finding for finding in found if finding.check == check]
    return finding


def test_this_machine(simulated_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line of a training, given to the doctor."""
    arguments = ["--this-machine", "--set", f"data.shards={simulated_shards}", "--set", f"run.storage={tmp_path}/runs"]
    assert doctor.main(arguments) == 0
    text = capsys.readouterr().out
    assert "320 specimens" in text and "shared and writable" in text and "0 problems" in text
    assert list((tmp_path / "runs").iterdir()) == []  # nothing is left of it


def test_problems_are_said_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"data.shards={tmp_path}/none", f"run.storage={tmp_path}/runs", "run.tracking_uri=http://127.0.0.1:9"]
    arguments = ["--this-machine", "--json", *(part for setting in settings for part in ("--set", setting))]
    assert doctor.main(arguments) == 1
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["shards"]["status"] == "problem" and "does not exist" in found["shards"]["what"]
    assert found["MLflow"]["status"] == "problem" and "refused" in found["MLflow"]["what"]
    assert all(found[name]["fix"] for name in ("shards", "MLflow"))


def test_wrong_settings_are_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--this-machine", "--set", "run.colour=red"]) == 2
    assert "unknown configuration key" in capsys.readouterr().err


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Named by RAY_ADDRESS or waited for: an error in one line, not this machine instead."""
    import ray

    def refused(**_: object) -> None:
        raise ConnectionError("no cluster")

    monkeypatch.setattr(ray, "init", refused)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert doctor.main(["--wait-for-nodes", "2"]) == 2
    assert "no cluster at this machine; allowed" in capsys.readouterr().err


def test_a_cluster_that_takes_no_jobs() -> None:
    assert doctor.jobs_server("127.0.0.1:8265").status == "ok"
    found = doctor.jobs_server("")
    assert found.status == "warning" and "ray job submit" in found.what and "8265" in found.fix


def test_versions_that_differ_from_the_driver() -> None:
    here = checks.own_versions()
    assert checks.versions(here).status == "ok"
    found = checks.versions(here | {"ray": "2.9.0"})
    assert found.status == "problem" and f"ray {here['ray']}, not 2.9.0" in found.what


def test_shared_memory_smaller_than_the_object_store() -> None:
    assert checks.shared_memory(1.0).status == "ok"
    found = checks.shared_memory(2.0**60)
    assert found.status == "problem" and "--shm-size" in found.fix
    assert checks.memory(2.0**60).status == "warning"


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a folder that is not made yet, too; nearly full is a problem, little left a warning."""
    usage = checks.shutil.disk_usage
    for total, free, status in ((1e12, 1e11, "ok"), (1e12, 1e10, "problem"), (1e11, 1e10, "warning")):
        monkeypatch.setattr(checks.shutil, "disk_usage", lambda _, t=total, f=free: type(usage("/"))(int(t), 0, int(f)))
        assert checks.disk(str(tmp_path / "not" / "yet")).status == status


def test_ports(unused: int) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert checks.ports_free([port]).what == f"in use: {port}"
        assert checks.peers([("127.0.0.1", port)]).status == "ok"
    assert checks.ports_free([unused]).status == "ok"
    found = checks.peers([("127.0.0.1", unused)])
    assert found.status == "problem" and f"127.0.0.1:{unused}" in found.what


@pytest.fixture
def unused() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_storage_that_is_not_shared(tmp_path: Path) -> None:
    (tmp_path / "marker").touch()
    assert checks.storage(str(tmp_path), str(tmp_path / "marker")).status == "ok"
    assert "not seen here" in checks.storage(str(tmp_path), str(tmp_path / "elsewhere")).what


@pytest.fixture
def answering() -> Iterator[dict[str, int]]:
    """A server that answers with the status that it is told; its address."""
    told = {"status": 200}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(told["status"])
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told["port"] = server.server_address[1]
    yield told
    server.shutdown()
    server.server_close()


def test_mlflow(answering: dict[str, int]) -> None:
    """Up, up but refusing our name for it, and a file where a cluster needs a server."""
    uri = f"http://127.0.0.1:{answering['port']}"
    assert checks.mlflow(uri, 3).status == "ok"
    answering["status"] = 403
    assert "--allowed-hosts" in checks.mlflow(uri, 3).fix
    assert checks.mlflow("sqlite:////runs/mlflow.db", 1).status == "ok"
    found = checks.mlflow("sqlite:////runs/mlflow.db", 2)
    assert found.status == "problem" and "mlflow server" in found.fix


def test_gpus_that_ray_counts_and_torch_does_not_see() -> None:
    """On a machine without a GPU: two that somebody promised."""
    if checks.device_files():
        pytest.skip("no GPU")  # is what this test needs
    assert one(checks.gpus(0.0), "GPU").status == "ok"
    found = one(checks.gpus(2.0), "GPU")
    assert found.status == "problem" and "torch (CUDA" in found.what and "sees 0" in found.what


def test_a_check_that_breaks_is_a_problem() -> None:
    def broken() -> Finding:
        raise RuntimeError("strange machine")

    (found,) = checks.guarded("disk", broken)
    assert found.status == "problem" and "strange machine" in found.what


def test_the_nodes_of_a_cluster(ray_session: None, simulated_shards: Path, tmp_path: Path) -> None:
    """Every check on every node of a running cluster, its CPUs against the training's, and a sum with gloo."""
    from tests.train.small import small_config

    config = small_config(simulated_shards, f"run.storage={tmp_path}", "run.num_workers=2")
    marker = tmp_path / "marker"
    marker.touch()
    request = Request(
        versions=checks.own_versions(),
        shards=(str(simulated_shards),),
        storage=str(tmp_path),
        marker=str(marker),
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
    )
    found = doctor.cluster(request, config, all_reduce=False)
    assert [finding for finding in found if finding.status == "problem"] == []
    assert {finding.check for finding in found} >= {"versions", "shared memory", "disk", "shards", "storage", "CPUs"}
    many = dataclasses.replace(config, run=dataclasses.replace(config.run, num_workers=16))
    assert "no CPU left" in doctor.cpus(many).what
    gpu = dataclasses.replace(config, run=dataclasses.replace(config.run, use_gpu=True))
    assert "the cluster has 0 GPUs" in doctor.cpus(gpu).what
    import ray

    (node,) = ray.nodes()
    summed = collective.check(0, [node["NodeID"]] * 2)
    assert summed.status == "ok" and summed.what.startswith("2 ranks")
    shown = doctor.show([*found, Finding("disk", "problem", "full", "free some", found[0].node)])
    assert shown.splitlines()[1].strip().startswith("PROBLEM disk") and "-> free some" in shown.splitlines()[2]
