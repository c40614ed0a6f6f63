"""The paper's batch composition, written from its description: a yardstick for the engine's order, not a part of it.

Anchors are drawn from the specimens not yet used; each brings one unused specimen of its species, genus, family and
order where there is one. `quadratic` looks through all unused specimens for every partner, as the release does;
`linear` draws from the same distribution with one shuffled stack per taxon, so that large sets can be measured.
"""

import numpy as np


def quadratic(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """One epoch's rows, int64 [N], from labels [N, R]; time grows with N^2."""
    rng = np.random.default_rng(seed)
    unused = list(rng.permutation(len(labels)))
    order = []
    while unused:
        anchor = unused.pop()
        order.append(anchor)
        for rank in reversed(range(labels.shape[1])):
            wanted = labels[anchor, rank]
            column = labels[unused, rank]
            places = np.flatnonzero(column == wanted) if wanted >= 0 else ()
            if len(places):
                order.append(unused.pop(int(rng.choice(places))))
    return np.array(order)


def linear(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """One epoch's rows, int64 [N], composed as by `quadratic`; time grows with N."""
    rng = np.random.default_rng(seed)
    ranks = list(reversed(range(labels.shape[1])))
    stacks: dict[int, list[list[int]]] = {}
    for rank in ranks:
        rows = rng.permutation(np.flatnonzero(labels[:, rank] >= 0))
        rows = rows[np.argsort(labels[rows, rank], kind="stable")]
        ends = np.cumsum(np.bincount(labels[rows, rank]))
        stacks[rank] = [part.tolist() for part in np.split(rows, ends[:-1])] if len(rows) else []
    used = bytearray(len(labels))
    columns = {rank: labels[:, rank].tolist() for rank in ranks}
    order: list[int] = []
    for anchor in rng.permutation(len(labels)).tolist():
        if used[anchor]:
            continue
        used[anchor] = 1
        order.append(anchor)
        for rank in ranks:
            label = columns[rank][anchor]
            stack = stacks[rank][label] if label >= 0 else []
            while stack:
                partner = stack.pop()
                if not used[partner]:
                    used[partner] = 1
                    order.append(partner)
                    break
    return np.array(order)
