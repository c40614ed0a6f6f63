"""Predictions, baselines and tables: planted features, hand-computed answers, and one real run from shards."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.taxonomy import RANKS, Taxonomy
from train import evaluation, metrics
from train.evaluation import compare, measure, peers, predict, report, subsets, tables
from train.evaluation.scoring import Scorer

NAMES = [("A", "Aa", "Aaa", f"Aaa s{i}") for i in range(3)] + [("B", "Bb", "Bbb", f"Bbb s{i}") for i in range(3)]
LABELS = np.array([0, 1, 2, 3, 4, 5, 0, 3])  # species of eight specimens
HAS_IMAGE = np.array([1, 1, 1, 1, 1, 1, 0, 1], dtype=bool)
HAS_DNA = np.array([1, 1, 1, 1, 1, 0, 1, 1], dtype=bool)
IMAGE_SAYS = np.array([0, 1, 0, 3, 3, 5, 0, 3])  # wrong for specimens 2 and 4, in the right genus
NOISY_IMAGE_SAYS = np.array([3, 4, 5, 3, 3, 5, 0, 0])
DNA_SAYS = np.array([0, 1, 2, 3, 4, 0, 0, 3])
NOISY_DNA_SAYS = np.array([0, 1, 2, 0, 4, 0, 1, 3])


def columns(rows: list[tuple[str | None, ...]]) -> dict[str, list[str | None]]:
    return {rank: [row[i] for row in rows] for i, rank in enumerate(RANKS)}


class PlantedModel(torch.nn.Module):
    """Species i is the i-th axis in every modality; an image's first pixel and a barcode's first token name it."""

    logit_scale = torch.tensor(10.0)

    def __init__(self, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.species = {name: i for i, name in enumerate(taxonomy.names[3])}
        self.rows_seen = 0

    def tokenizer(self, captions: list[str]) -> Tensor:
        places = [next((i for name, i in self.species.items() if c.endswith(name)), 6 + len(c)) for c in captions]
        return torch.tensor(places)[:, None]

    def encode_text(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens[:, 0], 16).float()

    def encode_image(self, image: Tensor) -> Tensor:
        self.rows_seen += len(image)
        return F.one_hot(image[:, 0, 0, 0].long(), 16).float()

    def encode_dna(self, tokens: Tensor, mask: Tensor) -> Tensor:
        assert mask.any(dim=1).all(), "a specimen without a barcode entered the encoder"
        return F.one_hot(tokens[:, 0] - 1, 16).float()

    def fuse(self, image: Tensor, dna: Tensor) -> Tensor:
        return F.normalize(0.1 * image + dna, dim=1)


@pytest.fixture
def taxonomy() -> Taxonomy:
    return Taxonomy.build(columns(list(NAMES)))


def batches(taxonomy: Taxonomy, size: int = 3) -> Iterator[dict[str, Any]]:
    """The eight specimens as padded batches; what is missing holds rubbish."""
    labels = taxonomy.encode(columns([NAMES[i] for i in LABELS]))
    for first in range(0, 8, size):
        rows = np.arange(first, min(8, first + size))
        pad = size - len(rows)

        def padded(values: np.ndarray, fill: int = 0, rows: np.ndarray = rows, pad: int = pad) -> Tensor:
            chosen = values[rows]
            return torch.from_numpy(np.concatenate([chosen, np.full((pad, *chosen.shape[1:]), fill, chosen.dtype)]))

        def image(species: np.ndarray) -> np.ndarray:
            return np.broadcast_to(species.astype(np.uint8)[:, None, None, None], (8, 2, 2, 3)).copy()

        def tokens(species: np.ndarray) -> np.ndarray:
            return (np.where(HAS_DNA, species + 1, 0))[:, None]

        yield {
            "keys": [f"k{i}" for i in rows] + [""] * pad,
            "valid": padded(np.ones(8, dtype=bool)),
            "labels": padded(labels, -1),
            "has_image": padded(HAS_IMAGE),
            "has_dna": padded(HAS_DNA),
            "image": padded(image(IMAGE_SAYS)),
            "image_noisy": padded(image(NOISY_IMAGE_SAYS)),
            "dna_tokens": padded(tokens(DNA_SAYS)),
            "dna_mask": padded(tokens(DNA_SAYS) > 0),
            "dna_tokens_noisy": padded(tokens(NOISY_DNA_SAYS)),
            "dna_mask_noisy": padded(tokens(NOISY_DNA_SAYS) > 0),
        }


@pytest.fixture
def encoded(taxonomy: Taxonomy, monkeypatch: pytest.MonkeyPatch) -> predict.Encoded:
    monkeypatch.setattr(predict, "evaluation_batches", lambda *arguments: batches(taxonomy))
    index = pa.table({"key": [f"k{i}" for i in range(8)]})
    return predict.encode_split(PlantedModel(taxonomy), index, taxonomy, None)


@pytest.fixture
def parts() -> measure.Subsets:
    group = np.array([0, 0, 1, 2, 3, 4, 5, 2])
    novel = np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=bool)
    return measure.Subsets(group=group, novel=novel, both=HAS_IMAGE & HAS_DNA)


@pytest.fixture
def rankings(taxonomy: Taxonomy, encoded: predict.Encoded) -> measure.Rankings:
    model = PlantedModel(taxonomy)
    return measure.rank_queries(model, Scorer(model, taxonomy, model.tokenizer), encoded)


@pytest.fixture
def values(rankings: measure.Rankings, encoded: predict.Encoded, parts: measure.Subsets) -> dict[str, float]:
    return measure.measure("test", rankings, encoded, parts, resamples=50)


def test_every_specimen_is_encoded_once_and_missing_ones_never(taxonomy: Taxonomy, encoded: predict.Encoded) -> None:
    np.testing.assert_array_equal(encoded.has_image, HAS_IMAGE)
    np.testing.assert_array_equal(encoded.has_dna, HAS_DNA)
    np.testing.assert_array_equal(encoded.features["image"].argmax(1)[HAS_IMAGE], IMAGE_SAYS[HAS_IMAGE])
    np.testing.assert_array_equal(encoded.features["dna_noisy"].argmax(1)[HAS_DNA], NOISY_DNA_SAYS[HAS_DNA])
    assert not encoded.features["image"][~HAS_IMAGE].any()
    model = PlantedModel(taxonomy)
    for batch in batches(taxonomy):
        predict.encode_batch(model, batch, noisy=False)
    assert model.rows_seen == HAS_IMAGE.sum()


def test_average_is_the_normalised_mean_and_needs_both(taxonomy: Taxonomy, encoded: predict.Encoded) -> None:
    model = PlantedModel(taxonomy)
    average = encoded.query("average", "noisy_both", model.fuse)
    both = HAS_IMAGE & HAS_DNA
    assert average.shape == (both.sum(), 16)
    first = np.zeros(16)
    first[[NOISY_IMAGE_SAYS[0], NOISY_DNA_SAYS[0]]] = 0.5**0.5
    np.testing.assert_allclose(average[0], first, atol=1e-6)
    fused = encoded.query("fused", "noisy_both", model.fuse)
    np.testing.assert_array_equal(fused.argmax(1), NOISY_DNA_SAYS[both])


def test_metrics_by_hand(values: dict[str, float]) -> None:
    assert values["test/image/clean/rows"] == 7
    assert values["test/image/clean/species/top1"] == pytest.approx(5 / 7)
    assert values["test/image/clean/genus/top1"] == 1.0
    # species 0..5 in turn, specimens with an image: 1/1, 1/1, 0/1, 2/2, 0/1, 1/1
    assert values["test/image/clean/species/macro_top1"] == pytest.approx(4 / 6)
    assert values["test/dna/noisy/species/top1"] == pytest.approx(5 / 7)
    assert values["test/novel/dna/noisy/species/top1"] == pytest.approx(2 / 4)
    assert values["test/both/image/noisy/species/top1"] == pytest.approx(1 / 6)
    assert values["test/fused/noisy_both/species/top1"] == pytest.approx(5 / 6)
    assert values["test/dna/clean/species/taxa"] == 5
    assert values["test/dna/clean/global_exact/top1"] == values["test/prompt/dna/clean/global_exact/top1"] == 1.0
    assert values["test/dna/noisy/species/top1_low"] <= 5 / 7 <= values["test/dna/noisy/species/top1_high"]
    assert "test/novel/image/clean/rows" not in values


def test_quick_validation_agrees(taxonomy: Taxonomy, values: dict[str, float]) -> None:
    model = PlantedModel(taxonomy).train()
    quick = predict.accuracy_of(model, taxonomy, batches(taxonomy), model.tokenizer)
    assert model.training
    for query in ("image", "dna", "fused"):
        for rank in RANKS:
            assert quick[f"val/{query}/clean/{rank}/top1"] == pytest.approx(values[f"test/{query}/clean/{rank}/top1"])
    assert quick["val/fused/clean/species/rows"] == 6


def specimen_index() -> pa.Table:
    return pa.table({rank: [NAMES[i][r] for i in LABELS] for r, rank in enumerate(RANKS)})


def test_predictions_name_and_place_everything(
    taxonomy: Taxonomy, encoded: predict.Encoded, rankings: measure.Rankings, parts: measure.Subsets
) -> None:
    table = report.predictions(specimen_index(), encoded, rankings, taxonomy, parts)
    assert table.num_rows == 8
    rows = table.to_pylist()
    assert rows[2]["true_species"] == "Aaa s2" and rows[2]["image_clean_species"] == "Aaa s0"
    assert rows[2]["image_clean_species_position"] > 0 == rows[2]["dna_clean_species_position"]
    assert 0 < rows[2]["image_clean_species_score"] <= 1
    assert rows[5]["dna_clean_species"] is rows[5]["fused_clean_species_score"] is None
    assert all(field.metadata[b"description"] for field in table.schema)
    assert len(table.column_names) == 9 + 10 * 4 * 3


def test_fusion_is_compared_with_the_modality_that_val_prefers(
    taxonomy: Taxonomy, encoded: predict.Encoded, rankings: measure.Rankings, parts: measure.Subsets
) -> None:
    table = report.predictions(specimen_index(), encoded, rankings, taxonomy, parts)
    val = {f"val/both/{name}/noisy/{rank}/top1": v for name, v in (("image", 0.9), ("dna", 0.2)) for rank in RANKS}
    found = compare.compare_fused(val, table, resamples=100)["species"]
    assert found.modality == "image"  # worse on the test rows, but that is not asked
    assert found.difference.value == pytest.approx(5 / 6 - 1 / 6)
    assert (found.difference.rows, found.difference.groups) == (6, 4)
    assert found.difference.low <= found.difference.value <= found.difference.high
    with pytest.raises(ValueError, match="val/both/image/noisy/order/top1"):
        compare.compare_fused({}, table)
    text = tables.comparison_text(compare.compare_fused(val, table, resamples=100))
    assert "| species | image" in text and "+66.7" in text


def test_tables_show_the_rows_of_the_method(values: dict[str, float]) -> None:
    text = tables.paper_tables(values, "test", "rollup")
    first, second = text.split("Table 2.")
    rows = [line for line in first.splitlines() if line.startswith("| image") or line.startswith("| dna")]
    assert [row.split("|")[2].strip() for row in rows] == ["clean", "noisy image", "clean", "noisy dna"]
    assert "71.4/100.0" in rows[0] and rows[0].endswith(" 7 |")
    conditions = [line.split("|")[1:3] for line in second.splitlines() if line.count("|") == 10][2:]
    assert len(conditions) == 10 and conditions[-1][0].strip() == "gated fusion"
    assert all(line.endswith(" 6 |") for line in second.splitlines() if line.startswith("| gated"))
    assert len({len(line) for line in first.splitlines() if line.startswith("|")}) == 1
    assert "Table 2" not in tables.paper_tables({k: v for k, v in values.items() if "/dna/" in k}, "test")


def test_nearest_neighbour_equals_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "BLOCK", 7)
    rng = np.random.default_rng(0)
    queries, references = (F.normalize(torch.from_numpy(rng.normal(size=(n, 8)))).numpy() for n in (20, 31))
    labels = np.where(rng.random((31, 4)) < 0.6, rng.integers(0, 9, (31, 4)), -1)
    labels[:, 3] = -1
    found = peers.nearest_labels((20, lambda rows: queries[rows]), (31, lambda rows: references[rows]), labels)
    for row, query in enumerate(queries):
        for rank in range(3):
            near = max((m for m in range(31) if labels[m, rank] >= 0), key=lambda m: float(references[m] @ query))
            assert found[row, rank] == labels[near, rank]
    assert (found[:, 3] == -1).all()


def test_kmer_features_count_clean_kmers() -> None:
    features = peers.kmer_features(["ACGTACGTAC", "ACGTANGTACG", "", "ACG"])
    assert features.shape == (4, 4096)
    assert (features[0] > 0).sum() == 4  # five windows, the first occurs again at the end
    assert features[0].max() == pytest.approx(2 / 7**0.5)
    assert not features[1:].any()  # the N leaves no window of six


def test_kmer_peer_compares_equal_barcodes_once_and_takes_the_first() -> None:
    rng = np.random.default_rng(1)
    library = ["".join(rng.choice(list("ACGT"), 60)) for _ in range(3)]
    labels = np.array([[0, 5, -1, 7], [1, 6, 2, 8], [0, 5, 3, 9]])
    doubled = peers.kmer_peer(
        [library[1], library[0][5:], library[1]], [*library, library[1]], np.vstack([labels, [9] * 4])
    )
    np.testing.assert_array_equal(doubled[0], labels[1])
    np.testing.assert_array_equal(doubled[2], labels[1])
    assert doubled[1, 0] == 0 and doubled[1, 2] >= 0


def test_groups_are_barcodes_and_specimens_without_one_stand_alone() -> None:
    assert subsets.barcode_groups(["AC", "", "AC", "", "GT"]).tolist() == [0, 1, 0, 2, 3]


def test_provisional_names_are_not_scored_as_species() -> None:
    names = ["Aedes vexans", "Aedes cf. vexans", "Aedes sp. 1ES", None, "Aedes sp. 1ES", "vexans"]
    index = pa.table({"genus": ["Aedes"] * 6, "species": names})
    scored, provisional = subsets.without_provisional(index)
    assert scored["species"].to_pylist() == ["Aedes vexans", None, None, None, None, "vexans"]
    assert scored["genus"].to_pylist() == ["Aedes"] * 6
    assert provisional == {"Aedes sp. 1ES": 2, "Aedes cf. vexans": 1}
    (told,) = evaluation.provisional_text(provisional)
    assert "3 specimens whose 2 labels" in told and evaluation.provisional_text({}) == []


def test_labels_unknown_to_the_model_are_named_or_refused(taxonomy: Taxonomy) -> None:
    partly = pa.table(columns([NAMES[0], ("A", "Aa", "Aaa", "Aaa new"), ("A", "Aa", "Aaa", "Aaa new"), (None,) * 4]))
    assert subsets.unknown_names(partly, taxonomy) == {"species": {"Aaa new": 2}}
    strangers = pa.table(columns([("Z", "Zz", None, "Zzz s"), ("Y", None, None, None)]))
    with pytest.raises(ValueError, match=r"knows none of the labels .* 0% of 2 labelled specimens"):
        subsets.unknown_names(strangers, taxonomy)


def test_picture_is_drawn(values: dict[str, float], tmp_path: Path) -> None:
    report.picture(values, "test", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    report.picture({}, "test", tmp_path / "b.png")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from engine.datasets.simulated import open_dataset
    from engine.ingest import IngestOptions, ingest

    folder = tmp_path_factory.mktemp("evaluation") / "shards"
    ingest(open_dataset([], num_specimens=240, num_species=12), folder, IngestOptions(parallel=False))
    return folder


@pytest.fixture(scope="module")
def saved(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model with random weights."""
    from engine.pipeline import label_columns, load_index, select_split
    from train import checkpoint
    from train.config import Config, override

    config = override(Config(), [f"data.shards={shards}", "data.image_size=32", "eval.bootstrap=20"])
    taxonomy = Taxonomy.build(label_columns(select_split(load_index([shards]), "train")))
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoint.save(folder, checkpoint.build(config, taxonomy), config, taxonomy, step=0, state=None)
    return folder


