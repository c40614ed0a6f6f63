"""Examples for the page, made of what the service already has; nothing is shipped.

A model that was trained on simulated specimens gets some of their test split, photo and barcode; any other gets
barcodes of species that it knows from its reference library, whole and damaged. Without either there are none.
"""

import base64
import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.formats.registry import open_dataset
from engine.signals import degrade
from engine.signals.nucleotides import reverse_complement
from engine.specimens.schema import rng_for
from engine.specimens.taxonomy import RANKS, Taxonomy
from train.models.checkpoint import CONFIG, TAXONOMY
from train.reference.library import LETTERS, RECORDS, STARTS

_SIMULATED = re.compile(r"simulated-(\d+)(?:-(\d+))?")  # the folder that `train.main` writes
_FRAGMENT = 120  # nucleotides
_LENGTHS = (600, 700)  # of a whole barcode
_LOOKED_AT = 2000  # references

Example = dict[str, str | None]  # title, told, dna, image (base64 of a JPEG)


@lru_cache(maxsize=8)
def examples_of(checkpoint: str, library: str) -> tuple[Example, ...]:
    """Return the examples for a model (checkpoint folder) with a library (folder, "" = none)."""
    folder = Path(checkpoint)
    shards = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["data"]["shards"]
    names = [_SIMULATED.fullmatch(Path(place).name) for place in shards]
    if names and (found := names[0]):
        size = {"num_specimens": int(found[2]), "num_species": min(120, int(found[2]) // 40)} if found[2] else {}
        return _simulated(int(found[1]), size)
    return _of_library(Path(library), Taxonomy.load(folder / TAXONOMY)) if library else ()


def _simulated(seed: int, size: dict[str, Any]) -> tuple[Example, ...]:
    source = open_dataset("simulated", [], seed=seed, **size)
    rows = pa.concat_tables(source.batches())
    rows = rows.filter(
        pc.and_(pc.equal(rows["split"], "test"), pc.and_(rows["image"].is_valid(), rows["barcode"].is_valid()))
    )
    one, other = _two_orders(rows)
    photo, foreign = (base64.b64encode(source.load_image(row["image"])).decode() for row in (one, other))
    rng = rng_for(seed, 0, one["key"], "example")
    damaged = degrade.degrade_barcode(one["barcode"], rng, severity=4.0)
    name = one["species"]
    return (
        _example("Photo and barcode", f"of one simulated specimen of {name}", one["barcode"], photo),
        _example("Photo alone", f"the same {name}, without its barcode", None, photo),
        _example("Photo, and a damaged barcode", "the same, many letters of the barcode lost", damaged, photo),
        _example("Two different specimens", f"photo of {other['species']}, barcode of {name}", one["barcode"], foreign),
    )


def _two_orders(rows: pa.Table) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two specimens of different orders, of the most frequent species that share their BIN with no other."""
    named = rows.filter(pc.and_(rows["species"].is_valid(), rows["bin_uri"].is_valid())).to_pylist()
    species: dict[str, set[str]] = {}
    for row in named:
        species.setdefault(row["bin_uri"], set()).add(row["species"])
    count = Counter(row["species"] for row in named)
    plain = [row for row in named if len(species[row["bin_uri"]]) == 1]
    plain.sort(key=lambda row: -count[row["species"]])
    return plain[0], next(row for row in plain if row["order"] != plain[0]["order"])


def _of_library(folder: Path, taxonomy: Taxonomy) -> tuple[Example, ...]:
    records = pq.read_table(folder / RECORDS, columns=["species", "country", "haplotype"])
    species = pa.array(taxonomy.names[RANKS.index("species")])
    good = pc.and_(pc.is_in(records["species"], species), pc.greater_equal(records["haplotype"], 0))
    places = np.flatnonzero(good.to_numpy())
    places = rng_for(0, 0, "", "examples").permutation(places)[:_LOOKED_AT]
    letters, starts = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (LETTERS, STARTS))
    found: dict[str, tuple[str, str]] = {}
    for row in records.take(pa.array(places)).to_pylist():
        barcode = letters[starts[row["haplotype"]] : starts[row["haplotype"] + 1]].tobytes().decode("ascii")
        if _LENGTHS[0] <= len(barcode) <= _LENGTHS[1] and "N" not in barcode:
            found.setdefault(row["species"], (barcode, row["country"] or "no country given"))
        if len(found) == 3:
            break
    if len(found) < 3:
        return ()
    (first, (whole, country)), (second, (part, _)), (third, (poor, _)) = found.items()
    rng = rng_for(0, 0, third, "example")
    shuffled = "".join(rng.permutation(list(whole)).tolist())
    return (
        _example("A whole barcode", f"{first}, {country}; in the library", whole, None),
        _example(
            f"A fragment of {_FRAGMENT} letters",
            f"{second}, on the other strand",
            reverse_complement(degrade.window_at(part, _FRAGMENT, 0.5)),
            None,
        ),
        _example(
            "A damaged barcode",
            f"{third}, with errors and letters lost",
            degrade.degrade_barcode(poor, rng, severity=4.0),
            None,
        ),
        _example("No barcode at all", "the letters of the first one, shuffled", shuffled, None),
    )


def _example(title: str, told: str, dna: str | None, image: str | None) -> Example:
    return {"title": title, "told": told, "dna": dna, "image": image}
