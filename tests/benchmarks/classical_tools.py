"""The classical tools on the same barcodes: VSEARCH, SINTAX and BLAST+, run as programs, one definition of each.

Every tool gets the same cleaned queries and references as FASTA files and answers with labels. A top hit answers with
the labels of its reference; no hit, or a reference without a name at a rank, is wrong there. Debian has the programs
(`vsearch`, `ncbi-blast+`).

Legend: N queries, M references, R ranks.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.specimens.taxonomy import RANKS

NO_HIT = -1
_POLL = 0.005  # seconds between two looks at a running program
_VSEARCH = ("vsearch", "--usearch_global", "{queries}", "--db", "{references}", "--id", "0.6")
_HITS = ("--strand", "both", "--minseqlength", "20", "--userfields", "query+target+id", "--userout", "{out}")
_BLAST = ("blastn", "-query", "{queries}", "-db", "{references}.blast", "-evalue", "1e-5")
_BLAST_OUT = ("-outfmt", "6 qseqid sseqid bitscore", "-out", "{out}")
_THREADS = {"vsearch": "--threads", "blastn": "-num_threads"}
_MAKE_DATABASE = ("makeblastdb", "-in", "{references}", "-dbtype", "nucl", "-out", "{references}.blast")
_TAXON = re.compile(r"([ofgs]):(\d+)\(([\d.]+)\)")

COMMANDS: dict[str, tuple[str, ...]] = {
    "vsearch_1_32": (*_VSEARCH, "--maxaccepts", "1", "--maxrejects", "32", *_HITS),
    "vsearch_8_64": (*_VSEARCH, "--maxaccepts", "8", "--maxrejects", "64", *_HITS),
    "sintax": (
        "vsearch",
        "--sintax",
        "{queries}",
        "--db",
        "{references}",
        "--sintax_cutoff",
        "0",
        "--strand",
        "both",
        "--tabbedout",
        "{out}",
    ),
    "megablast": (*_BLAST, "-task", "megablast", *_BLAST_OUT),
    "blastn": (*_BLAST, "-task", "blastn", *_BLAST_OUT),
}
"""Tool -> its command. VSEARCH's hits are ranked by identity, BLAST's by bit score, the first of equals wins."""


Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Labels, row of the top hit, score: the first three of a `Run`."""


@dataclass(frozen=True)
class Run:
    """What a tool answered and what that took."""

    labels: np.ndarray  # int64 [N, R], -1 = no answer
    reference: np.ndarray  # int64 [N], row of the top hit, NO_HIT = none; SINTAX has no top hit
    score: np.ndarray  # float64 [N, R], how sure it was: % identity, bit score or bootstrap support; 0 = no answer
    seconds: float  # wall time of the search, the time of a run with one query taken off
    cpu_seconds: float  # CPU time of the search, likewise: what other load on the machine changes least
    load_seconds: float  # wall time of a run with one query
    memory: int  # highest resident memory, bytes
    command: str  # as typed, without folders


def missing_programs(tools: Sequence[str] = tuple(COMMANDS)) -> list[str]:
    """Return the programs that these tools need and that are not installed."""
    wanted = {COMMANDS[tool][0] for tool in tools}
    wanted |= {"makeblastdb"} if "blastn" in wanted else set()
    return sorted(program for program in wanted if shutil.which(program) is None)


def run_tools(
    queries: Sequence[str],
    references: Sequence[str],
    labels: np.ndarray,
    tools: Sequence[str],
    threads: int = 2,
    *,
    timed: bool = True,
) -> dict[str, Run]:
    """Run classical tools on cleaned barcodes.

    Args:
        threads: of the tools.
        queries: N barcodes, "" = none (no answer).
        references: M barcodes, none of them "".
        labels: int64 [M, R] of the references, -1 = unknown.
        tools: names of COMMANDS.
        timed: also run every tool with one query, so that `seconds` is without loading; else loading is in it.

    Raises:
        ValueError: an unknown tool, or a program that is not installed.
        RuntimeError: a program failed; carries what it printed.
    """
    unknown = [tool for tool in tools if tool not in COMMANDS]
    if unknown:
        raise ValueError(f"classical tools: got {unknown}, allowed: {', '.join(COMMANDS)}")
    if missing := missing_programs(tools):
        raise ValueError(f"classical tools: {', '.join(missing)} not found; allowed: installed programs on PATH")
    asked = [row for row, sequence in enumerate(queries) if sequence]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_fasta(folder / "queries", [str(row) for row in asked], [queries[row] for row in asked])
        write_fasta(folder / "one", [str(row) for row in asked[:1]], [queries[row] for row in asked[:1]])
        write_fasta(folder / "references", _with_taxa(labels), references)
        if any(COMMANDS[tool][0] == "blastn" for tool in tools):
            _execute([part.format(references=folder / "references") for part in _MAKE_DATABASE])
        return {tool: _run(tool, folder, len(queries), labels, threads, timed) for tool in tools}


