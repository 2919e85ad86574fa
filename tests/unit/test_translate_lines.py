"""The translator over scripted models, whose answers are known, and over real ones in float64."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from scripted import Copier
from torch import Tensor

from s2s.config import AnyDecoder, AnyEncoder
from s2s.data.tokenizer import Tokenizers, WhitespaceTokenizer
from s2s.errors import DataError
from s2s.interfaces import BOS, EOS, NOTHING, PAD, UNK, Before, Searchable
from s2s.models.ensemble import Ensemble
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.search.beam import SearchSettings
from s2s.search.sampling import SamplingSettings
from s2s.search.translate import Line, Translation, Translator, gives_attention
from s2s.tree import Tree, repeat

WORDS = WhitespaceTokenizer(b"a\nb\nc\nd\ne\nf")
A, B, C, D, E, F = range(4, 10)
CPU = torch.device("cpu")
Script = Callable[[list[int], list[int]], dict[int, float]]
"""Source words and words said so far to the probability of each next word."""


class Scripted:
    """A model that obeys a script, and attends to one word after the other, ``backwards`` or not; None: to nothing."""

    sentences_before = 0
    same_age = True
    grows = True

    def __init__(self, script: Script, backwards: bool | None = None) -> None:
        self.script, self.backwards = script, backwards
        self.searched: list[list[int]] = []
        """The sources of every start."""

    def start(
        self,
        source: Tensor,
        lengths: Tensor,
        want: frozenset[str] = NOTHING,
        places: int = 1,
        before: Before | None = None,
    ) -> tuple[Tree, Tree]:
        self.searched += [[word for word in row if word not in (PAD, EOS)] for row in source.tolist()]
        return repeat(((source,), {"said": source.new_zeros(len(source), 0)}), places)

    def step(self, token: Tensor, memory: Tree, state: Tree) -> tuple[Tensor, Tensor | None, Tree]:
        source, said = memory[0], torch.cat((state["said"], token.unsqueeze(1)), 1)
        scores = torch.full((len(token), WORDS.size), -torch.inf)
        weights = torch.zeros(source.shape)
        for row, (asked, read) in enumerate(zip(source.tolist(), said.tolist(), strict=True)):
            words = [word for word in asked if word not in (PAD, EOS)]
            for word, probability in self.script(words, read[1:]).items():
                scores[row, word] = math.log(probability)
            place = len(read) - 1
            if place < len(words):
                weights[row, len(words) - 1 - place if self.backwards else place] = 1.0
        return scores, None if self.backwards is None else weights, {"said": said}


class Steady(Copier):
    """Notes how many begin, and how many are searched."""

    def __init__(self) -> None:
        super().__init__(WORDS.size)
        self.begun: list[int] = []
        self.rows: list[int] = []

    def start(self, source: Tensor, *more: Any) -> tuple[Tree, Tree]:
        self.begun.append(len(source))
        return super().start(source, *more)

    def step(self, token: Tensor, memory: Tree, state: Tree) -> tuple[Tensor, Tensor | None, Tree]:
        self.rows.append(len(token))
        return super().step(token, memory, state)


def copying(source: list[int], said: list[int]) -> dict[int, float]:
    """The source word for word."""
    return {source[len(said)]: 1.0} if len(said) < len(source) else {EOS: 1.0}


def choosing(source: list[int], said: list[int]) -> dict[int, float]:
    """One word: with 0.6 the first of the source, with 0.3 the one after it in the vocabulary, with 0.1 the next."""
    first = source[0]
    return {EOS: 1.0} if said else {first: 0.6, first + 1: 0.3, first + 2: 0.1}


def translator(
    model: Searchable, *, beam: int = 4, batch_tokens: int = 4096, longest: int = 1000, **more: Any
) -> Translator:
    settings = SearchSettings(beam=beam, length_penalty="none", batch_tokens=batch_tokens, max_source_length=longest)
    return Translator(model, Tokenizers(WORDS, WORDS), settings, CPU, **more)


def translated(model: Searchable, *lines: str | Line | None, **more: Any) -> list[Translation]:
    return list(translator(model, **more).translate(lines))


# --- lines ------------------------------------------------------------------------------------------------------------


def test_lines_and_their_numbers() -> None:
    model = Scripted(copying)
    found = translated(model, "a b", "", None, " ", "c")
    assert [(one.number, one.line, one.text) for one in found] == [
        (1, "a b", "a b"), (2, "", ""), (3, "", ""), (4, " ", ""), (5, "c", "c"),
    ]  # fmt: skip
    assert sorted(model.searched) == [[A, B], [C]]
    (blank,) = found[1].candidates
    assert (blank.score, blank.log_probability, blank.tokens, blank.parts) == (0.0, 0.0, [], [])


def test_several_translations() -> None:
    (found,) = translated(Scripted(choosing), "a", n_best=3)
    assert [one.text for one in found.candidates] == ["a", "b", "c"]
    assert [one.tokens for one in found.candidates] == [["a"], ["b"], ["c"]]
    assert [one.score for one in found.candidates] == pytest.approx([math.log(p) for p in (0.6, 0.3, 0.1)])
    assert [one.log_probability for one in found.candidates] == [one.score for one in found.candidates]
    assert len(translated(Scripted(copying), "a", n_best=3)[0].candidates) == 1  # nothing else is possible


def test_control_tokens_are_not_text() -> None:
    """Also where the model says nothing but UNK."""

    def script(source: list[int], said: list[int]) -> dict[int, float]:
        return {PAD: 0.3, BOS: 0.3, UNK: 0.3, EOS: 0.1}

    settings = SearchSettings(beam=1, max_length_ratio=0, max_length_extra=4)
    (found,) = Translator(Scripted(script), Tokenizers(WORDS, WORDS), settings, CPU).translate(["a"])
    assert (found.text, found.candidates[0].tokens) == ("⁇ ⁇ ⁇", ["<unk>"] * 3)


# --- long lines -------------------------------------------------------------------------------------------------------


def test_long_lines_in_parts() -> None:
    """At most 3 pieces, EOS counted, are two words."""
    one = translator(Scripted(copying), longest=3)
    found = list(one.translate(["a b c d e", "f e", "a b c"]))
    assert [each.text for each in found] == ["a b c d e", "f e", "a b c"]
    assert [len(each.candidates[0].parts) for each in found] == [3, 1, 2]
    assert found[0].candidates[0].tokens == ["a", "b", "c", "d", "e"]
    assert one.warnings() == [
        "input: 2 lines are longer than search.max_source_length (3 pieces): cut at spaces, their translations joined"
    ]
    assert translator(Scripted(copying)).warnings() == []


def test_long_lines_cut_off_or_refused() -> None:
    one = translator(Scripted(copying), longest=3, long_lines="truncate")
    assert [each.text for each in one.translate(["a b c d e", "f e"])] == ["a b", "f e"]
    assert "the rest was left out" in one.warnings()[0]
    with pytest.raises(DataError, match=r"input: line 2: 4 pieces, search.max_source_length is 3; set it higher"):
        translated(Scripted(copying), "a b", "a b c", longest=3, long_lines="error")


def test_the_best_ways_to_join_parts() -> None:
    """All 3 x 3 x 3 choices enumerated; two words are a part, of which the first is translated."""
    (found,) = translated(Scripted(choosing), "a a a a b a", longest=3, n_best=4)
    options = [(0.6, 0), (0.3, 1), (0.1, 2)]
    ways = sorted(
        (-sum(math.log(p) for p, _ in way), [first + step for first, (_, step) in zip((A, A, B), way, strict=True)])
        for way in itertools.product(options, repeat=3)
    )
    assert [one.score for one in found.candidates] == pytest.approx([-cost for cost, _ in ways[:4]])
    assert found.text == " ".join(WORDS.pieces(ways[0][1]))
    assert {one.text for one in found.candidates} == {"a a b", "b a b", "a b b", "a a c"}


def test_draws_stay_in_their_order() -> None:
    """Draw r of a line joins draw r of its parts; scores do not sort them, and more draws leave the first alone."""
    settings = SearchSettings.model_validate(
        {"beam": 1, "length_penalty": "none", "max_source_length": 3, "sampling": {"temperature": 1.0, "seed": 5}}
    )
    asked = Translator(Scripted(choosing), Tokenizers(WORDS, WORDS), settings, CPU, n_best=40)
    whole, cut, blank = asked.translate(["a a", "a a b", ""])
    assert len(whole.candidates) == len(cut.candidates) == 40 and len(blank.candidates) == 1
    assert {one.text for one in whole.candidates} == {"a", "b", "c"}
    scores = [one.score for one in whole.candidates]
    assert scores != sorted(scores, reverse=True)
    drawn = [[part.hypothesis.ids for part in one.parts] for one in cut.candidates]
    assert [one.text for one in cut.candidates] == [" ".join(WORDS.pieces([*a, *b])) for a, b in drawn]
    again = Translator(Scripted(choosing), Tokenizers(WORDS, WORDS), settings, CPU, n_best=7)
    assert [one.text for one in next(again.translate(["a a"])).candidates] == [one.text for one in whole.candidates[:7]]


# --- attention --------------------------------------------------------------------------------------------------------


def test_links() -> None:
    """Target word t comes from the last word but t."""
    (found,) = translated(Scripted(copying, backwards=True), "a b c", alignment=True)
    assert found.candidates[0].links == {(2, 0), (1, 1), (0, 2)}
    (found,) = translated(Scripted(copying, backwards=True), "a b c d e", alignment=True, longest=3)
    assert found.candidates[0].links == {(1, 0), (0, 1), (3, 2), (2, 3), (4, 4)}
    (found,) = translated(Scripted(copying, backwards=False), "a b", alignment=True)
    assert found.candidates[0].links == {(0, 0), (1, 1)}
    assert translated(Scripted(copying, backwards=True), "", alignment=True)[0].candidates[0].links == set()
    assert translated(Scripted(copying, backwards=True), "a")[0].candidates[0].links is None


def test_unknown_words_and_links_after_them() -> None:
    """The second target word has two words in its place, so that the third is the fourth."""
    unknown, words = "x y", "a x y"
    model = Scripted(copying, backwards=False)
    (found,) = translated(model, words, dictionary={"x": "brown bear"}, alignment=True)
    assert found.text == "a brown bear y"
    assert found.candidates[0].links == {(0, 0), (1, 1), (1, 2), (2, 3)}
    assert found.candidates[0].tokens == ["a", "<unk>", "<unk>"]
    assert translated(Scripted(copying, backwards=True), unknown, dictionary={})[0].text == "y x"
    assert translated(model, "a x y b z", dictionary={}, longest=3)[0].text == "a x y b z"
    assert translated(model, unknown)[0].text == "⁇ ⁇"


def test_which_models_have_attention() -> None:
    without, having = Scripted(copying), Scripted(copying, backwards=False)
    assert [gives_attention(model, CPU) for model in (without, having)] == [False, True]
    assert gives_attention(Ensemble([without, having]), CPU)
    assert not gives_attention(Ensemble([without, without]), CPU)


# --- wishes -----------------------------------------------------------------------------------------------------------


def test_beginnings_and_required_phrases() -> None:
    """Only the first of a line's parts begins so; scores are those of the model."""

    def script(source: list[int], said: list[int]) -> dict[int, float]:
        return {EOS: 0.5, B: 0.25, C: 0.25}

    (found,) = translated(Scripted(script), Line("a", prefix="c b"))
    assert (found.text, found.candidates[0].log_probability) == ("c b", pytest.approx(math.log(0.25**2 * 0.5)))
    (found,) = translated(Scripted(script), Line("a a a", prefix="c"), longest=2)
    assert found.text == "c"
    first, second = translated(Scripted(script), Line("a", required=("c b", "c c")), Line("a"))
    assert sorted(first.text.split()) in (["b", "c", "c"], ["b", "c", "c", "c"]) and "c b" in first.text
    assert "c c" in first.text and second.text == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (Line("a", prefix="a zebra"), "the model's vocabulary cannot write 'a zebra'"),
        (Line("a", required=("a", "zebra")), "the model's vocabulary cannot write 'zebra'"),
        (Line("a", prefix="a b c"), "'a b c' contains a phrase that is forbidden"),
        (Line("a", required=("b",)), "'b' contains a phrase that is forbidden"),
        (Line("a a a", required=("a",)), "nobody can say in which part of it the required phrases belong"),
    ],
)
def test_wishes_that_cannot_be(line: Line, words: str) -> None:
    with pytest.raises(DataError, match=f"input: line 2: .*{words}"):
        translated(Scripted(copying), "a", line, forbidden=["b"], longest=3)


