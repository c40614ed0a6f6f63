"""One training step in parts: ours, and that of the authors' release on the same towers and the same batch.

The release (mirajucr/CLIBD-HIR-FUSION) is loaded from a checkout named by path; nothing of it is part of this
project. Its SimpleCLIP, ClipLossNew, HMLC, fusion head and `compute_losses` run as they are. Its towers are copies of
ours behind the calls that SimpleCLIP makes: every caption of the batch over the whole context, the mean over all tokens
of a barcode, padding among them.

Legend: B specimens, S image side, T text context, L tokens, D embedding, R ranks.
"""

import contextlib
import copy
import importlib.util
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.config import LossConfig
from train.losses import Targets, total_loss
from train.models.dnabert2 import Dnabert2Encoder
from train.models.trimodal import Trimodal

BERT_MODULES = ("models", "models.bert", "models.bert.configuration_bert")
NOT_CALLED = ("wandb", "h5py", "pandas", "transformers", *(f"transformers.{name}" for name in BERT_MODULES))
FEATURES = ("image", "image_view2", "dna", "text", "fused")
ALPHA_BETA_GAMMA = {"use_gather": False, "alpha": 1.0, "beta": 0.99, "gamma": 1.0}  # its train_bioclip_fusion.yaml


class Clock:
    """Seconds of named parts; a GPU is waited for at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


def our_step(
    model: Trimodal,
    optimizer: torch.optim.Optimizer,
    batch: Mapping[str, Any],
    loss: LossConfig,
    clock: Clock,
    *,
    bf16: bool = False,
    clip_norm: float = 1.0,
) -> None:
    """One step of ours: towers, losses, optimizer."""
    with clock("towers"), torch.autocast(clock.device.type, torch.bfloat16, enabled=bf16):
        features = model(batch)
    given = {name: tensor for name in FEATURES if (tensor := getattr(features, name)) is not None}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
    with clock("losses"):
        total_loss(replace(features, **leaves), Targets.from_batch(batch), loss)["loss/total"].backward()
    with clock("towers"):
        reached = [name for name, leaf in leaves.items() if leaf.grad is not None and given[name].requires_grad]
        torch.autograd.backward([given[name] for name in reached], [leaves[name].grad for name in reached])
    with clock("optimizer"):
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class _Absent(types.ModuleType):
    """Stands in for a module that the release imports and that is called neither by its step nor here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def load(folder: Path) -> Any:
    """The release's training module. Raises ValueError where the folder is no checkout of it."""
    if not (folder / "model" / "losses_HMLC.py").is_file():
        raise ValueError(f"--release: got {folder}, allowed: a checkout of the release (train.py, model/, utils/)")
    for name in NOT_CALLED:
        if name.split(".")[0] not in sys.modules and importlib.util.find_spec(name.split(".")[0]) is None:
            sys.modules[name] = _Absent(name)
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("release_train", folder / "train.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


class _PerToken(nn.Module):
    """Ids [B, L] -> (projected features of every token [B, L, D],)."""

    def __init__(self, encoder: Dnabert2Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.encoder.project(self.encoder.bert(tokens, torch.ones_like(tokens, dtype=torch.bool))),)


class _OpenClip(nn.Module):
    """float [B, 3, S, S] -> [B, D]; int64 [B, T] -> [B, D]."""

    def __init__(self, image: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.image, self.text = image, text

    def encode_image(self, image: Tensor) -> Tensor:
        return self.image(image)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.text(tokens)


class Release:
    """Its model, losses and optimizer around copies of our towers; float32 as in its training."""

    def __init__(self, module: Any, model: Trimodal, tokenizer: Any, clock: Clock) -> None:
        """tokenizer: ours, so that both read the same tokens; SimpleCLIP calls it inside its forward."""
        device = clock.device
        ours = copy.deepcopy(model)
        self.module, self.clock, self.tokenizer = module, clock, tokenizer
        towers = _OpenClip(ours.image_encoder.tower, ours.text_encoder.tower)
        self.model = module.SimpleCLIP(_PerToken(ours.dna_encoder), self._tokens, device, towers).to(device)
        self.model.fusion_head = module.GatedFusion(model.embed_dim).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.pair_loss, self.hierarchy_loss = module.ClipLossNew(temperature=0.07), module.HMLC(loss_type="hmce")
        self.hierarchy_loss.gen_mask_labels = self._timed(self.hierarchy_loss.gen_mask_labels)
        self.config = types.SimpleNamespace(model_config=types.SimpleNamespace(**ALPHA_BETA_GAMMA))

    def _tokens(self, sequences: Sequence[str]) -> Tensor:
        with self.clock("tokens"):
            tokens = torch.from_numpy(self.tokenizer.encode(list(sequences)).astype("int64"))
            return (tokens[:, : int((tokens > 0).sum(1).max())] - 1).clamp(min=0)

    def _timed(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def timed(*arguments: Any) -> Tensor:
            with self.clock("masks"):
                return function(*arguments)

        return timed

    def step(self, batch: Sequence[Any]) -> None:
        """One step on a batch of its data loader: ([view, view] [1, B, 3, S, S], codes [1, B, R + 1], captions B x
        [1, T], barcodes B x (str,), labels B). Parts: towers (with "tokens" in them), losses (with "masks"), optimizer.
        """
        device, clock = self.clock.device, self.clock
        with clock("copy"):
            images, _, captions, barcodes, _ = self.module.flatten_training_batch(batch, device)
        with clock("towers"):
            outputs = self.model(images, captions, barcodes)
        leaves = [output.detach().requires_grad_() for output in outputs]
        given = _Given(leaves, self.model.fusion_head)
        small = [[view[..., 0, 0, :1] for view in batch[0]], *batch[1:]]  # its loss asks images for their number only
        with clock("losses"):
            losses = self.module.compute_losses(
                small, given, self.pair_loss, self.pair_loss, self.hierarchy_loss, device, self.config, True
            )
            losses["total_loss"].backward()
        with clock("towers"):
            torch.autograd.backward(outputs, [leaf.grad for leaf in leaves])
        with clock("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()


class _Given:
    """A model that has its outputs already."""

    def __init__(self, outputs: list[Tensor], fusion_head: nn.Module) -> None:
        self.outputs, self.fusion_head = outputs, fusion_head

    def __call__(self, *_: Any) -> list[Tensor]:
        return self.outputs


def release_batch(batch: Mapping[str, Any], sequences: Sequence[str], model: Trimodal) -> list[Any]:
    """Our batch in the form of its data loader, on the CPU. `sequences`: the barcodes of the B rows."""
    mean, std = model.image_encoder.mean.cpu(), model.image_encoder.std.cpu()
    views = [((batch[name].permute(0, 3, 1, 2) - mean) / std)[None] for name in ("image", "image_view2")]
    codes = torch.cat([batch["labels"] + 1, torch.arange(len(sequences))[:, None]], dim=1)
    captions = [batch["text_tokens"][row][None] for row in batch["text_index"].tolist()]
    return [views, codes[None], captions, [(sequence,) for sequence in sequences], batch["text_index"].tolist()]
