"""Writes docs/refusals.md, the combinations that are refused and why; ``--check`` only compares.

The attentions are those of tests/contract/grid.py, also inside `coverage`, under every wiring with and without input
feeding, and in the heads of a Transformer. Each is read as settings and built; nothing but a refusal with a reason may
come of that.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError
from shared import ROOT

from s2s.config import AnyAttention, AnyDecoder, AnyEncoder
from s2s.models.seq2seq import ModelSettings

PAGE = ROOT / "docs" / "refusals.md"
sys.path.insert(0, str(ROOT / "tests" / "contract"))

from grid import BOTH_WAYS, Options, attentions, kinds, recurrent  # noqa: E402

FEEDING: dict[str, bool | None] = {"by default": None, "true": True, "false": False}
AXES = ("attention", "score", "normaliser", "wiring", "input feeding")
CHOICES = ("score", "normaliser", "filter")
INTRODUCTION = """# What is refused

Written by `python scripts/refusals.py`, which reads and builds every combination of attention, score, normaliser,
wiring and input feeding, and each of these attentions in the heads of a Transformer: {tried:,} of them, of which
{refused:,} are refused, all when the settings are read or the model is built, before any data are touched. `any` stands
for every value that the rows above, and the cells to the left, leave open; a kind without options for every example of
it.

{table}

A key that a kind does not have is refused too, as `... is not a setting`. Which of these keys each kind has:

{keys}
"""


class Combination(NamedTuple):
    """One decoder: its place on each of `AXES`, and its settings."""

    places: tuple[str, ...]
    decoder: Options


def combinations() -> Iterator[Combination]:
    """Everything that is tried."""
    inside = [options for options in attentions().values() if options["kind"] != "coverage"]
    wrapped = [{"kind": "coverage", "inner": options} for options in inside]
    wirings = get_args(kinds(AnyDecoder)["rnn"].model_fields["wiring"].annotation)
    for attention in [*inside, *wrapped]:
        stack = {"kind": "transformer", "layers": 1, "size": 6, "heads": 2, "attention": attention}
        yield Combination((*_of_attention(attention), "heads of a Transformer", "by default"), stack)
    for attention, wiring, feeding in itertools.product([*inside, *wrapped], wirings, FEEDING):
        decoder = {"wiring": wiring, "input_feeding": FEEDING[feeding], "attention": attention}
        decoder["layers"] = 2 if wiring == "gnmt" else 1  # gnmt is about several
        yield Combination((*_of_attention(attention), wiring, feeding), recurrent("", BOTH_WAYS, **decoder).decoder)


def _of_attention(options: Options) -> tuple[str, str, str]:
    """The kind, with what tells its examples apart; its score and its normaliser, `-` where it has none."""
    if options["kind"] == "coverage":
        kind, score, normaliser = _of_attention(options["inner"])
        return f"coverage of {kind}", score, normaliser
    rest = {key: value for key, value in options.items() if key not in ("score", "normaliser")}
    return shown(rest), shown(options.get("score", "-")), options.get("normaliser", "-")


def shown(value: Any) -> str:
    """A value of the settings in few words: a mapping by its kind and the rest of its keys."""
    if not isinstance(value, dict):
        return str(value)
    inside = ", ".join(f"{key}: {shown(one)}" for key, one in value.items() if key != "kind")
    kind = value.get("kind", "ramp")  # the one section that has no kinds
    return f"{kind} ({inside})" if inside else str(kind)


def reason_against(decoder: Options) -> str | None:
    """Why a decoder is refused; None where it is built. Any other failure is an error of the program, and raised."""
    page = {**recurrent("", BOTH_WAYS).model, "decoder": decoder}
    try:
        ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(11, 9)
    except ValidationError as error:
        details = error.errors(include_url=False)
        if any(detail["type"] != "value_error" for detail in details):
            raise
        return "; ".join(str(detail["ctx"]["error"]) for detail in details)
    except ValueError as error:
        return str(error)
    return None


def refusals(everything: Iterable[Combination]) -> dict[str, list[Combination]]:
    """Those that are refused, by reason."""
    found: dict[str, list[Combination]] = {}
    for one in everything:
        reason = reason_against(one.decoder)
        if reason is not None:
            found.setdefault(reason, []).append(one)
    return found


def rows(refused: dict[str, list[Combination]], everything: list[Combination]) -> Iterator[tuple[str, ...]]:
    """A row for each reason, those against an attention as such first."""
    left = everything
    for reason, found in sorted(refused.items(), key=lambda item: (-len({one.places[3:] for one in item[1]}), item[0])):
        cells, possible = [], left
        for axis in range(len(AXES)):
            values = {one.places[axis] for one in found}
            cells.append(_folded(values, {one.places[axis]: None for one in possible}))
            possible = [one for one in possible if one.places[axis] in values]
        gone = {one.places for one in found}
        left = [one for one in left if one.places not in gone]
        yield *cells, reason


def _folded(values: set[str], possible: Iterable[str]) -> str:
    """These values of an axis: `any` where they are all that is possible, a bare kind where all of its examples are."""
    if values == {*possible}:
        return "any"
    by_kind: dict[str, list[str]] = {}
    for value in possible:
        by_kind.setdefault(value.split(" (")[0], []).append(value)
    folded: list[str] = []
    for kind, each in by_kind.items():
        some = [one if one != kind else f"{kind} (no options)" for one in each if one in values]
        folded += [kind] if len(some) == len(each) else some
    return ", ".join(f"`{value}`" for value in folded)


def table(headings: tuple[str, ...], lines: Iterator[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    ruled = [headings, ("---",) * len(headings), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)


def keys() -> Iterator[tuple[str, ...]]:
    """Which kind of attention has which of `CHOICES`."""
    for kind, settings in kinds(AnyAttention).items():
        yield f"`{kind}`", *("yes" if key in settings.model_fields else "-" for key in CHOICES)


def page() -> str:
    """The whole page."""
    everything = list(combinations())
    refused = refusals(everything)
    return INTRODUCTION.format(
        tried=len(everything),
        refused=sum(map(len, refused.values())),
        table=table((*AXES, "reason"), rows(refused, everything)),
        keys=table(("kind", *CHOICES), keys()),
    )


def main() -> int:
    """Write the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    check, text = parser.parse_args().check, page()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE} is out of date; run python scripts/refusals.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
