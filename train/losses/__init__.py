"""The training losses; `total` puts their terms together."""

from train.losses.total import Targets, contrastive_loss, fusion_loss, hierarchy_loss, total_loss

__all__ = ["Targets", "contrastive_loss", "fusion_loss", "hierarchy_loss", "total_loss"]
