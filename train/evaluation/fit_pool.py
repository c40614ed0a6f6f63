"""Fits the weights of a pool by likelihood, and finds by cross-fitting where it may stand.

First every expert gets the temperature at which it is most likely right by itself; then the weights are fitted
together. For the guarantee the weights are fitted again without each fold of barcode groups, and the pool's right
answers to that fold are compared with the best single expert's.

Legend: N cases, M experts, K lineages kept of each case, Q qualities of an expert, A axes of the cells.
"""

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from train.evaluation.crossed import Crossed, collect
from train.evaluation.known_questions import GENUS, SPECIES, Part
from train.inference.calibration import POOLED
from train.inference.experts import QUALITIES
from train.inference.pool import ANY, EQUAL, POOL, Cell, Guarantee, Pool, Weight

FLOOR = 1e-2  # added to the probability of the truth: a wrong label costs no more than its logarithm
RIDGE = 1e-3  # on the squared slopes
FOLDS = 4
LENGTHS = (62, 87, 125, 175, 250, 350, 500)  # nucleotides
N_SHARES = (0.03, 0.15)  # the paper's damage masks 6% at its rates, 25% at four times these
BANDS = 4  # of sharpness, with as many cases each
FEWEST = 20  # barcode groups of a cell
MARGIN = 0.005  # of right answers, that the pool may lack at the lower end
ONE_SIDED = 1.645  # standard errors: 95%


