"""How good are the features themselves? Linear, 1-NN and few-shot probes, and clustering without any label.

Probes learn from the clean features of train and answer for the split under test; the model itself stays as it is.

Legend: N specimens, D embedding, C classes.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_mutual_info_score, v_measure_score
from tqdm import tqdm

from engine import html, markdown
from engine.batches.pipeline import label_columns
from engine.html import Section
from engine.specimens.taxonomy import RANKS, Taxonomy
from train import metrics
from train.evaluation.model_under_test import Setting
from train.evaluation.retrieval import Side, Specimens, named_rows, nearest

SHOTS = (1, 5)
DRAWS = 5  # of the few specimens
STEPS, BATCH, RATE = 400, 1024, 0.1  # of the linear probe
CLUSTERED = 2000  # specimens; agglomerative clustering takes memory by their square
SPECIES = RANKS.index("species")


def linear_probe(train: torch.Tensor, labels: np.ndarray, queries: torch.Tensor, seed: int = 0) -> np.ndarray:
    """Softmax regression on frozen features by AdamW, its rate falling along a cosine to zero.

    Args:
        train: float32 [N, D], unit rows.
        labels: int64 [N], any integers.
        queries: float32 [n, D].
        seed: of the first weights and the order.

    Returns:
        int64 [n], the answered labels.
    """
    names, target = np.unique(labels, return_inverse=True)
    goal = torch.from_numpy(target).to(train.device)
    scale = train.shape[1] ** 0.5  # so that a coordinate is about 1
    layer = torch.nn.Linear(train.shape[1], len(names), device=train.device)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(layer.parameters(), RATE / scale, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        rows = torch.randint(len(train), (min(BATCH, len(train)),), generator=generator).to(train.device)
        optimizer.zero_grad()
        F.cross_entropy(layer(train[rows] * scale), goal[rows]).backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        answer = torch.cat([layer(part * scale).argmax(1) for part in queries.split(BATCH)])
    return names[answer.cpu().numpy()]


def few_shot(train: Side, queries: Side, shots: int, draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """Nearest mean of `shots` random training specimens of each species, for species that have as many.

    Returns:
        (micro accuracy, macro accuracy) of each draw, float64 [draws] each; nan when no query has such a species.
    """
    labels = train.labels[:, SPECIES]
    names, counts = np.unique(labels[labels >= 0], return_counts=True)
    names = names[counts >= shots]
    truth = queries.labels[:, SPECIES]
    asked = np.isin(truth, names)
    if not asked.any():
        return np.full(draws, np.nan), np.full(draws, np.nan)
    micro, macro = [], []
    for draw in range(draws):
        order = np.random.default_rng(draw).permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        first = np.searchsorted(labels[order], names)
        chosen = order[first[:, None] + np.arange(shots)]
        means = F.normalize(train.features[torch.from_numpy(chosen)].mean(dim=1), dim=1)
        answer = names[nearest(queries.features[torch.from_numpy(np.flatnonzero(asked))], means, 1)[:, 0]]
        correct = answer == truth[asked]
        micro.append(correct.mean())
        macro.append(metrics.macro(correct, truth[asked]))
    return np.array(micro), np.array(macro)


def clustering(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Ward clusters, as many as there are taxa, against the taxa: AMI and V-measure, of at most CLUSTERED specimens.

    Args:
        features: float32 [N, D].
        labels: int64 [N], -1 = left out.
        seed: of the choice of specimens.
    """
    rows = np.flatnonzero(labels >= 0)
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:CLUSTERED])
    truth = labels[rows]
    kinds = len(np.unique(truth))
    if kinds < 2:
        return {}
    found = AgglomerativeClustering(n_clusters=kinds).fit_predict(features[rows])
    return {
        "ami": float(adjusted_mutual_info_score(truth, found)),
        "v_measure": float(v_measure_score(truth, found)),
        "rows": len(rows),
        "taxa": kinds,
    }


