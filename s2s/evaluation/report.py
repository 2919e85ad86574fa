"""What `s2s eval` found, as strict JSON and as aligned text; docs/evaluate.md describes the value both come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s2s.strictjson import all_finite, json_line

Found = Mapping[str, Any]


def as_json(found: Found) -> str:
    """One line of JSON; a number that JSON cannot hold is null."""
    return json_line(all_finite(found))


def as_text(found: Found) -> Iterator[str]:
    """The lines for people: a table for each metric, then the bands that were asked for."""
    yield f"{found['sentences']} sentences against {', '.join(found['references'])}"
    yield from _how(found["significance"])
    for place in range(len(found["systems"][0]["scores"])):
        yield from _scores(found, place)
    if found["length_bands"] is not None:
        for place in range(len(found["systems"][0]["scores"])):
            yield from _lengths(found, place)
    if found["frequency"] is not None:
        yield from _words(found)


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells, indented: the first column to the left, numbers to the right; an empty column is left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for name, *cells in zip(*columns, strict=True):
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join(["", name.ljust(widths[0]), *right]).rstrip()


def _how(significance: Found) -> Iterator[str]:
    parts = []
    if (bootstrap := significance["bootstrap"]) is not None:
        parts.append(f"95 % intervals by bootstrap: {bootstrap['samples']} samples, seed {bootstrap['seed']}")
    if (randomisation := significance["randomisation"]) is not None:
        parts.append(f"randomisation: {randomisation['trials']} trials, seed {randomisation['seed']}")
    if parts:
        yield "; ".join(parts)


def _scores(found: Found, place: int) -> Iterator[str]:
    score = found["systems"][0]["scores"][place]
    rows = [["system", "score", "95 % interval", "difference", "p (bootstrap)", "wins", "p (randomisation)"]]
    for system in found["systems"]:
        rows.append([system["name"], *_score_cells(system["scores"][place])])
        if system["name"] == found["significance"]["baseline"]:
            rows[-1][3] = "baseline"
    yield from ("", f"{score['name']}  {score['signature']}")
    yield from aligned(rows)


def _score_cells(score: Found) -> list[str]:
    cells = [_number(score["value"], ".2f"), "", "", "", "", ""]
    if (interval := score["interval"]) is not None:
        cells[1] = f"{interval['low']:.2f} to {interval['high']:.2f}"
    if (against := score["against_baseline"]) is not None:
        cells[2] = _number(against["difference"], "+.2f")
        if (bootstrap := against["bootstrap"]) is not None:
            cells[3:5] = [_number(bootstrap["p"], ".4f"), _number(bootstrap["wins"], ".3f")]
        if (randomisation := against["randomisation"]) is not None:
            cells[5] = _number(randomisation["p"], ".4f")
    return cells


def _lengths(found: Found, place: int) -> Iterator[str]:
    first = found["systems"][0]["scores"][place]
    rows = [["words of the source", *found["length_bands"]]]
    rows.append(["sentences", *(str(band["sentences"]) for band in first["by_length"])])
    for system in found["systems"]:
        bands = system["scores"][place]["by_length"]
        rows.append([system["name"], *(_number(band["value"], ".2f") for band in bands)])
    yield from ("", f"{first['name']} by length")
    yield from aligned(rows)


def _words(found: Found) -> Iterator[str]:
    frequency, systems = found["frequency"], found["systems"]
    rows = [["times seen", *frequency["bands"]]]
    rows.append(["in references", *(str(band["reference"]) for band in systems[0]["words"])])
    for system in systems:
        rows.append([system["name"], *(_number(band["f"], ".3f") for band in system["words"])])
    yield from ("", f"F-measure of words by how often they are in {frequency['text']}")
    yield from aligned(rows)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
