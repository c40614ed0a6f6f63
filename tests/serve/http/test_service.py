"""What is behind the HTTP interface: bodies, forms, admission, batches, reload, names of models, settings."""

import asyncio
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve.answers.answer import Query
from serve.answers.predictor import Options
from serve.export import register
from serve.http.api import make_app
from serve.http.batching import Batcher
from serve.http.bodies import Admission, Refused, read_body, read_form
from serve.http.counters import Metrics, summed
from serve.http.host import ModelHost, Reply
from serve.http.service import Service
from serve.models import directory
from serve.models.directory import Directory, Spec, newest_run, read_directory
from serve.models.registry import ResolvedModel
from serve.models.settings import Settings, read_settings
from tests.serve.conftest import Served, Stored
from train.models import checkpoint

pytestmark = pytest.mark.middle


@pytest.fixture(scope="module")
def one(served: Served) -> Stored:
    return next(one for one in served.specimens() if one.image and one.dna)


def test_a_body_is_counted_while_it_comes() -> None:
    """Without a Content-Length nothing beyond the limit is read."""
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"x" * 1000

    with pytest.raises(Refused) as refused:
        asyncio.run(read_body(pieces(), None, 10_000, lambda count: None))
    assert refused.value.status == 413 and sent == 11
    with pytest.raises(Refused) as refused:
        asyncio.run(read_body(pieces(), "50000000", 10_000, lambda count: None))
    assert refused.value.status == 413 and sent == 11


def test_forms_are_taken_apart_in_memory() -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="../../x.jpg"\r\n\r\n\xff\xd8\r\n--\r\n'
        b'--b\r\nContent-Disposition: form-data; name="key"\r\n\r\nk\r\n--b--\r\n'
    )
    first, second = read_form(body, "multipart/form-data; boundary=b")
    assert (first.name, first.is_file, first.data) == ("image", True, b"\xff\xd8\r\n--")
    assert (second.name, second.is_file, second.text()) == ("key", False, "k")
    many = b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\n\r\n" * 300 + b"--b--\r\n"
    with pytest.raises(Refused, match="more than 200 parts"):
        read_form(many, "multipart/form-data; boundary=b")
    with pytest.raises(Refused, match="malformed"):
        read_form(b"--b\r\nX: " + b"y" * 10_000 + b"\r\n\r\n\r\n--b--\r\n", "multipart/form-data; boundary=b")


def test_admission_counts_requests_and_bytes() -> None:
    admission = Admission(2, 100)
    admission.enter()
    admission.enter()
    with pytest.raises(Refused) as refused:
        admission.enter()
    assert refused.value.status == 503 and int(refused.value.headers["Retry-After"]) > 0
    admission.hold(90)
    with pytest.raises(Refused, match="hold 90 bytes"):
        admission.hold(20)
    admission.leave(90)
    admission.enter()
    assert (admission.requests, admission.bytes, admission.refused) == (2, 0, 2)


