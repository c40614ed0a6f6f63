"""How large a cluster a training needs: storage, data CPUs, memory, network, hours, cost.

    python -m infra.capacity                                    the table of infra/README.md
    python -m infra.capacity --dataset bioscan5m --gpu h100 --gpus 16 --gpu-price 3 --cpu-price 0.04

The model: a step waits for the slower of two pipelines that work at the same time,
    specimens/s = min( data CPUs x rate of one CPU,  global batch / step ),
    step        = batch of a worker x FLOPs of a specimen / (peak x MFU)  +  bytes of the gradients / network.
The second line is pessimistic: most of the exchange happens during the backward pass. The rate of a data CPU is
measured (tests/benchmarks/results/loader.md); FLOPs are counted from the towers' shapes; peaks are
NVIDIA's; MFU and prices are assumptions, and options. tests/benchmarks/scaling.py calibrates the same model on one
small cluster and compares its predictions with others.
"""

import argparse
import math
import sys
from dataclasses import dataclass

from engine.commandline import Parser, guarded

CPU_RATE = 1015.0  # specimens/s of one data CPU: 2,029/s on 2, photos of 25 kB, two views of 224 pixels, 6-mers
HEADROOM = 1.5  # data CPUs above what the model asks for: photos vary, and so do machines
VIEWS = 2  # of a photo in a training step
IMAGE_SIDE = 224
BARCODE_BYTES = 1024  # 658 nt, rounded up to tar's blocks of 512
META_BYTES = 512  # labels and place, likewise
HEADERS = 3 * 512 + 256  # three members' headers, and half a block lost at the end of the photo
INDEX_GIB = 0.55  # memory of a process per million specimens of its index: 2.76 GiB for 5 million (results/loader.md)
PROCESS_GIB = 4.0  # of a train worker otherwise: torch, CUDA, batches on their way
STATE_BYTES = 12  # per trainable parameter in a checkpoint: weight and two moments, float32
GPU_STATE_BYTES = 16  # and its gradient, on the GPU
RECOMPUTED = 4 / 3  # gradient checkpointing: the forward pass a second time
GATHERED = 5  # feature tensors of a step: two views, barcode, text, fused


@dataclass(frozen=True)
class Dataset:
    """What is trained on. Bytes of a photo: the published files' size over the number of photos in them."""

    specimens: int
    photo_bytes: float
    epochs: int
    batch: int


# Hugging Face, bioscan-ml: cropped_256.hdf5 7.41 GB of 1,128,313 photos, BIOSCAN_5M_cropped_256.zip 39.1 GB of
# 5,150,850. Epochs and batches: the recipes of these names.
DATASETS = {
    "bioscan1m": Dataset(1_128_313, 7.41e9 / 1_128_313, 10, 256),
    "bioscan5m": Dataset(5_150_850, 39.1e9 / 5_150_850, 10, 2048),
}


@dataclass(frozen=True)
class Gpu:
    """bf16 without sparsity, FLOP/s, and memory (NVIDIA's data sheets)."""

    peak: float
    gib: int


GPUS = {"a100": Gpu(312e12, 80), "h100": Gpu(989e12, 80), "h200": Gpu(989e12, 141), "l40s": Gpu(362e12, 48)}


@dataclass(frozen=True)
class Tower:
    """A transformer's trunk; `mlp`: its MLP's weights in units of width squared (8 = two matrices of four widths)."""

    layers: int
    width: int
    tokens: int
    mlp: int = 8
    embedding: int = 0  # parameters that cost memory, not operations

    @property
    def parameters(self) -> int:
        """Number of weights: attention, MLP and embedding; norms and biases are left out."""
        return self.layers * (4 + self.mlp) * self.width**2 + self.embedding

    @property
    def flops(self) -> float:
        """Number of operations of one forward pass of one input."""
        products = 2 * self.layers * (4 + self.mlp) * self.width**2 * self.tokens
        return products + 4 * self.layers * self.tokens**2 * self.width


# The recipes bioscan1m and bioscan5m: ViT-L/14's two towers (vocabulary of 49,408) and DNABERT-2 (gated MLP, vocabulary
# of 4,096; about 5 nt a token).
IMAGE = Tower(24, 1024, 257)
TEXT = Tower(12, 768, 77, embedding=49408 * 768)
DNA = Tower(12, 768, 134, mlp=12, embedding=4096 * 768)
PARAMETERS = IMAGE.parameters + TEXT.parameters + DNA.parameters
EMBED_DIM = 768


def specimen_flops() -> float:
    """Return the FLOPs of a specimen in a training step: forward, again forward, backward; with one caption each."""
    return 3 * RECOMPUTED * (VIEWS * IMAGE.flops + TEXT.flops + DNA.flops)


def specimens_per_second(data_cpus: float, cpu_rate: float, batch: int, step_s: float) -> float:
    """Return the rate of the slower of the data CPUs and the train workers."""
    return min(data_cpus * cpu_rate, batch / step_s)


def step_seconds(batch: int, workers: int, row_s: float, fixed_s: float, exchange_s: float) -> float:
    """Return the seconds of a step: its rows, a fixed cost, and the exchange between several workers."""
    return batch / workers * row_s + fixed_s + exchange_s * (workers > 1)


def exchange_bytes(parameters: int, workers: int) -> float:
    """Return the bytes that a worker sends in a step's all-reduce of float32 gradients."""
    return 2 * (workers - 1) / workers * 4 * parameters


def gathered_bytes(batch: int, workers: int) -> float:
    """Return the bytes of others' features that a worker receives in a step, and of their gradients that it sends."""
    features = GATHERED * batch * EMBED_DIM * 4
    return (workers - 1) / workers * features * 3


