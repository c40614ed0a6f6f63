"""A checkpoint is a folder that explains itself: weights, configuration, taxonomy, versions.

model.safetensors   every parameter and buffer
config.json         the resolved configuration
taxonomy.json       the taxa the model knows
meta.json           format version, code version, step, taxonomy fingerprint, architecture of the towers
tokenizer.json      the byte-pair tokenizer of the barcodes, where the run used one
training_state.pt   optimizer and schedule; read with weights_only=True, absent from an exported model
"""

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import tree_map

from engine.specimens.taxonomy import Taxonomy
from engine.store.limits import MAX_JSON_BYTES
from engine.store.storage import read_regular
from train.config import Config, from_dict, to_dict
from train.models.bounds import check_numbers, check_weights, without_hub
from train.models.trimodal import Trimodal, build_model

FORMAT_VERSION = 1
WEIGHTS, CONFIG, TAXONOMY, META, STATE, TOKENIZER = (
    "model.safetensors",
    "config.json",
    "taxonomy.json",
    "meta.json",
    "training_state.pt",
    "tokenizer.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """What `load` returns: a model ready for inference and all it was made from."""

    model: Trimodal
    config: Config
    taxonomy: Taxonomy
    meta: dict[str, Any]
    path: Path


@dataclass(frozen=True)
class TrainingState:
    """Hold what a running training's checkpoint has beyond a model's, as it was after one step (see `snapshot`)."""

    training: dict[str, Any]  # optimizer, schedule, history: what training needs to go on
    weights: dict[str, Tensor]  # the model's state_dict
    score: float | None = None  # of the validation at this step, kept in meta.json


@cache
def code_version() -> str:
    """Return the version of the installed distribution, with the commit where the code runs from a git checkout."""
    try:
        version = metadata.version("taxafuse")
    except metadata.PackageNotFoundError:
        version = "not installed"
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return version
    describe = ["git", "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(describe, cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # a container without git
        return version
    return f"{version} ({commit.stdout.strip()})" if commit.returncode == 0 else version


def build(config: Config, taxonomy: Taxonomy, architecture: dict[str, Any] | None = None) -> Trimodal:
    """Build the model of a configuration and a taxonomy; `architecture` is what a checkpoint recorded of it."""
    num_taxa = tuple(len(names) for names in taxonomy.names)
    return build_model(config.model, config.data, config.loss, num_taxa, architecture)


def snapshot(tree: Any) -> Any:
    """Copy all tensors of nested dictionaries and lists into this process' memory, for a thread to write."""
    return tree_map(lambda leaf: leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf, tree)


def save(
    folder: Path, model: Trimodal, config: Config, taxonomy: Taxonomy, *, step: int, state: TrainingState | None
) -> None:
    """Write a checkpoint into an existing folder; `state` None exports the model's weights as they are now.

    Raises FloatingPointError when a weight is not finite: nobody could go on from that.
    """
    given = state.weights if state else model.state_dict()
    weights = {name: value.detach().cpu().contiguous() for name, value in given.items()}
    bad = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise FloatingPointError(f"after step {step} weights are not finite, e.g. {bad[0]}; no checkpoint is written")
    save_file(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(to_dict(config), indent=1))
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors writes files that only their owner reads
    taxonomy.save(folder / TAXONOMY)
    if config.data.tokenizer_file:
        shutil.copyfile(config.data.tokenizer_file, folder / TOKENIZER)
    meta = {
        "format_version": FORMAT_VERSION,
        "code_version": code_version(),
        "step": step,
        "taxonomy_fingerprint": taxonomy.fingerprint,
        "architecture": model.architecture,
    }
    if state and state.score is not None:
        meta["score"] = state.score
    (folder / META).write_text(json.dumps(meta, indent=1))
    if state:
        torch.save(state.training, folder / STATE)


def find(path: str | Path) -> Path:
    """Return the checkpoint folder that `path` means: itself or a run's `model/`. Raises ValueError for neither."""
    folder = Path(path)
    for candidate in (folder, folder / "model"):
        if (candidate / META).is_file():
            return candidate
    reason = "holds no meta.json" if folder.is_dir() else "does not exist"
    raise ValueError(f"no checkpoint: {folder} {reason}; give the folder of a run or its model/ folder")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError naming the file that holds none."""
    try:
        tree = json.loads(read_regular(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); allowed: a file written by this program") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds a {type(tree).__name__}; allowed: a JSON object written by this program")
    return tree


def _shapes(config: Config) -> dict[str, int]:
    """Return the numbers of a configuration's data that decide how large a model is."""
    data = config.data
    return {"image_size": data.image_size, "max_nucleotides": data.max_nucleotides, "kmer": data.kmer}


def _load_weights(model: Trimodal, folder: Path) -> None:
    """Load the weights, which `check_weights` found to fit. Raises ValueError when the file is damaged."""
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read ({error})") from None


def load(path: str | Path) -> Checkpoint:
    """Load a checkpoint folder, or the one of a run's folder, for inference (eval mode, CPU).

    Raises ValueError: no checkpoint there; another format version; files that contradict one another.
    """
    folder = find(path)
    meta = read_json(folder / META)
    if meta.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder}: checkpoint format version is {meta.get('format_version')}, this code reads {FORMAT_VERSION}"
        )
    missing = [name for name in (WEIGHTS, CONFIG, TAXONOMY) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: checkpoint lacks {', '.join(missing)}")
    absent = [name for name in ("taxonomy_fingerprint", "architecture") if name not in meta]
    if absent:
        raise ValueError(f"{folder / META} lacks {', '.join(absent)}; allowed: a file written by this program")
    tree = read_json(folder / CONFIG)
    try:
        config = from_dict(tree)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    if (folder / TOKENIZER).is_file():
        data = replace(config.data, tokenizer_file=str((folder / TOKENIZER).resolve()))
        config = replace(config, data=data)
    taxonomy = Taxonomy.load(folder / TAXONOMY)
    if taxonomy.fingerprint != meta["taxonomy_fingerprint"]:
        raise ValueError(
            f"{folder}: taxonomy.json is not the one the weights were trained with "
            f"(fingerprint {taxonomy.fingerprint[:12]}, expected {meta['taxonomy_fingerprint'][:12]})"
        )
    try:
        check_numbers([meta["architecture"], tree.get("model"), _shapes(config)], f"{folder}: configuration")
        with without_hub():
            with torch.device("meta"):  # no memory is asked for what the file does not hold
                check_weights(build(config, taxonomy, meta["architecture"]).state_dict(), folder / WEIGHTS)
            model = build(config, taxonomy, meta["architecture"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / META}: its architecture cannot be built ({error!r})") from None
    _load_weights(model, folder)
    return Checkpoint(model=model.eval(), config=config, taxonomy=taxonomy, meta=meta, path=folder)


def load_training_state(folder: Path) -> dict[str, Any]:
    """Read optimizer, schedule and step of a checkpoint written during training."""
    return torch.load(folder / STATE, map_location="cpu", weights_only=True)
