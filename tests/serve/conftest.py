"""What tests of serving share: a tiny calibrated model and a library of the simulated specimens."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from starlette.testclient import TestClient

from engine.batches.pipeline import label_columns, load_index, select_split
from engine.specimens.taxonomy import Taxonomy
from engine.store.shards import ShardReader
from serve.answers.predictor import Predictor
from serve.http.api import make_app
from serve.http.host import ModelHost
from serve.http.service import Service
from serve.models.directory import read_directory
from serve.models.settings import Settings
from tests.train.small import small_config
from train import reference
from train.evaluation import calibrate
from train.evaluation.known_questions import Part
from train.evaluation.model_under_test import Setting
from train.inference.calibration import FILE
from train.inference.nearest import Combiner
from train.models import checkpoint


@dataclass(frozen=True)
class Stored:
    """A specimen as it lies in the shards."""

    key: str
    image: bytes | None
    dna: str | None
    species: str | None


@dataclass(frozen=True)
class Served:
    """A tiny model's folder, its library's, and the shards that both are of."""

    checkpoint: Path
    library: Path
    shards: Path
    index: pa.Table

    def specimens(self, split: str = "test") -> list[Stored]:
        reader = ShardReader("/")
        found = []
        for row in select_split(self.index, split).to_pylist():
            place = str(Path(row["folder"]) / row["shard"])
            image, dna = (
                reader.read(place, row[f"{name}_offset"], row[f"{name}_size"]) if row[f"{name}_size"] else None
                for name in ("image", "dna")
            )
            found.append(Stored(row["key"], image, dna.decode() if dna is not None else None, row["species"]))
        return found


@pytest.fixture(scope="session")
def served(simulated_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Random weights, calibrated on val; a library of the train split."""
    folder = tmp_path_factory.mktemp("served")
    torch.manual_seed(0)
    config = small_config(simulated_shards)
    index = load_index(config.data.shards)
    taxonomy = Taxonomy.build(label_columns(select_split(index, "train")))
    model = checkpoint.build(config, taxonomy).eval()
    place = folder / "tiny" / "model"
    place.mkdir(parents=True)
    checkpoint.save(place, model, config, taxonomy, step=0, state=None)
    setting = Setting(model, config, taxonomy, index, "test")
    known = reference.read_shards([simulated_shards])
    library = reference.Library.build(known.records, known.barcodes)
    library.save(folder / "library")
    calibrate.fit(Part(setting, "val", Combiner(library, taxonomy))).save(place / FILE)
    return Served(place, folder / "library", simulated_shards, index)


@pytest.fixture(scope="session")
def predictor(served: Served) -> Predictor:
    return Predictor.load(served.checkpoint, library=served.library)


@pytest.fixture(scope="session")
def client(served: Served) -> Iterator[TestClient]:
    """The HTTP interface with the models in this process, without Ray."""
    settings = Settings(checkpoint=str(served.checkpoint), library=str(served.library), max_body_mib=1, max_queries=8)
    with TestClient(make_app(Service(settings, read_directory(settings), ModelHost(settings)))) as client:
        yield client
