"""The pictures hold every trial at its place."""

from train.config import Config
from tune import plots, spaces
from tune.ledger import Entry
from tune.spaces import defaults, find

PAIR = find("pair", Config())


def trials() -> list[Entry]:
    values = [defaults(PAIR, Config())]
    values += [{"loss.hierarchy_weight": weight, "loss.temperature": 0.01} for weight in (0.0, 1.0, 0.1)]
    states = ("finished", "finished", "stopped", "finished")
    return [
        Entry(
            number, one, 0, state=state, history=[(3, 0.4 + number / 100), (9, 0.5)][: 2 if state == "finished" else 1]
        )
        for number, (one, state) in enumerate(zip(values, states, strict=True))
    ]


def test_a_line_for_every_trial_and_grey_ones_end_before_the_score() -> None:
    figure = plots.parallel_coordinates(PAIR, trials())
    (axes,) = figure.axes
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) > 2 or line.get_color() == plots.STOPPED]
    lengths = sorted(len(line.get_xdata()) for line in lines)
    assert lengths == [2, 3, 3, 3]
    assert [line.get_linestyle() for line in lines].count("--") == 1
    assert "3 trials to the end, 1 stopped early" in axes.get_title(loc="left")


def test_the_surface_marks_every_trial_where_it_lies() -> None:
    figure = plots.surface(PAIR, trials(), winner=3)
    assert figure is not None
    lines = figure.axes[0].get_lines()
    places = [line.get_xydata()[0].tolist() for line in lines]
    assert places[2] == [0.0, 1.0]  # temperature 0.01, weight 1
    assert places[0] == [PAIR["loss.temperature"].position(0.07), PAIR["loss.hierarchy_weight"].position(0.01)]
    assert [line.get_marker() for line in lines] == ["D", "o", "o", "o"]
    sizes = [line.get_markersize() for line in lines]
    assert sizes[2] < sizes[0] == sizes[1] == sizes[3]  # stopped early
    assert [line.get_markeredgewidth() > 2 for line in lines] == [False, False, False, True]  # the winner
    told = [text.get_text() for text in figure.axes[0].texts]
    assert told == ["40.0", "41.0", "42.0", "43.0"]  # after epoch 3, which all reached
    lost = Entry(4, {"loss.hierarchy_weight": 0.2, "loss.temperature": 0.02}, 0, state="failed")
    again = plots.surface(PAIR, [*trials(), lost])
    assert again is not None and again.axes[0].get_lines()[-1].get_marker() == "x"
    assert plots.surface({"loss.temperature": PAIR["loss.temperature"]}, trials()) is None


def test_choices_and_values_outside_are_drawn() -> None:
    space: spaces.Space = {"loss.learn_temperature": spaces.Choice(values=(False, True)), **PAIR}
    entries = trials()
    for entry in entries:
        entry.values = {"loss.learn_temperature": entry.number > 1, **entry.values}
    entries[0].values["loss.temperature"] = 0.5
    labels = [text.get_text() for text in plots.parallel_coordinates(space, entries).axes[0].texts]
    assert {"false", "true", "0", "1", "0.2"} <= set(labels)
    assert plots.surface(space, entries) is not None
