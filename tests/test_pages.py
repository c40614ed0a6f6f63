"""The pages for people: short enough to be read, and every file and heading that they link to is there."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from infra.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
PACKAGES = ("engine", "train", "tune", "serve", "infra")
PLACES = (".", *PACKAGES, "tests/benchmarks", "tests/benchmarks/results")
PAGES = sorted(path for place in PLACES for path in (ROOT / place).glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _lines(page: Path) -> int:
    return len(page.read_text().splitlines())


def test_pages_are_short() -> None:
    assert _lines(ROOT / "README.md") <= 100
    assert _lines(RESULTS.parent / "RESULTS.md") <= 25
    assert {page.name: _lines(page) for page in RESULTS.glob("*.md") if _lines(page) > 120} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        place, _, anchor = target.partition("#")
        there = (page.parent / place).resolve() if place else page
        assert there.exists(), f"{target} is not there"
        assert not anchor or anchor in _anchors(there), f"{target}: no such heading"


def test_the_index_has_one_line_for_each_result() -> None:
    index = LINK.findall((RESULTS.parent / "RESULTS.md").read_text())
    assert sorted(index) == sorted(f"results/{page.name}" for page in RESULTS.glob("*.md"))


@pytest.mark.parametrize("page", sorted(RESULTS.glob("*.md")), ids=lambda page: page.stem)
def test_a_result_says_claim_command_hardware_and_date(page: Path) -> None:
    named = re.findall(r"^- \*\*(\w+)\.\*\*", page.read_text(), re.M)[:4]
    assert named == ["Claim", "Command", "Hardware", "Date"]


def test_files_that_pages_name_are_there() -> None:
    files = [f"/{path.relative_to(ROOT)}" for place in (*PACKAGES, "tests") for path in (ROOT / place).rglob("*.py")]
    for page in PAGES:
        for name in re.findall(r"`((?:\w+/)*\w+\.py)`", page.read_text()):
            assert any(file.endswith(f"/{name}") for file in files), f"{page.relative_to(ROOT)} names {name}"


def test_code_refers_to_results_that_are_there() -> None:
    places = [path for package in PACKAGES for path in (ROOT / package).rglob("*")]
    for path in places:
        if path.suffix in {".py", ".md", ".yaml"}:
            for name in re.findall(r"results/(\w+\.md)", path.read_text()):
                assert (RESULTS / name).is_file(), f"{path.relative_to(ROOT)} names results/{name}"


def test_ci_finds_two_commands_in_the_readme() -> None:
    """`.ci/run` takes the first two blocks marked sh: install and train, install and test."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) == 2
    assert "train/main.py --recipe quickstart" in blocks[0] and "python -m pytest" in blocks[1]


class _Understood(Exception):
    """A command line was parsed; nothing was done."""


def _shown_commands() -> list[str]:
    """Return every `taxafuse ...` line of the pages' blocks, without its comment."""
    blocks = [block for page in PAGES for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.M | re.S)]
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith("taxafuse ")})


@pytest.mark.middle  # some imports ask the machine through a process
@pytest.mark.parametrize("line", _shown_commands())
def test_commands_that_pages_show_are_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, word, *words = shlex.split(line)
    module, before, _ = COMMANDS[word]
    command = importlib.import_module(module).main
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, given: list[str] | None = None) -> None:
        parse(parser, given)
        raise _Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    with pytest.raises(_Understood):
        command([*before, *words])
