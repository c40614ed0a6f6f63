"""The doctor on the node of a cluster of three machines, with the cluster's token and without one.

python tests/infra/doctored.py SHARDS OUT        prints one JSON line: two lists of exit code, output, errors
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT)] + [p for p in sys.path if Path(p).resolve() != ROOT / "tests" / "infra"]

from tests.drills.cluster import Cluster, authenticate  # noqa: E402
from tests.drills.machines import Network  # noqa: E402


def main() -> None:
    shards, out = sys.argv[1], Path(sys.argv[2])
    authenticate(out)
    with Network() as network:
        cluster = Cluster(network, None, out / "logs", {"one": (1, ""), "two": (1, "")}).start()
        try:
            settings = [f"data.shards={shards}", f"run.storage={out}/runs", "run.tracking=none"]
            command = [
                "ip",
                "netns",
                "exec",
                cluster.machines["one"].namespace,
                sys.executable,
                "-m",
                "infra.doctor",
                "--json",
                *(part for setting in settings for part in ("--set", setting)),
            ]
            known = cluster.environment | {"RAY_ADDRESS": f"{cluster.head.address}:6379"}
            stranger = {key: value for key, value in known.items() if "TOKEN" not in key} | {"HOME": "/nonexistent"}
            told = []
            for environment in (known, stranger):
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                told.append([done.returncode, done.stdout, done.stderr])
        finally:
            cluster.destroy()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
