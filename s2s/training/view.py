"""What a person sees of a training: a panel that moves, plain lines, or only what goes wrong.

The panel has the progress, the rates, the latest validation and its samples, and above it one line for every
validation. Plain lines are for files and for terminals that cannot move their cursor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from s2s.errors import printable
from s2s.progress import on_terminal, say, terminal

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Kind = Literal["auto", "live", "plain", "quiet"]
"""auto: live on a terminal that can show it, plain elsewhere."""


class Sample(NamedTuple):
    """A sentence of the validation set, as the model translates it."""

    source: str
    reference: str
    translation: str

    def lines(self) -> list[str]:
        """One line for each, with its name."""
        return [f"{name:<11} {text}" for name, text in self._asdict().items()]


class Step(NamedTuple):
    """One update."""

    update: int
    epoch: int
    """From 1."""
    loss: float
    nll: float
    tokens_per_second: float
    lr: float
    gradient: float

    def rates(self) -> str:
        """Loss, perplexity and speed."""
        perplexity = math.exp(min(self.nll, 50))
        return f"loss {self.loss:.3f}  ppl {perplexity:.2f}  {self.tokens_per_second:,.0f} tokens/s"

    def steering(self) -> str:
        """Learning rate and norm of the gradient."""
        return f"lr {self.lr:.2e}  gradient {self.gradient:.2f}"


class Measured(NamedTuple):
    """One validation."""

    update: int
    scores: dict[str, float]
    better: bool
    """Whether it is the best so far."""
    seconds: float
    samples: Sequence[Sample]

    def line(self) -> str:
        """All but the samples."""
        scores = "  ".join(f"{name} {number:.2f}" for name, number in self.scores.items())
        best = "  (best)" if self.better else ""
        return f"validation at update {self.update}: {scores}{best}  [{self.seconds:.0f} s]"


class View(ABC):
    """Shows a training. A context: what moves, moves inside it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(  # noqa: B027 - nothing moves unless a view says so
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    @abstractmethod
    def step(self, step: Step) -> None:
        """An update is done."""

    @abstractmethod
    def measured(self, measured: Measured) -> None:
        """A validation is done."""


def view_of(kind: Kind, total: int, every: int) -> View:
    """The view of a training of ``total`` updates; plain lines come every ``every`` updates.

    Quiet has no view of its own: plain lines are not shown inside of `s2s.progress.silent`.
    """
    if kind == "live" or (kind == "auto" and on_terminal()):
        return LiveView(total, terminal())
    return PlainView(every)


class PlainView(View):
    """Lines on standard error."""

    def __init__(self, every: int) -> None:
        self.every = every

    def step(self, step: Step) -> None:
        """See `View`."""
        if step.update % self.every == 0:
            say(f"update {step.update}  epoch {step.epoch}  {step.rates()}  {step.steering()}")

    def measured(self, measured: Measured) -> None:
        """See `View`."""
        say(measured.line())
        for sample in measured.samples:
            for line in sample.lines():
                say(f"    {line}")


class LiveView(View):
    """A panel at the foot of a terminal."""

    def __init__(self, total: int, console: Console) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task("training", total=total)
        self._console = console
        self._step: Step | None = None
        self._measured: Measured | None = None
        self._live = Live(get_renderable=self.panel, console=console, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        # rich hides the cursor; a process that is killed could not bring it back.
        self._console.show_cursor(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def step(self, step: Step) -> None:
        """See `View`."""
        self._step = step
        self._bar.update(self._task, completed=step.update)

    def measured(self, measured: Measured) -> None:
        """See `View`."""
        self._measured = measured
        self._console.print(printable(measured.line()), markup=False, highlight=False, soft_wrap=True)

    def panel(self) -> RenderableType:
        """What stands at the foot now; lines that are too long for the terminal are cut."""
        from rich.console import Group
        from rich.text import Text

        lines: list[str] = []
        if self._step is not None:
            lines += [f"epoch {self._step.epoch}  {self._step.rates()}  {self._step.steering()}"]
        if self._measured is not None:
            lines += ["", f"at update {self._measured.update}:"]
            lines += [line for sample in self._measured.samples for line in sample.lines()]
        return Group(self._bar, *(Text(printable(line), no_wrap=True, overflow="ellipsis") for line in lines))
