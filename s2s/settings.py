"""The strict base of every setting, and the empty kinds that parts of a model are chosen from.

A setting is declared once, as a typed field with a docstring, in the file of the code that obeys it. A part that
can be chosen (an attention, an encoder, ...) derives from its kind below, has ``kind: Literal["name"]`` and a
``build`` method; `s2s.config` closes the set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Strict, frozen, closed to unknown keys; attribute docstrings are the descriptions users read."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )


@dataclass(frozen=True)
class MayChange:
    """Marks a setting, or a whole section, that may have another value when a run goes on; others may not."""

    exact: bool = True
    """Whether its updates are then, to the bit, what they would have been."""
    contents: bool = False
    """Whether it names texts or runs whose contents are compared instead: they may have been moved."""
    scores: bool = False
    """Whether validation is scored in another way from then on."""
    decides: bool = False
    """Whether it decides what the run ends with: in a comparison another value is another training."""

    def __str__(self) -> str:
        if self.contents:
            return "May name another place when a run goes on."
        text = "May change when a run goes on"
        if self.scores:
            return f"{text}; scores of validation before and after are then not comparable."
        return f"{text}{'' if self.exact else ', which is then no longer the same to the bit'}."


def by_name(value: Any) -> Any:
    """A bare name in the place of a mapping: that kind, with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


class AttentionSettings(Settings):
    """A mechanism of attention; ``build(query_size, memory_size)`` gives an `s2s.interfaces.Attention`."""

    @property
    def reads_final(self) -> bool:
        """Whether the encoder's last states are needed."""
        return False

    @property
    def bound(self) -> str | None:
        """The bound of the right words' likelihood that training climbs, reading them by another distribution than
        search does; None where both read by the same."""
        return None

    def refusal(self, wiring: str, input_feeding: bool) -> str | None:
        """Why this mechanism cannot be used under a wiring of the decoder; None where it can."""
        return None

    def refusal_as_head(self) -> str | None:
        """Why this mechanism cannot stand in the heads of a Transformer; None where it can.

        It can where its weights depend on the queries and the source alone: all heads of a layer attend at all target
        positions at once, and nothing of a layer reaches the readout but its context.
        """
        kind: str = self.kind  # type: ignore[attr-defined]
        return f"attention {kind} is made for recurrent decoders and does not say that it could stand in heads"


class EncoderSettings(Settings):
    """An encoder; ``build(embedding, dropout, cells)`` gives an `s2s.interfaces.Encoder`."""


class DecoderSettings(Settings):
    """A decoder; ``build(embedding, encoder, dropout, tied)`` gives an `s2s.interfaces.Decoder`."""


class TokenizerSettings(Settings):
    """A way to cut text into pieces."""


class OptimizerSettings(Settings):
    """A rule that turns gradients into updates."""


class ScheduleSettings(Settings):
    """The learning rate as a function of the update number."""
