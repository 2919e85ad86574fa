"""Scores: hand-worked fixtures, sacreBLEU's own functions, and the official tokenised Multi30k files."""

from __future__ import annotations

import gzip
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu

from s2s.errors import DataError, UsageError
from s2s.evaluation import METRICS, Score, bleu, judge, score_all, scores, tok_lc
from s2s.evaluation.scores import tokenise

HYPOTHESIS = "the cat sat on the mat"
REFERENCE = "the cat is on the mat"
MULTI30K = Path(os.environ.get("S2S_DATA", "")) / "multi30k"
needs_multi30k = pytest.mark.skipif("S2S_DATA" not in os.environ, reason="S2S_DATA does not name the data folder")


def score(name: str, hypotheses: list[str], references: list[str]) -> float:
    return judge(name, [references])(hypotheses).score.value


def official(hypotheses: list[str], tokenised: list[str], language: str) -> Score:
    """By tok-lc against references in the official form."""
    return judge("tok-lc", [tokenised], tokenised=tokenised, language=language)(hypotheses).score


def multi30k_lines(name: str) -> list[str]:
    return gzip.decompress((MULTI30K / name).read_bytes()).decode("utf-8").split("\n")[:-1]


def test_bleu_of_a_hand_worked_pair() -> None:
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, 0 of 3 fours (smoothed to 1/2 of a match), no brevity penalty.
    expected = 100 * math.exp((math.log(5 / 6) + math.log(3 / 5) + math.log(1 / 4) + math.log(0.5 / 3)) / 4)
    found = bleu([HYPOTHESIS], [REFERENCE])
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert f"{found.value:.2f}" == "37.99"


def test_ter_of_a_hand_worked_pair() -> None:
    assert score("ter", [HYPOTHESIS], [REFERENCE]) == pytest.approx(100 / 6)  # one word of six replaced
    assert score("ter", [REFERENCE.upper()], [REFERENCE]) == 0  # tercom lower-cases


def test_exact_match() -> None:
    assert score("exact", ["a", "b", "c", "d"], ["a", "B", "c ", "d"]) == 50


def test_signatures_say_all_choices() -> None:
    version = re.escape(sacrebleu.__version__)
    patterns = {
        "bleu": rf"BLEU\|nrefs:1\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:{version}",
        "chrf": rf"chrF2\|nrefs:1\|case:mixed\|eff:yes\|nc:6\|nw:0\|space:no\|version:{version}",
        "ter": rf"TER\|nrefs:1\|case:lc\|tok:tercom\|norm:no\|punct:yes\|asian:no\|version:{version}",
        "exact": r"exact\|nrefs:1\|case:mixed\|tok:none",
    }
    found = score_all([HYPOTHESIS], [REFERENCE], tuple(patterns))
    assert [one.name for one in found] == list(patterns)
    for one in found:
        assert re.fullmatch(patterns[one.name], one.signature)
    label = official([HYPOTHESIS], [REFERENCE], "en")
    assert label.name == "tok-lc"
    assert "case:lc" in label.signature and label.signature.endswith("|moses:en")
    assert "tok:none" in label.signature


def test_equal_to_sacrebleu_on_random_text() -> None:
    draw = random.Random(5)
    words = ["Haus", "ein,", "über", "rot.", "(so)", "x", "läuft", "U.S."]
    hypotheses = [" ".join(draw.choices(words, k=draw.randint(0, 12))) for _ in range(40)]
    references = [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(40)]
    expected = [
        sacrebleu.corpus_bleu(hypotheses, [references]).score,
        sacrebleu.corpus_chrf(hypotheses, [references]).score,
        sacrebleu.corpus_ter(hypotheses, [references]).score,
    ]
    assert [score.value for score in score_all(hypotheses, references)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("hypotheses", "references", "expected"),
    [
        (["", ""], ["a b c d", "x y"], (0, 0, 100)),
        (["", ""], ["", ""], (0, 0, 0)),
        (["a b c d", ""], ["a b c d", ""], (100, 100, 0)),
        (["a b\x85c d"], ["a b\x85c d"], (100, 100, 0)),
    ],
)
def test_defined_on_odd_lines(hypotheses: list[str], references: list[str], expected: tuple[float, ...]) -> None:
    assert [score.value for score in score_all(hypotheses, references)] == pytest.approx(expected)


@pytest.mark.parametrize("metric", METRICS)
def test_line_counts_must_agree(metric: str) -> None:
    with pytest.raises(DataError, match=r"2 hypothesis lines but 3 reference lines") as caught:
        score(metric, ["a", "b"], ["a", "b", "c"])
    assert caught.value.code == 3
    with pytest.raises(DataError, match="nothing to score"):
        score(metric, [], [])


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(UsageError, match=r"blue; the metrics are bleu, chrf, ter, exact, tok-lc, tokenised"):
        score_all(["a"], ["a"], ("bleu", "blue"))


