"""The desk: requests wait at it, one thread translates them, and those that wait together go together.

Requests that want the same of the same model are translated in one batch. What a sentence becomes does not depend on
the others in it, so an answer is the one that `s2s translate` gives. A model that samples draws by the number of the
line, so its requests go one by one.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

from s2s.analysis.heatmap import heat_map_svg
from s2s.commands.translate import word_attention
from s2s.data.text import normalise
from s2s.run import Trained
from s2s.search.beam import SearchSettings
from s2s.search.formats import lines_of
from s2s.search.translate import Candidate, Line, Translation, Translator
from s2s.serve.asked import Refused, check_lengths

_SQUARES = 5000
"""Squares of all the pictures in an answer together, some 200 bytes each."""
_DRAWN_TOGETHER = 8
"""Sentences that are translated together where attention is kept, which may be megabytes for each."""


class Offered:
    """A model that is served."""

    def __init__(self, name: str, trained: Trained, search: SearchSettings, has_attention: bool) -> None:
        self.name, self.trained, self.search, self.has_attention = name, trained, search, has_attention
        self.device = next(trained.model.parameters()).device

    def lines(self, sentences: Sequence[str]) -> list[str]:
        """The sentences as the model reads them. Raises Refused for one that is too long."""
        lines = [normalise(sentence)[0] for sentence in sentences]
        check_lengths([len(self.trained.tokenizers.source.encode(line)) for line in lines])
        return lines

    def facts(self) -> dict[str, Any]:
        """What a client may know of it."""
        return {
            "name": self.name,
            "update": self.trained.update,
            "parameters": sum(parameter.numel() for parameter in self.trained.model.parameters()),
            "attention": self.has_attention,
            "search": self.search.model_dump(include={"beam", "length_penalty", "length_alpha"}),
        }


class Way(NamedTuple):
    """How to translate; what is equal goes together."""

    model: Offered
    search: SearchSettings
    n_best: int
    attention: bool


class Job:
    """Lines to translate, and the answer to come: an object for each of them."""

    def __init__(self, way: Way, lines: Sequence[str]) -> None:
        self.way, self.lines = way, lines
        self.answer: Future[list[dict[str, Any]]] = Future()
        self.wanted = True
        """Whether somebody waits for the answer."""


class _Left(Exception):
    """Nobody waits for what is being translated."""


class Desk:
    """Where jobs wait. `work` is for one thread, everything else for any."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._working: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False

    def bring(self, job: Job) -> None:
        """Let a job wait for its turn. Raises Refused when the desk is closed."""
        with self._changed:
            if self._closed:
                raise _closing()
            self._waiting.append(job)
            self._changed.notify()

    def leave(self, job: Job) -> None:
        """Nobody waits for this job any more, or it is done: it need not be begun, or finished if it is alone."""
        with self._changed:
            job.wanted = False
            with suppress(ValueError):  # it is being done
                self._waiting.remove(job)

    def close(self) -> None:
        """Take no more, and tell those who wait; `work` returns when the batch in hand is finished."""
        with self._changed:
            self._closed = True
            left = [*self._waiting, *self._working]
            self._waiting.clear()
            self._changed.notify()
        for job in left:
            _fail(job, _closing())

    def work(self) -> None:
        """Translate what is brought until the desk is closed."""
        while jobs := self._next():
            self._translate_or_part(jobs)

    def _next(self) -> list[Job]:
        """The job that has waited longest and all that can go with it; none when the desk is closed."""
        with self._changed:
            self._working = []  # their answers may be megabytes, and nobody needs them here
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            first = self._waiting.popleft()
            self._working = [first]
            if first.way.search.sampling is None:
                self._working += [job for job in self._waiting if job.way == first.way]
                self._waiting = deque(job for job in self._waiting if job.way != first.way)
            return self._working

    def _translate_or_part(self, jobs: list[Job]) -> None:
        """Translate jobs together; where that fails one by one, so that none suffers from another."""
        try:
            self._translate(jobs)
        except _Left:
            return
        except Exception as error:
            if len(jobs) == 1:
                _fail(jobs[0], error)
                return
            for job in jobs:
                if not job.answer.done():
                    self._translate_or_part([job])

    def _translate(self, jobs: Sequence[Job]) -> None:
        way = jobs[0].way
        trained = way.model.trained
        translator = Translator(
            trained.model, trained.tokenizers, way.search, way.model.device, n_best=way.n_best, attention=way.attention
        )

        def check() -> None:
            if self._closed or not any(job.wanted for job in jobs if not job.answer.done()):
                raise _Left

        lines = (Line(line, begins=number == 0) for job in jobs for number, line in enumerate(job.lines))
        found = translator.translate(lines, window=_DRAWN_TOGETHER if way.attention else None, check=check)
        for job in jobs:
            answer = list(_described(islice(found, len(job.lines)), way))
            with suppress(InvalidStateError):  # told meanwhile that the desk is closed
                job.answer.set_result(answer)


def _fail(job: Job, error: Exception) -> None:
    with suppress(InvalidStateError):  # the other side was quicker
        job.answer.set_exception(error)


def _closing() -> Refused:
    return Refused(503, "the server is stopping; ask again when it is back", retry=True)


def _described(found: Iterator[Translation], way: Way) -> Iterator[dict[str, Any]]:
    """What `s2s translate --format jsonl` writes for each translation, and the pictures that there is room for."""
    room = _SQUARES
    for number, one in enumerate(found, start=1):
        (line,) = lines_of(one._replace(number=number), "jsonl")  # counted in the request, not in the batch
        described: dict[str, Any] = json.loads(line)
        if way.attention:
            for hypothesis, candidate in zip(described["hypotheses"], one.candidates, strict=True):
                hypothesis["attention"], taken = _picture(candidate, way.model.trained, room)
                room -= taken
        yield described


def _picture(candidate: Candidate, trained: Trained, room: int) -> tuple[str | None, int]:
    """What a translation attended to as an SVG picture, and its number of squares; None where there is none to draw."""
    if len(candidate.parts) != 1 or candidate.parts[0].hypothesis.attention is None:
        return None, 0
    weights, source, target = word_attention(candidate.parts[0], trained.tokenizers)
    if not 0 < weights.size <= room:
        return None, 0
    return heat_map_svg(weights, source, target, title=candidate.text), weights.size
