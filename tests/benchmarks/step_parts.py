"""Where a training step's time goes, beside the authors' release: same towers, same batch, CPU, float32.

    python -m tests.benchmarks.step_parts --release CHECKOUT --shards shards/moths

Towers: an open_clip model and a DNABERT-2 of random weights. Interleaved rounds, each timing every part of both once,
one uncounted round before them; medians in ms. Rows of the table:
  towers     forward and backward of image, text and DNA towers (ours: with the gate)
  losses     from features to their gradients; of the release with and without deciding pairs in Python (its masks)
  optimizer  AdamW (ours: with clipping)
  data       one batch from stored bytes to tensors, in this process: decode, two views, tokens, captions. Both
             prepare batches beside the step when they train, so it is no part of the step.
The release's data come from an HDF5 and a CSV of the same specimens, written here (needs h5py and pandas).
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import torch

from engine.batches.collate import Batch, collate
from engine.batches.pipeline import label_columns, load_index, select_split
from engine.batches.prepare import MemberReader, Prepare, Specimens
from engine.specimens.captions import caption
from engine.specimens.taxonomy import RANKS, Taxonomy
from tests.benchmarks import release_step
from tests.benchmarks.release_step import Clock, Release
from train.config import Config, override
from train.evaluation.subsets import read_barcodes
from train.learning.loop import CaptionTable
from train.learning.optim import build_optimizer
from train.models.checkpoint import build
from train.models.trimodal import caption_tokenizer

PARTS = ("towers", "losses", "masks", "optimizer", "data")


def specimens_of(shards: Path, count: int) -> tuple[pa.Table, Taxonomy]:
    """The first training specimens that have photo and barcode, and the taxonomy of all."""
    train = select_split(load_index([shards]), "train")
    both = (np.asarray(train["image_size"]) > 0) & (np.asarray(train["dna_size"]) > 0)
    return train.take(pa.array(np.flatnonzero(both)[:count])), Taxonomy.build(label_columns(train))


class OurData:
    """Rows of shards -> the Batch of a step."""

    def __init__(self, index: pa.Table, taxonomy: Taxonomy, config: Config, tokenizer: Any) -> None:
        self.prepare = Prepare(Specimens.from_index(index, taxonomy), config.data, config.run.seed, training=True)
        self.captions, self.rows = CaptionTable(tokenizer, taxonomy), np.arange(len(index))

    def __call__(self, epoch: int) -> Batch:
        batch = collate(self.prepare(self.rows, epoch))
        self.captions.attach(batch)
        return batch


class ReleaseData:
    """The same specimens through the release's dataset and the collation of its loader."""

    def __init__(
        self, module: Any, index: pa.Table, taxonomy: Taxonomy, config: Config, tokenizer: Any, folder: Path
    ) -> None:
        import h5py
        import pandas as pd

        specimens = Specimens.from_index(index, taxonomy)
        photos = MemberReader(specimens).read(np.arange(len(index)))[0]["image"]
        names = [f"{key.decode()}.jpg" for key in specimens.key]
        with h5py.File(folder / "photos.hdf5", "w") as file:
            group = file.create_group("bioscan_dataset")
            for name, photo in zip(names, photos, strict=True):
                group[name] = np.frombuffer(photo or b"", dtype=np.uint8)
        codes = specimens.labels + 1
        table: dict[str, Any] = {"image_file": names, "nucraw": read_barcodes(index)}
        table |= {rank: codes[:, level] for level, rank in enumerate(RANKS)}
        table["taxonomy"] = [caption(taxonomy.lineage_names(row)) for row in specimens.labels.tolist()]
        table["unique_label"] = np.unique(table["taxonomy"], return_inverse=True)[1]
        table["All_level_label"] = [str(row) for row in codes.tolist()]
        pd.DataFrame(table).to_csv(folder / "rows.csv", index=False)
        size = config.data.image_size
        preprocess = open_clip.image_transform(size, is_train=False)
        self.dataset = module.BIOSCANHierarchicalDataset(
            folder / "rows.csv",
            folder / "photos.hdf5",
            module.TwoCropTransform(preprocess),
            "image_file",
            "taxonomy",
            "nucraw",
            tokenizer,
        )
        self.rows = list(range(len(index)))

    def __call__(self) -> list[Any]:
        return torch.utils.data.default_collate([self.dataset[self.rows]])


def rounds(options: argparse.Namespace, folder: Path) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Seconds of every part of one step of ours and of the release's, round by round."""
    config = override(
        Config(),
        [
            f"model.image_text={options.image_text}",
            f"data.image_size={options.image_size}",
            "model.dna=dnabert2",
            f"model.dna_width={options.dna_width}",
            f"model.dna_depth={options.dna_depth}",
            "model.dna_heads=6",
            "model.dropout=0",
            "data.kmer=5",
            "data.kmer_stride=5",
            "loss.representatives=one_per_label",
        ],
    )
    index, taxonomy = specimens_of(options.shards, options.batch)
    torch.manual_seed(0)
    model = build(config, taxonomy).train()
    optimizer, _ = build_optimizer(model, config.optim, 100)
    tokenizer = caption_tokenizer(model)
    data = OurData(index, taxonomy, config, tokenizer)
    ours, theirs = Clock(torch.device("cpu")), Clock(torch.device("cpu"))
    module = release_step.load(options.release)
    release = Release(module, model, data.prepare.tokenizer, theirs)
    release_data = ReleaseData(module, index, taxonomy, config, tokenizer, folder)
    for turn in range(options.rounds + 1):
        ours.seconds.clear()
        theirs.seconds.clear()
        with ours("data"):
            batch = data(turn)
        release_step.our_step(model, optimizer, batch, config.loss, ours)
        with theirs("data"):
            their_batch = release_data()
        release.step(their_batch)
        tokens = theirs.seconds.pop("tokens")  # its model tokenises inside its forward
        theirs.seconds["towers"] -= tokens
        theirs.seconds["data"] += tokens
        if turn:
            yield dict(ours.seconds), dict(theirs.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--release", type=Path, required=True, metavar="CHECKOUT")
    add("--shards", type=Path, required=True)
    add("--batch", type=int, default=64)
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=1)
    add("--image-text", default="ViT-S-32")
    add("--image-size", type=int, default=224)
    add("--dna-width", type=int, default=384)
    add("--dna-depth", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = list(rounds(options, Path(folder)))
    ours, theirs = (
        {part: 1000 * statistics.median(one[side].get(part, 0.0) for one in found) for part in PARTS} for side in (0, 1)
    )
    print(f"B = {options.batch}, {options.image_text}, DNABERT-2 of {options.dna_depth} x {options.dna_width}")
    print(f"{options.threads} thread(s), {options.rounds} rounds\n| part | ours, ms | release, ms |\n|---|---:|---:|")
    for part in PARTS:
        name = "of these, its masks" if part == "masks" else part
        print(f"| {name} | {ours[part]:.1f} | {theirs[part]:.1f} |")
    whole, their_whole = (sum(side[part] for part in ("towers", "losses", "optimizer")) for side in (ours, theirs))
    print(f"| step (towers, losses, optimizer) | {whole:.1f} | {their_whole:.1f} |")
    rest = whole - ours["towers"]
    print(f"\nours: all but the towers {100 * rest / whole:.1f}% of the step")
    for name, one, other in (("step", whole, their_whole), ("losses", ours["losses"], theirs["losses"])):
        print(f"{name}, release / ours: {other / one:.2f}, without its masks {(other - theirs['masks']) / one:.2f}")


if __name__ == "__main__":
    main()
