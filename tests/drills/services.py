"""What a cluster stands on, as processes of this machine: PostgreSQL, an S3 server, the MLflow server, Redis.

The programs come from Debian (postgresql, redis-server) and from the project's own environment (moto, MLflow).
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.drills.machines import until

BIN = Path(sys.executable).parent
KEYS = {"AWS_ACCESS_KEY_ID": "drill", "AWS_SECRET_ACCESS_KEY": "drill", "AWS_DEFAULT_REGION": "us-east-1"}
PORTS = {"database": 5432, "store": 5555, "mlflow": 5000, "redis": 6380}
REDIS_PASSWORD = "drill"


def answers(url: str) -> bool:
    """Whether an address answers with success."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def postgresql() -> Path:
    """The folder of the newest PostgreSQL. Raises FileNotFoundError."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if not found:
        raise FileNotFoundError("no PostgreSQL in /usr/lib/postgresql: apt-get install postgresql")
    return found[-1]


class Services:
    """All four, on one address. Use as a context."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        self.mlflow_uri = f"http://{address}:{PORTS['mlflow']}"
        self.redis = f"{address}:{PORTS['redis']}"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def _start(self, name: str, command: list[str], user: str = "", **environment: str) -> None:
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*as_user, *command], stdout=log, stderr=log, start_new_session=True, env=os.environ | environment
            )

    def __enter__(self) -> "Services":
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_all(self) -> None:
        data = self.folder / "database"
        data.mkdir()
        shutil.chown(data, "postgres", "postgres")
        as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        program = postgresql()
        subprocess.run(
            [*as_postgres, program / "initdb", "-D", data, "-U", "mlflow", "-A", "trust", "-N"],
            check=True,
            capture_output=True,
            cwd="/",
        )
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all mlflow {self.address}/24 trust\n")
        self._start(
            "database",
            [
                str(program / "postgres"),
                "-D",
                str(data),
                "-h",
                self.address,
                "-p",
                str(PORTS["database"]),
                "-k",
                str(data),
                "-F",
            ],
            user="postgres",
        )
        self._start("store", [str(BIN / "moto_server"), "-H", self.address, "-p", str(PORTS["store"])])
        self._start(
            "redis",
            [
                "redis-server",
                "--bind",
                self.address,
                "--port",
                str(PORTS["redis"]),
                "--requirepass",
                REDIS_PASSWORD,
                "--save",
                "",
                "--dir",
                str(self.folder),
            ],
        )
        self._prepare()
        self.start_mlflow()

    def _prepare(self) -> None:
        """A bucket and a database."""
        import boto3
        import psycopg2

        until(lambda: answers(f"http://{self.address}:{PORTS['store']}/moto-api/"), "the S3 server", 60)
        store = boto3.client(
            "s3",
            endpoint_url=f"http://{self.address}:{PORTS['store']}",
            region_name="us-east-1",
            aws_access_key_id="drill",
            aws_secret_access_key="drill",
        )
        store.create_bucket(Bucket="mlflow")

        def connected() -> bool:
            try:
                connection = psycopg2.connect(
                    host=self.address, port=PORTS["database"], user="mlflow", dbname="postgres"
                )
            except psycopg2.OperationalError:
                return False
            connection.autocommit = True
            connection.cursor().execute("CREATE DATABASE mlflow")
            connection.close()
            return True

        until(connected, "the database", 60)

    def start_mlflow(self, wait: bool = True) -> None:
        """Start the server as infra/mlflow/compose.yaml does."""
        self._start(
            "mlflow",
            [
                str(BIN / "mlflow"),
                "server",
                f"--host={self.address}",
                f"--port={PORTS['mlflow']}",
                "--workers=1",
                f"--backend-store-uri=postgresql+psycopg2://mlflow@{self.address}:{PORTS['database']}/mlflow",
                "--serve-artifacts",
                "--artifacts-destination=s3://mlflow",
                "--allowed-hosts=10.*",
            ],
            MLFLOW_S3_ENDPOINT_URL=f"http://{self.address}:{PORTS['store']}",
            PATH=f"{BIN}:{os.environ['PATH']}",
            **KEYS,
        )
        if wait:
            until(lambda: answers(f"{self.mlflow_uri}/health"), "the MLflow server", 120)

    def kill_mlflow(self) -> None:
        """kill -9 of the server and its workers: its whole process group."""
        process = self._running.pop("mlflow")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    def __exit__(self, *_: object) -> None:
        for name, process in reversed(list(self._running.items())):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT if name == "database" else signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)
        time.sleep(0.2)
