"""The calibration on the split under test: how far its probabilities can be believed, as metrics and on the page."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from engine import html, markdown
from engine.html import Section
from engine.signals.damage import measured_barcodes
from engine.specimens.taxonomy import RANKS
from train import metrics
from train.evaluation import calibrate, reliability, subsets, top1_accuracy
from train.evaluation.known_questions import SPECIES, Cases, Part, genus_parts
from train.evaluation.model_under_test import Setting
from train.evaluation.predict import QUERIES, SHARPNESS
from train.inference import evidence
from train.inference.calibration import FILE, POOLED, Calibration, Calibrator, FittedLibrary, back_off, sigmoid
from train.inference.experts import Inputs, barcode_quality
from train.inference.nearest import Combiner
from train.pages import outcomes, plots, pool_page
from train.reference import Library
from train.reference.library import read_manifest

log = logging.getLogger(__name__)

THRESHOLD = 0.95
FIT_ON = "val"
POOLS = (
    "A pool multiplies what its experts say, each raised to a weight that follows the quality of what it read. In each "
    "cell of quality it answers only where val does not show it worse than the best single expert (species and genus, "
    "cross-fitted, groups of equal barcodes, one-sided 95%, half a point allowed); elsewhere that expert answers."
)
RANK_COLOURS = dict(zip(RANKS, html.COLOURS, strict=False))


def measure(setting: Setting) -> dict[str, float]:
    """Fit on val, keep the calibration beside the model, and measure it.

    Metrics: `test/calibration/dna/species/{ece, ...}`,
    `test/calibration/dna/novelty/...`, `test/calibration/disagreement/<kind>/...`.

    Raises:
        ValueError: when val is under test or is not there; what reading shards and `Library.load` raise.
    """
    split = setting.split
    if split == FIT_ON:
        raise ValueError(f"the calibration is fitted on {FIT_ON}: got --split {FIT_ON}, allowed: another split")
    combiner = library_of(setting)
    fitted = replace(calibrate.fit(Part(setting, FIT_ON, combiner)), library=_fitted_library(setting, combiner))
    if setting.checkpoint is not None:
        fitted.save(setting.checkpoint / FILE)
    part = Part(setting, split, combiner)
    unseen = Part(setting, f"{split}_unseen", combiner) if setting.has(f"{split}_unseen") else None
    result: dict[str, float] = {f"{split}/calibration/unseen_are_real": float(unseen is not None)}
    for query in part.queries():
        if query in fitted.queries:
            calibrator = fitted.queries[query]
            cases = calibrate.mixture(part, query, unseen, calibrator.pool)
            found = measure_query(calibrator, cases, setting.config.eval.bootstrap)
            result |= {f"{split}/calibration/{query}/{name}": value for name, value in found.items()}
            result |= pool_page.as_metrics(calibrator, f"{split}/pool/{query}")
    if POOLED in fitted.queries:
        result |= measure_pool(fitted.queries[POOLED], part)
    found = measure_disagreement(fitted, part)
    return result | {f"{split}/calibration/disagreement/{name}": value for name, value in found.items()}


def measure_pool(calibrator: Calibrator, part: Part) -> dict[str, float]:
    """Return the pool's top-1 beside gate and average, in their conditions: `test/pooled/noisy_both/species/top1`."""
    assert calibrator.pool is not None
    features, rows = part.clean.features, np.flatnonzero(part.mask(POOLED))
    keys, data = [part.clean.keys[row] for row in rows.tolist()], part.setting.config.data
    whole = part.given(rows, "")
    answers = {}
    for condition, (image, dna) in QUERIES["fused"].items():
        noisy = dna.endswith("_noisy")
        barcodes = measured_barcodes(whole, keys, 0, data.degrade, data.orient) if noisy else whole
        sharp = features[image.replace("image", SHARPNESS)][rows][:, 0].astype(np.float64)
        measured = barcode_quality(barcodes) | {SHARPNESS: sharp}
        inputs = Inputs(features[image][rows], features[dna][rows], None, measured)
        answers[condition] = np.full(part.labels.shape, -1)
        chunks = evidence.pooled(part.setting.scorer, inputs, calibrator.pool)
        answers[condition][rows] = np.concatenate([chunk.answers.path for chunk in chunks])
    subsets_of = top1_accuracy.Subsets(part.group, None, part.clean.has_both)
    return top1_accuracy.measure_peer(part.split, POOLED, answers, part.clean, subsets_of)


