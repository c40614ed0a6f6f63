"""Look at what a command meets on this machine before Ray starts: environment, home, folders, git, other Rays."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from infra.checks import Finding, guarded
from train.run import cluster, ray_seams
from train.run.tracking import NOT_USED

ROOT = Path(__file__).resolve().parents[1]
OURS = ("engine", "train", "tune", "serve", "infra")


def found() -> list[Finding]:
    """Return the findings; nothing is changed, nothing is waited for longer than 5 s."""
    checks: dict[str, Callable[[], Finding | list[Finding]]] = {
        "temporary folder": folders,
        "home": home,
        "CPUs": cpus,
        "other Rays": rays,
        "git": git,
        "names": names,
        "environment": environment,
    }
    return [one for name, check in checks.items() for one in guarded(name, check)]


def folders() -> Finding:
    """Check that the paths of Ray's sockets are short enough."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(folder) <= cluster.SOCKET_ROOM:
        return Finding("temporary folder", "ok", folder)
    status = "problem" if os.environ.get("RAY_TMPDIR") else "warning"
    what = f"{folder} has {len(folder)} letters, Ray's sockets have room for {cluster.SOCKET_ROOM}"
    return Finding("temporary folder", status, what, "export RAY_TMPDIR=/tmp")  # type: ignore[arg-type]


def home() -> Finding:
    """Check that Ray can keep its token below HOME."""
    place = Path.home()
    try:
        tempfile.TemporaryFile(dir=place / ".ray" if (place / ".ray").is_dir() else place).close()
    except OSError as error:
        fix = "export HOME or RAY_AUTH_TOKEN_PATH to a place that can be written; else each command makes its own token"
        return Finding("home", "warning", f"HOME={place} cannot be written ({error.strerror})", fix)
    return Finding("home", "ok", str(place))


def cpus() -> Finding:
    """Check that Ray counts a whole CPU."""
    counted = ray_seams.counted_cpus()
    if counted < 1:
        return Finding("CPUs", "warning", "less than one: commands work on it as if it were one", "raise the limit")
    return Finding("CPUs", "ok", f"Ray counts {counted:g}")


def rays() -> Finding:
    """Check whose Ray is noted on this machine."""
    owner = ray_seams.owner_of_noted_cluster()
    if owner is not None and owner != os.getuid():
        fix = "commands start their own; RAY_ADDRESS with its RAY_AUTH_TOKEN_PATH joins it"
        return Finding("other Rays", "warning", f"one of user id {owner} is noted on this machine", fix)
    return Finding("other Rays", "ok", "none of another user's")


def git() -> Finding:
    """Check that checkpoints can name the commit that they were made with."""
    if (ROOT / ".git").exists() and not shutil.which("git"):
        return Finding("git", "warning", "not installed: checkpoints name the version without the commit", "install it")
    return Finding("git", "ok", "installed" if shutil.which("git") else "not needed: no checkout")


def names() -> Finding:
    """Check that no file of the working folder stands before our packages in `python -m`."""
    here = Path.cwd()
    taken = [name for name in OURS if here != ROOT and _shadows(here, name)]
    if taken:
        fix = "use the console script `taxafuse`, or another working folder"
        return Finding("names", "warning", f"{here} has {', '.join(taken)}, which `python -m` would run", fix)
    return Finding("names", "ok", "nothing in the working folder is called like our packages")


def _shadows(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def environment() -> list[Finding]:
    """Name the variables that are set and not used."""
    return list(_unused()) or [Finding("environment", "ok", "no variable that is ignored")]


def _unused() -> Iterator[Finding]:
    for name, setting in NOT_USED.items():
        if os.environ.get(name):
            yield Finding("environment", "warning", f"{name} is set and not used", f"--set {setting}=... is")
