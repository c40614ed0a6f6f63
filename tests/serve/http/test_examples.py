"""Examples for the page: made of the model's own simulated specimens, or of the library's barcodes."""

import base64
import json
import shutil
from pathlib import Path

import pytest

from engine.signals.images import decode
from engine.signals.nucleotides import reverse_complement
from serve.answers.answer import Answer, Query
from serve.answers.predictor import Predictor
from serve.http.examples import examples_of
from tests.serve.conftest import Served
from train.models.checkpoint import CONFIG
from train.reference import Library

pytestmark = pytest.mark.middle


def test_of_simulated_specimens(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({"data": {"shards": ["/runs/simulated-3-320", "/other"]}}))
    both, photo, damaged, mixed = examples_of(str(tmp_path), "")
    assert photo["image"] == both["image"] == damaged["image"] != mixed["image"] and photo["dna"] is None
    assert both["dna"] == mixed["dna"] != damaged["dna"]
    for one in (both, mixed):
        assert decode(base64.b64decode(one["image"])).shape == (128, 128, 3)


def test_of_the_library(served: Served, predictor: Predictor) -> None:
    whole, fragment, damaged, shuffled = examples_of(str(served.checkpoint), str(served.library))
    library = Library.load(served.library)
    held = {library.barcode(number) for number in range(library.num_haplotypes)}
    assert whole["dna"] in held and damaged["dna"] not in held
    assert any(reverse_complement(fragment["dna"]) in one for one in held) and len(fragment["dna"]) == 120
    assert sorted(shuffled["dna"]) == sorted(whole["dna"]) != list(shuffled["dna"])
    assert not any(one["image"] for one in (whole, fragment, damaged, shuffled))
    answers = predictor.identify([Query("", (), one["dna"]) for one in (whole, fragment, damaged, shuffled)])
    assert all(isinstance(one, Answer) for one in answers)
    assert answers[3].stopped == "not_coi" and answers[1].barcode.strand == -1
    assert answers[0].evidence[0].identity == 1.0


def test_none_without_either(served: Served, tmp_path: Path) -> None:
    assert examples_of(str(served.checkpoint), "") == ()
    shutil.copytree(served.library, tmp_path / "library")
    other = shutil.copytree(served.checkpoint, tmp_path / "other")
    assert examples_of(str(other), str(tmp_path / "library"))
    with pytest.raises(FileNotFoundError):
        examples_of(str(tmp_path), "")
