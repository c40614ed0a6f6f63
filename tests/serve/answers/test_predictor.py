"""The predictor: its answers are the evaluation's, hold together along lineages, and one bad query harms no other."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from engine.batches.pipeline import select_split
from engine.signals.barcodes import clean, reverse_complement
from engine.specimens.taxonomy import RANKS
from serve.answers.answer import STOPS, Answer, Query, QueryError
from serve.answers.candidates import FILE as CANDIDATES
from serve.answers.predictor import Options, Predictor
from serve.answers.query import MAX_IMAGES, MAX_LETTERS
from serve.http.schemas import AnswerBody
from tests.serve.conftest import Served, Stored
from train.evaluation.known_questions import Part
from train.evaluation.model_under_test import Setting
from train.evaluation.top1_accuracy import Subsets, rank_queries
from train.inference.calibration import FILE, WITH_LIBRARY, Calibration, FittedLibrary
from train.inference.nearest import Combiner
from train.models import checkpoint
from train.pages import report
from train.reference import Library

pytestmark = pytest.mark.middle

CLOSE = 1e-5


def query(one: Stored, image: bool = True, dna: bool = True) -> Query:
    return Query(one.key, (one.image,) if image and one.image else (), one.dna if dna else None)


@pytest.fixture(scope="module")
def both(served: Served) -> list[Stored]:
    return [one for one in served.specimens() if one.image and one.dna][:12]


def numbers(answer: Answer) -> list[float]:
    found = [taxon.probability for rank in answer.ranks for taxon in rank.taxa]
    found += [taxon.score for rank in answer.ranks for taxon in rank.taxa]
    found += [value for flag in (answer.novelty, answer.disagreement) if flag for value in (flag.score,) if value]
    return [*found, *answer.share.values()]


def same(one: Answer, other: Answer) -> None:
    assert [[taxon.name for taxon in rank.taxa] for rank in one.ranks] == [
        [taxon.name for taxon in rank.taxa] for rank in other.ranks
    ]
    assert (one.answer_name, one.stopped, one.ties) == (other.answer_name, other.stopped, other.ties)
    np.testing.assert_allclose(numbers(one), numbers(other), atol=CLOSE)


@pytest.mark.parametrize("asked", ["image", "dna"])
def test_answers_are_those_of_the_evaluation(served: Served, asked: str) -> None:
    """Names and scores of predictions.parquet, probabilities of the calibration file, for the same specimens."""
    predictor = Predictor.load(served.checkpoint)
    loaded = checkpoint.load(served.checkpoint)
    setting = Setting(loaded.model, loaded.config, loaded.taxonomy, served.index, "test")
    encoded = setting.encoded("test")
    rankings = rank_queries(loaded.model, setting.scorer, encoded, [(asked, "clean")], ["rollup"])
    rows = np.flatnonzero(encoded.mask(asked))
    none = Subsets(group=np.arange(len(encoded.keys)), novel=None, both=encoded.has_both)
    told = report.predictions(select_split(served.index, "test"), encoded, rankings, loaded.taxonomy, none).to_pylist()
    part = Part(setting, "test", Combiner(Library.load(served.library), loaded.taxonomy))
    found = part.asked(asked, rows).cases().answers
    calibrated = Calibration.load(served.checkpoint / FILE).queries[asked].probabilities(found.evidence)
    specimens = {one.key: one for one in served.specimens()}
    queries = [query(specimens[encoded.keys[row]], asked != "dna", asked != "image") for row in rows]
    answers = predictor.identify(queries, threshold=0.5)
    assert len(answers) == len(rows) > 20
    for place, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        assert isinstance(answer, Answer) and answer.asked_with == asked and answer.calibrated
        for column, rank in enumerate(answer.ranks):
            name = f"{asked}_clean_{rank.rank}"
            best = max(rank.taxa, key=lambda taxon: taxon.score)
            assert best.score == pytest.approx(told[row][f"{name}_score"], abs=CLOSE)
            assert best.name == told[row][name]
            assert rank.name == loaded.taxonomy.names[column][found.path[place, column]]
            assert rank.probability == pytest.approx(calibrated[place, column], abs=CLOSE)


@pytest.mark.parametrize(("asked", "name"), [("dna", "dna+library"), ("fused", "pooled+library"), ("fused", "pooled")])
def test_pooled_answers_are_those_of_the_evaluation(served: Served, asked: str, name: str) -> None:
    """The same lineages, evidence and probabilities as when the calibration is measured; and the library counts."""
    backed = name.endswith(WITH_LIBRARY)
    predictor = Predictor.load(served.checkpoint, library=served.library if backed else None)
    loaded = checkpoint.load(served.checkpoint)
    setting = Setting(loaded.model, loaded.config, loaded.taxonomy, served.index, "test")
    part = Part(setting, "test", Combiner(Library.load(served.library), loaded.taxonomy))
    calibrator = Calibration.load(served.checkpoint / FILE).queries[name]
    rows = np.flatnonzero(part.mask(asked))
    found = part.asked(name, rows).cases(calibrator.pool)
    probabilities = calibrator.probabilities(found.answers.evidence)
    specimens = {one.key: one for one in served.specimens()}
    queries = [query(specimens[part.clean.keys[row]], asked != "dna", asked != "image") for row in rows]
    answers = predictor.identify(queries, threshold=0.5)
    assert len(answers) == len(rows) > 20
    for place, answer in enumerate(answers):
        assert isinstance(answer, Answer) and answer.calibrated
        for column, rank in enumerate(answer.ranks):
            assert rank.name == loaded.taxonomy.names[column][found.answers.path[place, column]]
            assert rank.probability == pytest.approx(probabilities[place, column], abs=CLOSE)
    if not backed:
        return
    alone = part.asked(asked, rows).cases()
    species = RANKS.index("species")
    assert found.right[:, species].mean() > alone.right[:, species].mean() + 0.2  # random weights know no species


def test_alone_in_a_batch_and_in_another_order(predictor: Predictor, both: list[Stored]) -> None:
    queries = [query(one, image=number % 3 != 1, dna=number % 3 != 2) for number, one in enumerate(both)]
    together = predictor.identify(queries, top=20)
    backwards = predictor.identify(queries[::-1], top=20)[::-1]
    for one, answer, other in zip(queries, together, backwards, strict=True):
        (alone,) = predictor.identify([one], top=20)
        assert isinstance(alone, Answer) and isinstance(answer, Answer) and isinstance(other, Answer)
        assert alone.key == answer.key == one.key
        same(alone, answer)
        same(alone, other)


def test_probabilities_hold_together_along_every_lineage(predictor: Predictor, both: list[Stored]) -> None:
    """No parent below the sum of its children, no rank above 1, the answered taxon as calibrated: for all taxa."""
    lineages = [
        {name: predictor.taxonomy.lineage_names(row) for name, row in zip(names, rows.tolist(), strict=True)}
        for names, rows in zip(predictor.taxonomy.names, predictor.taxonomy.lineages, strict=True)
    ]
    for model in (predictor, plain(predictor)):
        for answer in model.identify([query(one) for one in both], top=100):
            assert isinstance(answer, Answer)
            chances = [{taxon.name: taxon.probability for taxon in rank.taxa} for rank in answer.ranks]
            assert all(len(told) == len(names) for told, names in zip(chances, model.taxonomy.names, strict=True))
            assert sum(chances[0].values()) <= 1 + CLOSE
            for rank in range(1, len(RANKS)):
                for parent, chance in chances[rank - 1].items():
                    children = [p for name, p in chances[rank].items() if lineages[rank][name][rank - 1] == parent]
                    assert sum(children) <= chance + CLOSE
            for told in answer.ranks:
                assert next(one.probability for one in told.taxa if one.name == told.name) == told.probability
            for rank, unknown in enumerate(answer.unknown):
                within = answer.ranks[rank - 1].name if rank else None
                assert unknown.within == within
                known = sum(
                    p for name, p in chances[rank].items() if not rank or lineages[rank][name][rank - 1] == within
                )
                whole = answer.ranks[rank - 1].probability if rank else 1.0
                assert known + unknown.probability == pytest.approx(whole, abs=CLOSE)
            assert len(answer.unknown) == (len(RANKS) if answer.calibrated else 0)
            own = [told.probability for told in answer.ranks]
            assert own == sorted(own, key=lambda one: -(one or 0.0))


def plain(predictor: Predictor) -> Predictor:
    """The same model without its calibration."""
    return Predictor(predictor.model, predictor.data, predictor.scorer, card=predictor.card)


def test_without_a_calibration_probabilities_are_the_scores(predictor: Predictor, both: list[Stored]) -> None:
    for answer in plain(predictor).identify([query(one) for one in both]):
        assert isinstance(answer, Answer) and not answer.calibrated
        assert answer.novelty.flagged is None and answer.disagreement and answer.disagreement.flagged is None
        for rank in answer.ranks:
            for taxon in rank.taxa:
                assert taxon.probability == pytest.approx(taxon.score, abs=CLOSE)


def test_the_answer_is_the_deepest_rank_that_reaches_the_threshold(predictor: Predictor, both: list[Stored]) -> None:
    one = query(both[0])
    (answer,) = predictor.identify([one])
    assert isinstance(answer, Answer)
    chances = {rank.rank: rank.probability for rank in answer.ranks}
    (none,) = predictor.identify([one], threshold=1.0)
    assert isinstance(none, Answer) and none.answer_rank is none.answer_name is None and none.stopped == "threshold"
    assert "order" in none.why and "below the threshold 1" in none.why
    (deepest,) = predictor.identify([one], threshold=0.0)
    assert isinstance(deepest, Answer) and deepest.answer_rank == "species" and deepest.stopped == "deepest"
    (genus,) = predictor.identify([one], threshold=0.0, ranks=("genus", "order"))
    assert isinstance(genus, Answer) and genus.answer_rank == "genus"
    assert [rank.rank for rank in genus.ranks] == ["order", "genus"]
    assert genus.answer_probability == pytest.approx(chances["genus"], abs=CLOSE)
    assert {none.stopped, deepest.stopped} <= set(STOPS)


def test_several_photos_count_as_their_mean(predictor: Predictor, both: list[Stored]) -> None:
    first, second = (one.image for one in both[:2])
    assert first and second
    apart = predictor.embed([Query("a", (first,)), Query("b", (second,)), Query("c", (first, second))])
    vectors = [one.image for one in apart if not isinstance(one, QueryError)]
    mean = (vectors[0] + vectors[1]) / np.linalg.norm(vectors[0] + vectors[1])
    np.testing.assert_allclose(vectors[2], mean, atol=CLOSE)
    twice, once = predictor.identify([Query("d", (first, first)), Query("e", (first,))])
    assert isinstance(twice, Answer) and isinstance(once, Answer)
    same(twice, once)


def test_a_barcode_on_the_other_strand_gets_the_same_answer(predictor: Predictor, both: list[Stored]) -> None:
    given = both[0].dna
    assert given
    there, back = predictor.identify([Query("+", (), given), Query("-", (), f">x\n{reverse_complement(given)}\n")])
    assert isinstance(there, Answer) and isinstance(back, Answer) and there.barcode and back.barcode
    assert (there.barcode.strand, back.barcode.strand) == (1, -1)
    same(there, back)


def test_shares_evidence_and_card(served: Served, predictor: Predictor, both: list[Stored]) -> None:
    photo, dna, fused = predictor.identify(
        [
            query(both[0], dna=False),
            query(both[0], image=False),
            query(both[0]),
        ]
    )
    assert isinstance(photo, Answer) and isinstance(dna, Answer) and isinstance(fused, Answer)
    assert dict(photo.share) == {"image": 1.0, "dna": 0.0, "library": 0.0} and photo.experts == ()
    assert [[one.expert for one in answer.experts] for answer in (dna, fused)] == [
        ["barcode", "library"],
        ["photo", "barcode", "library"],
    ]
    for answer in (dna, fused):
        weights = [one.weight for one in answer.experts]
        assert sum(answer.share.values()) == pytest.approx(1) and min(weights) >= 0
        assert list(answer.share.values())[-len(weights) :] == pytest.approx([one / sum(weights) for one in weights])
        near = {one.name for one in answer.evidence} | {name for tie in answer.ties for name in tie.names}
        assert answer.experts[-1].species in near
    assert photo.disagreement is None and fused.disagreement and fused.disagreement.flagged is not None
    assert photo.evidence == () and photo.barcode is None
    nearest = fused.evidence[0]
    assert nearest.identity > 0.9 and nearest.overlap > 300 and nearest.rank == "species"
    card = json.loads((served.library / "manifest.json").read_text())
    assert fused.model["library"]["checksum"] == card["checksum"]
    assert len(fused.model["weights_sha256"]) == 64 and fused.model["version"] == fused.model["weights_sha256"][:12]
    for answer in (photo, dna, fused):
        AnswerBody.model_validate(json.loads(json.dumps(answer.to_dict())), extra="forbid")


def test_ties_are_named(predictor: Predictor, both: list[Stored]) -> None:
    """Random weights hardly tell species apart, so taxa of half the answer's score are tied with it."""
    (answer,) = predictor.identify([query(both[0])], top=100)
    assert isinstance(answer, Answer)
    species = answer.ranks[-1]
    best = next(taxon.score for taxon in species.taxa if taxon.name == species.name)
    near = {taxon.name for taxon in species.taxa if taxon.score >= 0.5 * best}
    assert len(near) > 1
    (tie,) = [tie for tie in answer.ties if tie.rank == "species" and tie.source == "model"]
    assert set(tie.names) == near


