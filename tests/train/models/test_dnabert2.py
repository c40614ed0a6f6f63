"""DNABERT-2 and BarcodeBERT: the published code's numbers, names and shapes, and folders in the published layouts.

tests/golden/dnabert2.json holds what the published modelling code of DNABERT-2 gives for the weights that
`formula_weights` makes, and its parameters' names and shapes.
"""

import argparse
import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.config import DataConfig
from train.config import LossConfig, ModelConfig
from train.models.bert_folder import BertShape
from train.models.dna_encoders import build_dna_encoder
from train.models.dnabert2 import Bert, Dnabert2Encoder, alibi_slopes
from train.models.trimodal import build_model

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "dnabert2.json").read_text())
SHAPE = BertShape.from_dict(GOLDEN["config"])
LENGTHS = (12, 7, 1)  # of the stored rows; 12 = without padding
EVERY = 6  # of the hidden values every sixth is stored


def formula_weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights that need no random generator; norms near 1, all else within 0.3."""
    weights = {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        place = torch.arange(math.prod(shape), dtype=torch.float64)
        value = 0.3 * torch.sin(place * 1.7 + index) * torch.cos(place * 0.31 * (index + 1))
        weights[name] = (value + 1.0 if "norm.weight" in name.lower() else value).reshape(shape).float()
    return weights


def formula_tokens(vocabulary: int) -> tuple[Tensor, Tensor]:
    """int64 [3, 12] ids and bool [3, 12]."""
    place = torch.arange(len(LENGTHS) * 12).view(len(LENGTHS), 12)
    return (place * 7 + 5) % vocabulary, torch.arange(12)[None] < torch.tensor(LENGTHS)[:, None]


def test_hidden_states_are_those_of_the_published_code_with_and_without_padding() -> None:
    bert = Bert(SHAPE, dropout=0.1).eval()
    bert.load_state_dict(formula_weights(GOLDEN["parameters"]))
    tokens, mask = formula_tokens(SHAPE.vocab_size)
    expected = torch.tensor(GOLDEN["hidden"])
    with torch.no_grad():
        together = bert(tokens, mask)[..., ::EVERY]
        assert (together - expected)[mask].abs().max() <= 1e-4
        alone = bert(tokens[:1], mask[:1])[..., ::EVERY]
    assert (alone - expected[:1]).abs().max() <= 1e-4
    assert expected[mask].std() > 0.1 and (expected[0, 0] - expected[0, 1]).abs().max() > 0.1  # says something


def test_names_and_shapes_are_the_published_ones() -> None:
    ours = {name: list(value.shape) for name, value in Bert(SHAPE, 0.0).state_dict().items()}
    assert ours == GOLDEN["parameters"]
    with torch.device("meta"):
        full = Dnabert2Encoder(BertShape(vocab_size=4096), 0.1, 768)
    shapes = {name: tuple(value.shape) for name, value in full.state_dict().items()}
    assert shapes["bert.embeddings.word_embeddings.weight"] == (4096, 768)
    assert shapes["bert.encoder.layer.11.attention.self.Wqkv.weight"] == (2304, 768)
    assert shapes["bert.encoder.layer.0.mlp.gated_layers.weight"] == (6144, 768)
    assert shapes["bert.encoder.layer.0.mlp.wo.weight"] == (768, 3072)
    assert sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("bert.")) == 116_477_952


def test_alibi_slopes_are_the_published_ones() -> None:
    assert alibi_slopes(8) == [2.0**-n for n in range(1, 9)]
    assert alibi_slopes(12) == pytest.approx([2.0**-n for n in range(1, 9)] + [2.0 ** -(n + 0.5) for n in range(4)])


KMER_DATA = DataConfig(kmer=3, kmer_stride=3, max_nucleotides=30)
CONFIG = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def bpe_data(folder: Path, vocabulary: int) -> DataConfig:
    """Data of a BPE tokenizer file with that many tokens: four letters, three special ones, the rest never met."""
    tokens = ["[UNK]", "[CLS]", "[SEP]", "A", "C", "G", "T"] + [f"<{i}>" for i in range(vocabulary - 7)]
    tree: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "decoder": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                name: {"id": name, "ids": [place], "tokens": [name]} for place, name in enumerate(tokens[:3])
            },
        },
        "model": {
            "type": "BPE",
            "vocab": {token: place for place, token in enumerate(tokens)},
            "merges": [],
            "unk_token": "[UNK]",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    return DataConfig(tokenizer="bpe", tokenizer_file=str(folder / "tokenizer.json"), max_nucleotides=60)


def published_dnabert2(folder: Path, kind: str) -> dict[str, Tensor]:
    """A folder in the layout of the published checkpoint, with its task head; returns the encoder's weights."""
    weights = formula_weights(GOLDEN["parameters"])
    (folder / "config.json").write_text(
        json.dumps(GOLDEN["config"] | {"model_type": "bert", "alibi_starting_size": 512})
    )
    named = {f"bert.{name}": value for name, value in weights.items()}
    named |= {"cls.predictions.decoder.weight": torch.zeros(30, 48), "bert.pooler.dense.weight": torch.zeros(48, 48)}
    if kind == "safetensors":
        save_file(named, folder / "model.safetensors")
    else:
        torch.save(named, folder / "pytorch_model.bin")
    return weights


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_published_folder_is_loaded_and_ids_are_tokens_minus_one(kind: str, tmp_path: Path) -> None:
    weights = published_dnabert2(tmp_path, kind)
    data = bpe_data(tmp_path, 30)
    config = ModelConfig(dna="dnabert2", dna_pretrained=str(tmp_path))
    encoder = build_dna_encoder(config, data, 16).eval()
    assert all(torch.equal(encoder.bert.state_dict()[name], value) for name, value in weights.items())
    ids, mask = formula_tokens(30)
    tokens = torch.where(mask, ids + 1, 0)
    with torch.no_grad():
        hidden = encoder.bert(ids, mask)
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        torch.testing.assert_close(encoder(tokens, tokens > 0), encoder.project(mean), atol=1e-5, rtol=0)
        longer = torch.cat([tokens, torch.zeros(3, 40, dtype=torch.int64)], dim=1)
        torch.testing.assert_close(encoder(longer, longer > 0), encoder(tokens, tokens > 0), atol=1e-5, rtol=0)
        assert torch.isfinite(encoder(torch.zeros_like(tokens), torch.zeros_like(mask))).all()
        seen: list[tuple[int, ...]] = []
        encoder.bert.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
        encoder(longer, longer > 0)
        encoder(torch.zeros_like(longer), longer > 99)
        assert seen == [(3, 32), (3, 32)]  # 12 tokens, not 52


