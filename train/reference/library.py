"""A reference library: the barcodes, names and features of known specimens, in one folder, searched without training.

manifest.json        format version, version of the library, counts, licence, sha256 of every other file
records.parquet      one row per specimen: COLUMNS, NOTED, `haplotype`: its place among different barcodes (-1 = none)
letters.npy          the different barcodes (haplotypes) on their coding strand, one after another; starts.npy: where
cluster_NAME.npy     which of them lead the others, and how these differ (`train.reference.clusters`)
offsets.npy, postings.npy   the inverted index of the leaders' k-mers (`train.reference.seeds`)
features_MODALITY.npy       float16 [M, D], unit rows, zeros where a specimen has none; optional

Legend: M records (specimens), H haplotypes, N queries, R ranks, D dimensions.
"""

import dataclasses
import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.signals.barcodes import orient_batch
from engine.specimens.names import is_species
from engine.specimens.taxonomy import RANKS, Taxonomy
from engine.store.shards import file_sha256
from train.reference.clusters import Clusters
from train.reference.search import ROUNDS, Hits, SearchOptions, Targets, search
from train.reference.seeds import SeedIndex

FORMAT_VERSION = 2
MANIFEST, RECORDS, LETTERS, STARTS, OFFSETS, POSTINGS = (
    "manifest.json",
    "records.parquet",
    "letters.npy",
    "starts.npy",
    "offsets.npy",
    "postings.npy",
)
COLUMNS = ("key", *RANKS, "bin_uri", "country")
NOTED = ("identified_by", "identified_on")  # of names that a person corrected: who, and the day
_SCHEMA = pa.schema([*((name, pa.string()) for name in (*COLUMNS, *NOTED)), ("haplotype", pa.int32())])
_SPECIES = RANKS.index("species")


