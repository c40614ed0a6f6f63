"""Bulk identification: every record one row, whatever happens to it; equal to the predictor; killed runs go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.specimens.taxonomy import RANKS
from serve.answers.answer import Query
from serve.answers.predictor import Predictor
from serve.bulk import job as bulk
from serve.bulk import plan as plan_module
from serve.bulk.actors import BulkOptions
from serve.bulk.columns import COLUMNS, STYLES, schema
from serve.bulk.plan import write_plan
from serve.models.registry import resolve_checkpoint
from tests.conftest import ROOT
from tests.serve.conftest import Served, Stored

pytestmark = pytest.mark.middle


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven questions a task."""
    for name in ("QUESTIONS_PER_TASK", "PHOTOS_PER_TASK"):
        monkeypatch.setattr(plan_module, name, 7)


@pytest.fixture(scope="module")
def specimens(served: Served) -> list[Stored]:
    return served.specimens("test")


def write_fasta(path: Path, specimens: list[Stored]) -> Path:
    """All barcodes twice, the second time in lower case and wrapped, with what cannot be used between."""
    lines = [f">{one.key}\n{one.dna}\n" for one in specimens if one.dna]
    lines += [">wrong\nACGTXX\n", ">empty\n\n", ">other|Musca domestica|16S\nACGT\n"]
    wrapped = ((one.key, "\n".join([one.dna[:60], one.dna[60:]]).lower()) for one in specimens if one.dna)
    path.write_text("".join(lines + [f">again-{key}\n{dna}\n" for key, dna in wrapped]))
    return path


def run(served: Served, *arguments: Any, threshold: float = 0.2) -> int:
    given = ("--checkpoint", served.checkpoint, "--library", served.library, "--threshold", threshold, "--serial")
    return bulk.main([str(part) for part in (*arguments, *given)])