def library_of(setting: Setting) -> Combiner | None:
    """Return the library of the setting without the specimens asked about, else one of the training split.

    None where that has no barcode.
    """
    if setting.library is not None:
        return Combiner(_without_asked(Library.load(setting.library), setting), setting.taxonomy)
    rows = setting.train
    sequences = subsets.read_barcodes(rows)
    if not any(sequences):
        return None
    return Combiner(Library.build(rows, sequences), setting.taxonomy)


def _fitted_library(setting: Setting, combiner: Combiner | None) -> FittedLibrary | None:
    """Return what the calibration says of the library that it was fitted with."""
    if combiner is None:
        return None
    records = len(combiner.library.records)
    if setting.library is None:
        return FittedLibrary("training split", records)
    return FittedLibrary(setting.library.resolve().name, records, str(read_manifest(setting.library)["checksum"]))


def _without_asked(library: Library, setting: Setting) -> Library:
    """Leave out the specimens that are asked about: finding themselves they would overrate the library."""
    asked = setting.index.filter(pc.not_equal(setting.index["split"], "train"))["key"]
    kept = pc.invert(pc.is_in(library.records["key"], asked.combine_chunks()))
    if pc.all(kept).as_py():
        return library
    records = library.records.filter(kept)
    left_out, of = len(library.records) - len(records), len(library.records)
    log.warning(f"{left_out:,} of the library's {of:,} specimens are asked about in the calibration: left out of it")
    haplotypes = records["haplotype"].to_pylist()
    return Library.build(records, [library.barcode(number) if number >= 0 else "" for number in haplotypes])


def measure_query(calibrator: Calibrator, cases: Cases, resamples: int) -> dict[str, float]:
    """Reliability of every rank, before (`plain_ece`) and after calibration, back-off, novelty."""
    probabilities = calibrator.probabilities(cases.answers.evidence)
    result: dict[str, float] = {}
    for rank, name in enumerate(RANKS):
        rows = cases.scored[:, rank]
        told, right, group = probabilities[rows, rank], cases.right[rows, rank], cases.group[rows]
        found = reliability.measure(told, right, group, THRESHOLD, resamples)
        found["plain_ece"] = reliability.calibration_error(
            sigmoid(cases.answers.evidence["probability"][rows, rank]), right
        )
        result |= {f"{name}/{key}": value for key, value in found.items()}
    depth = back_off(probabilities, THRESHOLD)
    for rank, name in enumerate(("none", *RANKS)):
        ends = depth == rank - 1
        result[f"ends/{name}/share"] = float(ends.mean())
        judged = ends & cases.scored[:, rank - 1] if rank else ends & False
        result[f"ends/{name}/accuracy"] = metrics.micro(cases.right[:, rank - 1], judged)
    judged = outcomes.of_rules(calibrator, cases, THRESHOLD)
    result |= {f"outcomes/{name}": value for name, value in judged.items()}
    return result | {f"novelty/{name}": value for name, value in measure_novelty(calibrator, cases).items()}


