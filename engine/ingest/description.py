"""What a shard folder holds, for people: counts, labels, modalities, barcode lengths, and labels that disagree."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.formats.understood import describe_names
from engine.specimens.schema import SPLITS
from engine.specimens.taxonomy import RANKS, Conflict, Taxonomy
from engine.store.shards import REPORT_NAME, read_index, read_manifest
from engine.store.storage import Location

MAX_CONFLICTS = 20  # shown; the count is always complete
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def describe(directory: Path | str) -> str:
    """Return a description of a shard folder, ready to print.

    Raises ValueError when it is none, or one of another format version.
    """
    folder = Location.parse(directory)
    manifest, index = read_manifest(folder), read_index(folder)
    taxonomy = Taxonomy.build({rank: index[rank] for rank in RANKS})
    megabytes = sum(shard["bytes"] for shard in manifest["shards"]) / 1e6
    lines = [
        f"{folder.shown}: {index.num_rows} specimens in {len(manifest['shards'])} shards, {megabytes:.1f} MB, "
        f"format version {manifest['format_version']}, seed {manifest['seed']}, "
        f"{manifest.get('layout', 'random')} layout",
        f"source: {_source(manifest['source'])}",
        "",
        *_split_table(index),
        "",
        "taxa:            " + ", ".join(f"{rank} {size}" for rank, size in zip(RANKS, taxonomy.sizes, strict=True)),
        f"complete lineages (leaves): {len(taxonomy.leaves())}, taxonomy {taxonomy.fingerprint[:12]}",
        f"BINs:            {pc.count_distinct(index['bin_uri']).as_py()}",
        _lengths(index["barcode_length"].to_numpy()),
        "",
        *_conflicts(taxonomy.conflicts),
    ]
    if (folder / REPORT_NAME).is_file():
        lines += ["", *describe_report(json.loads((folder / REPORT_NAME).read_bytes()))]
    return "\n".join(lines)


def describe_report(report: dict[str, Any]) -> list[str]:
    """Return the lines that tell what an ingest left out or changed."""
    splits = report["splits"]
    lines = [
        f"records read:    {report['records_read']}, specimens written: {report['written']['specimens']}",
        f"splits:          {splits['given']} given, {splits['assigned']} assigned"
        + (f" ({splits['how']})" if splits["assigned"] else ""),
    ]
    found = splits.get("test_barcodes_found_in_train")
    if found and found["identical"] is not None:
        lines.append(
            f"leaks:           of val and test barcodes train has {found['identical']:.1%} letter for letter, "
            f"{found['related']:.1%} in the same group"
        )
    if splits.get("groups_crossing_given_splits"):
        lines.append(
            f"leaks:           {splits['groups_crossing_given_splits']} groups cross the splits that were given"
        )
    for kind in ("skipped", "image_removed", "barcode_removed"):
        entry = report[kind]
        reasons = "; ".join(f"{reason}: {count}" for reason, count in entry["by_reason"].items())
        lines.append(f"{kind.replace('_', ' ') + ':':<16} {entry['count']}" + (f" ({reasons})" if reasons else ""))
    lines.append(
        f"made JPEGs:      {report['images_converted']} photos of other kinds or not upright; "
        f"shrunk: {report.get('images_shrunk', 0)}"
    )
    return lines + (["", *describe_names(report["names"])] if "names" in report else [])


def _source(source: dict[str, Any]) -> str:
    parts = [str(source.get("format", "not told")), *map(str, source.get("paths", ()))]
    return " ".join(parts + [f"{name}={value}" for name, value in source.get("options", {}).items()])


def _split_table(index: pa.Table) -> list[str]:
    """One line per split and one for all: specimens, with image, with barcode, with both, share labelled per rank."""
    columns = ["specimens", "no image", "no barcode", "both", *RANKS]
    lines = [f"{'split':<14}" + "".join(f"{name:>12}" for name in columns)]
    split = index["split"]
    present = [name for name in SPLITS if pc.any(pc.equal(split, name)).as_py()]
    parts = [(name, index.filter(pc.equal(split, name))) for name in present]
    for name, part in [*parts, ("all", index)]:
        image = part["image_offset"].to_numpy() >= 0
        barcode = part["dna_offset"].to_numpy() >= 0
        counts = [part.num_rows, int((~image).sum()), int((~barcode).sum()), int((image & barcode).sum())]
        shares = [1 - part[rank].null_count / max(part.num_rows, 1) for rank in RANKS]
        cells = "".join(f"{count:>12}" for count in counts) + "".join(f"{share:>12.1%}" for share in shares)
        lines.append(f"{name:<14}{cells}")
    return lines


def _lengths(lengths: np.ndarray) -> str:
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return "barcode length:  no barcodes"
    values = np.quantile(lengths, QUANTILES, method="nearest")
    shown = ", ".join(f"{share:.0%} {value}" for share, value in zip(QUANTILES, values.tolist(), strict=True))
    return f"barcode length:  quantiles {shown} nucleotides"


def _conflicts(conflicts: tuple[Conflict, ...]) -> list[str]:
    if not conflicts:
        return ["labels that disagree: none"]
    lines = [f"labels that disagree: {len(conflicts)}", *(f"  {conflict}" for conflict in conflicts[:MAX_CONFLICTS])]
    return lines + ([f"  ... and {len(conflicts) - MAX_CONFLICTS} more"] if len(conflicts) > MAX_CONFLICTS else [])
