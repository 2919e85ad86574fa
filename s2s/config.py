"""The whole YAML on one page: every section, and every kind that can be chosen in it.

This is the only place that knows all kinds. `load` reads a file, checks it and gives a `Config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BeforeValidator, Field, model_validator

from s2s import configfile
from s2s.attention.coverage import CoverageSettings
from s2s.attention.estimators import ReinforceSettings
from s2s.attention.global_ import GlobalSettings
from s2s.attention.hard import HardSettings
from s2s.attention.hmm import HMMSettings
from s2s.attention.latent import LatentSettings
from s2s.attention.local import LocalMonotonicSettings, LocalPredictiveSettings
from s2s.attention.location_aware import LocationAwareSettings
from s2s.attention.logistics import LogisticsSettings
from s2s.attention.monotonic import MochaSettings, MonotonicSettings
from s2s.attention.none import NoneSettings
from s2s.attention.posterior import PosteriorSettings
from s2s.attention.variational import VariationalSettings
from s2s.configfile import FilePath
from s2s.data.batches import BatchSettings
from s2s.data.prepare import DataSettings
from s2s.data.tokenizer import SentencePieceSettings, WhitespaceSettings
from s2s.errors import ConfigError
from s2s.models.conv import ConvDecoderSettings, ConvEncoderSettings, ConvStackSettings
from s2s.models.decoder_only import DecoderOnlySettings, EmbeddingEncoderSettings
from s2s.models.rnn_decoder import RNNDecoderSettings
from s2s.models.rnn_encoder import RNNEncoderSettings
from s2s.models.seq2seq import ModelSettings
from s2s.models.transformer import StackSettings, TransformerDecoderSettings, TransformerEncoderSettings
from s2s.search.beam import SearchSettings
from s2s.settings import AttentionSettings, MayChange, Settings
from s2s.training.objective import ObjectiveSettings
from s2s.training.optimizer import Adam, AnyOptimizer, Plateau
from s2s.training.trainer import TrainingSettings, frozen

_RECIPES = {
    "bahdanau": "wiring: bahdanau and attention: {kind: global, score: additive}",
    "luong": "wiring: luong and attention: {kind: global, score: general}",
    "none": "attention: {kind: none}",
    "soft": "attention: {kind: global}",
    "multi-head": "heads: 4 of the decoder, beside attention: {kind: global}",
    **{
        normaliser: f"attention: {{kind: global, normaliser: {normaliser}}}" for normaliser in ("sparsemax", "entmax15")
    },
    **{
        score: f"attention: {{kind: global, score: {score}}}"
        for score in ("dot", "general", "additive", "concat", "location", "cosine")
    },
}


def _recipe(value: Any) -> Any:
    """A bare name, or one that is no kind, is answered with the keys that it stands for."""
    if isinstance(value, str):
        keys = _RECIPES.get(value.lower())
        raise ValueError(f"is a mapping with a kind, not the name {value!r}" + (f"; write {keys}" if keys else ""))
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "none" and kind in _RECIPES:
        raise ValueError(f"kind: {kind} is not one of the kinds; write {_RECIPES[kind]}")
    return value


_Mechanism = (
    GlobalSettings
    | LocalMonotonicSettings
    | LocalPredictiveSettings
    | NoneSettings
    | MonotonicSettings
    | MochaSettings
    | LocationAwareSettings
    | HardSettings
    | LatentSettings
    | PosteriorSettings
    | HMMSettings
    | VariationalSettings
    | LogisticsSettings
)
"""Every kind but the wrappers, which can stand round any of them that they do not refuse."""
_Inner = Annotated[Annotated[_Mechanism, Field(discriminator="kind")], BeforeValidator(_recipe)]
AnyAttention = Annotated[
    Annotated[_Mechanism | CoverageSettings[_Inner], Field(discriminator="kind")], BeforeValidator(_recipe)
]
AnyEncoder = Annotated[
    RNNEncoderSettings | TransformerEncoderSettings | ConvEncoderSettings | EmbeddingEncoderSettings,
    Field(discriminator="kind"),
]
AnyDecoder = Annotated[
    RNNDecoderSettings[AnyAttention]
    | TransformerDecoderSettings[AnyAttention]
    | ConvDecoderSettings
    | DecoderOnlySettings,
    Field(discriminator="kind"),
]
AnyTokenizer = Annotated[SentencePieceSettings | WhitespaceSettings, Field(discriminator="kind")]


class Config(Settings):
    """Everything that a training is made of."""

    data: DataSettings
    """The texts to learn from and to measure on."""
    tokenizer: AnyTokenizer = SentencePieceSettings(kind="sentencepiece")
    """How text is cut into pieces."""
    batches: BatchSettings = BatchSettings()
    """How pairs are put together."""
    model: ModelSettings[AnyEncoder, AnyDecoder]
    """The network."""
    objective: ObjectiveSettings = ObjectiveSettings()
    """What training minimises."""
    optimizer: AnyOptimizer = Adam(kind="adam")
    """How gradients become updates."""
    training: TrainingSettings = TrainingSettings()
    """The loop."""
    search: Annotated[SearchSettings, MayChange(scores=True, decides=True)] = SearchSettings()
    """How translations are searched for, in validation and by `s2s translate`."""
    init_from: Annotated[FilePath | None, MayChange(contents=True)] = None
    """A run to start from: its vocabularies, and its best weights wherever name and shape agree; the rest starts
    afresh. So a soft attention can become a hard or a sparse one."""
    init_like: Annotated[FilePath | None, MayChange(decides=True)] = None
    """Settings of another model: every matrix of the same name and shape in a part of the same kind begins with the
    value that it would begin with there, under this seed. So `s2s compare` lets recipes start alike."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Fixes the first weights, the order of the data and every draw."""

    @property
    def runs_before(self) -> dict[str, Path]:
        """The runs that a training begins from (``init_from``) and learns from (``teacher``), where there are any."""
        teacher = self.objective.teacher
        named = {"init_from": self.init_from, "teacher": None if teacher is None else teacher.run}
        return {setting: Path(run) for setting, run in named.items() if run is not None}

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.data.valid is None:
            if self.training.stop_on in ("bleu", "chrf", "ter") and self.training.patience:
                raise ValueError(f"training.stop_on: {self.training.stop_on} needs data.valid")
            if self.training.keep_best > 1:
                raise ValueError("training.keep_best: which checkpoints are best is known by data.valid; set it, or 1")
            if self.training.patience not in (None, TrainingSettings.model_fields["patience"].default):
                raise ValueError("training.patience: it counts validations that bring nothing; set data.valid")
            if isinstance(self.optimizer.schedule, Plateau):
                raise ValueError("optimizer.schedule: plateau waits for validations to bring nothing; set data.valid")
        sides = (self.model.encoder, self.model.decoder)
        stacked = any(isinstance(part, StackSettings | ConvStackSettings) for part in sides)
        if self.training.checkpoint_activations and not stacked:
            raise ValueError(
                "training.checkpoint_activations: a recurrent layer needs all of its steps at once in the backward "
                "pass, so computing them again saves nothing; use it with kind: transformer, decoder-only or conv"
            )
        if self.training.compile and not any(isinstance(part, StackSettings) for part in sides):
            raise ValueError(
                "training.compile: what is compiled are the feed-forward parts of a Transformer's layers; the steps of "
                "a recurrent layer are one call already, or a loop that would be compiled for every length anew; use "
                "it with kind: transformer or decoder-only"
            )
        if self.objective.guided is not None:
            if all(files.links is None for files in self.data.corpora):
                raise ValueError("objective.guided: there are no word links to learn from; set data.train.links")
            if isinstance(getattr(self.model.decoder, "attention", None), NoneSettings):
                raise ValueError("objective.guided: attention of kind: none has no weights that could be guided")
        if self.search.coverage_penalty and isinstance(getattr(self.model.decoder, "attention", None), NoneSettings):
            raise ValueError("search.coverage_penalty: attention of kind: none has no weights to count; set it to 0")
        if self.model.document is not None and _reads_last_states_alone(self.model.decoder):
            raise ValueError(
                "model.document: attention of kind: none never reads what the sentences before change, which the "
                "encoder's last states are not; set document to null, choose another attention, or start: mean"
            )
        if reason := _against(self.objective, getattr(self.model.decoder, "attention", None)):
            raise ValueError(reason)
        return self


