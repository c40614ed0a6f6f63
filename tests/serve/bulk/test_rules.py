"""Rules on stored answers: groups, checklists, provisional taxa; what they read from files."""

import itertools
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.specimens.taxonomy import RANKS
from serve.bulk import again
from serve.bulk.columns import candidates_of, candidates_text, schema, styled
from serve.bulk.name_files import read_checklist, read_groups
from serve.bulk.rules import Rules, applied, rules_of

ABOVE = ("Diptera", "Syrphidae")
THRESHOLDS = dict.fromkeys(RANKS, 0.9)


def row_of(key: str, *species: tuple[str, float], path: tuple[float, ...] = (0.99, 0.98, 0.97), **more: object) -> dict:
    """A row whose species have these probabilities, the first one the likeliest."""
    lineages = [((*ABOVE, name.split()[0], name), share) for name, share in species]
    names, shares = lineages[0][0], (*path, species[0][1])
    row: dict[str, object] = {"key": key, "stopped": "threshold", "why": "", "candidates": candidates_text(lineages)}
    for rank, name, share in zip(RANKS, names, shares, strict=True):
        row |= {rank: name, f"{rank}_probability": share}
    return row | {"name": names[2], "rank": "genus", "probability": shares[2]} | more


def table_of(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema())


def judged(rules: Rules, *rows: dict) -> list[dict]:
    def tables() -> Iterator[pa.Table]:
        return iter([table_of(*rows)])

    return pa.concat_tables(applied(tables, rules)).to_pylist()


def test_candidates_survive_their_cell() -> None:
    given = [((*ABOVE, "Eristalis", "Eristalis tenax"), 0.5), (("Diptera", "", "Musca", "Musca sp. a=b"), 0.25)]
    assert candidates_of(candidates_text([*given, (("x",) * 4, 1e-9)])) == given
    assert candidates_text([]) is None and candidates_of(None) == []


def test_a_group_answers_where_its_members_share_the_probability() -> None:
    groups = {"Eristalis tenax": "Eristalis complex", "Eristalis similis": "Eristalis complex"}
    rules = Rules(thresholds=THRESHOLDS, groups=groups)
    both, lone, other, less = judged(
        rules,
        row_of("a", ("Eristalis tenax", 0.5), ("Eristalis similis", 0.45), consensus_names="Eristalis tenax (3)"),
        row_of("b", ("Eristalis tenax", 0.95), ("Eristalis similis", 0.01)),
        row_of("c", ("Eristalis arbustorum", 0.6), ("Eristalis tenax", 0.3)),
        row_of("d", ("Eristalis tenax", 0.5), ("Eristalis similis", 0.39)),
    )
    assert (both["name"], both["rank"], both["stopped"]) == ("Eristalis complex", "group", "group")
    assert both["probability"] == both["group_probability"] == pytest.approx(0.95)
    assert both["consensus_group"] == "Eristalis complex" and "Eristalis similis 0.450" in both["why"]
    assert (lone["name"], lone["rank"], lone["group"]) == ("Eristalis tenax", "species", "Eristalis complex")
    assert (other["rank"], other["group_probability"]) == ("genus", 0.3)
    assert (less["name"], less["rank"]) == ("Eristalis", "genus")
    dwc = styled(table_of(both), "dwc").to_pylist()[0]
    assert (dwc["genus"], dwc["specificEpithet"], dwc["taxonRank"]) == ("Eristalis", None, "group")


def test_a_checklist_is_a_prior_on_the_candidates() -> None:
    row = row_of("a", ("Eristalis tenax", 0.6), ("Eristalis similis", 0.37), path=(1.0, 1.0, 0.98))
    listed = frozenset({"Eristalis similis"})
    (strict,) = judged(Rules(thresholds=THRESHOLDS, checklist=listed), row)
    assert (strict["name"], strict["on_checklist"]) == ("Eristalis similis", False)
    assert strict["probability"] == pytest.approx(0.37 / 0.4) and strict["species"] == "Eristalis tenax"
    (soft,) = judged(Rules(thresholds=THRESHOLDS, checklist=listed, weight=0.5), row)
    assert (soft["name"], soft["rank"]) == ("Eristalis", "genus")
    assert soft["probability"] == pytest.approx((0.98 - 0.3) / 0.7)
    (same,) = judged(Rules(thresholds=THRESHOLDS, checklist=listed, weight=1.0), row)
    assert (same["name"], same["probability"]) == ("Eristalis", pytest.approx(0.98))
    (genus,) = judged(Rules(thresholds=THRESHOLDS, checklist=frozenset({"Eristalis"})), row)
    assert genus["on_checklist"] and genus["probability"] == pytest.approx(0.98)
    (gone,) = judged(
        Rules(thresholds=THRESHOLDS, checklist=frozenset({"Musca"})), row | {"candidates": row["candidates"]}
    )
    assert gone["rank"] == "family" or gone["rank"] is None
    whole = row_of("a", ("Eristalis tenax", 1.0), path=(1.0, 1.0, 1.0))
    assert judged(Rules(thresholds=THRESHOLDS, checklist=listed), whole)[0]["name"] is None


def barcode(rng: np.random.Generator, of: str = "", changes: int = 0) -> str:
    letters = np.array(list(of)) if of else rng.choice(list("ACGT"), 658)
    for place in rng.choice(len(letters), changes, replace=False):
        letters[place] = "ACGT"["ACGT".index(letters[place]) - 1]
    return "".join(letters)