@dataclasses.dataclass(frozen=True, eq=False)
class Library:
    """References and their index; a value: `extend` returns a new one. Built by `build`, read by `load`."""

    records: pa.Table  # M rows of _SCHEMA
    letters: np.ndarray  # uint8, ASCII
    starts: np.ndarray  # int64 [H + 1]
    clusters: Clusters
    index: SeedIndex  # of the leaders
    features: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # modality -> float16 [M, D]
    version: int = 1  # one more with every extension
    licence: str = "not stated"  # of the records; answers name it

    @classmethod
    def build(
        cls, records: pa.Table, barcodes: Sequence[str], features: Mapping[str, np.ndarray] | None = None
    ) -> "Library":
        """Make a library.

        Args:
            records: M rows with COLUMNS and NOTED, of which those that are missing are null.
            barcodes: M clean barcodes, "" = none; equal ones, on either strand, are stored once.
            features: modality -> [M, D], of one model; rows of zeros = none.

        Raises:
            ValueError: lengths that differ, or nothing to search in.
        """
        return _assemble(records, barcodes, [], features or {}, 1)

    def extend(
        self, records: pa.Table, barcodes: Sequence[str], features: Mapping[str, np.ndarray] | None = None
    ) -> "Library":
        """Return a library with more references, arguments as of `build`; only the index is made anew.

        Raises ValueError as `build`, and for features of another width or modality than those there are.
        """
        added = dict(features or {})
        if {name: part.shape[1] for name, part in added.items()} != {
            name: part.shape[1] for name, part in self.features.items()
        }:
            widths = {name: part.shape[1] for name, part in self.features.items()}
            got = {name: part.shape[1] for name, part in added.items()}
            raise ValueError(f"reference library: got features {got}, allowed those of the library: {widths}")
        haplotypes = [self.barcode(number) for number in range(self.num_haplotypes)]
        joined = {name: np.concatenate([self.features[name], added[name]]) for name in self.features}
        longer = _assemble(records, barcodes, haplotypes, joined, self.version + 1, self.records)
        return dataclasses.replace(longer, licence=self.licence)

    @property
    def num_haplotypes(self) -> int:
        """The different barcodes, H."""
        return len(self.starts) - 1

    def barcode(self, number: int) -> str:
        """Return one haplotype's letters, on its coding strand."""
        return self.letters[self.starts[number] : self.starts[number + 1]].tobytes().decode("ascii")

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """The taxa that answers may name: species only where the label is a binomial or trinomial, all higher ones."""
        return Taxonomy.build(self.names)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [M, R], taxa of `taxonomy`, -1 = unknown or no binomial."""
        return self.taxonomy.encode(self.names)

    @cached_property
    def names(self) -> dict[str, pa.ChunkedArray]:
        """Rank -> the records' labels [M], null = unknown or no binomial."""
        columns = {rank: self.records[rank] for rank in RANKS}
        given = columns["species"].dictionary_encode().combine_chunks()
        named = pa.array(is_species(given.dictionary.to_pylist()))
        good = pc.fill_null(pc.take(named, given.indices), False) if len(named) else pc.is_valid(given)
        columns["species"] = pa.chunked_array([pc.if_else(good, columns["species"].combine_chunks(), None)])
        return columns

    @cached_property
    def records_per_species(self) -> np.ndarray:
        """Specimens of every species of `taxonomy`, int64 [species]."""
        return np.bincount(self.labels[:, _SPECIES] + 1, minlength=self.taxonomy.sizes[_SPECIES] + 1)[1:]

    @cached_property
    def _first_species(self) -> np.ndarray:
        """int64 [H]: the first known species among a haplotype's records, -1 = none."""
        haplotype = self.records["haplotype"].to_numpy()
        species = self.labels[:, _SPECIES]
        known = np.flatnonzero((haplotype >= 0) & (species >= 0))[::-1]
        first = np.full(self.num_haplotypes, -1)
        first[haplotype[known]] = species[known]
        return first

    @cached_property
    def rows_of(self) -> tuple[np.ndarray, np.ndarray]:
        """Records by haplotype, the most finely labelled first, and where each haplotype's begin.

        Rows are int64 [M], those without a barcode in front; the beginnings int64 [H + 1].
        """
        haplotype = self.records["haplotype"].to_numpy()
        depth = np.where(self.labels >= 0, np.arange(len(RANKS)), -1).max(axis=1, initial=-1)
        rows = np.lexsort((-depth, haplotype))
        return rows, np.searchsorted(haplotype[rows], np.arange(self.num_haplotypes + 1))

    def search(
        self,
        barcodes: Sequence[str],
        options: SearchOptions | None = None,
        threads: int = 1,
        without: Sequence[int] | None = None,
    ) -> Hits:
        """Find the nearest haplotypes of clean barcodes on either strand; "" finds nothing.

        `without` names for each query a species of `taxonomy` whose references are passed over, -1 = none.
        """
        return search(barcodes, self._targets, ROUNDS if options is None else (options,), threads, without)

    @cached_property
    def _targets(self) -> Targets:
        return Targets(self.index, self.clusters, self.letters, self.starts, self._first_species)

    def save(self, folder: str | Path) -> str:
        """Write the library into a folder, made if it is not there; returns its checksum (sha256 over all files')."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.records, place / RECORDS)
        arrays = {
            LETTERS: self.letters,
            STARTS: self.starts,
            OFFSETS: self.index.offsets,
            POSTINGS: self.index.postings,
        }
        arrays |= {f"cluster_{name}.npy": getattr(self.clusters, name) for name in Clusters.names()}
        arrays |= {f"features_{name}.npy": part for name, part in self.features.items()}
        for name, array in arrays.items():
            np.save(place / name, array, allow_pickle=False)
        files = {name: file_sha256(place / name) for name in (RECORDS, *arrays)}
        manifest = {
            "format_version": FORMAT_VERSION,
            "version": self.version,
            "kmer": self.index.k,
            "records": len(self.records),
            "haplotypes": self.num_haplotypes,
            "features": sorted(self.features),
            "licence": self.licence,
            "files": files,
            "checksum": _checksum(files),
        }
        (place / MANIFEST).write_text(json.dumps(manifest, indent=1))
        return str(manifest["checksum"])

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> "Library":
        """Read a folder written by `save`; the index stays on disk, memory-mapped.

        Args:
            folder: where the library is.
            verify: compare every file's checksum, which reads all of them once.

        Raises:
            ValueError: no library there, another format version, or a file that is missing, damaged or changed.
        """
        manifest = read_manifest(folder)
        arrays = _stored(Path(folder), manifest, verify)
        clusters = Clusters(*(arrays[f"cluster_{name}.npy"] for name in Clusters.names()))
        index = SeedIndex(int(manifest["kmer"]), arrays[OFFSETS], arrays[POSTINGS])
        return cls._of(Path(folder), manifest, arrays, clusters, index)

    @classmethod
    def rebuilt(cls, folder: str | Path) -> "Library":
        """Read a folder of this or an older format and make its index anew. Raises ValueError as `load`."""
        manifest = read_manifest(folder, range(1, FORMAT_VERSION + 1))
        arrays = _stored(Path(folder), manifest, True)
        made = Targets.of(arrays[LETTERS], arrays[STARTS])
        return cls._of(Path(folder), manifest, arrays, made.clusters, made.index)

    @classmethod
    def _of(
        cls, place: Path, manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *index: Clusters | SeedIndex
    ) -> "Library":
        clusters, seeds = index
        assert isinstance(clusters, Clusters) and isinstance(seeds, SeedIndex)
        return cls(
            records=pq.read_table(place / RECORDS, schema=_SCHEMA),
            letters=arrays[LETTERS],
            starts=arrays[STARTS],
            clusters=clusters,
            index=seeds,
            features={name: arrays[f"features_{name}.npy"] for name in manifest["features"]},
            version=int(manifest["version"]),
            licence=str(manifest.get("licence", cls.licence)),
        )


def _stored(place: Path, manifest: Mapping[str, Any], verify: bool) -> dict[str, np.ndarray]:
    """Return a folder's arrays by file name, memory-mapped. Raises ValueError for a file that is missing or changed."""
    for name, expected in manifest["files"].items():
        if not (place / name).is_file():
            raise ValueError(f"reference library: {place / name} is missing; allowed: a folder written by save")
        if verify and file_sha256(place / name) != expected:
            raise ValueError(f"reference library: {place / name} is not the file that was saved (its sha256 differs)")
    return {
        name: np.load(place / name, mmap_mode="r", allow_pickle=False).view(np.ndarray)  # memmap's own slices cost
        for name in manifest["files"]
        if name.endswith(".npy")  # a fifth of a search
    }


