"""Where a model's weights come from: folders, files, a hub's cache, a checkpoint; what cannot be had is refused."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from engine.config import DataConfig
from tests.train.small_models import CAPTIONS, NUM_TAXA, SHRUNK_VIT, SMALL_DNA, batch_of, model_of, write_folder
from train.config import LossConfig, ModelConfig
from train.models import open_clip_source
from train.models.trimodal import build_model, caption_tokenizer


@pytest.mark.parametrize("kind", ["ours", "vit"])
def test_a_local_folder_gives_towers_with_its_weights(kind: str, tmp_path: Path) -> None:
    ours = json.loads((open_clip_source.OWN_CONFIGS / "taxafuse-tiny.json").read_text())
    cfg, side = (ours, 64) if kind == "ours" else (SHRUNK_VIT, 32)
    weights = write_folder(tmp_path, cfg)
    data = DataConfig(image_size=side)
    model = model_of(ModelConfig(image_text=f"local-dir:{tmp_path}", **SMALL_DNA), data)
    loaded = {f"visual.{name}": value for name, value in model.image_encoder.tower.state_dict().items()}
    loaded |= model.text_encoder.tower.state_dict()
    loaded["logit_scale"] = weights["logit_scale"]
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert model.embed_dim == cfg["embed_dim"]
    torch.testing.assert_close(model.image_encoder.mean.flatten(), torch.tensor([127.5, 102.0, 76.5]))
    # the same features as open_clip's own model
    reference = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    batch = batch_of(model.eval(), data)
    pixels = (batch["image"].permute(0, 3, 1, 2) - model.image_encoder.mean) / model.image_encoder.std
    with torch.no_grad():
        image = reference.encode_image(pixels, normalize=True)
        text = reference.encode_text(batch["text_tokens"], normalize=True)
        torch.testing.assert_close(model.encode_image(batch["image"]), image, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.encode_text(batch["text_tokens"]), text, atol=1e-5, rtol=0)


def test_a_checkpoint_needs_no_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", SHRUNK_VIT)
    config, data = ModelConfig(image_text=f"local-dir:{tmp_path / 'model'}", **SMALL_DNA), DataConfig(image_size=32)
    model = model_of(config, data).eval()
    architecture = json.loads(json.dumps(model.architecture))
    (tmp_path / "model").rename(tmp_path / "gone")
    again = build_model(config, data, LossConfig(), NUM_TAXA, architecture).eval()
    again.load_state_dict(model.state_dict())
    batch = batch_of(model, data)
    with torch.no_grad():
        assert torch.equal(again(batch).fused, model(batch).fused)
    assert torch.equal(caption_tokenizer(again)(CAPTIONS), caption_tokenizer(model)(CAPTIONS))


def test_pretrained_file_of_a_named_model(tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = open_clip_source.resolve("taxafuse-tiny")
    weights = open_clip.CLIP(**json.loads(json.dumps(source.model_cfg))).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "w.safetensors")
    model = model_of(ModelConfig(pretrained=str(tmp_path / "w.safetensors"), **SMALL_DNA))
    stem = model.image_encoder.tower.trunk.stem.weight
    assert torch.equal(stem, weights["visual.trunk.stem.weight"])


def refusals(tmp_path: Path) -> list[tuple[dict[str, Any], int, str]]:
    """(model configuration, image size, what the one-line error says)."""
    pickled = tmp_path / "pickled"
    write_folder(pickled, SHRUNK_VIT)
    (pickled / "open_clip_model.safetensors").rename(pickled / "open_clip_pytorch_model.bin")
    write_folder(tmp_path / "vit", SHRUNK_VIT)
    write_folder(tmp_path / "other", SHRUNK_VIT)
    (tmp_path / "other" / "open_clip_config.json").write_text(json.dumps({"model_cfg": SHRUNK_VIT | {"embed_dim": 64}}))
    write_folder(tmp_path / "broken", SHRUNK_VIT)
    (tmp_path / "broken" / "open_clip_config.json").write_text("{")
    write_folder(tmp_path / "remote", SHRUNK_VIT)
    text_cfg = SHRUNK_VIT["text_cfg"] | {"hf_tokenizer_name": "x/y", "tokenizer_kwargs": {"trust_remote_code": True}}
    (tmp_path / "remote" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": SHRUNK_VIT | {"text_cfg": text_cfg}})
    )
    return [
        ({"image_text": "ViT-B-61"}, 224, "ViT-B-16"),
        ({"image_text": "zebra"}, 224, "taxafuse-tiny"),
        ({"image_text": "RN50"}, 224, "BatchNorm"),
        ({"image_text": "ViT-B-16"}, 64, "data.image_size is 64, but ViT-B-16 takes 224"),
        ({"image_text": "taxafuse-tiny"}, 70, "multiples of 16"),
        ({"image_text": "coca_ViT-B-32"}, 224, "CoCa"),
        ({"image_text": "hf-hub:nobody/nothing"}, 64, "local-dir:"),
        ({"image_text": "hf-hub:not a name"}, 64, "local-dir:"),
        ({"image_text": f"local-dir:{tmp_path / 'nowhere'}"}, 32, "no such folder"),
        ({"image_text": f"local-dir:{pickled}"}, 32, "open_clip_pytorch_model.bin do not fit"),  # no pickle at all
        ({"image_text": f"local-dir:{tmp_path / 'other'}"}, 32, "do not fit"),
        ({"image_text": f"local-dir:{tmp_path / 'broken'}"}, 32, "not an open_clip configuration"),
        ({"image_text": f"local-dir:{tmp_path / 'remote'}"}, 32, "trust_remote_code"),
        ({"image_text": f"local-dir:{tmp_path / 'vit'}", "pretrained": "openai"}, 32, "bring their own weights"),
        ({"image_text": "ViT-B-16", "pretrained": "zebra"}, 224, "tags: "),
        ({"pretrained": str(pickled / "open_clip_pytorch_model.bin")}, 64, "safetensors"),
        ({"dna": "kmer_transformer", "dna_width": 64, "dna_heads": 3}, 64, "dna_heads"),
    ]


def test_bad_models_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for model, side, message in refusals(tmp_path):
        with pytest.raises(ValueError) as caught:
            build_model(ModelConfig(**model), DataConfig(image_size=side), LossConfig(), NUM_TAXA)
        assert message in str(caught.value) and "\n" not in str(caught.value), (model, str(caught.value))


def test_a_prepared_hub_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--someone--small"
    write_folder(repository / "snapshots" / ("0" * 40), SHRUNK_VIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = model_of(ModelConfig(image_text="hf-hub:someone/small", **SMALL_DNA), DataConfig(image_size=32))
    assert model.embed_dim == 32
