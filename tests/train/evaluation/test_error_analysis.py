"""Consistency, confusion and the long tail, against scikit-learn and answers worked out by hand; the page."""

import re

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import confusion_matrix

from engine.specimens.taxonomy import Taxonomy
from tests.train.planted import HAS_IMAGE, LABELS, NAMES, columns, specimen_index
from train import metrics
from train.evaluation import error_analysis, predict, top1_accuracy
from train.pages import page, report
from train.pages.result import Evaluation


def test_consistency_counts_answers_whose_parent_was_answered(taxonomy: Taxonomy) -> None:
    aaa_s0, bbb_s0 = taxonomy.encode(columns([NAMES[0], NAMES[3]]))
    mixed = np.array([bbb_s0[0], aaa_s0[1], aaa_s0[2], bbb_s0[3]])
    found = error_analysis.consistency(np.stack([aaa_s0, bbb_s0, mixed, [-1, -1, -1, -1]]), taxonomy)
    assert found["family"] == pytest.approx(2 / 3)  # the mixed one's family lies in another order
    assert found["genus"] == 1.0
    assert found["species"] == pytest.approx(2 / 3)
    assert found["whole"] == pytest.approx(3 / 4)


def test_confusion_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, answer = (rng.choice(list("abcdef"), 300).tolist() for _ in range(2))
    names, counts = error_analysis.confusion([*truth, None, "a"], [*answer, "a", None])
    np.testing.assert_array_equal(counts, confusion_matrix(truth, answer, labels=names))
    assert counts.sum(axis=1).tolist() == sorted(counts.sum(axis=1).tolist(), reverse=True)
    few, small = error_analysis.confusion(truth, answer, shown=2)
    assert few == [*names[:2], error_analysis.OTHER]
    assert small[0, 2] == counts[0, 2:].sum() and small[2, 2] == counts[2:, 2:].sum()
    first = error_analysis.most_confused(truth, answer, shown=1)[0]
    wrong = np.where(np.eye(6, dtype=bool), 0, counts)
    assert first[2] == wrong.max() and first[3] == wrong.max() / truth.count(first[0])


def test_long_tail_by_hand() -> None:
    assert error_analysis.tail_labels()[:4] == ["1", "2", "3-5", "6-10"] and error_analysis.tail_labels()[-1] == "501+"
    train = pa.table({"species": ["s"] + ["t"] * 4 + ["u"] * 501 + [None] * 3})
    index = pa.table({"species": ["s", "t", "t", "u", None, "v", "t"]})
    counts = error_analysis.training_counts(index, train)
    assert counts.tolist() == [1, 4, 4, 501, 0, 0, 4]
    position = np.array([0, 0, 3, 0, metrics.UNSCORED, 5, metrics.UNSCORED])
    found = error_analysis.tail(position, np.array([0, 1, 1, 2, -1, 3, 1]), counts, np.arange(7), resamples=50)
    assert found["3-5/top1"] == 0.5 and found["3-5/rows"] == 2 and found["3-5/taxa"] == 1
    assert found["1/top1"] == found["501+/top1"] == 1.0
    assert not any(name.startswith("2/") for name in found)


@pytest.mark.middle
def test_page_holds_every_table_and_loads_nothing(
    taxonomy: Taxonomy,
    encoded: predict.Encoded,
    rankings: top1_accuracy.Rankings,
    parts: top1_accuracy.Subsets,
    values: dict[str, float],
) -> None:
    index = specimen_index()
    train = pa.table(columns([NAMES[i] for i in (0, 0, 0, 1, 3)]))
    told = error_analysis.consistencies("test", rankings, encoded, taxonomy)
    counts = error_analysis.training_counts(index, train)
    told |= error_analysis.tails("test", rankings, encoded, counts, parts.group, 20)
    assert told["test/image/clean/tail/3-5/rows"] == (HAS_IMAGE & (LABELS == 0)).sum() == 1
    assert told["test/dna/clean/consistency/whole"] == 1.0
    assert told["test/prompt/dna/clean/consistency/whole"] == pytest.approx(4 / 7)  # every prompt ties: order A wins
    table = report.predictions(index, encoded, rankings, taxonomy, parts)
    found = Evaluation("test", values | told, table, {"species": {"Aaa <i>new</i>": 2}})
    text = page.report(found, "tiny", "rollup")
    for words in ("Table 1.", "Table 2.", "Families confused", "The long tail", "whole lineage", "71.4/100.0"):
        assert words in text
    low, high = (100 * values[f"test/dna/clean/species/top1_{side}"] for side in ("low", "high"))
    assert f"{low:.1f}–{high:.1f}" in text
    assert "<i>new" not in text and "&lt;i&gt;new" in text
    assert not re.search(r"(src|href)=\"?https?:|<script|<link|url\((?!#)", text)
