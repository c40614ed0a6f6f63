"""Predictions, metrics and tables of planted features, against answers worked out by hand."""

import numpy as np
import pyarrow as pa
import pytest

from engine.specimens.taxonomy import RANKS, Taxonomy
from tests.train.planted import (
    HAS_DNA,
    HAS_IMAGE,
    IMAGE_SAYS,
    NAMES,
    NOISY_DNA_SAYS,
    NOISY_IMAGE_SAYS,
    PlantedModel,
    batches,
    columns,
    specimen_index,
)
from train.evaluation import predict, subsets, top1_accuracy
from train.inference.scoring import Scorer
from train.pages import report, result, tables


def test_every_specimen_is_encoded_once_and_missing_ones_never(taxonomy: Taxonomy, encoded: predict.Encoded) -> None:
    np.testing.assert_array_equal(encoded.has_image, HAS_IMAGE)
    np.testing.assert_array_equal(encoded.has_dna, HAS_DNA)
    np.testing.assert_array_equal(encoded.features["image"].argmax(1)[HAS_IMAGE], IMAGE_SAYS[HAS_IMAGE])
    np.testing.assert_array_equal(encoded.features["dna_noisy"].argmax(1)[HAS_DNA], NOISY_DNA_SAYS[HAS_DNA])
    assert not encoded.features["image"][~HAS_IMAGE].any()
    model = PlantedModel(taxonomy)
    for batch in batches(taxonomy):
        predict.encode_batch(model, batch, noisy=False)
    assert model.rows_seen == HAS_IMAGE.sum()


def test_average_is_the_normalised_mean_and_needs_both(taxonomy: Taxonomy, encoded: predict.Encoded) -> None:
    model = PlantedModel(taxonomy)
    average = encoded.query("average", "noisy_both", model.fuse)
    both = HAS_IMAGE & HAS_DNA
    assert average.shape == (both.sum(), 16)
    first = np.zeros(16)
    first[[NOISY_IMAGE_SAYS[0], NOISY_DNA_SAYS[0]]] = 0.5**0.5
    np.testing.assert_allclose(average[0], first, atol=1e-6)
    fused = encoded.query("fused", "noisy_both", model.fuse)
    np.testing.assert_array_equal(fused.argmax(1), NOISY_DNA_SAYS[both])


def test_metrics_by_hand(values: dict[str, float]) -> None:
    assert values["test/image/clean/rows"] == 7
    assert values["test/image/clean/species/top1"] == pytest.approx(5 / 7)
    assert values["test/image/clean/genus/top1"] == 1.0
    # species 0..5 in turn, specimens with an image: 1/1, 1/1, 0/1, 2/2, 0/1, 1/1
    assert values["test/image/clean/species/macro_top1"] == pytest.approx(4 / 6)
    assert values["test/dna/noisy/species/top1"] == pytest.approx(5 / 7)
    assert values["test/novel/dna/noisy/species/top1"] == pytest.approx(2 / 4)
    assert values["test/both/image/noisy/species/top1"] == pytest.approx(1 / 6)
    assert values["test/fused/noisy_both/species/top1"] == pytest.approx(5 / 6)
    assert values["test/dna/clean/species/taxa"] == 5
    assert values["test/dna/clean/global_exact/top1"] == values["test/prompt/dna/clean/global_exact/top1"] == 1.0
    assert values["test/dna/noisy/species/top1_low"] <= 5 / 7 <= values["test/dna/noisy/species/top1_high"]
    assert "test/novel/image/clean/rows" not in values


def test_quick_validation_agrees(taxonomy: Taxonomy, values: dict[str, float]) -> None:
    model = PlantedModel(taxonomy).train()
    quick = predict.accuracy_of(Scorer(model, taxonomy, model.tokenizer), batches(taxonomy))
    assert model.training
    for query in ("image", "dna", "fused"):
        for rank in RANKS:
            assert quick[f"val/{query}/clean/{rank}/top1"] == pytest.approx(values[f"test/{query}/clean/{rank}/top1"])
    assert quick["val/fused/clean/species/rows"] == 6


