"""What a client may ask for, read strictly and within limits; everything else is refused with a status of HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

from s2s.search.beam import SearchSettings
from s2s.settings import Settings
from s2s.strictjson import strict_json, whole

BODY = 1 << 20
"""The most bytes of a request's body."""
SENTENCES = 128
"""The most sentences of a request."""
TOKENS = 512
"""The most pieces of a sentence, as the model's vocabulary cuts it."""
BEAM = 16
"""The largest beam, and the most translations of a sentence."""

_TOLD = 10
"""Mistakes that one answer names."""
_LONGEST = 80
"""Characters of a name of the client's that an answer repeats."""


class Refused(Exception):
    """A request that is not served: the ``status`` of HTTP, and what is wrong, one ``WHERE: WHAT; WHAT TO DO`` each."""

    def __init__(self, status: int, *problems: str, retry: bool = False) -> None:
        """``retry``: the same request may be served a little later."""
        super().__init__(status, *problems)
        self.status, self.problems, self.retry = status, problems, retry


class Asked(Settings):
    """The body of a request to translate; what is left out is as in the run's own settings of search."""

    sentences: list[Annotated[str, AfterValidator(whole)]] = Field(min_length=1, max_length=SENTENCES)
    """What to translate."""
    model: str | None = None
    """A name of `GET /api/models`; by default the first."""
    beam: int | None = Field(None, ge=1, le=BEAM)
    """search.beam"""
    length_penalty: str | None = None
    """search.length_penalty"""
    length_alpha: float | None = None
    """search.length_alpha"""
    n_best: int = Field(1, ge=1, le=BEAM)
    """Translations of each sentence, best first; at most ``beam``, but for a model that samples."""
    attention: bool = False
    """Draw what each translation attended to."""

    def search(self, own: SearchSettings) -> SearchSettings:
        """The run's ``own`` settings with what is asked over them. Raises Refused where they do not go together."""
        asked = self.model_dump(include={"beam", "length_penalty", "length_alpha"}, exclude_none=True)
        try:
            settings = SearchSettings.model_validate(own.model_dump() | asked)
        except ValidationError as error:
            raise Refused(422, *_problems(error)) from None
        if self.n_best > settings.beam and settings.sampling is None:
            raise Refused(422, f"n_best: {self.n_best} is more than the beam, {settings.beam}; ask for a larger beam")
        return settings


def read(body: bytes) -> Asked:
    """The request in ``body``. Raises Refused, 400 for what is not JSON, 422 for what asks for something else."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        what = f"body: byte {error.start + 1}, 0x{body[error.start]:02x}, is not UTF-8; send JSON in UTF-8"
        raise Refused(400, what) from None
    try:
        value = strict_json(text)
    except ValueError as error:
        raise Refused(400, f"body: is not JSON: {error}; send one object") from None
    if isinstance(value, dict):  # a hundred thousand strange names need not all be complained of
        strange = islice((name for name in value if name not in Asked.model_fields), _TOLD)
        value = {name: value[name] for name in (*Asked.model_fields, *strange) if name in value}
    try:
        return Asked.model_validate(value)
    except ValidationError as error:
        raise Refused(422, *_problems(error)) from None


def check_lengths(counts: Sequence[int]) -> None:
    """Raises Refused where one of the numbers of pieces of the sentences is over the limit."""
    long = [f"sentences.{index}: has {count} tokens, at most {TOKENS} are translated; cut it into sentences"
            for index, count in enumerate(counts) if count > TOKENS]  # fmt: skip
    if long:
        raise Refused(422, *long[:_TOLD])


def _problems(error: ValidationError) -> list[str]:
    """The first mistakes, by the name of the field; never the value that the client sent."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[:_TOLD]
    return [f"{_where(one['loc'])}: {one['msg'].removeprefix('Value error, ')}" for one in found]


def _where(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part)[:_LONGEST] for part in location) or "body"