def test_forbidden_phrases_are_avoided_where_they_come_up() -> None:
    """The first line never says b, and is searched once; the second says what is best without it."""
    model = Scripted(choosing)
    first, second = translated(model, "c", "a", forbidden=["a", "b"])
    assert (first.text, second.text) == ("c", "c")
    assert second.candidates[0].score == pytest.approx(math.log(0.1))
    assert model.searched.count([C]) == 1 and model.searched.count([A]) > 1


def test_no_hypothesis_of_several_has_a_forbidden_phrase() -> None:
    def script(source: list[int], said: list[int]) -> dict[int, float]:
        return {EOS: 0.4, A: 0.3, B: 0.2, C: 0.1}

    settings = SearchSettings(beam=8, max_length_ratio=0, max_length_extra=4)
    asked = Translator(Scripted(script), Tokenizers(WORDS, WORDS), settings, CPU, n_best=8, forbidden=["a b", "c"])
    (found,) = asked.translate(["f"])
    allowed = {
        words
        for count in range(4)
        for words in map(" ".join, itertools.product("ab", repeat=count))
        if "a b" not in words
    }
    assert {one.text for one in found.candidates} <= allowed
    assert len({one.text for one in found.candidates}) == 8


def test_a_replacement_brings_no_forbidden_phrase() -> None:
    model = Scripted(copying, backwards=False)
    assert translated(model, "a x", dictionary={}, forbidden=["x"])[0].text == "a ⁇"
    assert translated(model, "a y", dictionary={}, forbidden=["x"])[0].text == "a y"


