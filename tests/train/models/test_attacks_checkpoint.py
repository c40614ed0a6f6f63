"""A hostile checkpoint: what its files ask for is refused before anything is built from it."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.specimens.taxonomy import RANKS, Taxonomy
from train.config import Config
from train.models import checkpoint
from train.models.checkpoint import CONFIG, META, TAXONOMY, WEIGHTS


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    names = {rank: pa.chunked_array([[rank.title()]]) for rank in RANKS}
    taxonomy, config = Taxonomy.build(names), Config()
    checkpoint.save(folder, checkpoint.build(config, taxonomy), config, taxonomy, step=1, state=None)
    checkpoint.load(folder)
    return folder


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


def put(file: str, *keys: str, value: Any) -> Callable[[Path], None]:
    """Return a change of one value of a JSON file; the last key may be new."""

    def change(folder: Path) -> None:
        tree = json.loads((folder / file).read_text())
        place = tree
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (folder / file).write_text(json.dumps(tree))

    return change


TOWER = ("architecture", "model_cfg")
HOSTILE: dict[str, Callable[[Path], object]] = {
    "a million layers of DNA": put(CONFIG, "model", "dna_depth", value=1_000_000),
    "a million layers of text": put(META, *TOWER, "text_cfg", "layers", value=1_000_000),
    "hundreds of layers": put(META, *TOWER, "text_cfg", "layers", value=500),
    "negative layers": put(META, *TOWER, "text_cfg", "layers", value=-(2**62)),
    "pixels": put(CONFIG, "data", "image_size", value=100_000),
    "pixels of the tower": put(META, *TOWER, "vision_cfg", "image_size", value=100_000),
    "pixels of a real tower": put(META, *TOWER, "vision_cfg", value={"layers": 12, "width": 768, "image_size": 4096}),
    "width": put(CONFIG, "model", "dna_width", value=65_536),
    "width of 2^62": put(CONFIG, "model", "dna_width", value=2**62),
    "embedding": put(META, *TOWER, "embed_dim", value=65_000),
    "vocabulary": put(META, *TOWER, "text_cfg", "vocab_size", value=2**40),
    "a large vocabulary": put(META, *TOWER, "text_cfg", "vocab_size", value=2**21),
    "letters": put(CONFIG, "data", "max_nucleotides", value=2**40),
    "infinite": put(META, *TOWER, "text_cfg", "width", value=float("inf")),
    "a text for a number": put(META, *TOWER, "text_cfg", "width", value="x" * 1000),
    "a list of layers": put(META, *TOWER, "vision_cfg", "layers", value=[3] * 1000),
    "depth of config": lambda folder: (folder / CONFIG).write_text(deep(100_000)),
    "depth of meta": lambda folder: (folder / META).write_text('{"format_version": 1, "a": ' + deep(100_000) + "}"),
    "depth of taxonomy": lambda folder: (folder / TAXONOMY).write_text(deep(100_000)),
    "taxonomy of nothing": lambda folder: (folder / TAXONOMY).write_text('{"format_version": 1}'),
    "no list of taxa": put(TAXONOMY, "names", value={"a": 1}),
    "numbers of 2^70": put(TAXONOMY, "lineages", value=[[[2**70] * 4]] * 4),
    "weights of 2^62": lambda folder: (folder / WEIGHTS).write_bytes(
        (header := json.dumps({"x": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]}}).encode())
        and len(header).to_bytes(8, "little") + header
    ),
    "a header of 2^62": lambda folder: (folder / WEIGHTS).write_bytes((1 << 62).to_bytes(8, "little") + b"{}"),
    "no weights": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "a repository": put(
        *(META, *TOWER, "text_cfg"),
        value={"hf_model_name": "evil/model", "hf_tokenizer_name": "evil/model", "context_length": 8},
    ),
    "a sparse config": lambda folder: (folder / CONFIG).open("r+b").truncate(100 << 30),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_checkpoint_is_refused(
    honest: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*address: object, **_: object) -> None:
        raise AssertionError(f"a checkpoint made us call {address}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for file in honest.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    HOSTILE[kind](tmp_path)
    start = time.process_time()
    with pytest.raises((ValueError, OSError)) as caught:
        checkpoint.load(tmp_path)
    assert time.process_time() - start < 10
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 3000
