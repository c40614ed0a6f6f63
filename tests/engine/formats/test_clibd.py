"""CLIBD's HDF5 and CLIBD-HiR's CSV files in their layouts."""

import logging
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from engine.formats.clibd_hir_csv import read_caption
from engine.specimens.taxonomy import RANKS
from tests.engine.formats import fixtures
from tests.engine.formats.fixtures import FLY, names_of, read, write

# ---- CLIBD's HDF5


def test_clibd_hdf5_of_bioscan1m(tmp_path: Path) -> None:
    groups = {name: list(range(10 * i, 10 * i + 8)) for i, name in enumerate(fixtures.CLIBD_GROUPS)}
    for name, parts in fixtures.CLIBD_UNIONS.items():
        groups[name] = [n for part in parts for n in groups[part]]
    made = fixtures.clibd_hdf5(tmp_path / "BioScan_data_in_splits.hdf5", groups)
    ours, source = read("clibd-hdf5", tmp_path)
    assert set(ours["key"]) == set(made) and ours["key"].is_unique
    load = pickle.loads(pickle.dumps(source.load_image))
    for key, specimen in made.items():
        assert names_of(ours, key) == tuple(
            None if specimen[rank] == "not_classified" else specimen[rank] for rank in RANKS
        )
        assert ours["barcode"][key] == specimen["barcode"]
        if specimen["photo"]:
            assert load(ours["image"][key]) == specimen["photo"]
        else:
            with pytest.raises(ValueError, match="missing image file: length 0"):
                load(ours["image"][key])
    split = {f"id{n}": name for name in fixtures.CLIBD_GROUPS for n in groups[name]}
    assert ours["split"]["id0"] == "pretrain" and ours["split"]["id10"] == "train"
    keys = ours["key"][ours["split"] == "key_unseen"]
    assert set(keys) == {f"id{n}" for n in groups["all_keys"]}
    assert set(ours["key"][ours["split"] == "other_heldout"]) == {k for k, v in split.items() if v == "single_species"}
    repeated = "specimens already taken from another group: "
    assert sorted(source.skipped) == [
        ("BioScan_data_in_splits.hdf5 group all_keys", f"{repeated}24"),
        ("BioScan_data_in_splits.hdf5 group no_split_and_seen_train", f"{repeated}16"),
    ]


def test_clibd_hdf5_of_bioscan5m(tmp_path: Path) -> None:
    groups = {
        "all_keys": [1, 7, 21, 22],
        "seen_keys": [1, 7],
        "unseen_keys": [21, 22],
        "no_split_and_seen_train": [0, 1, 2, 7],
        "val_seen": [31],
        "other_heldout": [41],
    }
    fixtures.clibd_hdf5(tmp_path / "BIOSCAN_5M.hdf5", groups, "processid")
    ours, _ = read("clibd-hdf5", tmp_path / "BIOSCAN_5M.hdf5")
    assert ours["split"].to_dict() == {
        "id0": "pretrain",  # no species
        "id1": "train",
        "id2": "pretrain",
        "id7": "train",
        "id21": "key_unseen",
        "id22": "key_unseen",
        "id31": "val",
        "id41": "other_heldout",
    }


def test_clibd_hdf5_errors(tmp_path: Path) -> None:
    photos = fixtures.hdf5_of({"1.jpg": b"x"}, tmp_path / "photos.hdf5")
    with pytest.raises(ValueError, match=r"photos.hdf5 with bioscan_dataset at the top; allowed: groups named after"):
        read("clibd-hdf5", photos)
    with pytest.raises(ValueError, match=r"junk.h5, which cannot be read .*; allowed: an HDF5 file"):
        read("clibd-hdf5", write(tmp_path / "junk.h5", b"junk"))


# ---- CLIBD-HiR


@pytest.mark.parametrize(
    ("caption", "known", "names"),
    [
        ("Diptera Chironomidae Chironomus Chironomus plumosus", (1, 1, 1, 1), FLY),
        ("Diptera Chironomidae Chironomus plumosus", (1, 1, 1, 1), FLY),
        ("Diptera Chironomidae Chironomus not_classified", (1, 1, 1, 0), (*FLY[:3], None)),
        ("Diptera Chironomidae", (1, 1, 0, 0), (*FLY[:2], None, None)),
        ("Diptera Chironomus", (1, 0, 1, 0), ("Diptera", None, "Chironomus", None)),
        ("Diptera Formica rufa", (1, 0, 0, 1), ("Diptera", None, None, "Formica rufa")),
        ("", (0, 0, 0, 0), (None,) * 4),
        ("Diptera", (1, 1, 0, 0), None),
        ("Diptera Chironomidae Chironomus", (1, 1, 0, 0), None),
        ("Diptera Chironomidae Chironomus Chironomus plumosus", None, FLY),
        ("Diptera Chironomidae", None, (*FLY[:2], None, None)),
        ("Chironomidae", None, (None, "Chironomidae", None, None)),
        ("Diptera", None, ("Diptera", None, None, None)),
        ("Chironomus Chironomus plumosus", None, (None, None, *FLY[2:])),
        ("Diptera Chironomidae Chironomus", None, (*FLY[:3], None)),
    ],
)
def test_captions(caption: str, known: tuple[int, ...] | None, names: Any) -> None:
    assert read_caption(caption, known if known is None else [bool(one) for one in known]) == names


