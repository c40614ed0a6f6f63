"""The fused predictor on a cluster of drills: `serve deploy`, questions, which node holds a replica."""

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from serve.app import DEPLOYMENT
from tests.drills.cluster import Cluster
from tests.drills.machines import until
from tests.drills.services import BIN

READY_S = 150
BARCODE = "AACTTTATATTTTATTTTTGGAATTTGAGCAGGAATAGTAGGAACATCTTTAAGATTATTAATTCGAGCTGAATTAGG" * 8


class Deployed:
    """A deployed service with two replicas on two nodes, asked at the first of them.

    Ray Serve listens on the head and on nodes that have a replica, on no others.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.asked = cluster, ""

    @classmethod
    @contextmanager
    def on(cls, cluster: Cluster, checkpoint: Path) -> "Iterator[Deployed]":
        """Deploy infra/serve.yaml with this checkpoint; at the end the application is removed."""
        config = yaml.safe_load((Path(__file__).resolve().parents[2] / "infra" / "serve.yaml").read_text())
        (application,) = config["applications"]
        application["args"] = {"checkpoint": str(checkpoint), "threads": 1, "min_replicas": 2, "max_replicas": 2}
        application["deployments"] = [{"name": DEPLOYMENT, "max_replicas_per_node": 1}]
        file = cluster.logs / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        service = cls(cluster)
        service._serve("deploy", str(file))
        try:
            until(service._ready, "the service", READY_S)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {service.told()}") from None
        yield service

    def _serve(self, *words: str) -> str:
        command = [str(BIN / "serve"), *words, "-a", self.cluster.dashboard]
        done = subprocess.run(command, capture_output=True, text=True, env=self.cluster.environment, check=False)
        assert done.returncode == 0, done.stderr[-1500:]
        return done.stdout

    def status(self) -> dict[str, Any]:
        """What the dashboard says of Serve."""
        token = Path(self.cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        address = f"{self.cluster.dashboard}/api/serve/applications/"
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return dict(json.load(answer))

    def told(self) -> str:
        """State of the application, of its replicas and of what stands before them, by node."""
        status = self.status()
        proxies = {proxy["node_ip"]: proxy["status"] for proxy in status["proxies"].values()}
        return f"{status['applications'].get('taxafuse', {}).get('status')}, replicas at {self.replicas()}, {proxies}"

    def _ready(self) -> bool:
        application = self.status()["applications"].get("taxafuse", {})
        assert application.get("status") != "DEPLOY_FAILED", application.get("message")
        if application.get("status") != "RUNNING":
            return False
        self.asked = self.asked or self.names()[self.replicas()[0]]
        return self.ask()

    def replicas(self) -> list[str]:
        """Addresses of the nodes of the replicas."""
        deployment = self.status()["applications"]["taxafuse"]["deployments"][DEPLOYMENT]
        return [replica["node_ip"] for replica in deployment["replicas"] if replica["state"] == "RUNNING"]

    def names(self) -> dict[str, str]:
        """Address -> name of the machines."""
        return {machine.address: name for name, machine in self.cluster.machines.items()}

    def node_of_a_replica(self) -> str:
        """A machine with a replica, other than the one that is asked."""
        names = self.names()
        return next(names[address] for address in self.replicas() if names[address] != self.asked)

    def ask(self) -> bool:
        """Whether a barcode is answered, at one fixed node."""
        body = json.dumps({"dna": BARCODE}).encode()
        address = f"http://{self.cluster.machines[self.asked].address}:8000/v1/identify"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