def test_a_checkpoint_of_a_published_tower_needs_no_folder(tmp_path: Path) -> None:
    published_dnabert2(tmp_path, "safetensors")
    data = bpe_data(tmp_path, 30)
    config = ModelConfig(dna="dnabert2", dna_pretrained=str(tmp_path))
    model = build_model(config, data, LossConfig(), (1, 1, 1, 1))
    architecture = json.loads(json.dumps(model.architecture))
    (tmp_path / "model.safetensors").unlink()
    again = build_model(config, data, LossConfig(), (1, 1, 1, 1), architecture)
    again.load_state_dict(model.state_dict())


def published_barcodebert(folder: Path, specials: int, kind: str) -> tuple[object, list[str]]:
    """BarcodeBERT's own checkpoint (kind `pt`) or a Hugging Face folder; returns its model and its vocabulary."""
    from transformers import BertConfig, BertForTokenClassification

    names = {2: ["[MASK]", "[UNK]"], 3: ["<MASK>", "<CLS>", "<UNK>"]}[specials]
    vocabulary = names + ["".join(kmer) for kmer in product("ACGT", repeat=3)]
    config = CONFIG | {"vocab_size": len(vocabulary), "max_position_embeddings": 64}
    torch.manual_seed(1)
    model = BertForTokenClassification(BertConfig(**(config | {"num_labels": 64}))).eval()
    if kind == "pt":
        weights = {f"module.{name}": value for name, value in model.state_dict().items()}
        weights["module.bert.embeddings.position_ids"] = torch.arange(64)[None]
        tree = {"model": weights, "bert_config": config, "config": argparse.Namespace(k_mer=3), "epoch": 1}
        torch.save(tree, folder / "checkpoint_pretraining.pt")
    else:
        model.save_pretrained(folder)
    return model, vocabulary


