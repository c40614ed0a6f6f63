"""Where the image and text towers come from: one open_clip model, found by name, never by running foreign code.

Imported where a model is built: open_clip and timm take 7 s of CPU, and a run has processes that build none.

A name is one of ours (`taxafuse-tiny`), an architecture open_clip knows (`ViT-B-16`), `local-dir:PATH` or
`hf-hub:OWNER/NAME`. All four become a `Source`: the model's JSON configuration and, perhaps, a file of weights.
A folder or a hub repository (BioCLIP, BioCLIP 2, ...) holds `open_clip_config.json` and one of `WEIGHTS_FILES`;
pickled weights are read with `weights_only=True`. A hub name is looked up in the local Hugging Face cache and nothing
is downloaded for it.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)

OWN_CONFIGS = Path(__file__).parent
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # the first that is there is taken
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's photos, R, G, B in 0..1: open_clip's default
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Source:
    """An open_clip model that can be built without network, folder or weights: it travels inside checkpoints."""

    name: str
    model_cfg: dict[str, Any]  # open_clip's: embed_dim, vision_cfg, text_cfg, ...
    mean: tuple[float, ...] = OPENAI_MEAN  # of R, G, B in 0..1
    std: tuple[float, ...] = OPENAI_STD
    weights: str = ""  # file of weights; empty = random
    folder: str = ""  # where the files of a Hugging Face tokenizer lie

    @property
    def own(self) -> bool:
        """Return whether it is a configuration of ours: trained from scratch, any image size, small vocabulary."""
        return (OWN_CONFIGS / f"{self.name}.json").is_file()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types without the weights: what `from_dict` needs to build the same architecture."""
        statistics = {"mean": list(self.mean), "std": list(self.std)}
        return {"name": self.name, "model_cfg": self.model_cfg, "folder": self.folder} | statistics

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Source":
        """Invert `to_dict`."""
        mean, std = (tuple(float(value) for value in tree[key]) for key in ("mean", "std"))
        folder = tree.get("folder", "")
        return cls(name=tree["name"], model_cfg=dict(tree["model_cfg"]), mean=mean, std=std, folder=folder)


def own_names() -> list[str]:
    """List the names of our own configurations."""
    return sorted(path.stem for path in OWN_CONFIGS.glob("*.json"))


def resolve(name: str, pretrained: str = "") -> Source:
    """Find the model `name` and the weights `pretrained` (an open_clip tag or a safetensors file; empty = random).

    `local-dir:` and `hf-hub:` bring their own weights. Raises ValueError saying what, got and allowed.
    """
    schema, _, rest = name.partition(":")
    if schema in ("local-dir", "hf-hub"):
        if pretrained:
            raise ValueError(
                f"model.pretrained: {schema}: models bring their own weights, got {pretrained!r}; allowed: ''"
            )
        folder = Path(rest) if schema == "local-dir" else _cached_snapshot(rest)
        return read_folder(name, folder)
    if name in own_names():
        model_cfg = json.loads((OWN_CONFIGS / f"{name}.json").read_text())
        return _with_pretrained(name, model_cfg, pretrained)
    import open_clip

    model_cfg = open_clip.get_model_config(name)
    if model_cfg is None:
        known = own_names() + open_clip.list_models()
        near = get_close_matches(name, known, n=4, cutoff=0.5) or own_names()
        raise ValueError(
            f"model.image_text: unknown model {name!r}; allowed: local-dir:PATH, hf-hub:OWNER/NAME or an open_clip "
            f"name such as {', '.join(near)}"
        )
    return _with_pretrained(name, model_cfg, pretrained)


def _with_pretrained(name: str, model_cfg: dict[str, Any], pretrained: str) -> Source:
    if not pretrained:
        return Source(name=name, model_cfg=model_cfg)
    import open_clip
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    tag = get_pretrained_cfg(name, pretrained)
    if tag:
        try:
            weights = download_pretrained(tag)
        except Exception as error:  # open_clip and its hub client raise many kinds
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"model.pretrained: weights {pretrained!r} of {name} could not be downloaded ({reason}); "
                f"without a network put {CONFIG_FILE} and {WEIGHTS_FILES[0]} in a folder and use local-dir:PATH"
            ) from None
        # the activation belongs to the weights: open_clip itself only warns when the two differ
        model_cfg = model_cfg | {"quick_gelu": tag.get("quick_gelu", False)}
        mean = tuple(tag.get("mean") or OPENAI_MEAN)
        std = tuple(tag.get("std") or OPENAI_STD)
        return Source(name=name, model_cfg=model_cfg, mean=mean, std=std, weights=str(weights))
    if not (Path(pretrained).suffix == ".safetensors" and Path(pretrained).is_file()):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(
            f"model.pretrained: {pretrained!r} is neither a tag of {name} nor an existing .safetensors file; "
            f"tags: {tags}"
        )
    return Source(name=name, model_cfg=model_cfg, weights=pretrained)


