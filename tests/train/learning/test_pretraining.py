"""Pretraining: which tokens are hidden, what the encoder sees, that it learns, and that it goes on bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import gpu_pretrain
from tests.train.small import small_config, small_session
from train.config import Config, LossConfig
from train.learning.loop import Session
from train.losses import hidden_tokens, token_loss
from train.models import checkpoint
from train.models.barcodebert import BarcodeBertEncoder
from train.models.bert_folder import BertShape
from train.models.pretraining import OBJECTIVES, Predicted, Pretraining, visible
from train.recipes import make

SETTINGS = (
    "data.kmer_stride=4",
    "data.random_offset=true",
    "model.dna=barcodebert",
    "model.dna_width=32",
    "model.dna_heads=4",
    "loss.decoder_layers=1",
)
KEYS = [f"specimen-{number}" for number in range(6)]


def tower(seed: int = 0) -> BarcodeBertEncoder:
    torch.manual_seed(seed)
    shape = BertShape(vocab_size=258, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    return BarcodeBertEncoder(shape, specials=2, dropout=0.0, embed_dim=16).eval()


def tokens(length: int = 20, padding: int = 0) -> torch.Tensor:
    rows = torch.randint(2, 258, (6, length), generator=torch.Generator().manual_seed(1))
    return torch.cat([rows, torch.zeros(6, padding, dtype=torch.int64)], dim=1)


def objective(name: str) -> Pretraining:
    torch.manual_seed(1)
    return Pretraining(tower(), 4, LossConfig(objective=name, decoder_layers=1)).eval()


def batch(rows: torch.Tensor, keys: list[str] = KEYS) -> dict[str, Any]:
    there = torch.ones(len(rows), dtype=torch.bool)
    hidden = hidden_tokens(rows, keys, 0.5, seed=0, step=3)
    return {"valid": there, "has_dna": there, "dna_tokens": rows, "hidden": hidden}


def test_half_of_the_kmers_are_hidden_and_neither_padding_nor_unknown_ones() -> None:
    rows = tokens(padding=4)
    rows[:, 5] = 1  # a k-mer with N
    hidden = hidden_tokens(rows, KEYS, 0.5, seed=0, step=0)
    assert hidden.sum(1).tolist() == [10] * 6  # of 19: 9.5, rounded to even
    assert not hidden[rows < 2].any()
    assert hidden_tokens(torch.tensor([[2, 0], [0, 0]]), KEYS[:2], 0.5, 0, 0).sum() == 0  # one token stays to be read


def test_what_is_hidden_is_a_function_of_seed_step_and_specimen() -> None:
    rows = tokens()
    whole = hidden_tokens(rows, KEYS, 0.5, seed=1, step=7)
    alone = [hidden_tokens(rows[i : i + 1], KEYS[i : i + 1], 0.5, seed=1, step=7) for i in range(6)]
    assert torch.equal(whole, torch.cat(alone))
    for seed, step in ((2, 7), (1, 8)):
        assert not torch.equal(whole, hidden_tokens(rows, KEYS, 0.5, seed=seed, step=step))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_padding_and_neighbours_change_nothing(name: str) -> None:
    head, encoder = objective(name), tower()
    whole = batch(tokens())
    padded = whole | {"dna_tokens": tokens(padding=5), "hidden": torch.nn.functional.pad(whole["hidden"], (0, 5))}
    expected = head(encoder, whole)
    assert torch.allclose(head(encoder, padded).logits[:, :20], expected.logits, atol=1e-5)
    one = {key: value[2:3] for key, value in whole.items()}
    assert torch.allclose(head(encoder, one).logits, expected.logits[2:3], atol=1e-5)
    assert expected.counted.sum() == (120 if name == "masked" else 60)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_hidden_token_is_seen(name: str) -> None:
    head, encoder = objective(name), tower()
    rows = batch(tokens())
    other = rows | {"dna_tokens": torch.where(rows["hidden"], 259 - rows["dna_tokens"], rows["dna_tokens"])}
    assert torch.equal(head(encoder, rows).logits, head(encoder, other).logits)


def test_the_autoencoder_reads_what_is_not_hidden_at_its_own_places() -> None:
    rows = batch(tokens())
    seen, places, real = visible(rows["dna_tokens"], ~rows["hidden"])
    assert real.all()
    assert torch.equal(places, (~rows["hidden"]).nonzero()[:, 1].view(6, 10))
    assert torch.equal(seen, rows["dna_tokens"].gather(1, places))
    encoder = tower()
    moved = encoder.states(seen, real, places + 1)
    assert not torch.allclose(encoder.states(seen, real, places), moved, atol=1e-3)


def test_rows_without_a_barcode_count_nowhere() -> None:
    rows = batch(tokens())
    none = rows | {"has_dna": torch.zeros(6, dtype=torch.bool)}
    for name in OBJECTIVES:
        terms = token_loss(objective(name)(tower(), none))
        assert terms["loss/total"] == 0
        terms["loss/total"].backward()


def test_the_loss_is_the_mean_over_what_counts() -> None:
    logits = torch.randn(1, 3, 5)
    predicted = Predicted(
        logits, torch.tensor([[1, 2, 3]]), torch.tensor([[True, False, False]]), torch.tensor([[True, True, False]])
    )
    loss = -logits.log_softmax(-1)[0, [0, 1], [1, 2]].mean()
    terms = token_loss(predicted)
    assert torch.allclose(terms["loss/total"], loss)
    assert terms["loss/named"] == (logits[0, 0].argmax() == 1)


def small(shards: Path, name: str, *settings: str) -> Config:
    return small_config(shards, *SETTINGS, f"loss.objective={name}", *settings)


@pytest.mark.middle
@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_learns_and_goes_on_bit_for_bit(name: str, simulated_shards: Path, tmp_path: Path) -> None:
    config = small(simulated_shards, name, "run.epochs=2", "optim.max_lr=1e-2")
    whole = small_session(config)
    before = {key: value.clone() for key, value in whole.model.state_dict().items()}
    losses, parts = [], small_session(config)
    for rows in whole.batches(None):
        losses.append(float(whole.train_step(rows)["loss/total"]))
        if whole.step == 5:
            state = checkpoint.snapshot((whole.model.state_dict(), whole.state()))
    parts.restore(*state)
    for rows in parts.batches(None):
        parts.train_step(rows)
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.9
    after = whole.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in parts.model.state_dict().items())
    changed = {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {"dna_encoder", "pretraining"}


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "code_version", lambda: "test")  # it starts a process


def saved(session: Session, folder: Path) -> Path:
    folder.mkdir(parents=True)
    checkpoint.save(folder, session.model, session.config, session.taxonomy, step=0, state=None)
    return folder.parent


def test_a_pretrained_run_becomes_the_tower_of_another(simulated_shards: Path, tmp_path: Path) -> None:
    first = small_session(small(simulated_shards, "mae", "run.seed=5"))
    run = saved(first, tmp_path / "run" / "model")
    assert checkpoint.load(run).model.pretraining is not None
    config = small(simulated_shards, "contrastive", f"model.dna_pretrained={run}")
    second = small_session(config)
    expected = first.model.dna_encoder.bert.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in second.model.dna_encoder.bert.state_dict().items())
    second.train_step(next(iter(second.batches(None))))
    with pytest.raises(ValueError, match=r"vocabulary of 258 does not fit data.kmer=5, allowed 1026 or 1027"):
        small_session(
            small(simulated_shards, "contrastive", f"model.dna_pretrained={run}", "data.kmer=5", "data.kmer_stride=5")
        )


def test_what_cannot_pretrain_is_refused_in_a_line(simulated_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loss.objective.*masked.*model.dna=barcodebert"):
        small_session(small_config(simulated_shards, "loss.objective=masked"))
    with pytest.raises(ValueError, match=r"run.micro_batch_size.*8.*0 with loss.objective=mae"):
        small_session(small(simulated_shards, "mae", "run.micro_batch_size=8"))
    other = saved(small_session(small_config(simulated_shards)), tmp_path / "run" / "model")
    with pytest.raises(ValueError, match="was trained with another DNA tower"):
        small_session(small(simulated_shards, "contrastive", f"model.dna_pretrained={other}"))


def test_the_recipes_are_the_published_objectives() -> None:
    bert, mae = make("barcodebert"), make("barcodemae")
    assert (bert.loss.objective, mae.loss.objective) == ("masked", "mae")
    assert (bert.data.kmer, bert.data.kmer_stride, bert.data.random_offset, bert.loss.mask_share) == (4, 4, True, 0.5)


def test_the_gpu_benchmark_takes_its_path_on_a_cpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_pretrain, "WARM_UP", 0)
    monkeypatch.setattr(gpu_pretrain, "STEPS", 1)
    monkeypatch.setattr(gpu_pretrain, "matmul_rate", lambda *_: 1e12)
    assert gpu_pretrain.main(["barcodemae", "--small"]) == 0
    assert "tokens_per_s" in capsys.readouterr().out
