"""Sum a tensor over all nodes or GPUs: the one thing that training needs of the network between nodes.

One rank per GPU with NCCL, or one per node with gloo where there is no GPU; each in a process of its own, placed by Ray
as training's workers are.
"""

import socket
import time
from datetime import timedelta
from typing import Any

from infra.checks import Finding

ELEMENTS = 2**24  # float32: 64 MiB, large enough that bandwidth counts and not latency
TIMEOUT_S = 60.0
REPEATS = 3
# gloo takes the address that the node's own name resolves to; Debian lets that be 127.0.1.1.
INTERFACE = "NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME (of `ray start`) name the interface"


class Rank:
    """One rank, as a Ray actor."""

    def address(self) -> str:
        """Return where rank 0 listens: this node's address and a free port."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def all_reduce(self, address: str, rank: int, world: int, backend: str) -> float:
        """Sum a tensor over all ranks; return the seconds of one sum. Raises AssertionError for a wrong sum."""
        import torch
        from torch import distributed

        limit = timedelta(seconds=TIMEOUT_S)
        distributed.init_process_group(backend, init_method=address, rank=rank, world_size=world, timeout=limit)
        try:
            device = "cuda" if backend == "nccl" else "cpu"
            seconds = []
            for _ in range(REPEATS + 1):  # the first one sets up connections
                tensor = torch.full((ELEMENTS,), float(rank), device=device)
                started = time.perf_counter()
                distributed.all_reduce(tensor)
                total = tensor[-1].item()  # waits for the device
                seconds.append(time.perf_counter() - started)
                assert total == world * (world - 1) / 2, f"the sum over {world} ranks is {total}"
            return min(seconds[1:])
        finally:
            distributed.destroy_process_group()


def check(gpus: int, nodes: list[str]) -> Finding:
    """Let all ranks sum together: `gpus` ranks with NCCL, or one on each of `nodes` (Ray's node ids) with gloo."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote(Rank)
    if gpus:
        backend, ranks = "nccl", [remote.options(num_cpus=0, num_gpus=1).remote() for _ in range(gpus)]
    else:
        places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        backend, ranks = "gloo", [remote.options(num_cpus=0, scheduling_strategy=place).remote() for place in places]
    name, size = f"all-reduce ({backend})", 4 * ELEMENTS
    try:
        address = ray.get(ranks[0].address.remote(), timeout=TIMEOUT_S)
        world = len(ranks)
        jobs = [rank.all_reduce.remote(address, number, world, backend) for number, rank in enumerate(ranks)]
        slowest = max(ray.get(jobs, timeout=2 * TIMEOUT_S))
    except ray.exceptions.GetTimeoutError:
        fix = f"are all GPUs free? is the network between the nodes open? {INTERFACE}"
        return Finding(name, "problem", f"{len(ranks)} ranks did not finish within {2 * TIMEOUT_S:.0f} s", fix)
    except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError) as error:
        last = str(error).strip().splitlines()[-1]
        return Finding(name, "problem", last, f"NCCL_DEBUG=INFO shows why; {INTERFACE}")
    finally:
        for rank in ranks:
            ray.kill(rank)
    # Each rank sends and receives 2 (W - 1) / W times the tensor.
    rate = 2 * (world - 1) / world * size / slowest / 1e9
    return Finding(
        name, "ok", f"{world} ranks, 64 MiB in {slowest * 1000:.0f} ms" + f" ({rate:.1f} GB/s)" * (world > 1)
    )