@dataclass(frozen=True)
class Sizing:
    """What a training needs. GB are 1e9 bytes, GiB 2**30."""

    dataset: str
    gpus: int
    shards_gb: float
    runs_gb: float
    specimens_per_s: float
    data_cpus: int
    node_gib: float
    gpu_static_gib: float
    gradient_gb: float
    feature_mb: float
    blocks_mb_per_s: float
    hours: float
    cost: float


def plan(name: str, gpu: str, gpus: int, options: argparse.Namespace) -> Sizing:
    """Size a training of the recipe `name`. Raises ValueError for a number of GPUs that lanes do not allow."""
    from engine.config import DataConfig

    lanes = DataConfig().lanes
    if gpus < 1 or lanes % gpus:
        allowed = [n for n in range(1, lanes + 1) if lanes % n == 0]
        raise ValueError(f"--gpus: got {gpus}, allowed with data.lanes={lanes}: {', '.join(map(str, allowed))}")
    data = DATASETS[name]
    row = specimen_flops() / (GPUS[gpu].peak * options.mfu)
    exchange = exchange_bytes(PARAMETERS, gpus) / (options.network * 1e9 / 8)
    rate = data.batch / step_seconds(data.batch, gpus, row, 0.0, exchange)
    cpus = max(2, math.ceil(HEADROOM * rate / CPU_RATE))
    hours = data.specimens * data.epochs / rate / 3600
    millions = data.specimens / 1e6
    per_node = min(gpus, options.gpus_per_node)
    return Sizing(
        dataset=name,
        gpus=gpus,
        shards_gb=data.specimens * (data.photo_bytes + BARCODE_BYTES + META_BYTES + HEADERS) / 1e9,
        runs_gb=4 * STATE_BYTES * PARAMETERS / 1e9,  # the last two, the best, and one being written
        specimens_per_s=rate,
        data_cpus=cpus,
        node_gib=per_node * (PROCESS_GIB + INDEX_GIB * millions) + 0.25 * cpus + 2,
        gpu_static_gib=GPU_STATE_BYTES * PARAMETERS / 2**30,
        gradient_gb=exchange_bytes(PARAMETERS, gpus) / 1e9 if gpus > 1 else 0.0,
        feature_mb=gathered_bytes(data.batch, gpus) / 1e6,
        blocks_mb_per_s=rate * VIEWS * 3 * IMAGE_SIDE**2 / 1e6,
        hours=hours,
        cost=hours * (gpus * options.gpu_price + cpus * options.cpu_price),
    )


ROWS = (
    ("shards, GB", "shards_gb", ".0f"),
    ("four checkpoints, GB", "runs_gb", ".0f"),
    ("specimens/s", "specimens_per_s", ".0f"),
    ("data CPUs to feed them", "data_cpus", "d"),
    ("memory of a train node, GiB", "node_gib", ".0f"),
    ("weights, gradients, moments on a GPU, GiB", "gpu_static_gib", ".1f"),
    ("gradients a worker sends a step, GB", "gradient_gb", ".2f"),
    ("gathered features a worker moves a step, MB", "feature_mb", ".1f"),
    ("specimens to the train nodes, MB/s", "blocks_mb_per_s", ".0f"),
    ("hours", "hours", ".1f"),
    ("cost at the prices given", "cost", ".0f"),
)


def table(plans: list[Sizing]) -> str:
    """Return a Markdown table with one column for each sizing."""
    lines = ["| | " + " | ".join(f"{one.dataset}, {one.gpus} GPU" + "s" * (one.gpus > 1) for one in plans) + " |"]
    lines.append("|---|" + "---:|" * len(plans))
    for title, field, form in ROWS:
        lines.append(f"| {title} | " + " | ".join(format(getattr(one, field), form) for one in plans) + " |")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="python -m infra.capacity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", choices=DATASETS, action="append", help="may be repeated (default: all)")
    add("--gpu", choices=GPUS, default="a100", help="default: %(default)s")
    add("--gpus", type=int, action="append", help="may be repeated (default: 1, 4 and 8)")
    add("--gpus-per-node", type=int, default=4)
    add("--mfu", type=float, default=0.35, help="share of the GPU's peak that a step uses (default: %(default)s)")
    add("--network", type=float, default=100.0, help="Gbit/s of a worker to the others (default: %(default)s)")
    add("--gpu-price", type=float, default=2.0, help="of a GPU and hour (default: %(default)s)")
    add("--cpu-price", type=float, default=0.04, help="of a CPU and hour (default: %(default)s)")
    options = parser.parse_args(arguments)
    for name in ("mfu", "network", "gpus_per_node"):
        if getattr(options, name) <= 0 or options.mfu > 1:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(options, name):g}, allowed: above 0 (mfu: up to 1)")
    return options


def _command(options: argparse.Namespace) -> int:
    plans = [
        plan(name, options.gpu, gpus, options)
        for name in options.dataset or DATASETS
        for gpus in options.gpus or (1, 4, 8)
    ]
    prices = f"{options.gpu_price:g} a GPU hour and {options.cpu_price:g} a CPU hour"
    print(f"{options.gpu}, MFU {options.mfu:g}, {options.network:g} Gbit/s, prices {prices}")
    print(f"{specimen_flops() / 1e12:.2f} TFLOP a specimen, {PARAMETERS / 1e6:.0f} M parameters\n")
    print(table(plans))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parse(arguments)
    return guarded(lambda: _command(options))


if __name__ == "__main__":
    sys.exit(main())
