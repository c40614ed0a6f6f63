"""Models taken out and brought back: the Hugging Face folder, MLflow's registry and its pyfunc."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import ModelCard
from mlflow import MlflowClient

from serve.answers.answer import Query
from serve.answers.predictor import Predictor
from serve.export import REQUIREMENTS, export_folder, input_example, main, register
from serve.models.registry import resolve_checkpoint
from tests.conftest import ROOT
from tests.serve.conftest import Served
from train.inference.calibration import FILE
from train.models.checkpoint import CONFIG, META, STATE, WEIGHTS

pytestmark = pytest.mark.middle


def same(one: Predictor, other: Predictor, served: Served) -> None:
    """Both give the same answers, names of the model aside."""
    asked = [Query(at.key, (at.image,) if at.image else (), at.dna) for at in served.specimens()[:6]]
    for ours, theirs in zip(one.identify(asked), other.identify(asked), strict=True):
        first, second = ours.to_dict(), theirs.to_dict()
        first.pop("model"), second.pop("model")
        assert first == second


def test_a_folder_explains_itself_and_answers_as_the_checkpoint(
    served: Served, predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(served.checkpoint, run / "model")
    (run / "model" / STATE).write_bytes(b"optimizer")
    (run / "evaluation").mkdir()
    (run / "evaluation" / "tables.md").write_text("# run: test\n\nTable 1. What it reaches\n\n## All specimens\n")
    (run / "evaluation" / "metrics.json").write_text(json.dumps({"test/dna/clean/species/top1": 0.5}))
    out = tmp_path / "out"
    assert main(["folder", str(run), str(out), "--library", str(served.library), "--licence", "CC-BY-4.0"]) == 0
    assert not (out / STATE).exists() and (out / WEIGHTS).is_file() and (out / FILE).is_file()
    same(predictor, Predictor.load(out, library=out / "library"), served)
    text = (out / "README.md").read_text()
    assert "Table 1. What it reaches" in text and "## All specimens" not in text
    card = ModelCard.load(out / "README.md").data
    assert card.license == "cc-by-4.0" and card.eval_results[0].metric_value == 0.5
    assert str(served.shards.parent) not in (out / CONFIG).read_text() + text  # no place of the machine that trained
    assert Predictor.load(out).card["licence"] == "CC-BY-4.0"
    assert main(["folder", str(run), str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["folder", str(run), str(tmp_path / "x"), "--evaluation", str(tmp_path)]) == 2
    assert "tables.md" in capsys.readouterr().err


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store without models."""
    place = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{place}").search_experiments()
    return f"sqlite:///{place}"


@pytest.fixture(scope="module")
def version(served: Served, registry: str) -> str:
    """A registered model; the registry that the environment names is another one, and is left alone."""
    elsewhere = Path(registry.removeprefix("sqlite:///")).parent / "elsewhere.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{elsewhere}")
        found = register(
            served.checkpoint, name="tiny", aliases=("champion",), registry=registry, library=served.library
        )
    assert not elsewhere.exists()
    return found


def test_an_alias_leads_to_the_checkpoint(
    served: Served, predictor: Predictor, registry: str, version: str, tmp_path: Path
) -> None:
    found = resolve_checkpoint("models:/tiny@champion", registry=registry)
    assert (found.name, found.version) == ("tiny", version) == ("tiny", "1")
    assert resolve_checkpoint("models:/tiny/1", registry=registry).path == found.path
    same(predictor, Predictor.load(found.path, library=served.library), served)
    client = MlflowClient(tracking_uri=registry)
    run = client.create_run("0").info
    client.log_artifacts(run.run_id, str(served.checkpoint), "model")  # as a sweep registers its winner: no pyfunc
    other = client.create_model_version("tiny", f"{run.artifact_uri}/model", run.run_id)
    client.set_registered_model_alias("tiny", "champion", other.version)
    assert resolve_checkpoint("models:/tiny@champion", registry=registry).version == "2"
    assert (resolve_checkpoint("models:/tiny/2", registry=registry).path / META).is_file()
    shutil.rmtree(run.artifact_uri.removeprefix("file://"), ignore_errors=True)


