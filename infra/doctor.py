"""Is this machine, or this cluster, ready for a run? Says what is there, what is not, and what to do about it.

    python -m infra.doctor                                          this machine, or the cluster that runs here
    python -m infra.doctor --recipe bioscan1m --set data.shards=/shared/shards/bioscan1m ...   and for this training

Give it the recipe and the settings of the training that is to follow: its shards must be readable and its run.storage
writable from every node, its MLflow must answer, and its CPUs must suffice. Exit code 1 when there is a problem.
"""

import argparse
import dataclasses
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.commandline import Parser, guarded
from infra import checks, collective, machine
from infra.checks import Finding, Request

HEAD_PORTS = (6379, 8265, 10001, 8000)  # GCS, dashboard, Ray Client, Serve
NODE_TIMEOUT_S = 120.0
CLOCKS_S = 5.0  # apart: logs and MLflow's times no longer fit together
MARKS = {"ok": "ok     ", "warning": "WARNING", "problem": "PROBLEM"}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="python -m infra.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", help="the training that is to follow (see train/main.py --help)")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides")
    parser.add_argument("--this-machine", action="store_true", help="do not look for a cluster")
    parser.add_argument("--wait-for-nodes", type=int, default=0, metavar="N", help="first wait for so many (5 minutes)")
    parser.add_argument("--no-all-reduce", action="store_true", help="leave GPUs and the network alone")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser.parse_args(arguments)


def request_of(options: argparse.Namespace) -> tuple[Request, Any]:
    """Return what every node is asked, and the configuration of the training (None when none is named)."""
    request = Request(versions=checks.own_versions(), folder=tempfile.gettempdir())
    if not options.recipe and not options.overrides:
        return request, None
    from train.config import absolute_paths, override
    from train.recipes import make
    from train.run.tracking import tracking_uri

    config = absolute_paths(override(make(options.recipe or "quickstart"), options.overrides))
    shards = tuple(place for place in config.data.shards if not place.rsplit("/", 1)[-1].startswith("simulated:"))
    uri = tracking_uri(config) if config.run.tracking == "mlflow" else ""
    return dataclasses.replace(request, shards=shards, storage=config.run.storage, tracking_uri=uri), config


def connect(wait_for: int) -> Any:
    """Join the cluster that runs here or that RAY_ADDRESS names; return Ray's context, None where there is none.

    Raises ValueError when fewer nodes than asked for have come after 5 minutes.
    """
    from train.run.cluster import check_address

    check_address()
    import ray

    try:
        context = ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except ray.exceptions.AuthenticationError as error:
        raise ValueError(f"the cluster asks for its token: {str(error).splitlines()[0]}") from None
    except ConnectionError:
        if os.environ.get("RAY_ADDRESS") or wait_for:
            place = os.environ.get("RAY_ADDRESS", "this machine")
            wanted = "the address of a running one, with its token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH)"
            raise ValueError(f"no cluster at {place}; allowed: {wanted}") from None
        return None
    end = time.monotonic() + 300
    while len(_alive()) < wait_for:
        if time.monotonic() > end:
            raise ValueError(f"--wait-for-nodes {wait_for}: {len(_alive())} came within 5 minutes; see their logs")
        time.sleep(1)
    return context


