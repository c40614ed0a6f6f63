"""A lineage as a text prompt, and the random cut that teaches the text encoder coarse prompts.

Legend: B specimens, R = 4 ranks (order, family, genus, species); label -1 = unknown.

The format. CLIBD joins the known names with spaces. Two things are changed, because there two lineages can share a
caption and a caption is what decides who is a positive:

- A hole (an unknown rank above a known one) is written "?", so a family without an order is not an order. Unknown ranks
  below the last known one are left out: "Diptera" is the order alone.
- Species names are binomials, so CLIBD writes "Chironomus Chironomus plumosus". Here the genus stands once, as in the
  taxonomic names BioCLIP was trained on: "Diptera Chironomidae Chironomus plumosus". A species that is not written
  under its own genus ("Culex pipiens" in Aedes, or a bare epithet) follows "=": "... Aedes = Culex pipiens".

Inside order, family and genus, a space is written "%20", "%" is "%25", and a name that is just "?" is "%3F". So
different lineages never share a caption; ordinary names stay as they are.
"""

from collections.abc import Sequence

import numpy as np

from engine.errors import UserError
from engine.specimens.taxonomy import RANKS

HOLE = "?"
OTHER_GENUS = "="


def caption(names: Sequence[str | None]) -> str:
    """Return the prompt of a lineage, "" when nothing is known; injective on lineages.

    Args:
        names: one name per rank, coarse first; None or "" = unknown.

    Raises:
        ValueError: when there is not one name per rank.
    """
    if len(names) != len(RANKS):
        raise UserError("caption", f"{len(names)} names", f"one per rank {RANKS}, None where unknown")
    *upper, species = names
    words = [_word(name) if name else HOLE for name in upper]
    if species:
        return " ".join([*words, _under_genus(upper[-1], species)])
    while words and words[-1] == HOLE:
        words.pop()
    return " ".join(words)


def cut(labels: np.ndarray, draws: np.ndarray, probability: float) -> np.ndarray:
    """Return a copy of labels, each row with `probability` cut to one of its known ranks; finer ranks become -1.

    The rank is drawn uniformly among the known ones, the finest included (which changes nothing). Holes stay holes, and
    a row without any known rank stays as it is.

    Args:
        labels: int64 [B, R].
        draws: float64 [B, 2] in [0, 1): whether a row is cut, and where.
        probability: 0..1.
    """
    known = labels >= 0
    chance, place = draws.T
    last = (place * known.sum(axis=1)).astype(np.int64)  # known ranks above the last one that stays
    finer = np.cumsum(known, axis=1) - known > last[:, None]
    return np.where(finer & (chance < probability)[:, None], -1, labels)


def _word(name: str) -> str:
    """Return a name without spaces, injective; ordinary names unchanged."""
    if name == HOLE:
        return "%3F"
    return name.replace("%", "%25").replace(" ", "%20")


def _under_genus(genus: str | None, species: str) -> str:
    """Return the species as written after its genus (or after a hole)."""
    if not genus:
        return species
    epithet = species.removeprefix(genus + " ")
    if epithet == species or not epithet or epithet.startswith(OTHER_GENUS):
        return f"{OTHER_GENUS} {species}"
    return epithet
