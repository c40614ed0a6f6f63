"""The one reader of names, for tables, FASTA headers and folders; and what kind of name a species label is.

Only binomials (and trinomials) name a described species. Labels of the other kinds are kept as labels of their own
type; whoever scores species names scores binomials apart.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from engine.specimens.known_words import COUNTRIES, HIGHER, ORDERS, UNKNOWN
from engine.specimens.taxonomy import RANKS

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
_RANK_NAMES = {"kingdom", "phylum", "class", "order", "family", "genus", "species", "subfamily", "tribe", "taxon"}
_PARTICLES = set(
    "de von van der den del della di da dos du la le et and & ex in al. al d' zu ter ten y i".split()  # noqa: SIM905
)
_HYBRID = re.compile(r"\s*×\s*|(?<=[a-zà-ÿ.)]) [xX] (?=[a-zà-ÿ(A-Z])")
_AUTHOR = re.compile(
    r"\(?\[?[A-ZÀ-Þ][^\W\d_'’.\-]*(?:['’.\-][^\W\d_]*)*[\])]?,?\)?|\(?\[?\d{4}[a-z]?[\])]*[,.]?|et|&|d'[A-ZÀ-Þ]\w+,?\)?"
)
_YEAR = re.compile(r"\b1[789]\d\d\b|\b20\d\d\b")
_TRIBE = re.compile(r"[A-Z][a-z]{3,}ini")
_TAXID = re.compile(r"_\d+$")
_DOTTED = re.compile(r"[A-Z][a-z]{2,}\.[a-z]{3,}")
_ABBREVIATED = re.compile(r"[A-Z][a-z]{0,2}\.")


def name_type(name: str) -> str:
    """Return which of NAME_TYPES a species label is."""
    words = _HYBRID.sub(" × ", plain(name)).split()
    if len(words) < 2:
        return "malformed"
    rest = words[1:]
    if _SUBGENUS.fullmatch(rest[0]) and len(rest) > 1:
        rest = rest[1:]
    if _GENUS.fullmatch(words[0]) and all(map(_is_epithet, rest)) and len(rest) <= 2:
        return ("binomial", "trinomial")[len(rest) - 1]
    bare = [word.rstrip(".,").lower() for word in rest]
    if set(bare) & _COMPOSITE_WORDS or "/" in name or bare[-1].endswith(("-group", "_group")):
        return "composite"
    if set(bare) & _OPEN_WORDS:
        return "open"
    if bare[0] in _SPECIES_WORDS | _NEW_WORDS:
        code = [word for word in bare if word not in _SPECIES_WORDS | _NEW_WORDS]
        return "interim" if code else "unidentified"
    if _GENUS.fullmatch(words[0]):
        if len(rest) == 3 and bare[1] in _RANK_WORDS and _is_epithet(rest[0]) and _is_epithet(rest[2]):
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


def plain(text: str) -> str:
    """Return the text composed (NFC), with one kind of space and of dash, without invisible letters.

    Every Unicode space counts as a space; format characters (zero width, soft hyphen, byte order mark) go.
    """
    if text.isascii():
        return " ".join(text.split())
    letters = []
    for letter in unicodedata.normalize("NFC", text):
        category = unicodedata.category(letter)
        if category in ("Zs", "Zl", "Zp", "Cc"):
            letters.append(" ")
        elif category == "Pd" or letter == "\u2212":
            letters.append("-")
        elif category != "Cf":
            letters.append(letter)
    return " ".join("".join(letters).split())


def is_placeholder(text: str) -> bool:
    """Return whether a cell or folder says that a name is not known: "Unknown", "indet.", "?", "0"."""
    bare = plain(text).strip(" .?*-_[](){}\"'").lower()
    words = bare.replace("_", " ").split()
    if not words or bare in ("0", "1", "x", "xx", "xxx", "999", "9999") or "sedis" in words:
        return True
    joined = "_".join(words)
    if joined in UNKNOWN or all(word.strip(".") in UNKNOWN | _SPECIES_WORDS | _RANK_NAMES for word in words):
        return True
    return words[0].strip(".") in UNKNOWN or words[:2] in (["not", "identified"], ["not", "classified"], ["no", "data"])


def read_name(text: str, any_case: bool = True) -> dict[str, str]:
    """Return what a name in any spelling says, {rank: name}; {} where it names no taxon of RANKS.

    A binomial gives genus and species, whatever stands behind it: authors, years, a subspecies. Labels of open
    nomenclature, interim names, hybrids and groups are kept whole. Higher taxa are told by suffix or by name.

    Args:
        text: the name.
        any_case: read "musca domestica", too; folders and headers say names with a capital.
    """
    words = _words(text, any_case)
    if not words or is_placeholder(text):
        return {}
    first, rest = words[0], words[1:]
    if rank := rank_of(first):
        deeper = read_name(" ".join(rest), any_case=False) if len(rest) > 1 else {}
        found = {} if rank == "higher" else {rank: first}
        return found | deeper if "species" in deeper else found
    if not _GENUS.fullmatch(first):
        return {}
    if not rest:
        return {"genus": first}
    if species := _species_label(first, rest):
        return {"genus": first, "species": species}
    plain_rest = {word.strip(".,()").lower() for word in rest}
    if _is_author(rest) or plain_rest <= _SPECIES_WORDS | _NEW_WORDS | UNKNOWN:
        return {"genus": first}
    return {}


def rank_of(word: str) -> str | None:
    """Return the rank that one word tells: "order", "family", "higher" for others above the genus, None = a genus."""
    lower = word.lower()
    if word[:1].isupper() and lower.capitalize() in ORDERS:
        return "order"
    if lower.endswith("idae") and len(word) > 5:
        return "family"
    if lower in HIGHER or (lower.endswith(("inae", "oidea")) and len(word) > 6) or _TRIBE.fullmatch(word):
        return "higher"
    return None


def _words(text: str, any_case: bool) -> list[str]:
    """Return a name's words without subgenus, with the capitals that a name has."""
    text = plain(text).strip(" '\"*[];,")
    if " " not in text:
        text = text.replace("_", " ").replace("+", " ").strip()
        if _DOTTED.fullmatch(text):
            text = text.replace(".", " ")
    words = _with_capitals(_HYBRID.sub(" × ", text).removeprefix(" × ").split(), any_case)
    if len(words) > 2 and _SUBGENUS.fullmatch(words[1]) and _is_epithet(words[2]):
        del words[1]
    return words


