"""What kind of name a species label is: only binomials (and trinomials) name a described species.

Labels of the other kinds are kept as labels of their own type; whoever scores species names scores binomials apart.
"""

import re
from collections.abc import Sequence

import numpy as np

NAME_TYPES = ("binomial", "trinomial", "open", "interim", "unidentified", "composite", "malformed")
"""Kinds of species labels.

binomial: "Apis mellifera", "Polygonia c-album", "Bombus (Pyrobombus) impatiens".
trinomial: with a subspecies, "Apis mellifera capensis".
open: open nomenclature, "Aedes cf. vexans", "Nola nr. lagunculariae", "Culex aff. pipiens A".
interim: a provisional name of one putative species, "Aedes sp. 1ES", "Eubazus Malaise7758", "Thyreion BioLep10".
unidentified: names no species at all, "Furcula sp.", "Maro n. sp.", "Platycheirus spp.".
composite: hybrid, group, complex or alternatives, "Thera variata x britannica", "Daphnia pulex group".
malformed: anything else, a single word or "Andrena fulva?".
"""
SPECIES_TYPES = ("binomial", "trinomial")
"""The types that name a described species."""
PROVISIONAL_TYPES = ("open", "interim", "unidentified", "composite")
"""The types that say of themselves that they do not. A malformed label may be a data set's own way to write species."""

_GENUS = re.compile(r"[A-Z][a-zà-ÿ]+(?:-[a-zà-ÿ]+)?")
_EPITHET = re.compile(r"(?:\d+-)?[a-zà-ÿ]{2,}(?:-[a-zà-ÿ]+)*|[a-zà-ÿ]{1,3}-[a-zà-ÿ]+")
_SUBGENUS = re.compile(r"\([A-Z][a-zà-ÿ]+\)")
_SPECIES_WORDS = {"sp", "spp", "ssp", "species", "spec", "indet", "undet", "unknown", "unidentified"}
_NEW_WORDS = {"n", "nov", "gen", "new", "nsp", "n.sp"}
_OPEN_WORDS = {"cf", "nr", "aff", "near", "prope", "prob", "pr", "conf", "cfr", "s.l", "s.str", "sensu", "ss"}
_COMPOSITE_WORDS = {
    "x",
    "×",
    "or",
    "group",
    "grp",
    "gr",
    "complex",
    "cmplx",
    "compl",
    "agg",
    "aggregate",
    "environmental",
}
_RANK_WORDS = {"subsp", "ssp", "var", "f", "ab", "morph", "form"}


def name_type(name: str) -> str:
    """Return which of NAME_TYPES a species label is."""
    words = name.split()
    if len(words) < 2:
        return "malformed"
    rest = words[1:]
    if _SUBGENUS.fullmatch(rest[0]) and len(rest) > 1:
        rest = rest[1:]
    if _GENUS.fullmatch(words[0]) and all(map(_is_epithet, rest)) and len(rest) <= 2:
        return ("binomial", "trinomial")[len(rest) - 1]
    plain = [word.rstrip(".,").lower() for word in rest]
    if set(plain) & _COMPOSITE_WORDS or "/" in name or plain[-1].endswith(("-group", "_group")):
        return "composite"
    if set(plain) & _OPEN_WORDS:
        return "open"
    if plain[0] in _SPECIES_WORDS | _NEW_WORDS:
        code = [word for word in plain if word not in _SPECIES_WORDS | _NEW_WORDS]
        return "interim" if code else "unidentified"
    if _GENUS.fullmatch(words[0]):
        if len(rest) == 3 and plain[1] in _RANK_WORDS and _is_epithet(rest[0]) and _is_epithet(rest[2]):
            return "trinomial"
        if any(letter.isdigit() or letter.isupper() or letter == "_" for word in rest for letter in word):
            return "interim"
    return "malformed"


def is_provisional(names: Sequence[str | None]) -> np.ndarray:
    """Return bool [N]: the label is there and names no described species (PROVISIONAL_TYPES)."""
    return _of_types(names, PROVISIONAL_TYPES)


def is_species(names: Sequence[str | None]) -> np.ndarray:
    """Return bool [N]: the label names a described species (a binomial or trinomial); False where it is missing."""
    return _of_types(names, SPECIES_TYPES)


def _of_types(names: Sequence[str | None], types: Sequence[str]) -> np.ndarray:
    known: dict[str | None, bool] = {None: False, "": False}
    for name in names:
        if name not in known:
            known[name] = name_type(str(name)) in types
    return np.fromiter((known[name] for name in names), dtype=bool, count=len(names))


def _is_epithet(word: str) -> bool:
    reserved = _SPECIES_WORDS | _NEW_WORDS | _OPEN_WORDS | _COMPOSITE_WORDS | _RANK_WORDS
    return bool(_EPITHET.fullmatch(word)) and word not in reserved and not word.endswith("-group")