def write_fasta(path: Path, names: Sequence[str], sequences: Sequence[str]) -> None:
    """Write a FASTA file, one line a sequence."""
    with path.open("w") as file:
        file.writelines(f">{name}\n{sequence}\n" for name, sequence in zip(names, sequences, strict=True))


def _with_taxa(labels: np.ndarray) -> list[str]:
    """FASTA names of references: their row and, as SINTAX wants it, their labels as numbers."""
    letters = [rank[0] for rank in RANKS]
    names = []
    for row, taxa in enumerate(labels.tolist()):
        known = ",".join(f"{letter}:{taxon}" for letter, taxon in zip(letters, taxa, strict=True) if taxon >= 0)
        names.append(f"{row};tax={known};" if known else str(row))
    return names


def _run(tool: str, folder: Path, num_queries: int, labels: np.ndarray, threads: int, timed: bool) -> Run:
    def measured(queries: str) -> tuple[float, float, int]:
        places = {"queries": folder / queries, "references": folder / "references", "out": folder / "out"}
        command = [part.format(**places) for part in COMMANDS[tool]] + [_THREADS[COMMANDS[tool][0]], str(threads)]
        start = time.perf_counter()
        cpu, memory = _execute(command)
        return time.perf_counter() - start, cpu, memory

    loading, loading_cpu, _ = measured("one") if timed else (0.0, 0.0, 0)
    seconds, cpu, memory = measured("queries")
    found = _READ[tool](folder / "out", num_queries, labels)
    shown = " ".join((*COMMANDS[tool], _THREADS[COMMANDS[tool][0]], str(threads)))
    taken = (max(0.0, seconds - loading), max(0.0, cpu - loading_cpu), loading)
    return Run(*found, *taken, memory, re.sub(r"[{}]", "", shown))


def _execute(command: Sequence[str]) -> tuple[float, int]:
    """Run a program to its end; return its CPU seconds and highest resident memory in bytes.

    Raises RuntimeError with its last words if it fails. The memory is read while it runs: that of wait4 counts this
    process's own before the exec.
    """
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told)
        memory = finished = 0
        pause = 0.001  # at first: a small job is done within _POLL
        while not finished:
            memory = max(memory, _high_water(process.pid))
            finished, status, usage = os.wait4(process.pid, os.WNOHANG)
            time.sleep(0 if finished else pause)
            pause = min(_POLL, 1.5 * pause)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            told.seek(0)
            raise RuntimeError(
                f"{command[0]} failed ({process.returncode}): {told.read().decode(errors='replace')[-500:]}"
            )
    return usage.ru_utime + usage.ru_stime, memory


def _high_water(process: int) -> int:
    """Return the highest resident memory that a process has had, bytes; 0 when it has ended."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return 1024 * int(found[1]) if found else 0


def read_hits(path: Path, num_queries: int, labels: np.ndarray) -> Found:
    """Labels int64 [N, R], row [N] and score [N, R] of the best-scored reference of each query, the first of equals.

    The file has lines of query, reference (its name up to ";") and score, separated by tabs.
    """
    best = np.full(num_queries, -np.inf)
    reference = np.full(num_queries, NO_HIT)
    with path.open() as lines:
        for line in lines:
            query, target, told = line.rstrip("\n").split("\t")
            if float(told) > best[int(query)]:
                best[int(query)], reference[int(query)] = float(told), int(target.partition(";")[0])
    none = reference == NO_HIT
    score = np.repeat(np.where(none, 0.0, best)[:, None], labels.shape[1], axis=1)
    return np.where(none[:, None], -1, labels[reference]), reference, score


def read_sintax(path: Path, num_queries: int, labels: np.ndarray) -> Found:
    """Labels int64 [N, R] that SINTAX gave, whatever their bootstrap support, and that; its rows are all NO_HIT."""
    answers = np.full((num_queries, labels.shape[1]), -1, dtype=np.int64)
    support = np.zeros(answers.shape)
    columns = {rank[0]: place for place, rank in enumerate(RANKS)}
    with path.open() as lines:
        for line in lines:
            query, told = line.rstrip("\n").split("\t")[:2]
            for letter, taxon, share in _TAXON.findall(told):
                answers[int(query), columns[letter]] = int(taxon)
                support[int(query), columns[letter]] = float(share)
    return answers, np.full(num_queries, NO_HIT), support


_READ: dict[str, Callable[[Path, int, np.ndarray], Found]] = {
    tool: read_sintax if tool == "sintax" else read_hits for tool in COMMANDS
}