@pytest.mark.parametrize(("specials", "kind"), [(2, "pt"), (3, "pt"), (3, "folder")])
def test_barcodebert_is_loaded_in_its_vocabulary_order(specials: int, kind: str, tmp_path: Path) -> None:
    from engine.signals.barcodes import make_tokenizer

    published, vocabulary = published_barcodebert(tmp_path, specials, kind)
    config = ModelConfig(dna="barcodebert", dna_pretrained=str(tmp_path))
    encoder = build_dna_encoder(config, KMER_DATA, 8).eval()
    barcodes = ["ACGTTTGGNCCAACGATTTACGGGGACAT", "TTTACG", "CCCCCCCCCCAA"]
    tokens = torch.from_numpy(make_tokenizer(KMER_DATA).encode(barcodes).astype("int64"))
    unknown = specials - 1
    with torch.no_grad():
        features = encoder(tokens, tokens > 0)
        for row, barcode in enumerate(barcodes):
            kmers = [barcode[place : place + 3] for place in range(0, len(barcode) - 2, 3)]
            ids = [vocabulary.index(kmer) if kmer in vocabulary else unknown for kmer in kmers]
            hidden = published.bert(torch.tensor([ids])).last_hidden_state  # type: ignore[attr-defined]
            torch.testing.assert_close(features[row], encoder.project(hidden.mean(1))[0], atol=1e-5, rtol=0)


def test_every_parameter_of_the_berts_trains_and_checkpointing_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(1, 30, (4, 10))
    tokens[1, 6:] = tokens[2, 1:] = 0
    for name, data in (("dnabert2", bpe_data(tmp_path, 30)), ("barcodebert", KMER_DATA)):
        config = ModelConfig(dna=name, dna_width=32, dna_depth=2, dna_heads=4, dropout=0.0)
        encoder = build_dna_encoder(config, data, 8).train()
        gradients = []
        for forget in (False, True):
            encoder.set_grad_checkpointing(forget)
            encoder.zero_grad(set_to_none=True)
            encoder(tokens, tokens > 0).square().sum().backward()
            gradients.append({key: value.grad for key, value in encoder.named_parameters()})
        for key in gradients[0]:
            assert gradients[0][key] is not None, (name, key)
            torch.testing.assert_close(gradients[1][key], gradients[0][key])


def refusals(folder: Path) -> list[tuple[dict[str, Any], DataConfig, str]]:
    """(model options, data, what the one-line error says)."""
    for name in ("good", "empty", "pickled", "cut", "other", "headless", "barcode"):
        (folder / name).mkdir()
    weights = published_dnabert2(folder / "good", "safetensors")
    torch.save({"model": SHAPE}, folder / "pickled" / "pytorch_model.bin")  # an object of a class
    config = json.dumps(GOLDEN["config"])
    (folder / "cut" / "config.json").write_text(config)
    save_file({k: v for k, v in weights.items() if "layer.1.mlp.wo" not in k}, folder / "cut" / "model.safetensors")
    (folder / "other" / "config.json").write_text(json.dumps(GOLDEN["config"] | {"intermediate_size": 63}))
    save_file(weights, folder / "other" / "model.safetensors")
    save_file(weights, folder / "headless" / "model.safetensors")
    published_barcodebert(folder / "barcode", 3, "pt")
    bpe = bpe_data(folder / "good", 30)
    cases: list[tuple[dict[str, Any], DataConfig, str]] = [
        ({"dna": "dnabert2", "dna_pretrained": str(folder / name)}, bpe, message)
        for name, message in [
            ("nowhere", "allowed a local folder"),
            ("empty", "an empty folder; allowed model.safetensors"),
            ("pickled", "is not plain weights"),
            ("cut", "lacks parameter bert.encoder.layer.1.mlp.wo.bias"),
            ("other", "is [128, 48], expected [126, 48]"),
            ("headless", "number of heads is not known"),
        ]
    ]
    barcode = {"dna": "barcodebert", "dna_pretrained": str(folder / "barcode")}
    return [
        *cases,
        ({"dna": "dnabert2", "dna_pretrained": str(folder / "good")}, KMER_DATA, "the tower has 30 tokens"),
        ({"dna_pretrained": str(folder / "good")}, KMER_DATA, "with model.dna=kmer_bag"),
        ({"dna": "dnabert2", "dna_width": 32, "dna_heads": 5}, bpe, "must divide"),
        (barcode, DataConfig(kmer=4, kmer_stride=4), "a vocabulary of 67 does not fit data.kmer=4, allowed 258 or 259"),
        (barcode, DataConfig(kmer=3, kmer_stride=1), "do not overlap"),
        (barcode, DataConfig(kmer=3, kmer_stride=3), "220 tokens of data.max_nucleotides do not fit 64 positions"),
        (barcode, bpe, "do not overlap"),
    ]


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    for model, data, message in refusals(tmp_path):
        with pytest.raises(ValueError) as caught:
            build_model(ModelConfig(**model), data, LossConfig(), (1, 1, 1, 1))
        assert message in str(caught.value) and "\n" not in str(caught.value), (model, str(caught.value))
