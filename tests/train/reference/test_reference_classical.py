"""The classical tools: what they print is read rightly, and they find planted relations."""

from pathlib import Path

import numpy as np
import pytest

from engine.signals.nucleotides import reverse_complement
from tests.benchmarks import classical_tools as classical
from tests.benchmarks.classical_tools import COMMANDS, NO_HIT, read_hits, read_sintax, run_tools

LABELS = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, -1]])


def test_the_best_hit_wins_and_the_first_of_equals(tmp_path: Path) -> None:
    (tmp_path / "hits").write_text("0\t2;tax=o:0;\t97.1\n0\t1;tax=o:0;\t99.5\n0\t0;tax=o:0;\t99.5\n2\t2\t80.0\n")
    labels, reference, score = read_hits(tmp_path / "hits", 3, LABELS)
    assert reference.tolist() == [1, NO_HIT, 2]
    assert score.tolist() == [[99.5] * 4, [0.0] * 4, [80.0] * 4]
    assert labels.tolist() == [[0, 0, 1, 1], [-1, -1, -1, -1], [0, 1, 2, -1]]


def test_sintax_ranks_are_read_whatever_their_support(tmp_path: Path) -> None:
    (tmp_path / "tax").write_text("1\to:0(1.00),f:1(0.34),g:2(0.05),s:7(0.01)\t+\to:0\n0\t\t\t\n")
    labels, _, support = read_sintax(tmp_path / "tax", 3, LABELS)
    assert labels.tolist() == [[-1, -1, -1, -1], [0, 1, 2, 7], [-1, -1, -1, -1]]
    assert support.tolist() == [[0.0] * 4, [1.0, 0.34, 0.05, 0.01], [0.0] * 4]


def test_unknown_tools_and_missing_programs_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'bwa'"):
        run_tools(["ACGT"], ["ACGT"], LABELS[:1], ["bwa"])
    monkeypatch.setattr(classical.shutil, "which", lambda program: None)
    with pytest.raises(ValueError, match="blastn, makeblastdb not found"):
        run_tools(["ACGT"], ["ACGT"], LABELS[:1], ["megablast"])


@pytest.fixture(scope="module")
def runs() -> tuple[dict[str, classical.Run], np.ndarray]:
    rng = np.random.default_rng(0)
    references = ["".join(rng.choice(list("ACGT"), 400)) for _ in range(12)]
    labels = np.column_stack([np.zeros(12, int), np.arange(12) // 6, np.arange(12) // 3, np.arange(12)])
    wanted = rng.permutation(12)
    queries = [references[row][100:300] for row in wanted]
    queries[3] = reverse_complement(queries[3])
    queries += ["", "".join(rng.choice(list("ACGT"), 200))]
    return run_tools(queries, references, labels, list(COMMANDS), threads=1), labels[wanted]


@pytest.mark.skipif(bool(classical.missing_programs()), reason=f"no {', '.join(classical.missing_programs())}")
@pytest.mark.parametrize("tool", COMMANDS)
def test_every_tool_names_fragments_on_either_strand(
    tool: str, runs: tuple[dict[str, classical.Run], np.ndarray]
) -> None:
    run, truth = runs[0][tool], runs[1]
    np.testing.assert_array_equal(run.labels[:12], truth)
    assert (run.labels[12] == -1).all(), "no barcode, no answer"
    assert 1 << 20 < run.memory < 200 << 20, "the program's, not this process's"
    assert run.load_seconds > 0 and run.seconds >= 0 and run.cpu_seconds >= 0
    assert run.command.startswith(COMMANDS[tool][0]) and "/" not in run.command
    if tool != "sintax":
        assert run.reference[:12].tolist() == truth[:, 3].tolist()
        assert run.reference[13] == NO_HIT, "unrelated"


@pytest.mark.skipif(bool(classical.missing_programs()), reason=f"no {', '.join(classical.missing_programs())}")
@pytest.mark.middle
def test_a_failing_program_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="vsearch failed"):
        classical._execute(["vsearch", "--usearch_global", str(tmp_path / "absent"), "--db", "x"])