# --- windows and batches ----------------------------------------------------------------------------------------------


def counted(lines: list[str], taken: list[str]) -> Iterator[str]:
    for line in lines:
        taken.append(line)
        yield line


def test_how_many_lines_are_held() -> None:
    """2 pieces a line, 8 a batch: the first answer after 4 lines; later at most 16 batches are held; 1 if asked for."""
    lines = ["a"] * 1000
    taken: list[str] = []
    ahead = [
        len(taken) - found.number
        for found in translator(Scripted(copying), batch_tokens=8).translate(counted(lines, taken))
    ]
    assert ahead[0] == 3
    assert max(ahead) == 16 * 8 // 2 - 1
    taken.clear()
    for found in translator(Scripted(copying)).translate(counted(lines[:5], taken), window=1):
        assert len(taken) == found.number


def test_a_few_long_lines_are_held_like_many_short_ones() -> None:
    taken: list[str] = []
    lines = ["a " * 99] * 20
    for found in translator(Scripted(copying), batch_tokens=100).translate(counted(lines, taken)):
        assert len(taken) - found.number < 16


@pytest.mark.parametrize("forbidden", [(), ("e",)])
def test_sentences_enter_where_others_have_ended(forbidden: tuple[str, ...]) -> None:
    """Four of two pieces fit. The second window is of two batches: it begins as one, and four at most are searched."""
    model = Steady()
    lines = ["a", "b", "c", "d"] * 3
    found = translated(model, *lines, beam=1, batch_tokens=8, forbidden=forbidden)
    assert [one.text for one in found] == lines
    assert model.begun == [4, 8] and max(model.rows) == 4


