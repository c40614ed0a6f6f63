"""Image, barcode and caption towers with the fusion gate: everything of the model behind one `forward(batch)`.

The training loop calls `forward` only, so that DDP sees every step; the `encode_*` methods are for inference.

Shapes: B worker batch, U unique captions, S image side, L barcode tokens, T caption tokens, D embedding, R ranks.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import DataConfig
from engine.signals import damage
from train.config import LossConfig, ModelConfig
from train.models import lora, open_clip_source, towers
from train.models.dna_encoders import build_dna_encoder
from train.models.fusion import GatedFusion, RankHeads
from train.models.image_encoder import ImageEncoder, check_image_size
from train.models.open_clip_source import Source
from train.models.pretraining import Predicted, Pretraining
from train.models.text_encoder import CaptionTokenizer, TextEncoder

log = logging.getLogger(__name__)

MAX_LOG_SCALE = math.log(100.0)  # the temperature stays in 1/100..1


@dataclass
class Features:
    """What one batch becomes: float32 [B, D] of unit length, a row of zeros where the modality is missing."""

    image: Tensor
    image_view2: Tensor | None  # training only
    dna: Tensor
    text: Tensor
    fused: Tensor
    logit_scale: Tensor  # scalar, 1 / temperature, in 1..100
    rank_logits: tuple[Tensor, ...] | None = None  # per rank [B, taxa of the rank]; with loss.rank_heads_weight > 0


class Trimodal(nn.Module):
    """The three towers, the gate and the temperature. Built by `build_model`."""

    def __init__(
        self,
        encoders: tuple[ImageEncoder, TextEncoder, nn.Module],
        source: Source,
        model: ModelConfig,
        data: DataConfig,
        loss: LossConfig,
    ) -> None:
        super().__init__()
        self.embed_dim = int(source.model_cfg["embed_dim"])
        self.image_size = data.image_size
        self.source = source
        self.image_encoder, self.text_encoder, self.dna_encoder = encoders
        self.fusion = GatedFusion(self.embed_dim, model.dropout)
        self.rank_heads: RankHeads | None = None
        self.pretraining: Pretraining | None = None
        if loss.objective != "contrastive":
            self.pretraining = Pretraining(self.dna_encoder, data.kmer, loss)
        self.detach_dna_in_fusion = loss.detach_dna_in_fusion
        scale = torch.tensor(math.log(1.0 / loss.temperature))
        if loss.learn_temperature:
            self.log_scale = nn.Parameter(scale)
        else:
            self.register_buffer("log_scale", scale)

    @property
    def logit_scale(self) -> Tensor:
        """Return 1 / temperature, a scalar in 1..100."""
        inside = self.log_scale.clamp(0.0, MAX_LOG_SCALE)
        # the value is clamped, the gradient is not: at the end of the range a clamp would hold the parameter for ever
        return (self.log_scale + (inside - self.log_scale).detach()).exp()

    @property
    def architecture(self) -> dict[str, Any]:
        """Describe the towers in JSON types: a checkpoint with them needs neither folder nor hub (`build_model`)."""
        shape = getattr(self.dna_encoder, "shape", None)
        return self.source.to_dict() | ({"dna": shape.to_dict()} if shape is not None else {})

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode uint8 [B, S, S, 3]: unit [B, D]."""
        return _unit(self.image_encoder(image))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode int64 [U, T] of `CaptionTokenizer`: unit [U, D]."""
        return _unit(self.text_encoder(tokens))

    def encode_dna(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Encode int64 [B, L] and bool [B, L]: unit [B, D]."""
        return _unit(self.dna_encoder(tokens, mask))

    def fuse(self, image: Tensor, dna: Tensor) -> Tensor:
        """Fuse unit [B, D] and [B, D] (zero rows = missing) into unit [B, D]; one modality alone passes as it is."""
        return self.fusion(image, dna)

    def gate(self, image: Tensor, dna: Tensor) -> Tensor:
        """Return the image's share in the fused feature, [B, D] in 0..1; meaningful where both modalities are there."""
        return self.fusion.gate(image, dna)

    def forward(self, batch: Mapping[str, Any]) -> Features | Predicted:
        """Encode a `collate.Batch` with `text_tokens` [U, T] and `text_index` [B] (-1 = no caption).

        A batch with `hidden` [B, L] runs the objective of pretraining instead.
        """
        if self.pretraining is not None and "hidden" in batch:
            return self.pretraining(self.dna_encoder, batch)
        return self._all_towers(batch)

    def _all_towers(self, batch: Mapping[str, Any]) -> Features:
        if isinstance(self.log_scale, nn.Parameter):
            with torch.no_grad():
                self.log_scale.clamp_(0.0, MAX_LOG_SCALE)
        valid = batch["valid"]
        image, image_view2 = self._image_rows(batch, valid & batch["has_image"])
        dna = _present_rows(
            lambda rows: self.encode_dna(batch["dna_tokens"][rows], batch["dna_mask"][rows]),
            lambda: self._no_dna(batch),
            valid & batch["has_dna"],
        )
        fused = self.fuse(*self._shown(batch, image, dna.detach() if self.detach_dna_in_fusion else dna))
        return Features(
            image=image,
            image_view2=image_view2,
            dna=dna,
            text=self._text_rows(batch, valid),
            fused=fused,
            logit_scale=self.logit_scale,
            rank_logits=self.rank_heads(fused) if self.rank_heads is not None else None,
        )

    def _no_image(self, batch: Mapping[str, Any]) -> Tensor:
        """Encode a black photo, [1, D]; made here, because a batch without photos has them of side 0."""
        return self.encode_image(batch["image"].new_zeros(1, self.image_size, self.image_size, 3))

    def _no_dna(self, batch: Mapping[str, Any]) -> Tensor:
        """Encode a barcode without a token, [1, D]."""
        return self.encode_dna(torch.zeros_like(batch["dna_tokens"][:1]), torch.zeros_like(batch["dna_mask"][:1]))

    @torch.no_grad()
    def _empty(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Encode an empty photo and an empty barcode, [1, D] each, without dropout: as evaluation sees them."""
        encoders = (self.image_encoder, self.dna_encoder)
        modes = [encoder.training for encoder in encoders]
        for encoder in encoders:
            encoder.eval()
        features = self._no_image(batch), self._no_dna(batch)
        for encoder, mode in zip(encoders, modes, strict=True):
            encoder.train(mode)
        return features

    def _shown(self, batch: Mapping[str, Any], image: Tensor, dna: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the fusion gets, [B, D] each: a `withheld` modality of specimens with both becomes an empty one.

        A missing modality skips the gate, so zeros would teach it nothing; the gate must tell an empty photo or
        barcode from a real one. No gradient goes into the encoders through it.
        """
        if "withheld" not in batch:
            return image, dna
        both = image.ne(0).any(1) & dna.ne(0).any(1)
        no_image, no_dna = self._empty(batch)
        without = {kind: (both & (batch["withheld"] == kind))[:, None] for kind in (damage.IMAGE, damage.DNA)}
        return torch.where(without[damage.IMAGE], no_image, image), torch.where(without[damage.DNA], no_dna, dna)

    def _image_rows(self, batch: Mapping[str, Any], present: Tensor) -> tuple[Tensor, Tensor | None]:
        views = [batch["image"]] + ([batch["image_view2"]] if "image_view2" in batch else [])
        features = _present_rows(
            lambda rows: self.encode_image(torch.cat([view[rows] for view in views])),
            lambda: self._no_image(batch),
            present,
            copies=len(views),
        )
        first, *second = features.chunk(len(views))
        return first, second[0] if second else None

    def _text_rows(self, batch: Mapping[str, Any], valid: Tensor) -> Tensor:
        if "text_tokens" not in batch:
            tokens = torch.zeros(0, self.text_encoder.context, dtype=torch.int64, device=valid.device)
            index = torch.full(valid.shape, -1, device=valid.device)
        else:
            tokens, index = batch["text_tokens"], batch["text_index"]
        if len(tokens):
            unique = self.text_encoder.remember(tokens) if self.text_encoder.frozen else self.encode_text(tokens)
        else:
            unique = self.encode_text(self.text_encoder.placeholder(tokens)) * 0.0
        known = valid & (index >= 0)
        return unique[index.clamp(min=0)] * known[:, None]


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1)


