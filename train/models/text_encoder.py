"""Captions to features: the text tower of an open_clip model and the tokenizer that matches it.

Shapes: U unique captions, T context, L longest caption of the call, D embedding.
"""

import uuid
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.models.open_clip_source import Source

HASHED_WORDS = "hashed_words"  # text_cfg.tokenizer_mode of our own configurations


class CaptionTokenizer:
    """list of captions -> int64 [U, T], padded with 0; longer captions are cut, their end token kept.

    The model's own tokenizer: open_clip's BPE, or a Hugging Face one whose files are at hand, or `HashedWords`.
    """

    def __init__(self, source: Source) -> None:
        text_cfg = source.model_cfg["text_cfg"]
        self.context = int(text_cfg.get("context_length", 77))
        self._tokenize: Callable[[list[str]], Tensor]
        if text_cfg.get("tokenizer_mode") == HASHED_WORDS:
            self._tokenize = HashedWords(int(text_cfg["vocab_size"]), self.context)
        elif text_cfg.get("hf_tokenizer_name"):
            self._tokenize = _hugging_face(source, self.context)
        else:
            from open_clip.tokenizer import SimpleTokenizer

            self._tokenize = SimpleTokenizer(context_length=self.context, **text_cfg.get("tokenizer_kwargs", {}))

    def __call__(self, captions: list[str]) -> Tensor:
        """Turn captions into int64 [U, T]."""
        if not captions:
            return torch.zeros(0, self.context, dtype=torch.int64)
        return self._tokenize(captions)


class HashedWords:
    """Two tokens a word, each a hash of it into 1..vocabulary-2; vocabulary-1 ends the caption.

    For text towers trained from scratch: the pieces BPE cuts Latin names into mean nothing to them, and whole words are
    shorter and learned faster (tests/benchmarks/results/barcodes_bold.md). One hash a word would let two species of a
    large genus fall together (1 in 8,190 per pair); two do so once in 67 million.
    """

    def __init__(self, vocabulary: int, context: int) -> None:
        self.vocabulary, self.context = vocabulary, context

    def __call__(self, captions: list[str]) -> Tensor:
        """Turn captions into int64 [U, T]."""
        tokens = torch.zeros(len(captions), self.context, dtype=torch.int64)
        for row, caption in zip(tokens, captions, strict=True):
            ids = [1 + number % (self.vocabulary - 2) for word in caption.lower().split() for number in _hashes(word)]
            ids = [*ids[: self.context - 1], self.vocabulary - 1]
            row[: len(ids)] = torch.tensor(ids)
        return tokens


@lru_cache(maxsize=1 << 16)
def _hashes(word: str) -> tuple[int, int]:
    digest = blake2b(word.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _hugging_face(source: Source, context: int) -> Callable[[list[str]], Tensor]:
    from open_clip.tokenizer import HFTokenizer

    text_cfg = source.model_cfg["text_cfg"]
    place = source.folder if source.folder and Path(source.folder).is_dir() else text_cfg["hf_tokenizer_name"]
    mode, options = text_cfg.get("tokenizer_mode"), text_cfg.get("tokenizer_kwargs", {})
    try:
        return HFTokenizer(place, context_length=context, tokenizer_mode=mode, **options)
    except Exception as error:  # the library raises many kinds
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model.image_text: the tokenizer {place!r} of {source.name} is not available ({reason}); "
            f"use local-dir:PATH with the tokenizer's files in the folder"
        ) from None


