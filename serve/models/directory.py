"""Which models a service has: each is NAME/VERSION, and aliases point to them.

An alias is resolved to a version when the service starts and when a reload is asked for, never per request, so that
every answer can name the version that it came from.
"""

from dataclasses import dataclass
from pathlib import Path

from engine.store.shards import file_sha256
from serve.models.registry import LIBRARY, SCHEME, resolve_checkpoint
from serve.models.settings import Settings
from train.models.checkpoint import WEIGHTS

RUNS = Path("runs")


@dataclass(frozen=True)
class Spec:
    """One version of one model, and where it is."""

    name: str
    version: str
    path: str  # checkpoint folder
    address: str  # that it was resolved from

    @property
    def id(self) -> str:
        """Return NAME/VERSION."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class Directory:
    """The models of a service at one moment; a value."""

    specs: tuple[Spec, ...]  # the first is the default

    def names(self) -> dict[str, Spec]:
        """Map what a request may call a model to the version that it means."""
        found: dict[str, Spec] = {}
        for spec in self.specs:
            found.setdefault(spec.id, spec)
            found.setdefault(spec.name, spec)
            if "@" in spec.address:
                found.setdefault(spec.address.removeprefix(SCHEME), spec)
        return found

    def find(self, asked: str) -> Spec | None:
        """Return the version that NAME, NAME/VERSION or NAME@ALIAS means, "" = the default; None = unknown."""
        return self.specs[0] if not asked else self.names().get(asked)


def read_directory(settings: Settings) -> Directory:
    """Resolve every address of the settings now.

    Raises ValueError for an address that leads nowhere, and where there is neither address nor run.
    """
    return Directory(tuple(_resolve(address, settings) for address in addresses(settings)))


def addresses(settings: Settings) -> list[str]:
    """Return the addresses of the settings, the default first."""
    given = [address.strip() for address in settings.checkpoint.split(",") if address.strip()]
    return given or [newest_run()]


def newest_run() -> str:
    """Return the folder in runs/ with the newest model. Raises ValueError where there is none."""
    runs = [folder for folder in RUNS.glob("*/") if (folder / "model" / WEIGHTS).is_file()]
    if not runs:
        raise ValueError(
            "checkpoint: got '', and there is no run in runs/; allowed: a run's folder, models:/NAME@ALIAS, or "
            "train/main.py first"
        )
    return str(max(runs, key=lambda folder: (folder / "model" / WEIGHTS).stat().st_mtime))


def _resolve(address: str, settings: Settings) -> Spec:
    found = resolve_checkpoint(address, registry=settings.registry)
    version = found.version or file_sha256(found.path / WEIGHTS)[:12]
    return Spec(found.name, version, str(found.path.resolve()), address)


def library_of(path: Path, settings: Settings) -> str:
    """Return a checkpoint's library: that of the settings, else the one inside (`serve.export`), "" = none."""
    if settings.library:
        return str(Path(settings.library).resolve())
    inside = path / LIBRARY
    return str(inside) if inside.is_dir() else ""


def located(spec: Spec, settings: Settings) -> Path:
    """Return the version's folder on this machine: where it was resolved, or what the registry gives here.

    Raises ValueError for a folder that this machine does not see, and as `resolve_checkpoint`.
    """
    if Path(spec.path).is_dir():
        return Path(spec.path)
    if not spec.address.startswith(SCHEME):
        raise ValueError(f"checkpoint: {spec.path} is not on this machine; allowed: a folder that every node sees")
    return resolve_checkpoint(f"{SCHEME}{spec.name}/{spec.version}", registry=settings.registry).path
