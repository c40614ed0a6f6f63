"""Captions to features: the text tower of an open_clip model and the tokenizer that matches it.

Shapes: U unique captions, T context, L longest caption of the call, D embedding.
"""

from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn

from train.models.open_clip_source import Source

FULL_VOCABULARY = 49408
BYTES = 512  # open_clip's BPE starts with 256 bytes, alone and at the end of a word; then merges; then start and end


class CaptionTokenizer:
    """list of captions -> int64 [U, T], padded with 0; longer captions are cut, their end token kept.

    A `vocab_size` below open_clip's own keeps the first merges only: the same BPE with shorter pieces. Latin names are
    cut into pieces anyway, and an embedding of 4,096 rows instead of 49,408 is 12 times less for the optimizer.
    """

    def __init__(self, source: Source) -> None:
        text_cfg = source.model_cfg["text_cfg"]
        self.context = int(text_cfg.get("context_length", 77))
        vocabulary = int(text_cfg.get("vocab_size", FULL_VOCABULARY))
        if text_cfg.get("hf_tokenizer_name"):
            self._tokenize = self._hugging_face(source)
        elif vocabulary < FULL_VOCABULARY:
            self._tokenize = _first_merges(vocabulary, self.context)
        else:
            self._tokenize = SimpleTokenizer(context_length=self.context, **text_cfg.get("tokenizer_kwargs", {}))

    def _hugging_face(self, source: Source) -> HFTokenizer:
        text_cfg = source.model_cfg["text_cfg"]
        place = source.folder if source.folder and Path(source.folder).is_dir() else text_cfg["hf_tokenizer_name"]
        options = text_cfg.get("tokenizer_kwargs", {})
        try:
            return HFTokenizer(
                place, context_length=self.context, tokenizer_mode=text_cfg.get("tokenizer_mode"), **options
            )
        except Exception as error:  # the library raises many kinds
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"model.image_text: the tokenizer {place!r} of {source.name} is not available ({reason}); "
                f"use local-dir:PATH with the tokenizer's files in the folder"
            ) from None

    def __call__(self, captions: list[str]) -> Tensor:
        if not captions:
            return torch.zeros(0, self.context, dtype=torch.int64)
        return self._tokenize(captions)


def _first_merges(vocabulary: int, context: int) -> SimpleTokenizer:
    tokenizer = SimpleTokenizer(context_length=context)
    kept = vocabulary - 2
    if kept < BYTES:
        raise ValueError(f"text_cfg.vocab_size: got {vocabulary}, allowed: {BYTES + 2}..{FULL_VOCABULARY}")
    names = [name for name, index in sorted(tokenizer.encoder.items(), key=lambda item: item[1]) if index < kept]
    tokenizer.bpe_ranks = {pair: rank for pair, rank in tokenizer.bpe_ranks.items() if rank < kept - BYTES}
    tokenizer.encoder = {name: index for index, name in enumerate([*names, "<start_of_text>", "<end_of_text>"])}
    tokenizer.decoder = {index: name for name, index in tokenizer.encoder.items()}
    tokenizer.all_special_ids = [kept, kept + 1]
    tokenizer.sot_token_id, tokenizer.eot_token_id = tokenizer.all_special_ids
    tokenizer.vocab_size = vocabulary
    return tokenizer


class TextEncoder(nn.Module):
    """int64 [U, T] -> [U, D], not normalised. Frozen: no gradient, no dropout, parameters do not train."""

    def __init__(self, tower: Any, frozen: bool = False) -> None:
        super().__init__()
        self.tower: Any = tower  # an open_clip text tower, of one of several classes
        self.frozen = frozen
        self.context = int(tower.context_length) if hasattr(tower, "context_length") else 77
        # behind a causal mask nothing after the end token can reach it: rows are cut to the longest caption
        self._cuts = (
            isinstance(tower, TextTransformer)
            and tower.attn_mask is not None
            and tower.cls_emb is None
            and tower.pool_type in ("argmax", "eos")
        )
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> "TextEncoder":
        """As `nn.Module.train`; a frozen tower stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def placeholder(self, tokens: Tensor) -> Tensor:
        """One row [1, T] that stands for no caption; without padding, which some towers' masks cannot bear alone."""
        return tokens.new_full((1, tokens.shape[1]), self.tower.vocab_size - 1)

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self._cut_forward(tokens) if self._cuts else self.tower(tokens)
        return features[0] if isinstance(features, tuple) else features  # towers with output_tokens give both

    def _cut_forward(self, tokens: Tensor) -> Tensor:
        tower = self.tower
        length = int(tokens.ne(tower.pad_id).any(0).nonzero().amax()) + 1 if tokens.ne(tower.pad_id).any() else 1
        tokens = tokens[:, :length]
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
        pooled = text_global_pool(x, tokens, pool_type=tower.pool_type, eos_token_id=tower.eos_id)
        projection = tower.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
