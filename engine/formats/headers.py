"""What a FASTA header says: id, names, BIN and marker, in the forms that portals and pipelines write.

Known: BOLD's portal (id|marker|country|lineage) and workbench (fields in any order), BOLDistilled (id|BIN), BarcodeBERT
(id|genus|species), GenBank deflines and NCBI's prefixes (gi|..|gb|..|), SINTAX (;tax=), MIDORI, DADA2 (a lineage, or id
and binomial), RDP and UNITE training files, OBITools 1 to 4, key=value. The first word is the id where the rest was
understood or the word holds a digit, else the whole header; a header that is but names has no id.
"""

import json
import re
from collections.abc import Sequence

from engine.formats.markers import is_coi, is_marker, marker_in
from engine.specimens.known_words import COUNTRIES, HIGHER
from engine.specimens.names import is_species, plain, rank_of, read_lineage, read_name, read_ranks
from engine.specimens.taxonomy import RANKS

FIELDS = ("key", "bin_uri", "marker", *RANKS)

BIN = re.compile(r"BOLD:[A-Z]{3}[0-9A-Z]{1,6}")
_BIN_PREFIX = re.compile(rf"({BIN.pattern})(?:[_.|].*)?")
_NCBI = re.compile(r"(?:gi|gb|emb|dbj|ref|lcl|gnl|sp|tr|pir|prf|pdb|tpg|tpe|tpd|pat|bbs)\|")
_ACCESSION = re.compile(r"(?:[A-Z]{1,2}_?[0-9]{5,8}|[A-Z]{4,6}[0-9]{8,})(?:\.[0-9]+)?")
_PLACED = re.compile(r"([A-Z]+_?[0-9]+\.[0-9]+)\.<?[0-9]+\.>?[0-9]+")  # MIDORI's accession and where in it
_CODE = re.compile(r"(?=.*[0-9_]|.*[A-Z].*[A-Z])[A-Za-z0-9][\w.:/'#+-]*")
_PREFIXED = re.compile(r"(?:^|[;,|\s])(?:[a-z]|sk|dom)(?:__|:)")
_RANKED = re.compile(
    r"(superkingdom|kingdom|phylum|class|order|family|genus|species|subfamily|tribe)[_:=]+(.*)", re.IGNORECASE
)
_LETTERS = {"o": "order", "f": "family", "g": "genus", "s": "species"}
_TAXID = re.compile(r"_\d+$")
_PAIR = re.compile(r"([A-Za-z_]+)=(\"[^\"]*\"|'[^']*'|[^;\]]*)")
_TAXON_OF_OBITOOLS = re.compile(r"\[([^\]]+)\](?:@\w+)?")
_BEFORE_NAME = re.compile(r"^(?:UNVERIFIED(?:_ORG|_ASMBLY)?|TPA(?:_\w+)?|PREDICTED|MAG(?: TPA)?):\s*")


def read_header(header: str) -> dict[str, str]:
    """Return what a header (without ">") says: some of FIELDS; without "key" where it holds no id of its own."""
    header = plain(header)
    if _NCBI.match(header):
        return _with_bin(_read_ncbi(header))
    if ";tax=" in header or header.startswith("tax="):
        key, _, lineage = header.partition("tax=")
        return _with_bin({"key": key.strip(" ;").partition(";")[0].strip()} | read_taxonomy(lineage.partition(";")[0]))
    if "|" in header:
        return _with_bin(_read_fields([part.strip() for part in header.split("|")]))
    if is_lineage(header):
        return read_taxonomy(header)
    key, _, rest = header.replace("###", " ").partition(" ")
    if ";" in key and not rest:
        key, _, rest = key.partition(";")
    if placed := _PLACED.fullmatch(key):
        key = placed[1]
    names = _read_description(rest.strip()) if rest.strip() else {}
    if names or any(letter.isdigit() for letter in key):
        return _with_bin({"key": key} | ({} if rest else _name_in_front(key.replace("_", " "))) | names)
    said = read_name(header, any_case=False)
    return said if is_species([said.get("species")])[0] else {"key": header}


def read_taxonomy(text: str) -> dict[str, str]:
    """Return {rank: name} of a lineage in one text: with prefixes (k__, o:, order_X_12), or from coarse to fine."""
    parts = [part.strip() for part in re.split(r"[;|]|,(?! )|(?<=\S),(?= ?[a-z]:)", text.strip(" ;"))]
    if any(_RANKED.match(part) for part in parts[1:] or parts):
        pairs = [(found[1].lower(), found[2]) for part in parts if (found := _RANKED.match(part))]
    elif _PREFIXED.search(text):
        split = [re.match(r"([a-z]+)(?:__|:)(.*)", part) for part in parts]
        pairs = [(_LETTERS.get(found[1], ""), found[2]) for found in split if found]
    else:
        return read_lineage(parts)
    cells = {rank: _TAXID.sub("", name.strip('"')).replace("_", " ") for rank, name in pairs if rank in RANKS}
    return read_ranks({rank: cell for rank, cell in cells.items() if cell})


def is_lineage(text: str) -> bool:
    """Return whether a text is a lineage and nothing else: "Eukaryota;Arthropoda;...", "k__Animalia;p__...", ..."""
    parts = [part.strip() for part in text.strip(" ;").split(";")]
    if len(parts) < 3:
        return False
    first = _TAXID.sub("", parts[0])
    return bool(
        re.match(r"(?:[a-z]|sk)__", first)
        or first.lower() in HIGHER
        or first.lower().startswith("root")
        or rank_of(first)
        or (first[:1].isupper() and first.isalpha() and all("=" not in part for part in parts))
    )


