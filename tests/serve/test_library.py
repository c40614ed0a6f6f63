"""The command of the reference library: build, add, inspect."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from serve.library import main
from tests.serve.conftest import Served
from train.reference import Library
from train.reference.library import MANIFEST, POSTINGS, RECORDS

pytestmark = pytest.mark.middle


def fasta(path: Path, **barcodes: str) -> Path:
    path.write_text("".join(f">{key}|Musca domestica\n{sequence}\n" for key, sequence in barcodes.items()))
    return path


def test_build_add_inspect(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    barcodes = [one.dna for one in served.specimens("test") if one.dna]
    folder = tmp_path / "libraries" / "mine"
    assert main(["build", str(served.shards), "--out", str(folder), "--licence", "CC0-1.0"]) == 0
    first = Library.load(folder)
    assert first.version == 1 and first.records.equals(Library.load(served.library).records)
    assert main(["add", str(folder), str(fasta(tmp_path / "a.fasta", one=barcodes[0], two=barcodes[1]))]) == 0
    second = Library.load(folder)
    assert second.version == 2 and second.records["key"].to_pylist()[-2:] == ["one", "two"]
    assert first.search([barcodes[0]]).distance.min() >= second.search([barcodes[0]]).distance.min() == 0
    capsys.readouterr()
    assert main(["add", str(folder), str(fasta(tmp_path / "b.fasta", two=barcodes[1], six=barcodes[2], bad="XX"))]) == 0
    told = capsys.readouterr().out
    assert "stayed out: 1 whose key" in told and "bad: " in told and Library.load(folder).version == 3
    assert main(["inspect", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "version:        3" in told and f"specimens:      {len(first.records) + 3:,}" in told
    assert "licence:        CC0-1.0" in told
    assert sorted(path.name for path in folder.parent.iterdir()) == ["mine"]
    (folder / RECORDS).write_bytes(b"")
    assert main(["inspect", str(folder)]) == 1
    assert RECORDS in capsys.readouterr().out


def test_features_of_a_model_go_with_the_records(served: Served, tmp_path: Path) -> None:
    out = str(tmp_path / "f")
    assert main(["build", str(served.shards), "--out", out, "--checkpoint", str(served.checkpoint)]) == 0
    library = Library.load(out)
    assert set(library.features) == {"dna", "image"}
    assert len(library.features["dna"]) == len(library.records)


def test_a_library_of_the_first_format_is_refused_and_rebuilt(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(served.library, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in [name for name in manifest["files"] if name.startswith("cluster_")]:
        (folder / name).unlink()
        del manifest["files"][name]
    checksum = hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format_version": 1, "checksum": checksum}))
    assert main(["inspect", str(folder)]) == 2
    assert f"taxafuse library rebuild {folder}" in capsys.readouterr().err
    assert main(["rebuild", str(folder)]) == 0
    assert Library.load(folder).records.equals(Library.load(served.library).records)
    assert (folder / POSTINGS).read_bytes() == (served.library / POSTINGS).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "nowhere", "--out", "{tmp}/x"], "nowhere"),
        (["build", "{shards}", "--out", "{shards}"], "is not empty"),
        (["build", "{shards}", "--out", "{tmp}/x", "--format", "fasta", "--option", "colour=red"], "colour=red"),
        (["build", "{shards}", "--out", "{tmp}/x", "--split", "train2"], "train2"),
        (["add", "{tmp}", "{shards}"], "manifest.json"),
        (["add", "{library}", "{shards}"], "all of which it has already"),
        (["inspect", "{tmp}"], "manifest.json"),
    ],
)
def test_mistakes_take_one_line(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    places = {"tmp": tmp_path, "shards": served.shards, "library": served.library}
    assert main([part.format(**places) for part in arguments]) == 2
    told = capsys.readouterr().err
    assert words in told and told.startswith("error: ") and told.count("\n") == 1
