"""The model: towers found by name, features that do not depend on batch-mates, every parameter in every step."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from engine.barcodes import make_tokenizer
from engine.config import DataConfig
from train.config import LossConfig, ModelConfig
from train.models import open_clip_source
from train.models.fusion import GatedFusion
from train.models.trimodal import Features, Trimodal, build_model, caption_tokenizer

DATA = DataConfig()
TRANSFORMER_DATA = DataConfig(kmer=5, kmer_stride=5)
SMALL_DNA = {"dna_width": 64, "dna_depth": 2}
NUM_TAXA = (2, 3, 4, 5)
FEATURES = ("image", "image_view2", "dna", "text", "fused")
CAPTIONS = ["Diptera", "Diptera Chironomidae Chironomus Chironomus plumosus", "Lepidoptera Noctuidae", "Coleoptera"]
SHRUNK_VIT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def model_of(model: ModelConfig | None = None, data: DataConfig = DATA, loss: LossConfig | None = None) -> Trimodal:
    torch.manual_seed(0)
    return build_model(model or ModelConfig(**SMALL_DNA), data, loss or LossConfig(), NUM_TAXA)


def random_barcode(generator: torch.Generator, length: int) -> str:
    return "".join("ACGT"[i] for i in torch.randint(0, 4, (length,), generator=generator).tolist())


def batch_of(model: Trimodal, data: DataConfig = DATA, size: int = 12, two_views: bool = True) -> dict[str, object]:
    """Specimens with images, barcodes of many lengths and captions; some lack one or all of them."""
    generator = torch.Generator().manual_seed(1)
    side = data.image_size
    barcodes = [random_barcode(generator, 200 + 40 * row) for row in range(size)]
    tokens = torch.from_numpy(make_tokenizer(data).encode(barcodes).astype("int64"))
    row = torch.arange(size)
    batch: dict[str, object] = {
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


def write_folder(folder: Path, model_cfg: dict[str, object]) -> dict[str, Tensor]:
    """A `local-dir:` model with small random weights, as open_clip writes it; returns the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(3)
    weights = open_clip.CLIP(**json.loads(json.dumps(model_cfg))).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    return weights


MODELS = {
    "tiny with k-mer bag": (ModelConfig(**SMALL_DNA), DATA),
    "tiny with k-mer transformer": (ModelConfig(dna="kmer_transformer", **SMALL_DNA), TRANSFORMER_DATA),
}


@pytest.mark.parametrize("name", MODELS)
def test_features_have_unit_length_or_are_zero(name: str) -> None:
    config, data = MODELS[name]
    model = model_of(config, data).train()
    batch = batch_of(model, data)
    features = model(batch)
    valid = batch["valid"]
    has_image, has_dna = valid & batch["has_image"], valid & batch["has_dna"]
    expected = {
        "image": has_image, "image_view2": has_image, "dna": has_dna,
        "text": valid & (batch["text_index"] >= 0), "fused": has_image | has_dna,
    }  # fmt: skip
    for modality in FEATURES:
        value = getattr(features, modality)
        assert value.shape == (12, 256) and value.dtype == torch.float32
        torch.testing.assert_close(value.norm(dim=1), expected[modality].float())
    assert features.logit_scale.item() == pytest.approx(1 / 0.07)
    only_image, only_dna = has_image & ~has_dna, has_dna & ~has_image
    assert torch.equal(features.fused[only_image], features.image[only_image])
    assert torch.equal(features.fused[only_dna], features.dna[only_dna])


