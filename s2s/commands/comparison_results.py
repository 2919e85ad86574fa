"""What a comparison found: its result as a plain value, as a Markdown table, and as a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from s2s import __version__
from s2s.analysis.charts import bar_chart, dot_plot
from s2s.analysis.heatmap import heat_map_svg
from s2s.analysis.pages import render
from s2s.commands.comparison_rows import Row
from s2s.commands.comparison_settings import ColumnName, ComparisonSettings
from s2s.data.text import read_raw_lines
from s2s.evaluation import judge
from s2s.evaluation.comparing import Against, Seeds, against, spread

Found = dict[str, Any]
"""The result; docs/compare.md says what each key is."""
_BARS = 8
"""Systems that one bar chart can show."""


@dataclass
class System:
    """One system with the rows that it has, by seed."""

    name: str
    rows: dict[int, Row] = field(default_factory=dict)
    details: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Of some of the rows."""


class Unfinished(NamedTuple):
    """A training that has no row."""

    name: str
    why: str


class Column(NamedTuple):
    """A column of numbers: how one is found in a row (None where there is none) and written."""

    heading: str
    value: Callable[[Row], float | None]
    form: str
    varies: bool = True
    """Whether seeds usually differ; false tells a number once where they do not."""


# --- columns ----------------------------------------------------------------------------------------------------------


def _score(name: str, row: Row) -> float | None:
    return next((float(one["value"]) for one in row["scores"] if one["name"] == name), None)


def _aer(shift: str, row: Row) -> float | None:
    found: float | None = row["aer"].get(shift) if "aer" in row else None
    return found


def _number(name: str, row: Row, scale: float = 1.0) -> float | None:
    return None if row.get(name) is None else row[name] * scale


NUMBERS: dict[str, Column] = {
    "bleu": Column("BLEU", partial(_score, "bleu"), ".1f"),
    "chrf": Column("chrF", partial(_score, "chrf"), ".1f"),
    "ter": Column("TER", partial(_score, "ter"), ".1f"),
    "tok-lc": Column("tok-lc BLEU", partial(_score, "tok-lc"), ".1f"),
    "tokenised": Column("tokenised BLEU", partial(_score, "tokenised"), ".1f"),
    "exact": Column("exact match", partial(_number, "exact", scale=100), ".1f"),
    "aer-0": Column("AER shift 0", partial(_aer, "0"), ".3f"),
    "aer-1": Column("AER shift 1", partial(_aer, "1"), ".3f"),
    "entropy": Column("entropy", partial(_number, "entropy"), ".2f"),
    "first": Column("first", partial(_number, "first"), ".2f"),
    "last": Column("last", partial(_number, "last"), ".2f"),
    "back": Column("back", partial(_number, "back"), ".3f"),
    "tokens": Column("tokens/s", partial(_number, "tokens_per_second"), ",.0f"),
    "sentences": Column("sentences/s", partial(_number, "sentences_per_second"), ",.0f"),
    "memory": Column("memory (MB)", partial(_number, "peak_memory_bytes", scale=1e-6), ",.0f"),
    "parameters": Column("parameters", partial(_number, "parameters"), ",.0f", varies=False),
    "updates": Column("updates", partial(_number, "updates"), ",.0f", varies=False),
    "minutes": Column("minutes", partial(_number, "seconds", scale=1 / 60), ".1f"),
}
_BESIDE: dict[str, str] = {"difference": "difference", "p": "p", "better": "better in"}
"""Headings of the columns that compare with the baseline."""


def heading(name: ColumnName, metric: str) -> str:
    """What stands above a column; ``metric`` is what differences are of."""
    if name == "difference":
        return f"{NUMBERS[metric].heading} difference"
    return _BESIDE.get(name) or NUMBERS[name].heading


# --- the result -------------------------------------------------------------------------------------------------------


