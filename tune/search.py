"""Propose which values to try next: Optuna is asked afresh for every trial, from the ledger alone.

Nothing of the search lives anywhere else. A trial's values are a pure function of (algorithm, seed, number of the
trial, results so far), so a sweep that was interrupted asks exactly what it would have asked, without a pickled
sampler; Ray Tune's OptunaSearch keeps its study in one, written now and then, that a killed driver leaves behind.
"""

import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from tune.ledger import DEFAULT, Entry
from tune.settings import Algorithm
from tune.spaces import Choice, Space

if TYPE_CHECKING:
    import optuna

WARM_UP = 6  # trials drawn at random before TPE's model has something to say; Optuna's default of 10 is most of 16
EPOCH = datetime(2000, 1, 1)  # Optuna wants the times of trials and does not use them


def propose(space: Space, algorithm: Algorithm, seed: int, number: int, known: Sequence[Entry]) -> dict[str, Any]:
    """Return values for the trial of this number; number 0 has the recipe's own and is not proposed.

    Args:
        space: what is varied.
        algorithm: "tpe" or "random".
        seed: of the sweep.
        number: of the trial.
        known: every trial so far. Finished ones count by their score, stopped ones by how far they came and their score
            there, running ones as something to keep away from; failed ones are left out.
    """
    assert number != DEFAULT, "trial 0 has the recipe's own values"
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    study = optuna.create_study(direction="maximize", sampler=_sampler(algorithm, own_seed))
    for entry in known:
        trial = _as_trial(space, entry)
        if trial is not None:
            study.add_trial(trial)
    asked = study.ask(_distributions(space))
    return {key: domain.at(_unit(domain, asked.params[key])) for key, domain in space.items()}


def _sampler(algorithm: Algorithm, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    if algorithm == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=WARM_UP, multivariate=True, constant_liar=True)


def _distributions(space: Space) -> dict[str, "optuna.distributions.BaseDistribution"]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        key: CategoricalDistribution(list(range(len(domain.values))))
        if isinstance(domain, Choice)
        else FloatDistribution(0.0, 1.0)
        for key, domain in space.items()
    }


def _unit(domain: Any, parameter: float) -> float:
    """Return the position of what Optuna calls a value."""
    return (parameter + 0.5) / len(domain.values) if isinstance(domain, Choice) else parameter


def _parameter(domain: Any, value: Any) -> float | None:
    """Return what Optuna calls a value; None outside the domain."""
    if isinstance(domain, Choice):
        return domain.values.index(value) if value in domain.values else None
    return domain.position(value)


def _as_trial(space: Space, entry: Entry) -> "optuna.trial.FrozenTrial | None":
    """Return an entry as Optuna keeps it; None when it has no outcome or lies outside the space."""
    from optuna.trial import FrozenTrial, TrialState

    parameters = {key: _parameter(domain, entry.values[key]) for key, domain in space.items()}
    state = {
        "waiting": TrialState.RUNNING,
        "running": TrialState.RUNNING,
        "stopped": TrialState.PRUNED,
        "finished": TrialState.COMPLETE,
    }.get(entry.state)
    if state is None or None in parameters.values():
        return None
    return FrozenTrial(
        number=entry.number,
        trial_id=entry.number,
        state=state,
        params=parameters,
        value=entry.score if state == TrialState.COMPLETE else None,
        distributions=_distributions(space),
        intermediate_values=dict(entry.history),
        datetime_start=EPOCH,
        datetime_complete=EPOCH if state.is_finished() else None,
        user_attrs={},
        system_attrs={},
    )
