"""Scores: how well a query fits each source position, before any normalising.

    dot        e_j = h . h_j                                          Luong et al. 2015, section 3.1
    general    e_j = h . W h_j                                        the same
    additive   e_j = v . tanh(W h + U h_j)                            Bahdanau et al. 2015, appendix A.1.2
    location   e   = W h, one row of W for each source position       Luong et al. 2015, section 3.1
    cosine     e_j = beta h . h_j / (|h| |h_j|), beta > 0 learned     Graves et al. 2014, section 3.3.1

Here h is the query (B, T, H) and h_j a row of the memory (B, S, M). Luong's "concat", v . tanh(W [h; h_j]), is the
additive score with W cut in two.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from s2s.attention.normalise import wide
from s2s.products import Linear, by_rows
from s2s.settings import Settings, by_name


class Score(nn.Module, ABC):
    """One score function."""

    @abstractmethod
    def keys(self, values: Tensor) -> Tensor:
        """What is computed once per sentence from the memory values (B, S, M)."""

    @abstractmethod
    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Unmasked scores (B, T, S) of queries (B, T, H)."""


class Dot(Score):
    """e_j = h . h_j; where H and M differ the memory is first projected to the query's width."""

    def __init__(self, query_size: int, memory_size: int, scaled: bool) -> None:
        super().__init__()
        self.project = None if query_size == memory_size else Linear(memory_size, query_size, bias=False)
        self.scale = nn.Parameter(torch.ones(())) if scaled else None

    def keys(self, values: Tensor) -> Tensor:
        return values if self.project is None else self.project(values)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        scores = by_rows(query, keys)  # (B, T, S)
        return scores if self.scale is None else scores * self.scale


class General(Score):
    """e_j = h . W h_j, W (H, M) without bias."""

    def __init__(self, query_size: int, memory_size: int, scaled: bool) -> None:
        super().__init__()
        self.project = Linear(memory_size, query_size, bias=False)
        self.scale = nn.Parameter(torch.ones(())) if scaled else None

    def keys(self, values: Tensor) -> Tensor:
        keys: Tensor = self.project(values)
        return keys

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        scores = by_rows(query, keys)  # (B, T, S)
        return scores if self.scale is None else scores * self.scale


class Additive(Score):
    """e_j = v . tanh(W h + U h_j); normed: v is g v / |v| and a bias joins inside the tanh (as TensorFlow's does)."""

    def __init__(self, query_size: int, memory_size: int, size: int, normed: bool, identity_source: bool) -> None:
        super().__init__()
        if identity_source and size != memory_size:
            raise ValueError(f"identity_source needs size {memory_size}, the width of the memory, not {size}")
        self.query = Linear(query_size, size, bias=False)
        self.source = None if identity_source else Linear(memory_size, size, bias=False)
        self.vector = nn.Parameter(torch.empty(size).uniform_(-1, 1) * math.sqrt(3.0 / size))
        self.gain = nn.Parameter(torch.tensor(math.sqrt(1.0 / size))) if normed else None
        self.bias = nn.Parameter(torch.zeros(size)) if normed else None

    def keys(self, values: Tensor) -> Tensor:
        return values if self.source is None else self.source(values)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        projected = self.query(query)
        if self.bias is not None:
            projected = projected + self.bias
        vector = self.vector if self.gain is None else self.gain * self.vector / self.vector.norm()
        inside = torch.tanh(projected.unsqueeze(2) + keys.unsqueeze(1))  # (B, T, S, A)
        return inside @ vector.to(inside.dtype)  # (B, T, S)


class Location(Score):
    """e = W h: a row of W (max_length, H) for each source position, so the words themselves are not looked at.

    Positions past ``max_length`` score -inf and get no weight (footnote 6 of the paper).
    """

    def __init__(self, query_size: int, max_length: int) -> None:
        super().__init__()
        self.rows = Linear(query_size, max_length, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        return values[..., :0]  # only its length S is needed

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        positions = keys.size(1)
        scores: Tensor = self.rows(query)[..., :positions]
        missing = positions - scores.size(-1)
        return scores if missing <= 0 else nn.functional.pad(scores, (0, missing), value=-torch.inf)


def _direction(vectors: Tensor) -> Tensor:
    """Vectors (..., H) at length one, computed in float32 or wider; zero, as in the padding, stays zero."""
    return nn.functional.normalize(wide(vectors), dim=-1, eps=1e-6)


class Cosine(Score):
    """e_j = beta cos(h, h_j) with a learned beta = exp(b); where H and M differ the memory is first projected.

    Content-based addressing of Graves et al. 2014, section 3.3.1; there the controller gives a beta for each step, here
    one is learned. Only directions matter, so a score lies between -beta and beta.
    """

    def __init__(self, query_size: int, memory_size: int, sharpness: float) -> None:
        super().__init__()
        self.project = None if query_size == memory_size else Linear(memory_size, query_size, bias=False)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness)))

    def keys(self, values: Tensor) -> Tensor:
        projected: Tensor = values if self.project is None else self.project(values)
        return _direction(projected).to(projected.dtype)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        cosines = by_rows(_direction(query), keys)  # (B, T, S)
        return wide(cosines) * self.log_sharpness.exp()


class DotSettings(Settings):
    """Luong's dot score: no parameters where decoder and memory have one width."""

    kind: Literal["dot"]
    scaled: bool = False
    """Multiply by a learned scalar that starts at 1."""

    def build(self, query_size: int, memory_size: int) -> Score:
        return Dot(query_size, memory_size, self.scaled)


class GeneralSettings(Settings):
    """Luong's general score: a learned matrix between query and memory."""

    kind: Literal["general"]
    scaled: bool = False
    """Multiply by a learned scalar that starts at 1."""

    def build(self, query_size: int, memory_size: int) -> Score:
        return General(query_size, memory_size, self.scaled)


class AdditiveSettings(Settings):
    """Bahdanau's additive score, which Luong calls concat: a one-layer network over query and memory."""

    kind: Literal["additive", "concat"]
    size: Annotated[int, Field(ge=1)] | None = None
    """Width of the layer inside; by default the query's (the memory's with identity_source)."""
    normed: bool = False
    """Learn the length of v apart from its direction, and add a bias inside the tanh."""
    identity_source: bool = False
    """Leave out U, as the released code of Luong et al. does for concat; the memory is added as it is."""

    def build(self, query_size: int, memory_size: int) -> Score:
        size = self.size or (memory_size if self.identity_source else query_size)
        return Additive(query_size, memory_size, size, self.normed, self.identity_source)


class LocationSettings(Settings):
    """Luong's location score: weights from the decoder's state alone."""

    kind: Literal["location"]
    max_length: Annotated[int, Field(ge=1)]
    """Source positions that can be read; later ones get no weight."""

    def build(self, query_size: int, memory_size: int) -> Score:
        return Location(query_size, self.max_length)


class CosineSettings(Settings):
    """The cosine of the angle between query and memory, times a learned sharpness (content-based, Graves 2014)."""

    kind: Literal["cosine"]
    sharpness: Annotated[float, Field(gt=0.0)] = 10.0
    """The factor that learning starts from; it stays positive."""

    def build(self, query_size: int, memory_size: int) -> Score:
        return Cosine(query_size, memory_size, self.sharpness)


AnyScore = Annotated[
    Annotated[
        DotSettings | GeneralSettings | AdditiveSettings | LocationSettings | CosineSettings,
        Field(discriminator="kind"),
    ],
    BeforeValidator(by_name),
]
"""A score's name, or a mapping with its ``kind`` and options."""
