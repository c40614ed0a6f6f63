"""The configuration of a run: one frozen tree, dotted overrides, nothing read from the environment.

`Config` is what `--dry-run` prints, what MLflow logs and what travels inside every checkpoint. Values are checked by
pydantic against the annotations, so a wrong type, an unknown choice and a number out of range are all refused with
the key, the value and what is allowed.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from engine.config import DataConfig, Positive, Probability
from engine.store.storage import Location

PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
RunName = Annotated[str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]*)?$")]  # it names a folder


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The three towers and the fusion gate. `image_text` names an open_clip model from which both towers are taken."""

    image_text: str = "taxafuse-tiny"  # open_clip name, `local-dir:PATH`, `hf-hub:OWNER/NAME`, or a config of our own
    pretrained: str = ""  # open_clip tag or a safetensors file; empty = random weights
    freeze_image: bool = False
    freeze_text: bool = False
    unfreeze_image_blocks: NonNegativeInt = 0  # last blocks of a frozen tower that train, with its norm and projection
    unfreeze_text_blocks: NonNegativeInt = 0
    dna: Literal["kmer_bag", "kmer_transformer", "dnabert2", "barcodebert"] = "kmer_bag"
    dna_pretrained: str = ""  # a pretraining run, or the folder of a published tower: brings width, depth, heads
    dna_width: Positive = 512
    dna_depth: Positive = 2
    dna_heads: Positive = 4
    lora_rank: NonNegativeInt = 0  # above 0: in `lora_towers` only low-rank updates and the projection train
    lora_alpha: PositiveFloat = 16.0  # an update counts alpha / rank times
    lora_dropout: BelowOne = 0.0
    lora_targets: tuple[Literal["q", "k", "v", "out", "mlp"], ...] = ("q", "k", "v", "out", "mlp")
    lora_towers: tuple[Literal["image", "text", "dna"], ...] = ("image", "text", "dna")
    gradient_checkpointing: bool = False  # compute activations again in the backward pass instead of keeping them
    embed_dim: Positive = 256  # D; an image_text model that brings its own dimension overrides it (see build_model)
    dropout: Probability = 0.1  # inside DNA tower and gate


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Every term and option of METHOD: cross-modal contrast, HiR, fusion; or the objective that pretrains a tower."""

    objective: Literal["contrastive", "masked", "mae"] = (
        "contrastive"  # masked, mae pretrain model.dna=barcodebert alone
    )
    mask_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5  # of a barcode's k-mers that pretraining hides
    decoder_layers: Positive = 6  # of mae; as wide as the encoder

    temperature: Annotated[float, Field(ge=0.01, le=1.0)] = 0.07
    learn_temperature: bool = False
    image_dna_weight: NonNegative = 1.0  # alpha of eq. 2
    positives: Literal["masked", "caption", "bin", "specimen"] = "masked"
    detach_dna: bool = False  # no gradient into DNA from the image-dna term (the authors' release)
    hierarchy_weight: NonNegative = 0.01  # 0 = CLIBD
    hierarchy_temperature: PositiveFloat = 0.07
    hierarchy_gather: bool = True  # False: negatives of each worker only
    rectify: Literal["none", "fine_to_coarse", "coarse_to_fine"] = "fine_to_coarse"
    rectify_unit: Literal["rank", "pair"] = "rank"
    denominator: Literal["all", "negatives"] = "all"
    representatives: Literal["all", "one_per_label"] = "all"
    rank_weights: tuple[NonNegative, NonNegative, NonNegative, NonNegative] = (1.0, 1.0, 1.0, 1.0)
    fusion_weight: NonNegative = 1.0
    fused_direction: Literal["fused_to_text", "text_to_fused", "symmetric"] = "fused_to_text"
    detach_dna_in_fusion: bool = False
    rank_heads_weight: NonNegative = 0.0  # above 0 the fused features get a classification head per rank (eq. 11)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW under a one-cycle schedule."""

    max_lr: PositiveFloat = 1e-3
    posthoc_lr: PositiveFloat = 1e-3  # max_lr of the epochs in which post-hoc fusion trains the gate alone
    initial_divisor: PositiveFloat = 5.0  # base rate = max_lr / initial_divisor (release: 1e-5 and 5e-5)
    final_divisor: PositiveFloat = 1e4
    warmup: BelowOne = 0.3  # share of the steps in which the rate rises
    weight_decay: NonNegative = 0.05
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.98)
    clip_norm: NonNegative = 1.0  # 0 = no clipping


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What the evaluation after training computes."""

    split: str = "test"
    batch_size: Positive = 256
    scoring: Literal["rollup", "prompt"] = "rollup"  # of the headline table; both are always written
    bootstrap: Positive = 1000
    validate_noisy: bool = False  # validations during training also answer from damaged inputs; sweeps do


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lives, how long it is, and on what it runs."""

    name: RunName = ""  # empty = a unique name is made
    storage: str = "runs"  # folder for checkpoints and results; relative to the working directory of the driver
    seed: int = 0
    epochs: Positive = 10
    global_batch_size: Positive = 256
    micro_batch_size: Annotated[int, Field(ge=0)] = 0  # rows a worker's towers see at once (gradient caching); 0 = all
    precision: Literal["fp32", "bf16"] = "fp32"  # of the towers under autocast; losses and weights stay float32
    compile: bool = False  # torch.compile of the three towers
    num_workers: Annotated[int, Field(ge=0)] = 1  # 0 = inside the driver process, for tests and debugging
    use_gpu: bool = False
    worker_resource: str = ""  # of which each worker takes 1: `ray start --resources '{"train": 1}'` on their nodes
    threads: Annotated[int, Field(ge=0)] = 0  # torch threads per worker; 0 = cores / workers
    checkpoint_every: Positive = 1  # epochs between checkpoints
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0  # steps between further ones, for epochs of hours; 0 = none
    validate_every: Positive = 5  # epochs between validations; the last epoch is always validated
    keep_checkpoints: Positive = 2  # the last so many stay, and the best by validation
    max_failures: Annotated[int, Field(ge=-1)] = 3  # restarts by itself before giving up; -1 = no limit
    log_every: Positive = 10  # steps between metric records
    record_keys: bool = False  # append the keys of every step to keys-RANK.jsonl in the run's folder, for audits
    peak_tflops: NonNegative = 0.0  # of one worker's device, for perf/mfu; 0 = the rate of a large matrix product
    fusion_training: Literal["joint", "posthoc"] = "joint"
    fusion_epochs: Positive = 2  # posthoc only: last epochs, in which nothing but the gate trains
    tracking: Literal["mlflow", "none"] = "mlflow"
    tracking_uri: str = ""  # empty = sqlite file in `storage`
    experiment: str = "taxafuse"


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run, complete."""

    recipe: str = "custom"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionary -> {"loss.temperature": 0.07, ...}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        flat |= flatten(value, key + ".") if isinstance(value, dict) else {key: value}
    return flat


def to_dict(config: Config) -> dict[str, Any]:
    """Return the tree as plain JSON types (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _known_keys(node: Any, prefix: str = "") -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name, kind in get_type_hints(node, include_extras=True).items():
        keys |= _known_keys(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else {f"{prefix}{name}": kind}
    return keys


def _message(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _explain(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {_message(e)}, got {e['input']!r}" for e in error.errors())


def _unknown(key: str, known: Iterable[str]) -> str:
    """Return what is wrong with a key that nobody knows, the likely meant one first."""
    near = get_close_matches(key, known, n=1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown configuration key {key!r}{meant}; valid keys: {', '.join(sorted(known))}"


def from_dict(tree: dict[str, Any]) -> Config:
    """Validate a nested dictionary. Raises ValueError naming unknown keys and values that are not allowed."""
    known = _known_keys(Config)
    unknown = sorted(set(flatten(tree)) - set(known))
    if unknown:
        raise ValueError(_unknown(unknown[0], known))
    try:
        return TypeAdapter(Config).validate_python(tree)
    except ValidationError as error:
        raise ValueError(f"configuration: {_explain(error)}") from None


def _parse(key: str, text: str, kind: Any) -> Any:
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_strings(text)
    except ValidationError as plain:
        if not str(kind).startswith("tuple"):
            raise ValueError(f"{key}: {_message(plain.errors()[0])}, got {text!r}") from None
    try:
        return adapter.validate_python([part for part in text.split(",") if part])
    except ValidationError as error:
        raise ValueError(f"{key} (comma-separated): {_message(error.errors()[0])}, got {text!r}") from None


def override(config: Config, assignments: Iterable[str]) -> Config:
    """Apply `key=value` pairs in order, e.g. `loss.hierarchy_weight=0` or `data.shards=a,b`.

    Raises ValueError for a pair without `=`, an unknown key (the message lists the valid ones) and a value that the
    key does not allow.
    """
    tree, known = to_dict(config), _known_keys(Config)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"an override is key=value, got {assignment!r}")
        if key not in known:
            raise ValueError(_unknown(key, known))
        node = tree
        *path, leaf = key.split(".")
        for name in path:
            node = node[name]
        node[leaf] = _parse(key, text, known[key])
    return from_dict(tree)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve()) if path else ""


def absolute_paths(config: Config) -> Config:
    """Return the same run with absolute paths: workers run in another directory than the driver."""
    data, model = config.data, config.model
    local, folder = "local-dir:", model.image_text.removeprefix("local-dir:")
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            data,
            shards=tuple(str(Location.parse(place)) for place in data.shards),
            tokenizer_file=_absolute(data.tokenizer_file),
        ),
        model=dataclasses.replace(
            model,
            image_text=local + _absolute(folder) if model.image_text.startswith(local) else model.image_text,
            pretrained=_absolute(model.pretrained) if Path(model.pretrained).is_file() else model.pretrained,
            dna_pretrained=_absolute(model.dna_pretrained),
        ),
        run=dataclasses.replace(config.run, storage=str(Path(config.run.storage).resolve())),
    )
