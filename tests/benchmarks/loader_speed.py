"""Speed of the training loader against webdataset + DataLoader: two views and tokens of 256-pixel JPEGs, both cores.

    python -m tests.benchmarks.loader_speed [--photos FOLDER] [--rounds 7] [--out loader.json]

Contestants, each in a process of its own, in a new order every round:
    ours       engine.batches.pipeline.training_batches through Ray Data
    same       webdataset + DataLoader(num_workers=2) whose workers run batches.prepare.Prepare on the bytes they read
    jitter     webdataset + DataLoader(2) + open_clip's training transform with colour jitter
    plain      the same with AugmentationCfg(), that is without colours
    alone      engine.batches.prepare.Prepare in one process, no loader: twice its speed is the limit of two cores
Every contestant gives collated torch batches of the same specimens, two views of 224 pixels and the same k-mer tokens
(cleaned, turned to the coding strand), and does nothing with them. Ours crops 0.9-1 of the area as open_clip does,
jitters by .4/.4/.4/.1, and flips, which open_clip does not. Warm-up is left out: the clock starts with a batch that
arrives `--warm-up` seconds after the first one, and stops with the first batch after `--seconds`. CPU is that of the
process and all its children. Photos: generated (25 kB), or the JPEGs of a folder, used over and over.
"""

import argparse
import itertools
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.batches.prepare import Prepare, Specimens
from engine.batches.sampling import EpochPlan
from engine.config import AugmentConfig, DataConfig
from engine.signals import barcodes, images
from engine.specimens.schema import Specimen, uniforms_for
from engine.specimens.taxonomy import RANKS, Taxonomy
from engine.store.shards import shard_name
from engine.store.tars import write_shard
from tests.benchmarks.engine_ops import photo

