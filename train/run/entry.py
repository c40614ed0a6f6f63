"""The function that Ray Train calls in each worker.

Ray's controller reads it too, and trains nothing: what a model needs (12 s of CPU, 1 GB) is imported inside.
"""

from typing import Any

from train.run.job import Job


def train_loop(task: dict[str, Any]) -> None:
    """Train; Ray Train calls this function with a Job's fields."""
    import ray.train.torch
    import torch

    from train import dist
    from train.run import progress
    from train.run.worker import Worker

    job = Job(**task)
    progress.log_to(job.board, dist.rank())
    torch.set_num_threads(job.threads)
    worker = Worker(job, ray.train.torch.get_device())
    try:
        for metrics in worker.epochs():
            ray.train.report(metrics)
    finally:
        worker.close()