def result(
    settings: ComparisonSettings,
    systems: Sequence[System],
    baseline: str,
    reference: Path,
    unfinished: Sequence[Unfinished],
) -> Found:
    """Everything that was found, as strict JSON can hold it."""
    beside = _beside(settings, systems, baseline, reference)
    return {
        "title": settings.title,
        "s2s": __version__,
        "baseline": baseline,
        "metric": settings.metrics[0],
        "significance": {"test": "paired bootstrap", "samples": settings.samples, "seed": settings.bootstrap[1],
                         "correction": "Holm", "unit": "sentences, seeds pooled"},
        "signatures": _signatures(systems),
        "systems": [_plain(settings, one, beside[one.name]) for one in systems],
        "unfinished": [one._asdict() for one in unfinished],
    }  # fmt: skip


def _plain(settings: ComparisonSettings, system: System, beside: Against | None) -> Found:
    rows = list(system.rows.values())
    summary: dict[str, Any] = {}
    for name, column in NUMBERS.items():
        values = [value for row in rows if (value := column.value(row)) is not None]
        summary[name] = spread(values)._asdict() if values else None
    return {
        "name": system.name,
        "seeds": list(system.rows),
        "summary": summary,
        "against_baseline": None if beside is None else beside._asdict(),
        "by_length": _lengths(settings, rows),
        "rows": rows,
    }


def _lengths(settings: ComparisonSettings, rows: Sequence[Row]) -> list[dict[str, Any]] | None:
    """The mean over seeds of the first metric, band by band; None where no row has the bands that are asked for."""
    labels, name = settings.bands.labels, settings.metrics[0]
    found = [one["by_length"] for row in rows for one in row["scores"] if one["name"] == name and one.get("by_length")]
    fitting = [bands for bands in found if [band["band"] for band in bands] == labels]
    if not fitting:
        return None
    columns = [[band["value"] for band in column if band["value"] is not None] for column in zip(*fitting, strict=True)]
    return [
        {"band": band["band"], "sentences": band["sentences"], "value": float(np.mean(values)) if values else None}
        for band, values in zip(fitting[0], columns, strict=True)
    ]


def _signatures(systems: Sequence[System]) -> dict[str, list[str]]:
    """By metric; more than one means that rows were not measured alike."""
    found: dict[str, list[str]] = {}
    for system in systems:
        for row in system.rows.values():
            for score in row["scores"]:
                known = found.setdefault(score["name"], [])
                if score.get("signature") and score["signature"] not in known:
                    known.append(score["signature"])
    return found


def _beside(
    settings: ComparisonSettings, systems: Sequence[System], baseline: str, reference: Path
) -> dict[str, Against | None]:
    """Every system beside the baseline, which is beside itself nowhere, by the translations that are kept."""
    if not any(one.details for one in systems):
        return {one.name: None for one in systems}
    language = settings.target
    measure = judge(settings.metrics[0], [list(read_raw_lines(reference))], target=language, language=language)
    measured: dict[str, Seeds] = {
        one.name: {seed: measure(details["hypotheses"]) for seed, details in one.details.items()} for one in systems
    }
    names = [one.name for one in systems if one.name != baseline]
    found = against([measured[name] for name in names], measured.get(baseline, {}), *settings.bootstrap)
    return {baseline: None, **dict(zip(names, found, strict=True))}


# --- the table --------------------------------------------------------------------------------------------------------


def markdown(settings: ComparisonSettings, found: Found) -> str:
    """The table with its introduction; of several seeds the mean, and in brackets the lowest and the highest."""
    headings = ["system", "seeds", *(heading(name, found["metric"]) for name in settings.columns)]
    lines = [f"| {' | '.join(headings)} |", "|---|" + "--:|" * (len(headings) - 1)]
    for system in found["systems"]:
        if not system["rows"]:
            lines.append(f"| `{system['name']}` | not yet run |" + " |" * len(settings.columns))
            continue
        cells = [f"`{system['name']}`", str(len(system["seeds"]))]
        cells += [_cell(name, system, found["baseline"]) for name in settings.columns]
        lines.append(f"| {' | '.join(cells)} |")
    signed = [f"{NUMBERS[name].heading}: `{'`, `'.join(used)}`" for name, used in found["signatures"].items() if used]
    parts = [f"# {settings.title}", settings.introduction.strip(), "\n".join(lines), "; ".join(signed)]
    parts += _length_lines(found)
    return "\n\n".join(part for part in parts if part) + "\n"


