"""`s2s eval`: BLEU, chrF and TER with their signatures, of a model or of files of translations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s2s.commands.translate import Output, standard_output, translate_lines
from s2s.data.text import OutputFile, TextCounts, read_lines, read_raw_lines
from s2s.errors import UsageError, printable
from s2s.evaluation import Score, score_all, tok_lc_bleu
from s2s.progress import Meter
from s2s.run import load_trained
from s2s.training.trainer import resolve_device


def evaluate(
    model: Path | None,
    hypotheses: Sequence[Path],
    source: Path | None,
    reference: Path | None,
    *,
    tok_lc: Path | None = None,
    language: str = "de",
    checkpoint: str = "best",
    device: str = "auto",
    output: Path | None = None,
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Print scores. With a model: translate ``source`` first (by default the run's test set).

    ``tok_lc``: a tokenised, lower-cased reference file besides; hypotheses are brought to the same form and scored as
    published Multi30k results are. ``output`` keeps the translations.
    """
    if (model is None) == (not hypotheses):
        raise UsageError("eval", "give either --model or --hypotheses", "see s2s eval --help")
    results = []
    if model is not None:
        results.append(_of_model(model, source, reference, tok_lc, language, checkpoint, device, output, overwrite))
    else:
        if reference is None or source is not None or output is not None:
            raise UsageError("eval", "--hypotheses goes with --reference, and not with --source or --output")
        right = list(read_raw_lines(reference))
        for path in hypotheses:
            found = list(read_raw_lines(path))
            results.append(_result(str(path), found, right, reference, tok_lc, language))
    out = standard_output()
    if as_json:
        out.write_line(json.dumps(results, ensure_ascii=False, allow_nan=False))
    else:
        _print(results, out)
    out.flush()


def _of_model(
    model: Path,
    source: Path | None,
    reference: Path | None,
    tok_lc: Path | None,
    language: str,
    checkpoint: str,
    device_name: str,
    output: Path | None,
    overwrite: bool,
) -> dict[str, Any]:
    device = resolve_device(device_name)
    trained = load_trained(model, device, checkpoint)
    if (source is None) != (reference is None):
        raise UsageError("eval", "--source and --reference go together")
    if source is None or reference is None:
        test = trained.config.data.test
        if test is None:
            raise UsageError(model, "its settings name no data.test", "give --source and --reference")
        source, reference = Path(test.source), Path(test.target)
    lines = [line or "" for line in read_lines(source, counts=TextCounts(), invalid="replace", allow_pipe=True)]
    right = list(read_raw_lines(reference))
    with Meter("translating", len(lines)) as meter:
        found = translate_lines(trained, lines, device, meter)
    if output is not None:
        with OutputFile(output, overwrite=overwrite, inputs=[source, reference]) as file:
            for line in found:
                file.write_line(line)
    return _result(str(model), found, right, reference, tok_lc, language) | {"update": trained.update}


def _result(
    name: str, found: list[str], right: list[str], reference: Path, tok_lc: Path | None, language: str
) -> dict[str, Any]:
    scores = score_all(found, right)
    if tok_lc is not None:
        scores.append(tok_lc_bleu(found, list(read_raw_lines(tok_lc)), language))
    digest = hashlib.sha256("".join(f"{line}\n" for line in found).encode()).hexdigest()
    return {
        "name": printable(name),
        "reference": printable(reference),
        "sentences": len(found),
        "hypotheses_sha256": digest,
        "scores": [_plain(score) for score in scores],
    }


def _plain(score: Score) -> dict[str, Any]:
    return {"name": score.name, "value": score.value, "signature": score.signature}


def _print(results: list[dict[str, Any]], out: Output) -> None:
    for result in results:
        out.write_line(f"{result['name']}: {result['sentences']} sentences against {result['reference']}")
        for score in result["scores"]:
            out.write_line(f"  {score['name']:7} {score['value']:6.2f}  {score['signature']}")
