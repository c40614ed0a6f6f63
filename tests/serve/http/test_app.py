"""The HTTP interface with the models in this process: shapes, limits, errors, batches, reload. Without Ray."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve.answers.answer import Query, QueryError
from serve.answers.predictor import Predictor
from serve.http.api import document
from serve.http.schemas import AnswerBody, AnswersBody, EmbeddingsBody, ErrorBody, ModelBody, TaxaBody
from tests.serve.conftest import Served, Stored

pytestmark = pytest.mark.middle

ROOT = Path(__file__).resolve().parents[3]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def one(served: Served) -> Stored:
    return next(one for one in served.specimens() if one.image and one.dna)


def text(image: bytes | None) -> str:
    return base64.b64encode(image or b"").decode()


def close(found: Any, expected: Any) -> bool:
    """Equal, with floats to 1e-5."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return abs(found - expected) <= CLOSE if isinstance(expected, float) else found == expected


def expected(predictor: Predictor, query: Query, **options: Any) -> Any:
    (answer,) = predictor.identify([query], **options)
    told = json.loads(json.dumps(answer.to_dict()))
    return told


def unnamed(answer: dict[str, Any]) -> dict[str, Any]:
    """Without the card: the fixture's predictor is named by its folder, the service's by its run."""
    return {name: value for name, value in answer.items() if name != "model"}


def test_the_committed_document_is_the_apps() -> None:
    """After a change: python -m serve.http.api > serve/openapi.json"""
    assert (ROOT / "serve" / "openapi.json").read_text(encoding="utf-8") == document()


@pytest.mark.parametrize("asked", ["image", "dna", "fused"])
def test_json_and_form_get_the_predictors_answer(
    client: TestClient, predictor: Predictor, one: Stored, asked: str
) -> None:
    photo, dna = asked != "dna", asked != "image"
    query = Query("a key", (one.image or b"",) if photo else (), one.dna if dna else None)
    wanted = expected(predictor, query, threshold=0.4, ranks=["order", "genus"], top=3)
    body: dict[str, Any] = {"key": "a key", "threshold": 0.4, "ranks": ["order", "genus"], "top": 3}
    parts = [
        ("threshold", (None, "0.4")),
        ("ranks", (None, "order,genus")),
        ("top", (None, "3")),
        ("key", (None, "a key")),
    ]
    if photo:
        body["images"] = [text(one.image)]
        parts.append(("image", ("a.jpg", one.image)))
    if dna:
        body["dna"] = one.dna
        parts.append(("dna", (None, f">a record\n{one.dna}\n")))
    for answer in (client.post("/v1/identify", json=body), client.post("/v1/identify", files=parts)):
        assert answer.status_code == 200, answer.text
        AnswerBody.model_validate(answer.json(), extra="forbid")
        assert close(unnamed(answer.json()), unnamed(wanted))


def test_a_batch_answers_each_in_its_place(client: TestClient, predictor: Predictor, one: Stored) -> None:
    queries = [
        {"key": "1", "dna": one.dna},
        {"key": "2", "dna": "???"},
        {"key": "3", "images": [text(one.image)]},
        {"key": "4"},
        {"key": "5", "images": [text(b"no photo")]},
    ]
    found = client.post("/v1/identify:batch", json={"queries": queries, "threshold": 0.5})
    assert found.status_code == 200
    AnswersBody.model_validate(found.json())
    answers = found.json()["answers"]
    assert [answer["key"] for answer in answers] == ["1", "2", "3", "4", "5"]
    assert close(unnamed(answers[0]), unnamed(expected(predictor, Query("1", (), one.dna), threshold=0.5)))
    assert close(unnamed(answers[2]), unnamed(expected(predictor, Query("3", (one.image or b"",)), threshold=0.5)))
    for answer in (answers[1], answers[3], answers[4]):
        assert set(answer["error"]) == {"what", "allowed"}


