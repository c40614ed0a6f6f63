"""What is left out before an ingest, and the split that the rest gets."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from engine.formats.registry import open_dataset
from engine.formats.source import read_all
from engine.ingest.screening import assign_splits, screen
from engine.relations.splits import SCHEMES, SplitOptions


def test_screening_and_splits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = ["".join(rng.choice(list("ACGT"), 80)) for _ in range(130)]
    rows = "".join(f"k{i},{whole[i // 3][::1][: 80 - 7 * (i % 3)]}{'-' * (i % 2)},\n" for i in range(390))
    text = "id,barcode,split\n" + rows + f"k1,ACGT,train\nodd,ACGT,holdout\nempty,,train\ngiven,{whole[0]},test_seen\n"
    path = tmp_path / "t.csv"
    path.write_text(text + "bad,!!!,\n")
    kept, problems = screen(read_all(open_dataset("table", [path])))
    assert [(p.key, p.reason.partition(": ")[0]) for p in problems] == [
        ("k1", "duplicate key"),
        ("odd", "unknown split"),
        ("empty", "neither image nor barcode"),
    ]
    plain, note = assign_splits(kept, None)
    assert plain["split"].to_pylist().count("train") == 391 and "are train" in note["how"]
    options = SplitOptions(fractions=(0.5, 0.2, 0.3), seed=7)
    split, note = assign_splits(kept, options)
    assert split.schema == kept.schema
    assert (note["given"], note["assigned"], note["groups"]) == (1, 391, 131)  # 130 and the unreadable one
    assert note["how"] == "closed-set, train:val:test 0.5:0.2:0.3, seed 7, barcodes grouped by overlap"
    assert note["test_barcodes_found_in_train"] == {"identical": 0.0, "related": 0.0}
    parts = np.array(split["split"].to_pylist())
    assert set(parts) == {"train", "val", "test"} and set(parts[:3]) == {"test"}  # with the given one
    assert all(len(set(parts[i : i + 3])) == 1 for i in range(0, 390, 3))
    again, _ = assign_splits(kept.take(pa.array(np.arange(kept.num_rows)[::-1])), options)
    assert again["split"].to_pylist()[::-1] == split["split"].to_pylist()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("how", ["event", "column", "photo", "specimen"])
def test_what_belongs_together_stays_in_one_split(tmp_path: Path, scheme: str, how: str) -> None:
    """Three photos an event, three rows of an event by a column, three insects on a sheet, three photos a specimen."""
    rows = [(event, frame) for event in range(60) for frame in range(3)]
    lines = {
        "event": [f"k{e}_{f},photos/night{e}_f{f}.jpg,e{e}" for e, f in rows],
        "column": [f"k{e}_{f},photos/{7 * e + f}.jpg,e{e}" for e, f in rows],
        "photo": [f"k{e}_{f},photos/sheet{e}.jpg,e{e}" for e, f in rows],
        "specimen": [f"k{e},photos/p{e}-{'abc'[f]}.jpg,e{e}" for e, f in rows],
    }[how]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["id,image,night", *lines]) + "\n")
    columns = {"columns": {"group": "night"}} if how == "column" else {}
    kept, problems = screen(read_all(open_dataset("table", [path], **columns)))
    assert not problems and kept.num_rows == 180
    options = SplitOptions(scheme=scheme, fractions=(0.5, 0.2, 0.3), by_event=how == "event")
    split, note = assign_splits(kept, options)
    assert note["groups"] == 60
    parts = np.array(split["split"].to_pylist()).reshape(60, 3)
    assert (parts == parts[:, :1]).all() and (scheme == "seen-unseen" or len(set(parts[:, 0])) == 3)


def test_nothing_to_assign_leaves_the_table_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,barcode,split\na,ACGT,val\nb,ACGT,train\n")
    table = read_all(open_dataset("table", [path]))
    assert assign_splits(table, SplitOptions())[0].equals(table)
