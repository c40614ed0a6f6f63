"""Evaluation of a trained model on a split of shards: the paper's tables, baselines, one row per specimen, a page.

load_index -> encode_split -> rank_queries (roll-up and prompt) -> measure -> tables, page, predictions
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.batches.pipeline import load_index
from engine.relations.containment import novel_mask
from engine.store.commits import finish_files, locked
from train.evaluation import error_analysis, peers, probes, retrieval, subsets, top1_accuracy
from train.evaluation.model_under_test import Setting
from train.evaluation.predict import Encoded, accuracy_of
from train.evaluation.top1_accuracy import compare_fused
from train.inference.scoring import Scorer
from train.pages import calibration_report, page, plots, report, robustness_page, tables
from train.pages.result import Evaluation

__all__ = [
    "Evaluation",
    "Scorer",
    "Setting",
    "accuracy_of",
    "compare_fused",
    "evaluate",
    "load_index",
    "run_evaluation",
]

FEATURES = "features"  # folder of an evaluation that is under way
EXTRAS = {"retrieval": retrieval, "probes": probes, "calibration": calibration_report, "curves": robustness_page}
"""Parts that are measured when they are asked for: modules with `measure(setting)` and `section(metrics, split)`."""


def evaluate(setting: Setting, *, baselines: bool = True) -> Evaluation:
    """Measure a model on one split; writes nothing but the cache.

    Args:
        setting: `config.eval` gives batch size and resamples; the shards' `train` split serves novelty, the long tail
            and the baselines.
        baselines: also measure the nearest-neighbour baselines.

    Raises:
        ValueError: no such split; a taxonomy that knows none of the labels; what reading shards raises.
    """
    split, taxonomy, resamples = setting.split, setting.taxonomy, setting.config.eval.bootstrap
    rows = setting.rows(split)
    scored, provisional = subsets.without_provisional(rows)
    unknown = subsets.unknown_names(scored, taxonomy)
    encoded = setting.encoded(split)
    rankings = top1_accuracy.rank_queries(setting.model, setting.scorer, encoded)
    sequences, references = subsets.read_barcodes(rows), subsets.read_barcodes(setting.train)
    parts = top1_accuracy.Subsets(
        group=subsets.barcode_groups(sequences),
        novel=novel_mask(sequences, references) if any(references) else None,
        both=encoded.has_both,
    )
    values = top1_accuracy.measure(split, rankings, encoded, parts, resamples)
    values |= error_analysis.consistencies(split, rankings, encoded, taxonomy)
    counts = error_analysis.training_counts(scored, setting.train)
    values |= error_analysis.tails(split, rankings, encoded, counts, parts.group, resamples)
    for modality, present in (("image", encoded.has_image), ("dna", encoded.has_dna)):
        stored = np.asarray(rows[f"{modality}_size"]) > 0
        values[f"{split}/{modality}/unreadable"] = int((stored & ~present).sum())
    values |= {f"{split}/unknown/{rank}/rows": sum(names.values()) for rank, names in unknown.items()}
    values[f"{split}/provisional/species/rows"] = sum(provisional.values())
    if baselines and len(setting.train):
        values |= _measure_peers(setting, rows, encoded, (sequences, references), parts)
    predictions = report.predictions(rows, encoded, rankings, taxonomy, parts)
    return Evaluation(split, values, predictions, unknown, provisional)


def _measure_peers(
    setting: Setting,
    rows: pa.Table,
    encoded: Encoded,
    barcodes: tuple[list[str], list[str]],
    parts: top1_accuracy.Subsets,
) -> dict[str, float]:
    data, taxonomy = setting.config.data, setting.taxonomy
    found = peers.image_peers(rows, setting.train, data, taxonomy)
    how = (data, taxonomy, setting.config.eval.batch_size, setting.budget)
    found |= peers.dna_peers(setting.model, encoded, barcodes[0], (setting.train, barcodes[1]), how)
    values: dict[str, float] = {}
    for name, answers in found.items():
        values |= top1_accuracy.measure_peer(setting.split, name, answers, encoded, parts)
    return values


def _choosing_metrics(setting: Setting) -> dict[str, float]:
    """Noisy accuracies of image and dna on the val specimens that have both; {} when there are none."""
    index = setting.index
    there = pc.and_(pc.greater(index["image_size"], 0), pc.greater(index["dna_size"], 0))
    rows = index.filter(pc.and_(pc.equal(index["split"], "val"), there))
    if not len(rows):
        return {}
    encoded = setting.encode(rows, "val_both")
    asked = (("image", "noisy"), ("dna", "noisy"))
    rankings = top1_accuracy.rank_queries(setting.model, setting.scorer, encoded, asked, ("rollup",))
    parts = top1_accuracy.Subsets(group=np.arange(len(rows)), novel=None, both=encoded.has_both)
    return top1_accuracy.measure("val", rankings, encoded, parts, resamples=0)


def run_evaluation(setting: Setting, out: Path, *, baselines: bool = True, extras: Sequence[str] = ()) -> Evaluation:
    """Measure a model on a split; write report.html, metrics.json, tables.md, predictions.parquet and accuracy.png.

    Where this split and val hold specimens with image and barcode, fusion is compared with the single modality that is
    better on val.

    Args:
        setting: the model and the split; encoded features wait in `out/features` until all is written, so that an
            evaluation that was interrupted goes on.
        out: folder of the results.
        baselines: also measure the nearest-neighbour baselines.
        extras: names of EXTRAS to measure, too.

    Raises:
        ValueError: what `evaluate` and the extras raise; another process writes to the folder.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    with locked(Path(out)):
        finish_files(Path(out))
        return _run(dataclasses.replace(setting, cache=Path(out) / FEATURES), out, baselines, extras)


def _run(setting: Setting, out: Path, baselines: bool, extras: Sequence[str]) -> Evaluation:
    config, split = setting.config, setting.split
    found = evaluate(setting, baselines=baselines)
    fused = split != "val" and f"{split}/fused/noisy_both/rows" in found.metrics
    if fused and (chosen := _choosing_metrics(setting)):
        compared = compare_fused(chosen, found.predictions, config.eval.bootstrap)
        values = found.metrics | chosen | top1_accuracy.as_metrics(compared, split)
        found = dataclasses.replace(found, metrics=values, comparison=compared)
    sections = []
    for extra in extras:
        values = EXTRAS[extra].measure(setting)
        found = dataclasses.replace(found, metrics=found.metrics | values)
        sections.append(EXTRAS[extra].section(values, split))
    name = config.run.name or config.recipe
    text = f"# {name}: {split}\n\n{found.headline(config.eval.scoring)}\n\n{tables.full_text(found.metrics, split)}\n"
    shown = page.report(found, name, config.eval.scoring, sections)
    picture = plots.accuracy_bars(found.metrics, split)
    report.write(Path(out), found.metrics, text, shown, found.predictions, picture)
    setting.forget()
    return dataclasses.replace(found, files=report.FILES)
