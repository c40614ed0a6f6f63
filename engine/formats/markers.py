"""Genes that barcode files name: which are COI's barcode, and which words are genes at all."""

import re

_COI = re.compile(
    r"(?:mt-?)?(?:CO1|COI|COXI|COX1)(?:[ -]?5P?'?)?"
    r"|(?:cytochrome )?c(?:ytochrome)?(?: c)? oxidase (?:subunit )?(?:I|1|one)"
    r"|cytochrome (?:c )?oxidase subunit (?:I|1)(?: \(?(?:COI|CO1|COX1|COXI)\)?)?",
    re.IGNORECASE,
)
_COI_IN_TEXT = re.compile(
    r"\b(?:COI|CO1|COX1|COXI|COI-5P|MT-CO1)\b(?!-(?!5P\b))|oxidase(?:,)? subunit (?:1|I|one)\b|oxidase I\b",
    re.IGNORECASE,
)
_GENE_IN_TEXT = re.compile(
    r"\b(?:(?:5\.8|12|16|18|28)S|cytochrome b|cyt ?b|subunit (?:2|3|II|III)|NADH dehydrogenase|ATP(?:ase| synthase)"
    r"|elongation factor|histone|internal transcribed spacer|ITS[12]?|wingless|rhodopsin|ribosomal RNA|D-loop"
    r"|control region|maturase"
    r"|rbcL|carbamoyl)\b",
    re.IGNORECASE,
)
_MARKER = re.compile(
    r"COI{1,3}(?:-\w+)?|CO[123]|COX(?:[123]|I{1,3})|CYT-?B|Cyt-?[bB]|\d\d?(?:\.\d)?[SL](?:[ _-]?r(?:RNA|DNA))?(?:-\w+)?"
    r"|ITS\d?(?:-\w+)?|ND\d?L?(?:-\d)?|NAD\dL?|ATP(?:ase)?\d?(?:-\d)?|D-?loop(?:-\w+)?|CR|H[1-4][AB]?"
    r"|EF-?[12]\w*(?:-\w+)*|CAD\d?"
    r"|Wnt-?\d?|WNT\d|[wW]ingless|WG|Rho|RHO|LW-?RH\w?O?|ArgKin|AK|matK|rbcL\w?|psbA\w*"
    r"|trn\w+(?:-trn?\w+|-\w+)?|TPI|MDH|IDH"
    r"|GAPDH|DDC"
    r"|RpS\d+|RPS\d+|RPB\d|RNF213|RAG\d|TMO-\w+|TULP\w*|CK1|ENO\d?|PGD|Dbp|DYN|CAT|AATS|hcpB|UPA|FL-COI|COI-\w+|28S\w*"
    r"|18S\w*|PEPCK|Ubx|Antp|en|period|per|S7|beta-?tubulin|TUB\w*|LSU\w*|SSU\w*|MB2-\w+|PLAGL2|ZFX|RYR3|NGFB|ptpn\w*"
)


def is_coi(marker: str) -> bool:
    """Return whether a marker's name is that of the barcode region of COI: COI-5P, CO1, cox1, ..."""
    return bool(_COI.fullmatch(marker.strip().strip("[]").replace("_", " ")))


def is_marker(word: str) -> bool:
    """Return whether a word is the name of a gene that barcode files hold."""
    return is_coi(word) or bool(_MARKER.fullmatch(word.strip()))


def marker_in(text: str) -> str | None:
    """Return the gene that a description names: "COI", else the first other one, None where it names none."""
    if _COI_IN_TEXT.search(text):
        return "COI"
    other = _GENE_IN_TEXT.search(text)
    return other[0] if other else None
