"""N-best files: read as they were written, or refused with file and line; and lists ranked again by scripted models."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from s2s.data.nbest import Listed, NBest, read_nbest, written
from s2s.errors import DataError
from s2s.search.rescore import Judge, Rescorer, weighted
from s2s.search.score import Lines, Scored, Scorer

TSV = "1\t1\t-0.500000\tein Hund\n1\t2\t-inf\t\n2\t1\t0.000000\tder \u201eMann\u201c\n"
JSONL = (
    '{"line": 1, "source": "a dog", "model": "m", "hypotheses": [{"text": "ein Hund", "score": -0.5, "tokens": ["a"]},'
    ' {"text": "", "score": null}]}\n'
    '{"line": 2, "hypotheses": [{"text": "der\\u2028Mann", "score": 0}]}\n'
)


def read(folder: Path, text: str) -> tuple[str, list[NBest]]:
    path = folder / "list"
    path.write_bytes(text.encode())
    kind, lists = read_nbest(path)
    return kind, list(lists)


def again(kind: str, lists: list[NBest]) -> str:
    return "".join(f"{line}\n" for one in lists for line in written(one, kind))  # type: ignore[arg-type]


def test_tsv(tmp_path: Path) -> None:
    kind, lists = read(tmp_path, TSV)
    assert lists == [
        NBest(1, None, [Listed("ein Hund", -0.5, {}), Listed("", -math.inf, {})], {}),
        NBest(2, None, [Listed("der \u201eMann\u201c", 0.0, {})], {}),
    ]
    assert again(kind, lists) == TSV


def test_jsonl(tmp_path: Path) -> None:
    kind, lists = read(tmp_path, JSONL)
    first = [Listed("ein Hund", -0.5, {"tokens": ["a"]}), Listed("", -math.inf, {})]
    assert lists == [NBest(1, "a dog", first, {"model": "m"}), NBest(2, None, [Listed("der\u2028Mann", 0.0, {})], {})]
    assert [json.loads(line) for line in again(kind, lists).split("\n")[:-1]] == [
        json.loads(line) for line in JSONL.split("\n")[:-1]
    ]
    assert "\u2028" not in again(kind, lists)
    assert again("tsv", lists).split("\n")[2] == "2\t1\t0.000000\tder Mann"


def test_nothing_and_gzip(tmp_path: Path) -> None:
    assert read(tmp_path, "") == ("tsv", [])
    (tmp_path / "list.gz").write_bytes(gzip.compress(TSV.encode()))
    assert list(read_nbest(tmp_path / "list.gz")[1]) == read(tmp_path, TSV)[1]


def test_lists_are_read_as_they_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("1\t1\t-1\ta\n2\t1\t-1\tb\nbroken\n")
    lists = read_nbest(path)[1]
    assert next(lists).line == 1
    with pytest.raises(DataError, match="line 3: has 1 fields"):
        next(lists)


@pytest.mark.parametrize(
    ("text", "number", "words"),
    [
        ("1\t1\t-1\ta\nb\n", 2, "has 1 fields and not 4"),
        ("1\t1\t-1\ta\tb\n", 1, "has 5 fields and not 4"),
        ("\n", 1, "has 1 fields"),
        ("one\t1\t-1\ta\n", 1, "'one' is not the number of a line"),
        ("1\t0\t-1\ta\n", 1, "'0' is not the number of a rank"),
        ("2\t1\t-1\ta\n", 1, "is rank 1 of line 2, not rank 1 of line 1"),
        ("1\t2\t-1\ta\n", 1, "is rank 2 of line 1, not rank 1 of line 1"),
        ("1\t1\t-1\ta\n1\t1\t-1\ta\n", 2, "is rank 1 of line 1, not rank 2 of line 1 or rank 1 of line 2"),
        ("1\t1\t-1\ta\n3\t1\t-1\ta\n", 2, "is rank 1 of line 3"),
        ("1\t1\t-1\ta\n2\t2\t-1\ta\n", 2, "is rank 2 of line 2"),
        ("1\t1\tnan\ta\n", 1, "'nan' is not a score"),
        ("1\t1\tinf\ta\n", 1, "'inf' is not a score"),
        ("1\t1\t1_0\ta\n", 1, "'1_0' is not a score"),
        ("1\t1\t1e999\ta\n", 1, "too large"),
        ("ok", 1, "has 1 fields"),
        ('{"line": 1}\n', 1, "is not an object with a line, its source and its hypotheses"),
        ('{"line": true, "hypotheses": [{"text": "a", "score": 1}]}', 1, "is not an object with a line"),
        ('{"line": 1, "source": 5, "hypotheses": [{"text": "a", "score": 1}]}', 1, "is not an object with a line"),
        ('{"line": 1, "hypotheses": []}', 1, "has no hypotheses"),
        ('{"line": 1, "hypotheses": ["a"]}', 1, "a hypothesis is not an object"),
        ('{"line": 1, "hypotheses": [{"text": "a"}]}', 1, "a hypothesis is not an object"),
        ('{"line": 1, "hypotheses": [{"text": 5, "score": 1}]}', 1, "a hypothesis is not an object"),
        ('{"line": 1, "hypotheses": [{"text": "a", "score": false}]}', 1, "a hypothesis is not an object"),
        ('{"line": 1, "hypotheses": [{"text": "a", "score": 1e999}]}', 1, "not a finite"),
        (
            '{"line": 1, "hypotheses": [{"text": "a", "score": 1}], "more": [-1e999]}',
            1,
            "-1e999 is not a finite number",
        ),
        ('{"line": 1, "hypotheses": [{"text": "a", "score": 1, "more": 1e999}]}', 1, "1e999 is not a finite number"),
        ('{"line": 1, "hypotheses": [{"text": "a", "score": NaN}]}', 1, "NaN is not a finite number"),
        ('{"line": 1, "hypotheses": [{"text": "a\\ud83d", "score": 1}]}', 1, "character 2 is half of a surrogate pair"),
        ('{"line": 1, "source": "\\udc00", "hypotheses": [{"text": "a", "score": 1}]}', 1, "character 1 is half of a"),
        ('{"line": 2, "hypotheses": [{"text": "a", "score": 1}]}', 1, "says that it is line 2"),
        ('{"line": 1, "line": 1, "hypotheses": [{"text": "a", "score": 1}]}', 1, "'line' is there twice"),
        ('{"line": 1, "hypotheses": [{"text": "a", "score": 1}]}\n[]\n', 2, "is not an object"),
        ('{"line": 1, "hypotheses": [{"text": "a", "score": 1}]}\n\n', 2, "is not valid JSON"),
        ("{" + "[" * 100_000, 1, "is not valid JSON"),
        ('{"line": 1, "more": ' + "[" * 100_000 + "]" * 100_000 + "}", 1, "is not valid JSON"),
    ],
)
def test_what_is_not_a_list_is_refused(tmp_path: Path, text: str, number: int, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, text)
    assert f"list: line {number}: " in str(caught.value) and words in str(caught.value)
    assert caught.value.code == 3


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"1\t1\t-1\ta\n1\t2\t-1\t\xff\n")
    with pytest.raises(DataError, match="line 2, byte 8: 0xff is not UTF-8"):
        list(read_nbest(tmp_path / "list")[1])


def test_ranking_is_stable() -> None:
    lists = NBest(1, None, [Listed(text, 0.0, {}) for text in "abcd"], {})
    ranked = lists.ranked([1.0, 2.0, -math.inf, 2.0])
    assert [(one.text, one.score) for one in ranked.hypotheses] == [
        ("b", 2.0), ("d", 2.0), ("a", 1.0), ("c", -math.inf),
    ]  # fmt: skip


# --- ranking by models ------------------------------------------------------------------------------------------------


class Table(Scorer):
    """Says what stands in a table, and notes what it was asked."""

    def __init__(self, table: dict[str, float]) -> None:
        self.table, self.asked = table, list[Lines]()

    def score(self, pairs: Iterable[Lines]) -> Iterator[Scored]:
        for source, target in pairs:
            self.asked.append((source, target))
            yield Scored(source or "", target or "", self.table[target or ""], [], [], [], None)


def judge(weight: float, **table: float) -> Judge:
    return Judge(Table(table), lambda scored: scored.log_probability / 2, weight)


def test_scores_by_hand() -> None:
    """Given 1, -1, 0 at weight 0.5; the models' halved scores at weights 2 and -1."""
    found = NBest(7, "s", [Listed("x", 1.0, {"t": 1}), Listed("y", -1.0, {}), Listed("z", 0.0, {})], {})
    judges = [judge(2.0, x=-4, y=-2, z=-1), judge(-1.0, x=-6, y=-8, z=-10)]
    (ranked,) = Rescorer(judges, 0.5).rescore([(found, " s\ts ")])
    # x: .5 - 4 + 3 = -.5;  y: -.5 - 2 + 4 = 1.5;  z: 0 - 1 + 5 = 4
    assert [(one.text, one.score) for one in ranked.hypotheses] == [("z", 4.0), ("y", 1.5), ("x", -0.5)]
    assert ranked.hypotheses[2].more == {"t": 1, "given_score": 1.0, "model_scores": [-2.0, -3.0]}
    assert (ranked.line, ranked.source) == (7, "s")
    assert judges[0].scorer.asked == [("s s", "x"), ("s s", "y"), ("s s", "z")]  # type: ignore[attr-defined]


def test_a_list_that_cannot_be_scored_stays() -> None:
    lists = [NBest(n, None, [Listed("x", -2.0, {}), Listed(other, -1.0, {})], {}) for n, other in ((1, "n"), (2, "y"))]
    rescorer = Rescorer([judge(1.0, x=-4, y=-2, n=math.nan)])
    first, second = rescorer.rescore((one, "s") for one in lists)
    assert (first, rescorer.left) == (lists[0], 1)
    assert [one.score for one in second.hypotheses] == [-2.0, -4.0]


def test_what_is_impossible_is_last() -> None:
    assert weighted([1.0, 2.0], [-math.inf, 1.0]) == -math.inf
    assert weighted([1.0, -2.0], [1.0, -math.inf]) == -math.inf
    assert weighted([0.0, 2.0], [-math.inf, 1.0]) == 2.0
