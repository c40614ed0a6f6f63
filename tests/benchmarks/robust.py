"""How much of its accuracy does a model lose on damaged inputs, trained by `robust` and by CLIBD-HiR-Fuse?

    python -m tests.benchmarks.robust train bold shards/bold --method robust --seed 0 --out runs/robust
    python -m tests.benchmarks.robust table bold shards/bold --out runs/robust

`train` trains one recipe (bold: barcodes; moths: fusion of photo and barcode) by one method from random weights, in
this process without Ray, to OUT/SET-METHOD-SEED, and writes its answers to every condition beside it; what is there is
not made again. `table` prints what was found: with equal budget and the same specimens for every method.

Conditions: the paper preset at severity 1, 2, 4 and fragments of 100, 150, 200 nt from a random start, half of them on
the other strand; for moths each of these crossed with a mean filter of side 7, 15, 31 at the encoder's input.
loss = clean minus the mean over the damaged conditions, top-1 by roll-up. Intervals: 95%, from resampling groups of
equal barcodes, pairs kept; with several seeds the answers of a specimen are averaged over them first.

Legend: N specimens, C conditions, the clean one first.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from engine.batches.pipeline import label_columns, load_index, select_split
from engine.specimens.taxonomy import RANKS, Taxonomy
from train.config import Config, override
from train.evaluation.predict import Encoding, encode_split, only
from train.evaluation.subsets import barcode_groups, read_barcodes
from train.inference.scoring import Scorer
from train.learning.loop import Session
from train.metrics import resample
from train.models import checkpoint
from train.models.trimodal import Trimodal, caption_tokenizer
from train.recipes import as_clibd, as_clibd_hir, as_robust, make

METHODS: dict[str, Callable[[Config], Config]] = {
    "clibd": as_clibd,
    "hir": as_clibd_hir,
    "fuse": lambda config: config,
    "robust": as_robust,
}
BARCODES = [f"severity={severity}" for severity in (1, 2, 4)] + [f"fragment={length}" for length in (100, 150, 200)]
KERNELS = (7, 15, 31)
RESAMPLES = 2000


def train(config: Config, folder: Path) -> None:
    """Train in this process and write a checkpoint; the time is printed."""
    index = load_index(config.data.shards)
    taxonomy = Taxonomy.build(label_columns(select_split(index, "train")))
    session = Session(config, index, taxonomy, torch.device("cpu"))
    started = time.perf_counter()
    for batch in session.batches(None):
        terms = session.train_step(batch)
        if session.step % 100 == 0:
            print(f"step {session.step} of {session.total_steps}: loss {terms['loss/total']:.3f}", flush=True)
    print(f"trained {config.run.name}: {session.step} steps, {(time.perf_counter() - started) / 60:.1f} minutes")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder, session.model, config, taxonomy, step=session.step, state=None)


def features_of(model: Trimodal, config: Config, taxonomy: Taxonomy, index: pa.Table, what: str) -> np.ndarray:
    """Unit features [N, D] under one kind of damage: "severity=2", "fragment=100" or "blur=7"."""
    kind, _, value = what.partition("=")
    modality = "image" if kind == "blur" else "dna"
    plain = dataclasses.replace(config.data.degrade, severity=0.0, fragment=0)
    degrade = dataclasses.replace(plain, **{"blur_kernel" if kind == "blur" else kind: int(value)})
    data = dataclasses.replace(config.data, degrade=degrade)
    encoded = encode_split(model, only(index, modality), taxonomy, data, Encoding(clean=False))
    return encoded.features[f"{modality}_noisy"]


def answers(model: Trimodal, config: Config, taxonomy: Taxonomy, index: pa.Table) -> dict[str, np.ndarray]:
    """Per condition bool [N, R]: is the first taxon right? And "known": has the specimen a label there?"""
    scorer = Scorer(model, taxonomy, caption_tokenizer(model))
    labels = taxonomy.encode(label_columns(index))
    clean = encode_split(model, index, taxonomy, config.data, Encoding(noisy=False)).features
    barcodes = {what: features_of(model, config, taxonomy, index, what) for what in BARCODES}
    queries = {"clean": clean["dna"]} | barcodes
    if "image" in clean:
        photos = {f"blur={kernel}": features_of(model, config, taxonomy, index, f"blur={kernel}") for kernel in KERNELS}
        pairs = {"clean": (clean["image"], clean["dna"])}
        pairs |= {f"{a} {b}": (photo, dna) for a, photo in photos.items() for b, dna in barcodes.items()}
        queries = {f"dna {name}": dna for name, dna in queries.items()}
        queries |= {f"image {name}": photo for name, photo in ({"clean": clean["image"]} | photos).items()}
        with torch.inference_mode():
            fused = {name: model.fuse(*map(torch.from_numpy, pair)).numpy() for name, pair in pairs.items()}
        queries |= {f"fused {name}": features for name, features in fused.items()}
    ranked = {name: scorer.rank(features, labels).position[:, : len(RANKS)] for name, features in queries.items()}
    return {"known": labels >= 0} | {name: position == 0 for name, position in ranked.items()}


def measured(index: pa.Table, split: str) -> pa.Table:
    """The specimens of a split that are asked about: with barcode, and with photo where the set has photos."""
    rows = select_split(index, split)
    wanted = np.asarray(rows["dna_size"]) > 0
    if bool((np.asarray(rows["image_size"]) > 0).any()):
        wanted &= np.asarray(rows["image_size"]) > 0
    return rows.filter(pa.array(wanted))


def run(options: argparse.Namespace) -> None:
    """Train one method with one seed and write what it answers."""
    torch.set_num_threads(options.threads)
    folder = options.out / f"{options.set}-{options.label or options.method}-{options.seed}"
    target = folder.with_name(f"{folder.name}-{options.split}.npz")
    if not (folder / checkpoint.META).is_file():
        settings = [f"data.shards={options.shards}", f"run.seed={options.seed}", *options.settings]
        config = override(METHODS[options.method](make(options.set)), [*settings, f"run.name={folder.name}"])
        train(config, folder)
    if not target.is_file():
        model = checkpoint.load(folder)
        index = measured(load_index([options.shards]), options.split)
        np.savez(target, **answers(model.model, model.config, model.taxonomy, index))


def damaged(names: Sequence[str], query: str) -> list[str]:
    """The damaged conditions of one query."""
    return [name for name in names if name.startswith(query) and not name.endswith(("clean", "known"))]


def bootstrap(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """float64 [T, columns]: means of the columns of [N, columns] when groups are drawn with replacement."""
    sums = np.zeros((int(group.max()) + 1, values.shape[1] + 1), dtype=np.float32)
    np.add.at(sums, group, np.column_stack([values, np.ones(len(values))]))
    drawn = np.concatenate([weights @ sums for weights in resample(len(sums), RESAMPLES, 0)])
    return drawn[:, :-1] / drawn[:, -1:]


def shown(value: float, draws: np.ndarray, scale: float = 100.0) -> str:
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{scale * value:.2f} [{scale * low:.2f}, {scale * high:.2f}]"


def compare(found: dict[str, list[dict[str, np.ndarray]]], query: str, group: np.ndarray, rank: int) -> None:
    """One row for each seed and one for their mean: loss of both methods, their ratio, clean against clean."""
    print("| seed | clean fuse | clean robust | robust - fuse | loss fuse | loss robust | ratio of the losses |")
    print("|---|---|---|---|---|---|---|")
    clean = f"{query}clean"
    columns = []
    known = found["fuse"][0]["known"][:, rank]
    for one, other in zip(found["fuse"], found["robust"], strict=True):
        parts = []
        for result in (one, other):
            lost = np.mean([result[name][:, rank] for name in damaged(list(result), query)], axis=0)
            parts += [result[clean][:, rank].astype(np.float64), result[clean][:, rank] - lost]
        columns.append(np.stack(parts, axis=1)[known])
    mean = [] if len(columns) == 1 else [("mean", np.mean(columns, axis=0))]
    for name, values in [*((str(seed), values) for seed, values in enumerate(columns)), *mean]:
        point, draws = values.mean(axis=0), bootstrap(values, group[known])
        gap = shown(point[2] - point[0], draws[:, 2] - draws[:, 0])
        ratio = shown(point[3] / point[1], draws[:, 3] / draws[:, 1], 1)
        print(
            f"| {name} | {100 * point[0]:.2f} | {100 * point[2]:.2f} | {gap} | {shown(point[1], draws[:, 1])}"
            f" | {shown(point[3], draws[:, 3])} | {ratio} |"
        )


def table(options: argparse.Namespace) -> None:
    """Accuracy of every method in every condition, mean over the seeds found; then the comparison."""
    index = measured(load_index([options.shards]), options.split)
    group = barcode_groups(read_barcodes(index))
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for path in sorted(options.out.glob(f"{options.set}-*-{options.split}.npz")):
        with np.load(path) as stored:
            found.setdefault(path.stem.split("-")[1], []).append({name: stored[name] for name in stored.files})
    rank = RANKS.index(options.rank)
    names = [name for name in next(iter(found.values()))[0] if name != "known"]
    print(f"{options.set} {options.split}, {len(index)} specimens, {group.max() + 1} groups, {options.rank} top-1 %")
    print(f"| condition | {' | '.join(f'{method} ({len(runs)})' for method, runs in found.items())} |")
    print("|---|" + "---:|" * len(found))
    for name in names:
        means = (
            100 * np.mean([result[name][result["known"][:, rank], rank] for result in runs]) for runs in found.values()
        )
        print(f"| {name} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    for query in ("",) if names[0] == "clean" else ("fused ", "dna ", "image "):
        both = min(len(found.get("fuse", [])), len(found.get("robust", [])))
        if both:
            print(f"\n{query or 'dna '}loss:")
            compare({method: found[method][:both] for method in ("fuse", "robust")}, query, group, rank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", choices=("train", "table"))
    add("set", choices=("bold", "moths"))
    add("shards")
    add("--method", choices=sorted(METHODS), default="robust")
    add("--seed", type=int, default=0)
    add("--split", default="test", choices=("val", "test"))
    add("--rank", default="species", choices=RANKS)
    add("--out", type=Path, required=True)
    add("--threads", type=int, default=1)
    add("--label", default="", help="name of a changed method")
    add("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    options = parser.parse_args()
    (run if options.what == "train" else table)(options)


if __name__ == "__main__":
    main()