def _length_lines(found: Found) -> list[str]:
    """A heading and a table of the first metric by source length; nothing where no row has it."""
    lengths = _length_table(found, found["systems"])
    if lengths is None:
        return []
    lines = [f"| system | {' | '.join(lengths['bands'])} |", "|---|" + "--:|" * len(lengths["bands"])]
    for name, values in lengths["rows"]:
        lines.append(f"| `{name}` | {' | '.join('-' if value is None else f'{value:.1f}' for value in values)} |")
    heading = f"## {NUMBERS[found['metric']].heading} by words of the source"
    return [heading, "In brackets how many sentences there are of such a length.", "\n".join(lines)]


def _cell(name: ColumnName, system: Found, baseline: str) -> str:
    if name in _BESIDE:
        return _beside_cell(name, system["against_baseline"], system["name"] == baseline)
    column, summary = NUMBERS[name], system["summary"][name]
    if summary is None:
        return "-"
    low, high = (f"{summary[end]:{column.form}}" for end in ("low", "high"))
    is_range = summary["seeds"] > 1 and (column.varies or low != high)
    return f"{summary['mean']:{column.form}}" + (f" ({low}-{high})" if is_range else "")


def _beside_cell(name: str, beside: Found | None, is_baseline: bool) -> str:
    if beside is None:
        return "baseline" if is_baseline and name == "difference" else "-"
    if name == "difference":
        return f"{beside['difference']:+.2f}"
    return f"{beside['corrected']:.3f}" if name == "p" else f"{beside['better']} of {len(beside['seeds'])}"


# --- the page ---------------------------------------------------------------------------------------------------------


def page(settings: ComparisonSettings, systems: Sequence[System], found: Found, asked: str) -> str:
    """The self-contained page; ``asked`` is what was asked for, as it was written."""
    finished = [system for system in found["systems"] if system["rows"]]
    return render(
        "compare.html",
        title=settings.title,
        paragraphs=[part for part in settings.introduction.split("\n\n") if part.strip()],
        found=found,
        metric=NUMBERS[found["metric"]].heading,
        headings=[heading(name, found["metric"]) for name in settings.columns],
        rows=[_table_row(settings, system, found["baseline"]) for system in finished],
        signatures={NUMBERS[name].heading: used for name, used in found["signatures"].items()},
        charts=list(_charts(found, finished)),
        lengths=_length_table(found, finished),
        sentences=list(_sentences(settings, systems)),
        asked=asked,
        environment=_environment(finished),
    )


def _table_row(settings: ComparisonSettings, system: Found, baseline: str) -> Found:
    cells = []
    for name in settings.columns:
        summary, beside = system["summary"].get(name), system["against_baseline"]
        value = None if summary is None else summary["mean"]
        if beside is not None and name in _BESIDE:
            value = beside[{"difference": "difference", "p": "corrected", "better": "better"}[name]]
        cells.append({"text": _page_cell(name, system, baseline), "value": value, "note": _note(name, system)})
    return {"name": system["name"], "seeds": system["seeds"], "cells": cells, "is_baseline": system["name"] == baseline}


def _page_cell(name: ColumnName, system: Found, baseline: str) -> str:
    summary = system["summary"].get(name)
    if summary is None or summary["deviation"] is None or not (NUMBERS[name].varies or summary["deviation"]):
        return _cell(name, system, baseline)
    return f"{summary['mean']:{NUMBERS[name].form}} ± {summary['deviation']:{NUMBERS[name].form}}"


def _note(name: ColumnName, system: Found) -> str:
    """What a cell tells when it is pointed at: each seed's number, or the interval of the difference."""
    beside = system["against_baseline"]
    if name in _BESIDE:
        if beside is None:
            return ""
        interval = f"95 % of drawn test sets: {beside['low']:+.2f} to {beside['high']:+.2f}"
        return f"{interval}; better on {100 * beside['wins']:.0f} % of them; p {beside['p']:.4f} before correction"
    values = [(row["seed"], NUMBERS[name].value(row)) for row in system["rows"]]
    return ", ".join(f"seed {seed}: {value:{NUMBERS[name].form}}" for seed, value in values if value is not None)


