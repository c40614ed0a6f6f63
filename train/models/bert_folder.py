"""A published BERT of barcodes in a local folder: its shape and its weights, read without running foreign code.

The folder holds `config.json` (Hugging Face's keys) and one file of weights: `model.safetensors`, `pytorch_model.bin`,
or a training checkpoint `*.pt` / `*.pth` whose `model` entry has the weights and whose `bert_config` stands in for
config.json. Pickled files are read with `weights_only=True`.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

OPTION = "model.dna_pretrained"
CONFIG_FILE = "config.json"
OWN = "meta.json"  # of a checkpoint written by this program
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
HEADS = ("cls.", "classifier.", "pooler.")  # of the published training tasks; nothing here uses them
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


@dataclass(frozen=True, kw_only=True)
class BertShape:
    """What of a Hugging Face BERT configuration decides the parameters; the defaults are BERT base's."""

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "BertShape":
        """Read config.json's or our own keys; others are ignored. Raises ValueError for a value of a wrong type."""
        fields = {field.name: tree[field.name] for field in dataclasses.fields(cls) if field.name in tree}
        for name, value in fields.items():
            kind = (int, float) if name == "layer_norm_eps" else int
            if not isinstance(value, kind) or isinstance(value, bool) or value <= 0:
                raise ValueError(f"{OPTION}: {name} got {value!r}, allowed a number above 0")
        return cls(**fields)

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"the heads of a barcode BERT (model.dna_heads) must divide its width (model.dna_width), "
                f"got {self.num_attention_heads} and {self.hidden_size}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)


def read(folder: str) -> tuple[BertShape, dict[str, Tensor]]:
    """Return the encoder's shape and its weights, named without the leading `bert.`. Raises ValueError in one line."""
    path = Path(folder)
    path = next((place for place in (path, path / "model") if (place / OWN).is_file()), path)
    if (path / OWN).is_file():
        return _read_own(path)
    if not path.is_dir():
        raise ValueError(f"{OPTION}: got {folder!r}, allowed a local folder with {CONFIG_FILE} and weights")
    file = _weights_file(path)
    tree = _load(file)
    config = tree.get("bert_config")
    if isinstance(tree.get("model"), dict):
        tree = tree["model"]
    if (path / CONFIG_FILE).is_file():
        config = _read_config(path / CONFIG_FILE)
    weights = _encoder_weights(tree, file)
    return _shape(config, weights, file), weights


def _read_own(path: Path) -> tuple[BertShape, dict[str, Tensor]]:
    """Take the DNA tower of a checkpoint of ours."""
    tree = _read_config(path / OWN)
    shape = tree.get("architecture", {}).get("dna")
    if shape is None:
        raise ValueError(f"{OPTION}: {path} was trained with another DNA tower; allowed a run of recipe barcodebert")
    named = _load(path / WEIGHT_FILES[0])
    start = "dna_encoder.bert."
    return BertShape.from_dict(shape), {k.removeprefix(start): v for k, v in named.items() if k.startswith(start)}


def _weights_file(path: Path) -> Path:
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    found = sorted([*path.glob("*.pt"), *path.glob("*.pth")])
    if len(found) != 1:
        present = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "an empty folder"
        raise ValueError(f"{OPTION}: {path} holds {present}; allowed {', '.join(WEIGHT_FILES)} or one *.pt, *.pth file")
    return found[0]


def _load(file: Path) -> dict[str, Any]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals([argparse.Namespace]):  # BarcodeBERT keeps its command line beside
            tree = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{OPTION}: {file} cannot be read ({reason})") from None
    except Exception as error:  # pickle.UnpicklingError and what a damaged file makes of it
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{OPTION}: {file} is not plain weights ({reason}); allowed safetensors or tensors") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{OPTION}: {file} holds a {type(tree).__name__}, allowed a dictionary of tensors")
    return tree


def _read_config(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{OPTION}: {file} is no JSON ({error})") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{OPTION}: {file} holds a {type(tree).__name__}, allowed a JSON object")
    return tree


def _encoder_weights(tree: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """Drop the prefixes of DistributedDataParallel and of the task, the task heads and the constant buffers."""
    named = {name.removeprefix("module."): value for name, value in tree.items() if isinstance(value, Tensor)}
    named = {name.removeprefix("bert."): value for name, value in named.items()}
    weights = {name: value for name, value in named.items() if not name.startswith(HEADS) and name not in BUFFERS}
    if "embeddings.word_embeddings.weight" not in weights:
        some = ", ".join(sorted(weights)[:3]) or "no tensors"
        raise ValueError(f"{OPTION}: {file} holds {some}; allowed a BERT with embeddings.word_embeddings.weight")
    return weights


def _shape(config: Any, weights: Mapping[str, Tensor], file: Path) -> BertShape:
    """Take the shape from the configuration, else from the weights if they are BERT base, which has 12 heads."""
    if isinstance(config, dict):
        return BertShape.from_dict(config | {"vocab_size": len(weights["embeddings.word_embeddings.weight"])})
    vocab_size, width = weights["embeddings.word_embeddings.weight"].shape
    layers = {match[1] for name in weights if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
    if (width, len(layers)) != (768, 12):
        raise ValueError(
            f"{OPTION}: {file.parent} has no {CONFIG_FILE} and {file.name} is not BERT base ({len(layers)} layers of "
            f"width {width}): its number of heads is not known; allowed a folder with {CONFIG_FILE}"
        )
    return BertShape(vocab_size=vocab_size)


def fill(module: nn.Module, weights: Mapping[str, Tensor], folder: str) -> None:
    """Load the weights into the encoder, all of them. Raises ValueError naming the first that does not fit."""
    expected = module.state_dict()
    for name in sorted(set(expected) | set(weights)):
        if name not in weights or name not in expected:
            what = "lacks" if name not in weights else "has the unknown"
            raise ValueError(f"{OPTION}: {folder} {what} parameter bert.{name}")
        if weights[name].shape != expected[name].shape:
            got, fit = list(weights[name].shape), list(expected[name].shape)
            raise ValueError(f"{OPTION}: bert.{name} in {folder} is {got}, expected {fit}")
    module.load_state_dict(dict(weights))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of [B, L, W] over the True places of [B, L]; zeros where there are none."""
    weight = mask.to(x.dtype)[..., None]
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)
