"""LoRA, freezing and gradient checkpointing: what trains, nothing changes at the start, merging is exact."""

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.config import DataConfig
from tests.train.ranks import run_ranks
from tests.train.small_models import FEATURES, NUM_TAXA, SHRUNK_VIT, batch_of, total, write_folder
from train.config import LossConfig, ModelConfig
from train.models import lora
from train.models.bert_folder import BertShape
from train.models.dna_encoders import build_dna_encoder
from train.models.dnabert2 import Dnabert2Encoder
from train.models.towers import find_blocks
from train.models.trimodal import Trimodal, build_model

DATA = DataConfig(image_size=32, kmer=5, kmer_stride=5)
SMALL_DNA: dict[str, Any] = {"dna": "kmer_transformer", "dna_width": 64, "dna_depth": 2, "dropout": 0.0}
LORA: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8.0}
TOWERS = ("image", "text", "dna")


def model_of(folder: Path, **options: Any) -> Trimodal:
    """The model on a small open_clip ViT with weights of a file, as `write_folder` leaves it."""
    if not (folder / "open_clip_config.json").exists():
        write_folder(folder, SHRUNK_VIT)
    torch.manual_seed(0)
    config = ModelConfig(**({"image_text": f"local-dir:{folder}"} | SMALL_DNA | options))
    return build_model(config, DATA, LossConfig(), NUM_TAXA)


def tower_of(model: Trimodal, name: str) -> nn.Module:
    return {"image": model.image_encoder.tower, "text": model.text_encoder.tower, "dna": model.dna_encoder}[name]


