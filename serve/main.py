"""Serve a model on this machine: HTTP and a page at http://127.0.0.1:8000.

    python -m serve.main --checkpoint runs/NAME [--library FOLDER]
    python -m serve.main --checkpoint models:/taxafuse@champion --registry sqlite:///runs/mlflow.db

Ends with Ctrl-C or SIGTERM: requests in flight are answered first. On a cluster: `serve run serve.app:app`, or
`serve deploy` with a file of infra/.
"""

import argparse
import ipaddress
import logging
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]  # as a script, this file's folder stands first on the path: put ours there
sys.path[:] = [str(ROOT)] + [p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "serve")]

from engine.commandline import Parser, guarded  # noqa: E402
from serve.front import LOOPBACK, use_haproxy  # noqa: E402
from serve.models.settings import Settings  # noqa: E402

if TYPE_CHECKING:
    from ray.serve import Application

    from train.run.interrupts import Interrupts

log = logging.getLogger("serve")

NAME = "taxafuse"  # of the application in Ray Serve
SHORT = "/tmp"  # sockets are made in a folder below it: their names must not exceed 107 letters
PATIENCE_S = 150  # of the proxy, more than body and model may take: a request ends even where no replica comes back


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog="python -m serve.main", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        metavar="ADDRESS",
        action="append",
        default=[],
        help="a run's folder, or models:/NAME@ALIAS; repeated for several models, the first is the default "
        "(default: the newest run in runs/)",
    )
    add("--library", metavar="DIR", default="", help="a reference library: answers then name the nearest references")
    add("--registry", metavar="URI", default="", help="MLflow's address for models:/ (default: that of runs/)")
    add("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    add("--port", type=int, default=8000, help="(default: 8000)")
    add("--token-file", metavar="FILE", default="", help="ask every request for the bearer token in this file")
    add(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a public name under which requests may come without a token; may be repeated (default: addresses and "
        "local names)",
    )
    add("--device", default="cpu", help="torch device of the towers, e.g. cuda (default: cpu)")
    add("--threads", metavar="N", type=int, default=1, help="threads of the model (default: 1)")
    add("--replicas", metavar="N", type=int, default=1, help="processes with the model (default: 1)")
    add(
        "--max-in-flight",
        metavar="N",
        type=int,
        default=Settings.max_in_flight,
        help="requests at once, per replica; more get a 503 (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal comes. Raises ValueError for what the user can mend."""
    from train.run import interrupts

    _check_address(options.host, options.port)
    with (
        tempfile.TemporaryDirectory(prefix="taxafuse-", dir=SHORT if os.path.isdir(SHORT) else None) as folder,
        interrupts.heard() as signals,
    ):
        if not use_haproxy(Path(folder), options.host, options.port) and ":" in options.host:
            raise ValueError(f"--host: got {options.host}, allowed on this machine, which has no HAProxy: one of IPv4")
        _serve(options, signals)
    return 0


def _application(options: argparse.Namespace) -> "Application":
    from serve.app import app

    return app(
        {
            "checkpoint": ",".join(options.checkpoint),
            "library": options.library,
            "registry": options.registry,
            "device": options.device,
            "threads": options.threads,
            "token_file": options.token_file,
            "allowed_hosts": ",".join(options.allow_host),
            "min_replicas": options.replicas,
            "max_replicas": options.replicas,
            "max_in_flight": options.max_in_flight,
        }
    )


def _serve(options: argparse.Namespace, signals: "Interrupts") -> None:
    """Start Ray and the service, and end both after a signal, whenever it comes."""
    import ray
    from ray import serve

    from train.run import interrupts
    from train.run.cluster import said, start_ray

    application = _application(options)
    ipv6 = ":" in options.host
    if not _is_loopback(options.host) and not options.token_file:
        log.warning("listening at %s without --token-file: everybody who reaches it may ask", options.host)
    start_ray()
    try:
        _check_room(options)
        http = {"host": LOOPBACK if ipv6 else options.host, "port": options.port, "request_timeout_s": PATIENCE_S}
        try:
            with said("starting the service"):
                serve.start(proxy_location="HeadOnly", http_options=http)
                serve.run(application, name=NAME, route_prefix="/")
            interrupts.restore()  # Ray Serve has handlers of its own, which abort
            with signals.patient("stopping: requests in flight are answered first") as stop:
                shown = f"[{options.host}]" if ipv6 else options.host
                print(f"serving at http://{shown}:{options.port}/ (Ctrl-C ends it)", flush=True)
                stop.wait()
                serve.delete(NAME)  # waits for the replicas' last answers; shutdown alone would close connections
        finally:
            serve.shutdown()
    finally:
        ray.shutdown()


def _check_room(options: argparse.Namespace) -> None:
    """Compare the service with what else runs on this Ray, and with what it has. Raises ValueError."""
    import ray
    from ray import serve

    from train.run.cluster import lacking

    others = ", ".join(serve.status().applications)
    if others:
        raise ValueError(
            f"--port: got {options.port}, on a Ray that serves {others} already, and a Ray has one address for all; "
            "allowed: RAY_ADDRESS=local for a Ray of this service's own"
        )
    each = {"CPU": float(options.threads), "GPU": float(options.device.startswith("cuda"))}
    if lack := lacking(each, options.replicas, ray.cluster_resources()):
        raise ValueError(f"the service needs {lack}; allowed: --threads, --replicas and --device that this Ray has")


def _check_address(host: str, port: int) -> None:
    """Raise ValueError where another program listens: HAProxy would share the port with another HAProxy."""
    if not 0 < port < 65536:
        raise ValueError(f"--port: got {port}, allowed 1..65535")
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise ValueError(
            f"--host, --port: got {host}:{port} ({os.strerror(error.errno or 0)}), allowed: an address of this machine "
            "and a port where nothing listens"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code (2 = something the user can mend, said in one line)."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return guarded(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
