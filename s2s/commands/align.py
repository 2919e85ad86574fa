"""`s2s align`: word links of given translations from a model's attention, and their error rate against gold links."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from s2s.analysis.alignment import GoldLinks, Link, aer, format_links, read_links
from s2s.commands.models import require_models
from s2s.commands.output import results, standard_output, write
from s2s.commands.pairs import scorer_of, tell_too_long
from s2s.data.parallel import Parallel, require_equal_lines
from s2s.errors import DataError, UsageError
from s2s.progress import warn
from s2s.search.align import Aligned, Aligner, Level
from s2s.strictjson import json_line

Form = Literal["pharaoh", "json", "soft"]


def align(
    models: Sequence[Path],
    source: Path,
    target: Path,
    output: Path | None = None,
    *,
    level: Level = "word",
    shift: int = 0,
    threshold: float | None = None,
    form: Form = "pharaoh",
    gold: Path | None = None,
    gold_first: int = 0,
    overwrite: bool = False,
    checkpoint: str = "best",
    device: str = "auto",
    batch_tokens: int | None = None,
    strict: bool = False,
) -> None:
    """Write the links of each pair of lines; several models are an ensemble, whose attention is the mean.

    ``form``: pharaoh, ``0-0 1-2``; json, an object with words, links and weights; soft, for each target word its
    weights on the source words with commas between them. With ``gold``, whose first word is ``gold_first``, the error
    rate is printed, and the links are written only where ``output`` is given.
    """
    require_models(models)
    if gold is not None and level == "piece":
        raise UsageError("--gold", "gold links are between words", "leave out --level piece")
    pairs = Parallel(source, target, "error" if strict else "replace")
    count = pairs.check()
    right = None if gold is None else read_links(gold, gold_first)
    if right is not None and count is not None:
        require_equal_lines((str(source), count), (str(gold), len(right)))
    sink = results(output, overwrite, (source, target, gold))
    scorer = scorer_of(models, checkpoint=checkpoint, device=device, batch_tokens=batch_tokens, attention=True)
    aligner = Aligner(scorer, level=level, shift=shift, threshold=threshold)
    found: list[Aligned] = []  # to be measured

    def lines() -> Iterator[list[str]]:
        for line, aligned in enumerate(aligner.align(pairs), start=1):
            if right is not None:
                found.append(aligned._replace(weights=aligned.weights[:0].copy()))
            yield [_shown(line, aligned, form)] if right is None or output is not None else []

    write(sink, lines(), ("aligning", "aligned", "pairs"))
    for warning in pairs.warnings():
        warn(warning)
    tell_too_long(scorer, "have no links")
    if gold is not None and right is not None:
        require_equal_lines((str(source), len(found)), (str(gold), len(right)))
        _measure(found, right, gold, form == "json")


def _shown(line: int, aligned: Aligned, form: Form) -> str:
    if form == "pharaoh":
        return format_links(aligned.links)
    if form == "soft":
        return " ".join(",".join(f"{weight:.6f}" for weight in row) for row in aligned.weights)
    return json_line(
        {
            "line": line,
            "source": aligned.source,
            "target": aligned.target,
            "links": sorted(aligned.links),
            "weights": [[round(float(weight), 6) for weight in row] for row in aligned.weights],
        }
    )


def _measure(found: list[Aligned], right: list[GoldLinks], gold: Path, as_json: bool) -> None:
    for number, (aligned, links) in enumerate(zip(found, right, strict=True), start=1):
        for link in _outside(aligned, links):
            words = f"{len(aligned.source)} source and {len(aligned.target)} target words"
            what = f"the link {link[0]}-{link[1]}, counted from 0, is beyond the {words}"
            raise DataError(f"{gold}: line {number}", what, "check the order of the files and --gold-first")
    score = aer([links.sure for links in right], [links.possible for links in right], [one.links for one in found])
    out = standard_output()
    if as_json:
        out.write_line(json_line(asdict(score) | {"sentences": len(found)}))
    else:
        out.write_line(f"AER {score.aer:.4f}  precision {score.precision:.4f}  recall {score.recall:.4f}")
    out.flush()


def _outside(aligned: Aligned, links: GoldLinks) -> Iterator[Link]:
    """Gold links of words that are not there; of a pair that has no links of its own, nothing is known."""
    if aligned.source:
        for source, target in sorted(links.possible):
            if source >= len(aligned.source) or target >= len(aligned.target):
                yield source, target