def test_what_is_wrong_with_a_query_is_its_own(predictor: Predictor, both: list[Stored]) -> None:
    good = query(both[0])
    assert good.dna
    bad = [
        Query("nothing"),
        Query("no photo", (b"\0" * 100,)),
        Query("cut", ((both[0].image or b"")[:200],)),
        Query("second", (*good.images, b"")),
        Query("many", good.images * (MAX_IMAGES + 1)),
        Query("letters", (), "ACGT!\0" * 30),
        Query("empty", (), ""),
        Query("gaps", (), "NNN---"),
        Query("two", (), f">a\n{good.dna}\n>b\n{good.dna}"),
        Query("long", (), "A" * (MAX_LETTERS + 1)),
        Query("../../etc/passwd", (), "../../etc/passwd"),
    ]
    answers = predictor.identify([good, *bad, good])
    assert [answer.key for answer in answers] == [one.key for one in (good, *bad, good)]
    for answer in answers[1:-1]:
        assert isinstance(answer, QueryError) and answer.what and answer.allowed
    assert isinstance(answers[3], QueryError) and "damaged JPEG" in answers[3].what
    assert isinstance(answers[4], QueryError) and answers[4].what.startswith("photo 2 of 2")
    assert isinstance(answers[0], Answer) and isinstance(answers[-1], Answer)
    same(answers[0], answers[-1])


