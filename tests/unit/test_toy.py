"""The toy corpus: its German against sentences written by hand, and the files against what their README says."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "data" / "toy"
SPLITS = {"train": 4500, "dev": 300, "test": 300, "recombined": 300}


def load() -> ModuleType:
    """The script as a module; dataclasses look their module up by name."""
    spec = importlib.util.spec_from_file_location("make_toy", ROOT / "scripts" / "make_toy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_toy"] = module
    spec.loader.exec_module(module)
    return module


toy: Any = load()
NOUNS = {noun.english[0]: noun for noun in toy.NOUNS}
VERBS = {verb.english[0]: verb for verb in (*toy.VERBS, *toy.SPEECH)}


def lines(split: str, suffix: str) -> list[str]:
    return (CORPUS / f"{split}.{suffix}").read_text(encoding="utf-8").splitlines()


def pairs(*splits: str) -> Iterator[tuple[str, str, str]]:
    for split in splits or SPLITS:
        yield from zip(lines(split, "en"), lines(split, "de"), lines(split, "align"), strict=True)


def words(line: str) -> list[str]:
    return [word.strip(".,?") for word in line.split()]


# ------------------------------------------------------------------------------------------- the grammar, by hand


def clause(subject: Any, verb: str, *objects: Any, mode: str = "present", negator: Any = None, **rest: Any) -> Any:
    """A clause with its verb agreeing with its subject."""
    inverted = rest.get("inverted", False)
    predicate = toy.predicate(VERBS[verb], mode, subject.agreement, negator, inverted)
    return toy.Clause(subject, predicate, negator, objects, **rest)


def being(subject: Any, complement: Any, negator: Any = None) -> Any:
    return toy.Clause(subject, toy.copula(complement, subject.agreement), negator)


def some(noun: str, determiner: str = "the", case: int = 0, **rest: Any) -> Any:
    return toy.noun_phrase(NOUNS[noun], determiner, case, **rest)


def who(pronoun: str, case: int = 0) -> Any:
    return toy.pronoun(pronoun, case)


def it(noun: str, case: int = 0) -> Any:
    return toy.anaphor(NOUNS[noun], case)


ACCUSATIVE, DATIVE = 1, 2


def sentences() -> Iterator[tuple[Any, str, str, str]]:
    """Every construction once: the grammar's pair, then English, German and links as written by hand."""
    no = toy.Word("not")
    yield (
        toy.simple(clause(some("man", adjective="old"), "see", some("dog", "the", ACCUSATIVE), negator=no)),
        "The old man does not see the dog.",
        "Der alte Mann sieht den Hund nicht.",
        "0-0 1-1 2-2 3-3 4-6 5-3 6-4 7-5",
    )
    no = toy.Word("not")
    yield (
        toy.simple(clause(who("we"), "buy", some("lamp", "a", ACCUSATIVE, adjective="old", negator=no), negator=no)),
        "We do not buy an old lamp.",
        "Wir kaufen keine alte Lampe.",
        "0-0 1-1 2-2 3-1 4-2 5-3 6-4",
    )
    no = toy.Word("not")
    yield (
        toy.simple(clause(who("I"), "drink", some("coffee", "", ACCUSATIVE, adjective="cold", negator=no), negator=no)),
        "I do not drink cold coffee.",
        "Ich trinke keinen kalten Kaffee.",
        "0-0 1-1 2-2 3-1 4-3 5-4",
    )
    no = toy.Word("cannot")
    yield (
        toy.simple(clause(who("she"), "help", who("him", DATIVE), mode="can", negator=no)),
        "She cannot help him.",
        "Sie kann ihm nicht helfen.",
        "0-0 1-1 1-3 2-4 3-2",
    )
    yield (
        toy.simple(clause(who("he"), "call", some("woman", "the", ACCUSATIVE))),
        "He calls the woman.",
        "Er ruft die Frau an.",
        "0-0 1-1 1-4 2-2 3-3",
    )
    yield (
        toy.simple(clause(some("girl"), "turn", some("radio", "my", ACCUSATIVE, adjective="new"))),
        "The girl turns on my new radio.",
        "Das Mädchen macht mein neues Radio an.",
        "0-0 1-1 2-2 3-6 4-3 5-4 6-5",
    )
    yield (
        toy.simple(clause(some("child", plural=True), "get", mode="perfect", time=toy.lexical("today", "heute"))),
        "The children have got up today.",
        "Die Kinder sind heute aufgestanden.",
        "0-0 1-1 2-2 3-4 4-4 5-3",
    )
    gift = some("letter", "a", ACCUSATIVE), toy.recipient(some("friend", "my", DATIVE, plural=True))
    yield (
        toy.simple(clause(some("teacher", "a", adjective="young"), "give", *gift, time=toy.weekday("Monday"))),
        "A young teacher gives a letter to my friends on Monday.",
        "Ein junger Lehrer gibt meinen Freunden am Montag einen Brief.",
        "0-0 1-1 2-2 3-3 4-8 5-9 6-4 7-4 8-5 9-6 10-7",
    )
    gift = some("picture", "this", ACCUSATIVE), toy.recipient(who("them", DATIVE))
    yield (
        toy.simple(clause(who("I"), "show", *gift, mode="want")),
        "I want to show this picture to them.",
        "Ich will ihnen dieses Bild zeigen.",
        "0-0 1-1 2-5 3-5 4-3 5-4 6-2 7-2",
    )
    yield (
        toy.simple(
            clause(
                some("man", "twenty-one", adjective="old"),
                "work",
                place=toy.place(NOUNS["garden"], "small"),
                time=toy.date("third", "May"),
            )
        ),
        "Twenty-one old men work in the small garden on the third of May.",
        "Einundzwanzig alte Männer arbeiten am dritten Mai im kleinen Garten.",
        "0-0 1-1 2-2 3-3 4-7 5-7 6-8 7-9 8-4 9-4 10-5 11-6 12-6",
    )
    yield (
        toy.simple(clause(who("they"), "read", some("book", "five", ACCUSATIVE), mode="will", front=toy.clock("ten"))),
        "At ten o'clock they will read five books.",
        "Um zehn Uhr werden sie fünf Bücher lesen.",
        "0-0 1-1 2-2 3-4 4-3 5-7 6-5 7-6",
    )
    yield (
        toy.simple(clause(some("cat", "my"), "sleep", place=toy.place(NOUNS["kitchen"]), inverted=True), "?"),
        "Does my cat sleep in the kitchen?",
        "Schläft meine Katze in der Küche?",
        "0-0 1-1 2-2 3-0 4-3 5-4 6-5",
    )
    yield (
        toy.simple(clause(some("sister"), "help", front=who("who", DATIVE), inverted=True), "?"),
        "Who does the sister help?",
        "Wem hilft die Schwester?",
        "0-0 1-1 2-2 3-3 4-1",
    )
    yield (
        toy.simple(clause(who("who"), "visit", some("child", "three", ACCUSATIVE)), "?"),
        "Who visits three children?",
        "Wer besucht drei Kinder?",
        "0-0 1-1 2-2 3-3",
    )
    no = toy.Word("not")
    yield (
        toy.simple(being(toy.lexical("this", "das"), some("tea", "", adjective="hot", negator=no), no)),
        "This is not hot tea.",
        "Das ist kein heißer Tee.",
        "0-0 1-1 2-2 3-3 4-4",
    )
    opening = some("window", "the", ACCUSATIVE, plural=True)
    yield (
        toy.subordinated(clause(who("you"), "know"), "that", clause(some("man"), "open", opening)),
        "You know that the man opens the windows.",
        "Sie wissen, dass der Mann die Fenster aufmacht.",
        "0-0 1-1 2-2 3-3 4-4 5-7 6-5 7-6",
    )
    no = toy.Word("not")
    reason = clause(who("she"), "arrive", mode="perfect", negator=no)
    yield (
        toy.subordinated(clause(some("dog", "this", adjective="big"), "laugh"), "because", reason),
        "This big dog laughs because she has not arrived.",
        "Dieser große Hund lacht, weil sie nicht angekommen ist.",
        "0-0 1-1 2-2 3-3 4-4 5-5 6-8 7-6 8-7",
    )
    condition = being(some("door", "this", plural=True), toy.lexical("red", "rot"))
    yield (
        toy.conditional(condition, clause(who("he"), "close", some("door", "a", ACCUSATIVE), mode="must")),
        "If these doors are red, he must close a door.",
        "Wenn diese Türen rot sind, muss er eine Tür zumachen.",
        "0-0 1-1 2-2 3-4 4-3 5-6 6-5 7-9 8-7 9-8",
    )
    yield (
        toy.simple(
            clause(who("he"), "find", it("lamp", ACCUSATIVE), mode="perfect", time=toy.lexical("today", "heute"))
        ),
        "He has found it today.",
        "Er hat sie heute gefunden.",
        "0-0 1-1 2-4 3-2 4-3",
    )
    yield (
        toy.subordinated(clause(who("I"), "say"), "that", being(it("table"), toy.lexical("old", "alt"))),
        "I say that it is old.",
        "Ich sage, dass er alt ist.",
        "0-0 1-1 2-2 3-3 4-5 5-4",
    )
    yield (
        toy.coordinated(clause(some("bird", "a"), "sleep"), clause(who("I"), "call", who("her", ACCUSATIVE))),
        "A bird sleeps, but I call her.",
        "Ein Vogel schläft, aber ich rufe sie an.",
        "0-0 1-1 2-2 3-3 4-4 5-5 5-7 6-6",
    )


