"""The model: features that do not depend on batch-mates, every parameter in every step, fusion and temperature."""

import pytest
import torch
import torch.nn.functional as F

from engine.config import DataConfig
from tests.train.small_models import CAPTIONS, DATA, FEATURES, SMALL_DNA, batch_of, model_of, total
from train.config import LossConfig, ModelConfig
from train.models.fusion import GatedFusion
from train.models.trimodal import caption_tokenizer

TRANSFORMER_DATA = DataConfig(kmer=5, kmer_stride=5)
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
        "image": has_image,
        "image_view2": has_image,
        "dna": has_dna,
        "text": valid & (batch["text_index"] >= 0),
        "fused": has_image | has_dna,
    }
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


def test_features_in_bfloat16_stay_float32_of_unit_length() -> None:
    model = model_of().train()
    with torch.autocast("cpu", torch.bfloat16):
        features = model(batch_of(model))
    assert all(getattr(features, name).dtype == torch.float32 for name in FEATURES)
    present = features.image.ne(0).any(1)
    torch.testing.assert_close(features.image.norm(dim=1), present.float(), atol=1e-5, rtol=0)