def measure(setting: Setting) -> dict[str, float]:
    """Measure the features by linear, 1-NN and few-shot probes, and by clustering.

    Metrics: `test/probes/dna/{linear, nearest}/species/{top1, macro_top1}`, `.../few_shot_5/species/{top1, top1_sd}`
    and `.../clustering/species/{ami, v_measure}`, for image and dna.

    Raises:
        ValueError: when the shards have no train split apart from the one under test.
    """
    split = setting.split
    if not setting.has("train") or split == "train":
        raise ValueError(f"probes learn from the train split, which these shards do not have beside {split}")
    rows = pa.concat_tables([named_rows(setting, name) for name in ("train", split)])
    taxonomy = Taxonomy.build(label_columns(rows))
    train, queries = (Specimens(setting, [name], taxonomy) for name in ("train", split))
    result: dict[str, float] = {}
    for modality in tqdm(("image", "dna"), desc="probes", disable=None, leave=False):
        known, asked = train.side(modality), queries.side(modality)
        if known is not None and asked is not None:
            found = _supervised(known, asked) | _few_shots(known, asked)
            for rank, column in (("species", SPECIES), ("family", RANKS.index("family"))):
                clusters = clustering(asked.features.cpu().numpy(), asked.labels[:, column])
                found |= {f"clustering/{rank}/{name}": value for name, value in clusters.items()}
            result |= {f"{split}/probes/{modality}/{name}": value for name, value in found.items()}
    return result


def _supervised(train: Side, queries: Side) -> dict[str, float]:
    """Linear and 1-NN answers at every rank."""
    result: dict[str, float] = {}
    for column, rank in enumerate(RANKS):
        rows = np.flatnonzero(train.labels[:, column] >= 0)
        truth = queries.labels[:, column]
        if not len(rows) or not (truth >= 0).any():
            continue
        library, labels = train.features[torch.from_numpy(rows)], train.labels[rows, column]
        answers = {
            "linear": linear_probe(library, labels, queries.features),
            "nearest": labels[nearest(queries.features, library, 1)[:, 0]],
        }
        for name, answer in answers.items():
            result[f"{name}/{rank}/top1"] = metrics.micro(answer == truth, truth >= 0)
            result[f"{name}/{rank}/macro_top1"] = metrics.macro(answer == truth, truth)
            result[f"{name}/{rank}/rows"] = int((truth >= 0).sum())
    return result


def _few_shots(train: Side, queries: Side) -> dict[str, float]:
    result: dict[str, float] = {}
    for shots in SHOTS:
        for name, values in zip(("top1", "macro_top1"), few_shot(train, queries, shots), strict=True):
            if not np.isnan(values).all():
                result[f"few_shot_{shots}/species/{name}"] = float(values.mean())
                result[f"few_shot_{shots}/species/{name}_sd"] = float(values.std(ddof=1))
    return result


def section(values: Mapping[str, float], split: str) -> Section:
    """Return the tables of the page, made of the metrics."""
    rows, clusters = [], []
    names = {"linear": "linear", "nearest": "1-NN"} | {f"few_shot_{n}": f"{n} specimens a species" for n in SHOTS}
    for modality in ("image", "dna"):
        start = f"{split}/probes/{modality}"
        for probe, text in names.items():
            keys = [f"{start}/{probe}/{rank}/top1" for rank in RANKS] + [f"{start}/{probe}/species/macro_top1"]
            if any(key in values for key in keys):
                cells = [markdown.percent(values.get(key)) for key in keys]
                for place, key in enumerate(keys):
                    if f"{key}_sd" in values:
                        cells[place] += f"\n± {markdown.percent(values[f'{key}_sd'])}"
                rows.append([modality, text, *cells])
        for rank in ("species", "family"):
            if f"{start}/clustering/{rank}/ami" in values:
                parts = ("ami", "v_measure", "rows", "taxa")
                ami, v, count, taxa = (values[f"{start}/clustering/{rank}/{part}"] for part in parts)
                clusters.append([modality, rank, f"{ami:.3f}", f"{v:.3f}", f"{count:,.0f} of {taxa:,.0f} taxa"])
    told = (
        "Answers of simple classifiers on the frozen clean features: top-1 in %. Of few specimens the nearest "
        f"mean: average and spread of {DRAWS} draws, over species with as many training specimens."
    )
    blocks = [html.paragraph(told), html.table(["features", "probe", *RANKS, "species macro"], rows)]
    blocks.append(html.paragraph("Ward clusters of the test features, as many as taxa, without any label:"))
    blocks.append(html.table(["features", "taxa of", "AMI", "V-measure", "specimens"], clusters))
    return Section("Probes of the features", blocks)