def read_manifest(folder: str | Path, formats: Container[int] = (FORMAT_VERSION,)) -> dict[str, Any]:
    """Read what a library says of itself. Raises ValueError: no library there, or one of another format version."""
    place = Path(folder) / MANIFEST
    try:
        manifest = json.loads(place.read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"reference library: {place} cannot be read ({error!r}); allowed: a folder of save") from None
    if version not in formats:
        raise ValueError(
            f"reference library: {place} has format version {version!r}, allowed: {FORMAT_VERSION}; bring it up to "
            f"date: taxafuse library rebuild {folder}"
        )
    if absent := {"version", "kmer", "features", "files", "checksum"} - manifest.keys():
        raise ValueError(f"reference library: {place} lacks {', '.join(sorted(absent))}; allowed: a folder of save")
    if _checksum(manifest["files"]) != manifest["checksum"] or any(Path(n).name != n for n in manifest["files"]):
        raise ValueError(f"reference library: {place} was changed: its checksum is not that of its files")
    return manifest


def _checksum(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _assemble(
    records: pa.Table,
    barcodes: Sequence[str],
    haplotypes: Sequence[str],
    features: Mapping[str, np.ndarray],
    version: int,
    before: pa.Table | None = None,
) -> Library:
    """Put new records behind those of before, whose haplotypes and features (old and new) are given."""
    if len(records) != len(barcodes):
        raise ValueError(f"reference library: got {len(records)} records and {len(barcodes)} barcodes, allowed as many")
    places = {sequence: number for number, sequence in enumerate(haplotypes)}
    haplotype = [places.setdefault(sequence, len(places)) if sequence else -1 for sequence in orient_batch(barcodes)]
    columns = [
        records[name].cast(pa.string()) if name in records.column_names else pa.nulls(len(records), pa.string())
        for name in (*COLUMNS, *NOTED)
    ]
    table = pa.Table.from_arrays([*columns, pa.array(haplotype, pa.int32())], schema=_SCHEMA)
    table = pa.concat_tables([before, table]) if before is not None else table
    for name, part in features.items():
        if len(part) != len(table):
            raise ValueError(f"reference library: got {len(part)} {name} features, allowed one of {len(table)} records")
    if not places and not features:
        raise ValueError("reference library: got no barcode and no features, allowed: at least one to search in")
    made = Targets.build(list(places))
    return Library(
        records=table.combine_chunks(),
        letters=made.letters,
        starts=made.starts,
        clusters=made.clusters,
        index=made.index,
        features={name: np.asarray(part, dtype=np.float16) for name, part in features.items()},
        version=version,
    )
