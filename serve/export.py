"""Take a trained model out: a folder in Hugging Face layout, or a version in MLflow's registry.

    python -m serve.export folder runs/NAME exported/NAME --library libraries/bold --licence cc-by-4.0
    python -m serve.export mlflow runs/NAME --name taxafuse --alias champion

Both hold config.json, model.safetensors, the taxonomy, the candidates' features, the calibration and a model card with
the measured tables; `Predictor.load` reads either offline. The registered model is a pyfunc (columns `image`, `dna`)
with signature, input example and requirements of its own, and carries the code that it needs.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.commandline import Parser, answered
from engine.store.commits import new_folder, owned

if TYPE_CHECKING:  # the commands' own imports take seconds, which --help does not need
    from train.models.checkpoint import Checkpoint

CARD = "README.md"
CODE = ("engine", "train", "serve")
REQUIREMENTS = (
    "numba",
    "numpy",
    "open_clip_torch",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "pyarrow",
    "pydantic",
    "safetensors",
    "simplejpeg",
    "timm",
    "tokenizers",
    "torch",
    "torchvision",
    "tqdm",
    "transformers",
)
"""What the predictor imports; exported with the versions that are installed."""


def export_folder(
    source: Path, out: Path, *, library: Path | None = None, licence: str = "", evaluation: Path | None = None
) -> dict[str, Any]:
    """Write a checkpoint as a folder that explains itself and is loaded offline.

    Args:
        source: checkpoint folder, or a run's.
        out: new or empty.
        library: of references, to go with it.
        licence: of the model, e.g. an SPDX identifier; "" = as the checkpoint says, else "not stated".
        evaluation: folder of `train.evaluate`; None = the run's own where it has one.

    Returns:
        The predictor's card on the exported folder, which has been loaded once.

    Raises:
        ValueError: no checkpoint there, `out` not empty, or a folder that is no evaluation.
    """
    from serve.answers.predictor import Predictor
    from serve.models.card import model_card
    from serve.models.registry import LIBRARY
    from train.inference.calibration import FILE as CALIBRATION
    from train.models import checkpoint
    from train.reference import Library

    loaded = checkpoint.load(source)
    evaluation = _evaluation(loaded.path, evaluation)
    with owned(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"export: got {out}, which is not empty; allowed: a new or empty folder")
        with new_folder(out) as part:
            for name in (checkpoint.WEIGHTS, checkpoint.TAXONOMY, checkpoint.TOKENIZER, CALIBRATION):
                if (loaded.path / name).is_file():
                    shutil.copyfile(loaded.path / name, part / name)
            meta = dict(loaded.meta) | ({"licence": licence} if licence else {})
            for name, value in ((checkpoint.CONFIG, _without_places(loaded)), (checkpoint.META, meta)):
                (part / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
            if library is not None:
                Library.load(library)
                shutil.copytree(library, part / LIBRARY)
            within = part / LIBRARY if library is not None else None
            name = loaded.config.run.name or out.resolve().name
            card = dict(Predictor.load(part, library=within, name=name).card)
            (part / CARD).write_text(model_card(loaded, card, part, evaluation, out.name), encoding="utf-8")
    return card


def _evaluation(path: Path, given: Path | None) -> Path | None:
    from serve.models.card import NUMBERS, TABLES

    found = given or path.parent / "evaluation"
    if all((found / name).is_file() for name in (TABLES, NUMBERS)):
        return found
    if given is not None:
        raise ValueError(f"--evaluation: got {given}, allowed: what train.evaluate wrote ({TABLES}, {NUMBERS})")
    return None


def _without_places(loaded: "Checkpoint") -> dict[str, Any]:
    """Return the configuration without folders and addresses of the machine that trained it."""
    from train.config import from_dict, to_dict

    tree = to_dict(loaded.config)
    tree["data"] |= {"shards": [Path(place).name for place in loaded.config.data.shards], "tokenizer_file": ""}
    tree["run"] |= {"storage": "runs", "tracking_uri": ""}
    tree["model"] |= {
        "pretrained": Path(loaded.config.model.pretrained).name,
        "dna_pretrained": Path(loaded.config.model.dna_pretrained).name,
    }
    return to_dict(from_dict(tree))


def register(
    source: Path,
    *,
    name: str,
    aliases: tuple[str, ...] = (),
    registry: str = "",
    library: Path | None = None,
    licence: str = "",
) -> str:
    """Log a model as pyfunc to its run in MLflow (a new one where it has none there) and make it a version of `name`.

    Args:
        source: checkpoint folder, or a run's.
        name: of the registered model.
        aliases: that move to this version.
        registry: MLflow's address; "" = the sqlite file of the runs.
        library: of references, to go with it.
        licence: of the model, as of `export_folder`.

    Returns:
        The version.

    Raises:
        ValueError: as `export_folder`, and for a registry that does not take it.
    """
    from serve.models.registry import default_registry

    registry = registry or default_registry()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        export_folder(source, folder, library=library, licence=licence)
        try:
            with _run(registry, source):
                return _log(folder, name, aliases)
        except OSError:
            raise
        except Exception as error:  # MLflow's own, the database's and the network's
            raise ValueError(f"registry: {registry} did not take the model ({str(error).splitlines()[0]})") from error


def _log(folder: Path, name: str, aliases: tuple[str, ...]) -> str:
    import mlflow

    from serve.pyfunc import signature

    root = Path(__file__).resolve().parents[1]
    info = mlflow.pyfunc.log_model(
        name="model",
        loader_module="serve.pyfunc",
        data_path=str(folder),
        signature=signature(),
        code_paths=[str(root / package) for package in CODE],
        input_example=input_example(),
        pip_requirements=[f"{package}=={metadata.version(package)}" for package in REQUIREMENTS],
        registered_model_name=name,
    )
    version = str(info.registered_model_version)
    for alias in aliases:
        mlflow.MlflowClient().set_registered_model_alias(name, alias, version)
    return version


@contextmanager
def _run(registry: str, source: Path) -> Iterator[None]:
    """Open the model's own run in a store, or a new one; restore MLflow's address afterwards."""
    import mlflow

    from train.models import checkpoint

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(registry)
    mlflow.set_registry_uri("")  # the same store, not MLFLOW_REGISTRY_URI: the model goes where the command says
    try:
        run_id = _run_id(source)
        if run_id is None:
            _choose_experiment(checkpoint.load(source).config.run.experiment, registry)
        with mlflow.start_run(run_id=run_id, run_name=None if run_id else f"export {source.resolve().name}"):
            yield
    finally:
        mlflow.set_tracking_uri(before)


def _choose_experiment(name: str, registry: str) -> None:
    """Choose the experiment; the artifacts of a sqlite file lie beside it, not in the working directory."""
    import mlflow

    file = registry.removeprefix("sqlite:///")
    if file != registry and mlflow.get_experiment_by_name(name) is None:
        mlflow.create_experiment(name, str(Path(file).resolve().parent / "mlflow-artifacts"))
    mlflow.set_experiment(name)


def _run_id(source: Path) -> str | None:
    """Return the run that trained this model, where the store knows it."""
    import mlflow

    from train.models import checkpoint
    from train.run.trainer import RECORD

    folder = checkpoint.find(source)
    record = folder.parent / RECORD
    if folder.name != "model" or not record.is_file():
        return None
    run_id = checkpoint.read_json(record).get("run_id")
    try:
        return mlflow.MlflowClient().get_run(run_id).info.run_id if run_id else None
    except mlflow.exceptions.MlflowException:
        return None


def input_example() -> Any:
    """Return one simulated specimen: photo and barcode, as the pyfunc takes them."""
    import pandas as pd

    from engine.formats.registry import open_dataset

    source = open_dataset("simulated", [], seed=0, num_specimens=64, num_species=8)
    row = next(row for batch in source.batches() for row in batch.to_pylist() if row["image"] and row["barcode"])
    return pd.DataFrame({"image": [source.load_image(row["image"])], "dna": [row["barcode"]]})


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m serve.export", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="folder | mlflow")
    folder = commands.add_parser("folder", help="write a folder in Hugging Face layout")
    registered = commands.add_parser("mlflow", help="register a version of a model")
    for command in (folder, registered):
        command.add_argument("checkpoint", metavar="MODEL", help="a run's folder, a checkpoint, or models:/NAME@ALIAS")
        command.add_argument("--library", type=Path, metavar="DIR", help="reference library to go with it")
        command.add_argument("--licence", default="", metavar="ID", help="of the model, e.g. cc-by-4.0")
        command.add_argument("--registry", default="", metavar="URI", help="MLflow (default: the sqlite file in runs/)")
    folder.add_argument("out", type=Path, metavar="DIR", help="new or empty folder")
    folder.add_argument("--evaluation", type=Path, metavar="DIR", help="of train.evaluate (default: the run's own)")
    registered.add_argument("--name", default="taxafuse", help="of the registered model (default: %(default)s)")
    registered.add_argument("--alias", action="append", default=[], help="to move to this version; may be repeated")
    return parser


def run(arguments: argparse.Namespace) -> str:
    """Run one command; returns what to print. Raises ValueError for what the user can mend."""
    from serve.models.registry import resolve_checkpoint

    source = Path(arguments.checkpoint)
    if arguments.checkpoint.startswith("models:"):
        source = resolve_checkpoint(arguments.checkpoint, registry=arguments.registry).path
    given = {"library": arguments.library, "licence": arguments.licence}
    if arguments.command == "folder":
        card = export_folder(source, arguments.out, evaluation=arguments.evaluation, **given)
        return f"{arguments.out}: {card['name']}, weights {card['weights_sha256'][:12]}, loaded once; see {CARD}"
    version = register(
        source, name=arguments.name, aliases=tuple(arguments.alias), registry=arguments.registry, **given
    )
    called = [
        f"models:/{arguments.name}/{version}",
        *(f"models:/{arguments.name}@{alias}" for alias in arguments.alias),
    ]
    return "registered: " + ", ".join(called)


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code (2 = something the user can mend, said in one line)."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return answered(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