HIR_HEADER = "image_file,taxonomy,nucraw,unique_label,order,family,genus,species,All_level_label"
HIR_ROWS = [
    '1.jpg,Diptera Chironomidae Chironomus Chironomus plumosus,ACGT,0,3,12,7,5,"[3, 12, 7, 5]"',
    '2.jpg,Diptera Chironomidae not_classified not_classified,ACGA,1,3,12,0,0,"[3, 12, 0, 0]"',
    '3.jpg,a photo of something,ACGG,2,3,99,0,0,"[3, 99, 0, 0]"',
    '4.jpg,not_classified,,3,0,0,0,0,"[0, 0, 0, 0]"',
]


@pytest.mark.parametrize("only_lists", [False, True])
def test_clibd_hir_codes_get_their_names_from_captions(
    tmp_path: Path, only_lists: bool, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.read_csv(write(tmp_path / "in.csv", "\n".join([HIR_HEADER, *HIR_ROWS])), dtype=str)
    (tmp_path / "in.csv").unlink()
    kept = frame.drop(columns=list(RANKS)) if only_lists else frame
    kept.to_csv(tmp_path / "train_split.csv", index=False)
    write(tmp_path / "val.csv", f"{','.join(list(kept.columns))}\n")
    kept.iloc[:1].replace("1.jpg", "9.jpg").to_csv(tmp_path / "val.csv", index=False)
    hdf5 = fixtures.hdf5_of({"1.jpg": fixtures.photo(1), "9.jpg": fixtures.photo(9)}, tmp_path / "original_256.hdf5")
    with caplog.at_level(logging.WARNING):
        ours, source = read("clibd-hir-csv", tmp_path / "train_split.csv", tmp_path / "val.csv", hdf5)
    assert names_of(ours, "1.jpg") == names_of(ours, "9.jpg") == FLY
    assert names_of(ours, "2.jpg") == (*FLY[:2], None, None)
    assert names_of(ours, "3.jpg") == ("Diptera", "family-99", None, None) and "family-99 (1)" in caplog.text
    assert names_of(ours, "4.jpg") == (None,) * 4 and pd.isna(ours["barcode"]["4.jpg"])
    assert ours["split"].to_dict() == {**{f"{n}.jpg": "train" for n in range(1, 5)}, "9.jpg": "val"}
    assert source.load_image(ours["image"]["9.jpg"]) == fixtures.photo(9)
    with pytest.raises(ValueError, match=r"missing image file: 2.jpg in"):
        source.load_image(ours["image"]["2.jpg"])


def test_clibd_hir_lists_are_never_evaluated(tmp_path: Path) -> None:
    trap = f'__import__("pathlib").Path({str(tmp_path / "evaluated")!r}).touch()'.replace('"', '""')
    lists = [f'"{trap}"', '"[1, 2, 3]"', '"[1, 2, 3, -4]"', '"[0, 0, 0, 0]"', ""]
    rows = [f"{n}.jpg,Diptera,ACGT,{text}" for n, text in enumerate(lists)]
    path = write(tmp_path / "test.csv", "\n".join(["image_file,taxonomy,nucraw,All_level_label", *rows]))
    ours, source = read("clibd-hir-csv", path)
    assert list(ours["key"]) == ["3.jpg"] and not (tmp_path / "evaluated").exists()
    assert source.skipped == [(f"{n}.jpg", "All_level_label that is no list of four integers") for n in (0, 1, 2, 4)]


def test_clibd_hir_inference_file_has_captions_only(tmp_path: Path) -> None:
    path = write(tmp_path / "test.csv", "image_file,taxonomy,nucraw\n1.jpg,Diptera Chironomidae,ACGT\n2.jpg,,AC\n")
    ours, _ = read("clibd-hir-csv", path)
    assert names_of(ours, "1.jpg") == (*FLY[:2], None, None) and names_of(ours, "2.jpg") == (None,) * 4
