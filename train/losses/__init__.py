"""The training losses; `total` puts their terms together."""

from train.losses.pretraining import hidden_tokens, token_loss
from train.losses.total import Targets, contrastive_loss, fusion_loss, hierarchy_loss, total_loss

__all__ = ["Targets", "contrastive_loss", "fusion_loss", "hidden_tokens", "hierarchy_loss", "token_loss", "total_loss"]
