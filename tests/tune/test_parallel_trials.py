"""How many trials run at once: whatever the cluster, their actors, workers and data tasks fit into it together.

One test for each way in which Tune, Train and Data waited for ever on few CPUs when they were tried together; the runs
themselves are in test_distributed.py.
"""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.batches.pipeline import MIN_TASK_CPU
from train.config import Config, override
from tune.parallel_trials import COORDINATOR_CPU, Slots, slots

STORE = 2e9
TWO = [{"CPU": 2.0, "object_store_memory": STORE}]


def of(*settings: str) -> Config:
    return override(Config(), settings)


def nodes_of(cpus: list[int], gpus: list[int]) -> list[dict[str, float]]:
    return [
        {"CPU": float(cpu), "GPU": float(gpu), "object_store_memory": STORE}
        for cpu, gpu in zip(cpus, gpus, strict=True)
    ]


CLUSTERS = st.lists(st.tuples(st.integers(1, 32), st.integers(0, 8)), min_size=1, max_size=5)


def fitting(nodes: list[dict[str, float]], config: Config) -> Slots:
    try:
        return slots(nodes, config)
    except ValueError:
        assume(False)
        raise


@given(cluster=CLUSTERS, workers=st.sampled_from([1, 2, 4, 8]), use_gpu=st.booleans())
def test_everything_fits_at_once(cluster: list[tuple[int, int]], workers: int, use_gpu: bool) -> None:
    """Actors, workers and a data task for every worker: nobody holds what another one waits for."""
    nodes = nodes_of(*map(list, zip(*cluster, strict=True)))
    found = fitting(nodes, of(f"run.num_workers={workers}", f"run.use_gpu={use_gpu}", "data.lanes=8"))
    cpus, gpus = (sum(node[name] for node in nodes) for name in ("CPU", "GPU"))
    held = found.resources["CPU"]
    if found.distributed:
        held += workers * (1.0 if use_gpu else 0.01)
    tasks = (found.budget.task_cpus if found.budget else 0.0) * (workers if found.distributed else 1)
    assert found.concurrent >= 1
    assert found.concurrent * (held + min(tasks, workers * MIN_TASK_CPU)) <= cpus + 1e-9
    if use_gpu:
        assert found.concurrent * (workers if found.distributed else 1) <= gpus


@given(cluster=CLUSTERS, workers=st.sampled_from([2, 4, 8]))
def test_a_data_task_fits_beside_coordinators_on_any_cpu(cluster: list[tuple[int, int]], workers: int) -> None:
    """Also on a node of one CPU that holds coordinators and workers, after the cluster has shrunk to it."""
    nodes = nodes_of(*map(list, zip(*cluster, strict=True)))
    found = fitting(nodes, of(f"run.num_workers={workers}"))
    assert found.budget and found.budget.task_cpus <= 1 - 5 * COORDINATOR_CPU
    assert found.budget.execution_cpus >= found.budget.task_cpus


def test_coordinators_do_not_fill_the_cluster() -> None:
    """Coordinators of a whole CPU, as Tune gives them, took both CPUs; their workers never started."""
    found = slots(TWO, of("run.num_workers=2"))
    assert found.distributed
    assert found.resources == {"CPU": 0.01}


def test_no_more_trials_than_their_workers_have_room_for() -> None:
    """A coordinator and two workers of a CPU each asked for 2.01 of 2 CPUs; ours ask for 0.03, one trial at a time."""
    assert slots(TWO, of("run.num_workers=2")).concurrent == 1
    assert slots([{"CPU": 8.0, "object_store_memory": STORE}], of("run.num_workers=2")).concurrent == 4


def test_zero_cpus_are_not_asked_for() -> None:
    """Ray refuses a trial of 0 CPUs."""
    for settings in (["run.num_workers=2"], ["run.num_workers=1"], ["run.num_workers=0"]):
        assert slots(TWO, of(*settings)).resources["CPU"] > 0


def test_single_process_trials_have_no_data_tasks_to_wait_for() -> None:
    found = slots(TWO, of())
    assert (found.concurrent, found.resources, found.budget, found.threads) == (2, {"CPU": 1.0}, None, 1)
    assert slots(TWO, of("run.threads=2")).concurrent == 1
    assert slots(TWO, of(), most=1).concurrent == 1


def test_a_gpu_each() -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0, "object_store_memory": STORE}] * 2
    found = slots(nodes, of("run.use_gpu=true"))
    assert (found.concurrent, found.resources) == (4, {"CPU": 1.0, "GPU": 1.0})
    assert found.budget and found.budget.execution_cpus == 3.0
    assert slots(nodes, of("run.use_gpu=true", "run.num_workers=2")).concurrent == 2


def test_trials_go_to_the_nodes_for_training() -> None:
    nodes = [{"CPU": 4.0, "object_store_memory": STORE}, {"CPU": 4.0, "train": 2.0, "object_store_memory": STORE}]
    found = slots(nodes, of("run.worker_resource=train"))
    assert (found.concurrent, found.resources) == (2, {"CPU": 1.0, "train": 1.0})
    with pytest.raises(ValueError, match="a trial needs 1 CPU and 1 train on one node"):
        slots(TWO, of("run.worker_resource=train"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["run.threads=4"], "a trial needs 4 CPU on one node; the cluster has 2 CPUs and 0 GPUs on 1 nodes"),
        (["run.use_gpu=true"], "a trial needs 1.25 CPU and 1 GPU on one node"),
        (["run.use_gpu=true", "run.num_workers=4"], "a trial needs 4 GPUs with 1.25 CPUs each"),
        (["run.num_workers=8"], "no CPU left for reading data"),
    ],
)
def test_too_small(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slots(TWO, of(*settings))