def test_several_references() -> None:
    """Any of them may be met, as sacreBLEU counts it; each system is measured by one preparation of them."""
    first, second = ["a b c d e", "x y z u v", "h i"], ["a b c d f", "x y w u v", "h j"]
    systems = [["a b c d f", "x y z u v", "h"], ["a c", "", "h j"]]
    expected = {
        "bleu": [sacrebleu.corpus_bleu(lines, [first, second]).score for lines in systems],
        "chrf": [sacrebleu.corpus_chrf(lines, [first, second]).score for lines in systems],
        "ter": [sacrebleu.corpus_ter(lines, [first, second]).score for lines in systems],
        "exact": [pytest.approx(200 / 3), pytest.approx(100 / 3)],
        "tok-lc": [sacrebleu.corpus_bleu(lines, [first, second], tokenize="none").score for lines in systems],
        "tokenised": [sacrebleu.corpus_bleu(lines, [first, second], tokenize="none").score for lines in systems],
    }
    for name, values in expected.items():
        measure = judge(name, [first, second])
        assert [measure(lines).score.value for lines in systems] == pytest.approx(values, abs=1e-9)
        assert "|nrefs:2|" in measure(systems[0]).signature
    with pytest.raises(DataError, match="3 hypothesis lines but 2 reference lines"):
        judge("bleu", [first, second[:2]])


def test_tokenised_text_is_taken_as_it_stands() -> None:
    """Nothing is cut off a word and no letter is lowered: of four words here three are right, in one run of three."""
    measured = judge("tokenised", [["The dog&apos;s gone home."]])(["the dog&apos;s gone home."])
    precisions = [3 / 4, 2 / 3, 1 / 2, 1 / 2]  # of four-grams none of one is right: counted as 1/2, smoothed
    assert measured.score.value == pytest.approx(100 * math.prod(precisions) ** 0.25)
    assert measured.signature == "BLEU|nrefs:1|case:mixed|eff:no|tok:none|smooth:exp|version:" + sacrebleu.__version__


def test_tok_lc_of_raw_references() -> None:
    measured = judge("tok-lc", [["Tom's Hund läuft, springt."]], language="en")(["toms Hund läuft, springt ."])
    expected = official(["toms Hund läuft, springt ."], ["tom &apos;s hund läuft , springt ."], "en")
    assert measured.score == expected
    assert 0 < expected.value < 100


def test_the_language_picks_the_tokeniser() -> None:
    """sacreBLEU's for Chinese cuts between characters; that for Japanese is an extra package."""
    measured = judge("bleu", [["他在那里。"]], target="zh")(["他在这里。"])
    assert "|tok:zh|" in measured.signature
    assert measured.score.value == sacrebleu.corpus_bleu(["他在这里。"], [["他在那里。"]], tokenize="zh").score
    assert tokenise("他在。", "zh") == ["他", "在", "。"]
    assert tokenise("Er ist (da).") == ["Er", "ist", "(", "da", ")", "."]


def test_a_tokeniser_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    with pytest.raises(UsageError, match=r"bleu: .*pip install sacrebleu\[ja\]"):
        judge("bleu", [["a"]], target="ja")
    scores._tokeniser.cache_clear()
    with pytest.raises(UsageError, match=r"bleu: .*pip install sacrebleu\[ja\]"):
        tokenise("a", "ja")


def test_tok_lc_of_a_language_that_moses_has_no_rules_for() -> None:
    with pytest.raises(UsageError, match=r"tok-lc: Moses has no rules for 'zz'; it has them for as, .*, de, .*, zh"):
        judge("tok-lc", [["a"]], language="zz")


def test_a_score_prints_with_its_signature() -> None:
    assert str(Score("bleu", 37.9918, "BLEU|x")) == "bleu 37.99  BLEU|x"


def test_tok_lc_of_punctuation() -> None:
    assert tok_lc("Er sagt: „Tom & Ina’s“", "de") == "er sagt : &quot; tom &amp; ina &apos; s &quot;"
    assert tok_lc("  A   Man's dog, etc. ", "en") == "a man &apos;s dog , etc ."
    assert tok_lc("", "de") == ""
    # German rule: the full stop at the end of the line moves out of the quotes.
    assert tok_lc("Er rief: „Halt.“", "de") == "er rief : &quot; halt &quot; ."


def test_tok_lc_of_raw_text() -> None:
    found = official(["Tom's Hund läuft, springt."], ["tom &apos;s hund läuft , springt ."], "en")
    assert found.value == pytest.approx(100)


@needs_multi30k
@pytest.mark.parametrize("language", ["de", "en"])
@pytest.mark.parametrize("split", ["test_2016_flickr", "val"])
def test_tok_lc_gives_the_official_files(split: str, language: str) -> None:
    raw = multi30k_lines(f"raw/{split}.{language}.gz")
    theirs = multi30k_lines(f"tok-lc/{split}.lc.norm.tok.{language}.gz")
    assert [tok_lc(line, language) for line in raw] == theirs
    assert official(raw, theirs, language).value == pytest.approx(100)


@needs_multi30k
def test_the_official_test_set_has_the_published_length() -> None:
    assert sum(len(line.split(" ")) for line in multi30k_lines("tok-lc/test_2016_flickr.lc.norm.tok.de.gz")) == 12103


def test_importing_is_light() -> None:
    code = "import sys, s2s.evaluation; print(*{'torch', 'numpy', 'sacrebleu', 'sacremoses'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
