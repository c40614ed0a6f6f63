"""Every recipe takes training steps: its architecture, losses and options at a size for a test."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.config import RobustConfig
from tests.train.models.test_dnabert2 import bpe_data
from tests.train.small import small_session
from tests.train.small_models import SHRUNK_VIT, write_folder
from train.config import Config
from train.recipes import RECIPES, as_clibd, as_clibd_hir, as_robust, make


def shrunk(config: Config, shards: Path, folder: Path) -> Config:
    """The same kinds of towers, tokens and losses, with small random weights, on simulated specimens."""
    data = replace(config.data, shards=(str(shards),), image_size=32)
    if data.tokenizer == "bpe":
        tokens = bpe_data(folder, 30)
        data = replace(data, tokenizer_file=tokens.tokenizer_file, max_nucleotides=tokens.max_nucleotides)
    model = replace(config.model, embed_dim=32, dna_width=32, dna_depth=1, dna_heads=2)
    if not model.image_text.startswith("taxafuse"):
        write_folder(folder / "vit", SHRUNK_VIT)
        model = replace(model, image_text=f"local-dir:{folder / 'vit'}")
    run = replace(
        config.run,
        name="small",
        storage=str(folder),
        epochs=2,
        fusion_epochs=1,
        global_batch_size=32,
        micro_batch_size=min(16, config.run.micro_batch_size),
        num_workers=0,
        use_gpu=False,
        tracking="none",
    )
    return replace(config, data=data, model=model, run=run)


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.middle
def test_two_steps_of_every_recipe(name: str, simulated_shards: Path, tmp_path: Path, one_thread: None) -> None:
    session = small_session(shrunk(make(name), simulated_shards, tmp_path))
    before = {key: value.detach().clone() for key, value in session.model.named_parameters()}
    batches = session.batches(None)
    terms = [session.train_step(next(batches)) for _ in range(2)]
    batches.close()  # type: ignore[attr-defined]
    assert session.step == 2
    assert all(torch.isfinite(value) for step in terms for value in step.values())
    moved = {key for key, value in session.model.named_parameters() if not torch.equal(value, before[key])}
    frozen = {key for key, value in session.model.named_parameters() if not value.requires_grad}
    assert not moved & frozen
    towers = {key.split(".")[0] for key in moved}
    if make(name).loss.objective != "contrastive":  # a pretraining moves one tower and its head
        assert towers == {"dna_encoder", "pretraining"}
        return
    text = set() if make(name).model.freeze_text else {"text_encoder"}
    assert {"dna_encoder", "image_encoder"} | text <= towers  # the specimens have photos, whatever the recipe is for
    expected = {"loss/contrastive"} | ({"loss/hierarchy"} if make(name).loss.hierarchy_weight else set())
    assert expected <= set(terms[0])


def test_the_four_methods_differ_in_what_they_say_and_share_their_budget() -> None:
    fuse = make("quickstart")
    clibd, hir, robust = as_clibd(fuse), as_clibd_hir(fuse), as_robust(fuse)
    assert (clibd.loss.hierarchy_weight, clibd.loss.fusion_weight) == (0.0, 0.0)
    assert (hir.loss.hierarchy_weight, hir.loss.fusion_weight) == (fuse.loss.hierarchy_weight, 0.0)
    assert robust.loss == fuse.loss and robust.data.robust != fuse.data.robust == RobustConfig()
    assert robust.model == replace(fuse.model, dropout=0.0) != fuse.model
    assert replace(robust, model=fuse.model, data=replace(robust.data, robust=RobustConfig())) == fuse
    budgets = {(c.run.epochs, c.run.global_batch_size, c.optim) for c in (fuse, clibd, hir, robust)}
    assert len(budgets) == 1
