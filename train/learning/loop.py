"""The per-worker training loop: read this first.

    batches of the plan -> forward(batch) -> gather inside the losses -> total_loss -> step -> report -> checkpoint

`Session` is one worker's training without Ray: it can be driven step by step by a test, by `train_loop` under Ray
Train, and by a sweep's trial. The state of a run is one number, the global step, because the order of specimens is a
pure function of it and dropout is seeded by it, lane by lane.
"""

import contextlib
import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from engine.batches.collate import Batch
from engine.batches.pipeline import CpuBudget, Specimens, select_split, training_batches
from engine.batches.sampling import EpochPlan
from engine.errors import NotFinite, UserError
from engine.specimens.captions import caption
from engine.specimens.taxonomy import Taxonomy
from train import dist
from train.config import Config, LossConfig
from train.learning import gradient_cache
from train.learning.lane_dropout import LaneMasks, seed_of
from train.learning.optim import build_optimizer
from train.losses import Targets, hidden_tokens, token_loss, total_loss
from train.models.checkpoint import build
from train.models.trimodal import caption_tokenizer

if TYPE_CHECKING:
    from train.models.pretraining import Predicted

log = logging.getLogger(__name__)

ORDER = ("seed", "global_batch_size", "lanes", "window", "partners")  # with the rows they decide every later batch
PRETRAINED = ("dna_encoder.bert.", "pretraining.")
FUSION = ("fusion.", "rank_heads.")  # the parameters that post-hoc fusion trains


@dataclass(frozen=True)
class Phase:
    """Steps `first <= step < last` that share an optimizer, a set of trainable parameters and a loss."""

    first: int
    last: int
    loss: LossConfig
    part: Literal["all", "encoders", "fusion", "dna"] = "all"  # what trains; dna = a tower that is pretrained

    def trains(self, parameter: str) -> bool:
        """Whether the parameter of this name trains in this phase."""
        if self.part == "dna":
            return parameter.startswith(PRETRAINED)
        return self.part == "all" or parameter.startswith(FUSION) == (self.part == "fusion")


def phases(config: Config, steps_per_epoch: int) -> tuple[Phase, ...]:
    """Return one phase; with `fusion_training=posthoc` two: the encoders without the fused term, then the gate alone.

    Raises ValueError when post-hoc fusion leaves the encoders no epoch, and for what pretraining cannot do.
    """
    total = config.run.epochs * steps_per_epoch
    if config.loss.objective != "contrastive":
        if config.run.micro_batch_size:
            raise UserError(
                "run.micro_batch_size", config.run.micro_batch_size, f"0 with loss.objective={config.loss.objective}"
            )
        return (Phase(0, total, config.loss, "dna"),)
    if config.run.fusion_training == "joint":
        return (Phase(0, total, config.loss),)
    if config.run.fusion_epochs >= config.run.epochs:
        allowed = f"below run.epochs={config.run.epochs} with run.fusion_training=posthoc"
        raise UserError("run.fusion_epochs", config.run.fusion_epochs, allowed)
    turn = (config.run.epochs - config.run.fusion_epochs) * steps_per_epoch
    encoders = dataclasses.replace(config.loss, fusion_weight=0.0, rank_heads_weight=0.0)
    gate = dataclasses.replace(config.loss, hierarchy_weight=0.0)
    return Phase(0, turn, encoders, "encoders"), Phase(turn, total, gate, "fusion")


