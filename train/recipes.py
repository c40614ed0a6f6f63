"""A run is a named function: its docstring gives the command, the hardware, the time and the score to expect.

The four methods are CLIBD-HiR-Fuse, which is what a recipe trains unless it says otherwise, and three changes of it
(`as_clibd`, `as_clibd_hir`, `as_robust`) that apply to any recipe. The recipes `quickstart`, `clibd`, `clibd_hir` and
`robust` are the four on one set of specimens, with equal budgets.
"""

from collections.abc import Callable
from dataclasses import replace

from engine.config import AugmentConfig, DataConfig, RobustConfig
from train.config import Config, EvalConfig, LossConfig, ModelConfig, OptimConfig, RunConfig

RECIPES: dict[str, Callable[[], Config]] = {}


def recipe(function: Callable[[], Config]) -> Callable[[], Config]:
    """Register a recipe under its function's name."""
    RECIPES[function.__name__] = function
    return function


def make(name: str) -> Config:
    """Return the configuration of a recipe. Raises ValueError naming the recipes that there are."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; recipes: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()


def as_clibd(config: Config) -> Config:
    """CLIBD: no hierarchy, no fusion; all epochs go to the encoders.

    On any recipe: --set loss.hierarchy_weight=0 --set loss.fusion_weight=0 --set run.fusion_training=joint
    """
    config = as_clibd_hir(config)
    return replace(config, loss=replace(config.loss, hierarchy_weight=0.0))


def as_clibd_hir(config: Config) -> Config:
    """CLIBD-HiR: no fusion; all epochs go to the encoders.

    On any recipe: --set loss.fusion_weight=0 --set run.fusion_training=joint
    """
    run = replace(config.run, fusion_training="joint")
    return replace(config, loss=replace(config.loss, fusion_weight=0.0), run=run)


def as_robust(config: Config) -> Config:
    """Train the same on damaged inputs.

    Four barcodes in ten are damaged by the preset at severity 0 to 4, most of those cut to pieces from 50 nt on; half
    of the views are blurred; a tenth of the photos and of the barcodes is kept from the fusion. No dropout: on bold
    (20 epochs, one seed) clean and damaged barcodes both gained a point without it.

    On any recipe: --set data.robust.dna=0.4 --set data.robust.image=0.5 --set data.robust.withheld=0.2
    --set model.dropout=0

    Species accuracy on test, means of three seeds (tests/benchmarks/robust.py): on `bold` with run.epochs=30 damage
    costs 11.5 points instead of 24.7, at 97.6% instead of 98.4% on clean barcodes; it needs longer than training on
    clean barcodes alone. On `moths` it costs the fusion 8.6 points instead of 35.0, at 99.2% instead of 98.9%.
    """
    robust = RobustConfig(dna=0.4, image=0.5, withheld=0.2)
    model = replace(config.model, dropout=0.0)
    return replace(config, model=model, data=replace(config.data, robust=robust))


@recipe
def quickstart() -> Config:
    """CLIBD-HiR-Fuse on simulated specimens: the main job of a fresh machine.

    python train/main.py --recipe quickstart

    2 CPU cores: 3 to 4 minutes of training. Test, seed 0: barcode species 96.9%, photo family 73.1%, gated fusion with
    both inputs damaged 99.4% (tests/benchmarks/results/quickstart.md).
    """
    return Config(
        recipe="quickstart",
        data=DataConfig(shards=("simulated:0",), augment=AugmentConfig(min_area=0.7)),
        optim=OptimConfig(max_lr=4e-3),
        run=RunConfig(epochs=14, validate_every=7, fusion_training="posthoc", fusion_epochs=1),
    )


@recipe
def sweep() -> Config:
    """CLIBD-HiR-Fuse on 2,400 simulated specimens of 60 species: small enough to be trained many times over.

    python tune/main.py --recipe sweep

    2 CPU cores: 38 s a training of one core, 7 minutes a sweep of 16 trials with its finals. Val, seed 0: barcode
    species 76.3%, photo family 51.9%.
    """
    return Config(
        recipe="sweep",
        data=DataConfig(shards=("simulated:0:2400",), augment=AugmentConfig(min_area=0.7)),
        optim=OptimConfig(max_lr=4e-3),
        run=RunConfig(epochs=9, global_batch_size=128, validate_every=3),
    )


@recipe
def bold() -> Config:
    """DNA and text on the BOLD barcodes of four insect orders: no photos, so CLIBD's DNA-text half.

    python -m engine.main ingest table DATA/bold/barcodes.parquet --out shards/bold
    python train/main.py --recipe bold --set data.shards=shards/bold

    2 CPU cores: 3 minutes. Test species top-1 by prompts with roll-up: 98.3% micro.
    """
    return Config(
        recipe="bold",
        data=DataConfig(shards=("shards/bold",)),
        optim=OptimConfig(max_lr=2e-3),
        run=RunConfig(epochs=10, global_batch_size=512),
    )


@recipe
def moths() -> Config:
    """CLIBD-HiR-Fuse on a thousand photos of live moths, each with a barcode of its species, from random weights.

    python -m engine.main ingest table DATA/moths/specimens.parquet --out shards/moths
    python train/main.py --recipe moths --set data.shards=shards/moths

    2 CPU cores: 5 minutes. Test species top-1: barcode 99.7%, photo 19.0%, fused 98.1%.
    """
    return Config(
        recipe="moths",
        data=DataConfig(shards=("shards/moths",), augment=AugmentConfig(rotate_degrees=180.0)),
        optim=OptimConfig(max_lr=2e-3),
        run=RunConfig(
            epochs=80,
            global_batch_size=128,
            validate_every=20,
            checkpoint_every=10,
            fusion_training="posthoc",
            fusion_epochs=3,
        ),
    )


@recipe
def clibd() -> Config:
    """CLIBD on the specimens of `quickstart`, for the same number of epochs.

    python train/main.py --recipe clibd

    2 CPU cores: as long as `quickstart`. Test, seed 0: barcode species 97.5%, photo family 75.2%
    (tests/benchmarks/results/quickstart.md).
    """
    return replace(as_clibd(quickstart()), recipe="clibd")


@recipe
def clibd_hir() -> Config:
    """CLIBD-HiR on the specimens of `quickstart`, for the same number of epochs.

    python train/main.py --recipe clibd_hir

    2 CPU cores: as long as `quickstart`. Test, seed 0: barcode species 97.1%, photo family 75.1%
    (tests/benchmarks/results/quickstart.md).
    """
    return replace(as_clibd_hir(quickstart()), recipe="clibd_hir")


@recipe
def robust() -> Config:
    """CLIBD-HiR-Fuse trained on damaged inputs, on the specimens of `quickstart`, for the same number of epochs.

    python train/main.py --recipe robust

    2 CPU cores: as long as `quickstart`. Test, seed 0: barcode species 95.8%, photo family 57.7%, gated fusion with
    both inputs damaged 97.7%: 14 epochs are few for it (tests/benchmarks/results/quickstart.md).
    """
    return replace(as_robust(quickstart()), recipe="robust")


@recipe
def coi() -> Config:
    """DNA and text on a million barcodes of 64,000 arthropod species: `bold` at the size of BIOSCAN-1M.

    python -m engine.main ingest table DATA/coi/barcodes.parquet --out shards/coi
    python train/main.py --recipe coi --set data.shards=shards/coi

    One CPU core: 51 minutes beside other work. Test, seed 0, by prompts with roll-up: order 99.6%, family 97.7%, genus
    89.8%, species 51.6% (one of 64,000; 2 epochs are few for it).
    """
    return Config(
        recipe="coi",
        data=DataConfig(shards=("shards/coi",)),
        optim=OptimConfig(max_lr=2e-3),
        run=RunConfig(epochs=2, global_batch_size=1024, validate_every=1, checkpoint_steps=200),
    )


@recipe
def bioscan1m() -> Config:
    r"""Return the paper's CLIBD-HiR-Fuse on BIOSCAN-1M, its losses and batches as in the authors' release.

    OpenCLIP ViT-L/14 and DNABERT-2 are both trained. Without the two pretrained files it starts from random weights.

    python -m engine.main ingest bioscan1m DATA/bioscan1m --out shards/bioscan1m
    python train/main.py --recipe bioscan1m --set data.shards=shards/bioscan1m \\
        --set model.pretrained=commonpool_xl_laion_s13b_b90k --set model.dna_pretrained=DNABERT-2-117M \\
        --set data.tokenizer_file=DNABERT-2-117M/tokenizer.json

    4 GPUs of 80 GB (the paper: 4 x A100, a day); not measured here. The paper's test, closed set, species top-1: gated
    fusion 73.5% clean, 57.4% with both inputs damaged; barcode 74.4%, photo 40.4%.
    """
    return Config(
        recipe="bioscan1m",
        data=DataConfig(shards=("shards/bioscan1m",), image_size=224, tokenizer="bpe", partners=True, caption_cut=0.0),
        model=ModelConfig(
            image_text="ViT-L-14",
            dna="dnabert2",
            dna_width=768,
            dna_depth=12,
            dna_heads=12,
            dropout=0.0,
            gradient_checkpointing=True,
        ),
        loss=LossConfig(
            positives="caption",
            detach_dna=True,
            detach_dna_in_fusion=True,
            fused_direction="text_to_fused",
            representatives="one_per_label",
            rank_weights=(2**0.25, 2 ** (1 / 3), 2**0.5, 2.0),
        ),
        optim=OptimConfig(max_lr=5e-5, betas=(0.9, 0.999), weight_decay=0.01, clip_norm=0.0),
        eval=EvalConfig(scoring="prompt"),
        run=RunConfig(
            epochs=10,
            global_batch_size=256,
            num_workers=4,
            use_gpu=True,
            precision="bf16",
            validate_every=1,
            checkpoint_steps=500,
        ),
    )


@recipe
def bioscan1m_clibd() -> Config:
    r"""Return CLIBD's own training on BIOSCAN-1M: ViT-B/16 and BarcodeBERT, batches of 2,000, 50 epochs.

    The temperature learns. Its text tower is BERT-small; ours is that of the open_clip model.

    python -m engine.main ingest bioscan1m DATA/bioscan1m --partitions DATA/CLIBD_partitioning --out shards/clibd
    python train/main.py --recipe bioscan1m_clibd --set data.shards=shards/clibd \\
        --set model.pretrained=openai --set model.dna_pretrained=BarcodeBERT

    4 GPUs of 80 GB; not measured. CLIBD's own figures, macro top-1 seen/unseen: barcode to barcode 95.6/90.4%, photo to
    photo 59.3/45.0%, photo to text 56.0/4.8%.
    """
    return Config(
        recipe="bioscan1m_clibd",
        data=DataConfig(
            shards=("shards/clibd",), image_size=224, kmer=5, kmer_stride=5, random_offset=True, caption_cut=0.0
        ),
        model=ModelConfig(image_text="ViT-B-16", dna="barcodebert", dna_width=768, dna_depth=12, dna_heads=12),
        loss=LossConfig(positives="specimen", hierarchy_weight=0.0, fusion_weight=0.0, learn_temperature=True),
        optim=OptimConfig(max_lr=5e-5, initial_divisor=50.0, weight_decay=0.01, betas=(0.9, 0.999), clip_norm=0.0),
        run=RunConfig(
            epochs=50, global_batch_size=2000, num_workers=4, use_gpu=True, precision="bf16", checkpoint_steps=200
        ),
    )


@recipe
def bioscan5m() -> Config:
    r"""Return CLIBD-HiR-Fuse on BIOSCAN-5M in its own splits: the towers of `bioscan1m`, our losses, batches of 2,048.

    python -m engine.main ingest bioscan5m DATA/metadata.csv DATA/BIOSCAN_5M_cropped_256_*.zip --out shards/bioscan5m
    python train/main.py --recipe bioscan5m --set data.shards=shards/bioscan5m \\
        --set model.pretrained=commonpool_xl_laion_s13b_b90k --set model.dna_pretrained=DNABERT-2-117M \\
        --set data.tokenizer_file=DNABERT-2-117M/tokenizer.json

    8 GPUs of 80 GB; time and score not measured.
    """
    large = bioscan1m()
    return replace(
        large,
        recipe="bioscan5m",
        data=replace(large.data, shards=("shards/bioscan5m",), partners=False, caption_cut=0.3),
        loss=LossConfig(),
        optim=OptimConfig(max_lr=1e-4),
        eval=EvalConfig(),
        run=replace(large.run, global_batch_size=2048, num_workers=8, fusion_training="posthoc", fusion_epochs=1),
    )


@recipe
def bioclip2() -> Config:
    r"""Return CLIBD-HiR-Fuse that starts from BioCLIP 2, for a set of one's own on one GPU.

    The text tower is frozen, the image tower adapted by LoRA, DNABERT-2 trained.

    python -m engine.main ingest auto downloads/ --out shards/mine
    python train/main.py --recipe bioclip2 --set data.shards=shards/mine \\
        --set model.dna_pretrained=DNABERT-2-117M --set data.tokenizer_file=DNABERT-2-117M/tokenizer.json

    The model is looked up in the Hugging Face cache; without internet: --set model.image_text=local-dir:FOLDER. One
    GPU of 24 GB; time and score not measured.
    """
    large = bioscan5m()
    return replace(
        large,
        recipe="bioclip2",
        data=replace(large.data, shards=("shards/mine",)),
        model=replace(
            large.model,
            image_text="hf-hub:imageomics/bioclip-2",
            freeze_text=True,
            lora_rank=16,
            lora_towers=("image",),
        ),
        run=replace(large.run, global_batch_size=256, micro_batch_size=64, num_workers=1, epochs=20),
    )


@recipe
def barcodebert() -> Config:
    r"""Pretrain a barcode encoder as BarcodeBERT: half of the 4-mers hidden, every one named; no names, no photos.

    python train/main.py --recipe barcodebert --set data.shards=shards/mine
    python train/main.py --recipe barcodebert --set data.shards=shards/mine --set run.use_gpu=true \\
        --set model.dna_width=768 --set model.dna_depth=12 --set model.dna_heads=12     the published size

    Small by default (tests/benchmarks/results/pretraining.md).
    """
    return Config(
        recipe="barcodebert",
        data=DataConfig(shards=("shards/coi",), kmer=4, kmer_stride=4, random_offset=True, caption_cut=0.0),
        model=ModelConfig(dna="barcodebert", dna_width=128, dna_depth=4, dna_heads=4, dropout=0.0),
        loss=LossConfig(objective="masked"),
        optim=OptimConfig(max_lr=2e-3, weight_decay=0.01),
        run=RunConfig(epochs=1, global_batch_size=64, validate_every=1, checkpoint_steps=500),
    )


@recipe
def barcodemae() -> Config:
    """Pretrain a barcode encoder as BarcodeMAE: it reads half of the 4-mers, a decoder names the hidden half.

    python train/main.py --recipe barcodemae --set data.shards=shards/mine
    The published decoder: --set loss.decoder_layers=6; sizes as for `barcodebert`.
    """
    return replace(barcodebert(), recipe="barcodemae", loss=LossConfig(objective="mae", decoder_layers=1))
