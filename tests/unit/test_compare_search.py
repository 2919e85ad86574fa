"""The comparison of search with other toolkits: what can be run without them, and that the page says what was found."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from s2s.errors import UsageError
from s2s.interfaces import BOS, EOS, PAD, UNK
from s2s.search.beam import SearchSettings

ROOT = Path(__file__).resolve().parents[2]
A, B, C = 4, 5, 6
Words = tuple[int, ...]


@pytest.fixture(scope="module")
def scripts() -> Callable[[str], ModuleType]:
    """Scripts by their names."""

    def load(name: str) -> ModuleType:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(ROOT / "scripts")
            return importlib.import_module(name)

    return load


@pytest.fixture(scope="module")
def opennmt(scripts: Callable[[str], ModuleType]) -> ModuleType:
    """scripts/search_opennmt.py."""
    return scripts("search_opennmt")


# --- plain loops, worked out by hand ----------------------------------------------------------------------------------


class Hand:
    """Trees of probabilities, EOS certain where they say nothing; attention by the words said."""

    def __init__(
        self, *trees: dict[Words, dict[int, float]], attention: Callable[[Words], list[float]] = lambda _: [1.0]
    ) -> None:
        self.trees, self.look = trees, attention

    def length(self, sentence: int) -> int:
        return len(self.look(())) if sentence == 0 else 3

    def scores(self, sentence: int, said: Words) -> list[float]:
        words = self.trees[sentence].get(said, {EOS: 1.0})
        return [math.log(words[word]) if word in words else -1e9 for word in range(8)]

    def attention(self, sentence: int, said: Words) -> list[float]:
        return self.look(said) if sentence == 0 else [1 / 3] * 3


@pytest.fixture(scope="module")
def plain(scripts: Callable[[str], ModuleType]) -> Callable[..., Any]:
    """Search the first sentence, or all ``batch``, of a world by hand: words and scores, or those of each."""

    def search(world: Hand, *differences: str, limit: int = 8, n_best: int = 1, batch: int = 1, **keys: Any) -> Any:
        settings = SearchSettings(**({"length_penalty": "none"} | keys))
        found = scripts("plain_search").PlainSearch(world, settings, limit, n_best, differences)(range(batch))
        return found if batch > 1 else found[0]

    return search


def test_a_finished_hypothesis_takes_a_place(plain: Callable[..., Any]) -> None:
    """Beam 2: EOS 0.5 and A 0.3 are the best two. B 0.2, third, has 0.2 in the end, A only 0.3 x 0.5 for each way."""
    world = Hand({(): {EOS: 0.5, A: 0.3, B: 0.2}, (A,): {EOS: 0.5, C: 0.5}})
    assert [words for words, _ in plain(world, n_best=2, beam=2)] == [[], [B]]
    found = plain(world, "places", n_best=2, beam=2)
    assert [words for words, _ in found] == [[], [A]]
    assert found[1][1] == pytest.approx(math.log(0.15))


def test_the_search_ends_with_the_best_continuation(plain: Callable[..., Any]) -> None:
    """EOS 0.6 is the best first word, but averaged A B 0.4 has log 0.4 / 3 > log 0.6; beam 2 waits for a second."""
    world = Hand({(): {EOS: 0.6, A: 0.4}, (A,): {B: 1.0}})
    keys = {"beam": 2, "length_penalty": "average"}
    found = plain(world, **keys)
    assert found == [([A, B], pytest.approx(math.log(0.4) / 3))]
    assert found[0][1] > math.log(0.6)
    assert plain(world, "stop", **keys) == [([], pytest.approx(math.log(0.6)))]
    assert plain(world, "stop", n_best=2, **keys)[0][0] == [A, B]  # needs two, so goes on


def test_the_beginning_counts_as_a_token(plain: Callable[..., Any]) -> None:
    world = Hand({(): {A: 0.5, B: 0.25, C: 0.25}})
    assert plain(world, beam=1, length_penalty="average")[0][1] == pytest.approx(math.log(0.5) / 2)
    assert plain(world, "length", beam=1, length_penalty="average")[0][1] == pytest.approx(math.log(0.5) / 3)
    gnmt = {"beam": 1, "length_penalty": "gnmt", "length_alpha": 0.6}
    assert plain(world, **gnmt)[0][1] == pytest.approx(math.log(0.5) / (7 / 6) ** 0.6)
    assert plain(world, "length", **gnmt)[0][1] == pytest.approx(math.log(0.5) / (8 / 6) ** 0.6)


def test_the_limit_cuts(plain: Callable[..., Any]) -> None:
    world = Hand({(): {A: 0.9, EOS: 0.1}, (A,): {A: 0.8, EOS: 0.2}})
    assert plain(world, limit=2, beam=1) == [([A], pytest.approx(math.log(0.9 * 0.2)))]
    assert plain(world, "limit", limit=2, beam=1) == [([A, A], pytest.approx(math.log(0.9 * 0.8)))]


def test_single_words_repeat(plain: Callable[..., Any]) -> None:
    world = Hand({(): {A: 1.0}, (A,): {A: 0.9, B: 0.1}})
    assert plain(world, beam=1, no_repeat_ngram=1)[0][0] == [A, B]
    assert plain(world, "single", beam=1, no_repeat_ngram=1)[0][0] == [A, A]
    pairs = Hand({(): {A: 1.0}, (A,): {A: 1.0}, (A, A): {A: 0.9, C: 0.1}})
    assert plain(pairs, "single", beam=1, no_repeat_ngram=2)[0][0] == [A, A, C]


def test_what_was_not_read(plain: Callable[..., Any]) -> None:
    """A word and EOS read 1.2, 0.8 and nothing: log 0.8 and log of the floor, 0.0001; or infinity."""
    world = Hand({(): {A: 1.0}}, attention=lambda said: [0.7, 0.3, 0.0] if said else [0.5, 0.5, 0.0])
    score = plain(world, beam=1, coverage_penalty=0.2)[0][1]
    assert score == pytest.approx(0.2 * (math.log(0.8) + math.log(1e-4)))
    assert plain(world, "floor", beam=1, coverage_penalty=0.2) == [([A], -math.inf)]


def test_padding_was_not_read(plain: Callable[..., Any]) -> None:
    """The first source has two tokens, that of the second sentence three."""
    world = Hand({}, {}, attention=lambda _: [0.5, 0.5])
    for differences, cost in (((), 0.0), (("padding",), math.log(1e-4)), (("padding", "floor"), -math.inf)):
        first, second = plain(world, *differences, batch=2, beam=1, coverage_penalty=0.2)
        assert first == [([], pytest.approx(0.2 * (2 * math.log(0.5) + cost)))]
        assert second == [([], pytest.approx(0.2 * 3 * math.log(1 / 3)))]


def test_a_finished_hypothesis_comes_back(plain: Callable[..., Any]) -> None:
    """Beam 2: after EOS 0.9 its place goes on with C, log 1 more than -65504, and ends once more when A A does."""
    world = Hand({(): {EOS: 0.9, A: 0.1}, (A,): {A: 1.0}, (EOS,): {C: 1.0}})
    real = [([], pytest.approx(math.log(0.9))), ([A, A], pytest.approx(math.log(0.1)))]
    assert plain(world, "places", "stop", n_best=3, beam=2) == real
    assert plain(world, "places", "stop", "revival", n_best=3, beam=2) == [*real, ([C], -65504.0)]


def test_places_of_those_that_left(plain: Callable[..., Any]) -> None:
    """The first says A A and ends while the second, which said B B, goes on in its place: A A is now blocked there."""
    second = {(): {B: 1.0}, (B,): {A: 1.0}, (B, A): {C: 1.0}, (B, A, C): {A: 1.0}, (B, A, C, A): {A: 0.9, B: 0.1}}
    world = Hand({(): {A: 1.0}, (A,): {A: 1.0}}, second)
    keys: dict[str, Any] = {"beam": 1, "no_repeat_ngram": 2, "batch": 2}
    assert [found[0][0] for found in plain(world, **keys)] == [[A, A], [B, A, C, A, A]]
    assert [found[0][0] for found in plain(world, "company", **keys)] == [[A, A], [B, A, C, A, B]]


def test_unknown_differences_are_refused(plain: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="stpo: no difference"):
        plain(Hand({}), "stpo")


# --- the cases --------------------------------------------------------------------------------------------------------


def test_plain_loops_find_what_s2s_finds(opennmt: ModuleType, scripts: Callable[[str], ModuleType]) -> None:
    for case in opennmt.CASES:
        found = scripts("search_tables").agreement(opennmt.ours(case), opennmt.plain(case, []))
        assert (found["same_best"], found["same_list"]) == (100, 100), case.name
        assert found["largest_difference_of_score"] < 1e-5, case.name


def test_the_worlds_are_distributions(scripts: Callable[[str], ModuleType]) -> None:
    tables = scripts("search_tables")
    for world in (tables.World(), tables.World(ends=False), tables.World(hard=True), tables.World(uneven=True)):
        for sentence, said in ((0, ()), (1, (4, 5)), (3, (4,) * tables.WORDS)):
            scores = world.scores(sentence, said)
            assert math.fsum(math.exp(score) for score in scores) == pytest.approx(1.0)
            assert scores[PAD] == scores[BOS] == tables.IMPOSSIBLE
            attention = world.attention(sentence, said)
            assert len(attention) == world.length(sentence) and math.fsum(attention) == pytest.approx(1.0)
    assert {tables.World(uneven=True).length(sentence) for sentence in range(8)} == {3, 4, 5, 6}
    assert sorted(tables.World(hard=True).attention(2, ())) == [0, 0, 0, 0, 0, 1]


def test_agreement_by_hand(scripts: Callable[[str], ModuleType]) -> None:
    one = [[([A], -1.0), ([B], -2.0)], [([A], -1.0)], [([C], -1.0), ([A], -3.0)]]
    other = [[([A], -1.5), ([B], -2.0)], [([B], -1.0)], [([C], -1.25), ([B], -math.inf)]]
    found = scripts("search_tables").agreement(one, other)
    assert found == {"same_best": 2, "same_list": 1, "largest_difference_of_score": 0.5, "infinite_scores": 1}


def test_a_case_in_the_terms_of_the_peer(opennmt: ModuleType) -> None:
    changed = {"length_penalty": "gnmt", "length_alpha": 0.6, "coverage_penalty": 0.2, "min_length": 3}
    found = opennmt.peer_options(opennmt.Case("some", changed | {"no_repeat_ngram": 2, "beam": 8}, n_best=2, limit=5))
    assert found["scorer"] == {"alpha": 0.6, "beta": 0.2, "length_penalty": "wu", "coverage_penalty": "wu"}
    names = {"pad": PAD, "bos": BOS, "eos": EOS, "unk": UNK}
    numbers = {"beam_size": 8, "n_best": 2, "min_length": 3, "max_length": 5, "block_ngram_repeat": 2}
    assert found["search"] == numbers | names
    assert opennmt.peer_options(opennmt.Case("none"))["scorer"]["length_penalty"] == "none"
    assert opennmt.peer_options(opennmt.Case("none"))["scorer"]["coverage_penalty"] == "none"


# --- the talk ---------------------------------------------------------------------------------------------------------

GREEDY = """
import json, sys
print(json.dumps({"versions": {"peer": "1"}}), flush=True)
while line := sys.stdin.readline():
    case = json.loads(line)
    found = []
    for sentence, length in zip(case["sentences"], case["lengths"]):
        words, score, looked = [], 0.0, []
        while not words or words[-1] != case["search"]["eos"]:
            print(json.dumps({"read": [[sentence, words]]}), flush=True)
            answer = json.loads(sys.stdin.readline())
            scores = answer["log_probabilities"][0]
            assert len(answer["attention"][0]) == length
            words.append(scores.index(max(scores)))
            score += max(scores)
        found.append([[words, score]])
    print(json.dumps({"found": found}), flush=True)