class TextEncoder(nn.Module):
    """int64 [U, T] -> [U, D], not normalised. `frozen`: no gradient and no dropout."""

    def __init__(self, tower: Any) -> None:
        from open_clip.transformer import TextTransformer, text_global_pool

        super().__init__()
        self.tower: Any = tower  # an open_clip text tower, of one of several classes
        self._pool = text_global_pool
        self.frozen = False
        self._remembered: dict[tuple[bytes, torch.dtype | None], Tensor] = {}
        self.context = int(tower.context_length) if hasattr(tower, "context_length") else 77
        # behind a causal mask nothing after the end token can reach it: rows are cut to the longest caption
        self._cuts = (
            isinstance(tower, TextTransformer)
            and tower.attn_mask is not None
            and tower.cls_emb is None
            and tower.pool_type in ("argmax", "eos")
        )

    def train(self, mode: bool = True) -> "TextEncoder":
        """Set the mode as `nn.Module.train` does; a frozen tower stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TextEncoder":
        """As `nn.Module._apply`: the weights move or change, so nothing encoded before is remembered."""
        self._remembered.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """As `nn.Module._load_from_state_dict`, which loading a state reaches in every module."""
        self._remembered.clear()
        super()._load_from_state_dict(*args, **kwargs)

    @torch.compiler.disable
    def remember(self, tokens: Tensor) -> Tensor:
        """Return a frozen tower's unit features float32 [U, D], each caption encoded once and by itself.

        By itself, because features of a batch differ in the last bits with its size: what a caption is must not depend
        on when it was first met, or a resumed run would leave the path of an uninterrupted one.
        """
        assert self.frozen, "features of a tower that trains do not stay"
        kind = tokens.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        keys = [(row.tobytes(), precision) for row in tokens.cpu().numpy()]
        with torch.no_grad():
            for place, key in enumerate(keys):
                if key not in self._remembered:
                    self._remembered[key] = F.normalize(self(tokens[place : place + 1]).float(), dim=1)[0]
            return torch.stack([self._remembered[key] for key in keys])

    def _shelf(self, folder: Path) -> Path:
        """Return the file for features of exactly these weights, whatever they belong to."""
        digest = blake2b(digest_size=8)
        for name, value in sorted(self.tower.state_dict().items()):
            digest.update(
                name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
        return folder / f"texts-{digest.hexdigest()}.safetensors"

    def recall(self, folder: Path) -> int:
        """Take over what another process `leave`s in `folder` of the same weights; returns how many captions."""
        shelf = self._shelf(folder)
        if not shelf.is_file():
            return 0
        device = next(self.tower.parameters()).device
        tensors = load_file(shelf)
        for kind in {name.partition("/")[0] for name in tensors}:
            precision = None if kind == "None" else getattr(torch, kind.removeprefix("torch."))
            for tokens, features in zip(tensors[f"{kind}/tokens"], tensors[f"{kind}/features"], strict=True):
                self._remembered[tokens.numpy().tobytes(), precision] = features.to(device)
        return len(self._remembered)

    def leave(self, folder: Path) -> None:
        """Write what is remembered, for other processes; a file that is there already stays as it is."""
        shelf = self._shelf(folder)
        if shelf.is_file() or not self._remembered:
            return
        tensors = {}
        for precision in {precision for _, precision in self._remembered}:
            keys = [key for key in self._remembered if key[1] == precision]
            rows = [torch.frombuffer(bytearray(key[0]), dtype=torch.int64) for key in keys]
            tensors[f"{precision}/tokens"] = torch.stack(rows)
            tensors[f"{precision}/features"] = torch.stack([self._remembered[key] for key in keys]).cpu()
        part = shelf.with_name(f"{shelf.name}.{uuid.uuid4().hex}.part")
        save_file(tensors, part)
        part.rename(shelf)

    def placeholder(self, tokens: Tensor) -> Tensor:
        """Return a row [1, T] that stands for no caption, without padding: some towers' masks cannot bear it alone."""
        return tokens.new_full((1, tokens.shape[1]), self.tower.vocab_size - 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode int64 tokens [C, T] of the tower's tokenizer: [C, D], not normalised."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self._cut_forward(tokens) if self._cuts else self.tower(tokens)
        return features[0] if isinstance(features, tuple) else features  # towers with output_tokens give both

    def _cut_forward(self, tokens: Tensor) -> Tensor:
        tower = self.tower
        length = int(tokens.ne(tower.pad_id).any(0).nonzero().amax()) + 1 if tokens.ne(tower.pad_id).any() else 1
        tokens = tokens[:, :length]
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
        pooled = self._pool(x, tokens, pool_type=tower.pool_type, eos_token_id=tower.eos_id)
        projection = tower.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
