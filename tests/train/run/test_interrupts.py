"""Signals in the driver: at once in most phases, after the step at hand while training, at once the second time."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from train.run import interrupts

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}

pytestmark = pytest.mark.middle  # processes, or seconds


@pytest.fixture(autouse=True)
def in_the_foreground() -> Iterator[None]:
    """A shell starts what runs in the background with SIGINT ignored, nohup with SIGHUP: not in these tests."""
    before = {one: signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGHUP)}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.parametrize("one", CODES)
def test_outside_training_a_signal_ends_at_once(one: signal.Signals) -> None:
    with pytest.raises(interrupts.Interrupted) as stopped, interrupts.heard():
        signal.raise_signal(one)
    assert (stopped.value.code, stopped.value.name) == (CODES[one], one.name)


@pytest.mark.parametrize("one", CODES)
def test_while_training_it_asks_to_stop(one: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    with interrupts.heard() as signals, interrupts.heard() as inner:
        assert inner is signals
        with signals.patient("stopping after the step at hand, with a checkpoint") as stop:
            signal.raise_signal(one)
            assert stop.is_set()
        with pytest.raises(interrupts.Interrupted) as stopped:
            signals.check()
    assert stopped.value.code == CODES[one]
    assert f"{one.name}: stopping after the step at hand, with a checkpoint" in caplog.text


def test_handlers_come_back_and_can_be_restored() -> None:
    before = {one: signal.getsignal(one) for one in interrupts.SIGNALS}
    with interrupts.heard() as signals:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does when it starts
        interrupts.restore()
        assert signal.getsignal(signal.SIGTERM) == signals.heard
    assert {one: signal.getsignal(one) for one in interrupts.SIGNALS} == before


def test_the_second_ctrl_c_ends_the_process() -> None:
    code = """
import signal, time
from train.run import interrupts
with interrupts.heard() as signals, signals.patient("stopping"):
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)  # asked again politely: still patient
    print("patient", flush=True)
    signal.raise_signal(signal.SIGINT)
    print("never")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "patient\n")


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.heard():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