@pytest.mark.parametrize("case", list(sentences()), ids=lambda case: case[1])
def test_sentences_are_as_a_german_would_write_them(case: tuple[Any, str, str, str]) -> None:
    pair, english, german, links = case
    assert (pair.english, pair.german, pair.links) == (english, german, links)


def test_adjectives_agree() -> None:
    """The whole paradigm: gender by case, after the, a and (strong) no determiner or a number."""
    cases = {
        ("man", "the"): "der gute Mann, den guten Mann, dem guten Mann",
        ("woman", "the"): "die gute Frau, die gute Frau, der guten Frau",
        ("child", "the"): "das gute Kind, das gute Kind, dem guten Kind",
        ("man", "a"): "ein guter Mann, einen guten Mann, einem guten Mann",
        ("woman", "a"): "eine gute Frau, eine gute Frau, einer guten Frau",
        ("child", "my"): "mein gutes Kind, mein gutes Kind, meinem guten Kind",
        ("child", "two"): "zwei gute Kinder, zwei gute Kinder, zwei guten Kindern",
        ("coffee", ""): "guter Kaffee, guten Kaffee, gutem Kaffee",
        ("milk", ""): "gute Milch, gute Milch, guter Milch",
        ("water", ""): "gutes Wasser, gutes Wasser, gutem Wasser",
    }
    for (noun, determiner), expected in cases.items():
        phrases = [some(noun, determiner, case, adjective="good").german for case in range(3)]
        assert ", ".join(" ".join(word.text for word in phrase) for phrase in phrases) == expected
    plural = [some("friend", "my", case, adjective="old", plural=True).german for case in range(3)]
    assert [" ".join(word.text for word in phrase) for phrase in plural] == [
        "meine alten Freunde",
        "meine alten Freunde",
        "meinen alten Freunden",
    ]


