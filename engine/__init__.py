"""The data engine: what a specimen is, how it is stored, read, checked and made into batches."""

import os

SILENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Keeps libraries from reporting to their makers; set before any of them is imported, unless the user chose otherwise.

All commands import this package first. Ray's processes and workers take the environment over.
"""

for _name, _value in SILENT.items():
    os.environ.setdefault(_name, _value)
