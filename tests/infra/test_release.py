"""What is released: one version everywhere, and a wheel that works where the repository is not."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PACKAGES = ("engine", "train", "tune", "serve", "infra")


def test_one_version() -> None:
    """Of the package, of the newest entry of the changelog, of every image and wheel that a file of infra/ names."""
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest and newest[1] == VERSION
    named = [
        found
        for path in (ROOT / "infra").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
        for found in re.findall(r"taxafuse[:-](\d+\.\d+\.\d+)", path.read_text())
    ]
    assert len(named) > 10 and set(named) == {VERSION}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy without what git ignores, installed alone into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            *PACKAGES,
            "pyproject.toml",
            "LICENSE",
            "README.md",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, source], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"taxafuse-{VERSION}-py3-none-any.whl"
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, cwd=folder)
    return folder


def test_the_wheel_holds_every_file(installed: Path) -> None:
    """Modules, the service's page, the towers' configurations, the cluster's files; nothing else."""
    (wheel,) = installed.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        str(path.relative_to(installed / "source"))
        for package in PACKAGES
        for path in (installed / "source" / package).rglob("*")
        if path.is_file()
    }
    assert held == wanted


COMMANDS = {  # module -> arguments, a word of what it prints
    "engine.main": (["--help"], "ingest"),
    "train.main": (["--dry-run"], "quickstart"),
    "tune.main": (["--help"], "--trials"),
    "serve.main": (["--help"], "--checkpoint"),
    "infra.capacity": ([], "specimens/s"),
    "infra.doctor": (["--help"], "--wait-for-nodes"),
}


def test_commands_run_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    """`python -m MODULE`, one after the other in one process: what they import is imported once."""
    program = (
        "import contextlib, io, json, runpy, sys\nshown = {}\n"
        "for module, (arguments, _) in json.loads(sys.argv[1]).items():\n"
        "    sys.argv, out = [module, *arguments], io.StringIO()\n"
        "    with contextlib.redirect_stdout(out):\n"
        "        try:\n"
        "            runpy.run_module(module, run_name='__main__')\n"
        "        except SystemExit as end:\n"
        "            assert not end.code, (module, end.code)\n"
        "    shown[module] = out.getvalue()\n"
        "print(json.dumps(shown))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(COMMANDS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(installed / "site")},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    assert all(word in shown[module] for module, (_, word) in COMMANDS.items())


def test_the_installed_code_knows_its_version_and_files(installed: Path, tmp_path: Path) -> None:
    """The version that checkpoints carry, the towers' configuration, the page: all from the wheel."""
    program = (
        "import json, train, train.models.checkpoint as c, importlib.resources as r\n"
        "print(json.dumps([train.__file__, c.code_version(), (r.files('serve.http') / 'page' / 'index.html')"
        ".is_file(), (r.files('train') / 'models' / 'taxafuse-tiny.json').is_file()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file, version, page, tower = json.loads(done.stdout)
    assert Path(file).is_relative_to(installed / "site") and version == VERSION and page and tower