"""
"""A peer that searches greedily, and knows nothing of this program."""


@pytest.mark.parametrize("together", [False, True])
def test_a_peer_gets_the_tables_to_the_last_digit(
    together: bool, opennmt: ModuleType, scripts: Callable[[str], ModuleType]
) -> None:
    world = scripts("search_tables").World(uneven=True)
    case = opennmt.Case("greedy", {"beam": 1}, n_best=1, world=world, together=together)
    with opennmt.Peer([sys.executable, "-c", GREEDY]) as peer:
        found = peer(case)
    assert peer.versions == {"peer": "1"} and peer.process.returncode == 0
    assert found == opennmt.plain(case, [])  # the same additions in the same order: the same numbers
    assert scripts("search_tables").agreement(opennmt.ours(case), found)["same_list"] == 100


def test_a_peer_that_does_not_run_is_told_of(opennmt: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--opennmt: cannot start .*nothing: No such file"):
        opennmt.Peer([str(tmp_path / "nothing")])
    speaks_once = 'print("{\\"versions\\": {}}", flush=True); raise SystemExit(3)'
    for program in ("raise SystemExit(3)", speaks_once):
        with (
            pytest.raises(UsageError, match=r"ended with 3; .*OpenNMT-py has to be installed"),
            opennmt.Peer([sys.executable, "-c", program]) as peer,
        ):
            peer(opennmt.CASES[0])


# --- what was found ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> Any:
    """The result file."""
    return json.loads((ROOT / "docs" / "results" / "search-peer.json").read_text(encoding="utf-8"))


def rows(heading: str, count: int) -> list[list[str]]:
    """The rows of the table of so many columns whose first heading is this."""
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8").split(f"\n| {heading} |", 1)[1]
    lines = re.split(r"\n(?!\|)", text.split("\n", 2)[2], maxsplit=1)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == count for row in cells)
    return cells


def test_no_case_is_left_out(opennmt: ModuleType, scripts: Callable[[str], ModuleType], found: Any) -> None:
    assert [row["option"] for row in found["opennmt"]["search"]] == [case.name for case in opennmt.CASES]
    assert [row["option"] for row in found["search"]] == [case.name for case in scripts("compare_search").CASES]
    assert all(row["sentences"] == 100 for row in found["search"] + found["opennmt"]["search"])


def test_the_page_says_what_was_found(found: Any) -> None:
    transformers = [[row["option"], str(row["same_best"]), str(row["same_list"])] for row in found["search"]]
    assert rows("option", 3) == transformers
    expected = []
    for row in found["opennmt"]["search"]:
        explained = row["explained"]
        without = ", ".join(f"{name} {same}" for name, same in explained["same_list_without"].items())
        numbers = [row["same_best"], row["same_list"], explained["same_list"]]
        expected.append([row["option"], *map(str, numbers), without])
    assert rows("option, OpenNMT-py", 5) == expected


def test_every_difference_is_named_on_the_page(found: Any, scripts: Callable[[str], ModuleType]) -> None:
    differences = scripts("plain_search").DIFFERENCES
    assert found["opennmt"]["differences"] == differences
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    used = {name for row in found["opennmt"]["search"] for name in row["explained"]["same_list_without"]}
    assert used == set(differences)  # none is there for nothing
    assert all(f"\n- **{name}.** " in page for name in differences)
    versions = found["opennmt"]["versions"]
    assert f"OpenNMT-py {versions['OpenNMT-py']}" in page
