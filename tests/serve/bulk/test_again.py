"""A stored result judged by other thresholds is what the records give when they are asked anew."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from engine.specimens.taxonomy import RANKS
from serve.answers.answer import RankAnswer
from serve.answers.compose import stop_of
from serve.bulk import again
from serve.bulk.columns import schema

PROBABILITIES = ((0.999, 0.99, 0.97, 0.92), (0.99, 0.9, 0.5, 0.3), (0.4, 0.3, 0.2, 0.1), (1.0, 1.0, 1.0, 1.0))


def row_of(
    key: str, probabilities: tuple[float, ...], thresholds: dict[str, float], refused: bool
) -> dict[str, object]:
    """A row as `serve.bulk` writes it."""
    names = ("Diptera", "Syrphidae", "Eristalis", None if key == "k1" else "Eristalis tenax")
    ranks = [
        RankAnswer(rank, name, value if name else None, bool(name) and value >= thresholds[rank], ())
        for rank, name, value in zip(RANKS, names, probabilities, strict=True)
    ]
    reached = None if refused else next((one for one in reversed(ranks) if one.reached), None)
    stopped, why = stop_of(ranks, reached, thresholds, refused)
    row: dict[str, object] = {"key": key, "stopped": stopped, "why": why, "novelty": 0.1, "novel": False}
    for one in ranks:
        row |= {one.rank: one.name, f"{one.rank}_probability": one.probability}
    return row | {
        "name": reached.name if reached else None,
        "rank": reached.rank if reached else None,
        "probability": reached.probability if reached else None,
    }


def result_of(thresholds: dict[str, float]) -> pa.Table:
    rows = [row_of(f"k{number}", values, thresholds, number == 3) for number, values in enumerate(PROBABILITIES)]
    return pa.Table.from_pylist([*rows, {"key": 'odd, "key"', "error": "a fault; allowed: none"}], schema=schema())


@pytest.mark.parametrize("ending", again.KINDS)
@pytest.mark.parametrize("words", [["0.95"], ["0.5"], ["0.95", "species=0.91"], ["species=0.2", "0.99", "order=1"]])
def test_other_thresholds_give_what_asking_anew_gives(tmp_path: Path, ending: str, words: list[str]) -> None:
    before = dict.fromkeys(RANKS, 0.9)
    path, out = tmp_path / f"result{ending}", tmp_path / f"again{ending}"
    table = result_of(before)
    (pq.write_table if ending == ".parquet" else pa_csv.write_csv)(table, path)
    path.with_name(path.name + ".json").write_text(json.dumps({"records": 5, "settings": {"only": []}}))
    arguments = [str(path), "--out", str(out), *(part for word in words for part in ("--threshold", word))]
    assert again.main(arguments) == 0
    (found,) = (pa.concat_tables(list(again._read(out))),)
    expected = result_of(again.thresholds_of(words)).to_pylist()
    for row, same, old in zip(found.to_pylist(), expected, table.to_pylist(), strict=True):
        assert {name: row[name] for name in same} == same
        assert [row[f"original_{name}"] for name in again.KEPT] == [old[name] for name in again.KEPT]
    told = json.loads((tmp_path / f"again{ending}.json").read_text())
    settings = {"only": [], "cluster": 0.02, "threshold": again.thresholds_of(words)}
    assert told["settings"] == settings and told["stops_at"]["error"] == 1
    back = tmp_path / "back.json"
    assert again.main([str(out), "--threshold", "0.9", "--out", str(back)]) == 0
    assert [{**row, "error": row["error"]} for row in json.loads(back.read_text())] == [
        {**row, **{f"original_{name}": row[name] for name in again.KEPT}} for row in table.to_pylist()
    ]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["{tmp}/r.parquet", "--threshold", "2", "--out", "{tmp}/o.csv"], "--threshold: got '2'"),
        (["{tmp}/r.parquet", "--threshold", "class=0.5", "--out", "{tmp}/o.csv"], "--threshold: got 'class=0.5'"),
        (["{tmp}/r.parquet", "--threshold", "species=0.5", "--out", "{tmp}/o.csv"], "none for order, family, genus"),
        (["{tmp}/r.parquet", "--threshold", "0.5", "--out", "{tmp}/o.doc"], "a file ending in"),
        (["{tmp}/r.parquet", "--threshold", "0.5", "--out", "{tmp}/r.parquet"], "is there already"),
        (["{tmp}/none.parquet", "--threshold", "0.5", "--out", "{tmp}/o.csv"], "a file that exists"),
        (["{tmp}/other.csv", "--threshold", "0.5", "--out", "{tmp}/o.csv"], "without columns key, error"),
    ],
)
def test_mistakes_take_one_line(
    words: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(result_of(dict.fromkeys(RANKS, 0.9)), tmp_path / "r.parquet")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert again.main([word.format(tmp=tmp_path) for word in words]) == 2
    told = capsys.readouterr().err
    assert part in told and told.startswith("error: ") and told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.csv", "r.parquet"]