def _present_rows(
    encode: Callable[[Tensor], Tensor], encode_nothing: Callable[[], Tensor], present: Tensor, copies: int = 1
) -> Tensor:
    """Encode the rows where `present` [B] and put them back among zeros: [copies * B, D].

    Without any such row one row of zeros is encoded and multiplied by 0, so that every parameter has a gradient.
    """
    rows = present.nonzero().squeeze(1)
    if not len(rows):
        nothing = encode_nothing() * 0.0
        return nothing.expand(copies * len(present), -1)
    features = encode(rows)
    places = torch.cat([rows + copy * len(present) for copy in range(copies)])
    return features.new_zeros(copies * len(present), features.shape[1]).index_copy(0, places, features)


def build_model(
    model: ModelConfig,
    data: DataConfig,
    loss: LossConfig,
    num_taxa: Sequence[int],
    architecture: Mapping[str, Any] | None = None,
) -> Trimodal:
    """Build the model of a run; `num_taxa` = taxa per rank, for the rank heads.

    D is `model.embed_dim` for our own configurations and the open_clip model's own otherwise. With `architecture` (of a
    checkpoint) nothing is looked up and no pretrained weights are loaded: the caller loads its own. Raises ValueError
    that says what, got and allowed.
    """
    towers.check_options(model)
    if architecture is not None:
        source = Source.from_dict(architecture)
    else:
        source = open_clip_source.resolve(model.image_text, model.pretrained)
        if source.own:
            source = dataclasses.replace(source, model_cfg=source.model_cfg | {"embed_dim": model.embed_dim})
    check_image_size(source, data.image_size)
    image, text = open_clip_source.build(source, load_weights=architecture is None)
    shape = architecture.get("dna") if architecture is not None else None
    dna = build_dna_encoder(model, data, int(source.model_cfg["embed_dim"]), shape)
    trimodal = Trimodal((ImageEncoder(image, source), TextEncoder(text), dna), source, model, data, loss)
    if loss.rank_heads_weight > 0:
        trimodal.rank_heads = RankHeads(trimodal.embed_dim, num_taxa)
    choose_what_trains(trimodal, model)
    return trimodal


