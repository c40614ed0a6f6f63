"""The field's benchmarks of barcode encoders, as BIOSCAN-5M states them: task I and task II, on any shards.

Task I: barcodes are de-duplicated; a linear probe on the frozen features names species seen in training, and the
nearest barcode of train (cosine) names the genus of species that train does not have. Task II: the features of all
queries, by UMAP to 50 dimensions, are clustered by Ward into as many clusters as there are species; adjusted mutual
information against the species.

Legend: N barcodes, D dimensions.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_mutual_info_score

from engine.batches.pipeline import select_split
from engine.config import DataConfig
from engine.errors import UserError
from engine.signals import barcodes
from engine.specimens.names import is_provisional
from train.evaluation.peers import distinct, kmer_features
from train.evaluation.probes import linear_probe
from train.evaluation.retrieval import nearest
from train.evaluation.subsets import read_barcodes

Represent = Callable[[Sequence[str]], np.ndarray]
"""Clean barcodes -> float32 [N, D]."""

DIMENSIONS = 50  # UMAP's target, task II
PROBED = 128  # the probe's input where features are wider than four times this: their first principal components
ENCODED = 64  # barcodes encoded at once
INSTALL = 'pip install -c constraints.txt -e ".[benchmarks]"'
_VSEARCH = ("--id", "0.6", "--maxaccepts", "1", "--maxrejects", "32", "--strand", "both", "--threads", "1")


@dataclass(frozen=True)
class Part:
    """De-duplicated barcodes with their names."""

    barcodes: list[str]
    genus: np.ndarray  # str [N]
    species: np.ndarray  # str [N]

    def where(self, mask: np.ndarray) -> "Part":
        """Keep the rows of a bool [N] mask."""
        rows = np.flatnonzero(mask)
        return Part([self.barcodes[row] for row in rows], self.genus[rows], self.species[rows])


@dataclass(frozen=True)
class Task:
    """What every encoder is asked."""

    train: Part
    seen: Part  # their species are in train
    unseen: Part  # their genera are in train, their species are not


def read_task(index: pa.Table, seen: str, unseen: str, genera: int = 0) -> Task:
    """Read and de-duplicate; `genera` above 0 keeps that many, drawn from seed 0, of those that occur in `unseen`.

    A query whose barcode is in train, or that is no binomial, is left out. Raises ValueError for a split without rows.
    """
    train, known, other = (select_split(index, split) for split in ("train", seen, unseen))
    if genera:
        there = sorted({name for name in other["genus"].to_pylist() if name})
        kept = pa.array(np.random.default_rng(0).permutation(there)[:genera].tolist())
        train, known, other = (part.filter(pa.compute.is_in(part["genus"], kept)) for part in (train, known, other))
    library = _part(train, set())
    own = set(library.barcodes)
    queries, strangers = _part(known, own), _part(other, own)
    queries = queries.where(np.isin(queries.species, library.species))
    strangers = strangers.where(np.isin(strangers.genus, library.genus) & ~np.isin(strangers.species, library.species))
    if not queries.barcodes or not strangers.barcodes:
        got = f"{len(queries.barcodes)} of {seen} and {len(strangers.barcodes)} of {unseen} that are no copies of train"
        raise UserError("benchmark", got, "shards with species of train in the one, others of its genera in the other")
    return Task(library, queries, strangers)


def _part(index: pa.Table, taken: set[str]) -> Part:
    names = [index[rank].to_pylist() for rank in ("genus", "species")]
    sequences = barcodes.orient_batch(read_barcodes(index))
    named = np.array([bool(genus and species) for genus, species in zip(*names, strict=True)])
    good = named & ~is_provisional(names[1]) & np.array([bool(s) and s not in taken for s in sequences])
    part = Part(sequences, *(np.array([name or "" for name in column], dtype=str) for column in names)).where(good)
    first, _ = distinct(part.barcodes)
    return part.where(np.isin(np.arange(len(part.barcodes)), first))


def tower_features(model: Any, data: DataConfig) -> Represent:
    """Return what encodes barcodes by a model's DNA tower: the mean of its last layer where it has one of its own."""
    tokenizer = barcodes.make_tokenizer(data)
    encode = getattr(model.dna_encoder, "pooled", model.dna_encoder)
    device = next(model.parameters()).device

    @torch.inference_mode()
    def represent(sequences: Sequence[str]) -> np.ndarray:
        parts = []
        for first in range(0, len(sequences), ENCODED):
            codes = tokenizer.encode(sequences[first : first + ENCODED]).astype(np.int64)
            tokens = torch.from_numpy(codes).to(device)
            parts.append(encode(tokens, tokens != 0).float().cpu().numpy())
        return np.concatenate(parts)

    return represent