def test_no_name_for_what_is_no_coi(predictor: Predictor) -> None:
    other = "".join(np.random.default_rng(1).choice(list("ACGT"), 600))
    (answer,) = predictor.identify([Query("x", (), other)], threshold=0.0)
    assert isinstance(answer, Answer) and answer.barcode and answer.barcode.is_coi is False
    assert answer.answer_name is None and answer.stopped == "not_coi" and answer.ranks[0].name


def test_a_checklist_restricts_and_misspellings_are_told(predictor: Predictor, both: list[Stored]) -> None:
    one = query(both[0])
    genera, species = predictor.taxonomy.names[2], predictor.taxonomy.names[3]
    genus = genera[-1]
    inside = [
        name
        for name, row in zip(species, predictor.taxonomy.lineages[3].tolist(), strict=True)
        if row[2] == len(genera) - 1
    ]
    wrong = species[0][:-1]
    (answer,) = predictor.identify([one], subset=[genus.upper(), wrong], threshold=0.0, top=100)
    assert isinstance(answer, Answer) and answer.restriction
    assert answer.ranks[2].name == genus and answer.answer_name in inside
    assert sum(taxon.score for taxon in answer.ranks[3].taxa if taxon.name in inside) == pytest.approx(1, abs=CLOSE)
    assert answer.restriction.known == 1 and species[0] in answer.restriction.unknown[wrong]
    (error,) = predictor.identify([one], subset=["Nobody knowsit"])
    assert isinstance(error, QueryError) and "none of them a taxon" in error.what
    items = [(predictor.prepare(one), Options(subset=subset, top=3)) for subset in (None, (genus,), None)]
    free, held, again = predictor.answer(items)
    assert isinstance(free, Answer) and isinstance(held, Answer) and isinstance(again, Answer)
    assert free.restriction is None and held.restriction and held.ranks[2].name == genus
    same(free, again)