def test_english_determines_german() -> None:
    sampler = toy.Sampler(12345)
    german: dict[str, tuple[str, str]] = {}
    for _ in range(10000):
        pair = sampler.fitting()
        assert german.setdefault(pair.english, (pair.german, pair.links)) == (pair.german, pair.links)


# -------------------------------------------------------------------------------------------------------- the files


def test_files_are_what_the_grammar_gives(tmp_path: Path) -> None:
    contents = toy.files()
    assert sorted(contents) == sorted(path.name for path in CORPUS.iterdir() if path.name != "README.md")
    for name, content in contents.items():
        assert (CORPUS / name).read_bytes() == content, name


def test_check_finds_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toy, "files", lambda: {"dev.en": b"Ja.\n", "dev.de": b"Yes.\n"})
    assert toy.main(["--out", str(tmp_path)]) == 0
    assert toy.main(["--out", str(tmp_path), "--check"]) == 0
    (tmp_path / "dev.en").write_bytes(b"Ja.\r\n")
    assert toy.main(["--out", str(tmp_path), "--check"]) == 1
    message = capsys.readouterr().err
    assert "dev.en" in message and "dev.de" not in message
    assert (tmp_path / "dev.en").read_bytes() == b"Ja.\r\n"


def test_sizes() -> None:
    for split, size in SPLITS.items():
        assert {len(lines(split, suffix)) for suffix in ("en", "de", "align")} == {size}
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) < 1_200_000
    for english, german, _ in pairs():
        assert 3 <= len(english.split()) <= 14
        assert 2 <= len(german.split()) <= 16