class SlowHost(ModelHost):
    """Answers when it is told to."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.free = threading.Event()

    async def identify(self, spec: Spec, queries: list[Query], options: Options) -> list[Reply]:
        await asyncio.to_thread(self.free.wait, 30)
        return await super().identify(spec, queries, options)


def test_what_is_too_much_gets_a_503_and_the_rest_their_answers(served: Served, one: Stored) -> None:
    settings = Settings(checkpoint=str(served.checkpoint), max_in_flight=3)
    host = SlowHost(settings)
    with TestClient(make_app(Service(settings, read_directory(settings), host))) as client:
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(client.post, "/v1/identify", json={"dna": one.dna}) for _ in range(8)]
            while sum(future.done() for future in asked) < 5:
                time.sleep(0.01)
            host.free.set()
            answers = [future.result() for future in asked]
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [503] * 5
        for answer in answers:
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1 and "busy" in answer.json()["error"]["what"]
        assert client.post("/v1/identify", json={"dna": one.dna}).status_code == 200


def test_a_model_that_does_not_answer_in_time_gets_a_503(served: Served, one: Stored) -> None:
    settings = Settings(checkpoint=str(served.checkpoint), timeout_s=0.2)
    host = SlowHost(settings)
    with TestClient(make_app(Service(settings, read_directory(settings), host))) as client:
        answer = client.post("/v1/identify", json={"dna": one.dna})
        assert answer.status_code == 503 and "within 0.2 seconds" in answer.json()["error"]["what"]
        assert client.get("/healthz").status_code == 503
        host.free.set()
        assert client.get("/healthz").status_code in (200, 503)


def test_a_body_that_does_not_come_lets_others_in(served: Served, one: Stored) -> None:
    settings = Settings(checkpoint=str(served.checkpoint), timeout_s=1.0, max_in_flight=1)
    with TestClient(make_app(Service(settings, read_directory(settings), ModelHost(settings)))) as client:
        assert client.get("/healthz").status_code == 200  # the model is loaded
        routes = ("/v1/identify", "/v1/embed")

        async def send(scope: Any, path: str) -> int:
            seen: list[int] = []

            async def receive() -> dict[str, Any]:
                await asyncio.sleep(60)
                return {}

            async def answer(message: dict[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    seen.append(message["status"])

            await client.app(scope | {"path": path}, receive, answer)
            return seen[0]

        scope = {
            "type": "http",
            "method": "POST",
            "headers": [(b"content-type", b"application/json")],
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "server": ("x", 80),
            "http_version": "1.1",
        }
        assert [asyncio.run(send(scope, path)) for path in routes] == [408, 408]
        assert client.post("/v1/identify", json={"dna": one.dna}).status_code == 200


class BrokenHost(ModelHost):
    """Has a fault that nobody thought of."""

    async def identify(self, spec: Spec, queries: list[Query], options: Options) -> list[Reply]:
        raise RuntimeError("no such luck")


def test_under_a_prefix_routes_keep_their_names_and_faults_are_told(served: Served, one: Stored) -> None:
    settings = Settings(checkpoint=str(served.checkpoint))
    service = Service(settings, read_directory(settings), BrokenHost(settings))
    with TestClient(make_app(service), root_path="/here", raise_server_exceptions=False) as client:
        broken = client.post("/here/v1/identify", json={"dna": one.dna})
        assert broken.status_code == 500 and "RuntimeError" in broken.json()["error"]["what"]
        assert client.get("/here/v1/identify").status_code == 405
        assert client.post("/here/v1/identify", content=b"{}").status_code == 415
        counted = client.get("/here/metrics").text
    for status in (500, 405, 415):
        assert f'taxafuse_requests_total{{route="/v1/identify",status="{status}"}} 1.0' in counted


def test_a_bearer_token(served: Served, one: Stored) -> None:
    settings = Settings(checkpoint=str(served.checkpoint))
    with TestClient(make_app(Service(settings, read_directory(settings), ModelHost(settings), "s3cret"))) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "s3cret"}):
            posted = client.post("/v1/identify", json={"dna": one.dna}, headers=headers)
            for answer in (posted, client.get("/v1/model", headers=headers), client.get("/metrics", headers=headers)):
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        headers = {"authorization": "Bearer s3cret"}
        assert client.post("/v1/identify", json={"dna": one.dna}, headers=headers).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_batches_form_while_the_model_is_busy_and_nobody_waits_for_company() -> None:
    sizes: list[int] = []
    started, go = threading.Event(), threading.Event()

    def work(items: list[int]) -> list[int]:
        sizes.append(len(items))
        started.set()
        assert go.wait(30)
        if 13 in items:
            raise RuntimeError("thirteen")
        return [item * 2 for item in items]

    async def run() -> list[Any]:
        batcher: Batcher[int, int] = Batcher(work, ThreadPoolExecutor(1), 4)
        first = asyncio.create_task(batcher([1]))
        await asyncio.to_thread(started.wait, 30)
        rest = [asyncio.create_task(batcher(items)) for items in ([2, 3], [13], [4], [5] * 6, [6])]
        gone = asyncio.create_task(batcher([7]))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    results = asyncio.run(run())
    assert results[0] == [2] and results[1] == [4, 6] and results[3] == [8] and results[4] == [10] * 6
    assert isinstance(results[2], RuntimeError) and results[5] == [12]
    assert sizes == [1, 4, 2, 1, 1, 6, 1]  # the second batch failed and went one by one; the cancelled one was left out


def moved(served: Served, folder: Path) -> None:
    """The tiny model with other weights in the same place."""
    loaded = checkpoint.load(served.checkpoint)
    for parameter in loaded.model.dna_encoder.parameters():
        parameter.data.mul_(1.5)
    checkpoint.save(folder, loaded.model, loaded.config, loaded.taxonomy, step=1, state=None)


def test_reload_swaps_without_dropping_a_request(served: Served, one: Stored, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(served.checkpoint, folder)
    settings = Settings(checkpoint=str(folder))
    service = Service(settings, read_directory(settings), ModelHost(settings))
    with TestClient(make_app(service)) as client:
        before = client.get("/healthz").json()["model"]
        assert client.post("/v1/model:reload", json={}).json()["loaded"] == []
        answers: list[Any] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                answers.append(client.post("/v1/identify", json={"dna": one.dna}))

        with ThreadPoolExecutor(3) as pool:
            for _ in range(3):
                pool.submit(ask)
            moved(served, folder)
            reloaded = client.post("/v1/model:reload", json={}).json()
            count = len(answers)
            while len(answers) < count + 10:
                time.sleep(0.01)
            done.set()
        after = client.get("/healthz").json()["model"]
        assert reloaded["loaded"] == [after] and after != before
        assert {answer.status_code for answer in answers} == {200}
        versions = [answer.json()["model"]["version"] for answer in answers]
        assert {before.split("/")[1], after.split("/")[1]} == set(versions)
        assert answers[-1].json()["model"]["version"] == after.split("/")[1]
        assert client.post("/v1/identify", json={"dna": one.dna, "model": before}).status_code == 404
        (folder / "meta.json").unlink()
        refused = client.post("/v1/model:reload", json={})
        assert refused.status_code == 409 and "nothing was changed" in refused.json()["error"]["what"]
        assert client.get("/healthz").json()["model"] == after


def test_a_retired_model_is_let_go(served: Served) -> None:
    settings = Settings(checkpoint=str(served.checkpoint))
    (spec,) = read_directory(settings).specs

    async def run() -> tuple[bool, bool]:
        host = ModelHost(settings)
        await host.load(spec)
        await host.retire(spec.id, wait_s=0.05)
        there = spec.id in host._models
        await asyncio.sleep(0.3)
        return there, spec.id in host._models

    assert asyncio.run(run()) == (True, False)


def test_names_of_models(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Spec("moths", "3", "/a", "models:/moths@champion")
    two = Directory((first, replace(first, version="2", address="models:/moths/2")))
    for asked in ("", "moths", "moths/3", "moths@champion"):
        assert two.find(asked) is first
    assert two.find("moths/2") is two.specs[1] and two.find("moths@other") is None
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no run"):
        newest_run()
    shutil.copytree(served.checkpoint, tmp_path / "runs" / "mine" / "model")
    assert newest_run() == "runs/mine"
    (spec,) = read_directory(Settings()).specs
    assert spec.name == "mine" and len(spec.version) == 12


def test_a_version_is_found_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an ingress downloaded is not where a replica runs: the registry is asked for that version, not the alias."""
    spec = Spec("moths", "3", "/nowhere/moths", "models:/moths@champion")
    asked: list[tuple[str, str]] = []

    def resolve(address: str, *, registry: str) -> ResolvedModel:
        asked.append((address, registry))
        return ResolvedModel(path=tmp_path, address=address, name="moths", version="3")

    monkeypatch.setattr(directory, "resolve_checkpoint", resolve)
    assert directory.located(spec, Settings(registry="http://there")) == tmp_path
    assert asked == [("models:/moths/3", "http://there")]
    assert directory.located(replace(spec, path=str(tmp_path)), Settings()) == tmp_path
    with pytest.raises(ValueError, match="every node sees"):
        directory.located(replace(spec, address="/nowhere/moths"), Settings())


