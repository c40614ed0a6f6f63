"""The OpenAPI document of the interface: FastAPI's, with the bodies that the routes read themselves."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from serve.answers.query import MAX_IMAGES, MAX_LETTERS, PHOTO
from serve.http import schemas

JSON, FORM = "application/json", "multipart/form-data"
_BODIES: dict[str, type[BaseModel]] = {
    "/v1/identify": schemas.IdentifyBody,
    "/v1/identify:batch": schemas.BatchBody,
    "/v1/embed": schemas.EmbedBody,
    "/v1/model:reload": schemas.ReloadBody,
}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the document of an app, made once."""
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = document["components"]["schemas"]
    for path, shape in _BODIES.items():
        schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
        components |= schema.pop("$defs", {})
        components[shape.__name__] = schema
        content: dict[str, Any] = {JSON: {"schema": {"$ref": f"#/components/schemas/{shape.__name__}"}}}
        if path == "/v1/identify":
            content[FORM] = {"schema": _form_schema(schema)}
        document["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own shape of errors; ours is ErrorBody
        components.pop(unused, None)
    document["components"] = {
        "schemas": dict(sorted(components.items())),
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
    }
    document["security"] = [{}, {"token": []}]
    app.openapi_schema = document
    return document


def _form_schema(body: dict[str, Any]) -> dict[str, Any]:
    fields = {name: schema for name, schema in body["properties"].items() if name not in ("images", "dna")}
    dna = {"type": "string", "maxLength": MAX_LETTERS, "description": body["properties"]["dna"]["description"]}
    photo = {"type": "string", "format": "binary"}
    photos = {"type": "array", "items": photo, "maxItems": MAX_IMAGES, "description": PHOTO}
    return {"type": "object", "properties": {**fields, "dna": dna, "image": photos}, "additionalProperties": False}