def choose_what_trains(trimodal: Trimodal, model: ModelConfig) -> None:
    """Freeze, unfreeze, adapt and checkpoint the towers as the options say, in place. Raises ValueError as they do."""
    for name, encoder, frozen, unfrozen in (
        ("image", trimodal.image_encoder, model.freeze_image, model.unfreeze_image_blocks),
        ("text", trimodal.text_encoder, model.freeze_text, model.unfreeze_text_blocks),
    ):
        if frozen and not towers.freeze(encoder.tower, unfrozen, f"model.unfreeze_{name}_blocks"):
            encoder.frozen = True
            encoder.eval()
    every = {"image": trimodal.image_encoder.tower, "text": trimodal.text_encoder.tower, "dna": trimodal.dna_encoder}
    for name, tower in every.items():
        if model.lora_rank and name in model.lora_towers:
            count = lora.adapt(tower, model, name)
            log.info("LoRA: %d matrices of the %s tower adapted, rank %d", count, name, model.lora_rank)
        if model.gradient_checkpointing and any(p.requires_grad for p in tower.parameters()):
            towers.forget_activations(tower, name)


def caption_tokenizer(trimodal: Trimodal) -> CaptionTokenizer:
    """Return the tokenizer that matches the model's text tower."""
    return CaptionTokenizer(trimodal.source)
