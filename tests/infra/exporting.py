"""A training and the service on a Ray of their own, scraped all the while: which metrics do running programs export?

python tests/infra/exporting.py SHARDS STORAGE        prints one JSON line: the names
"""

import json
import logging
import os
import re
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT)] + [p for p in sys.path if Path(p).resolve() != ROOT / "tests" / "infra"]

SETTLE_S = 60  # until the last names are there
SERVICE = "http://127.0.0.1:18123"


class Scraper:
    """Collects the names at an address every half second."""

    def __init__(self, address: str) -> None:
        self.names: set[str] = set()
        self._address, self._over = address, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.5):
            try:
                with urllib.request.urlopen(self._address, timeout=5) as answer:
                    text = answer.read().decode()
            except OSError:
                continue
            self.names |= set(re.findall(r"^(ray_\w+)\{", text, re.M))

    def wait(self, wanted: set[str]) -> None:
        """Until all of these were seen, or it has taken too long."""
        end = time.monotonic() + SETTLE_S
        while not wanted <= self.names and time.monotonic() < end:
            time.sleep(0.5)
        self._over.set()
        self._thread.join(10)


def ask(path: str, body: bytes | None = None) -> int:
    """The status of a request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(SERVICE + path, body), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def run_service(model: Path) -> None:
    """Deploy, ask for what is there and what is not, and let a replica raise."""
    import contextlib

    from ray import serve

    from serve.app import DEPLOYMENT, app

    serve.start(http_options={"host": "127.0.0.1", "port": 18123})
    serve.run(app({"checkpoint": str(model)}), name="taxafuse", route_prefix="/")
    assert ask("/healthz") == 200
    assert ask("/v1/nothing") == 404
    with contextlib.suppress(Exception):  # that it raises is what is wanted
        serve.get_deployment_handle(DEPLOYMENT, "taxafuse").prepare.remote(None).result(timeout_s=30)


def main() -> None:
    from serve.front import use_haproxy

    os.environ["RAY_SERVE_HAPROXY_METRICS_ENABLED"] = "1"  # as on a cluster
    with tempfile.TemporaryDirectory(prefix="taxafuse-") as folder:
        assert use_haproxy(Path(folder))
        measure()


def measure() -> None:
    """Train, serve, and print the names."""
    import ray

    from tests.train.small import small_config
    from train.run.trainer import train

    shards, storage = sys.argv[1:3]
    config = small_config(shards, f"run.storage={storage}", "run.name=job", "run.epochs=2", "run.log_every=1")
    often = {"metrics_report_interval_ms": 1000}
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=300 * 1024**2,
        log_to_driver=False,
        logging_level=logging.ERROR,
        include_dashboard=True,
        _system_config=often,
    )
    scraper = Scraper(f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics")
    run_service(train(config).model)
    scraper.wait(set(json.loads(sys.argv[3])))
    print(json.dumps(sorted(scraper.names)))
    ray.shutdown()


if __name__ == "__main__":
    main()
