"""Train as a run: its folder, its cluster, its workers, its record. Ray's switches are set before Ray is imported."""

from train.run.ray_seams import set_switches

set_switches()
