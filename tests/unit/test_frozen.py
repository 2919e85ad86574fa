"""Which parameters the parts of a model have that are to stay as they begin; a shared matrix has several names."""

from __future__ import annotations

from typing import Any

import pytest

from s2s.config import AnyDecoder, AnyEncoder
from s2s.errors import ConfigError
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.training.trainer import frozen

STACK = {"kind": "transformer", "size": 8, "layers": 1, "heads": 2, "feedforward": 12}


def model_of(tie: str) -> Seq2Seq:
    page: dict[str, Any] = {"embedding": 8, "tie": tie, "encoder": STACK, "decoder": STACK, "document": {"heads": 2}}
    return ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(9, 9)


@pytest.mark.parametrize("tie", ["none", "output", "all"])
@pytest.mark.parametrize("part", ["encoder", "decoder", "decoder.output", "decoder.input.embedding"])
def test_a_part_has_all_its_parameters_whoever_shares_them(tie: str, part: str) -> None:
    model = model_of(tie)
    own = {id(parameter) for parameter in model.get_submodule(part).parameters()}
    found = frozen(model, [part])
    assert {id(parameter) for parameter in found} == own and len(found) == len(own)


def test_nothing_is_left_where_all_is_named_under_any_name() -> None:
    model = model_of("all")
    with pytest.raises(ConfigError, match="nothing is left to learn"):
        frozen(model, ["encoder", "decoder", "document"])
    assert {id(one) for one in frozen(model, ["encoder", "decoder", "decoder.output.weight"])} == {
        id(one) for side in (model.encoder, model.decoder) for one in side.parameters()
    }