CONTESTANTS = ("ours", "same", "jitter", "plain", "alone")
NUM_PHOTOS, PER_SHARD, SEED = 512, 512, 0
DATA = DataConfig(
    image_size=224,
    augment=AugmentConfig(min_area=0.9, max_aspect=4 / 3, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
)


def write_shards(folder: Path, photos: Path | None, specimens: int) -> float:
    """Write the specimens as our shards (webdataset reads them too) and an index; returns the mean photo in kB."""
    if photos is None:
        files = [photo(seed) for seed in range(NUM_PHOTOS)]
    else:
        files = [path.read_bytes() for path in sorted(photos.rglob("*.jp*g"))[: 4 * NUM_PHOTOS]]
    rng = np.random.default_rng(SEED)
    letters = np.array(list("ACGT"))
    tables = []
    for number, first in enumerate(range(0, specimens, PER_SHARD)):
        rows = [
            Specimen(
                id=f"S{i:07d}",
                image=files[i % len(files)],
                barcode="".join(rng.choice(letters, 658)),
                barcode_length=658,
                names=("Diptera", "Chironomidae", f"G{i % 40}", f"G{i % 40} s{i % 400}"),
                split="train",
                bin_uri=f"BOLD:{i % 500}",
            )
            for i in range(first, first + PER_SHARD)
        ]
        tables.append(write_shard(folder / shard_name(number), rows).index)
    pq.write_table(pa.concat_tables(tables), folder / "index.parquet")
    return sum(map(len, files)) / len(files) / 1e3


def opened(folder: Path) -> Specimens:
    index = pq.read_table(folder / "index.parquet")
    index = index.append_column("folder", pa.repeat(str(folder), len(index)))
    return Specimens.from_index(index, Taxonomy.build({rank: index[rank] for rank in RANKS}))


def ours(folder: Path, batch_size: int, store: int) -> Iterator[Any]:
    import ray

    from engine.batches.pipeline import cpu_budget, training_batches

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=store,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    specimens = opened(folder)
    plan = EpochPlan(labels=specimens.labels, seed=SEED, global_batch_size=batch_size)
    budget = cpu_budget(ray.cluster_resources(), 1, 0.01)
    yield from training_batches(specimens, plan, DATA, (0, 10**9), (0, 1), budget)


def alone(folder: Path, batch_size: int, store: int) -> Iterator[Any]:
    from engine.batches.collate import collate

    specimens = opened(folder)
    prepare = Prepare(specimens, DATA, SEED, training=True)
    plan = EpochPlan(labels=specimens.labels, seed=SEED, global_batch_size=batch_size)
    for epoch in itertools.count():
        for rows in plan.worker_order(epoch, 0, 1):
            yield collate(prepare(rows, epoch))


def _loader(folder: Path, batch_size: int, collate: Callable[[list[tuple]], Any]) -> Iterator[Any]:
    """Batches of webdataset + DataLoader with two workers; `collate` runs there, on lists of (key, jpg, dna)."""
    import webdataset
    from torch.utils.data import DataLoader, IterableDataset

    class Endless(IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            while True:
                yield from dataset

    shards = sorted(str(path) for path in folder.glob("*.tar"))
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=SEED, empty_check=False)
    dataset = dataset.to_tuple("__key__", "jpg", "dna").batched(batch_size, collation_fn=collate, partial=False)
    yield from DataLoader(Endless(), batch_size=None, num_workers=2, prefetch_factor=2, persistent_workers=True)


def same(folder: Path, batch_size: int, store: int) -> Iterator[Any]:
    """The workers of DataLoader prepare what webdataset reads by our own function, all of a batch in one call."""
    from engine.batches.collate import collate

    specimens = opened(folder)
    row = {key.decode(): i for i, key in enumerate(specimens.key)}
    prepare = Prepare(specimens, DATA, SEED, training=True)

    def prepared(samples: list[tuple]) -> Any:
        keys, photos, raws = zip(*samples, strict=True)
        return collate(prepare.prepare(np.array([row[key] for key in keys]), 0, photos, raws, [[] for _ in keys]))

    yield from _loader(folder, batch_size, prepared)


def _open_clip(folder: Path, batch_size: int, augmentation: dict[str, Any]) -> Iterator[Any]:
    import io

    import torch
    from open_clip import AugmentationCfg, image_transform
    from PIL import Image

    torch.set_num_threads(1)
    transform = image_transform(224, is_train=True, aug_cfg=AugmentationCfg(**augmentation))
    tokenizer = barcodes.make_tokenizer(DATA)

    def prepared(samples: list[tuple]) -> Any:
        keys, photos, raws = zip(*samples, strict=True)
        views: tuple[list, list] = ([], [])
        for data in photos:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            for view in views:
                view.append(transform(image))
        sequences = barcodes.orient_batch([barcodes.clean(raw.decode("ascii")) for raw in raws])
        tokens = torch.from_numpy(tokenizer.encode(sequences).astype(np.int64))
        return {
            "keys": list(keys),
            "image": torch.stack(views[0]),
            "image_view2": torch.stack(views[1]),
            "dna_tokens": tokens,
            "dna_mask": tokens != 0,
        }

    yield from _loader(folder, batch_size, prepared)


def jitter(folder: Path, batch_size: int, store: int) -> Iterator[Any]:
    cfg = {"color_jitter": (0.4, 0.4, 0.4, 0.1), "color_jitter_prob": 1, "gray_scale_prob": 0}
    return _open_clip(folder, batch_size, cfg)


def plain(folder: Path, batch_size: int, store: int) -> Iterator[Any]:
    return _open_clip(folder, batch_size, {})


def cpu_seconds() -> float:
    """CPU time so far of this process and all below it, from /proc."""
    parent, spent = {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parent[int(entry)] = int(fields[1])
            spent[int(entry)] = int(fields[11]) + int(fields[12])
    total = 0
    for pid, ticks in spent.items():
        ancestor: int | None = pid
        while ancestor and ancestor != os.getpid():
            ancestor = parent.get(ancestor)
        total += ticks if ancestor else 0
    return total / os.sysconf("SC_CLK_TCK")


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Run one contestant here: specimens a second, CPU milliseconds a specimen, seconds to its first batch."""
    began = time.perf_counter()
    batches = globals()[name](options.shards, options.batch_size, options.store_mb * 2**20)
    assert len(next(batches)["keys"]) == options.batch_size
    first = time.perf_counter() - began
    while time.perf_counter() - began - first < options.warm_up:
        next(batches)
    started, spent, rows, most = time.perf_counter(), cpu_seconds(), 0, 0.0
    while time.perf_counter() - started < options.seconds:
        rows += len(next(batches)["keys"])
        if name == "ours":
            most = max(most, store_megabytes())
    seconds, spent = time.perf_counter() - started, cpu_seconds() - spent
    return {"per_s": rows / seconds, "cpu_ms": spent / rows * 1e3, "first_s": first, "store_mb": most}


def store_megabytes() -> float:
    """What Ray's object store of this node holds now."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    reply = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address))
    return float(reply.store_stats.object_store_bytes_used) / 2**20


def stages(folder: Path, batch_size: int, repeats: int) -> dict[str, float]:
    """CPU milliseconds per specimen of every stage of `Prepare`, each alone, medians of the repeats."""
    from engine.batches.collate import collate

    specimens = opened(folder)
    prepare = Prepare(specimens, DATA, SEED, training=True)
    rows = np.random.default_rng(SEED).permutation(len(specimens.key))[:batch_size]
    keys = specimens.key[rows].astype(str).tolist()
    members, _ = prepare.reader.read(rows)
    photos, raws = ([data for data in members[name] if data] for name in ("image", "dna"))
    decoded = [images.decode(data, prepare.decode_side) for data in photos]
    draws = uniforms_for(SEED, 0, keys, "views", images.VIEW_DRAWS).tolist()
    plain_augment = AugmentConfig(
        **{**DATA.augment.__dict__, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    )
    out = np.zeros((len(rows), 224, 224, 3), np.uint8)
    sequences = [barcodes.clean(raw.decode()) for raw in raws]
    columns = prepare(rows, 0)

    def twice(function: Callable[[int], object]) -> Callable[[], object]:
        return lambda: [function(i) for i in range(len(rows)) for _ in (0, 1)]

    work: dict[str, Callable[[], object]] = {
        "read": lambda: prepare.reader.read(rows),
        "random numbers": lambda: (uniforms_for(SEED, 0, keys, "views", 24), uniforms_for(SEED, 0, keys, "caption", 2)),
        "decode": lambda: [images.decode(data, prepare.decode_side) for data in photos],
        "views": twice(lambda i: images._resize(decoded[i][4:248, 4:248], 224)),
        "colours": twice(lambda i: images.jitter(out[i], 1.1, 0.9, 1.2, 0.1, out[i])),
        "views and colours, whole": twice(
            lambda i: images.training_view(decoded[i], 224, draws[i], DATA.augment, out[i])
        ),
        "clean": lambda: [barcodes.clean(raw.decode()) for raw in raws],
        "orient": lambda: barcodes.orient_batch(sequences),
        "tokenise": lambda: prepare.tokenizer.encode(sequences),
        "collate": lambda: collate(columns),
        "Prepare, whole": lambda: prepare(rows, 0),
    }
    assert plain_augment.hue == 0
    return {name: _cpu_ms(function, len(rows), repeats) for name, function in work.items()}


def _cpu_ms(function: Callable[[], object], items: int, repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append((time.process_time() - start) / items * 1e3)
    return statistics.median(times)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):9.2f}  {min(values):8.2f}-{max(values):8.2f}"


def report(results: dict[str, list[dict[str, float]]]) -> None:
    """Medians and ranges of the contestants, and of the ratios round by round."""
    print(f"{'contestant':12s} {'each/s':>9s}  {'range':>17s} {'CPU-ms each':>12s} {'first batch s':>14s}")
    for name, rounds in ((name, rounds) for name, rounds in results.items() if rounds):
        cpu, first = (statistics.median(r[key] for r in rounds) for key in ("cpu_ms", "first_s"))
        print(f"{name:12s} {_spread([r['per_s'] for r in rounds])} {cpu:12.3f} {first:14.1f}")
    if results["ours"]:
        print(f"object store, most: {max(r.get('store_mb', 0.0) for r in results['ours']):.0f} MiB")
    for name, factor in (("same", 1), ("jitter", 1), ("plain", 1), ("alone", 2)):
        if results[name] and results["ours"]:
            ratios = [a["per_s"] / (factor * b["per_s"]) for a, b in zip(results["ours"], results[name], strict=False)]
            print(f"ours / {factor if factor > 1 else ''} {name:10s} {_spread(ratios)}  ({len(ratios)} rounds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs (generated without)")
    parser.add_argument("--specimens", type=int, default=4096)
    parser.add_argument("--contestants", nargs="+", default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm-up", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--store-mb", type=int, default=1024, help="Ray's object store")
    parser.add_argument("--out", type=Path, help="JSON of all readings; readings there already are kept and added to")
    parser.add_argument("--run", choices=CONTESTANTS, help="only this one, here, on --shards; prints JSON")
    parser.add_argument("--stages", action="store_true", help="CPU milliseconds by stage, in this process")
    parser.add_argument("--shards", type=Path, help="a folder of an earlier --run")
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(options.run, options)), flush=True)
        os._exit(0)  # endless loaders have nothing to tidy up
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    if options.out and options.out.exists():
        results |= json.loads(options.out.read_text())
    with tempfile.TemporaryDirectory() as folder:
        size = write_shards(Path(folder), options.photos, options.specimens)
        print(f"{options.specimens} specimens, photos of {size:.1f} kB, batches of {options.batch_size}", flush=True)
        if options.stages:
            for name, milliseconds in stages(Path(folder), 256, options.rounds).items():
                print(f"{name:26s} {milliseconds:8.4f} CPU-ms each")
            return
        for number in range(options.rounds):
            for name in random.Random(number + len(results["ours"])).sample(
                options.contestants, len(options.contestants)
            ):
                flags = [
                    f"--{key.replace('_', '-')}={getattr(options, key)}"
                    for key in ("batch_size", "warm_up", "seconds", "store_mb")
                ]
                command = [sys.executable, "-m", "tests.benchmarks.loader_speed", "--run", name, "--shards", folder]
                done = subprocess.run([*command, *flags], stdout=subprocess.PIPE, text=True, check=True)
                results.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
                print(number, name, results[name][-1], flush=True)
                if options.out:
                    options.out.write_text(json.dumps(results))
    report(results)


if __name__ == "__main__":
    main()