def test_predictions_name_and_place_everything(
    taxonomy: Taxonomy, encoded: predict.Encoded, rankings: top1_accuracy.Rankings, parts: top1_accuracy.Subsets
) -> None:
    table = report.predictions(specimen_index(), encoded, rankings, taxonomy, parts)
    assert table.num_rows == 8
    rows = table.to_pylist()
    assert rows[2]["true_species"] == "Aaa s2" and rows[2]["image_clean_species"] == "Aaa s0"
    assert rows[2]["image_clean_species_position"] > 0 == rows[2]["dna_clean_species_position"]
    assert 0 < rows[2]["image_clean_species_score"] <= 1
    assert rows[5]["dna_clean_species"] is rows[5]["fused_clean_species_score"] is None
    assert all(field.metadata[b"description"] for field in table.schema)
    assert len(table.column_names) == 9 + 10 * 4 * 3


def test_fusion_is_compared_with_the_modality_that_val_prefers(
    taxonomy: Taxonomy, encoded: predict.Encoded, rankings: top1_accuracy.Rankings, parts: top1_accuracy.Subsets
) -> None:
    table = report.predictions(specimen_index(), encoded, rankings, taxonomy, parts)
    val = {f"val/both/{name}/noisy/{rank}/top1": v for name, v in (("image", 0.9), ("dna", 0.2)) for rank in RANKS}
    found = top1_accuracy.compare_fused(val, table, resamples=100)["species"]
    assert found.modality == "image"  # worse on the test rows, but that is not asked
    assert found.difference.value == pytest.approx(5 / 6 - 1 / 6)
    assert (found.difference.rows, found.difference.groups) == (6, 4)
    assert found.difference.low <= found.difference.value <= found.difference.high
    with pytest.raises(ValueError, match="val/both/image/noisy/order/top1"):
        top1_accuracy.compare_fused({}, table)
    text = tables.comparison_table(top1_accuracy.compare_fused(val, table, resamples=100)).text()
    assert "| species | image" in text and "+66.7" in text


def test_tables_show_the_rows_of_the_method(values: dict[str, float]) -> None:
    text = tables.paper_text(values, "test", tables.View())
    first, second = text.split("Table 2.")
    rows = [line for line in first.splitlines() if line.startswith("| image") or line.startswith("| dna")]
    assert [row.split("|")[2].strip() for row in rows] == ["clean", "noisy image", "clean", "noisy dna"]
    assert "71.4/100.0" in rows[0] and rows[0].endswith(" 7 |")
    conditions = [line.split("|")[1:3] for line in second.splitlines() if line.count("|") == 10][2:]
    assert len(conditions) == 10 and conditions[-1][0].strip() == "gated fusion"
    assert all(line.endswith(" 6 |") for line in second.splitlines() if line.startswith("| gated"))
    assert len({len(line) for line in first.splitlines() if line.startswith("|")}) == 1
    assert "Table 2" not in tables.paper_text({k: v for k, v in values.items() if "/dna/" in k}, "test", tables.View())


def test_groups_are_barcodes_and_specimens_without_one_stand_alone() -> None:
    assert subsets.barcode_groups(["AC", "", "AC", "", "GT"]).tolist() == [0, 1, 0, 2, 3]


def test_provisional_names_are_not_scored_as_species() -> None:
    names = ["Aedes vexans", "Aedes cf. vexans", "Aedes sp. 1ES", None, "Aedes sp. 1ES", "vexans"]
    index = pa.table({"genus": ["Aedes"] * 6, "species": names})
    scored, provisional = subsets.without_provisional(index)
    assert scored["species"].to_pylist() == ["Aedes vexans", None, None, None, None, "vexans"]
    assert scored["genus"].to_pylist() == ["Aedes"] * 6
    assert provisional == {"Aedes sp. 1ES": 2, "Aedes cf. vexans": 1}
    (told,) = result.provisional_text(provisional)
    assert "3 specimens whose 2 labels" in told and result.provisional_text({}) == []


def test_labels_unknown_to_the_model_are_named_or_refused(taxonomy: Taxonomy) -> None:
    partly = pa.table(columns([NAMES[0], ("A", "Aa", "Aaa", "Aaa new"), ("A", "Aa", "Aaa", "Aaa new"), (None,) * 4]))
    assert subsets.unknown_names(partly, taxonomy) == {"species": {"Aaa new": 2}}
    strangers = pa.table(columns([("Z", "Zz", None, "Zzz s"), ("Y", None, None, None)]))
    with pytest.raises(ValueError, match=r"knows none of the labels .* 0% of 2 labelled specimens"):
        subsets.unknown_names(strangers, taxonomy)