def test_most_translations_go_back() -> None:
    """Said in docs/attention.md of mechanisms that cannot: some word comes from before what the last one came from."""
    backward = 0
    for line in lines("test", "align"):
        links = sorted((int(target), int(source)) for source, target in (link.split("-") for link in line.split()))
        backward += any(after[1] < before[1] for before, after in pairwise(links))
    assert backward == 250


def test_text_is_plain() -> None:
    for english, german, _ in pairs():
        assert re.fullmatch(r"[A-Z][A-Za-z'-]*(,? [A-Za-z'-]+)*[.?]", english), english
        assert re.fullmatch(r"[A-ZÄÖÜ][A-Za-zÄÖÜäöüß]*(,? [A-Za-zÄÖÜäöüß]+)*[.?]", german), german
        assert english[-1] == german[-1]


def test_no_sentence_occurs_twice() -> None:
    for side in (0, 1):
        counts = Counter(pair[side] for pair in pairs())
        assert max(counts.values()) == 1


@pytest.mark.parametrize("suffix", ["en", "de"])
def test_words_are_known_and_frequent(suffix: str) -> None:
    train = Counter(word for line in lines("train", suffix) for word in words(line))
    for split in ("dev", "test", "recombined"):
        assert {word for line in lines(split, suffix) for word in words(line)} <= train.keys()
    folded: Counter[str] = Counter()
    for word, count in train.items():
        folded[word.lower()] += count
    assert min(folded.values()) >= 20, folded.most_common()[-5:]
    assert 180 <= len(folded) <= {"en": 220, "de": 300}[suffix]


def test_every_word_is_linked() -> None:
    for english, german, text in pairs():
        links = [tuple(map(int, link.split("-"))) for link in text.split()]
        assert links == sorted(set(links))
        assert {i for i, _ in links} == set(range(len(english.split())))
        assert {j for _, j in links} == set(range(len(german.split())))


def test_links_of_words_that_can_only_be_translated_in_one_way() -> None:
    lexicon = {
        "dog": {"Hund"},
        "women": {"Frauen"},
        "because": {"weil"},
        "has": {"hat", "ist"},
        "given": {"gegeben"},
        "kitchen": {"Küche"},
        "forty-three": {"dreiundvierzig"},
        "August": {"August"},
        "o'clock": {"Uhr"},
    }
    met = set()
    for english, german, text in pairs():
        source, target = words(english), words(german)
        for link in text.split():
            i, j = map(int, link.split("-"))
            if source[i] in lexicon:
                met.add(source[i])
                assert target[j] in lexicon[source[i]]
    assert met == set(lexicon)


def test_order_changes() -> None:
    """A corpus that a monotone model could learn would show nothing of attention."""
    crossing = 0
    for _, _, text in pairs("train"):
        targets = [int(link.split("-")[1]) for link in text.split()]
        crossing += any(later < earlier for earlier, later in pairwise(targets))
    assert crossing > 0.6 * SPLITS["train"]


# ------------------------------------------------------------- what is held out, found again in the English text alone

SEPARABLE = {form for base in ("call", "open", "close", "turn", "get", "arrive") for form in VERBS[base].english}
MODALS = {"can", "cannot", "must", "will", "want", "wants"}
UNSEEN = ["red door", "beautiful horse", "young teacher", "small book", "new lamp", "big cat"]


def constructions(english: str) -> set[str]:
    """The held-out constructions in a sentence."""
    found = set()
    main, *after = re.split(r" (?:that|because|if) ", english)
    condition, _, _ = english.partition(", ") if english.startswith("If ") else ("", "", "")
    subordinate = [condition, *after]
    if english.endswith("?") and SEPARABLE & set(words(main)):
        found.add("separable verb in a question")
    for part in subordinate:
        determiners = words(re.sub(r"\bat [\w-]+ o'clock", "", part))
        if set(determiners) & toy.NUMBERS.keys():
            found.add("number in a subordinate clause")
    if re.match(r"On the [\w-]+ of ", english):
        found.add("date in first position")
    if MODALS & set(words(condition)):
        found.add("modal verb in a condition in first position")
    if any(re.search(rf"\b{pair}s?\b", english) for pair in UNSEEN):
        found.add("adjective with noun")
    return found


