"""What training costs on a GPU: ViT-L/14 and DNABERT-2 from random weights, bf16, two views, photos of 224 pixels.

    python -m tests.benchmarks.gpu_train --check-imports      what is missing on this machine
    python -m tests.benchmarks.gpu_train                      all of it on the first GPU; needs no network, no MLflow
    python -m tests.benchmarks.gpu_train --release CHECKOUT   and the authors' release's float32 step beside it
    python -m tests.benchmarks.gpu_train --small              the same path on a CPU in seconds, at tiny sizes

Measured: the rate of a large bf16 matrix product; the step of the recipe `bioscan1m` on a batch that is there, median;
its FLOPs, counted by torch, over both = MFU; peak memory; the same training fed by the data engine through Ray Data,
and how long its steps wait; the loss of a very large batch; the release's step, TF32 off, on copies of the same towers
and the same batch, with its Python loops apart. Specimens are simulated, written to a temporary folder; their barcodes
are cut by a byte-pair tokenizer made from them, as large as DNABERT-2's.
"""

import argparse
import importlib
import logging
import pkgutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.batches.collate import Batch
    from train.learning.loop import Session

OPTIONAL = {"mlflow": "tracking; without it set run.tracking=none"}
PACKAGES = ("engine", "train")
VOCABULARY = 4096  # tokens, as DNABERT-2's
WARM_UP = 3  # steps that are not counted


def missing() -> list[str]:
    """One line for each of our modules that cannot be imported here, and why; what is optional is left out."""
    lines = []
    for package in PACKAGES:
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            try:
                importlib.import_module(found.name)
            except ImportError as error:
                if (error.name or "").split(".")[0] not in OPTIONAL:
                    lines.append(f"{found.name}: {error}")
    return lines


def median_seconds(function: Callable[[], Any], device: Any, repeats: int) -> float:
    """Median wall time of a call; a GPU is waited for, the first calls are not counted."""
    from tests.benchmarks.release_step import Clock

    seconds = []
    for turn in range(repeats + WARM_UP):
        clock = Clock(device)
        with clock("call"):
            function()
        if turn >= WARM_UP:
            seconds.append(clock.seconds["call"])
    return statistics.median(seconds)


def matmul_rate(device: Any, side: int) -> float:
    """FLOP/s of a bf16 product of two random square matrices."""
    import torch

    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: a @ b, device, 10)