def _cached_snapshot(repository: str) -> Path:
    """Return the folder of a model in the local Hugging Face cache. Raises ValueError when it is not there."""
    from huggingface_hub import constants, hf_hub_download

    try:
        folder = Path(hf_hub_download(repository, CONFIG_FILE, local_files_only=True)).parent
    except Exception:  # not cached, or not a valid OWNER/NAME
        folder = None
    if folder is None or not _weights_in(folder):
        raise ValueError(
            f"model.image_text: 'hf-hub:{repository}' needs {CONFIG_FILE} and {' or '.join(WEIGHTS_FILES)} in the "
            f"Hugging Face cache {constants.HF_HUB_CACHE}, nothing is downloaded; allowed instead: local-dir:PATH with "
            f"these two files"
        )
    return folder


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)


def read_folder(name: str, folder: Path) -> Source:
    """Read an open_clip model's folder. Raises ValueError naming what it lacks."""
    weights = _weights_in(folder)
    if weights is None or not (folder / CONFIG_FILE).is_file():
        lacking = " or ".join(WEIGHTS_FILES) if weights is None else CONFIG_FILE
        present = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise ValueError(f"model.image_text: {name} has no {lacking}, got: {present or 'an empty folder'}")
    try:
        tree = json.loads((folder / CONFIG_FILE).read_text())
        model_cfg, preprocess = tree["model_cfg"], tree.get("preprocess_cfg", {})
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(model_cfg)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"model.image_text: {folder / CONFIG_FILE} is not an open_clip configuration: {error!r}"
        ) from None
    if missing:
        raise ValueError(f"model.image_text: model_cfg in {folder / CONFIG_FILE} lacks {', '.join(sorted(missing))}")
    return Source(
        name=name,
        model_cfg=model_cfg,
        mean=tuple(preprocess.get("mean") or OPENAI_MEAN),
        std=tuple(preprocess.get("std") or OPENAI_STD),
        weights=str(weights),
        folder=str(folder),
    )


def build(source: Source, load_weights: bool = True) -> tuple[nn.Module, nn.Module]:
    """Build the image and the text tower, float32 on the CPU, with the source's weights when it has any.

    Raises ValueError for models with BatchNorm, for CoCa (its captioning decoder has no place here), for remote code in
    a tokenizer's options and for weights that do not fit.
    """
    import open_clip

    from train.models import convnet  # noqa: F401  registers the trunk that taxafuse-tiny names with timm

    cfg = json.loads(json.dumps(source.model_cfg))
    cfg.pop("custom_text", None)
    if "multimodal_cfg" in cfg:
        raise ValueError(
            f"model.image_text: {source.name} is a CoCa model; allowed: models of one image and one text tower"
        )
    if cfg["text_cfg"].get("tokenizer_kwargs", {}).get("trust_remote_code"):
        raise ValueError(f"model.image_text: {source.name} asks for trust_remote_code, which is never given")
    if "timm_model_name" in cfg["vision_cfg"]:
        cfg["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in cfg["text_cfg"]:
        cfg["text_cfg"]["hf_model_pretrained"] = False
    try:
        model = open_clip.CustomTextCLIP(**cfg)
    except (TypeError, RuntimeError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model.image_text: {source.name} cannot be built by open_clip: {reason}") from None
    refuse_batch_norm(model, source.name)
    if load_weights and source.weights:
        try:
            open_clip.load_checkpoint(model, source.weights, strict=True, weights_only=True)
        except Exception as error:  # safetensors, pickle and torch raise different kinds
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"model.image_text: weights {source.weights} do not fit {source.name}: {reason}") from None
    return model.visual, model.text


def refuse_batch_norm(model: nn.Module, name: str) -> None:
    """Raise ValueError when `model` normalises over the batch.

    Its features would depend on their batch-mates and on how rows fall on workers, and swapping the layers for others
    would silently spoil pretrained weights: so such a model is refused, not converted.
    """
    found = [path for path, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if found:
        raise ValueError(
            f"model.image_text: {name} has {len(found)} BatchNorm layers (first: {found[0]}), which make a specimen "
            f"depend on its batch; allowed: models without BatchNorm, e.g. taxafuse-tiny, ViT-B-16, ViT-L-14"
        )