def measure_novelty(calibrator: Calibrator, cases: Cases) -> dict[str, float]:
    """AUROC of the novelty score and the share flagged, for all withheld species and by whether the genus is known."""
    score, flagged = calibrator.novelty(cases.answers.evidence), calibrator.is_novel(cases.answers.evidence)
    seen = cases.scored[:, SPECIES] & ~cases.withheld
    result = {"seen/rows": int(seen.sum()), "seen/flagged": metrics.micro(flagged, seen)}
    for name, rows in genus_parts(cases).items():
        if rows.any() and seen.any():
            either = rows | seen
            result |= {f"{name}/rows": int(rows.sum()), f"{name}/flagged": metrics.micro(flagged, rows)}
            result[f"{name}/auroc"] = float(roc_auc_score(rows[either], score[either]))
    return result


def measure_disagreement(fitted: Calibration, part: Part) -> dict[str, float]:
    """Precision at 2% prevalence and recall of the flag, for each kind of exchanged barcode; {} without."""
    columns = calibrate.pairs(part)
    if fitted.disagreement is None or len(columns) < 2:
        return {}
    rule, start = fitted.disagreement.rule, fitted.disagreement.flag_from
    alarms = (rule(columns["true"]) >= start).mean()
    result = {"true/rows": len(columns["true"]), "true/flagged": float(alarms)}
    for kind, told in columns.items():
        if kind != "true":
            recall = (rule(told) >= start).mean()
            result |= {f"{kind}/rows": len(told), f"{kind}/recall": float(recall)}
            result[f"{kind}/precision"] = float(calibrate.precision_at(recall, alarms))
    return result


def section(values: Mapping[str, float], split: str) -> Section:
    """Return the part of the page, made of the metrics."""
    start = f"{split}/calibration"
    real = values.get(f"{start}/unseen_are_real", 0.0)
    how = (
        f"specimens of {split}_unseen"
        if real
        else "made by taking a query's own species from the candidates; training saw it, so a new one may differ"
    )
    told = (
        f"Probabilities fitted on {FIT_ON}, measured on {split}: 60% clean, 20% damaged (the preset at 1x and 2x, "
        f"fragments of 100 and 200 nt, blur), 20% of species unknown to the model ({how}). An answer is right when its "
        "taxon at that rank is; naming an unknown species is wrong."
    )
    blocks = [html.paragraph(told)]
    queries = [query for query in plots.TITLES if f"{start}/{query}/species/rows" in values]
    blocks.append(_rank_table(values, start, queries))
    for query in queries:
        figure = html.figure(
            reliability_plot(values, f"{start}/{query}"),
            f"{plots.TITLES[query].capitalize()}: "
            "probability told and share right (left), share wrong by coverage (right)",
        )
        blocks.append(figure if query == queries[0] else html.folded(f"The same: {plots.TITLES[query]}", figure))
    blocks += [
        html.paragraph(f"Answers that end at the deepest rank of at least {THRESHOLD:.0%}:"),
        _ends_table(values, start, queries),
    ]
    blocks += [
        html.paragraph("Species unknown to the model, by the novelty score (flagged: above val's threshold):"),
        _novelty_table(values, start, queries),
        *outcomes.blocks(values, start, queries, THRESHOLD),
    ]
    pools = [pool_page.blocks(values, f"{split}/pool/{query}", plots.TITLES[query]) for query in queries]
    blocks += [html.paragraph(POOLS)] if any(pools) else []
    blocks += [block for shown in pools for block in shown]
    return Section("Calibration, back-off, novelty", [*blocks, *_disagreement_blocks(values, start)])


def _rank_table(values: Mapping[str, float], start: str, queries: list[str]) -> str:
    rows = []
    for query in queries:
        for rank in RANKS:
            one = f"{start}/{query}/{rank}"
            if f"{one}/ece" not in values:
                continue
            coverage = markdown.percent(values[f"{one}/coverage"])
            perfect = f"{values[f'{one}/ece_perfect']:.3f}\n95%: {values[f'{one}/ece_perfect_high']:.3f}"
            error = f"{values[f'{one}/ece']:.3f}\n{values[f'{one}/ece_low']:.3f}–{values[f'{one}/ece_high']:.3f}"
            rows.append(
                [
                    plots.TITLES[query],
                    rank,
                    markdown.percent(values[f"{one}/accuracy"]),
                    error,
                    perfect,
                    f"{values[f'{one}/plain_ece']:.3f}",
                    coverage,
                    markdown.with_interval(values, f"{one}/accuracy_at"),
                    f"{values[f'{one}/rows']:,.0f}",
                ]
            )
    header = [
        "asked with",
        "rank",
        "accuracy",
        "calibration error",
        "if perfect",
        "before calibration",
        f"coverage at {THRESHOLD}",
        "accuracy there",
        "n",
    ]
    return html.table(header, rows)


