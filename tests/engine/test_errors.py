"""The sentence of a user's mistake, and its way through other processes and to the screen."""

import pickle
from pathlib import Path

import pytest

from engine.commandline import MISTAKE, guarded
from engine.errors import NotFinite, UserError


def test_a_user_error_says_what_got_allowed_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UserError("k-mer length", 9, "1..8")))
    assert isinstance(error, UserError) and isinstance(error, ValueError)
    assert str(error) == "k-mer length: got 9, allowed: 1..8"
    assert (error.what, error.got, error.allowed) == ("k-mer length", 9, "1..8")


def test_not_finite_is_no_mistake_of_the_user() -> None:
    assert isinstance(NotFinite("loss is nan"), FloatingPointError) and not isinstance(NotFinite(), ValueError)
    with pytest.raises(NotFinite):
        guarded(lambda: (_ for _ in ()).throw(NotFinite("loss is nan")))


def test_a_command_ends_with_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise UserError("file", "a\nb", "c")

    assert guarded(command) == MISTAKE
    assert capsys.readouterr().err == "error: file: got a b, allowed: c\n"
    assert guarded(lambda: len(Path("/nowhere/at/all").read_text())) == MISTAKE
    assert capsys.readouterr().err.startswith("error: file: got /nowhere/at/all (No such file or directory), allowed: ")