def test_the_fusion_gets_an_empty_input_for_what_is_withheld() -> None:
    """Of specimens with both, and of nothing else: all other features stay, and only the gate learns from it."""
    model = model_of().eval()
    batch = batch_of(model)
    row = torch.arange(12)
    both = batch["valid"] & batch["has_image"] & batch["has_dna"]
    batch["withheld"] = (row % 3).to(torch.uint8)
    plain = model({key: value for key, value in batch.items() if key != "withheld"})
    without = model(batch)
    for name in ("image", "image_view2", "dna", "text"):
        assert torch.equal(getattr(plain, name), getattr(without, name))
    black = model.encode_image(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    blank = model.encode_dna(torch.zeros_like(batch["dna_tokens"][:1]), torch.zeros_like(batch["dna_mask"][:1]))
    for kind, image, dna in ((0, plain.image, plain.dna), (1, black, plain.dna), (2, plain.image, blank)):
        rows = both & (row % 3 == kind)
        assert rows.any()
        expected = model.fuse(image.expand(12, -1), dna.expand(12, -1))[rows]
        torch.testing.assert_close(without.fused[rows], expected)
        assert kind == 0 or not torch.allclose(without.fused[rows], plain.fused[rows], atol=1e-3)
    assert torch.equal(without.fused[~both], plain.fused[~both])
    without.fused[both & (row % 3 == 1)].sum().backward()
    assert model.fusion.out.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.image_encoder.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_specimen_alone_equals_itself_in_a_batch(name: str) -> None:
    config, data = MODELS[name]
    model = model_of(config, data).eval()
    batch = batch_of(model, data)
    with torch.no_grad():
        together = model(batch)
        for row in range(12):
            alone = {k: v if k == "text_tokens" else v[row : row + 1] for k, v in batch.items()}
            if (caption := int(batch["text_index"][row])) >= 0:
                alone["text_tokens"] = caption_tokenizer(model)([CAPTIONS[caption]])
                alone["text_index"] = torch.zeros(1, dtype=torch.int64)
            features = model(alone)
            for modality in FEATURES:
                difference = (getattr(features, modality) - getattr(together, modality)[row]).abs().max()
                assert difference < 1e-5, (modality, row)


@pytest.mark.parametrize("name", MODELS)
def test_inference_methods_equal_forward_and_padding_changes_nothing(name: str) -> None:
    config, data = MODELS[name]
    model = model_of(config, data).eval()
    batch = batch_of(model, data, two_views=False)
    with torch.no_grad():
        features = model(batch)
        image, text = model.encode_image(batch["image"]), model.encode_text(batch["text_tokens"])
        dna = model.encode_dna(batch["dna_tokens"], batch["dna_mask"])
        first = batch["dna_mask"][0].sum()
        shorter = model.encode_dna(batch["dna_tokens"][:1, :first], batch["dna_mask"][:1, :first])
    assert features.image_view2 is None
    torch.testing.assert_close(shorter, dna[:1], atol=1e-5, rtol=0)
    both = features.image.ne(0).any(1) & features.dna.ne(0).any(1)
    torch.testing.assert_close(image[both], features.image[both], atol=1e-5, rtol=0)
    torch.testing.assert_close(dna[both], features.dna[both], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.fuse(image, dna)[both], features.fused[both], atol=1e-5, rtol=0)
    named = batch["valid"] & (batch["text_index"] >= 0)
    torch.testing.assert_close(text[batch["text_index"][named]], features.text[named], atol=1e-5, rtol=0)


def total(features: Features) -> Tensor:
    value = sum(
        (getattr(features, name) * torch.linspace(-1, 1, 256)).sum()
        for name in FEATURES
        if getattr(features, name) is not None
    )
    value = value * features.logit_scale
    return value + sum(logits.sum() for logits in features.rank_logits) if features.rank_logits else value


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_takes_part_whatever_is_missing(name: str) -> None:
    config, data = MODELS[name]
    model = model_of(config, data, LossConfig(learn_temperature=True, rank_heads_weight=1.0)).train()
    batch = batch_of(model, data)
    none = torch.zeros(12, dtype=torch.bool)
    no_text = {"text_tokens": batch["text_tokens"][:0], "text_index": torch.full((12,), -1)}
    no_image = {"has_image": none, "image": batch["image"][:, :0, :0], "image_view2": batch["image"][:, :0, :0]}
    lacking = [{}, no_image, {"has_image": none}, {"has_dna": none}, no_text, {"has_image": none, "has_dna": none}]
    for changes in [*lacking, {"valid": none}]:
        model.zero_grad(set_to_none=True)
        features = model(batch | changes)
        total(features).backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, (changes.keys(), without)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        if "has_image" in changes:
            assert not features.image.any() and not features.image_view2.any()
            assert not any(p.grad.any() for p in model.image_encoder.parameters())
    del batch["text_tokens"], batch["text_index"]
    assert not model(batch).text.any()


def test_rows_of_missing_modalities_never_enter_an_encoder() -> None:
    model = model_of().eval()
    batch = batch_of(model)
    seen: list[int] = []
    model.image_encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    model.dna_encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    model(batch)
    valid = batch["valid"]
    assert seen == [2 * int((valid & batch["has_image"]).sum()), int((valid & batch["has_dna"]).sum())]


def test_gate_is_the_formula_and_can_leave_dna_untouched() -> None:
    torch.manual_seed(0)
    fusion = GatedFusion(8, dropout=0.0)
    image, dna = F.normalize(torch.randn(5, 8), dim=1), F.normalize(torch.randn(5, 8), dim=1)
    hidden = torch.relu(torch.cat([image, dna], 1) @ fusion.hidden.weight.T + fusion.hidden.bias)
    gate = 1 / (1 + torch.exp(-(hidden @ fusion.out.weight.T + fusion.out.bias)))
    fused = gate * image + (1 - gate) * dna
    torch.testing.assert_close(fusion(image, dna), fused / fused.norm(dim=1, keepdim=True))
    assert fusion.hidden.weight.shape == (16, 16) and fusion.out.weight.shape == (8, 16)
    for detach in (False, True):
        model = model_of(loss=LossConfig(detach_dna_in_fusion=detach)).train()
        features = model(batch_of(model))
        (features.fused * torch.linspace(-1, 1, 256)).sum().backward()
        assert (model.dna_encoder.project.weight.grad is None) == detach


def test_temperature_is_fixed_or_learned_within_its_range() -> None:
    assert "log_scale" not in dict(model_of().named_parameters())
    model = model_of(loss=LossConfig(learn_temperature=True))
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    scale = model(batch_of(model)).logit_scale
    assert scale.item() == pytest.approx(100.0)
    scale.backward()
    assert model.log_scale.grad.item() == pytest.approx(100.0)  # not stuck at the end of the range


def test_frozen_text_has_no_gradient_and_stays_in_evaluation_mode() -> None:
    model = model_of(ModelConfig(freeze_text=True, **SMALL_DNA)).train()
    assert not model.text_encoder.training and model.image_encoder.training
    features = model(batch_of(model))
    assert not features.text.requires_grad and features.dna.requires_grad
    assert not any(p.requires_grad for p in model.text_encoder.parameters())


def test_captions_become_hashed_words() -> None:
    tokenizer = caption_tokenizer(model_of())
    tokens = tokenizer(CAPTIONS)
    assert tokens.dtype == torch.int64 and tokens.shape == (4, 32)
    assert (tokens == 8191).sum(1).tolist() == [1, 1, 1, 1] and tokens.argmax(1).tolist() == [2, 10, 4, 2]
    assert torch.equal(tokens[0, :2], tokens[1, :2])  # the same word is the same tokens
    assert len({tuple(row) for row in tokenizer([f"Diptera Xidae Xus x{i}" for i in range(2000)]).tolist()}) == 2000
    assert tokenizer([]).shape == (0, 32)
    assert tokenizer([" ".join(["Chironomus"] * 60)])[0, -1] == 8191
    assert tokenizer(["Diptera"])[0].tolist() == [8160, 6108, 8191] + [0] * 29  # checkpoints depend on these numbers


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


def refusals(tmp_path: Path) -> list[tuple[dict[str, object], int, str]]:
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


def test_features_in_bfloat16_stay_float32_of_unit_length() -> None:
    model = model_of().train()
    with torch.autocast("cpu", torch.bfloat16):
        features = model(batch_of(model))
    assert all(getattr(features, name).dtype == torch.float32 for name in FEATURES)
    present = features.image.ne(0).any(1)
    torch.testing.assert_close(features.image.norm(dim=1), present.float(), atol=1e-5, rtol=0)
