"""Evaluation of a trained model on a split of shards: the paper's tables, baselines, one row per specimen.

load_index -> encode_split -> rank_queries (roll-up and prompt) -> measure -> tables, picture, predictions
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.containment import novel_mask
from engine.pipeline import CpuBudget, cpu_budget, load_index, select_split
from engine.taxonomy import Taxonomy
from train.config import Config
from train.evaluation import compare, measure, peers, report, subsets, tables
from train.evaluation.compare import Comparison, compare_fused
from train.evaluation.predict import accuracy_of, encode_split
from train.evaluation.scoring import Scorer
from train.models.trimodal import caption_tokenizer

__all__ = ["Evaluation", "Scorer", "accuracy_of", "compare_fused", "evaluate", "run_evaluation"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """The outcome on one split."""

    split: str
    metrics: dict[str, float]
    predictions: pa.Table
    unknown: dict[str, dict[str, int]]  # rank -> names that the model does not know -> specimens
    provisional: dict[str, int] = field(default_factory=dict)  # species labels that name no described species
    comparison: dict[str, Comparison] = field(default_factory=dict)
    files: tuple[str, ...] = ()  # written by `run_evaluation`

    def headline(self, scoring: str) -> str:
        """What a terminal shows: both tables, the baselines, fusion against the better single modality."""
        values, split = self.metrics, self.split
        parts = [
            tables.paper_tables(values, split, scoring),
            f"n: specimens that have what the query needs. {tables.populations(values, split)}",
            tables.peer_table(values, split),
            tables.comparison_text(self.comparison),
            *unknown_text(self.unknown),
            *provisional_text(self.provisional),
        ]
        return "\n\n".join(parts)


def unknown_text(unknown: dict[str, dict[str, int]], shown: int = 5) -> list[str]:
    """One sentence a rank about the labels that the model does not know."""
    lines = []
    for rank, names in unknown.items():
        examples = ", ".join(f"{name} ({count})" for name, count in list(names.items())[:shown])
        lines.append(
            f"Not scored at {rank}: {sum(names.values()):,} specimens of {len(names):,} taxa that the model was never "
            f"shown, so that no answer could be right: {examples}{', ...' if len(names) > shown else ''}"
        )
    return lines


def provisional_text(provisional: dict[str, int], shown: int = 5) -> list[str]:
    """One sentence about species labels that are no names of described species."""
    if not provisional:
        return []
    examples = ", ".join(f"{name} ({count})" for name, count in list(provisional.items())[:shown])
    return [
        f"Not scored at species: {sum(provisional.values()):,} specimens whose {len(provisional):,} labels name no "
        f"described species (sp., cf., codes): {examples}{', ...' if len(provisional) > shown else ''}"
    ]


def _budget() -> CpuBudget | None:
    """What Ray tasks may use when Ray runs in this process; None = inputs are prepared here, one by one."""
    import ray

    return cpu_budget(ray.cluster_resources(), 0, 0.0) if ray.is_initialized() else None


def evaluate(model: Any, config: Config, taxonomy: Taxonomy, shards: Sequence[str | Path], split: str,
             *, baselines: bool = True) -> Evaluation:  # fmt: skip
    """Measure a model on one split; writes nothing.

    Args:
        model: in evaluation mode, on the device to use.
        config: the model's own; `eval` gives batch size and resamples.
        shards: one or more folders of shards; their `train` split serves novelty and the baselines.
        baselines: also measure the nearest-neighbour baselines.

    Raises:
        ValueError: no such split; a taxonomy that knows none of the labels; what reading shards raises.
    """
    index = load_index(shards)
    rows = select_split(index, split)
    scored, provisional = subsets.without_provisional(rows)
    unknown = subsets.unknown_names(scored, taxonomy)
    device, budget = next(model.parameters()).device, _budget()
    encoded = encode_split(
        model, scored, taxonomy, config.data, batch_size=config.eval.batch_size, device=device, budget=budget
    )
    rankings = measure.rank_queries(model, Scorer(model, taxonomy, caption_tokenizer(model), device), encoded)
    sequences = subsets.read_barcodes(rows)
    train = index.filter(pc.equal(index["split"], "train")) if split != "train" else index.slice(0, 0)
    references = subsets.read_barcodes(train)
    parts = measure.Subsets(
        group=subsets.barcode_groups(sequences),
        novel=novel_mask(sequences, references) if any(references) else None,
        both=encoded.has_both,
    )
    values = measure.measure(split, rankings, encoded, parts, config.eval.bootstrap)
    for modality, present in (("image", encoded.has_image), ("dna", encoded.has_dna)):
        stored = np.asarray(rows[f"{modality}_size"]) > 0
        values[f"{split}/{modality}/unreadable"] = int((stored & ~present).sum())
    values |= {f"{split}/unknown/{rank}/rows": sum(names.values()) for rank, names in unknown.items()}
    values[f"{split}/provisional/species/rows"] = sum(provisional.values())
    if baselines and len(train):
        found = peers.image_peers(rows, train, config.data, taxonomy)
        setting = (config.data, taxonomy, config.eval.batch_size, budget)
        found |= peers.dna_peers(model, encoded, sequences, (train, references), setting)
        for name, answers in found.items():
            values |= measure.measure_peer(split, name, answers, encoded, parts)
    predictions = report.predictions(rows, encoded, rankings, taxonomy, parts)
    return Evaluation(split, values, predictions, unknown, provisional)


def _choosing_metrics(model: Any, config: Config, taxonomy: Taxonomy, index: pa.Table) -> dict[str, float]:
    """Noisy accuracies of image and dna on the val specimens that have both; {} when there are none."""
    there = pc.and_(pc.greater(index["image_size"], 0), pc.greater(index["dna_size"], 0))
    rows = index.filter(pc.and_(pc.equal(index["split"], "val"), there))
    if not len(rows):
        return {}
    device = next(model.parameters()).device
    size = config.eval.batch_size
    encoded = encode_split(model, rows, taxonomy, config.data, batch_size=size, device=device, budget=_budget())
    scorer = Scorer(model, taxonomy, caption_tokenizer(model), device)
    rankings = measure.rank_queries(model, scorer, encoded, (("image", "noisy"), ("dna", "noisy")), ("rollup",))
    parts = measure.Subsets(group=np.arange(len(rows)), novel=None, both=encoded.has_both)
    return measure.measure("val", rankings, encoded, parts, resamples=0)


def run_evaluation(model: Any, config: Config, taxonomy: Taxonomy, shards: Sequence[str | Path], split: str,
                   out: Path, *, baselines: bool = True) -> Evaluation:  # fmt: skip
    """Measure a model on a split and write metrics.json, tables.md, predictions.parquet and accuracy.png to `out`.

    Where this split and val hold specimens with image and barcode, fusion is compared with the single modality that is
    better on val. Raises what `evaluate` raises.
    """
    found = evaluate(model, config, taxonomy, shards, split, baselines=baselines)
    fused = split != "val" and f"{split}/fused/noisy_both/rows" in found.metrics
    if fused and (chosen := _choosing_metrics(model, config, taxonomy, load_index(shards))):
        compared = compare_fused(chosen, found.predictions, config.eval.bootstrap)
        values = found.metrics | chosen | compare.as_metrics(compared, split)
        found = dataclasses.replace(found, metrics=values, comparison=compared)
    text = f"# {config.run.name or config.recipe}: {split}\n\n{found.headline(config.eval.scoring)}\n\n"
    text += tables.full_text(found.metrics, split) + "\n"
    report.write(Path(out), found.metrics, text, found.predictions)
    report.picture(found.metrics, split, Path(out) / report.PICTURE)
    return dataclasses.replace(found, files=report.FILES)
