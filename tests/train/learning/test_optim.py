"""What decays, and that the fused implementation is used."""

from pathlib import Path

import torch
from torch import nn

from tests.train.small import small_config, small_session
from train.config import OptimConfig
from train.learning.optim import build_optimizer, parameter_groups


def test_norms_biases_scalars_and_embeddings_do_not_decay(simulated_shards: Path) -> None:
    model = small_session(
        small_config(
            simulated_shards, "model.dna=kmer_transformer", "data.kmer_stride=4", "loss.learn_temperature=true"
        )
    ).model
    decays, still = (
        {name for name, p in model.named_parameters() if any(p is q for q in group["params"])}  # type: ignore[attr-defined]
        for group in parameter_groups(model, 0.05)
    )
    assert decays | still == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"dna_encoder.embed.weight", "dna_encoder.position", "log_scale", "dna_encoder.norm.weight"} <= still
    assert {"dna_encoder.project.weight", "fusion.hidden.weight"} <= decays
    assert not [name for name in decays if "bias" in name or "embedding" in name or "norm" in name]
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    assert tables and tables <= still


def test_fused() -> None:
    optimizer, _ = build_optimizer(nn.Linear(2, 2), OptimConfig(weight_decay=0.1), 5)
    assert optimizer.defaults["fused"] and [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert isinstance(optimizer, torch.optim.AdamW)
