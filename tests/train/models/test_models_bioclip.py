"""Folders and hub caches as BioCLIP (ViT-B/16) and BioCLIP 2 (ViT-L/14) are published, with small random weights."""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.config import DataConfig
from train.config import LossConfig, ModelConfig
from train.models import open_clip_source
from train.models.trimodal import Trimodal, build_model, caption_tokenizer

NUM_TAXA = (1, 1, 1, 1)
DNA: dict[str, Any] = {"dna_width": 16, "dna_depth": 1}
BIN, SAFETENSORS = "open_clip_pytorch_model.bin", "open_clip_model.safetensors"
REPOSITORIES = {"imageomics/bioclip": ("ViT-B-16", (BIN,)), "imageomics/bioclip-2": ("ViT-L-14", (SAFETENSORS, BIN))}


def small(architecture: str) -> dict[str, Any]:
    """open_clip's own configuration of the architecture with fewer, narrower layers and images of 4 x 4 patches."""
    cfg = open_clip.get_model_config(architecture)
    cfg["embed_dim"] = 32
    cfg["vision_cfg"] |= {"layers": 2, "width": 128, "image_size": 4 * cfg["vision_cfg"]["patch_size"]}
    cfg["text_cfg"] |= {"layers": 1, "width": 32, "heads": 2}
    return cfg


def write_repository(folder: Path, repository: str) -> dict[str, Tensor]:
    """The files that the repository has and the model's weights in all its formats; returns the weights."""
    architecture, formats = REPOSITORIES[repository]
    cfg = small(architecture)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(4)
    weights = {k: v.contiguous() for k, v in open_clip.CLIP(**json.loads(json.dumps(cfg))).state_dict().items()}
    statistics = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    preprocess = statistics | {"size": cfg["vision_cfg"]["image_size"], "mode": "RGB", "interpolation": "bicubic"}
    tree = {"model_cfg": cfg, "preprocess_cfg": preprocess}
    (folder / open_clip_source.CONFIG_FILE).write_text(json.dumps(tree))
    (folder / "README.md").write_text("card")
    if SAFETENSORS in formats:
        save_file(weights, folder / SAFETENSORS)
    if BIN in formats:
        torch.save(weights, folder / BIN)
    return weights


def model_of(name: str, side: int) -> Trimodal:
    return build_model(ModelConfig(image_text=name, **DNA), DataConfig(image_size=side), LossConfig(), NUM_TAXA).eval()


def check(model: Trimodal, weights: dict[str, Tensor], side: int) -> None:
    """Same weights and same features as open_clip's own model of them, captions in CLIP's own tokens."""
    cfg = json.loads(json.dumps(model.source.model_cfg))
    reference = open_clip.CLIP(**cfg).eval()
    reference.load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, side, side, 3), dtype=torch.uint8, generator=generator)
    pixels = image.permute(0, 3, 1, 2) / 255.0
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    captions = ["Insecta Diptera Chironomidae", "Lepidoptera"]
    tokens = open_clip.SimpleTokenizer(context_length=77)(captions)
    assert torch.equal(caption_tokenizer(model)(captions), tokens)
    with torch.no_grad():
        expected = reference.encode_image((pixels - mean) / std, normalize=True)
        torch.testing.assert_close(model.encode_image(image), expected, atol=1e-5, rtol=0)
        expected = reference.encode_text(tokens, normalize=True)
        torch.testing.assert_close(model.encode_text(tokens), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_the_layout_is_read_from_a_folder_and_from_the_hub_cache(
    repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / f"models--{repository.replace('/', '--')}"
    snapshot = cache / "snapshots" / ("1" * 40)
    weights = write_repository(snapshot, repository)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("1" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    side = small(REPOSITORIES[repository][0])["vision_cfg"]["image_size"]
    for name in (f"hf-hub:{repository}", f"local-dir:{snapshot}"):
        check(model_of(name, side), weights, side)


def test_safetensors_come_before_pickled_weights(tmp_path: Path) -> None:
    weights = write_repository(tmp_path, "imageomics/bioclip-2")
    torch.save({name: torch.zeros_like(value) for name, value in weights.items()}, tmp_path / BIN)
    check(model_of(f"local-dir:{tmp_path}", 56), weights, 56)


def test_full_sizes_are_the_published_ones() -> None:
    for architecture, width, parameters in (("ViT-B-16", 512, 149_620_737), ("ViT-L-14", 768, 427_616_513)):
        cfg = open_clip_source.resolve(architecture).model_cfg
        with torch.device("meta"):
            model = open_clip.CLIP(**json.loads(json.dumps(cfg)))
        assert cfg["embed_dim"] == width and sum(p.numel() for p in model.parameters()) == parameters


class Harmful:
    """What a pickle can do on being read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (subprocess.check_call, (["touch", "harm"],))


def test_pickled_code_is_refused_and_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (Harmful(), {"state_dict": argparse.Namespace()}):
        write_repository(tmp_path, "imageomics/bioclip")
        torch.save(content, tmp_path / BIN)
        with pytest.raises(ValueError) as caught:
            model_of(f"local-dir:{tmp_path}", 64)
        assert BIN in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_a_folder_without_weights_says_which_files_are_allowed(tmp_path: Path) -> None:
    write_repository(tmp_path, "imageomics/bioclip")
    (tmp_path / BIN).unlink()
    with pytest.raises(ValueError, match=f"has no {SAFETENSORS} or {BIN}, got: README.md, open_clip_config.json"):
        model_of(f"local-dir:{tmp_path}", 64)