def _read_ncbi(header: str) -> dict[str, str]:
    """Read "gi|100|gb|ZZ100.1| definition", "lcl|id", "gnl|database|id": the accession is the id."""
    first, _, definition = header.partition(" ")
    parts = [part for part in first.split("|") if part]
    if parts[0] == "gi" and len(parts) > 3:
        parts = parts[2:]
    if parts[0] == "gnl" and len(parts) > 2:
        parts = parts[1:]
    key = "|".join(parts[1:3]) if parts[0] == "pdb" else parts[1] if len(parts) > 1 else ""
    return ({"key": key} if key else {}) | _read_description(definition)


def _read_description(text: str) -> dict[str, str]:
    """Read what stands behind an id: key=value, JSON, a lineage, or a binomial and a gene as GenBank has them."""
    if text.startswith("{"):
        try:
            return _read_pairs({str(name): str(value) for name, value in json.loads(text).items()})
        except (ValueError, AttributeError):
            return {}
    if is_lineage(text) or (text.count(";") > 1 and _PREFIXED.search(text)):
        return read_taxonomy(text)
    pairs = {name.lower(): value.strip(" '\"") for name, value in _PAIR.findall(text)}
    found = _read_pairs(pairs)
    if not found.keys() & set(RANKS):
        words = _BEFORE_NAME.sub("", text)
        found = _name_in_front(words) | found
    marker = marker_in(text)
    return found | ({"marker": marker} if marker and "marker" not in found else {})


def _name_in_front(text: str) -> dict[str, str]:
    """Return the names that a description begins with: two words, or three with "sp.", "cf." or "x"."""
    words = text.split() or [""]
    said = read_name(" ".join(words[:1] if "_" in words[0] else words[:2]), any_case=False)
    if len(words) > 2 and words[1].rstrip(".") in ("sp", "cf", "aff", "nr", "x", "×"):
        said = read_name(" ".join(words[:3]).rstrip(","), any_case=False) or said
    return said if "species" in said or (said and len(words) == 1) or "sp." in words[:2] else {}


def _read_pairs(pairs: dict[str, str]) -> dict[str, str]:
    """Read keys and values: OBITools (species_name=..), NCBI ([organism=..] [gene=..]), lineages (taxonomy=..)."""
    cells = {rank: pairs.get(f"{rank}_name") or pairs.get(rank) or "" for rank in RANKS}
    for rank, cell in cells.items():
        if found := _TAXON_OF_OBITOOLS.search(cell):
            cells[rank] = found[1]
    name = pairs.get("scientific_name") or pairs.get("organism") or pairs.get("taxon") or ""
    if not name and (found := _TAXON_OF_OBITOOLS.search(pairs.get("taxid", ""))):
        name = found[1]
    lineage = pairs.get("taxonomy") or pairs.get("lineage") or pairs.get("taxonomic_path") or ""
    said = read_ranks({rank: cell for rank, cell in {**cells, "name": name}.items() if cell})
    said = (read_taxonomy(lineage) if lineage else {}) | said
    gene = pairs.get("gene") or pairs.get("marker") or pairs.get("locus") or ""
    return said | ({"marker": gene} if gene else {})


_KINDS_OF_UNITE = ("reps", "refs", "reps_singleton", "refs_singleton")  # how a sequence was chosen; no name


def _read_fields(parts: Sequence[str]) -> dict[str, str]:
    """Read fields between "|": id, and in any order names, BIN, marker, accession, country, sample id, a lineage."""
    key, *rest = parts
    found: dict[str, str] = {}
    names: list[str] = []
    behind_names: list[str] = []  # codes that are a marker where none is known: id|name|marker
    first, _, behind = key.partition(" ")
    if behind and not is_lineage(key) and "species" in (said := _read_description(behind)):
        key, found = first, said
    for part in rest:
        if field := _field_of(part):
            found |= {} if field[0] == "marker" and "marker" in found and not is_coi(part) else field[1]
        elif not (_ACCESSION.fullmatch(part) or part.lower() in COUNTRIES or part in _KINDS_OF_UNITE):
            is_code = _CODE.fullmatch(part) and not read_name(part, any_case=False)
            if not is_code:
                names.append(part)
            elif names and not part.isdigit() and part not in ("NA", "N/A"):
                behind_names.append(part)
    said = read_name(key, any_case=False)
    if "species" in said and not names:  # UNITE: the name first
        accession = next((part for part in rest if _ACCESSION.fullmatch(part)), None)
        return {"key": accession or "|".join(parts)} | said | found
    if "marker" not in found and behind_names:
        found["marker"] = behind_names[0]
    return {"key": key} | found | _ranks_of(names, found)


def _field_of(part: str) -> tuple[str, dict[str, str]] | None:
    """Return a lineage, BIN or marker that a field is, None for another."""
    if part.count(",") > 2 or is_lineage(part) or part.count("__") > 1:
        return "lineage", read_taxonomy(part.replace(",", ";"))
    if BIN.fullmatch(part):
        return "bin_uri", {"bin_uri": part}
    return ("marker", {"marker": part}) if is_marker(part) else None


def _ranks_of(names: Sequence[str], found: dict[str, str]) -> dict[str, str]:
    said = read_lineage(names)
    return {rank: name for rank, name in said.items() if rank not in found}


def _with_bin(found: dict[str, str]) -> dict[str, str]:
    if bin_uri := _BIN_PREFIX.fullmatch(found.get("key", "")):
        found.setdefault("bin_uri", bin_uri[1])
    return found
