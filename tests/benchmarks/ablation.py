"""What does each part of the method add on real specimens? One training per variant and seed, with equal budget.

    python -m tests.benchmarks.ablation train moths shards/moths --out runs/ablation [--seeds 0 1 2] [--epochs 30]
    python -m tests.benchmarks.ablation table moths shards/moths --out runs/ablation

`train` trains every variant of a set from random weights, one after the other in this process, one thread; what is in
OUT is not made again. `table` prints accuracy on test and, for each variant, what it has more or less than the
project's defaults: in points, mean over the seeds, with a 95% interval from resampling groups of equal barcodes (pairs
kept, the answers of a specimen averaged over the seeds first). The spread between seeds is not in these intervals; the
column of lowest and highest seed shows it.

Conditions: clean, and damaged: the paper preset once, crossed with a mean filter of side 15 for photos.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from engine.batches.pipeline import label_columns, load_index
from engine.specimens.taxonomy import RANKS
from tests.benchmarks.robust import bootstrap, features_of, measured, shown, train
from train.config import Config, override
from train.evaluation.predict import Encoding, encode_split
from train.evaluation.subsets import barcode_groups, read_barcodes
from train.inference.scoring import Scorer
from train.models import checkpoint
from train.models.trimodal import caption_tokenizer
from train.recipes import as_robust, make

DEFAULTS, ROBUST, RELEASE = "defaults", "robust", "the release's form"
WEIGHT = 0.1  # of the hierarchy where its forms are compared: at the default 0.01 they hardly move a weight
_FORMS = {
    "none": ("loss.rectify=none",),
    "rank, fine to coarse": ("loss.rectify=fine_to_coarse",),
    "pair, fine to coarse": ("loss.rectify=fine_to_coarse", "loss.rectify_unit=pair"),
    "pair, coarse to fine (printed)": ("loss.rectify=coarse_to_fine", "loss.rectify_unit=pair"),
}
_OF_ALL: dict[str, tuple[str, ...]] = {
    DEFAULTS: (),
    "positives: caption": ("loss.positives=caption",),
    "positives: specimen": ("loss.positives=specimen",),
    ROBUST: (),
}
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "bold": _OF_ALL,
    "moths": _OF_ALL
    | {"CLIBD (no hierarchy)": ("loss.hierarchy_weight=0",)}
    | {
        f"HiR {form}, {denominator}": (f"loss.hierarchy_weight={WEIGHT}", f"loss.denominator={denominator}", *settings)
        for denominator in ("all", "negatives")
        for form, settings in _FORMS.items()
    }
    | {RELEASE: (), "joint fusion": ("run.fusion_training=joint",)},
}
"""Set -> variant -> settings that differ from the recipe. `bold` has no photos, so neither hierarchy nor fusion."""


def configured(kind: str, variant: str, seed: int, shards: str, epochs: int) -> Config:
    """The run of a variant."""
    recipe = as_robust(make(kind)) if variant == ROBUST else make(kind)
    if variant == RELEASE:
        recipe = replace(recipe, loss=make("bioscan1m").loss)
    common = (f"data.shards={shards}", f"run.seed={seed}", f"run.epochs={epochs}")
    return override(recipe, [*common, *VARIANTS[kind][variant]])


def answers(folder: Path, shards: str) -> dict[str, np.ndarray]:
    """Per query and condition bool [N, R]: is the first taxon right? And "known": has the specimen a label there?"""
    loaded = checkpoint.load(folder)
    model, data, taxonomy = loaded.model, loaded.config.data, loaded.taxonomy
    index = measured(load_index([shards]), "test")
    scorer = Scorer(model, taxonomy, caption_tokenizer(model))
    labels = taxonomy.encode(label_columns(index))
    clean = encode_split(model, index, taxonomy, data, Encoding(noisy=False)).features
    damaged = {
        modality: features_of(model, loaded.config, taxonomy, index, damage)
        for modality, damage in (("dna", "severity=1"), ("image", "blur=15"))
        if modality in clean
    }
    found = {"known": labels >= 0}
    for name, features in (("clean", clean), ("damaged", damaged)):
        queries = {modality: features[modality] for modality in ("image", "dna") if modality in features}
        if len(queries) == 2:
            pair = [torch.from_numpy(queries[modality]) for modality in ("image", "dna")]
            queries["average"] = torch.nn.functional.normalize(pair[0] + pair[1], dim=1).numpy()
            with torch.inference_mode():
                queries["fused"] = model.fuse(*pair).numpy()
        for query, each in queries.items():
            found[f"{query} {name}"] = scorer.rank(each, labels).position[:, : len(RANKS)] == 0
    return found


def place(options: argparse.Namespace, variant: str, seed: int) -> Path:
    """Folder of a run; its answers lie beside it."""
    short = "".join(letter if letter.isalnum() else "_" for letter in variant)
    return options.out / f"{options.set}-{short}-{seed}"


def run(options: argparse.Namespace) -> None:
    """Train and ask what is not there yet; seed by seed, so that a broken off run has whole comparisons."""
    torch.set_num_threads(1)
    shards = str(options.shards)
    for seed in options.seeds:
        for variant in options.variants or VARIANTS[options.set]:
            folder = place(options, variant, seed)
            if not (folder / checkpoint.META).is_file():
                config = configured(options.set, variant, seed, shards, options.epochs)
                train(override(config, [f"run.name={folder.name}"]), folder)
            target = folder.with_suffix(".npz")
            if not target.is_file():
                np.savez(target, **answers(folder, shards))


def table(options: argparse.Namespace) -> None:
    """A table for each rank asked for: variants down, queries across."""
    index = measured(load_index([str(options.shards)]), "test")
    group = barcode_groups(read_barcodes(index))
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for variant in VARIANTS[options.set]:
        paths = [place(options, variant, seed).with_suffix(".npz") for seed in options.seeds]
        if all(path.is_file() for path in paths):
            found[variant] = [dict(np.load(path)) for path in paths]
    queries = [name for name in found[DEFAULTS][0] if name != "known"]
    print(f"{options.set}, test: {len(index)} specimens, {group.max() + 1} groups; seeds {options.seeds}")
    for rank in options.ranks:
        column = RANKS.index(rank)
        known = found[DEFAULTS][0]["known"][:, column]
        right = {
            variant: np.stack([[one[name][known, column] for name in queries] for one in runs]).astype(np.float64)
            for variant, runs in found.items()
        }  # seeds, queries, specimens
        print(f"\n{rank}, top-1 in % (lowest-highest seed), then points beside the defaults")
        print(f"| | {' | '.join(queries)} |\n|---|{'---:|' * len(queries)}")
        for variant, values in right.items():
            seeds = 100 * values.mean(axis=2)
            cells = [f"{of.mean():.1f} ({of.min():.1f}-{of.max():.1f})" for of in seeds.T]
            if variant != DEFAULTS:
                gap = (values - right[DEFAULTS]).mean(axis=0).T
                draws = bootstrap(gap, group[known])
                cells = [
                    f"{cell} {shown(mean, draw)}" for cell, mean, draw in zip(cells, gap.mean(0), draws.T, strict=True)
                ]
            print(f"| {variant} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", choices=("train", "table"))
    add("set", choices=sorted(VARIANTS))
    add("shards", type=Path)
    add("--out", type=Path, required=True)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--epochs", type=int, default=30)
    add("--variants", nargs="+", metavar="NAME", help="of those the set has (default: all)")
    add("--ranks", nargs="+", default=["family", "species"], choices=RANKS)
    options = parser.parse_args()
    (run if options.what == "train" else table)(options)


if __name__ == "__main__":
    main()