def test_held_out_constructions_are_only_in_recombined() -> None:
    for english, _, _ in pairs("train", "dev", "test"):
        assert not constructions(english), english
    found = [constructions(english) for english, _, _ in pairs("recombined")]
    assert all(len(names) == 1 for names in found)
    counts = Counter(name for names in found for name in names)
    assert counts == {name: 60 for name, _ in toy.HELD_OUT}
    assert len(counts) == 5


def test_parts_of_held_out_constructions_are_in_train() -> None:
    text = "\n".join(english for english, _, _ in pairs("train"))
    for pattern in (
        r"^(Do|Does|Can|Who) .*\?$",  # questions
        r"\bcalls\b",  # separable verbs
        r"\bbecause .* opens\b",  # ... joined
        r"^[^,]* five \w+",  # numbers
        r"\w on the third of ",  # dates, later
        r"^On Monday ",  # times in first position
        r"^If .*, ",  # conditions in first position
        r" if [^,]* (can|must|wants to) ",  # conditions with a modal verb, later
        *(rf"\b{word}s?\b" for pair in UNSEEN for word in pair.split()),
    ):
        assert len(re.findall(pattern, text, re.MULTILINE)) >= 5, pattern


# ----------------------------------------------------------------------------------- documents, read again as texts

REFERENTS = {noun: entry for noun, entry in NOUNS.items() if entry.kinds & {"thing", "drink", "animal"}}
IT = {("m", "subject"): "er", ("m", "object"): "ihn"} | {
    (gender, role): word for gender, word in (("f", "sie"), ("n", "es")) for role in ("subject", "object")
}


def documents(split: str) -> list[list[tuple[str, str]]]:
    """The documents of a split, each the pairs between two blank lines of both files."""
    found: list[list[tuple[str, str]]] = [[]]
    for english, german in zip(lines(f"documents.{split}", "en"), lines(f"documents.{split}", "de"), strict=True):
        assert bool(english) == bool(german)
        if english:
            found[-1].append((english, german))
        else:
            found.append([])
    return found


@pytest.mark.parametrize(("split", "size"), [("train", 1200), ("dev", 180), ("test", 360)])
def test_documents_have_one_thing_that_it_can_be(split: str, size: int) -> None:
    """The noun comes first, "it" agrees with it, and no other noun of the document is neuter, or can be "it"."""
    assert len(documents(split)) == size
    for document in documents(split):
        assert 2 <= len(document) <= 3
        about: list[str] = []
        for english, german in document:
            named = [word for word in words(english) if word in REFERENTS]
            if "it" in words(english.lower()):
                assert len(about) == 1 and not named
                subject = re.search(r"(^It |^(?:Is|Does) it |(?:that|because) it )", english)
                role = "subject" if subject else "object"
                pronoun = IT[NOUNS[about[0]].gender, role]
                assert pronoun in words(german.lower()), (english, german)
                others = {"er", "ihn", "es"} - {pronoun} - ({"er"} if "he" in words(english.lower()) else set())
                assert not others & {*words(german.lower())}
            about += named
        assert len(about) == 1
        assert not {"child", "children", "girl", "girls"} & {word for english, _ in document for word in words(english)}
        assert "it" in words(document[-1][0].lower())


@pytest.mark.parametrize("split", ["dev", "test"])
def test_documents_to_measure_on_leave_a_reader_of_sentences_one_in_three(split: str) -> None:
    """Three in a row have equal sentences with "it", and a noun of each gender."""
    found = documents(split)
    for first in range(0, len(found), 3):
        three = found[first : first + 3]
        with_it = [[english for english, _ in one if "it" in words(english.lower())] for one in three]
        assert with_it[0] == with_it[1] == with_it[2] != []
        genders = {
            NOUNS[word].gender for one in three for english, _ in one for word in words(english) if word in REFERENTS
        }
        assert genders == {"m", "f", "n"}


def test_documents_are_there_once_and_their_words_are_known() -> None:
    everything = [tuple(one) for split in ("train", "dev", "test") for one in documents(split)]
    assert len(set(everything)) == len(everything)
    for suffix in ("en", "de"):
        known = {
            word for split in ("train", "documents.train") for line in lines(split, suffix) for word in words(line)
        }
        for split in ("documents.dev", "documents.test"):
            assert {word for line in lines(split, suffix) for word in words(line)} <= known
    for split in ("train", "dev", "test"):
        for english, _ in (pair for one in documents(split) for pair in one):
            assert not constructions(english), english
