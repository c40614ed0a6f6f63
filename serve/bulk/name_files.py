"""Files of names: checklists (names one a line, or a species list as GBIF gives it) and groups of species."""

import csv
from pathlib import Path

from engine.errors import UserError
from engine.specimens.names import read_name
from engine.specimens.taxonomy import RANKS

_SPECIES_COLUMNS = ("species", "acceptedScientificName", "scientificName")  # of a table, the first that is filled
_BELOW = {"SPECIES", "SUBSPECIES", "VARIETY", "FORM"}  # ranks of GBIF's lists that name a species


def read_checklist(path: Path) -> list[str]:
    """Return the names of a checklist, each once, in its order.

    One name a line, of any rank, with or without authors (lines that begin with # say nothing); or a table with GBIF's
    columns (species, scientificName, taxonRank), of which the species are taken. Raises UserError for no name at all.
    """
    text = path.read_text(encoding="utf-8-sig")
    lines = [line.strip("\r\n") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    head = lines[0] if lines else ""
    delimiter = next((one for one in "\t,;" if set(head.split(one)) & set(_SPECIES_COLUMNS)), None)
    if delimiter and len(head.split(delimiter)) > 1:
        names = [_species_of(row) for row in csv.DictReader(lines, delimiter=delimiter)]
    else:
        names = [_deepest(line.strip().strip('"')) for line in lines if line.strip() not in _SPECIES_COLUMNS]
    found = list(dict.fromkeys(name for name in names if name))
    if not found:
        raise UserError("checklist", f"{path}, which names nothing", "names one a line, or GBIF's species list")
    return found


def _species_of(row: dict[str, str | None]) -> str:
    rank = (row.get("taxonRank") or "SPECIES").strip().upper()
    cell = next((row[name] for name in _SPECIES_COLUMNS if (row.get(name) or "").strip()), None)
    return read_name(cell).get(RANKS[-1], "") if cell and rank in _BELOW else ""


def _deepest(text: str) -> str:
    found = read_name(text)
    return next((found[rank] for rank in reversed(RANKS) if rank in found), text)


def read_groups(path: Path) -> dict[str, str]:
    """Return species -> group of a file with lines "GROUP: species, species, ..." (# begins a remark).

    Raises UserError for a line of another form, a group of fewer than two species, a species in two groups.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        group, colon, rest = line.partition(":")
        members = list(dict.fromkeys(_deepest(one.strip()) for one in rest.split(",") if one.strip()))
        if not colon or not group.strip() or len(members) < 2:
            raise UserError("--groups", f"line {number} of {path}: {line[:80]!r}", "GROUP: species, species, ...")
        for name in members:
            if found.setdefault(name, group.strip()) != group.strip():
                raise UserError("--groups", f"{path}: {name} in {found[name]} and in {group.strip()}", "one group each")
    if not found:
        raise UserError("--groups", f"{path}, which names nothing", "lines of GROUP: species, species, ...")
    return found