def fit_pool(part: Part, query: str) -> Pool:
    """Fit the pool of a query on a part.

    Raises:
        ValueError: what `collect` raises.
    """
    asked = collect(part, query)
    every = np.ones(len(asked.group), dtype=bool)
    pool = fit_weights(asked, every)
    fold = np.random.default_rng(0).permutation(FOLDS * (asked.group.max() // FOLDS + 1))[asked.group] % FOLDS
    crossed = np.zeros((len(every), 2), dtype=bool)
    for number in range(FOLDS):
        held = fold == number
        if held.any() and not held.all():
            without = fit_weights(asked, ~held, start=pool)
            crossed[held] = right(asked, counts_of(without, asked), without)[held]
    count = len(asked.experts)
    alone = [right(asked, np.eye(count)[[number] * len(every)], pool) for number in range(count)]
    equal = None
    if not query.startswith(POOLED):
        at_word = np.array([one.temperature for one in pool.weights]) * asked.speaks
        equal = right(asked, at_word, pool)
    return replace(pool, guarantee=guarantee(asked, crossed, np.stack(alone, axis=1), counts_of(pool, asked), equal))


def fit_weights(asked: Crossed, rows: np.ndarray, start: Pool | None = None) -> Pool:
    """Fit temperatures and weights to some cases (bool [N])."""
    chosen = torch.from_numpy(np.flatnonzero(rows))
    truth = [asked.truth(rank)[chosen] for rank in (SPECIES, GENUS)]
    weight = torch.from_numpy(asked.weight[rows]).float()
    log_p, size = asked.log_p[chosen], asked.size[chosen]
    named = [one.any(dim=1) for one in truth]

    def loss_of(mixture: Tensor) -> Tensor:
        total = mixture.new_zeros(())
        whole = mixture + size
        whole = (whole - whole.logsumexp(1, keepdim=True)).exp()
        for columns, there in zip(truth, named, strict=True):
            own = (whole * columns).sum(1)
            total = total - (weight * there * (own + FLOOR).log()).sum() / (weight * there).sum().clamp(min=1e-9)
        return total / len(truth)

    if start is None:
        start = Pool(tuple(_begin(asked, number, log_p, loss_of, rows) for number in range(len(asked.experts))))
    tempered = [(log_p[:, number] / one.temperature) for number, one in enumerate(start.weights)]
    scaled = [
        torch.from_numpy((quality[rows] - np.array(one.mean)) / np.array(one.spread)).float()
        for one, quality in zip(start.weights, asked.qualities, strict=True)
    ]
    speaks = torch.from_numpy(asked.speaks[rows]).float()
    offsets = torch.tensor([one.offset for one in start.weights], requires_grad=True)
    slopes = [torch.tensor(one.slope, dtype=torch.float32, requires_grad=True) for one in start.weights]

    def loss() -> Tensor:
        mixture = torch.zeros_like(size)
        for number, (one, quality) in enumerate(zip(tempered, scaled, strict=True)):
            count = torch.nn.functional.softplus(offsets[number] + quality @ slopes[number]) * speaks[:, number]
            mixture = mixture + count[:, None] * one
        return loss_of(mixture) + RIDGE * sum((one**2).sum() for one in slopes)

    _minimise(loss, [offsets, *slopes])
    fitted = zip(start.weights, offsets.tolist(), slopes, strict=True)
    return Pool(tuple(replace(one, offset=offset, slope=tuple(slope.tolist())) for one, offset, slope in fitted))


def _begin(asked: Crossed, number: int, log_p: Tensor, loss_of: Callable[[Tensor], Tensor], rows: np.ndarray) -> Weight:
    """Return an expert's own temperature, and a weight of 1."""
    log_temperature = torch.zeros((), requires_grad=True)
    _minimise(lambda: loss_of(log_p[:, number] / log_temperature.exp()), [log_temperature])
    quality = asked.qualities[number][rows]
    spread = quality.std(axis=0)
    return Weight(
        expert=asked.experts[number],
        temperature=float(log_temperature.detach().clamp(-4, 4).exp()),
        inputs=QUALITIES[asked.experts[number]],
        mean=tuple(quality.mean(axis=0).tolist()),
        spread=tuple(np.where(spread < 1e-9, 1.0, spread).tolist()),
        slope=(0.0,) * quality.shape[1],
        offset=float(np.log(np.expm1(1.0))),
    )


def _minimise(loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    optimiser = torch.optim.LBFGS(parameters, max_iter=200, tolerance_change=1e-7, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)


def counts_of(pool: Pool, asked: Crossed) -> np.ndarray:
    """Return the pool's weights of all cases, the guarantee applied: float64 [N, M]."""
    return pool.counts(asked.qualities, list(asked.speaks.T), asked.measured)


def right(asked: Crossed, counts: np.ndarray, pool: Pool) -> np.ndarray:
    """Return whether species and genus are answered rightly with weights [N, M]: bool [N, 2]."""
    lineages = torch.from_numpy(asked.lineages)
    found = []
    for rows in torch.arange(len(counts)).split(2048):
        mixture = asked.size[rows].clone()
        for number, one in enumerate(pool.weights):
            weight = torch.from_numpy(counts[rows.numpy(), number]).float()
            mixture += weight[:, None] * asked.log_p[rows, number] / one.temperature
        share = mixture.softmax(1)
        leaf = torch.from_numpy(asked.leaf[rows.numpy()])
        genus = torch.where(leaf >= 0, lineages[leaf.clamp(min=0), GENUS], -1) + 1
        mass = torch.zeros(len(rows), int(lineages[:, GENUS].max()) + 2).scatter_add_(1, genus, share)
        mass[:, 0] = -1.0
        best = mass.argmax(1, keepdim=True)
        inside = share.masked_fill(genus != best, -1.0).argmax(1, keepdim=True)
        species = lineages[leaf.gather(1, inside)[:, 0].clamp(min=0), SPECIES]
        truth = torch.from_numpy(asked.labels[rows.numpy()])
        found.append(
            torch.stack(
                [
                    (species == truth[:, SPECIES]) & (species >= 0),
                    (best[:, 0] - 1 == truth[:, GENUS]) & (truth[:, GENUS] >= 0),
                ],
                dim=1,
            )
        )
    return torch.cat(found).numpy()


def guarantee(
    asked: Crossed, pool: np.ndarray, alone: np.ndarray, counts: np.ndarray, equal: np.ndarray | None = None
) -> Guarantee:
    """Compare the pool's right answers with those of the best single expert, by cell.

    Of barcode and library the cells start from EQUAL, which leaves its place only to what is shown better: it answered
    before the pool, and the weights that are most likely on bold's val lose 0.5 to 0.7 points of its fragments on test.

    Args:
        asked: N cases.
        pool: bool [N, 2], cross-fitted, at species and genus.
        alone: bool [N, M, 2], of each expert.
        counts: float64 [N, M], the pool's weights.
        equal: bool [N, 2], of EQUAL; None = it does not take part.
    """
    axes = {"length": tuple(np.log(LENGTHS).tolist()), "n_share": N_SHARES}
    if "sharpness" in asked.measured:
        edges = np.quantile(asked.measured["sharpness"], np.arange(1, BANDS) / BANDS)
        axes["sharpness"] = tuple(np.unique(edges).tolist())
    bands = Guarantee(axes, ()).bands(asked.measured)
    rest = np.full(bands.shape[1] - 1, ANY)
    of_length = [np.append(band, rest) for band in (ANY, *np.unique(bands[:, 0]))]
    cells = []
    for cell in np.concatenate([of_length, np.unique(bands, axis=0)]):
        rows = ((bands == cell) | (cell == ANY)).all(axis=1)
        if len(np.unique(asked.group[rows])) >= FEWEST:
            found = _verdict(asked, rows, pool, alone, equal)
            mean = tuple(counts[rows].mean(axis=0).tolist())
            cells.append(replace(found, bands=tuple(cell.tolist()), weights=mean))
    return Guarantee(axes, tuple(cells))


def _verdict(asked: Crossed, rows: np.ndarray, pool: np.ndarray, alone: np.ndarray, equal: np.ndarray | None) -> Cell:
    _, group = np.unique(asked.group[rows], return_inverse=True)
    number = int(alone[rows].mean(axis=(0, 2)).argmax())
    best, theirs, needed = asked.experts[number], alone[rows, number], -MARGIN
    if equal is not None:
        needed = 0.0
        if _gain(theirs, equal[rows], group)[1] <= 0:
            best, theirs = EQUAL, equal[rows]
    difference, low = _gain(pool[rows], theirs, group)
    answers = POOL if low >= needed else best
    return Cell((), answers, best, int(rows.sum()), int(group.max()) + 1, difference, low, ())


def _gain(ours: np.ndarray, theirs: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """Return difference and lower end of right answers bool [n, 2], of species or genus, whichever is lower."""
    gap = ours.astype(np.float64) - theirs
    return min((_lower_end(gap[:, rank], group) for rank in range(gap.shape[1])), key=itemgetter(1))


def _lower_end(gap: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """Return the mean of differences and its one-sided lower end, groups standing or falling together.

    For the lower end one more group, that lost, is added: what no group of few did may be done by others.
    """
    sums = np.append(np.bincount(group, gap), -len(gap) / (group.max() + 1))
    sizes = np.append(np.bincount(group), len(gap) / (group.max() + 1))
    mean = sums.sum() / sizes.sum()
    count = len(sizes)
    spread = float(np.sqrt(((sums - mean * sizes) ** 2).sum() * count / (count - 1)) / sizes.sum())
    return float(gap.mean()), float(mean - ONE_SIDED * spread)
