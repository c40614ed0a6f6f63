"""Is the pool ever below its best expert? Every damage of the barcode crossed with every blur of the photo.

    python -m tests.benchmarks.pool_cells SHARDS --checkpoint RUN [--library] [--split test]

RUN: with `train.evaluate --calibration`. Specimens with photo and barcode; `--library`: barcodes of the train split as
references. Of each cell and of species and genus: right answers of the best single expert (the one that is best on val
in the same cell), of the pool with its guarantee, of the gate and of the average, in %; then pool less expert, in
points with its 95% interval, paired, groups of equal barcodes resampled.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.batches.pipeline import load_index
from engine.config import DegradeConfig
from engine.signals.damage import measured_barcodes
from train.evaluation.known_questions import GENUS, SPECIES, Part, fuse_with
from train.evaluation.model_under_test import Setting
from train.evaluation.predict import SHARPNESS, combined, lacking
from train.inference import evidence
from train.inference.calibration import FILE, POOLED, WITH_LIBRARY, Calibration
from train.inference.experts import Inputs, barcode_quality
from train.inference.pool import Pool, Weight
from train.metrics import paired_difference
from train.models import checkpoint
from train.pages.calibration_report import library_of

DNA = {"clean": DegradeConfig(severity=0.0)} | {f"{n}x": DegradeConfig(severity=float(n)) for n in (1, 2, 3, 4)}
DNA |= {f"{n} nt": DegradeConfig(severity=0.0, fragment=n) for n in (50, 75, 100, 150, 200, 300)}
BLUR = {"clean": 1, "blur 7": 7, "blur 15": 15, "blur 31": 31}
Right = dict[str, np.ndarray]  # who -> bool [N, R]


@dataclass
class Asked:
    """Specimens of a split in every form."""

    part: Part
    query: str
    rows: np.ndarray

    @classmethod
    def of(cls, setting: Setting, split: str, query: str) -> "Asked":
        part = Part(setting, split, library_of(setting) if query.endswith(WITH_LIBRARY) else None)
        rows = np.flatnonzero(part.mask(POOLED) & (part.labels >= 0).all(axis=1))
        return cls(part, query, rows)

    def photos(self, kernel: int) -> tuple[np.ndarray, np.ndarray]:
        """Features and sharpness."""
        index = lacking(self.part.rows.take(self.rows), "dna")
        degrade = DegradeConfig(severity=0.0, blur_kernel=kernel)
        found = self.part.setting.encode(index, f"photo{kernel}", degrade=degrade).features
        return found["image_noisy"], found[f"{SHARPNESS}_noisy"][:, 0].astype(np.float64)

    def barcodes(self, degrade: DegradeConfig) -> tuple[np.ndarray, list[str]]:
        """Features and the barcodes themselves."""
        index = lacking(self.part.rows.take(self.rows), "image")
        found = self.part.setting.encode(index, "dna", degrade=degrade)
        data = self.part.setting.config.data
        return found.features["dna_noisy"], measured_barcodes(
            self.part.given(self.rows, ""), found.keys, 0, degrade, data.orient
        )

    def right(self, pool: Pool) -> dict[tuple[str, str], Right]:
        """Every cell -> right answers of the pool, of each expert, of gate and average."""
        photos = {name: self.photos(kernel) for name, kernel in BLUR.items()}
        result = {}
        for dna, degrade in DNA.items():
            features, barcodes = self.barcodes(degrade)
            nearest = None if self.part.combiner is None else self.part.combiner.find(barcodes)
            for photo, (image, sharp) in photos.items():
                inputs = Inputs(image, features, nearest, barcode_quality(barcodes) | {SHARPNESS: sharp})
                result[dna, photo] = self.answers(inputs, pool)
        return result

    def answers(self, inputs: Inputs, pool: Pool) -> Right:
        scorer, labels = self.part.setting.scorer, self.part.labels[self.rows]
        found = {"pool": [one.answers.path for one in evidence.pooled(scorer, inputs, pool)]}
        for number, expert in enumerate(pool.experts):
            one = replace(
                pool, guarantee=None, weights=tuple(_only(w, place == number) for place, w in enumerate(pool.weights))
            )
            found[expert] = [chunk.answers.path for chunk in evidence.pooled(scorer, inputs, one)]
        for name in ("fused", "average"):
            features = combined(
                name, [one for one in (inputs.image, inputs.dna) if one is not None], fuse_with(self.part.setting)
            )
            found[name] = [chunk.answers.path for chunk in evidence.scored(scorer, features)]
        return {name: np.concatenate(paths) == labels for name, paths in found.items()}


def _only(weight: Weight, counts: bool) -> Weight:
    """A weight of 1, or of 0."""
    return replace(weight, slope=(0.0,) * len(weight.slope), offset=float(np.log(np.expm1(1.0))) if counts else -80.0)


def table(test: Asked, found: dict[tuple[str, str], Right], val: dict[tuple[str, str], Right], pool: Pool) -> str:
    lines = [
        "| barcode | photo | rank | best expert | expert | pool | gate | average | pool less expert |",
        "|---" * 9 + "|",
    ]
    lowest = {}
    for (dna, photo), right in found.items():
        for rank, name in ((SPECIES, "species"), (GENUS, "genus")):
            best = max(pool.experts, key=lambda one: val[dna, photo][one][:, rank].mean())
            gap = paired_difference(
                right["pool"][:, rank], right[best][:, rank], test.part.group[test.rows], resamples=1000
            )
            shares = [f"{100 * right[one][:, rank].mean():.1f}" for one in (best, "pool", "fused", "average")]
            text = f"{100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
            lines.append(f"| {dna} | {photo} | {name} | {best} | {' | '.join(shares)} | {text} |")
            lowest[dna, photo, name] = 100 * gap.low
    below = [f"{' / '.join(cell)} {low:+.1f}" for cell, low in lowest.items() if low < -0.5]
    lines.append(f"\ncells with a lower end below -0.5: {len(below)} of {len(lowest)}: {'; '.join(below)}")
    above = sum(low > 0 for low in lowest.values())
    return "\n".join([*lines, f"cells with a lower end above 0: {above}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--library", action="store_true")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    loaded = checkpoint.load(options.checkpoint)
    setting = Setting(loaded.model, loaded.config, loaded.taxonomy, load_index([options.shards]), options.split)
    query = POOLED + WITH_LIBRARY * options.library
    pool = Calibration.load(loaded.path / FILE).queries[query].pool
    assert pool is not None
    for one in pool.weights:
        slopes = ", ".join(f"{name} {slope:+.2f}" for name, slope in zip(one.inputs, one.slope, strict=True))
        print(f"{one.expert}: temperature {one.temperature:.2f}, offset {one.offset:+.2f}, {slopes}")
    if pool.guarantee:
        answers = [cell.answers for cell in pool.guarantee.cells]
        print({name: answers.count(name) for name in dict.fromkeys(answers)})
    val, test = (Asked.of(setting, split, query) for split in ("val", options.split))
    print(f"{len(test.rows)} specimens, {len(np.unique(test.part.group[test.rows]))} groups")
    bare = replace(pool, guarantee=None)
    print(table(test, test.right(pool), val.right(pool), pool))
    print("\nWithout the guarantee:")
    print(table(test, test.right(bare), val.right(bare), pool).split("\n\n")[-1])


if __name__ == "__main__":
    main()
