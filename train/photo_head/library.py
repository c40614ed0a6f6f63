"""The photo side of a reference library: known photos' features and names, answered from and extended without training.

manifest.json      format version, the trunk whose features they are, settings of the analysis, licence, sha256 of files
records.parquet    one row per photo: key, RANKS
features.npy       int16 [M, D]
gram.npy           float64 [D, D], the exact sum of outer products, so that `add` reads new photos only

Legend: M photos, N queries, V views, D dimensions, C lineages, R ranks, T_r taxa of a rank, K neighbours.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.errors import UserError
from engine.specimens.taxonomy import RANKS, Taxonomy
from engine.store.shards import file_sha256
from train.photo_head.discriminant import Counts, Discriminant, Settings, normalise, quantise, unit
from train.photo_head.selection import select
from train.reference.features import nearest_features

FORMAT_VERSION = 1
MANIFEST, RECORDS, FEATURES, GRAM = "manifest.json", "records.parquet", "features.npy", "gram.npy"
COLUMNS = ("key", *RANKS)
_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])


@dataclasses.dataclass(frozen=True)
class Posterior:
    """What a photo library says about N specimens; taxa are numbered as in its `taxonomy`."""

    ranks: tuple[np.ndarray, ...]  # per rank float64 [N, T_r], probabilities
    novelty: np.ndarray  # float64 [N], higher = farther from every lineage
    novel: np.ndarray  # bool [N], whether it is beyond what 95% of known lineages' photos reach


@dataclasses.dataclass(frozen=True, eq=False)
class PhotoLibrary:
    """Known photos, a value: `add` and `remove` return new ones. Made by `build`, read by `load`."""

    records: pa.Table  # M rows of _SCHEMA
    features: np.ndarray  # int16 [M, D]
    gram: np.ndarray  # float64 [D, D]
    trunk: Mapping[str, Any]  # description of the trunk and the views (train.embed); JSON types
    settings: Settings = dataclasses.field(default_factory=Settings)
    licence: str = "not stated"

    @classmethod
    def build(cls, records: pa.Table, views: np.ndarray, trunk: Mapping[str, Any]) -> "PhotoLibrary":
        """Make a library and fit its settings by cross-validation.

        Args:
            records: M rows with COLUMNS; names that are missing are null.
            views: features [M, V, D] as the trunk gives them.
            trunk: what made them.

        Raises:
            UserError: no photo, keys that repeat, numbers that differ.
        """
        width = views.shape[-1]
        empty = cls(_SCHEMA.empty_table(), np.zeros((0, width), np.int16), np.zeros((width, width)), dict(trunk))
        return empty.add(records, views, trunk).chosen()

    def chosen(self) -> "PhotoLibrary":
        """Return the library with temperatures and threshold fitted to its photos (`selection.select`)."""
        lineages, lineage = self._lineages
        return dataclasses.replace(self, settings=select(self.features, lineage, lineages, self.settings))

    def add(self, records: pa.Table, views: np.ndarray, trunk: Mapping[str, Any]) -> "PhotoLibrary":
        """Return a library with more photos, arguments as of `build`; the settings stay.

        Raises UserError as `build`, and for features of another trunk.
        """
        self._check_trunk(trunk)
        if len(records) != len(views) or not len(records):
            raise UserError("photo library", f"{len(records)} records, {len(views)} photos", "as many, not 0")
        columns = [
            records[name].cast(pa.string()) if name in records.column_names else pa.nulls(len(records), pa.string())
            for name in COLUMNS
        ]
        table = pa.concat_tables([self.records, pa.Table.from_arrays(columns, schema=_SCHEMA)]).combine_chunks()
        if (distinct := pc.count_distinct(table["key"]).as_py()) < len(table):
            raise UserError("photo library", f"{len(table) - distinct} keys that it has already", "new keys")
        new = quantise(normalise(views))
        rows = new.astype(np.float64)
        features = np.concatenate([self.features, new])
        return dataclasses.replace(self, records=table, features=features, gram=self.gram + rows.T @ rows)

    def remove(self, keys: Sequence[str]) -> "PhotoLibrary":
        """Return a library without these photos, as if they had never been there.

        Raises UserError for a key that it has not, and when none would stay.
        """
        out = np.asarray(pc.is_in(self.records["key"], pa.array(list(keys), pa.string())))
        if out.sum() != len(set(keys)) or out.all():
            got = f"{len(set(keys))} keys to remove, {out.sum()} of them in it"
            raise UserError("photo library", got, "keys that it has, not all of them")
        rows = self.features[out].astype(np.float64)
        kept = np.flatnonzero(~out)
        return dataclasses.replace(
            self,
            records=self.records.take(kept).combine_chunks(),
            features=self.features[kept],
            gram=self.gram - rows.T @ rows,
        )

    def _check_trunk(self, trunk: Mapping[str, Any]) -> None:
        differing = [key for key in self.trunk if self.trunk[key] != trunk.get(key)]
        if differing:
            key = differing[0]
            got = f"features with {key} {_short(trunk.get(key))}"
            raise UserError("photo library", got, f"those of its trunk: {_short(self.trunk[key])}")

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """Return the taxa that answers may name."""
        return Taxonomy.build({rank: self.records[rank] for rank in RANKS})

    @cached_property
    def labels(self) -> np.ndarray:
        """Return the photos' taxa, int64 [M, R], -1 = unknown."""
        return self.taxonomy.encode({rank: self.records[rank] for rank in RANKS})

    @cached_property
    def _lineages(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the different lineages int64 [C, R] and each photo's, int64 [M]."""
        lineages, lineage = np.unique(self.labels, axis=0, return_inverse=True)
        return lineages, lineage.ravel()

    @cached_property
    def discriminant(self) -> Discriminant:
        """Return the analysis of all photos; solved once."""
        lineages, lineage = self._lineages
        sums = np.zeros((len(lineages), self.features.shape[1]))
        np.add.at(sums, lineage, self.features.astype(np.float64))
        counts = Counts(self.gram, sums, np.bincount(lineage, minlength=len(lineages)))
        return Discriminant(counts, lineages, self.settings)

    def specimen(self, views: np.ndarray, trunk: Mapping[str, Any]) -> np.ndarray:
        """Return the unit feature [D] of one specimen from all views [P, V, D] of its P photos."""
        self._check_trunk(trunk)
        return unit(quantise(normalise(views)).astype(np.float64).mean(0))

    def posterior(self, features: np.ndarray) -> Posterior:
        """Answer N specimens by unit features [N, D] of `specimen`."""
        odds, novelty = self.discriminant.log_odds(features)
        return Posterior(self.discriminant.probabilities(odds), novelty, novelty > self.settings.novelty)

    def nearest(self, features: np.ndarray, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Return the photos of highest cosine to unit features [N, D]: rows int64 [N, K] and cosines [N, K]."""
        return nearest_features(features, unit(self.features.astype(np.float64)), k)

    def save(self, folder: str | Path) -> str:
        """Write the library into a folder, made if it is not there; return its checksum (sha256 over all files')."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.records, place / RECORDS)
        np.save(place / FEATURES, self.features, allow_pickle=False)
        np.save(place / GRAM, self.gram, allow_pickle=False)
        files = {name: file_sha256(place / name) for name in (RECORDS, FEATURES, GRAM)}
        checksum = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
        manifest = {
            "format_version": FORMAT_VERSION,
            "photos": len(self.records),
            "trunk": dict(self.trunk),
            "settings": dataclasses.asdict(self.settings),
            "licence": self.licence,
            "files": files,
            "checksum": checksum,
        }
        (place / MANIFEST).write_text(json.dumps(manifest, indent=1))
        return checksum

    @classmethod
    def load(cls, folder: str | Path) -> "PhotoLibrary":
        """Read a folder of `save`. Raises UserError: no library, another format version, or a file that differs."""
        place = Path(folder)
        try:
            manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
            version, files = manifest["format_version"], manifest["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            got = f"{place}, which cannot be read ({error!r})"
            raise UserError("photo library", got, "a folder of save") from None
        if version != FORMAT_VERSION:
            raise UserError("photo library", f"format version {version!r} of {place}", FORMAT_VERSION)
        for name in (RECORDS, FEATURES, GRAM):
            if not (place / name).is_file() or file_sha256(place / name) != files.get(name):
                got = f"{place / name}, which is not the file that was saved"
                raise UserError("photo library", got, "a folder of save")
        settings = manifest["settings"]
        return cls(
            records=pq.read_table(place / RECORDS, schema=_SCHEMA),
            features=np.load(place / FEATURES, allow_pickle=False),
            gram=np.load(place / GRAM, allow_pickle=False),
            trunk=manifest["trunk"],
            settings=Settings(**{**settings, "temperatures": tuple(settings["temperatures"])}),
            licence=manifest["licence"],
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