def _reads_last_states_alone(decoder: AnyDecoder) -> bool:
    """Whether the encoder's last states are all that a decoder knows of a source, if it knows anything."""
    return (
        isinstance(decoder, RNNDecoderSettings)
        and isinstance(decoder.attention, NoneSettings)
        and decoder.start != "mean"
    )


def _against(objective: ObjectiveSettings, attention: AttentionSettings | None) -> str | None:
    """Why an attention that learns by a bound cannot learn from an objective; None where it can."""
    inner: Any = getattr(attention, "inner", attention)
    if objective.minimum_risk is not None and isinstance(inner, HardSettings | VariationalSettings):
        return (
            f"objective.minimum_risk: attention {inner.kind} learns by a bound, and training never knows how likely a "
            "whole translation is, which risk is weighed by; choose another attention"
        )
    if objective.over_words is not None and attention is not None and attention.bound:
        return (
            f"objective.{objective.over_words}: attention {inner.kind} learns by {attention.bound} of the right words' "
            "likelihood; what training reads is not the distribution over all words that it translates with, which "
            "this needs"
        )
    by_reward = isinstance(inner, HardSettings) and isinstance(inner.estimator, ReinforceSettings)
    if by_reward and objective.over_words in ("teacher", "r_drop"):
        return (
            f"objective.{objective.over_words}: estimator: reinforce rewards the choice of a position with the right "
            "word's likelihood alone; what this adds to the loss follows from the choice too, and the scores would "
            "never be told; choose another estimator"
        )
    return None


def may_change(key: str) -> MayChange | None:
    """How a setting, by its dotted key, may change when a run goes on; None where it may not."""
    return configfile.mark_of(Config, key, MayChange)


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The checked settings of a YAML file with ``key.path=value`` overrides. Raises ConfigError with every mistake."""
    return configfile.validate(configfile.load(path, overrides), Config)


def check_parts(config: Config) -> None:
    """Raises ConfigError where parts of the model do not fit each other, or ``training.frozen`` names none.

    Builds the model without memory for it, so that this is known before any text is read.
    """
    size = 100
    try:
        with torch.device("meta"):
            model = config.model.build(size, size if config.tokenizer.joint else size + 1)
    except ValueError as error:
        raise ConfigError("model", error) from error
    frozen(model, config.training.frozen)


def save_text(config: Config) -> str:
    """The resolved settings as YAML that `load` reads back to the same."""
    return configfile.dump(config.model_dump(mode="json"))