def _charts(found: Found, finished: Sequence[Found]) -> Iterator[str]:
    """A dot for each seed, of what was measured of several systems."""
    for name in (found["metric"], "aer-0", "tokens", "sentences", "memory"):
        column = NUMBERS[name]
        values = [[value for row in one["rows"] if (value := column.value(row)) is not None] for one in finished]
        shown = [(one["name"], own) for one, own in zip(finished, values, strict=True) if own]
        if shown:
            yield dot_plot(*zip(*shown, strict=True), title=f"{column.heading}, seed by seed", x=column.heading)
    if chart := _length_chart(found, finished):
        yield chart


def _length_chart(found: Found, finished: Sequence[Found]) -> str | None:
    """The baseline and the best others, as far as they can be told apart."""
    banded = [one for one in finished if one["by_length"]]
    if not banded:
        return None
    sign = 1 if found["metric"] == "ter" else -1
    ranked = sorted(banded, key=lambda one: (one["name"] != found["baseline"], sign * _mean(one, found["metric"])))
    chosen = ranked[:_BARS]
    labels = [band["band"] for band in chosen[0]["by_length"]]
    kept = [n for n in range(len(labels)) if any(one["by_length"][n]["value"] is not None for one in chosen)]
    column = NUMBERS[found["metric"]].heading
    best = f", the baseline and the {len(chosen) - 1} best others" if len(banded) > len(chosen) else ""
    return bar_chart(
        [labels[n] for n in kept],
        {one["name"]: [one["by_length"][n]["value"] for n in kept] for one in chosen},
        title=f"{column} by words of the source{best}",
        y=column,
    )


def _mean(system: Found, metric: str) -> float:
    summary = system["summary"].get(metric)
    return 0.0 if summary is None else summary["mean"]


def _length_table(found: Found, finished: Sequence[Found]) -> Found | None:
    banded = [one for one in finished if one["by_length"]]
    if not banded:
        return None
    first = banded[0]["by_length"]
    kept = [n for n, band in enumerate(first) if band["sentences"]]
    return {
        "bands": [f"{first[n]['band']} ({first[n]['sentences']})" for n in kept],
        "rows": [(one["name"], [one["by_length"][n]["value"] for n in kept]) for one in banded],
    }


def _sentences(settings: ComparisonSettings, systems: Sequence[System]) -> Iterator[Found]:
    """Each shown line with the translation by the first seed of every system."""
    for place, number in enumerate(settings.lines_shown):
        through, source, reference = [], "", ""
        for system in systems:
            seed, details = next(iter(system.details.items()), (0, {"shown": []}))
            if place >= len(details["shown"]) or details["shown"][place]["line"] != number:
                continue
            one = details["shown"][place]
            source, reference = one["source"], one["reference"]
            picture = None if one["attention"] is None else _picture(system.name, one["attention"])
            through.append({"name": system.name, "seed": seed, "text": one["text"], "picture": picture,
                            "right": one["text"] == reference})  # fmt: skip
        if through:
            yield {"line": number, "source": source, "reference": reference, "through": through}


def _picture(name: str, attention: Mapping[str, Any]) -> str:
    weights = np.array(attention["weights"], dtype=np.float64)
    return heat_map_svg(weights, attention["source"], attention["target"], title=name)


def _environment(finished: Sequence[Found]) -> list[tuple[str, str]]:
    """What rows say of where they were made, each with every value that occurs."""
    rows = [row for system in finished for row in system["rows"]]
    names = {"torch": "PyTorch", "threads": "threads"}
    values = {title: dict.fromkeys(str(row[name]) for row in rows if name in row) for name, title in names.items()}
    return [("s2s", __version__), *((title, ", ".join(found)) for title, found in values.items() if found)]
