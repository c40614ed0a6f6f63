"""The benchmark command: what is asked, what an encoder scores, and what a user reads."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.train.small import small_config, small_session
from train import benchmark
from train.evaluation.peers import kmer_features
from train.models import checkpoint
from train.tasks import bioscan
from train.tasks.bioscan import Part, Task


def part(rows: list[tuple[str, str, str]]) -> Part:
    sequences, genus, species = zip(*rows, strict=True)
    return Part(list(sequences), np.array(genus), np.array(species))


def planted(seed: int = 0) -> Task:
    """Genera far apart, species near in them, barcodes nearer: every answer is right."""
    rng = np.random.default_rng(seed)

    def changed(sequence: str, letters: int) -> str:
        row = list(sequence)
        for place in rng.choice(len(row), letters, replace=False):
            row[place] = rng.choice(list("ACGT"))
        return "".join(row)

    rows: dict[str, list[tuple[str, str, str]]] = {"train": [], "seen": [], "unseen": []}
    for genus in range(4):
        root = "".join(rng.choice(list("ACGT"), 300))
        for number in range(3):
            own = changed(root, 15)
            names = (f"G{genus}", f"G{genus} s{number}")
            for copy in range(4):
                split = "unseen" if number == 2 else "seen" if copy == 3 else "train"
                rows[split].append((changed(own, 2), *names))
    return Task(*(part(rows[name]) for name in ("train", "seen", "unseen")))


def test_an_encoder_that_keeps_barcodes_apart_answers_all() -> None:
    found = bioscan.task_one(planted(), kmer_features)
    assert (found["probe"], found["nearest"], found["unseen_genus"]) == (1.0, 1.0, 1.0)


def test_an_encoder_that_sees_nothing_answers_by_chance() -> None:
    blind = bioscan.task_one(planted(), lambda sequences: np.ones((len(sequences), 4), dtype=np.float32))
    assert blind["unseen_genus"] == 0.25


def test_clusters_are_the_species_where_features_are() -> None:
    pytest.importorskip("sklearn")

    class Plain:
        def __init__(self, **_: object) -> None: ...

        def fit_transform(self, features: np.ndarray) -> np.ndarray:
            return features

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", type("umap", (), {"UMAP": Plain}))
        assert bioscan.task_two(planted(), kmer_features)["ami"] > 0.95
        patch.setitem(sys.modules, "umap", None)
        with pytest.raises(ValueError, match=r"no umap-learn.*pip install.*benchmarks"):
            bioscan.task_two(planted(), kmer_features)


def test_copies_provisional_names_and_strangers_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = "ACGTTGCA" * 9, "ACCTTGCA" * 9, "ACCTTGGA" * 9
    rows = [
        ("train", one, "Aa", "Aa b"),
        ("train", one, "Aa", "Aa b"),
        ("test", one, "Aa", "Aa b"),  # a copy of train
        ("test", two, "Aa", "Aa b"),
        ("test", three, "Aa", "Aa sp. 3"),
        ("test_unseen", three, "Aa", "Aa c"),
        ("test_unseen", two, "Zz", "Zz d"),  # a genus that train lacks
    ]
    split, barcode, genus, species = (list(column) for column in zip(*rows, strict=True))
    index = pa.table({"split": split, "barcode": barcode, "genus": genus, "species": species})
    monkeypatch.setattr(bioscan, "read_barcodes", lambda index: index["barcode"].to_pylist())
    monkeypatch.setattr(bioscan.barcodes, "orient_batch", lambda sequences: list(sequences))
    task = bioscan.read_task(index, "test", "test_unseen")
    assert (task.train.barcodes, task.seen.barcodes, task.unseen.barcodes) == ([one], [two], [three])
    with pytest.raises(ValueError, match=r"0 of train and 1 of test_unseen"):
        bioscan.read_task(index, "train", "test_unseen")


@pytest.mark.middle
def test_the_command_writes_a_line_for_each_encoder(
    simulated_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = small_session(small_config(simulated_shards, "model.dna=barcodebert", "data.kmer_stride=4"))
    folder = tmp_path / "mine"
    folder.mkdir()
    checkpoint.save(folder, session.model, session.config, session.taxonomy, step=0, state=None)
    monkeypatch.setattr(bioscan, "read_task", lambda *_: planted())
    line = ["--shards", str(simulated_shards), "--checkpoint", str(folder), "--out", str(tmp_path / "out")]
    assert benchmark.main(line) == 0
    assert "| 6-mer counts | 100.0% | 100.0% | 100.0% |" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "benchmark-1.json").read_text())
    assert {"mine", "random weights (mine)", "6-mer counts", "VSEARCH, nearest"} == set(found)


def test_features_of_a_tower_do_not_depend_on_the_batch(simulated_shards: Path) -> None:
    config = small_config(simulated_shards, "model.dna=barcodebert", "data.kmer_stride=4")
    model = small_session(config).model.eval()
    represent = bioscan.tower_features(model, config.data)
    sequences = planted().train.barcodes
    alone = np.concatenate([represent([sequence]) for sequence in sequences])
    assert np.allclose(represent(sequences), alone, atol=1e-5)
    assert represent(sequences).shape == (len(sequences), 64)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--unseen", "nowhere"], "no specimen of split 'nowhere'"),
        (["--genera", "-1"], "--genera must not be negative"),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str], said: str, simulated_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--shards", str(simulated_shards), *options]) == 2
    assert said in capsys.readouterr().err
    assert torch.is_grad_enabled()
