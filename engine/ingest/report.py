"""What an ingest did, for people: report.json, and the same as a page (report.html) that a curator can read."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine import html
from engine.ingest.screening import BARCODE_REMOVED, IMAGE_REMOVED, SKIPPED, Problem
from engine.specimens.schema import SPLITS
from engine.specimens.taxonomy import RANKS
from engine.store.shards import FORMAT_VERSION, count_specimens

MAX_NAMED = 10_000  # problems of one kind that a report names; the others are only counted
MAX_SHOWN = 8  # named examples of one reason on the page
KINDS = (SKIPPED, IMAGE_REMOVED, BARCODE_REMOVED)
LARGEST = 15  # taxa of a rank that are listed


class ProblemLog:
    """Problems by kind and reason: all counted, the first MAX_NAMED of a kind named. Memory stays flat."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self.named: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS}

    def extend(self, problems: Iterable[Problem]) -> None:
        """Add problems, in the order in which a report should name them."""
        for problem in problems:
            self.counts[problem.kind][problem.reason.partition(": ")[0]] += 1
            if len(self.named[problem.kind]) < MAX_NAMED:
                self.named[problem.kind].append((problem.key, problem.reason))

    def merge(self, other: Mapping[str, Any]) -> None:
        """Add what `to_json` of another log gave."""
        for kind, entry in other.items():
            self.counts[kind].update(entry["by_reason"])
            room = MAX_NAMED - len(self.named[kind])
            self.named[kind] += [(key, reason) for key, reason in entry["named"][:room]]

    def to_json(self) -> dict[str, Any]:
        """For `merge`: per kind the counts by reason and the named problems as (key, reason)."""
        return {kind: {"by_reason": dict(self.counts[kind]), "named": self.named[kind]} for kind in KINDS}

    def reasons(self) -> str:
        """All reasons with their counts in one line."""
        total: Counter[str] = sum(self.counts.values(), Counter())
        return ", ".join(f"{reason} ({count})" for reason, count in total.most_common()) or "none was read"

    def for_report(self) -> dict[str, Any]:
        """For people: per kind the count, the reasons from the commonest on, what is named, how many are not."""
        report = {}
        for kind in KINDS:
            count = self.counts[kind].total()
            report[kind.replace(" ", "_")] = {
                "count": count,
                "by_reason": dict(self.counts[kind].most_common()),
                "named": [{"key": key, "reason": reason} for key, reason in self.named[kind]],
                "not_named": count - len(self.named[kind]),
            }
        return report


@dataclasses.dataclass
class Tally:
    """Counts over an index that comes shard by shard."""

    counts: dict[str, Any] = dataclasses.field(default_factory=dict)
    per_split: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    taxa: dict[str, Counter[str]] = dataclasses.field(default_factory=lambda: {rank: Counter() for rank in RANKS})
    missing: Counter[str] = dataclasses.field(default_factory=Counter)
    lengths: Counter[int] = dataclasses.field(default_factory=Counter)
    hashes: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=lambda: {"barcodes": [], "photos": []})

    def add(self, index: pa.Table, extra: Mapping[str, Any]) -> None:
        """Take in a shard's index rows; `extra`: see `engine.ingest.ShardWriter`."""
        counts = count_specimens(index)
        self.counts = _sum(self.counts, counts) if self.counts else counts
        for split in counts["splits"]:
            rows = index.filter(pc.equal(index["split"], split))
            part = count_specimens(rows)
            own = {"specimens": rows.num_rows, **part["modalities"], **part["labelled"]}
            self.per_split.setdefault(split, Counter()).update(own)
        for rank in RANKS:
            for entry in pc.value_counts(index[rank].drop_null()).to_pylist():
                self.taxa[rank][entry["values"]] += entry["counts"]
            self.missing[rank] += index[rank].null_count
        self.missing["bin_uri"] += index["bin_uri"].null_count
        self.missing.update(extra["missing"])
        for entry in pc.value_counts(
            index["barcode_length"].filter(pc.greater(index["barcode_length"], 0))
        ).to_pylist():
            self.lengths[entry["values"]] += entry["counts"]
        for name, found in self.hashes.items():
            found.append(np.frombuffer(bytes.fromhex(extra[name]), dtype="<u8"))

    def duplicates(self) -> dict[str, dict[str, int]]:
        """Of cleaned barcodes and of photos (by size and CRC-32): how many, how many different, the most of one."""
        result = {}
        for name, parts in self.hashes.items():
            _, times = np.unique(np.concatenate([np.zeros(0, "<u8"), *parts]), return_counts=True)
            result[name] = {
                "stored": int(times.sum()),
                "different": len(times),
                "shared_by_specimens": int(times[times > 1].sum()),
                "most_specimens_of_one": int(times.max(initial=0)),
            }
        return result