def _with_capitals(words: list[str], any_case: bool) -> list[str]:
    """Return a name's words with a capital on the first one, if it was written in capitals or (any_case) small."""
    if not words:
        return []
    second = words[1] if len(words) > 1 else ""
    if words[0].isupper() and len(words[0]) > 2 and second.isupper() and _is_epithet(second.lower()):
        words[:2] = [words[0].capitalize(), second.lower()]
    elif words[0].isupper() and len(words[0]) > 3 and words[0].isalpha():
        if any_case or len(words) > 1 or rank_of(words[0].capitalize()):
            words[0] = words[0].capitalize()
    elif any_case and words[0][:1].islower() and (_is_epithet(second) if second else rank_of(words[0].capitalize())):
        words[0] = words[0][:1].upper() + words[0][1:]
    return words


def _species_label(genus: str, rest: list[str]) -> str | None:
    """Return the label of a genus and what follows it, None where that names no species."""
    lower = [word.strip(".,()").lower() for word in rest]
    whole = " ".join([genus, *rest])
    kind = name_type(whole)
    if "×" in rest or kind in ("composite", "open", "interim"):
        named = kind == "interim" and _is_epithet(rest[0]) and _is_author(_behind(rest[1:]))
        if not named:
            return None if kind == "interim" and _is_author(rest) else whole
    if not _is_epithet(rest[0]) or lower[0] in UNKNOWN:
        return None
    tail = _behind(rest[1:])
    return f"{genus} {rest[0]}" if not tail or _is_author(tail) else whole


def _behind(words: list[str]) -> list[str]:
    """Return what stands behind the names below a species."""
    while words and (_is_epithet(words[0]) or words[0].strip(".") in _RANK_WORDS) and words[0] not in _PARTICLES:
        words = words[1:]
    return words


