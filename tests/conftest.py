"""What tests of all packages share: one local Ray, an S3 server, the folder of real data, small photos."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # several test processes share the cores: one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no deadline")

ROOT = Path(__file__).resolve().parents[1]
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-skips",
        action="store_true",
        help="fail when a test is skipped for a reason that is not in tests/allowed_skips.txt",
    )
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/curve.json")
    parser.addoption("--attacks", type=int, default=300, help="fuzzed bodies that the service is attacked with")
    parser.addoption(
        "--real-data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="folder of real specimens (bold/, moths/); tests that need it are skipped where it is absent",
    )
    parser.addoption(
        "--schemas",
        type=Path,
        default=ROOT.parent / "shared" / "schemas",
        help="folder of published schemas (see tests/infra/test_manifests.py); tests are skipped where it is absent",
    )


NOT_FAST = {"ray_session", "s3", "s3_server"}  # fixtures that start something; files and tests that do are marked


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as fast every test that is neither slow nor middle and asks for no fixture that starts something."""
    for item in items:
        apart = any(item.get_closest_marker(name) for name in ("slow", "middle", "cluster", "drills"))
        if not apart and not NOT_FAST & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.fast)
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _fast_starts_no_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold the fast tier to its promise: a fast test that starts a process fails, and says which mark it needs."""
    if request.node.get_closest_marker("fast"):
        import torch  # noqa: F401  # whoever imports it first asks ldconfig, a process, for CUDA's libraries

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("a fast test starts no process: mark it `middle` (seconds) or `slow`")

        monkeypatch.setattr("subprocess.Popen.__init__", refuse)
        monkeypatch.setattr("multiprocessing.process.BaseProcess.start", refuse)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """With --strict-skips, turn a skip for any other reason than the allowed ones into a failure."""
    if not session.config.getoption("--strict-skips"):
        return
    allowed = [
        line
        for line in (ROOT / "tests" / "allowed_skips.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    for report in reporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(reason.removeprefix("Skipped: ").startswith(one) for one in allowed):
            reporter.write_line(f"not an allowed skip: {report.nodeid}: {reason}", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def real_data(pytestconfig: pytest.Config) -> Path:
    """The folder of real data, or a skip."""
    folder: Path = pytestconfig.getoption("--real-data")
    if not folder.is_dir():
        pytest.skip("no ../shared/data")
    return folder.resolve()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the whole session: 2 CPUs, 300 MB object store."""
    import ray

    from engine.ray_seams import start_ray

    start_ray(address="local", num_cpus=2, object_store_memory=300 * 1024**2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def simulated_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 320 simulated specimens of 16 species."""
    from engine.formats.registry import open_dataset
    from engine.ingest.job import IngestOptions, ingest

    folder = tmp_path_factory.mktemp("simulated")
    source = open_dataset("simulated", [], seed=0, num_specimens=320, num_species=16)
    ingest(source, folder, IngestOptions(specimens_per_shard=100, parallel=False))
    return folder


@pytest.fixture(scope="session")
def make_jpeg() -> Callable[..., bytes]:
    """A function of (seed, height, width) that returns the bytes of a random JPEG."""

    def make(seed: int = 0, height: int = 24, width: int = 32) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return simplejpeg.encode_jpeg(pixels, quality=90)

    return make


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