def run_command(*arguments: object) -> int:
    from train.evaluate import main

    return main([str(argument) for argument in arguments])


def test_command_from_shards_to_tables(
    shards: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("--checkpoint", saved, "--shards", shards, "--out", tmp_path, "--batch-size", 32) == 0
    printed = capsys.readouterr().out
    for words in ("Table 1.", "Table 2.", "Baselines", "6-mers", "colour histogram", "95% interval"):
        assert words in printed
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    table = pq.read_table(tmp_path / "predictions.parquet")
    assert len(table) == numbers["test/dna/clean/rows"] + (~np.asarray(table["has_dna"])).sum()
    right = np.asarray(table["dna_noisy_species_position"].drop_null()) == 0
    assert numbers["test/dna/noisy/species/top1"] == pytest.approx(right.mean())
    assert numbers["test/dna/nearest_6mer/clean/order/top1"] > numbers["test/dna/clean/order/top1"]
    assert "## All specimens, prompt, macro over taxa" in (tmp_path / "tables.md").read_text()
    assert metrics.MISSED == 2**31 - 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--checkpoint": "nowhere"}, "no checkpoint: nowhere does not exist"),
        ({"--shards": "nowhere"}, "nowhere"),
        ({"--split": "test_unseen"}, "splits there: test, train, val"),
        ({"--device": "abacus"}, "--device 'abacus'"),
        ({"--out": __file__}, "the folder cannot be made (File exists)"),
        ({"--batch-size": "-3"}, "--batch-size must be positive, got -3"),
    ],
)
def test_user_errors_take_one_line(
    shards: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], words: str
) -> None:
    options = {"--checkpoint": str(saved), "--shards": str(shards), "--out": str(tmp_path)} | change
    assert run_command(*(part for option in options.items() for part in option)) == 2
    message = capsys.readouterr().err.strip()
    assert words in message and message.startswith("error: ") and "\n" not in message


def test_checkpoint_of_another_format_version_is_refused(
    shards: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    other = shutil.copytree(saved, tmp_path / "other")
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"format_version": 99}))
    assert run_command("--checkpoint", other, "--shards", shards, "--out", tmp_path / "out") == 2
    assert "format version is 99" in capsys.readouterr().err
