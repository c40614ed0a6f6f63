"""What a checkpoint's configuration may ask for, checked before anything is built from it."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import UserError
from engine.store.limits import MAX_IMAGE_SIDE, MAX_LAYERS, MAX_TENSORS, MAX_VOCABULARY, MAX_WIDTH

_BY_WORD = {  # of a number's name, the first that it holds
    "vocab": MAX_VOCABULARY,
    "image_size": MAX_IMAGE_SIDE,
    "img_size": MAX_IMAGE_SIDE,
    "layer": MAX_LAYERS,
    "depth": MAX_LAYERS,
    "block": MAX_LAYERS,
}


def check_numbers(tree: Any, what: str) -> None:
    """Raise UserError for a number, or a list, in a nested configuration that is larger than any tower has."""
    waiting = [("", tree)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(str(key), inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            if len(value) > MAX_LAYERS:
                raise UserError(what, f"{name} of {len(value):,} values", f"at most {MAX_LAYERS}")
            waiting += [(name, inner) for inner in value]
        elif isinstance(value, int | float):
            most = next((limit for word, limit in _BY_WORD.items() if word in name), MAX_WIDTH)
            if not abs(value) <= most:  # also NaN
                raise UserError(what, f"{name} = {value!s:.40}", f"at most {most:,}")


@contextlib.contextmanager
def without_hub() -> Iterator[None]:
    """Keep the Hugging Face client from the network: a checkpoint that names a repository is built from the cache."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def check_weights(expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise ValueError unless a file of weights has the tensors that a model expects; only its header is read."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            if len(names) > MAX_TENSORS:
                raise UserError(str(path), f"{len(names):,} tensors", f"at most {MAX_TENSORS:,}")
            shapes = {name: file.get_slice(name).get_shape() for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    unfit = sorted(set(shapes) ^ set(expected)) or [
        f"{name} is {shape}, expected {list(expected[name].shape)}"
        for name, shape in sorted(shapes.items())
        if shape != list(expected[name].shape)
    ]
    if unfit:
        raise ValueError(f"{path.parent}: weights do not fit the configuration, e.g. {unfit[0]}")