def test_an_alias_is_resolved_at_start_and_at_reload(served: Served, tmp_path: Path) -> None:
    """From MLflow's registry, with the library that was registered along."""
    registry = f"sqlite:///{tmp_path / 'mlflow.db'}"
    register(served.checkpoint, name="tiny", aliases=("champion",), registry=registry, library=served.library)
    settings = Settings(checkpoint="models:/tiny@champion", registry=registry)
    with TestClient(make_app(Service(settings, read_directory(settings), ModelHost(settings)))) as client:
        told = client.get("/v1/model").json()
        assert told["models"] == [{"id": "tiny/1", "called": ["tiny/1", "tiny", "tiny@champion"]}]
        assert told["card"]["library"]["records"] > 0
        register(served.checkpoint, name="tiny", aliases=("champion",), registry=registry)
        assert client.get("/healthz").json()["model"] == "tiny/1"
        assert client.post("/v1/model:reload", json={}).json()["loaded"] == ["tiny/2"]
        assert client.get("/v1/model", params={"model": "tiny@champion"}).json()["card"]["version"] == "2"


def test_settings_are_checked() -> None:
    assert read_settings({"threads": "2", "max_replicas": "3"}) == Settings(threads=2, max_replicas=3)
    for values, told in (
        ({"colour": "red"}, "allowed: checkpoint"),
        ({"threads": 0}, "threads"),
        ({"min_replicas": 3, "max_replicas": 2}, "allowed 3 or more"),
    ):
        with pytest.raises(ValueError, match=told):
            read_settings(values)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--checkpoint", "/nowhere"],
        ["--port", "70000"],
        ["--colour"],
        ["--checkpoint", "models:/x"],
        ["--token-file", "/nowhere"],
    ],
)
def test_a_wrong_command_line_exits_with_2(
    arguments: list[str], served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    from serve.main import main

    if "--checkpoint" not in arguments:
        arguments = [*arguments, "--checkpoint", str(served.checkpoint)]
    try:
        code: Callable[..., Any] | int | str | None = main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2 and capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "serves", "words"),
    [
        ([], ["taxafuse"], "--port: got 8000, on a Ray that serves taxafuse already"),
        (["--threads", "3"], [], "the service needs 3 CPU, there are 2"),
        (["--replicas", "2", "--device", "cuda"], [], "2 GPU, there are 0"),
    ],
)
def test_a_ray_without_room_is_refused(
    arguments: list[str], serves: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve import main

    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications=serves))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(ValueError, match=words):
        main._check_room(main.parse(arguments))


