"""The contracts of what Ray Tune does not promise and sweeps rely on (`pytest -m ray_contract`)."""

import importlib
import inspect
from collections.abc import Callable

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from tune import ray_seams


def contract_rungs() -> None:
    """A rung of ASHA takes a score by the trial's id alone, and stops what is below the best quarter."""
    scheduler = ASHAScheduler(time_attr="epoch", metric="score", mode="max", max_t=8, grace_period=2)
    verdicts = [ray_seams.judge(scheduler, f"trial-{number}", 2, score) for number, score in enumerate([0.9, 0.8, 0.1])]
    assert verdicts == [TrialScheduler.CONTINUE, TrialScheduler.STOP, TrialScheduler.STOP]


def contract_errors() -> None:
    """A trial keeps the error that it broke off with."""
    assert callable(Trial.get_pickled_error)


def contract_logger() -> None:
    """Tune talks through the logger that is quietened."""
    module = importlib.import_module("ray.tune.tune")
    assert module.logger.name.startswith(f"{ray_seams.TUNE_LOGGER}.")


CONTRACTS: dict[str, Callable[[], None]] = {
    contract.__name__.removeprefix("contract_"): contract
    for contract in (contract_rungs, contract_errors, contract_logger)
}
BREAKS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "rungs": lambda patch: patch.setattr(ASHAScheduler, "_brackets", (), raising=False),
    "errors": lambda patch: patch.delattr(Trial, "get_pickled_error"),
    "logger": lambda patch: patch.setattr(ray_seams, "TUNE_LOGGER", "ray.renamed"),
}


@pytest.mark.ray_contract
@pytest.mark.parametrize("name", CONTRACTS)
def test_contract(name: str) -> None:
    CONTRACTS[name]()


@pytest.mark.ray_contract
@pytest.mark.parametrize("name", ["errors", "logger"])
def test_a_broken_seam_breaks_its_contract(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the tests: with the seam taken away by hand, its contract fails."""
    BREAKS[name](monkeypatch)
    with pytest.raises((AssertionError, AttributeError)):
        CONTRACTS[name]()


def test_without_its_seams_a_sweep_goes_on() -> None:
    assert inspect.isclass(Trial)
    assert ray_seams.judge(object(), "trial-1", 2, 0.1) == TrialScheduler.CONTINUE
    assert ray_seams.error_of(object()) is None
