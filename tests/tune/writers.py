"""What a trial does to MLflow, and nothing else: for processes that a test starts, which must not import Torch."""

from train.config import Config
from train.run.tracking import open_tracker

BATCHES = 1000


def write(config: Config, run_id: str, writer: int) -> None:
    """A thousand batches of two numbers, as fast as they go."""
    tracker = open_tracker(config, run_id)
    for step in range(BATCHES):
        tracker.metrics({"loss/total": float(step), f"writer/{writer}": step / 2}, step)
    tracker.close("FINISHED")
