"""Compute from the cluster how many trials run at once, and what each may use, so that nothing waits for ever.

A training with one worker is a *single-process trial*: one actor, which prepares its batches itself on a CPU, or with
data tasks of its own share when it trains on a GPU. With more workers it is a *distributed trial*: a coordinator of a
hundredth of a CPU around a TorchTrainer, whose workers and data tasks need CPUs that no coordinator may hold.

What waited for ever without a message when it was tried, and what rules it out here: coordinators of a whole CPU each
that fill the cluster (they ask for 0.01); more trials than their workers and data tasks have room for (`concurrent`);
workers that reserve CPUs which their own data tasks need (CPU workers ask for 0.01, too); a stopped trial whose
placement group nobody removes while Ray's dashboard is off (`tune.trial` lets its training end by itself).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.batches.pipeline import MIN_TASK_CPU, CpuBudget, cpu_budget
from train.config import Config
from train.run.trainer import CPU_PER_WORKER

COORDINATOR_CPU = 0.01  # Ray refuses an actor of 0 CPUs as a trial
SLACK = 0.9  # of a data task's CPU: coordinators and workers hold hundredths of the same CPU, on any node


@dataclass(frozen=True)
class Slots:
    """Hold how many trials fit, and what each may use."""

    concurrent: int  # trials at once
    resources: Mapping[str, float]  # that Tune reserves for a trial's own actor
    distributed: bool
    budget: CpuBudget | None  # of a trial's data tasks; None = the trial prepares its batches itself
    threads: int  # of torch, in each process that trains

    def describe(self) -> str:
        """Return one sentence for people."""
        kind = "distributed" if self.distributed else "single-process"
        return f"{self.concurrent} {kind} trial{'s' if self.concurrent > 1 else ''} at a time"


def slots(nodes: Sequence[Mapping[str, float]], config: Config, most: int = 0) -> Slots:
    """Compute how many trainings like `config` the nodes hold at once.

    Args:
        nodes: resources of each node (CPU, GPU, object_store_memory).
        config: of a trial.
        most: trials at once, at most; 0 = as many as fit.

    Raises ValueError when not one fits, with the numbers.
    """
    if config.run.num_workers > 1:
        return _distributed(nodes, config, most)
    gpu = 1.0 if config.run.use_gpu else 0.0
    threads = 1 if gpu else max(1, config.run.threads)
    cpu = threads + (MIN_TASK_CPU if gpu else 0.0)
    own = {config.run.worker_resource: 1.0} if config.run.worker_resource else {}
    fit = sum(_times(node, {"CPU": cpu, "GPU": gpu, **own}) for node in nodes)
    if not fit:
        more = [" and 1 GPU"] * bool(gpu) + [f" and 1 {name}" for name in own]
        raise ValueError(_too_small(nodes, f"{cpu:g} CPU{''.join(more)} on one node"))
    concurrent = min(fit, most) if most else fit
    budget = None
    if gpu:
        budget = _slack(cpu_budget(_share(nodes, concurrent), 1, float(threads)))
    resources = {"CPU": float(threads)} | ({"GPU": gpu} if gpu else {}) | own
    return Slots(concurrent, resources, False, budget, threads)


def _distributed(nodes: Sequence[Mapping[str, float]], config: Config, most: int) -> Slots:
    """Fit trials of several workers: as many as leave each worker a GPU, or on CPUs a core."""
    workers, gpu = config.run.num_workers, config.run.use_gpu
    if gpu:
        fit = int(_total(nodes, "GPU") // workers)
        fit = min(fit, int(_total(nodes, "CPU") / (COORDINATOR_CPU + workers * (CPU_PER_WORKER[True] + MIN_TASK_CPU))))
    else:
        fit = max(1, int(_total(nodes, "CPU") // workers))
    if not fit:
        raise ValueError(_too_small(nodes, f"{workers} GPUs with {1 + MIN_TASK_CPU:g} CPUs each"))
    concurrent = min(fit, most) if most else fit
    share = _share(nodes, concurrent)
    share["CPU"] -= COORDINATOR_CPU
    budget = _slack(cpu_budget(share, workers, CPU_PER_WORKER[gpu]))
    threads = config.run.threads or max(1, int(share["CPU"] // workers))
    return Slots(concurrent, {"CPU": COORDINATOR_CPU}, True, budget, threads)


def _slack(budget: CpuBudget) -> CpuBudget:
    return dataclasses.replace(budget, task_cpus=SLACK * budget.task_cpus)


def _times(node: Mapping[str, float], need: Mapping[str, float]) -> int:
    return min(math.floor(node.get(name, 0.0) / amount) for name, amount in need.items() if amount)


def _total(nodes: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(node.get(name, 0.0) for node in nodes)


def _share(nodes: Sequence[Mapping[str, float]], parts: int) -> dict[str, float]:
    return {name: _total(nodes, name) / parts for name in ("CPU", "object_store_memory")}


def _too_small(nodes: Sequence[Mapping[str, float]], need: str) -> str:
    return (
        f"a trial needs {need}; the cluster has {_total(nodes, 'CPU'):g} CPUs and {_total(nodes, 'GPU'):g} GPUs on "
        f"{len(nodes)} nodes - lower run.num_workers or run.threads, or add nodes"
    )


def living_nodes() -> list[dict[str, Any]]:
    """Return the resources of each living node of the running cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