def _is_author(words: list[str]) -> bool:
    """Return whether words behind a name are its authors and year."""
    text = " ".join(words)
    if not all(_AUTHOR.fullmatch(word) or word.strip("(),") in _PARTICLES for word in words):
        return False
    has_year = bool(_YEAR.search(text))
    codes = [word for word in words if len(word.strip("(),")) > 1 and word.strip("(),").isupper() and "." not in word]
    return has_year or "(" in text or "," in text or not (codes or (len(words) == 1 and len(words[0]) == 1))


def read_ranks(names: Mapping[str, str | None]) -> dict[str, str]:
    """Return {rank: name} of a record's cells: RANKS, and "name" (of any rank), "name_rank", "epithet".

    A cell of its own goes before the general name; an epithet is joined with the genus; authors go. The genus comes
    from the species where there is no cell for it.
    """
    found: dict[str, str] = {}
    for rank in RANKS[:3]:
        cell = names.get(rank)
        if cell and not is_placeholder(cell):
            said = _words(cell[:1].upper() + cell[1:], True)
            told = rank_of(said[0]) if said else None
            if said and (told in (None, rank) or (told == "higher" and rank == "genus" and _TRIBE.fullmatch(said[0]))):
                found[rank] = said[0] if _GENUS.fullmatch(said[0]) or len(said) == 1 else plain(cell)
            elif told in RANKS:
                found.setdefault(str(told), said[0])
    has_genus = "genus" in found
    species = names.get("species") or names.get("epithet")
    if species and not is_placeholder(species):
        found |= _read_species(species, found)
    if (whole := names.get("name")) and "species" not in found:
        said_whole = read_name(whole)
        known_rank = plain(names.get("name_rank") or "").lower()
        if known_rank in RANKS[:3] and len(said_whole) == 1:
            said_whole = {known_rank: next(iter(said_whole.values()))}
        elif known_rank and known_rank not in (*RANKS, "subspecies", "variety", "form", "unranked"):
            said_whole.pop("genus", None) if "species" not in said_whole else None
        found = said_whole | found
    if "genus" in names and not has_genus:  # a genus cell that names none stays so
        found.pop("genus", None)
    return found


def _read_species(cell: str, found: Mapping[str, str]) -> dict[str, str]:
    """Return what a species cell says beside the ranks that are known."""
    genus = found.get("genus")
    words = _words(cell, any_case=False)
    if genus and words and (words[0] != genus or len(words) == 1):
        if _is_epithet(words[0]) and (len(words) == 1 or _is_author(words[1:])):
            return {"species": f"{genus} {words[0]}"}
        if _ABBREVIATED.fullmatch(words[0]) and words[0][0] == genus[0] and len(words) > 1:
            words[0] = genus
    if len(words) == 2 and words[0] == genus and words[1].istitle() and _is_epithet(words[1].lower()):
        words[1] = words[1].lower()
    said = read_name(" ".join(words) or cell)
    if set(said) == {"genus"} and len(words) == 1 and (genus or words[0] != plain(cell)):
        return {} if words[0] == genus else {"species": plain(cell)}  # a data set may write species its own way
    if not said and not rank_of(words[0] if words else ""):
        return {"species": plain(cell)}
    return {rank: name for rank, name in said.items() if rank == "species" or rank not in found}


def read_lineage(parts: Sequence[str]) -> dict[str, str]:
    """Return {rank: name} of names from the coarsest to the finest, of which no rank is given.

    Orders, families and binomials are told by themselves; an order that is not known stands before the family, a genus
    behind it.
    """
    cells = ["" if is_placeholder(part) else _TAXID.sub("", plain(part)).replace("_", " ").strip() for part in parts]
    found: dict[str, str] = {}
    family = next((at for at, cell in enumerate(cells) if rank_of(cell) == "family"), None)
    for at, cell in enumerate(cells):
        said = read_name(cell, any_case=False) if cell else {}
        if set(said) != {"genus"}:
            found |= {rank: name for rank, name in said.items() if rank == "species" or rank not in found}
        elif family is not None and at == family - 1 and "order" not in found:
            found["order"] = said["genus"]
        elif "species" not in found and cell.lower() not in COUNTRIES and (family is None or at > family):
            follows = cells[at + 1] if at + 1 < len(cells) else ""
            found["genus"] = said["genus"]
            if follows and _is_epithet(follows):
                found["species"] = f"{said['genus']} {follows}"
    return found
