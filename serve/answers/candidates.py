"""The taxa that a query is compared with: their text features, made once and kept with the model; checklists of names.

Legend: C candidates (taxa of all ranks), L leaves (complete lineages), D embedding, R ranks.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from engine.specimens.taxonomy import RANKS, Taxonomy
from engine.store.storage import Location
from serve.answers.answer import Restriction
from train.inference.scoring import Scorer
from train.models.checkpoint import Checkpoint
from train.models.trimodal import caption_tokenizer

log = logging.getLogger(__name__)

FILE = "candidates.safetensors"
MAX_NAMES = 100_000  # of a checklist
SUGGESTED = 20  # unknown names of a checklist that are told, with what they may stand for
_SUGGESTIONS = 3


def open_scorer(checkpoint: Checkpoint, weights_sha256: str, device: torch.device | str = "cpu") -> Scorer:
    """Return the scorer of a checkpoint, with the features of all candidates.

    They are read from FILE in the checkpoint's folder where they were made of these very weights; else they are made,
    and written there if the folder can be written.
    """
    made_of = f"{weights_sha256} {checkpoint.taxonomy.fingerprint}"
    path = checkpoint.path / FILE
    text = _read(path, made_of)
    tokenizer = caption_tokenizer(checkpoint.model)
    scorer = Scorer(checkpoint.model, checkpoint.taxonomy, tokenizer, device, text=text)
    if text is None:
        _write(path, scorer.text, made_of)
    return scorer


def _read(path: Path, made_of: str) -> Tensor | None:
    """[C, D], or None where there is no such file or one of other weights."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            return stored.get_tensor("text") if (stored.metadata() or {}).get("made_of") == made_of else None
    except (SafetensorError, OSError) as error:
        log.warning("%s cannot be read (%s): made anew", path, error)
        return None


def _write(path: Path, text: Tensor, made_of: str) -> None:
    try:
        Location.parse(path).write_atomically(save({"text": text.cpu().contiguous()}, metadata={"made_of": made_of}))
    except OSError as error:
        log.warning("%s cannot be written (%s): candidate features are made at every start", path, error)


@dataclass(frozen=True)
class Subset:
    """A checklist as the model understands it."""

    leaves: np.ndarray | None  # bool [L], the lineages that it leaves; None = no name of it is known
    restriction: Restriction


class Checklist:
    """Turns names of taxa, of any rank, into the lineages that they leave."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
        self.leaves = np.asarray(taxonomy.leaves(), dtype=np.int64)

    @cached_property
    def _places(self) -> dict[str, list[tuple[int, int]]]:
        """Name in lower case -> (rank, taxon) of every taxon of that name."""
        places: dict[str, list[tuple[int, int]]] = {}
        for rank, names in enumerate(self.taxonomy.names):
            for taxon, name in enumerate(names):
                places.setdefault(name.lower(), []).append((rank, taxon))
        return places

    @cached_property
    def _by_initial(self) -> dict[str, list[str]]:
        """First letter -> names: a misspelling is looked for among those only, which keeps it cheap."""
        initials: dict[str, list[str]] = {}
        for name in sorted({name for names in self.taxonomy.names for name in names}):
            initials.setdefault(name[:1].lower(), []).append(name)
        return initials

    def resolve(self, names: Sequence[str]) -> Subset:
        """Return the lineages below any of the names; other names are listed, the first SUGGESTED with suggestions.

        Raises ValueError for an empty list and for more than MAX_NAMES.
        """
        if not 1 <= len(names) <= MAX_NAMES:
            raise ValueError(f"subset: got {len(names)} names, allowed 1..{MAX_NAMES}")
        mask = np.zeros(len(self.leaves), dtype=bool)
        unknown: dict[str, tuple[str, ...]] = {}
        chosen: list[set[int]] = [set() for _ in RANKS]
        missed: dict[str, None] = {}
        known = 0
        for name in dict.fromkeys(" ".join(name.split()) for name in names):
            places = self._places.get(name.lower(), [])
            known += bool(places)
            for rank, taxon in places:
                chosen[rank].add(taxon)
            if not places:
                missed[name] = None
        for rank, taxa in enumerate(chosen):
            if taxa:
                mask |= np.isin(self.leaves[:, rank], list(taxa))
        for name in list(missed)[:SUGGESTED]:
            unknown[name[:100]] = tuple(self._suggest(name))
        return Subset(mask if mask.any() else None, Restriction(known, unknown, len(missed)))

    def _suggest(self, name: str) -> list[str]:
        return get_close_matches(name[:100], self._by_initial.get(name[:1].lower(), []), _SUGGESTIONS)
