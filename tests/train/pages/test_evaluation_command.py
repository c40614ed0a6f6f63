"""The evaluation command on real shards, from a checkpoint to a page."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from engine.specimens.taxonomy import Taxonomy
from train import metrics
from train.inference.calibration import Calibration

pytestmark = pytest.mark.middle


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from engine.ingest.job import IngestOptions, ingest
    from engine.simulated.source import open_dataset

    folder = tmp_path_factory.mktemp("evaluation") / "shards"
    ingest(open_dataset([], num_specimens=240, num_species=12), folder, IngestOptions(parallel=False))
    return folder


@pytest.fixture(scope="module")
def saved(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(shards, tmp_path_factory.mktemp("checkpoint"))


def untrained(shards: Path, folder: Path) -> Path:
    """A checkpoint of a model with random weights that knows the taxa of train."""
    from engine.batches.pipeline import label_columns, load_index, select_split
    from train.config import Config, override
    from train.models import checkpoint

    config = override(Config(), [f"data.shards={shards}", "data.image_size=32", "eval.bootstrap=20"])
    taxonomy = Taxonomy.build(label_columns(select_split(load_index([shards]), "train")))
    torch.manual_seed(0)
    checkpoint.save(folder, checkpoint.build(config, taxonomy), config, taxonomy, step=0, state=None)
    return folder


def run_command(*arguments: object) -> int:
    from train.evaluate import main

    return main([str(argument) for argument in arguments])


def test_command_from_shards_to_tables(
    shards: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert (
        run_command(
            "--checkpoint",
            saved,
            "--shards",
            shards,
            "--out",
            tmp_path,
            "--batch-size",
            32,
            "--retrieval",
            "--probes",
            "--calibration",
            "--curves",
        )
        == 0
    )
    printed = capsys.readouterr().out
    for words in ("Table 1.", "Table 2.", "Baselines", "6-mers", "colour histogram", "95% interval"):
        assert words in printed
    assert "damaged" not in caplog.text  # what a part does not need is not read, nor told of as broken
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    table = pq.read_table(tmp_path / "predictions.parquet")
    assert len(table) == numbers["test/dna/clean/rows"] + (~np.asarray(table["has_dna"])).sum()
    right = np.asarray(table["dna_noisy_species_position"].drop_null()) == 0
    assert numbers["test/dna/noisy/species/top1"] == pytest.approx(right.mean())
    assert numbers["test/dna/nearest_6mer/clean/order/top1"] > numbers["test/dna/clean/order/top1"]
    assert "## All specimens, prompt, macro over taxa" in (tmp_path / "tables.md").read_text()
    assert metrics.MISSED == 2**31 - 1
    page = (tmp_path / "report.html").read_text()
    assert "test/retrieval/image_to_text/seen/species/macro_top5" in numbers
    assert numbers["test/probes/dna/nearest/order/top1"] == numbers["test/dna/nearest_feature/clean/order/top1"]
    for damage, query, condition in (
        ("preset/0", "dna", "clean"),
        ("preset/1", "dna", "noisy"),
        ("blur/1", "image", "clean"),
        ("blur/5", "image", "noisy"),
        ("preset/1", "fused", "noisy_dna"),
        ("preset/1", "average", "noisy_dna"),
    ):
        for rank in ("order", "genus", "species"):  # the pipeline damages by itself, from the same keys
            curve, own = f"test/curves/{damage}/{query}/{rank}/top1", f"test/{query}/{condition}/{rank}/top1"
            assert numbers[curve] == pytest.approx(numbers[own]), curve
    assert 0 <= numbers["test/curves/fragment/dna/species/area"] <= 1
    gain = numbers["test/curves/preset/0/fused_minus_dna/species/difference"]
    assert gain == pytest.approx(numbers["test/fused/clean/species/top1"] - numbers["test/both/dna/clean/species/top1"])
    fitted = Calibration.load(saved / "calibration.json")
    assert set(fitted.queries) == {"image", "dna", "average", "fused", "pooled", "dna+library", "pooled+library"}
    assert fitted.disagreement is not None
    assert {name for name, one in fitted.queries.items() if one.pool} == {"pooled", "dna+library", "pooled+library"}
    assert 0 <= numbers["test/calibration/pooled+library/species/ece"] <= 1
    assert 0 <= numbers["test/calibration/fused/species/ece"] <= 1
    assert numbers["test/calibration/dna/novelty/withheld/rows"] > 0
    assert "In short" in page and page.count("<svg") > 4
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "features").exists()


def test_calibration_with_a_library_of_ones_own(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from engine.batches.pipeline import load_index
    from train.evaluation.subsets import read_barcodes
    from train.reference import Library

    index = load_index([shards])  # every split: what is asked about would find itself
    checksum = Library.build(index, read_barcodes(index)).save(tmp_path / "library")
    model, fitted = untrained(shards, tmp_path), []
    for options in ((), ("--library", tmp_path / "library")):
        arguments = ("--shards", shards, "--out", tmp_path / "out", "--calibration", "--no-baselines", *options)
        assert run_command("--checkpoint", model, *arguments) == 0
        fitted.append(json.loads((model / "calibration.json").read_text()))
    of = [one.pop("library") for one in fitted]
    assert fitted[0] == fitted[1]  # what is left of the library is the train split
    assert of[0] == {"name": "training split", "records": of[1]["records"], "checksum": ""}
    assert of[1]["name"] == "library" and of[1]["checksum"] == checksum
    asked = sum(split != "train" for split in index["split"].to_pylist())
    assert f"{asked} of the library's {len(index)} specimens are asked about" in caplog.text


def test_species_that_the_model_was_never_shown(shards: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(shards, tmp_path / "shards"))
    index = pq.read_table(other / "index.parquet")
    species, split = (np.array(index[name].to_pylist(), dtype=object) for name in ("species", "split"))
    gone = sorted(set(species[split == "test"]) - {None})[:3]
    hidden = np.isin(species.astype(str), gone)
    split[hidden & (split == "test")] = "test_unseen"
    split[hidden & (split == "val")] = "other_heldout"
    keys = np.flatnonzero(hidden & (split == "train"))
    split[keys] = "key_unseen"
    place, column = (
        index.schema.get_field_index("split"),
        pa.array(split.tolist()).cast(index.schema.field("split").type),
    )
    pq.write_table(index.set_column(place, index.schema.field("split"), column), other / "index.parquet")
    model = untrained(other, tmp_path)
    arguments = ("--shards", other, "--out", tmp_path / "out", "--calibration", "--retrieval", "--no-baselines")
    assert run_command("--checkpoint", model, *arguments) == 0
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert numbers["test/calibration/unseen_are_real"] == 1
    withheld, seen = (numbers[f"test/calibration/dna/novelty/{part}/rows"] for part in ("withheld", "seen"))
    assert 0 < withheld <= (split == "test_unseen").sum() and withheld / (withheld + seen) == pytest.approx(
        0.2, abs=0.1
    )
    both = [numbers[f"test/retrieval/dna_to_dna/{part}/species/macro_top1"] for part in ("seen", "unseen", "harmonic")]
    assert both[1] > 0 and both[2] == pytest.approx(2 * both[0] * both[1] / (both[0] + both[1]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--checkpoint": "nowhere"}, "no checkpoint: nowhere does not exist"),
        ({"--shards": "nowhere"}, "nowhere"),
        ({"--split": "val", "--calibration": None}, "the calibration is fitted on val: got --split val"),
        ({"--split": "test_unseen"}, "splits there: test, train, val"),
        ({"--device": "abacus"}, "--device 'abacus'"),
        ({"--out": __file__}, "the folder cannot be made (File exists)"),
        ({"--batch-size": "-3"}, "--batch-size must be positive, got -3"),
        ({"--library": "nowhere"}, "--library nowhere is what --calibration fits with: give that, too"),
        ({"--calibration": None, "--no-baselines": None, "--library": "nowhere"}, "nowhere/manifest.json"),
    ],
)
def test_user_errors_take_one_line(
    shards: Path,
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str | None],
    words: str,
) -> None:
    options = {"--checkpoint": str(saved), "--shards": str(shards), "--out": str(tmp_path)} | change
    assert run_command(*(part for option in options.items() for part in option if part is not None)) == 2
    message = capsys.readouterr().err.strip()
    assert words in message and message.startswith("error: ") and "\n" not in message


def test_checkpoint_of_another_format_version_is_refused(
    shards: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(saved, tmp_path / "other")
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"format_version": 99}))
    assert run_command("--checkpoint", other, "--shards", shards, "--out", tmp_path / "out") == 2
    assert "format version is 99" in capsys.readouterr().err
