"""Small models of all three towers and batches for them, for tests of the models."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.config import DataConfig
from engine.signals.barcodes import make_tokenizer
from train.config import LossConfig, ModelConfig
from train.models.trimodal import Features, Trimodal, build_model, caption_tokenizer

DATA = DataConfig()
SMALL_DNA: dict[str, Any] = {"dna_width": 64, "dna_depth": 2}
NUM_TAXA = (2, 3, 4, 5)
FEATURES = ("image", "image_view2", "dna", "text", "fused")
CAPTIONS = ["Diptera", "Diptera Chironomidae Chironomus Chironomus plumosus", "Lepidoptera Noctuidae", "Coleoptera"]
SHRUNK_VIT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def model_of(model: ModelConfig | None = None, data: DataConfig = DATA, loss: LossConfig | None = None) -> Trimodal:
    """A model with random weights, the same for the same arguments."""
    torch.manual_seed(0)
    return build_model(model or ModelConfig(**SMALL_DNA), data, loss or LossConfig(), NUM_TAXA)


def random_barcode(generator: torch.Generator, length: int) -> str:
    """Nucleotides A, C, G, T, each as likely as the others."""
    return "".join("ACGT"[i] for i in torch.randint(0, 4, (length,), generator=generator).tolist())


def batch_of(model: Trimodal, data: DataConfig = DATA, size: int = 12, two_views: bool = True) -> dict[str, Any]:
    """Specimens with images, barcodes of many lengths and captions; some lack one or all of them."""
    generator = torch.Generator().manual_seed(1)
    side = data.image_size
    barcodes = [random_barcode(generator, 200 + 40 * row) for row in range(size)]
    tokens = torch.from_numpy(make_tokenizer(data).encode(barcodes).astype("int64"))
    row = torch.arange(size)
    batch: dict[str, Any] = {
        "valid": row != size - 1,
        "image": torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, generator=generator),
        "has_image": row % 4 != 1,
        "dna_tokens": tokens,
        "dna_mask": tokens > 0,
        "has_dna": row % 4 != 2,
        "text_tokens": caption_tokenizer(model)(CAPTIONS),
        "text_index": row % 5 - 1,
    }
    if two_views:
        batch["image_view2"] = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, generator=generator)
    return batch


def write_folder(folder: Path, model_cfg: dict[str, Any]) -> dict[str, Tensor]:
    """A `local-dir:` model with small random weights, as open_clip writes it; returns the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(3)
    weights = open_clip.CLIP(**json.loads(json.dumps(model_cfg))).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    return weights


def total(features: Features) -> Tensor:
    """A scalar that depends on every feature, the temperature and the heads, to look at gradients."""
    value = sum(
        (getattr(features, name) * torch.linspace(-1, 1, 256)).sum()
        for name in FEATURES
        if getattr(features, name) is not None
    )
    value = value * features.logit_scale
    return value + sum(logits.sum() for logits in features.rank_logits) if features.rank_logits else value
