"""Features on disk: read like arrays, complete after an interruption, made anew for another model."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from engine.specimens.taxonomy import Taxonomy
from tests.train.planted import PlantedModel, batches
from train.evaluation import predict, store
from train.evaluation.store import FeatureStore


def test_stored_rows_equal_those_in_memory(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    kept, memory = FeatureStore(9, tmp_path / "a", "x"), FeatureStore(9)
    for part in (kept, memory):
        for first in (0, 4, 8):
            part.write(first, {"dna": values[first : first + 4]})
            part.commit(min(9, first + 4))
    for rows in (slice(2, 5), np.array([7, 0, 7]), np.arange(9) % 2 == 0):
        np.testing.assert_array_equal(kept.arrays["dna"][rows], memory.arrays["dna"][rows])
    assert kept.arrays["dna"].shape == (9, 3) and len(kept.arrays["dna"]) == 9
    again = FeatureStore(9, tmp_path / "a", "x")
    assert again.done == 9
    np.testing.assert_array_equal(again.arrays["dna"][:], values)
    assert FeatureStore(9, tmp_path / "a", "y").done == 0
    assert not (tmp_path / "a" / "dna.npy").exists()


def test_fingerprint_tells_models_keys_and_settings_apart() -> None:
    model = torch.nn.Linear(2, 2)
    whole = store.fingerprint(model, ["a", "b"], {"size": 3})
    assert whole == store.fingerprint(model, ["a", "b"], {"size": 3})
    assert whole != store.fingerprint(model, ["ab"], {"size": 3})
    assert whole != store.fingerprint(model, ["a", "b"], {"size": 4})
    with torch.no_grad():
        model.bias.add_(1)
    assert whole != store.fingerprint(model, ["a", "b"], {"size": 3})


def test_an_interrupted_encoding_goes_on(
    taxonomy: Taxonomy, encoded: predict.Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "COMMIT_ROWS", 3)
    index = pa.table({"key": [f"k{i}" for i in range(8)]})
    asked: list[int] = []

    def rest(rows: pa.Table, *arguments: Any, fail_after: int = 99) -> Any:
        asked.append(len(rows))
        for number, batch in enumerate(list(batches(taxonomy))[(8 - len(rows)) // 3 :]):
            if number == fail_after:
                raise KeyboardInterrupt
            yield batch

    model = PlantedModel(taxonomy)
    monkeypatch.setattr(predict, "evaluation_batches", lambda *a: rest(*a, fail_after=2))
    with pytest.raises(KeyboardInterrupt):
        predict.encode_split(model, index, taxonomy, None, store=FeatureStore(8, tmp_path / "f", "x"))
    seen = model.rows_seen
    monkeypatch.setattr(predict, "evaluation_batches", rest)
    whole = predict.encode_split(model, index, taxonomy, None, store=FeatureStore(8, tmp_path / "f", "x"))
    assert asked == [8, 2] and model.rows_seen < 2 * seen
    np.testing.assert_array_equal(whole.labels, encoded.labels)
    np.testing.assert_array_equal(whole.has_dna, encoded.has_dna)
    for name, rows in encoded.features.items():
        np.testing.assert_array_equal(whole.features[name][:], rows)
