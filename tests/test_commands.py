"""Every command teaches at once: `--help`, `--version` and a wrong option load nothing heavy, and exit as they must."""

import subprocess
import sys
from pathlib import Path

import pytest

from infra.cli import COMMANDS

pytestmark = pytest.mark.middle

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("matplotlib", "mlflow", "pandas", "ray", "scipy", "sklearn", "torch", "transformers")
RUN = """
import sys
from infra.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("loaded", *sorted({name.split(".")[0] for name in sys.modules}))
sys.exit(code)
"""


def called(*words: str) -> tuple[int, str, str, set[str]]:
    """Return exit code, output, errors and the modules that a command loaded."""
    done = subprocess.run([sys.executable, "-c", RUN, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    output, _, loaded = done.stdout.rpartition("loaded ")
    return done.returncode, output, done.stderr, set(loaded.split())


LIGHT = {  # modules -> what a process that needs them alone must not pay for
    "serve.answers.predictor, serve.answers.library_predictor": {"fastapi", "matplotlib", "mlflow", "ray", "sklearn"},
    "train.run.entry, engine.batches.pipeline": {"torch", "ray"},  # Ray's controllers and data tasks
    "train.run.worker": {"matplotlib", "mlflow", "open_clip", "sklearn", "timm"},
}


@pytest.mark.parametrize("modules", LIGHT)
def test_a_process_loads_what_it_uses(modules: str) -> None:
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "numpy" in loaded and not loaded & LIGHT[modules]


@pytest.mark.parametrize("word", COMMANDS)
def test_help_is_there_at_once(word: str) -> None:
    code, output, errors, loaded = called(word, "--help")
    assert (code, errors) == (0, "")
    assert output.startswith(f"usage: taxafuse {word}")
    assert not loaded & set(HEAVY)


def test_version_list_and_mistakes() -> None:
    assert called("--version")[:2] == (0, "taxafuse 0.1.0\n")
    code, output, _, _ = called("--help")
    assert code == 0
    assert all(f"  {word} " in output for word in COMMANDS)
    for words, part in ((["colour"], "invalid choice: 'colour'"), (["train", "--colour"], "--colour")):
        code, output, errors, loaded = called(*words)
        assert (code, output) == (2, "")
        assert part in errors
        assert len(errors.splitlines()) == 1
        assert not loaded & set(HEAVY)