def randomise(model: nn.Module) -> None:
    """Updates as large as after training."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, lora.LowRank):
                module.up.copy_(0.1 * torch.randn(module.up.shape, generator=generator))


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def matrices(module: nn.Module) -> int:
    return sum(isinstance(part, lora.LowRank) for part in module.modules())


@pytest.mark.parametrize(
    ("targets", "per_block"),
    [(("q", "k", "v", "out", "mlp"), 6), (("q", "v"), 2), (("out",), 1), (("mlp",), 2), (("k", "out"), 2)],
)
def test_adapted_matrices_are_counted_exactly(targets: tuple[str, ...], per_block: int, tmp_path: Path) -> None:
    model = model_of(tmp_path, **LORA, lora_targets=targets)
    blocks = {"image": 2, "text": 1, "dna": 2}
    for name in TOWERS:
        assert matrices(tower_of(model, name)) == blocks[name] * per_block, name
    block = find_blocks(tower_of(model, "image"))[0]
    shapes = {name: tuple(p.shape) for name, p in block.named_parameters() if ".lora." in name}
    if "q" in targets:
        assert shapes["attn.lora.q.down"] == (4, 64) and shapes["attn.lora.q.up"] == (64, 4)
    if "mlp" in targets:
        assert shapes["mlp.c_fc.lora.mlp.up"] == (256, 4) and shapes["mlp.c_proj.lora.mlp.down"] == (4, 256)


def test_only_updates_and_projections_of_adapted_towers_train(tmp_path: Path) -> None:
    model = model_of(tmp_path, **LORA)
    rest = {name for name in trained(model) if ".lora." not in name and not name.startswith("fusion.")}
    assert rest == {
        "image_encoder.tower.proj",
        "text_encoder.tower.text_projection",
        "dna_encoder.project.weight",
        "dna_encoder.project.bias",
    }
    assert {n for n, _ in model.named_parameters() if ".lora." in n} <= trained(model)
    some = model_of(tmp_path, **LORA, lora_towers=("image",), freeze_text=True)
    assert matrices(some) == matrices(some.image_encoder) == 12
    names = trained(some)
    assert all(n in names for n, _ in some.dna_encoder.named_parameters(prefix="dna_encoder"))
    assert not any(name.startswith("text_encoder.") for name in names)


@pytest.mark.parametrize("training", [False, True])
def test_at_the_start_the_features_are_those_of_the_base(training: bool, tmp_path: Path) -> None:
    base, adapted = model_of(tmp_path).train(training), model_of(tmp_path, **LORA).train(training)
    batch = batch_of(base, DATA)
    with torch.set_grad_enabled(training):
        expected, features = base(batch), adapted(batch)
    for name in ("image", "image_view2", "text"):  # the barcode tower's weights are random
        torch.testing.assert_close(getattr(features, name), getattr(expected, name), atol=1e-6, rtol=0)
    old = {name: value for name, value in adapted.state_dict().items() if ".lora." not in name}
    assert old.keys() == base.state_dict().keys()  # names stay
    randomise(adapted)
    with torch.no_grad():
        changed = adapted(batch)
    assert min((getattr(changed, name) - getattr(features, name)).abs().max() for name in FEATURES) > 1e-3


def add_in(model: nn.Module) -> int:
    """Add every update, as LoRA defines it, into its base matrix and set it to zero; return how many there were."""
    count = 0
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, lora.LoraAttention | lora.LoraLinear):
                weight = module.in_proj_weight if isinstance(module, lora.LoraAttention) else module.weight
                for rows, part in zip(weight.chunk(len(module.parts)), module.parts, strict=True):
                    if part:
                        update: Any = module.lora[part]
                        rows += update.up @ update.down * update.scale
                        update.up.zero_()
                        count += 1
    return count


def test_merged_features_equal_unmerged_and_open_clip_loads_them(tmp_path: Path) -> None:
    model = model_of(tmp_path, **LORA).eval()
    randomise(model)
    batch = batch_of(model, DATA)
    with torch.no_grad():
        before = model(batch)
        assert add_in(model) == 2 * 6 + 1 * 6 + 2 * 6
        after = model(batch)
    for name in FEATURES:
        torch.testing.assert_close(getattr(after, name), getattr(before, name), atol=1e-5, rtol=0)
    reference = open_clip.CLIP(**json.loads(json.dumps(SHRUNK_VIT))).eval()
    weights = {f"visual.{name}": value for name, value in model.image_encoder.tower.state_dict().items()}
    weights |= model.text_encoder.tower.state_dict()
    weights = {name: value for name, value in weights.items() if ".lora." not in name} | {
        "logit_scale": reference.logit_scale.data
    }
    reference.load_state_dict(weights)
    pixels = (batch["image"].permute(0, 3, 1, 2) - model.image_encoder.mean) / model.image_encoder.std
    with torch.no_grad():
        images = model.encode_image(batch["image"])
        torch.testing.assert_close(reference.encode_image(pixels, normalize=True), images, atol=1e-5, rtol=0)
        text = reference.encode_text(batch["text_tokens"], normalize=True)
        torch.testing.assert_close(text, model.encode_text(batch["text_tokens"]), atol=1e-5, rtol=0)


def other_towers() -> dict[str, nn.Module]:
    """Towers whose blocks are not open_clip's: timm's fused layers, two kinds of BERT, sequence-first attention."""
    timm_cfg = {"timm_model_name": "vit_tiny_patch16_224", "timm_proj": "linear", "image_size": 224}
    bert = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    shape = BertShape(vocab_size=30, **bert)
    barcode = ModelConfig(dna="barcodebert", dna_width=32, dna_depth=2, dna_heads=4, dropout=0.0)
    text = open_clip.CLIP(**json.loads(json.dumps(SHRUNK_VIT)))
    model = open_clip.CustomTextCLIP(8, timm_cfg, json.loads(json.dumps(SHRUNK_VIT["text_cfg"])))
    return {
        "timm": model.visual,
        "dnabert2": Dnabert2Encoder(shape, 0.0, 8),
        "barcodebert": build_dna_encoder(barcode, DataConfig(kmer=3, kmer_stride=3), 8),
        "text": text,
    }


def run(name: str, tower: Any) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if name == "timm":
        return tower(torch.randn(1, 3, 224, 224, generator=generator))
    if name == "text":
        return tower.encode_text(torch.tensor([[5, 6, 7, 49407] + [0] * 73]))
    tokens = torch.randint(1, 30, (3, 12), generator=generator)
    tokens[1, 5:] = 0
    return tower(tokens, tokens > 0)


@pytest.mark.parametrize("name", ["timm", "dnabert2", "barcodebert", "text"])
def test_every_kind_of_tower_starts_as_its_base_and_adds_the_updates(name: str) -> None:
    torch.manual_seed(0)
    base = other_towers()[name].eval()
    adapted = copy.deepcopy(base)
    blocks = len(find_blocks(base))
    assert lora.adapt(adapted, ModelConfig(**LORA), "image") == blocks * 6 > 0
    with torch.no_grad():
        expected = run(name, base)
        torch.testing.assert_close(run(name, adapted), expected, atol=1e-5, rtol=0)
        randomise(adapted)
        unmerged = run(name, adapted)
        assert (unmerged - expected).abs().max() > 1e-3
        assert add_in(adapted) == blocks * 6
        torch.testing.assert_close(run(name, adapted), unmerged, atol=1e-5, rtol=0)


def test_attention_masks_mean_what_they_mean_to_multihead_attention() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 16)
    hide = torch.ones(5, 5).triu(1).bool()
    masks = [None, hide, torch.zeros(5, 5).masked_fill(hide, -torch.inf), torch.randn(6, 5, 5)]
    for batch_first in (True, False):
        base = nn.MultiheadAttention(16, 2, batch_first=batch_first).eval()
        own = lora.LoraAttention(copy.deepcopy(base), ModelConfig(**LORA))
        given = x if batch_first else x.transpose(0, 1)
        for mask in masks:
            expected = base(given, given, given, need_weights=False, attn_mask=mask)[0]
            actual = own(given, given, given, need_weights=False, attn_mask=mask)[0]
            torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def test_dropout_falls_on_updates_alone_and_only_in_training(tmp_path: Path) -> None:
    model = model_of(tmp_path, **LORA, lora_dropout=0.5)
    randomise(model)
    image = batch_of(model, DATA)["image"][:2]
    with torch.no_grad():
        assert torch.equal(model.eval().encode_image(image), model.encode_image(image))
        assert not torch.equal(model.train().encode_image(image), model.encode_image(image))
        for module in model.modules():
            if isinstance(module, lora.LowRank):
                module.up.zero_()
        torch.testing.assert_close(model.encode_image(image), model.eval().encode_image(image), atol=1e-6, rtol=0)


def ddp_step(folder: str) -> dict[str, Any]:
    """Two steps of DDP with LoRA and gradient checkpointing: what moved, and a replica's checksum."""
    model = model_of(Path(folder), **LORA, gradient_checkpointing=True).train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    forward = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = batch_of(model, DATA)
    rank = torch.distributed.get_rank()
    batch["valid"] = torch.arange(12) % 2 == rank
    missing = []
    for _ in range(2):  # `down` has no gradient while `up` is zero
        optimizer.zero_grad(set_to_none=True)
        total_of(forward(batch)).backward()
        missing += [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    checksum = torch.stack([p.detach().double().sum() for p in model.parameters()])
    return {"moved": sorted(moved), "trained": sorted(trained(model)), "missing": missing, "checksum": checksum}


def total_of(features: Any) -> Tensor:
    """A loss that every feature takes part in, whatever D is."""
    return sum((getattr(features, n) * torch.linspace(-1, 1, getattr(features, n).shape[1])).sum() for n in FEATURES)


@pytest.mark.middle
def test_two_ranks_with_checkpointing_train_every_update_alike(tmp_path: Path) -> None:
    model_of(tmp_path / "model")
    (tmp_path / "ranks").mkdir()
    first, second = run_ranks(ddp_step, 2, tmp_path / "ranks", str(tmp_path / "model"))
    for result in (first, second):
        assert not result["missing"]
        assert result["moved"] == result["trained"]
        assert sum(".lora." in name for name in result["moved"]) == 2 * 30
    assert torch.equal(first["checksum"], second["checksum"])


@pytest.mark.parametrize("options", [{}, LORA, {"freeze_image": True, "unfreeze_image_blocks": 1}])
def test_gradient_checkpointing_changes_no_gradient(options: dict[str, Any], tmp_path: Path) -> None:
    gradients = []
    for forget in (False, True):
        model = model_of(tmp_path, **options, gradient_checkpointing=forget).train()
        randomise(model)
        calls: list[int] = []
        find_blocks(model.image_encoder.tower)[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        total_of(model(batch_of(model, DATA))).backward()
        assert len(calls) == 1 + forget  # computed again
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_checkpointing_reaches_our_own_towers() -> None:
    for dna, data in (("kmer_bag", DataConfig()), ("kmer_transformer", DataConfig(kmer=5, kmer_stride=5))):
        options = {"dna": dna, "dna_width": 64, "dna_depth": 2, "dropout": 0.1, "gradient_checkpointing": True}
        torch.manual_seed(0)
        model = build_model(ModelConfig(**options), data, LossConfig(), NUM_TAXA).train()
        seen: list[str] = []
        for name in TOWERS:
            block = find_blocks(tower_of(model, name))[0]
            block.register_forward_pre_hook(lambda *_, name=name, seen=seen: seen.append(name))
        total(model(batch_of(model, data))).backward()
        assert sorted(seen) == ["dna", "dna", "image", "image", "text", "text"]


def test_frozen_towers_and_their_last_blocks(tmp_path: Path) -> None:
    frozen = model_of(tmp_path, freeze_image=True, freeze_text=True).train()
    assert not any(name.startswith(("image_encoder", "text_encoder")) for name in trained(frozen))
    assert not frozen.image_encoder.tower.training and not frozen.text_encoder.tower.training
    features = frozen(batch_of(frozen, DATA))
    assert not features.image.requires_grad and not features.text.requires_grad and features.dna.requires_grad
    partly = model_of(tmp_path, freeze_image=True, unfreeze_image_blocks=1, freeze_text=True).train()
    image = {name for name in trained(partly) if name.startswith("image_encoder.tower.")}
    block = {
        f"image_encoder.tower.transformer.resblocks.1.{n}"
        for n, _ in find_blocks(partly.image_encoder.tower)[1].named_parameters()
    }
    assert image == block | {f"image_encoder.tower.{n}" for n in ("ln_post.weight", "ln_post.bias", "proj")}
    total_of(partly(batch_of(partly, DATA))).backward()
    assert all(p.grad is not None for p in partly.parameters() if p.requires_grad)
    ours = ModelConfig(freeze_image=True, unfreeze_image_blocks=1, freeze_text=True, unfreeze_text_blocks=1)
    tiny = build_model(ours, DataConfig(), LossConfig(), NUM_TAXA)
    names = {name for name in trained(tiny) if name.startswith(("image_encoder", "text_encoder"))}
    assert {"image_encoder.tower.trunk.norm.weight", "image_encoder.tower.head.proj.weight"} <= names
    assert {"text_encoder.tower.ln_final.weight", "text_encoder.tower.text_projection"} <= names
    assert not any(".blocks.0." in name or ".blocks.1." in name or "resblocks.0" in name for name in names)
    assert any(".blocks.2." in name for name in names) and any(".resblocks.1." in name for name in names)


def test_a_frozen_text_tower_encodes_each_caption_once_and_forgets_with_its_weights(tmp_path: Path) -> None:
    model = model_of(tmp_path, freeze_text=True).train()
    seen: list[Tensor] = []
    model.text_encoder.tower.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = batch_of(model, DATA)
    first = model(batch).text
    assert [len(x) for x in seen] == [1, 1, 1, 1]
    order = torch.tensor([2, 0, 3])
    batch |= {"text_tokens": batch["text_tokens"][order], "text_index": torch.arange(12) % 3}
    again = model(batch).text
    assert len(seen) == 4
    caption = batch_of(model, DATA)["text_index"]
    row = int((caption == 2).nonzero()[0])
    assert torch.equal(again[0], first[row])  # the same bits, whatever batch it came in
    with torch.no_grad():
        torch.testing.assert_close(again[:3], model.encode_text(batch["text_tokens"]), atol=1e-6, rtol=0)
        before = len(seen)
        model.load_state_dict({k: v * 1.5 if "text_projection" in k else v for k, v in model.state_dict().items()})
        model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            model(batch)
        assert len(seen) == before + 6  # other weights and another precision are other features


def test_a_checkpoint_with_updates_is_built_again_from_its_architecture(tmp_path: Path) -> None:
    config = ModelConfig(image_text=f"local-dir:{tmp_path / 'model'}", **SMALL_DNA, **LORA)
    write_folder(tmp_path / "model", SHRUNK_VIT)
    model = build_model(config, DATA, LossConfig(), NUM_TAXA).eval()
    randomise(model)
    architecture = json.loads(json.dumps(model.architecture))
    (tmp_path / "model").rename(tmp_path / "gone")
    again = build_model(config, DATA, LossConfig(), NUM_TAXA, architecture).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(batch_of(model, DATA)).fused, model(batch_of(model, DATA)).fused)


def test_options_that_contradict_one_another_are_refused_in_one_line(tmp_path: Path) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"unfreeze_image_blocks": 1}, "model.unfreeze_image_blocks: got 1 with model.freeze_image=false"),
        ({"freeze_text": True, "unfreeze_text_blocks": 9}, "model.unfreeze_text_blocks: got 9, allowed 0..1"),
        ({"freeze_text": True, **LORA}, "with model.freeze_text=true, allowed image,dna"),
        ({**LORA, "lora_towers": ()}, "model.lora_towers: got none"),
        ({**LORA, "lora_targets": ()}, "model.lora_targets: got none"),
        (
            {**LORA, "dna": "kmer_bag"},
            "the dna tower (KmerBag) has no attention that can be adapted, allowed image,text",
        ),
        ({**LORA, "image_text": "taxafuse-tiny"}, "the image tower (ConvNet) has no attention"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError) as caught:
            model_of(tmp_path, **options)
        assert message in str(caught.value) and "\n" not in str(caught.value), str(caught.value)
