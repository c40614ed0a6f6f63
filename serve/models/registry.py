"""Which model an address means: a folder, or a version in MLflow's registry by its number or its alias.

    runs/NAME   runs/NAME/model   models:/NAME@ALIAS   models:/NAME/VERSION

An alias is resolved to a version once, here, so that every answer can name the version it came from. Only files are
read of what was registered: nothing in it is imported or unpickled.
"""

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from train.config import Config
from train.run.tracking import tracking_uri

SCHEME = "models:/"
LIBRARY = "library"  # folder of a reference library inside an exported model
_ADDRESS = re.compile(r"models:/+(?P<name>[^/@:]+)(@(?P<alias>[^/@:]+)|/(?P<version>[0-9]+))")
_FORMS = "models:/NAME@ALIAS or models:/NAME/VERSION"


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model's folder, and what it is called."""

    path: Path  # a checkpoint folder, see `train.models.checkpoint`; absolute
    address: str  # as it was asked for
    name: str  # in the registry; of a folder: the run's
    version: str  # in the registry; "" for a folder

    @property
    def library(self) -> str:
        """Return the folder of the reference library that was exported with it, "" = none."""
        return str(self.path / LIBRARY) if (self.path / LIBRARY).is_dir() else ""


def default_registry() -> str:
    """Return where training records its runs by default: a sqlite file in the folder of runs."""
    return tracking_uri(Config())


def resolve_checkpoint(address: str | Path, *, registry: str = "", cache: Path | None = None) -> ResolvedModel:
    """Find the checkpoint folder that an address means.

    Args:
        address: a folder of a run, a checkpoint folder, or one of a registry (see above).
        registry: MLflow's address; "" = `default_registry`.
        cache: folder for what has to be downloaded, one folder per name and version; None = a temporary one. What lies
            on this machine is not copied.

    Raises:
        ValueError: no checkpoint there, no such model, version or alias, or a registry that cannot be reached.
    """
    from train.models import checkpoint  # torch, which a command's help does not need

    text = str(address)
    if not text.startswith(SCHEME):
        path = checkpoint.find(Path(text)).resolve()
        run = path.parent if path.name == "model" else path
        return ResolvedModel(path=path, address=text, name=run.name, version="")
    parts = _ADDRESS.fullmatch(text)
    if parts is None:
        raise ValueError(f"model: got {text!r}, allowed: {_FORMS}, or a folder")
    registry = registry or default_registry()
    client = registry_client(registry)
    try:
        if parts["alias"]:
            found = client.get_model_version_by_alias(parts["name"], parts["alias"])
        else:
            found = client.get_model_version(parts["name"], parts["version"])
        folder = _local(client, found, registry, cache)
    except Exception as error:  # MLflow's own, the database's and the network's: to the user all say the same
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"model: got {text!r}, which {registry} does not give ({reason}); allowed: {_FORMS}") from None
    path = checkpoint.find(_data_folder(folder)).resolve()
    return ResolvedModel(path=path, address=text, name=str(found.name), version=str(found.version))


def registry_client(registry: str) -> Any:
    """Return MLflow's client. Raises ValueError for a sqlite file that is not there: MLflow would make an empty one."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # MLflow's own would sleep for minutes
    from mlflow import MlflowClient

    file = registry.removeprefix("sqlite:///")
    if file != registry and not Path(file).is_file():
        raise ValueError(f"registry: got {registry}, but there is no {file}; allowed: the address of an MLflow store")
    return MlflowClient(tracking_uri=registry, registry_uri=registry)


def _local(client: Any, found: Any, registry: str, cache: Path | None) -> Path:
    """Return a model version's folder on this machine; download it if it lies elsewhere and was not before."""
    from mlflow.artifacts import download_artifacts

    if found.model_id:  # of MLflow 3; "models:/m-..." would be looked up in the process' own store
        source = client.get_logged_model(found.model_id).artifact_location
    else:
        source = client.get_model_version_download_uri(found.name, found.version)
    stores = {"tracking_uri": registry, "registry_uri": registry}
    if cache is None or urlsplit(source).scheme in ("", "file"):
        return Path(download_artifacts(source, **stores))
    place = cache / f"{found.name}-{found.version}"
    if not place.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".part-") as part:
            Path(download_artifacts(source, dst_path=part, **stores)).rename(place)
    return place


def _data_folder(folder: Path) -> Path:
    """Return the checkpoint in what was registered: the folder itself, or the one that its MLmodel file names.

    Raises ValueError when it is none of ours, or names a place outside of itself.
    """
    from mlflow.models import Model

    from train.models import checkpoint

    if (folder / checkpoint.META).is_file():
        return folder
    try:
        inside = Model.load(str(folder)).flavors["python_function"]["data"]
    except Exception as error:
        raise ValueError(
            f"model: {folder} is no model of this program ({error!r}); allowed: one of serve.export"
        ) from None
    place = (folder / str(inside)).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise ValueError(f"model: {folder} names {inside!r}, allowed: a folder inside it")
    return place