@pytest.mark.parametrize(("beam", "draws", "most"), [(8, 1, 8), (9, 1, 4), (40, 1, 1), (1, 8, 8), (1, 20, 2)])
def test_many_hypotheses_of_a_sentence_take_the_place_of_others(beam: int, draws: int, most: int) -> None:
    """Eight lines of two pieces fit, with up to eight hypotheses or draws each; every eight more are another line."""
    sampling = SamplingSettings() if draws > 1 else None
    settings = SearchSettings(beam=beam, length_penalty="none", batch_tokens=16, sampling=sampling)
    model = Steady()
    found = list(Translator(model, Tokenizers(WORDS, WORDS), settings, CPU, n_best=draws).translate(["a", "b"] * 20))
    assert [one.text for one in found] == ["a", "b"] * 20
    assert max(model.rows) == most * beam * draws


def test_a_second_search_has_no_more_sentences_at_once() -> None:
    """All say what is forbidden, and are searched again: the eight that began as one, four at a time."""
    model = Steady()
    found = translated(model, *["a"] * 12, beam=1, batch_tokens=8, forbidden=("a",))
    assert not any("a" in one.text for one in found)
    assert model.begun == [4, 4, 8, 4, 4] and max(model.rows) == 4


def test_much_shorter_sentences_wait_for_a_batch_of_their_own() -> None:
    """After a window of four, a source of eight pieces begins with one of four, to enter after it, not with two."""
    model = Steady()
    lines = ["a"] * 4 + ["b", "a b c d e f a", "c", "a b c"]
    found = translated(model, *lines, beam=1, batch_tokens=8)
    assert [one.text for one in found] == lines
    assert model.begun == [4, 2, 2] and model.rows == [4] * 2 + [1] * (8 + 4) + [2] * 2


