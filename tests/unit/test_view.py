"""What a training shows: the panel in a terminal of any width, plain lines, and nothing."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from s2s.progress import say, silent
from s2s.training.view import LiveView, Measured, PlainView, Sample, Step, View, view_of

STEP = Step(100, 3, 2.5, math.log(8), 12345.6, 1e-3, 0.75)
MEASURED = Measured(100, {"nll": 1.25, "bleu": 33.333}, True, 4.2, [Sample("a dog", "ein Hund", "ein\x1b[31m Hunt")])


def shown(view: LiveView, width: int) -> list[str]:
    """The panel in a terminal of this width, line by line."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(view.panel())
    return captured.get().splitlines()


def live() -> LiveView:
    return LiveView(200, Console(file=io.StringIO(), force_terminal=True, width=90))


def test_the_panel_fills_as_the_training_goes_on() -> None:
    view = live()
    assert len(shown(view, 90)) == 1 and "0/200" in shown(view, 90)[0]
    view.step(STEP)
    bar, rates = shown(view, 90)
    assert "100/200" in bar
    assert rates == "epoch 3  loss 2.500  ppl 8.00  12,346 tokens/s  lr 1.00e-03  gradient 0.75"
    view.measured(MEASURED)
    panel = shown(view, 90)
    assert panel[3:] == ["at update 100:", "source      a dog", "reference   ein Hund", "translation ein\\x1b[31m Hunt"]


@pytest.mark.parametrize("width", [1, 7, 40])
def test_what_is_too_long_is_cut(width: int) -> None:
    view = live()
    view.step(STEP)
    view.measured(MEASURED._replace(samples=[Sample("word " * 100, "", "")]))
    assert all(len(line) <= width for line in shown(view, width))


def test_a_validation_stays_above_the_panel_and_the_cursor_is_not_hidden() -> None:
    console = Console(file=(file := io.StringIO()), force_terminal=True, width=90)
    with LiveView(200, console) as view:
        view.step(STEP)
        view.measured(MEASURED)
        say("something")
        written = file.getvalue()
    assert "validation at update 100: nll 1.25  bleu 33.33  (best)  [4 s]" in written and "something" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainView(every=50) as view:
        view.step(STEP._replace(update=99))
        view.step(STEP)
        view.measured(MEASURED)
    assert capsys.readouterr().err.splitlines() == [
        "update 100  epoch 3  loss 2.500  ppl 8.00  12,346 tokens/s  lr 1.00e-03  gradient 0.75",
        "validation at update 100: nll 1.25  bleu 33.33  (best)  [4 s]",
        "    source      a dog",
        "    reference   ein Hund",
        "    translation ein\\x1b[31m Hunt",
    ]


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with silent(), view_of("quiet", 200, 50) as view:
        view.step(STEP)
        view.measured(MEASURED)
    assert capsys.readouterr().err == ""


def test_the_kind_that_was_asked_for() -> None:
    """Tests have no terminal, so auto is plain."""
    kinds: list[type[View]] = [type(view_of(kind, 10, 5)) for kind in ("auto", "plain", "quiet", "live")]  # type: ignore[arg-type]
    assert kinds == [PlainView, PlainView, PlainView, LiveView]