def test_no_answer_where_nobody_knows_what_it_is_worth(predictor: Predictor, both: list[Stored]) -> None:
    """A model that was calibrated on barcodes alone has towers for photos all the same."""
    assert predictor.calibration
    rules = {"dna": predictor.calibration.queries["dna"]}
    calibration = dataclasses.replace(predictor.calibration, queries=rules)
    barcodes = Predictor(predictor.model, predictor.data, predictor.scorer, calibration=calibration)
    photo, dna = barcodes.identify([query(both[0], dna=False), query(both[0], image=False)])
    assert isinstance(photo, QueryError) and photo.allowed == "dna" and isinstance(dna, Answer)


def test_options_out_of_range_are_refused(predictor: Predictor) -> None:
    for options in ({"threshold": 1.5}, {"ranks": ("tribe",)}, {"ranks": ()}, {"top": 0}, {"threshold": float("nan")}):
        with pytest.raises(ValueError, match="allowed"):
            predictor.identify([Query("x")], **options)


def test_candidates_are_made_once_and_only_for_these_weights(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(served.checkpoint, folder)
    (folder / CANDIDATES).unlink(missing_ok=True)
    first = Predictor.load(folder)
    text = first.scorer.text
    assert (folder / CANDIDATES).is_file()
    before = (folder / CANDIDATES).stat().st_mtime_ns
    np.testing.assert_array_equal(Predictor.load(folder).scorer.text, text)
    assert (folder / CANDIDATES).stat().st_mtime_ns == before
    (folder / CANDIDATES).write_bytes(b"rubbish")
    np.testing.assert_array_equal(Predictor.load(folder).scorer.text, text)
    loaded = checkpoint.load(folder)
    parameter = next(loaded.model.text_encoder.parameters())
    parameter.data.add_(1.0)
    checkpoint.save(folder, loaded.model, loaded.config, loaded.taxonomy, step=1, state=None)
    assert not np.allclose(Predictor.load(folder).scorer.text, text)


def test_a_calibration_of_another_taxonomy_is_refused(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(served.checkpoint, folder)
    dataclasses.replace(Calibration.load(folder / FILE), taxonomy="0" * 64).save(folder / FILE)
    with pytest.raises(ValueError, match="fit it anew"):
        Predictor.load(folder)


def test_a_library_that_the_calibration_was_not_fitted_with_is_told(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(served.checkpoint, folder)
    manifest = json.loads((served.library / "manifest.json").read_text())
    fitted = Calibration.load(folder / FILE)
    for checksum, records, told in (
        (manifest["checksum"], 1, False),
        ("", manifest["records"], False),
        ("0" * 64, manifest["records"], True),
        ("", 1, True),
    ):
        library = FittedLibrary("moths", records, checksum)
        dataclasses.replace(fitted, library=library).save(folder / FILE)
        caplog.clear()
        card = Predictor.load(folder, library=served.library).card
        assert card["calibration_library"] == str(library) and str(library).startswith("moths (")
        assert (f"fitted with {library}; to fit" in caplog.text) == told


def test_real_photos_and_barcodes(real_data: Path, predictor: Predictor) -> None:
    """Real barcodes against a library of others of their species, real photos through the decoder: every specimen has
    an answer, its barcode is found to be COI, and its nearest reference is nearly always of its species."""
    rows = pq.read_table(real_data / "bold" / "barcodes.parquet").filter(pc.field("split") != "val").to_pylist()
    species = sorted({row["species"] for row in rows})[::40]
    chosen = [row for row in rows if row["species"] in species]
    known = [row for row in chosen if row["split"] == "train"]
    asked = [row for row in chosen if row["split"] == "test"][:200]
    records = pa.table(
        {"key": [row["processid"] for row in known]}
        | {name: [row[name] for row in known] for name in (*RANKS, "bin_uri", "country")}
    )
    library = Library.build(records, [clean(row["barcode"]) for row in known])
    model = Predictor(predictor.model, predictor.data, predictor.scorer, library=library, card=predictor.card)
    folder = real_data / "moths"
    photos = pq.read_table(folder / "specimens.parquet", columns=["image"])["image"].to_pylist()[:: 1638 // len(asked)]
    queries = [
        Query(row["processid"], ((folder / photo).read_bytes(),), row["barcode"])
        for row, photo in zip(asked, photos, strict=False)
    ]
    answers = [answer for answer in model.identify(queries) if isinstance(answer, Answer)]
    assert len(answers) == len(queries) > 50
    coi = [answer.barcode.is_coi for answer in answers if answer.barcode]
    assert sum(one is True for one in coi) >= 0.97 * len(answers)
    right = [answer.evidence[0].name == row["species"] for answer, row in zip(answers, asked, strict=False)]
    assert sum(right) >= 0.9 * len(answers)


def test_a_long_checklist_is_not_remembered(predictor: Predictor) -> None:
    before = predictor._remembered.cache_info().currsize
    name = predictor.taxonomy.names[0][0]
    for extra in ("a", "b"):
        subset = [name, *(f"Nobody {extra}{number}" for number in range(3_000))]
        (answer,) = predictor.identify([Query("a", dna="ACGT" * 40)], subset=subset)
        assert isinstance(answer, Answer)
    assert predictor._remembered.cache_info().currsize == before