def test_embeddings_taxa_models_health_and_metrics(client: TestClient, predictor: Predictor, one: Stored) -> None:
    queries = {"queries": [{"dna": one.dna}, {"images": [text(one.image)], "dna": one.dna}, {"dna": "?"}]}
    found = client.post("/v1/embed", json=queries).json()
    EmbeddingsBody.model_validate(found)
    (wanted,) = predictor.embed([Query("", (one.image or b"",), one.dna)])
    assert not isinstance(wanted, QueryError) and close(found["embeddings"][1]["fused"], wanted.to_dict()["fused"])
    assert found["embeddings"][0]["image"] is None and "error" in found["embeddings"][2]
    taxa = client.get("/v1/taxa", params={"rank": "species", "limit": 2, "offset": 1}).json()
    TaxaBody.model_validate(taxa)
    names = predictor.taxonomy.names[3]
    assert taxa["total"] == len(names) and [one["name"] for one in taxa["taxa"]] == list(names[1:3])
    assert client.get("/v1/taxa", params={"name": names[0][:6].upper()}).json()["total"] >= 1
    model = client.get("/v1/model").json()
    ModelBody.model_validate(model)
    id = model["models"][0]["id"]
    assert id == f"{model['card']['name']}/{model['card']['version']}" == client.get("/healthz").json()["model"]
    assert client.get("/v1/model", params={"model": id}).json() == model
    client.get("/nowhere/at/all")
    told = client.get("/metrics").text
    assert 'taxafuse_requests_total{route="/healthz",status="200"} ' in told
    assert 'route="other",status="404"' in told and "taxafuse_in_flight 0.0" in told


@pytest.mark.parametrize(
    ("status", "send"),
    [
        (422, {"json": {}}),
        (422, {"json": {"dna": 5}}),
        (422, {"json": {"dna": "ACGT", "colour": "red"}}),
        (422, {"json": {"dna": "ACGT", "threshold": "0.5"}}),
        (422, {"json": {"dna": "ACGT", "threshold": 1.5}}),
        (422, {"json": {"dna": "ACGT", "ranks": ["tribe"]}}),
        (422, {"json": {"dna": "ACGT", "subset": []}}),
        (422, {"json": {"images": ["not base64!"]}}),
        (422, {"json": {"images": [""]}}),
        (422, {"content": b"{", "headers": {"content-type": "application/json"}}),
        (422, {"content": b'{"key": "\\ud800"}', "headers": {"content-type": "application/json"}}),
        (413, {"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}),
        (422, {"content": b"", "headers": {"content-type": "application/json"}}),
        (404, {"json": {"dna": "ACGT" * 50, "model": "another"}}),
        (415, {"content": b"dna=ACGT", "headers": {"content-type": "application/x-www-form-urlencoded"}}),
        (415, {"content": b"ACGT"}),
        (413, {"content": b" " * (2 << 20), "headers": {"content-type": "application/json"}}),
        (413, {"files": {"image": ("a.jpg", b"\xff\xd8" * (1 << 20))}}),
        (422, {"files": {"image": ("a.jpg", b"\xff\xd8\xff")}}),
        (422, {"files": {"colour": (None, "red")}}),
        (422, {"files": [("dna", (None, "ACGT")), ("dna", (None, "ACGT"))]}),
        (422, {"files": {"dna": (None, b"\xff\xfe\xfd")}}),
        (422, {"files": {"threshold": (None, "half")}}),
        (422, {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}),
        (422, {"content": b"nothing", "headers": {"content-type": "multipart/form-data; boundary=x"}}),
        (422, {"content": b"nothing", "headers": {"content-type": "multipart/form-data"}}),
    ],
)
def test_what_is_wrong_is_said_as_json(client: TestClient, status: int, send: dict[str, Any]) -> None:
    answer = client.post("/v1/identify", **send)
    assert answer.status_code == status, answer.text
    error = ErrorBody.model_validate(answer.json()).error
    assert error.what and error.allowed


def test_other_paths_methods_and_parameters(client: TestClient) -> None:
    for answer, status in (
        (client.get("/v1/nothing"), 404),
        (client.get("/v1/identify"), 405),
        (client.get("/../../etc/passwd"), 404),
        (client.get("/v1/taxa", params={"rank": "tribe"}), 422),
        (client.get("/v1/taxa", params={"limit": 0}), 422),
        (client.post("/v1/identify:batch", json={"queries": [{}] * 9}), 413),
        (client.post("/v1/identify:batch", json={"queries": []}), 422),
    ):
        assert answer.status_code == status and set(answer.json()["error"]) == {"what", "allowed"}


def test_the_page_is_there_and_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
    examples = client.get("/v1/examples").json()["examples"]
    for example in examples:
        assert client.post("/v1/identify", json={"dna": example["dna"], "images": []}).status_code == 200
