"""The predictor as MLflow's pyfunc: columns `image` (bytes of a photo) and `dna` (text) -> those of bulk results.

MLflow imports this module by its name and calls `_load_pyfunc`; nothing is unpickled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from serve.answers.answer import Query
from serve.answers.predictor import THRESHOLD, Predictor
from serve.bulk.columns import COLUMNS, table_of
from serve.models.registry import LIBRARY

KINDS = {pa.string(): "string", pa.float64(): "double", pa.int64(): "long", pa.bool_(): "boolean"}


class Specimens:
    """Answer as MLflow's pyfunc."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, frame: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return one row of answers for each row of photos and barcodes; one that cannot be used says why in `error`.

        Args:
            frame: columns `image` (bytes) and `dna` (text), one of them may be missing, every cell null.
            params: `threshold`, the probability that an answer needs.
        """
        count = len(frame)
        columns = (frame[name].tolist() if name in frame.columns else [None] * count for name in ("image", "dna"))
        queries = [
            Query(
                str(row),
                (bytes(image),) if isinstance(image, (bytes, bytearray)) else (),
                dna if isinstance(dna, str) else None,
            )
            for row, (image, dna) in enumerate(zip(*columns, strict=True))
        ]
        threshold = float((params or {}).get("threshold", THRESHOLD))
        return table_of(self.predictor.identify(queries, threshold=threshold)).drop_columns("key").to_pandas()


def _load_pyfunc(folder: str) -> Specimens:
    place = Path(folder)
    library = place / LIBRARY
    return Specimens(Predictor.load(place, library=library if library.is_dir() else None))


def signature() -> Any:
    """Return what goes in and what comes out, as MLflow writes it."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.binary, "image", required=False),
        ColSpec(DataType.string, "dna", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType[KINDS[one.kind]], one.name, required=False) for one in COLUMNS if one.name != "key"
    ]
    return ModelSignature(
        Schema(inputs), Schema(outputs), ParamSchema([ParamSpec("threshold", DataType.double, THRESHOLD)])
    )