def test_unknown_species_become_provisional_taxa_whatever_the_order() -> None:
    rng = np.random.default_rng(3)
    first, second = barcode(rng), barcode(rng)
    near = barcode(rng, first, 8)
    chained = barcode(rng, near, 8)
    unknown = {"novel": True, "nearest_identity": 0.9, "nearest_name": "Eristalis tenax"}
    rows = [
        row_of("a", ("Eristalis tenax", 0.2), barcode=first, **unknown),
        row_of("b", ("Eristalis tenax", 0.2), barcode=near, **unknown | {"nearest_identity": 0.93}),
        row_of("c", ("Eristalis tenax", 0.2), barcode=chained, **unknown),
        row_of("d", ("Musca domestica", 0.2), barcode=second, **unknown),
        row_of("e", ("Musca domestica", 0.2), barcode=second, **unknown | {"rank": "family", "name": "Syrphidae"}),
        row_of("f", ("Musca domestica", 0.99), barcode=first, novel=False),
        row_of("g", ("Musca domestica", 0.2), barcode=first, novel=True, stopped="not_coi"),
        row_of("h", ("Musca domestica", 0.2), novel=True),
        {"key": "i", "error": "a fault"},
    ]
    rules = Rules(thresholds=THRESHOLDS)
    found = {row["key"]: row for row in judged(rules, *rows)}
    assert [found[key]["provisional"] for key in "abc"] == ["Eristalis sp. TF-1"] * 3
    assert {found[key]["provisional"] for key in "de"} == {"Musca sp. TF-2"}
    assert [found[key]["provisional"] for key in "fghi"] == [None] * 4
    one = found["a"]
    assert (one["provisional_size"], one["provisional_nearest"], one["provisional_identity"]) == (
        3,
        "Eristalis tenax",
        0.93,
    )
    for order in itertools.islice(itertools.permutations(rows), 5, 60, 11):
        assert {row["key"]: row for row in judged(rules, *order)} == found
    apart = judged(Rules(thresholds=THRESHOLDS, distance=0.001), *rows)
    assert len({row["provisional"] for row in apart if row["provisional"]}) == 4


def test_again_applies_the_rules_and_keeps_what_was_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    rows = [
        row_of("a", ("Eristalis tenax", 0.5), ("Eristalis similis", 0.45)),
        row_of("b", ("Musca nova", 0.2), novel=True, barcode=barcode(rng), provisional="Musca sp. TF-9"),
    ]
    result = tmp_path / "r.csv"
    from serve.bulk.writers import WRITERS

    with result.open("wb") as sink, WRITERS[".csv"](sink, schema()) as writer:
        writer.write_table(table_of(*rows))
    (tmp_path / "g.txt").write_text("Eristalis complex: Eristalis tenax, Eristalis similis  # by hand\n")
    words = [str(result), "--groups", str(tmp_path / "g.txt"), "--threshold", "0.9"]
    out = tmp_path / "again.parquet"
    assert again.main([*words, "--out", str(out)]) == 0
    first, second = pq.read_table(out).to_pylist()
    assert (first["name"], first["original_name"]) == ("Eristalis complex", "Eristalis")
    assert (second["provisional"], second["original_provisional"]) == ("Musca sp. TF-1", "Musca sp. TF-9")
    back = tmp_path / "back.parquet"
    assert again.main([str(out), "--out", str(back)]) == 0
    first = pq.read_table(back).to_pylist()[0]
    assert (first["name"], first["group"]) == ("Eristalis", None)


def test_files_of_names(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("\ufeff# Norway\nEristalis tenax (Linnaeus, 1758)\nMusca\nSyrphidae\n\nMusca\n", encoding="utf-8")
    assert read_checklist(lines) == ["Eristalis tenax", "Musca", "Syrphidae"]
    gbif = tmp_path / "0001-species.csv"
    head = "taxonKey\tscientificName\tacceptedScientificName\tnumberOfOccurrences\ttaxonRank\tgenus\tspecies\n"
    rows = (
        "1\tEristalis tenax (L., 1758)\tEristalis tenax (L., 1758)\t12\tSPECIES\tEristalis\tEristalis tenax\n"
        "2\tMusca Linnaeus, 1758\tMusca Linnaeus, 1758\t3\tGENUS\tMusca\t\n"
        '3\tPieris napi "x" subsp. napi\tPieris napi (Linnaeus, 1758)\t3\tSUBSPECIES\tPieris\tPieris napi\n'
    )
    gbif.write_text(head + rows)
    assert read_checklist(gbif) == ["Eristalis tenax", "Pieris napi"]
    (tmp_path / "groups.txt").write_text("# ours\nAnopheles gambiae s.l.: Anopheles gambiae, Anopheles coluzzii\n")
    assert set(read_groups(tmp_path / "groups.txt").values()) == {"Anopheles gambiae s.l."}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Eristalis tenax, Eristalis similis", "GROUP: species, species"),
        ("one: Eristalis tenax", "line 1 of "),
        ("one: Musca a, Musca b\ntwo: Musca a, Musca c", "in one and in two"),
        ("# nothing", "names nothing"),
    ],
)
def test_groups_that_cannot_be_read(text: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text(text)
    with pytest.raises(ValueError, match=part):
        read_groups(tmp_path / "g.txt")


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"soft": 0.5}, "--soft: got 0.5 and no checklist"),
        ({"cluster": 2.0}, "--cluster: got 2.0"),
        ({"groups": Path("/x")}, "/x"),
    ],
)
def test_options_out_of_range(wrong: dict[str, object], part: str) -> None:
    options = {"groups": None, "checklist": None, "soft": None, "cluster": 0.02} | wrong
    with pytest.raises(ValueError, match=part):
        rules_of(Namespace(**options), THRESHOLDS)