def _sum(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Add counts of `count_specimens`, splits in the order of SPLITS."""
    names = [split for split in SPLITS if split in left["splits"] or split in right["splits"]]
    both = {"specimens": left["specimens"] + right["specimens"]}
    both["splits"] = {name: left["splits"].get(name, 0) + right["splits"].get(name, 0) for name in names}
    for part in ("labelled", "modalities"):
        both[part] = {name: left[part][name] + right[part][name] for name in left[part]}
    return both


def build_report(num_records: int, splits: dict[str, Any], log: ProblemLog, tally: Tally) -> dict[str, Any]:
    """Return what report.json holds. `written` is `engine.store.shards.count_specimens` of the index."""
    duplicates = tally.duplicates()
    repeated = log.counts[SKIPPED]["duplicate key"]
    taxa = {}
    for rank in RANKS:
        sizes = Counter(tally.taxa[rank].values())
        largest = sorted(tally.taxa[rank].items(), key=lambda item: (-item[1], item[0]))[:LARGEST]
        taxa[rank] = {"number": len(tally.taxa[rank]), "largest": largest, "taxa_by_specimens": sorted(sizes.items())}
    return {
        "format_version": FORMAT_VERSION,
        "records_read": num_records,
        "splits": splits,
        **log.for_report(),
        "written": tally.counts,
        "per_split": {split: dict(tally.per_split[split]) for split in SPLITS if split in tally.per_split},
        "missing": dict(tally.missing),
        "duplicates": {"keys_skipped": repeated, **duplicates},
        "taxa": taxa,
        "barcode_lengths": sorted(tally.lengths.items()),
    }


def report_page(report: Mapping[str, Any], title: str) -> str:
    """Return the report as a self-contained HTML page."""
    written = report["written"]
    lead = (
        f"{report['records_read']:,} records were read and {written['specimens']:,} specimens written, "
        f"{written['modalities']['both']:,} of them with a photo and a barcode. "
        f"{report['skipped']['count']:,} records were left out; {report['image_removed']['count']:,} photos and "
        f"{report['barcode_removed']['count']:,} barcodes could not be used."
    )
    sections = [
        html.Section("Specimens per split", _split_blocks(report)),
        html.Section("What was left out, and why", _problem_blocks(report)),
        html.Section("Missing and repeated", _missing_blocks(report)),
        html.Section("Specimens per taxon", _taxon_blocks(report["taxa"])),
        html.Section("Barcode lengths", _length_blocks(report["barcode_lengths"])),
    ]
    return html.page(title, sections, lead)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _split_blocks(report: Mapping[str, Any]) -> list[str]:
    total: Counter[str] = Counter()
    for row in report["per_split"].values():
        total.update(row)
    rows = [
        [name, row["specimens"], row["image"], row["barcode"], row["both"]]
        + [_share(row[rank], row["specimens"]) for rank in RANKS]
        for name, row in [*report["per_split"].items(), ("all", total)]
    ]
    header = ["split", "specimens", "photo", "barcode", "both", *RANKS]
    splits = report["splits"]
    note = f"{splits['given']:,} specimens came with a split, {splits['assigned']:,} were given one"
    note += f" ({splits['how']})." if splits["assigned"] else "."
    told = "Numbers of specimens that have a photo, a barcode, both; for ranks the share whose name is known. "
    return [html.table(header, rows), html.paragraph(told + note, dim=True)]


def _problem_blocks(report: Mapping[str, Any]) -> list[str]:
    told = {
        "skipped": "Records left out",
        "image_removed": "Photos left out (the specimen stays if it has a barcode)",
        "barcode_removed": "Barcodes left out (the specimen stays if it has a photo)",
    }
    blocks = []
    for kind, heading in told.items():
        entry = report[kind]
        blocks.append(html.paragraph(f"{heading}: {entry['count']:,}" + ("" if entry["count"] else ".")))
        if entry["by_reason"]:
            blocks.append(html.table(["reason", "number"], list(entry["by_reason"].items())))
        examples = []
        for reason in entry["by_reason"]:
            named = [one for one in entry["named"] if one["reason"].partition(": ")[0] == reason]
            examples += [[one["key"], one["reason"]] for one in named[:MAX_SHOWN]]
        if examples:
            summary = f"Examples (up to {MAX_SHOWN} a reason; report.json names up to {MAX_NAMED:,} of each kind)"
            blocks.append(html.folded(summary, html.table(["specimen", "reason"], examples)))
    changed = f"{report['images_converted']:,} photos of other kinds or not upright were made JPEGs"
    return [
        *blocks,
        html.paragraph(f"{changed}, {report['images_shrunk']:,} were shrunk; the others are unchanged.", True),
    ]


def _missing_blocks(report: Mapping[str, Any]) -> list[str]:
    specimens = report["written"]["specimens"]
    names = {"image": "photo", "barcode": "barcode", "bin_uri": "BIN", "coordinates": "coordinates"}
    rows = [[names.get(name, name), count, _share(count, specimens)] for name, count in report["missing"].items()]
    duplicates = report["duplicates"]
    repeated = [
        [name, entry["stored"], entry["different"], entry["shared_by_specimens"], entry["most_specimens_of_one"]]
        for name, entry in (("barcodes", duplicates["barcodes"]), ("photos, byte for byte", duplicates["photos"]))
    ]
    header = ["", "stored", "different", "specimens that share one", "most specimens with the same"]
    return [
        html.table(["missing", "specimens", "share"], rows),
        html.table(header, repeated),
        html.paragraph(f"Records skipped because their key was there before: {duplicates['keys_skipped']:,}.", True),
    ]


def _taxon_blocks(taxa: Mapping[str, Any]) -> list[str]:
    rows = []
    figure = html.new_figure()
    axes = figure.subplots()
    for rank, colour in zip(RANKS, html.COLOURS, strict=False):
        pairs = np.array(taxa[rank]["taxa_by_specimens"], dtype=np.int64).reshape(-1, 2)
        if not len(pairs):
            rows.append([rank, 0, None, None, None])
            continue
        sizes, numbers = pairs[::-1].T  # the most common first
        last = np.cumsum(numbers)  # places 1.. that taxa of one size take
        places = np.stack([last - numbers + 1, last], axis=1).ravel()
        axes.loglog(places, np.repeat(sizes, 2), color=colour, linewidth=1.6, label=f"{rank} ({last[-1]:,})")
        median = sizes[np.searchsorted(last, (last[-1] + 1) // 2)]
        rows.append([rank, int(last[-1]), int(numbers[sizes == 1].sum()), int(median), int(sizes[0])])
    if axes.get_lines():
        html.plain_ticks(axes.xaxis)
        html.plain_ticks(axes.yaxis)
    axes.set_xlabel("taxa, the most common first")
    axes.set_ylabel("specimens of the taxon")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    if axes.get_lines():
        axes.legend(frameon=False)
    header = ["rank", "taxa", "with one specimen", "median", "most specimens"]
    largest = [
        html.folded(f"Most common: {rank}", html.table([rank, "specimens"], taxa[rank]["largest"]))
        for rank in RANKS
        if taxa[rank]["largest"]
    ]
    return [html.table(header, rows), html.figure(figure, "The long tail: specimens per taxon, per rank"), *largest]


def _length_blocks(lengths: Iterable[tuple[int, int]]) -> list[str]:
    pairs = np.array(list(lengths), dtype=np.int64).reshape(-1, 2)
    if not len(pairs):
        return [html.paragraph("No barcodes.")]
    values, counts = pairs.T
    last = np.cumsum(counts)
    quantiles = [
        int(values[np.searchsorted(last, max(1, share * last[-1]))]) for share in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
    ]
    figure = html.new_figure(height=3.2)
    axes = figure.subplots()
    width = max(1, int(values[-1] - values[0]) // 120 + 1)
    bins = list(range(int(values[0]), int(values[-1]) + 2 * width, width))
    axes.hist(values, bins=bins, weights=counts, color=html.COLOURS[0])
    axes.set_yscale("log")
    html.plain_ticks(axes.yaxis)
    html.plain_ticks(axes.xaxis)
    axes.set_xlabel("nucleotides of the cleaned barcode")
    axes.set_ylabel("specimens")
    axes.set_axisbelow(True)
    axes.grid(True, axis="y", color="#dddddd", linewidth=0.6)
    header = ["shortest", "5%", "25%", "median", "75%", "95%", "longest"]
    caption = (
        f"Barcode lengths of {last[-1]:,} specimens, in steps of {width} nt; the scale of the counts is logarithmic"
    )
    return [html.table(header, [quantiles]), html.figure(figure, caption)]
