"""What tests of the engine share: an S3 server of their own."""

import os
from collections.abc import Iterator

import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL options of a local S3 server with the bucket "specimens"; its credentials stand in the environment."""
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells every request
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="specimens")
    yield f"?endpoint_override={host}:{port}&scheme=http"
    server.stop()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture
def s3(s3_server: str, request: pytest.FixtureRequest) -> str:
    """A URL of an empty folder on that server."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return f"s3://specimens/{name}{s3_server}"