def _alive() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def cluster(request: Request, config: Any, all_reduce: bool) -> list[Finding]:
    """Return every node's findings, and those that need all nodes together."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = _alive()
    raylets = [(node["NodeManagerAddress"], node["NodeManagerPort"]) for node in nodes]
    look: Any = ray.remote(num_cpus=0, max_retries=0)(checks.node)
    jobs, found = {}, []
    for node, own in zip(nodes, raylets, strict=True):
        there = dataclasses.replace(
            request,
            num_nodes=len(nodes),
            gpus=node["Resources"].get("GPU", 0.0),
            object_store_bytes=node["Resources"].get("object_store_memory", 0.0),
            peers=tuple(other for other in raylets if other != own),
        )
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        jobs[_name(node)] = (time.time(), look.options(scheduling_strategy=place).remote(there))
    for name, (asked, job) in jobs.items():
        found += _answer(name, asked, job)
    if config:
        found += checks.guarded("CPUs", lambda: cpus(config))
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if all_reduce and (gpus or len(nodes) > 1):
        found += checks.guarded("all-reduce", lambda: collective.check(gpus, [node["NodeID"] for node in nodes]))
    return found


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} {node['NodeManagerAddress']}"


def _answer(name: str, asked: float, job: Any) -> list[Finding]:
    """Return the findings of one node."""
    import ray

    try:
        found, clock = ray.get(job, timeout=NODE_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        problem = f"no answer within {NODE_TIMEOUT_S:.0f} s"
        return [Finding("node", "problem", problem, "`ray status`; logs in /tmp/ray/session_latest/logs", name)]
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1]
        fix = "install the wheel on every node, or go through `ray job submit --working-dir .`"
        return [Finding("node", "problem", last, fix, name)]
    late = max(asked - clock, clock - time.time())  # the node read its clock between these two moments
    if late > CLOCKS_S:
        found.append(Finding("clock", "warning", f"{late:.0f} s off", "run an NTP client on every node"))
    return [dataclasses.replace(one, node=name) for one in found]


def jobs_server(address: str | None) -> Finding:
    """Check that the head takes jobs; it has no dashboard when another Ray of the machine holds the port."""
    if address:
        return Finding("jobs", "ok", f"http://{address} takes them")
    fix = "`ray stop`, then start the head again with its dashboard, when no other Ray has its port (8265)"
    return Finding(
        "jobs", "warning", "no dashboard, so neither `ray job submit` nor `serve deploy` reach this cluster", fix
    )


def cpus(config: Any) -> Finding:
    """Check that the train workers leave CPUs for the data tasks."""
    import ray

    from engine.batches.pipeline import cpu_budget
    from train.run.trainer import CPU_PER_WORKER

    run, there = config.run, ray.cluster_resources()
    if run.use_gpu and there.get("GPU", 0) < run.num_workers:
        what = f"run.num_workers={run.num_workers} with run.use_gpu=true, the cluster has {there.get('GPU', 0):g} GPUs"
        return Finding("workers", "problem", what, "add GPU nodes, or set run.num_workers or run.use_gpu=false")
    try:
        budget = cpu_budget(there, run.num_workers, CPU_PER_WORKER[run.use_gpu])
    except ValueError as error:
        return Finding("CPUs", "problem", str(error), "see infra.capacity for how many a run needs")
    return Finding("CPUs", "ok", f"{budget.execution_cpus:g} for the data tasks of each train worker")


def examine(options: argparse.Namespace) -> list[Finding]:
    """Return all findings. Raises ValueError for a wrong setting."""
    request, config = request_of(options)
    joined = None if options.this_machine else connect(options.wait_for_nodes)
    with tempfile.TemporaryDirectory() as nowhere:
        if request.storage:
            from train.run.trainer import make_folder

            make_folder(Path(request.storage))
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=request.storage or nowhere) as marker:
            request = dataclasses.replace(request, marker=marker.name)
            if joined:
                found = cluster(request, config, not options.no_all_reduce)
                return [*found, jobs_server(joined.dashboard_url)]
            alone = dataclasses.replace(request, gpus=float(checks.device_files()))
            found, _ = checks.node(alone)
            return [*found, *machine.found(), checks.ports_free(HEAD_PORTS)]


def show(found: list[Finding]) -> str:
    """Return the findings as text: by node, problems first, each with what to do."""
    lines = []
    for node in dict.fromkeys(one.node for one in found):
        lines.append(node or "here")
        own = [one for one in found if one.node == node]
        for one in sorted(own, key=lambda one: list(MARKS)[::-1].index(one.status)):
            lines.append(f"  {MARKS[one.status]} {one.check}: {one.what}")
            if one.fix and one.status != "ok":
                lines.append(f"          -> {one.fix}")
    count = {status: sum(one.status == status for one in found) for status in MARKS}
    return "\n".join([*lines, f"{count['problem']} problems, {count['warning']} warnings, {count['ok']} checks passed"])


def _command(options: argparse.Namespace) -> int:
    found = examine(options)
    print(json.dumps([dataclasses.asdict(one) for one in found], indent=1) if options.json else show(found))
    return int(any(one.status == "problem" for one in found))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parse(arguments)
    return guarded(lambda: _command(options))


if __name__ == "__main__":
    sys.exit(main())