def test_the_pyfunc_answers_bytes_and_text(served: Served, predictor: Predictor, registry: str, version: str) -> None:
    import mlflow

    folder = resolve_checkpoint(f"models:/tiny/{version}", registry=registry).path.parents[1]
    model = mlflow.pyfunc.load_model(str(folder))
    assert model.metadata.signature.inputs.input_names() == ["image", "dna"]
    assert model.metadata.saved_input_example_info
    one = input_example()
    frame = pd.concat([one, one.assign(image=None), one.assign(dna=None), one.assign(image=None, dna="ACGTXX")])
    told = model.predict(frame.reset_index(drop=True), params={"threshold": 0.2})
    assert told["asked_with"].tolist()[:3] == ["fused", "dna", "image"] and "XX"[:1] in told["error"][3]
    query = Query("", (one["image"][0],), one["dna"][0])
    (answer,) = predictor.identify([query], threshold=0.2)
    assert told["species_probability"][0] == pytest.approx(answer.ranks[-1].probability, abs=1e-5)
    assert told["nearest_key"][0] == answer.evidence[0].key
    alone = model.predict(one[["dna"]])
    assert alone["species_probability"][0] == pytest.approx(told["species_probability"][1], abs=1e-5)


@pytest.mark.slow
def test_a_registered_model_holds_no_pickle_and_asks_for_what_it_imports(
    served: Served, registry: str, version: str
) -> None:
    folder = resolve_checkpoint(f"models:/tiny/{version}", registry=registry).path.parents[1]
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]
    asked = {line.partition("==")[0] for line in (folder / "requirements.txt").read_text().split()}
    assert asked == {"mlflow", *REQUIREMENTS}
    script = (
        "import sys, json; from serve.pyfunc import _load_pyfunc; import pandas as pd; "
        f"_load_pyfunc({str(served.checkpoint)!r}).predict(pd.DataFrame({{'dna': ['ACGT' * 40]}})); "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    owners = metadata.packages_distributions()
    imported = {name for module in json.loads(found.stdout.splitlines()[-1]) for name in owners.get(module, ())}
    declared = {
        name.partition(">")[0].partition("=")[0].partition("!")[0].partition("[")[0].strip()
        for name in project_dependencies()
    }
    missing = {plain(name) for name in imported} & {plain(name) for name in declared} - {plain(name) for name in asked}
    assert not missing


def project_dependencies() -> list[str]:
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def plain(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("models:/tiny@nobody", "nobody"),
        ("models:/tiny/99", "version=99"),
        ("models:/tiny", "models:/NAME@ALIAS"),
        ("models:/tiny@a/../../x", "models:/NAME@ALIAS"),
        ("nowhere", "no checkpoint"),
    ],
)
def test_addresses_that_lead_nowhere(registry: str, version: str, address: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_checkpoint(address, registry=registry)


def test_what_lies_elsewhere_is_downloaded_once(
    served: Served, registry: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve_checkpoint(f"models:/tiny/{version}", registry=registry).path.parents[1]
    client = MlflowClient(tracking_uri=registry)
    number = client.create_model_version("tiny", "s3://bucket/tiny").version
    asked = []

    def download(source: str, dst_path: str | None = None, **stores: str) -> str:
        asked.append((source, stores))
        return str(shutil.copytree(folder, Path(str(dst_path)) / "tiny"))

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", download)
    for _ in range(2):
        found = resolve_checkpoint(f"models:/tiny/{number}", registry=registry, cache=tmp_path / "cache")
        assert found.path.is_relative_to(tmp_path / "cache") and (found.path / META).is_file()
    assert asked == [("s3://bucket/tiny", {"tracking_uri": registry, "registry_uri": registry})]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no"):
        resolve_checkpoint("models:/tiny/1", registry=f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()


def test_a_model_that_names_a_place_outside_is_refused(
    served: Served, registry: str, version: str, tmp_path: Path
) -> None:
    folder = resolve_checkpoint(f"models:/tiny/{version}", registry=registry).path.parents[1]
    other = tmp_path / "other"
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("data", "code"))
    text = (other / "MLmodel").read_text()
    (other / "MLmodel").write_text(text.replace("data: data/model", f"data: {served.checkpoint}"))
    client = MlflowClient(tracking_uri=registry)
    number = client.create_model_version("tiny", str(other)).version
    with pytest.raises(ValueError, match="a folder inside it"):
        resolve_checkpoint(f"models:/tiny/{number}", registry=registry)


def test_export_needs_an_empty_place(served: Served, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        export_folder(served.checkpoint, tmp_path)
    assert (tmp_path / "file").read_text() == "mine"