class CaptionTable:
    """Tokens of every caption met so far, so that each is tokenised once."""

    def __init__(self, tokenizer: Any, taxonomy: Taxonomy) -> None:
        self._tokenizer, self._taxonomy = tokenizer, taxonomy
        self._tokens: dict[tuple[int, ...], Tensor] = {}

    def attach(self, batch: Batch) -> None:
        """Add `text_tokens` [U, T] (unique captions of the batch) and `text_index` [B] to the batch."""
        rows = batch["caption"].numpy()
        known = batch["valid"].numpy() & (rows >= 0).any(axis=1)
        unique, inverse = np.unique(rows[known], axis=0, return_inverse=True)
        keys = [tuple(int(i) for i in row) for row in unique]
        new = [key for key in keys if key not in self._tokens]
        if new:
            tokens = self._tokenizer([caption(self._taxonomy.lineage_names(key)) for key in new])
            self._tokens.update(zip(new, tokens, strict=True))
        index = np.full(len(rows), -1, dtype=np.int64)
        index[known] = inverse.reshape(-1)
        blank = self._tokenizer([""])
        batch["text_tokens"] = torch.stack([self._tokens[key] for key in keys]) if keys else blank
        batch["text_index"] = torch.from_numpy(index)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors; images stay uint8 until the model normalises them.

    A GPU takes its copy from pinned memory, so that nobody waits for it.
    """

    def moved(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    return {key: moved(value) if isinstance(value, Tensor) else value for key, value in batch.items()}  # type: ignore[return-value]


class Session:
    """One worker's model, optimizer, data order and step counter."""

    def __init__(self, config: Config, index: pa.Table, taxonomy: Taxonomy, device: torch.device) -> None:
        self.config, self.taxonomy, self.device = config, taxonomy, device
        self.specimens = Specimens.from_index(select_split(index, "train"), taxonomy)
        data = config.data
        self.plan = EpochPlan(
            labels=self.specimens.labels,
            seed=config.run.seed,
            global_batch_size=config.run.global_batch_size,
            lanes=data.lanes,
            window=data.window,
            partners=data.partners,
        )
        self.phases = phases(config, self.plan.steps_per_epoch)
        torch.manual_seed(config.run.seed)
        self.model = build(config, taxonomy).to(device)
        # Masks by lane would cut a compiled tower into pieces: there dropout is drawn by worker.
        self.masks = None if config.run.compile else LaneMasks(self.model, self.plan.global_batch_size // data.lanes)
        if config.run.compile:
            for tower in (self.model.image_encoder, self.model.text_encoder, self.model.dna_encoder):
                tower.compile(dynamic=True)  # in place: names of parameters stay; rows of a batch vary
        self.tokenizer = caption_tokenizer(self.model)
        self.captions = CaptionTable(self.tokenizer, taxonomy)
        self._trainable = {name for name, p in self.model.named_parameters() if p.requires_grad}
        self._rows = hashlib.blake2b(
            self.specimens.key.tobytes() + self.plan.labels.tobytes(), digest_size=8
        ).hexdigest()
        self.step = 0
        self.asked: tuple[bool, ...] = ()  # of the latest step: which requests to stop came from any rank
        self.history: list[dict[str, float]] = []  # one record an epoch; travels in the checkpoint
        self._enter(self.phases[0])

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, all phases."""
        return self.phases[-1].last

    @property
    def epoch(self) -> float:
        """Epochs done so far, a fraction inside one."""
        return self.step / self.plan.steps_per_epoch

    def _enter(self, phase: Phase) -> None:
        """Start a phase: choose what trains, wrap for DDP, make a fresh optimizer and schedule."""
        self.phase = phase
        self.model.zero_grad(set_to_none=True)  # what the last phase left would count in this one's clipped norm
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self._trainable and phase.trains(name))
        self.forward: Any = self.model
        if dist.world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.forward = DistributedDataParallel(self.model, device_ids=ids)
        optim = self.config.optim
        if phase.part == "fusion":
            optim = dataclasses.replace(optim, max_lr=optim.posthoc_lr)
        self.optimizer, self.schedule = build_optimizer(self.model, optim, phase.last - phase.first)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside the weights."""
        return {
            "step": self.step,
            "history": self.history,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "plan": {
                "specimens": len(self.specimens.labels),
                "rows": self._rows,
                "steps": self.total_steps,
                **{name: getattr(self.plan, name) for name in ORDER},
            },
        }

    def restore(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Continue from a checkpoint. Raises ValueError when its data order or its length is not this run's."""
        plan = self.state()["plan"]
        if state["plan"] != plan:
            raise UserError("resume", f"a checkpoint whose plan is {state['plan']}", f"this run's plan {plan}")
        self.model.load_state_dict(weights)
        self.step, self.history = state["step"], list(state["history"])
        phase = next((p for p in self.phases if p.first < self.step <= p.last), self.phases[0])
        self._enter(phase)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def batches(self, budget: CpuBudget | None) -> Iterator[Batch]:
        """Yield this worker's batches from the current step to the end of the run."""
        worker = (dist.rank(), dist.world_size())
        return training_batches(
            self.specimens, self.plan, self.config.data, (self.step, self.total_steps), worker, budget
        )

    def _seed(self, part: int) -> None:
        """Seed what is not drawn by lane: for this step, this worker and a part of its rows."""
        torch.manual_seed(seed_of(f"{self.config.run.seed}/{self.step}/{dist.rank()}/{part}"))

    def _number_rows(self, batch: Batch) -> None:
        """Add `row` [B], the place of each row in the step's global batch: dropout is drawn by lane."""
        count = len(batch["valid"])
        batch["row"] = torch.arange(count) + dist.rank() * count
        if self.masks:
            self.masks.seed(f"{self.config.run.seed}/{self.step}")

    def _hide(self, batch: Batch) -> None:
        """Add `hidden` [B, L], the tokens that this step's pretraining hides."""
        share, seed = self.config.loss.mask_share, self.config.run.seed
        batch["hidden"] = hidden_tokens(batch["dna_tokens"], batch["keys"], share, seed, self.step)

    def _features(self, batch: Batch) -> Any:
        """Run forward in the run's precision; weights, losses and optimizer stay float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.run.precision == "bf16"):
            return self.forward(batch)

    def _agree(self, terms: dict[str, Tensor], keys: list[str], asked: Sequence[bool]) -> None:
        """Share what any rank knows: a loss that is not finite, and requests to stop (into `self.asked`).

        Raises NotFinite on every rank when any rank's loss is not finite.
        """
        flags = torch.tensor([False, *asked], device=self.device, dtype=torch.float32)
        flags[0] = ~torch.isfinite(terms["loss/total"].detach())
        bad, *requests = dist.all_reduce_sum(flags).tolist()
        self.asked = tuple(count > 0 for count in requests)
        if bad:
            raise NotFinite(
                f"loss is {terms['loss/total'].item()} at step {self.step} (rank {dist.rank()}); "
                f"terms { ({k: round(v.item(), 4) for k, v in terms.items()}) }; keys {', '.join(filter(None, keys))}"
            )

    def train_step(self, batch: Batch, asked: Sequence[bool] = ()) -> dict[str, Tensor]:
        """Take one optimizer step on this worker's share of the global batch; return the named loss terms.

        `asked`: requests to stop, as many on every rank; `self.asked` then says which of them any rank has.
        Raises NotFinite, before the optimizer moves, when the loss is not finite.
        """
        if self.step >= self.phase.last:
            self._enter(next(p for p in self.phases if p.first <= self.step < p.last))
        self.forward.train()
        if self.phase.part == "fusion":
            self.model.eval()
            self.model.fusion.train()
        pretraining = self.phase.part == "dna"
        if pretraining:
            self._hide(batch)
        else:
            self.captions.attach(batch)
        self._number_rows(batch)
        batch = to_device(batch, self.device)
        rows = self.config.run.micro_batch_size
        parts = gradient_cache.split(batch, rows) if 0 < rows < len(batch["valid"]) else []
        self._seed(0)
        features = gradient_cache.encode(self._features, parts, self._seed) if parts else self._features(batch)
        terms = (
            token_loss(cast("Predicted", features))
            if pretraining
            else total_loss(features, Targets.from_batch(batch), self.phase.loss)
        )
        self._agree(terms, batch["keys"], asked)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss/total"].backward()
        if parts:
            quiet = getattr(self.forward, "no_sync", contextlib.nullcontext)
            gradient_cache.replay(self._features, parts, features, self._seed, quiet)
        if self.config.optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return {name: value.detach() for name, value in terms.items()}


@dataclass
class Meter:
    """Where the time of an interval went, and its mean loss terms."""

    steps: int = 0
    rows: int = 0
    wait: float = 0.0
    busy: float = 0.0
    flops: float = 0.0
    terms: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def add(self, terms: dict[str, Tensor], rows: int, wait: float, busy: float, flops: float) -> None:
        """Count one step."""
        self.steps, self.rows, self.flops = self.steps + 1, self.rows + rows, self.flops + flops
        self.wait, self.busy = self.wait + wait, self.busy + busy
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value

    def summary(self, peak: float) -> dict[str, float]:
        """Return means over the interval; loss terms averaged over the workers, samples counted over all of them.

        `peak`: operations a second of this worker's device, for the share of it that the steps use (`perf/mfu`).
        """
        means = dist.reduce_metrics({name: value / self.steps for name, value in self.terms.items()})
        seconds = max(self.wait + self.busy, 1e-9)
        return {name: float(value) for name, value in means.items()} | {
            "data/wait_s": self.wait / self.steps,
            "perf/step_s": self.busy / self.steps,
            "perf/samples_per_s": self.rows * dist.world_size() / seconds,
            "perf/mfu": self.flops / seconds / peak,
        }


def timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Yield each batch with the seconds that it was waited for."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - started
