"""The model card of an exported model: what it is, what it was measured to do, how to ask it."""

import json
import re
from pathlib import Path
from typing import Any

from engine.specimens.taxonomy import RANKS
from train.models import checkpoint

TABLES, NUMBERS = "tables.md", "metrics.json"  # what train.evaluate writes
_QUERIES = {"dna": "barcode", "image": "photo", "fused": "photo and barcode, gated fusion"}

_BODY = """\
# {name}

Names insects from photos, COI barcodes, or both, at order, family, genus or species: the deepest rank whose probability
reaches a threshold. Made by taxafuse with the method of CLIBD-HiR-Fuse ([arXiv 2603.25573](https://arxiv.org/abs/2603.25573)):
{parameters:,} parameters, {step:,} steps of training on {data}.

It knows {taxa}.
A specimen of any other taxon gets the name of one of these, or of a coarser rank; the novelty flag of an answer says
when that is likely. {calibrated}

## Use

```python
from serve.answers.answer import Query
from serve.answers.predictor import Predictor

predictor = Predictor.load("{folder}"{library})
(answer,) = predictor.identify([Query("m1", images=(photo,), dna="AACATTATATTTT...")], threshold=0.95)
answer.answer_rank, answer.answer_name, answer.answer_probability
```

`python -m serve.main --checkpoint {folder}` serves it, `python -m serve.bulk INPUT --checkpoint {folder} --out
result.parquet` names many specimens. Everything is in this folder; nothing is fetched, and nothing is unpickled.

| file | |
|---|---|
| `model.safetensors` | weights |
| `config.json`, `meta.json` | configuration, architecture, versions |
| `taxonomy.json` | the taxa that it knows |
| `candidates.safetensors` | text features of these taxa |
{more}
## Measured

{tables}

## Versions

weights sha256 `{weights}`; taxonomy `{taxonomy}`; code {code}. Licence: {licence}.
"""


def model_card(
    loaded: checkpoint.Checkpoint, card: dict[str, Any], folder: Path, evaluation: Path | None, shown: str
) -> str:
    """Return the text of README.md.

    Args:
        loaded: the model.
        card: of the predictor on the exported folder.
        folder: the export; its files are listed.
        evaluation: what `train.evaluate` wrote, None = not measured.
        shown: what the folder will be called.
    """
    sizes = zip(loaded.taxonomy.names, RANKS, strict=True)
    more = {
        "calibration.json": "rules that make scores into probabilities",
        "tokenizer.json": "of the barcodes",
        "library/": "reference library: known barcodes and names",
    }
    there = {name: meaning for name, meaning in more.items() if (folder / name.rstrip("/")).exists()}
    body = _BODY.format(
        name=card["name"],
        folder=shown,
        step=card["step"],
        code=card["code_version"],
        licence=card["licence"],
        parameters=sum(value.numel() for value in loaded.model.parameters()),
        data=", ".join(Path(place).name for place in loaded.config.data.shards) or "specimens that are not named here",
        taxa=", ".join(f"{len(names):,} {rank} names" for names, rank in sizes),
        calibrated=_calibrated(card),
        library=f', library="{shown}/library"' if "library/" in there else "",
        weights=card["weights_sha256"],
        more="".join(f"| `{name}` | {meaning} |\n" for name, meaning in there.items()),
        taxonomy=card["taxonomy_sha256"],
        tables=_tables(evaluation),
    )
    return f"---\n{_metadata(card, evaluation)}---\n\n{body}"


def _calibrated(card: dict[str, Any]) -> str:
    """Say what its probabilities are worth."""
    if not card["calibration_sha256"]:
        return "It is not calibrated: its probabilities are the softmax's own."
    library = card["calibration_library"]
    shared = f", those of model and library together with {library}" if library else ""
    return f"Its probabilities are calibrated on specimens that no training step saw{shared}."


def _tables(evaluation: Path | None) -> str:
    """Return the tables that an evaluation begins with."""
    if evaluation is None:
        return "Not measured: no evaluation lay beside this checkpoint."
    text = (evaluation / TABLES).read_text(encoding="utf-8")
    return text.partition("\n## ")[0].partition("\n")[2].strip()


def _metadata(card: dict[str, Any], evaluation: Path | None) -> str:
    """Return the YAML that model hubs read; every string is JSON, which YAML takes."""
    lines = ["library_name: taxafuse", f"license: {_licence_id(card['licence'])}", "tags:"]
    lines += [f"- {tag}" for tag in ("biology", "taxonomy", "insects", "dna-barcoding", "multimodal")]
    values = json.loads((evaluation / NUMBERS).read_text(encoding="utf-8")) if evaluation else {}
    split = next((name.partition("/")[0] for name in values if name.endswith("/clean/species/top1")), "")
    found = {title: values.get(f"{split}/{query}/clean/species/top1") for query, title in _QUERIES.items()}
    if any(value is not None for value in found.values()):
        lines += [
            "model-index:",
            f"- name: {json.dumps(card['name'])}",
            "  results:",
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            f"      name: {json.dumps(split)}",
            "      type: taxafuse-shards",
            "    metrics:",
        ]
        for title, value in found.items():
            if value is not None:
                lines += [
                    "    - type: accuracy",
                    f"      name: {json.dumps(f'species top-1, {title}')}",
                    f"      value: {value:.4f}",
                ]
    return "\n".join(lines) + "\n"


def _licence_id(licence: str) -> str:
    """Return a licence as hubs write it, "other" for what is no short identifier."""
    return licence.lower() if re.fullmatch(r"[A-Za-z0-9.\-]{2,30}", licence) else "other"