def test_replicas_and_their_resources_follow_the_settings() -> None:
    from serve.app import bind

    fixed = bind(Settings(checkpoint="x", min_replicas=2, max_replicas=2))._bound_deployment
    assert fixed.num_replicas == 2
    assert (
        fixed.max_queued_requests > Settings().max_in_flight < fixed.max_ongoing_requests
    )  # the replica refuses first
    scaled = bind(Settings(checkpoint="x", max_replicas=3, device="cuda", threads=4))._bound_deployment
    assert (scaled.ray_actor_options["num_gpus"], scaled.ray_actor_options["num_cpus"]) == (1, 4)
    scaling = scaled._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 3, 16)


def test_numbers_of_several_processes_are_summed() -> None:
    first, second = Metrics(Admission(2, 10)), Metrics(Admission(2, 10))
    for metrics, count in ((first, 2), (second, 3)):
        metrics.count([Reply(200, b"")] * count)
        metrics.requests.labels("/v1/identify", "200").inc(count)
        metrics.seconds.labels("/v1/identify").observe(count)
    first.requests.labels("/v1/embed", "503").inc()
    told = summed([first.text(), second.text()])
    assert 'taxafuse_queries_total{outcome="answered"} 5.0' in told
    assert 'taxafuse_requests_total{route="/v1/identify",status="200"} 5.0' in told
    assert 'taxafuse_requests_total{route="/v1/embed",status="503"} 1.0' in told
    assert 'taxafuse_request_seconds_sum{route="/v1/identify"} 5.0' in told
    assert 'taxafuse_request_seconds_bucket{le="2.5",route="/v1/identify"} 1.0' in told
    assert summed([told]) == told