def test_every_record_of_a_fasta_has_its_row(
    served: Served,
    specimens: list[Stored],
    predictor: Predictor,
    tmp_path: Path,
    small_tasks: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = [one for one in specimens if one.dna]
    out = tmp_path / "result.parquet"
    assert run(served, write_fasta(tmp_path / "in.fasta", specimens), "--out", out) == 0
    table = pd.read_parquet(out).set_index("key", drop=False)
    order = [one.key for one in known] + ["wrong", "empty"] + [f"again-{one.key}" for one in known]
    assert [key for key in table["key"] if "other" not in key] == order and len(table) == len(order) + 1
    assert "X" in table.loc["wrong", "error"] and table.loc["empty", "error"] == "neither photo nor barcode"
    assert sum("16S" in str(told) or "marker" in str(told) for told in table["error"]) == 1
    answers = predictor.identify([Query(one.key, (), one.dna) for one in known], threshold=0.2)
    rows = {row["key"]: row for row in pq.read_table(out).to_pylist()}
    for one, answer in zip(known, answers, strict=True):
        row = rows[one.key]
        assert (row["name"], row["rank"]) == (answer.answer_name, answer.answer_rank)
        assert row["nearest_key"] == answer.evidence[0].key and row["barcode_length"] == answer.barcode.length
        for rank in answer.ranks:
            assert row[rank.rank] == rank.name and row[f"{rank.rank}_probability"] == pytest.approx(
                rank.probability, abs=1e-5
            )
    columns = [column for column in table.columns if column != "key"]
    first, again = (table.loc[[f"{start}{one.key}" for one in known], columns] for start in ("", "again-"))
    pd.testing.assert_frame_equal(first.reset_index(drop=True), again.reset_index(drop=True))
    told = json.loads((tmp_path / "result.parquet.json").read_text())
    assert told["records"] == len(table) and told["questions"] == len({one.dna for one in known}) + 1
    assert told["stops_at"]["error"] == 3 and sum(told["stops_at"].values()) == len(table)
    assert told["model"]["weights_sha256"] == predictor.card["weights_sha256"] and told["model"]["library"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.fasta", "result.parquet", "result.parquet.json"]
    assert f"{len(table):,} records, {told['questions']:,} different" in capsys.readouterr().out


def test_a_table_of_photos_and_barcodes(
    served: Served, specimens: list[Stored], predictor: Predictor, tmp_path: Path
) -> None:
    both = [one for one in specimens if one.image and one.dna][:4]
    photos = tmp_path / "photos"
    photos.mkdir()
    rows = []
    for number, one in enumerate(both):
        (photos / f"{number}.jpg").write_bytes(one.image if number < 3 else one.image[:200])
        rows.append({"museum_no": one.key, "image": f"{number}.jpg", "barcode": one.dna if number else ""})
    rows += [{"museum_no": "lost", "image": "lost.jpg", "barcode": both[0].dna}, {"museum_no": "nothing"}]
    pd.DataFrame(rows).to_csv(tmp_path / "in.csv", index=False)
    out = tmp_path / "out.parquet"
    options = ("--option", f"images={photos}", "--option", "columns=key=museum_no", "--format", "table")
    assert run(served, tmp_path / "in.csv", *options, "--out", out) == 0
    table = pd.read_parquet(out)
    assert table["key"].tolist() == [row["museum_no"] for row in rows]
    assert table["asked_with"].tolist()[:3] == ["image", "fused", "fused"]
    assert table["error"].notna().tolist() == [False, False, False, True, True, True]
    assert "lost.jpg" in table["error"][4] and table["name"].isna()[3:].all()
    queries = [Query("", (one.image,), one.dna if number else None) for number, one in enumerate(both[:3])]
    for row, answer in zip(table.to_dict("records"), predictor.identify(queries, threshold=0.2), strict=False):
        assert row["species_probability"] == pytest.approx(answer.ranks[-1].probability, abs=1e-5)
        assert row["image_share"] == pytest.approx(answer.share["image"], abs=1e-5)


def test_a_folder_of_photos_and_shards(served: Served, specimens: list[Stored], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, one in enumerate([one for one in specimens if one.image][:3]):
        (folder / f"moth{number}.jpg").write_bytes(one.image)
    assert run(served, folder, "--out", tmp_path / "photos.csv") == 0
    table = pd.read_csv(tmp_path / "photos.csv")
    assert table["key"].tolist() == [f"moth{number}.jpg" for number in range(3)] and table["error"].isna().all()
    assert run(served, served.shards, "--split", "test", "--split", "val", "--out", tmp_path / "shards.parquet") == 0
    table = pd.read_parquet(tmp_path / "shards.parquet")
    assert sorted(table["key"]) == sorted(one.key for split in ("test", "val") for one in served.specimens(split))
    assert table["error"].isna().all() and {"image", "fused"} <= set(table["asked_with"])


def test_through_ray_the_same(
    served: Served, specimens: list[Stored], tmp_path: Path, ray_session: None, small_tasks: None
) -> None:
    source = write_fasta(tmp_path / "in.fasta", specimens)
    for name, more in (("here", ["--serial"]), ("ray", ["--workers", "2"])):
        given = [source, "--out", tmp_path / f"{name}.parquet", "--checkpoint", served.checkpoint, *more]
        assert bulk.main([str(part) for part in given]) == 0
    assert (tmp_path / "here.parquet").read_bytes() == (tmp_path / "ray.parquet").read_bytes()
    broken = shutil.copytree(served.checkpoint, tmp_path / "broken")
    text = json.loads((broken / "calibration.json").read_text())
    (broken / "calibration.json").write_text(json.dumps(text | {"taxonomy": "other"}))
    given = [source, "--out", tmp_path / "no.parquet", "--checkpoint", broken, "--workers", "2"]
    assert bulk.main([str(part) for part in given]) == 2  # a mistake found by a worker


def test_a_worker_that_dies_is_replaced(
    served: Served, specimens: list[Stored], tmp_path: Path, ray_session: None, small_tasks: None
) -> None:
    (tmp_path / "photo.jpg").write_bytes(next(one.image for one in specimens if one.image))
    rows = [
        (one.key, str(tmp_path / "photo.jpg") if number == 20 else None, one.dna)
        for number, one in enumerate(one for one in specimens if one.dna)
    ]
    source = Rows(rows, {}, str(tmp_path / "died"))
    asking = BulkOptions(
        model=resolve_checkpoint(served.checkpoint),
        library="",
        threshold=0.2,
        subset=(),
        device="cpu",
        threads=1,
        within=0.02,
    )
    plan = bulk.make_plan(source, tmp_path / "state", {})
    bulk.answer(plan, source, asking, Namespace(serial=False, device="cpu", threads=1, workers=2))
    assert (tmp_path / "died").exists() and not plan.unfinished()
    for table in map(pq.read_table, map(plan.part, range(plan.tasks))):
        assert table["error"].null_count == len(table)


def test_a_killed_run_goes_on_and_ends_the_same(
    served: Served, specimens: list[Stored], tmp_path: Path, small_tasks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL while tasks are being answered; what was done is not done again."""
    source = write_fasta(tmp_path / "in.fasta", specimens)
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    assert run(served, source, "--out", whole) == 0
    script = (
        "import sys, time; from serve.bulk import job as bulk, plan; from serve.bulk.actors import Answerer\n"
        "plan.QUESTIONS_PER_TASK = 7\n"
        "once = Answerer.answer\n"
        "def slowly(self, task):\n    once(self, task)\n    time.sleep(60 if task == 2 else 0)\n    return 7\n"
        "Answerer.answer = slowly\nsys.exit(bulk.main(sys.argv[1:]))"
    )
    given = [source, "--out", out, "--checkpoint", served.checkpoint, "--library", served.library]
    arguments = [str(part) for part in (*given, "--threshold", "0.2", "--serial")]
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT)
    state = tmp_path / "out.parquet.unfinished"
    last = time.monotonic() + 120
    while not (state / "part-000002.parquet").is_file() and process.poll() is None and time.monotonic() < last:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in state.glob("part-*.parquet")}
    assert sorted(done) == [f"part-{task:06d}.parquet" for task in range(3)] and not out.exists()
    for mistake, words in (({"threshold": 0.3}, "other threshold"), ({}, "other records")):
        if not mistake:
            source.write_text(source.read_text() + ">more\nACGT\n")
        capsys.readouterr()
        assert run(served, source, "--out", out, **mistake) == 2
        assert words in capsys.readouterr().err
    write_fasta(source, specimens)
    assert run(served, source, "--out", out) == 0
    assert out.read_bytes() == whole.read_bytes() and not state.exists()


def test_a_failing_record_does_not_cost_the_others(
    served: Served, specimens: list[Stored], predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [one for one in specimens if one.dna][:5]
    asked = Predictor.identify

    def failing(self: Predictor, queries: list[Query], **options: Any) -> Any:
        if any(query.dna == known[2].dna for query in queries):
            raise RuntimeError("a fault")
        return asked(self, queries, **options)

    monkeypatch.setattr(Predictor, "identify", failing)
    assert run(served, write_fasta(tmp_path / "in.fasta", known), "--out", tmp_path / "out.parquet") == 0
    table = pd.read_parquet(tmp_path / "out.parquet").set_index("key")
    assert "a fault" in table.loc[known[2].key, "error"]
    assert table.loc[[one.key for one in known if one.dna != known[2].dna], "error"].isna().all()


@pytest.mark.parametrize("style", STYLES)
def test_styles(served: Served, specimens: list[Stored], tmp_path: Path, style: str) -> None:
    source = write_fasta(tmp_path / "in.fasta", specimens)
    for name in ("out.parquet", "out.csv"):
        assert run(served, source, "--names", style, "--out", tmp_path / name) == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.equals(schema(style)) and len(set(table.column_names)) == len(COLUMNS)
    told = json.loads((tmp_path / "out.csv.json").read_text())
    assert list(told["columns"]) == table.column_names and all(told["columns"].values())
    text = pd.read_csv(tmp_path / "out.csv", dtype=str)
    assert text.columns.tolist() == table.column_names and len(text) == len(table)
    rank, last = {
        "own": ("rank", "species"),
        "dwc": ("taxonRank", "specificEpithet"),
        "bold": ("identification_rank", "species"),
    }[style]
    frame = table.to_pandas()
    stopped = frame[rank].map({name: place for place, name in enumerate(RANKS)}).fillna(-1)
    assert stopped.nunique() > 1
    for place, name in enumerate((*RANKS[:-1], last)):
        empty = frame[name].isna()
        assert (
            empty
            == (
                (stopped < place)
                if style != "own"
                else frame[next(iter(table.column_names))].eq("") | (frame["error"].notna())
            )
        ).all()
    if style == "dwc":
        named = frame[frame[rank] == "species"]
        assert (named["scientificName"] == named["genus"] + " " + named["specificEpithet"]).all()


class Rows:
    """A source of given rows, in batches of three, some left out; who first reads a photo dies, once, if `died` is
    the name of a file."""

    def __init__(
        self, rows: list[tuple[str, str | None, str | None]], left_out: dict[int, tuple[str, str]], died: str = ""
    ) -> None:
        self.given, self.left_out, self.died = rows, left_out, died
        self.skipped: list[tuple[str, str]] = []

    def batches(self) -> Any:
        self.skipped.clear()
        for first in range(0, len(self.given), 3):
            keys, images, barcodes = zip(*self.given[first : first + 3], strict=True)
            if first in self.left_out:
                self.skipped.append(self.left_out[first])
            columns = {"image": pa.array(images, pa.string()), "barcode": pa.array(barcodes, pa.string())}
            yield pa.table({"key": keys} | columns)

    def load_image(self, ref: str) -> bytes:
        if not Path(self.died).exists():
            Path(self.died).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Path(ref).read_bytes()


def test_a_plan_numbers_questions_by_their_first_record(tmp_path: Path, small_tasks: None) -> None:
    rng = np.random.default_rng(0)
    barcodes = [None, "ACGT", "acg t", "TTTT"]
    rows = [
        (f"k{number}", None if rng.random() < 0.7 else f"p{rng.integers(3)}", barcodes[rng.integers(4)])
        for number in range(100)
    ]
    plan = write_plan(Rows(rows, {0: ("x", "bad"), 99: ("y", "worse")}), tmp_path, {})
    seen: dict[Any, int] = {}
    expected = []
    for number, (key, image, barcode) in enumerate(rows):
        question = (image, (barcode or "").replace(" ", "").upper())
        expected.append((key, -1 if question == (None, "") else seen.setdefault(question, len(seen))))
        expected += [("x", -1)] if number == 2 else [("y", -1)] if number == 99 else []
    written = [(row["key"], row["question"]) for batch in plan.rows() for row in batch.to_pylist()]
    assert written == expected and plan.records == 102 and plan.questions == len(seen)
    asked = [(row["image"], row["barcode"]) for task in range(plan.tasks) for row in plan.ask(task).to_pylist()]
    assert [(image, (barcode or "").replace(" ", "").upper()) for image, barcode in asked] == list(seen)
    assert {len(plan.ask(task)) for task in range(plan.tasks - 1)} <= {7}


def test_a_barcode_with_odd_letters_shares_no_question(tmp_path: Path) -> None:
    """A no-break space from a web page is the fault of its own record, in either order."""
    rows = [
        ("odd", None, "AC\u00a0GT"),
        ("clean", None, "ACGT"),
        ("wrapped", None, "AC\r\ngt"),
        ("long s", None, "\u017f"),
    ]
    plan = write_plan(Rows(rows, {}), tmp_path, {})
    assert [row["question"] for batch in plan.rows() for row in batch.to_pylist()] == [0, 1, 1, 2]


def test_photos_come_in_small_tasks(tmp_path: Path) -> None:
    """A worker holds the bytes of one task's photos, however many there are."""
    rows = [(f"k{number}", f"p{number}", None) for number in range(100)]
    plan = write_plan(Rows(rows, {}), tmp_path, {})
    assert plan.tasks == -(-100 // plan_module.PHOTOS_PER_TASK)
    assert [len(plan.ask(task)) for task in range(plan.tasks)] == [32, 32, 32, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/in.fasta", "--out", "{tmp}/x.txt"], ".csv, .parquet, .xlsx, .json"),
        (["{tmp}/in.fasta", "--out", "{tmp}/there.csv"], "--overwrite"),
        (["{tmp}/none", "--out", "{tmp}/x.csv"], "does not exist"),
        (["{tmp}/in.fasta", "--out", "{tmp}/x.csv", "--workers", "0"], "--workers: got 0"),
        (["{tmp}/in.fasta", "--out", "{tmp}/x.csv", "--device", "abacus"], "--device 'abacus'"),
        (["{tmp}/in.fasta", "--out", "{tmp}/x.csv", "--library", "{tmp}"], "manifest.json"),
        (["{tmp}/in.fasta", "--out", "{tmp}/x.csv", "--split", "test"], "with shards only"),
        (["{tmp}/in.fasta", "--out", "{tmp}/x.csv", "--only", "{tmp}/empty.txt"], "names"),
        (["{tmp}/in.fasta", "--out", "{tmp}/x.csv", "--option", "colour=red"], "colour=red"),
        (["{tmp}/empty.txt", "--format", "fasta", "--out", "{tmp}/x.csv"], "empty.txt"),
    ],
)
def test_mistakes_take_one_line(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (tmp_path / "in.fasta").write_text(">a\nACGT\n")
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "empty.txt").write_text("")
    given = [part.format(tmp=tmp_path) for part in arguments]
    assert bulk.main([*given, "--checkpoint", str(served.checkpoint), "--serial"]) == 2
    told = capsys.readouterr().err
    assert words in told and told.startswith("error: ") and told.count("\n") == 1
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "in.fasta", "there.csv"]


def test_the_library_that_was_exported_with_a_model_is_used(
    served: Served, specimens: list[Stored], tmp_path: Path
) -> None:
    model = shutil.copytree(served.checkpoint, tmp_path / "model")
    shutil.copytree(served.library, model / "library")
    source = write_fasta(tmp_path / "in.fasta", specimens)
    given = [source, "--checkpoint", model, "--out", tmp_path / "out.parquet", "--serial"]
    assert bulk.main([str(part) for part in given]) == 0
    assert pq.read_table(tmp_path / "out.parquet")["nearest_key"].null_count < len(specimens)


def test_a_checklist_restricts_the_answers(
    served: Served, specimens: list[Stored], predictor: Predictor, tmp_path: Path
) -> None:
    (order,) = {one["name"] for one in predictor.taxa() if one["rank"] == "order"} & {"Diptera"}
    (tmp_path / "names.txt").write_text(f"# mine\n{order}\n\n")
    source = write_fasta(tmp_path / "in.fasta", specimens)
    assert run(served, source, "--only", tmp_path / "names.txt", "--out", tmp_path / "out.parquet") == 0
    assert set(pd.read_parquet(tmp_path / "out.parquet")["order"].dropna()) == {order}