def _ends_table(values: Mapping[str, float], start: str, queries: list[str]) -> str:
    rows = []
    for query in queries:
        ends = [f"{start}/{query}/ends/{name}" for name in (*reversed(RANKS), "none")]
        cells = [
            f"{markdown.percent(values[f'{end}/share'])}\nright {markdown.percent(values[f'{end}/accuracy'])}"
            for end in ends
        ]
        rows.append([plots.TITLES[query], *cells[:-1], markdown.percent(values[f"{ends[-1]}/share"])])
    return html.table(["asked with", *reversed(RANKS), "no answer"], rows)


def _novelty_table(values: Mapping[str, float], start: str, queries: list[str]) -> str:
    rows = []
    names = {"withheld": "all", "genus_present": "genus known", "genus_absent": "genus unknown"}
    for query in queries:
        one = f"{start}/{query}/novelty"
        for name, text in names.items():
            if f"{one}/{name}/auroc" in values:
                flagged = [markdown.percent(values[f"{one}/{part}/flagged"]) for part in (name, "seen")]
                auroc = f"{values[f'{one}/{name}/auroc']:.3f}"
                rows.append([plots.TITLES[query], text, auroc, *flagged, f"{values[f'{one}/{name}/rows']:,.0f}"])
    header = ["asked with", "unknown species", "AUROC", "flagged, %", "known species flagged, %", "n unknown"]
    return html.table(header, rows)


def _disagreement_blocks(values: Mapping[str, float], start: str) -> list[str]:
    names = {
        "genus": "another species of the genus",
        "family": "another genus of the family",
        "order": "another family of the order",
        "orders": "another order",
    }
    one = f"{start}/disagreement"
    rows = [
        [
            text,
            markdown.percent(values[f"{one}/{kind}/precision"]),
            markdown.percent(values[f"{one}/{kind}/recall"]),
            f"{values[f'{one}/{kind}/rows']:,.0f}",
        ]
        for kind, text in names.items()
        if f"{one}/{kind}/recall" in values
    ]
    if not rows:
        return []
    told = (
        "Photo and barcode of different specimens: the flag when 2 of 100 pairs have a barcode of another specimen. "
        f"Of true pairs {markdown.percent(values[f'{one}/true/flagged'])}% are flagged."
    )
    return [html.paragraph(told), html.table(["the barcode is of", "precision, %", "recall, %", "n"], rows)]


def reliability_plot(values: Mapping[str, float], start: str) -> Figure:
    """Reliability of every rank (left) and risk against coverage (right), from the metrics that begin with `start`."""
    figure = html.new_figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="#aaaaaa", linewidth=1)
    for rank, colour in RANK_COLOURS.items():
        bins = reliability.bins_of(values, f"{start}/{rank}")
        if bins:
            left.plot(*np.array(bins).T, marker="o", markersize=4, color=colour, label=rank)
            risk = [100 * values[f"{start}/{rank}/risk/{share:.2f}"] for share in reliability.COVERAGES]
            right.plot(100 * reliability.COVERAGES, risk, color=colour, label=rank)
    left.set(xlabel="probability told (mean of a bin)", ylabel="share right", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    right.set(xlabel="most confident answers given, %", ylabel="of these wrong, %", xlim=(0, 100))
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(color=plots.GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=9)
    return figure
