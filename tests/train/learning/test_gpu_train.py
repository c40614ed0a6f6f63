"""The GPU benchmark's path, on a CPU at tiny sizes: it must not fail for the first time on a lent machine."""

import importlib
import re

import pytest

from tests.benchmarks import gpu_train

pytestmark = pytest.mark.middle


def test_the_whole_path_at_small_sizes(capsys: pytest.CaptureFixture[str], one_thread: None) -> None:
    assert gpu_train.main(["--small"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"step of 16: .* ms, .* specimens/s", text)
    assert re.search(r"TFLOP a step: MFU \d", text)
    assert re.search(r"fed by the engine: .* waiting for data \d", text)
    assert "loss/contrastive of B = 64" in text and "loss/hierarchy of B = 64" in text


def test_what_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A module that lacks a library is named with it; MLflow may be missing."""
    there = importlib.import_module

    def lacking(name: str) -> object:
        if name in ("engine.signals.barcodes", "train.run.tracking"):
            library = {"engine.signals.barcodes": "tokenizers", "train.run.tracking": "mlflow"}[name]
            raise ImportError(f"No module named {library!r}", name=library)
        return there(name)

    assert gpu_train.main(["--check-imports"]) == 0
    monkeypatch.setattr(importlib, "import_module", lacking)
    assert gpu_train.main(["--check-imports"]) == 1
    assert capsys.readouterr().err.splitlines() == ["engine.signals.barcodes: No module named 'tokenizers'"]
