"""Export the numbers of a running training as Prometheus gauges, through Ray's exporter on every node.

    taxafuse_train_data_wait_seconds{run="bioscan1m", rank="0"} 0.003       (Ray puts `ray_` before the name)

They are set when a worker logs a record (`run.log_every`), never per step; `infra/monitoring` draws them.
"""

from collections.abc import Mapping
from typing import Any

TAGS = ("run", "rank")
GAUGES = {  # metric key of a training's record -> name and description of the gauge
    "data/wait_s": ("taxafuse_train_data_wait_seconds", "mean wait of this worker for a batch"),
    "perf/step_s": ("taxafuse_train_step_seconds", "mean time of a step on this worker, without the wait"),
    "perf/samples_per_s": ("taxafuse_train_samples_per_second", "specimens a second, all workers"),
    "perf/mfu": ("taxafuse_train_mfu", "share of the device's rate that the steps use"),
    "loss/total": ("taxafuse_train_loss", "mean loss, all workers"),
    "step": ("taxafuse_train_step", "steps done"),
}


class Gauges:
    """Hold one worker's gauges; without a connected Ray nothing is exported."""

    def __init__(self, run: str, rank: int) -> None:
        from ray.util.metrics import Gauge

        self._tags = {"run": run, "rank": str(rank)}
        self._gauges: dict[str, Any] = {
            key: Gauge(name, description=description, tag_keys=TAGS) for key, (name, description) in GAUGES.items()
        }

    def set(self, record: Mapping[str, float]) -> None:
        """Set the gauges of a record's numbers."""
        for key, gauge in self._gauges.items():
            if key in record:
                gauge.set(record[key], tags=self._tags)