def write_shards(folder: Path, count: int) -> Path:
    """Simulated specimens, and a tokenizer file made from their barcodes beside them."""
    from tokenizers import Tokenizer, models, trainers

    from engine.batches.pipeline import load_index
    from engine.formats.registry import open_dataset
    from engine.ingest.job import IngestOptions, ingest
    from train.evaluation.subsets import read_barcodes

    source = open_dataset("simulated", [], seed=0, num_specimens=count, num_species=max(16, count // 77))
    ingest(source, folder, IngestOptions(parallel=False))
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["[UNK]"], max_token_length=16, show_progress=False
    )
    tokenizer.train_from_iterator((s for s in read_barcodes(load_index([folder])) if s), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def session_of(options: argparse.Namespace, shards: Path, device: Any) -> "Session":
    """The recipe `bioscan1m` on these shards, or with --small its kinds of towers at sizes for a CPU."""
    from engine.batches.pipeline import label_columns, load_index, select_split
    from engine.specimens.taxonomy import Taxonomy
    from train.learning.loop import Session
    from train.recipes import make

    config = make("bioscan1m")
    data = replace(config.data, shards=(str(shards),), tokenizer_file=str(shards / "tokenizer.json"))
    run = replace(config.run, global_batch_size=options.batch, num_workers=1, epochs=1000, compile=options.compile)
    model = replace(config.model, gradient_checkpointing=options.checkpointing)
    if options.small:
        data = replace(data, image_size=32)
        model = replace(model, image_text="taxafuse-tiny", embed_dim=32, dna_width=32, dna_depth=1, dna_heads=2)
    index = load_index(data.shards)
    taxonomy = Taxonomy.build(label_columns(select_split(index, "train")))
    return Session(replace(config, data=data, model=model, run=run), index, taxonomy, device)


def count_flops(session: "Session", batch: "Batch") -> int:
    """FLOPs of one training step, forward and backward, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        session.train_step(dict(batch))
    return int(counter.get_total_flops())


def steady_step(options: argparse.Namespace, session: "Session", batch: "Batch", rate: float) -> None:
    """Time, memory and MFU of steps whose batch is there."""
    import torch

    flops = count_flops(session, batch)
    cuda = session.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = median_seconds(lambda: session.train_step(dict(batch)), session.device, options.steps)
    print(f"step of {options.batch}: {1000 * seconds:.1f} ms, {options.batch / seconds:.1f} specimens/s")
    print(f"{flops / 1e12:.3f} TFLOP a step: MFU {100 * flops / seconds / rate:.1f}% of {rate / 1e12:.2f} TFLOP/s")
    if cuda:
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def fed_by_the_engine(options: argparse.Namespace, session: "Session") -> None:
    """The same steps on batches of Ray Data: how long do they wait?"""
    from engine.batches.pipeline import cpu_budget
    from train.learning.loop import timed

    budget = None
    if not options.small:
        import ray

        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        budget = cpu_budget(ray.cluster_resources(), 1, 1.0)
    waits, steps, rows = [], [], 0
    batches = session.batches(budget)
    for number, (batch, wait) in enumerate(timed(batches)):
        started = time.perf_counter()
        float(session.train_step(batch)["loss/total"])
        if number >= WARM_UP:  # the first ones wait for the data tasks to start
            waits.append(wait)
            steps.append(time.perf_counter() - started)
            rows += len(batch["valid"])
        if len(steps) == options.steps:
            break
    batches.close()  # type: ignore[attr-defined]
    whole = sum(waits) + sum(steps)
    print(f"fed by the engine: {rows / whole:.1f} specimens/s, waiting for data {100 * sum(waits) / whole:.1f}%")


def large_loss(options: argparse.Namespace, device: Any) -> None:
    """Contrastive and HiR terms of a very large batch, forward and backward."""
    import torch

    from tests.benchmarks.losses import insects
    from train.config import LossConfig
    from train.losses import Targets, contrastive_loss, hierarchy_loss

    features, targets = insects(options.rows, options.dim)
    targets = Targets(*(column.to(device) for column in targets))
    for name, value in vars(features).items():
        if isinstance(value, torch.Tensor):
            setattr(features, name, value.detach().to(device).requires_grad_())
    for term, loss in (("loss/contrastive", contrastive_loss), ("loss/hierarchy", hierarchy_loss)):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

        def step(loss: Callable[..., dict[str, Any]] = loss, term: str = term) -> None:
            loss(features, targets, LossConfig())[term].backward()

        seconds = median_seconds(step, device, 3)
        memory = f", peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if device.type == "cuda" else ""
        print(f"{term} of B = {options.rows}, D = {options.dim}: {seconds:.2f} s{memory}")


def beside_the_release(options: argparse.Namespace, session: "Session", batch: "Batch") -> None:
    """The release's float32 step on copies of the towers; `ours` in the run's precision, by the same parts."""
    import torch

    from engine.batches.pipeline import load_index
    from engine.signals.barcodes import make_tokenizer
    from tests.benchmarks import release_step
    from train.evaluation.subsets import read_barcodes
    from train.learning.loop import to_device

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    index = load_index(session.config.data.shards)
    barcodes = dict(zip(index["key"].to_pylist(), read_barcodes(index), strict=True))
    ours, theirs = release_step.Clock(session.device), release_step.Clock(session.device)
    module = release_step.load(options.release)
    release = release_step.Release(module, session.model, make_tokenizer(session.config.data), theirs)
    session.captions.attach(batch)
    given = release_step.release_batch(batch, [barcodes[key] for key in batch["keys"]], session.model)
    bf16 = session.config.run.precision == "bf16"
    moved = to_device(batch, session.device)
    for turn in range(options.release_steps + 1):
        if turn == 1:
            ours.seconds.clear()
            theirs.seconds.clear()
        release_step.our_step(session.model, session.optimizer, moved, session.config.loss, ours, bf16=bf16)
        release.step(given)
    ours_ms, theirs_ms = (
        {part: 1000 * value / options.release_steps for part, value in clock.seconds.items()}
        for clock in (ours, theirs)
    )
    print(f"| part, B = {options.batch} | ours, ms | release (float32), ms |\n|---|---:|---:|")
    for part in ("towers", "losses", "masks", "optimizer"):
        print(f"| {part} | {ours_ms.get(part, 0.0):.1f} | {theirs_ms.get(part, 0.0):.1f} |")
    one, other = (sum(side[part] for part in ("towers", "losses", "optimizer")) for side in (ours_ms, theirs_ms))
    print(f"step, release / ours: {other / one:.2f}, without its masks {(other - theirs_ms['masks']) / one:.2f}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; --small changes the sizes that were not given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--check-imports", action="store_true", help="list what cannot be imported here, and stop")
    add("--small", action="store_true", help="sizes for a CPU in seconds")
    add("--release", type=Path, metavar="CHECKOUT", help="a checkout of the authors' release")
    add("--batch", type=int, help="specimens of a step, two views each (128; small: 16)")
    add("--specimens", type=int, help="simulated specimens (9,200; small: 320)")
    add("--rows", type=int, help="batch of the large loss (32,768; small: 64)")
    add("--dim", type=int, default=768, help="width of its features")
    add("--steps", type=int, help="timed steps (20; small: 2)")
    add("--release-steps", type=int, default=2)
    add("--checkpointing", action="store_true", help="compute activations again in the backward pass")
    add("--compile", action="store_true", help="torch.compile the towers")
    options = parser.parse_args(arguments)
    for name, large, small in (("batch", 128, 16), ("specimens", 9200, 320), ("rows", 32768, 64), ("steps", 20, 2)):
        if getattr(options, name) is None:
            setattr(options, name, small if options.small else large)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; 1 when something is missing."""
    options = parse(arguments)
    if lines := missing():
        print("\n".join(lines), file=sys.stderr)
        return 1
    if options.check_imports:
        print("everything that training needs can be imported")
        return 0
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() and not options.small else "cpu")
    if device.type == "cpu" and not options.small:
        print("no GPU here; --small runs the same path on a CPU", file=sys.stderr)
        return 1
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}")
    rate = matmul_rate(device, 256 if options.small else 8192)
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(options, write_shards(Path(folder) / "shards", options.specimens), device)
        batches = session.batches(None)
        batch = next(batches)
        batches.close()  # type: ignore[attr-defined]
        steady_step(options, session, batch, rate)
        fed_by_the_engine(options, session)
        if options.release:
            beside_the_release(options, session, batch)
    del session
    large_loss(options, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
