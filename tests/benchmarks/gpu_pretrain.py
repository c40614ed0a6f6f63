"""Tokens a second and MFU of pretraining at the published size, and 35 epochs of coi: one command for a GPU machine.

    python -m tests.benchmarks.gpu_pretrain RECIPE                    12 x 768, bf16, a batch of 256, the first GPU
    python -m tests.benchmarks.gpu_pretrain RECIPE --epochs-of SHARDS then 35 epochs of these shards as a Ray Train job
    python -m tests.benchmarks.gpu_pretrain RECIPE --small            the same path on a CPU in seconds

The step runs on random tokens that are there already. FLOPs are counted by torch; MFU is their rate over that of a
large matrix product.
"""

import argparse
import subprocess
import sys
import time

import torch

from engine.signals.barcodes import FIRST_KMER, make_tokenizer
from train.config import Config, override
from train.learning.flops import counted, matmul_rate
from train.losses import hidden_tokens, token_loss
from train.models.dna_encoders import build_dna_encoder
from train.models.pretraining import Pretraining
from train.recipes import make

PUBLISHED = ("model.dna_width=768", "model.dna_depth=12", "model.dna_heads=12", "run.precision=bf16")
DECODERS = {"barcodebert": (), "barcodemae": ("loss.decoder_layers=6",)}
EPOCHS, WARM_UP, STEPS = 35, 3, 10


def measured(config: Config, rows: int, device: torch.device) -> dict[str, float]:
    """Tokens a second, MFU and ms of a step with its backward pass and update."""
    tokenizer = make_tokenizer(config.data)
    encoder = build_dna_encoder(config.model, config.data, 256).to(device)
    head = Pretraining(encoder, config.data.kmer, config.loss).to(device)
    trained = [p for part in (encoder.bert, head) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    tokens = torch.randint(FIRST_KMER, tokenizer.vocab_size, (rows, tokenizer.length))
    hidden = hidden_tokens(tokens, [str(row) for row in range(rows)], config.loss.mask_share, 0, 0)
    there = torch.ones(rows, dtype=torch.bool)
    batch = {"valid": there, "has_dna": there, "dna_tokens": tokens, "hidden": hidden}
    batch = {name: value.to(device) for name, value in batch.items()}

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.run.precision == "bf16"):
            predicted = head(encoder, batch)
        optimizer.zero_grad(set_to_none=True)
        token_loss(predicted)["loss/total"].backward()
        optimizer.step()

    _, flops = counted(step)
    for _ in range(WARM_UP):
        step()
    _wait(device)
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    _wait(device)
    seconds = (time.perf_counter() - started) / STEPS
    peak = matmul_rate(device, config.run.precision)
    return {"tokens_per_s": tokens.numel() / seconds, "mfu": flops / seconds / peak, "ms": 1000 * seconds}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted(DECODERS))
    parser.add_argument("--epochs-of", metavar="SHARDS")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args(arguments)
    if not options.small and not torch.cuda.is_available():
        print("no GPU here; --small takes the same path on a CPU")
        return 2
    settings = () if options.small else (*PUBLISHED, *DECODERS[options.recipe])
    device = torch.device("cpu" if options.small else "cuda")
    found = measured(override(make(options.recipe), settings), 8 if options.small else 256, device)
    print(" | ".join(f"{name} {value:,.3f}" for name, value in found.items()))
    if not options.epochs_of:
        return 0
    sets = [*settings, f"data.shards={options.epochs_of}", f"run.epochs={EPOCHS}", "run.global_batch_size=256"]
    sets += [] if options.small else ["run.use_gpu=true"]
    command = [sys.executable, "train/main.py", "--recipe", options.recipe]
    return subprocess.run([*command, *(part for one in sets for part in ("--set", one))], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