def _centred(train: np.ndarray, queries: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Subtract train's mean, keep at most its `PROBED` main axes, and scale all alike, train's rows to length 1."""
    known, asked = torch.from_numpy(train), torch.from_numpy(queries)
    mean = known.mean(0)
    known, asked = known - mean, asked - mean
    if known.shape[1] > 4 * PROBED:
        torch.manual_seed(0)
        axes = torch.pca_lowrank(known, min(PROBED, len(known)), center=False)[2]
        known, asked = known @ axes, asked @ axes
    length = known.norm(dim=1).mean().clamp(min=1e-6)
    return known / length, asked / length


def task_one(task: Task, represent: Represent) -> dict[str, float]:
    """Return probe and 1-NN species accuracy (seen), 1-NN genus accuracy (unseen), and ms a barcode."""
    started, count = time.process_time(), sum(len(part.barcodes) for part in (task.train, task.seen, task.unseen))
    train, seen, unseen = (represent(part.barcodes) for part in (task.train, task.seen, task.unseen))
    spent = time.process_time() - started
    species, labels = np.unique(task.train.species, return_inverse=True)
    known, asked = _centred(train, seen)
    probed = species[linear_probe(known, labels, asked)]
    keys, *queries = (F.normalize(torch.from_numpy(part), dim=1) for part in (train, seen, unseen))
    by_species, by_genus = (nearest(part, keys, 1)[:, 0] for part in queries)
    return {
        "probe": float((probed == task.seen.species).mean()),
        "nearest": float((task.train.species[by_species] == task.seen.species).mean()),
        "unseen_genus": float((task.train.genus[by_genus] == task.unseen.genus).mean()),
        "ms": 1000 * spent / count,
    }


def task_two(task: Task, represent: Represent) -> dict[str, float]:
    """Return the AMI of Ward clusters, as many as species, of all queries in UMAP's 50 dimensions; and ms a barcode.

    Raises UserError naming what to install.
    """
    try:
        from umap import UMAP  # slow to import
    except ImportError:
        raise UserError("--task 2", "no umap-learn on this machine", f"after {INSTALL}") from None
    started = time.process_time()
    sequences = task.seen.barcodes + task.unseen.barcodes
    features = represent(sequences)
    spent = time.process_time() - started
    truth = np.concatenate([task.seen.species, task.unseen.species])
    size = min(DIMENSIONS, len(truth) - 2)
    reduced = UMAP(n_components=size, random_state=0, n_jobs=1, init="random").fit_transform(features)
    found = AgglomerativeClustering(n_clusters=len(np.unique(truth))).fit_predict(reduced)
    return {"ami": float(adjusted_mutual_info_score(truth, found)), "ms": 1000 * spent / len(sequences)}


def vsearch(task: Task) -> dict[str, float]:
    """Return the same of VSEARCH's nearest: species (seen), genus (unseen); {} where the program is not installed."""
    program = shutil.which("vsearch")
    if program is None:
        return {}
    queries = task.seen.barcodes + task.unseen.barcodes
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name), Path(name) / "hits"
        for file, sequences in (("queries", queries), ("references", task.train.barcodes)):
            (folder / file).write_text("".join(f">{row}\n{one}\n" for row, one in enumerate(sequences)))
        command = [program, "--usearch_global", str(folder / "queries"), "--db", str(folder / "references"), *_VSEARCH]
        started = time.perf_counter()
        fields = ["--userfields", "query+target", "--userout", str(out), "--minseqlength", "20"]
        subprocess.run([*command, *fields], check=True, capture_output=True)
        spent = time.perf_counter() - started
        pairs = (line.split("\t") for line in out.read_text().splitlines())
        hits = {int(query): int(target) for query, target in pairs}
    found = np.array([hits.get(row, -1) for row in range(len(queries))])
    seen, unseen = np.split(found, [len(task.seen.barcodes)])
    return {
        "nearest": float(((task.train.species[seen] == task.seen.species) & (seen >= 0)).mean()),
        "unseen_genus": float(((task.train.genus[unseen] == task.unseen.genus) & (unseen >= 0)).mean()),
        "ms": 1000 * spent / len(queries),
    }


BASELINES: dict[str, Represent] = {"6-mer counts": kmer_features}
