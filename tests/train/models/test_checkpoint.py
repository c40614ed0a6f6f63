"""A checkpoint folder that cannot be used says which file is wrong, in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.signals.barcodes import make_tokenizer
from tests.train.small import small_config, small_session
from train.config import Config, absolute_paths, override
from train.evaluate import main
from train.models import checkpoint

pytestmark = pytest.mark.middle  # saving asks git for the code's version


@pytest.fixture(scope="module")
def saved(simulated_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function that writes the checkpoint of an untrained small model into a folder."""
    session = small_session(small_config(simulated_shards))

    def write(folder: Path) -> Path:
        folder.mkdir()
        checkpoint.save(folder, session.model, session.config, session.taxonomy, step=0, state=None)
        return folder

    return write


def test_what_is_saved_is_loaded(saved: Callable[[Path], Path], tmp_path: Path) -> None:
    first, second = checkpoint.load(saved(tmp_path / "a")), checkpoint.load(saved(tmp_path / "model").parent)
    assert first.taxonomy.fingerprint == second.taxonomy.fingerprint and first.config == second.config
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    modes = {path.stat().st_mode for path in (tmp_path / "a").iterdir()}
    assert len(modes) == 1, "weights are read by whoever may read the rest"


def change(name: str, **values: object) -> Callable[[Path], object]:
    """Replace entries of a JSON file."""
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def drop(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50_000])


def other_width(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"dna_width": 64', '"dna_width": 128'))


def other_taxonomy(folder: Path) -> None:
    tree = json.loads((folder / "taxonomy.json").read_text())
    name = next(word for word in json.dumps(tree).split('"') if word.endswith("idae"))
    (folder / "taxonomy.json").write_text(json.dumps(tree).replace(name, "Otheridae"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("meta.json", format_version=9), "checkpoint format version is 9, this code reads 1"),
        (write("meta.json", "{"), "meta.json is no JSON"),
        (write("meta.json", "[1]"), "meta.json holds a list; allowed: a JSON object"),
        (write("meta.json", '{"format_version": 1}'), "meta.json lacks taxonomy_fingerprint, architecture"),
        (change("meta.json", architecture={}), "meta.json: its architecture cannot be built"),
        (write("config.json", '{"a"'), "config.json is no JSON"),
        (change("config.json", colour=1), "config.json: unknown configuration key 'colour'"),
        (write("taxonomy.json", "{"), "taxonomy.json"),
        (other_taxonomy, "taxonomy.json is not the one the weights were trained with"),
        (drop("config.json"), "checkpoint lacks config.json"),
        (drop("taxonomy.json"), "checkpoint lacks taxonomy.json"),
        (drop("model.safetensors"), "checkpoint lacks model.safetensors"),
        (drop("meta.json"), "holds no meta.json"),
        (write("model.safetensors", "abc"), "model.safetensors cannot be read"),
        (cut_weights, "model.safetensors cannot be read"),
        (other_width, "weights do not fit the configuration, e.g. dna_encoder."),
    ],
)
def test_damage_is_message_in_one_line(
    damage: Callable[[Path], object],
    message: str,
    saved: Callable[[Path], Path],
    simulated_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = saved(tmp_path / "model")
    damage(folder)
    arguments = ["--checkpoint", str(folder), "--shards", str(simulated_shards), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line and str(folder) in line


def test_a_tokenizer_travels_with_the_weights(simulated_shards: Path, tmp_path: Path) -> None:
    """The file that a run used may be gone when its model is loaded elsewhere."""
    from tokenizers import Tokenizer, models, trainers

    trained = Tokenizer(models.BPE(unk_token="[UNK]"))
    trained.train_from_iterator(["ACGTACGTTTGA"] * 9, trainers.BpeTrainer(vocab_size=12, special_tokens=["[UNK]"]))
    file = tmp_path / "bpe.json"
    trained.save(str(file))
    session = small_session(small_config(simulated_shards, "data.tokenizer=bpe", f"data.tokenizer_file={file}"))
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    checkpoint.save(folder, session.model, session.config, session.taxonomy, step=0, state=None)
    file.unlink()
    loaded = checkpoint.load(folder)
    assert loaded.config.data.tokenizer_file == str(folder / "tokenizer.json")
    assert make_tokenizer(loaded.config.data).vocab_size == trained.get_vocab_size() + 1


def test_workers_are_given_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in another directory than the driver; names of a hub and tags are no paths."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"")
    paths = ["data.shards=a,s3://b/c", "data.tokenizer_file=t.json", "model.dna_pretrained=d", "run.storage=r"]
    ours = absolute_paths(
        override(Config(), [*paths, "model.image_text=local-dir:m", "model.pretrained=w.safetensors"])
    )
    here = str(tmp_path.resolve())
    assert ours.data.shards == (f"{here}/a", "s3://b/c") and ours.data.tokenizer_file == f"{here}/t.json"
    assert ours.model.dna_pretrained == f"{here}/d" and ours.run.storage == f"{here}/r"
    assert ours.model.image_text == f"local-dir:{here}/m" and ours.model.pretrained == f"{here}/w.safetensors"
    plain = absolute_paths(override(Config(), ["model.image_text=ViT-B-16", "model.pretrained=openai"]))
    assert (plain.model.image_text, plain.model.pretrained, plain.data.tokenizer_file) == ("ViT-B-16", "openai", "")