def test_work_can_be_left_between_batches() -> None:
    turns = itertools.count()

    def check() -> None:
        if next(turns) == 2:
            raise InterruptedError

    model = Scripted(copying)
    with pytest.raises(InterruptedError):
        list(translator(model, batch_tokens=2).translate(["a"] * 10, check=check))
    assert len(model.searched) == 2


def real(kind: str) -> Seq2Seq:
    part = {"kind": "rnn", "size": 12, "cell": "lstm"}
    if kind == "transformer":
        part = {"kind": "transformer", "size": 12, "layers": 1, "heads": 2, "feedforward": 16}  # type: ignore[dict-item]
    attention = {"attention": {"kind": "global", "score": "general"}} if kind == "rnn" else {}
    settings = {"embedding": 12, "dropout": 0.0, "encoder": part, "decoder": part | attention}
    model = ModelSettings[AnyEncoder, AnyDecoder].model_validate(settings).build(WORDS.size, WORDS.size).double().eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1, generator=generator)
    return model


@pytest.mark.parametrize("kind", ["rnn", pytest.param("transformer", marks=pytest.mark.slow), "both"])
def test_nothing_but_the_line_decides_its_translation(kind: str) -> None:
    """Batch size, order, company, window and threads change nothing, in float64 to the letter; equals stay equal."""
    model = Ensemble([real("rnn"), real("transformer")]) if kind == "both" else real(kind)
    draw = random.Random(3)
    lines = [" ".join(draw.choices("abcdef", k=draw.randrange(15))) for _ in range(60)]
    lines += lines[:20]

    def answers(some: list[str], batch_tokens: int, window: int | None = None) -> list[list[tuple[str, float]]]:
        found = translator(model, beam=3, batch_tokens=batch_tokens, n_best=3).translate(some, window=window)
        return [[(each.text, round(each.score, 5)) for each in one.candidates] for one in found]

    expected = answers(lines, 4096)
    assert len({one[0][0] for one in expected}) > 20
    assert expected[60:] == expected[:20]
    for batch_tokens, window in ((1, None), (37, None), (200, 7), (4096, 1)):
        assert answers(lines, batch_tokens, window) == expected
    order = draw.sample(range(80), 80)
    assert answers([lines[index] for index in order], 100) == [expected[index] for index in order]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        assert answers(lines, 4096) == expected
    finally:
        torch.set_num_threads(before)
