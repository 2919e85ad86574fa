"""Write the toy corpus: an English-German fragment with gold word links, from a synchronous grammar of our own.

Beside its single sentences there are documents of two or three, in which "it" is a thing of a sentence before.

Three parts, top to bottom: the lexicon (tables), the grammar (functions that build both languages at once and never
choose), and the sampler (which only chooses). Every German word carries the English words that it translates, so the
links of a sentence need no aligner: they are read off when the sentence is complete.

    python scripts/make_toy.py [--out data/toy] [--check]
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SEED = 1
SIZES = {"train": 4500, "dev": 300, "test": 300}
RECOMBINED_EACH = 60
DOCUMENTS = {"documents.train": 1200, "documents.dev": 60, "documents.test": 120}  # those of dev and test are triples
SHORTEST, LONGEST = 3, 14  # in English words
CANDIDATES = 12  # sentences drawn for each one kept: the one with the rarest word stays

# ---------------------------------------------------------------------------------------------------------- lexicon

NOMINATIVE, ACCUSATIVE, DATIVE = range(3)
FIRST, THIRD, PLURAL = range(3)  # agreement of a subject with its verb: I, he, they


@dataclass(frozen=True)
class Noun:
    """A noun of both languages."""

    english: tuple[str, ...]  # singular, plural
    german: tuple[str, ...]  # singular, plural, plural of the dative
    gender: str  # m, f or n
    kinds: frozenset[str]  # what it is and what can be done with it
    owned: bool  # "my man" would not be "mein Mann"


@dataclass(frozen=True)
class Verb:
    """A verb of both languages, with what it asks of its subject and its objects."""

    english: tuple[str, ...]  # see, sees, seen
    german: tuple[str, ...]  # sehe, sieht, sehen, gesehen: the finite forms by agreement, then the participle
    particle: str  # English: turn *on*
    prefix: str  # German, separable: *an*machen
    subjects: frozenset[str]  # kinds of noun
    takes: frozenset[str]  # kinds of noun; empty for an intransitive verb
    case: int  # of the object
    recipient: bool  # "gives the book to the man"
    place: bool  # "in the garden" makes sense with it
    perfect: str  # "have" or "be": the German auxiliary


def noun(english: str, german: str, gender: str, kinds: str, owned: bool = True) -> Noun:
    """A noun from its forms, separated by blanks; a form left out is like the one before."""
    forms = german.split()
    while len(forms) < 3:
        forms.append(forms[-1])
    return Noun(tuple(english.split()), tuple(forms), gender, frozenset(kinds.split()), owned)


def verb(
    english: str,
    german: str,
    takes: str = "",
    *,
    particle: str = "",
    prefix: str = "",
    subjects: str = "person",
    case: int = ACCUSATIVE,
    recipient: bool = False,
    place: bool = False,
    perfect: str = "have",
) -> Verb:
    """A verb from its forms, separated by blanks, in the order of `Verb`."""
    forms = tuple(english.split()), tuple(german.split())
    kinds = frozenset(subjects.split()), frozenset(takes.split())
    return Verb(*forms, particle, prefix, *kinds, case, recipient, place, perfect)


NOUNS = (
    noun("man men", "Mann Männer Männern", "m", "person", owned=False),
    noun("woman women", "Frau Frauen", "f", "person", owned=False),
    noun("child children", "Kind Kinder Kindern", "n", "person"),
    noun("girl girls", "Mädchen", "n", "person", owned=False),
    noun("teacher teachers", "Lehrer Lehrer Lehrern", "m", "person"),
    noun("friend friends", "Freund Freunde Freunden", "m", "person"),
    noun("sister sisters", "Schwester Schwestern", "f", "person"),
    noun("dog dogs", "Hund Hunde", "m", "animal goods"),
    noun("cat cats", "Katze Katzen", "f", "animal goods"),
    noun("bird birds", "Vogel Vögel", "m", "animal goods"),
    noun("horse horses", "Pferd Pferde", "n", "animal goods"),
    noun("letter letters", "Brief Briefe", "m", "thing text gift"),
    noun("newspaper newspapers", "Zeitung Zeitungen", "f", "thing text gift goods"),
    noun("book books", "Buch Bücher", "n", "thing text gift goods"),
    noun("picture pictures", "Bild Bilder", "n", "thing gift goods"),
    noun("table tables", "Tisch Tische", "m", "thing goods"),
    noun("car cars", "Auto Autos", "n", "thing goods"),
    noun("lamp lamps", "Lampe Lampen", "f", "thing device gift goods"),
    noun("radio radios", "Radio Radios", "n", "thing device gift goods"),
    noun("door doors", "Tür Türen", "f", "thing opening"),
    noun("window windows", "Fenster", "n", "thing opening"),
    noun("coffee", "Kaffee", "m", "drink"),
    noun("tea", "Tee", "m", "drink"),
    noun("milk", "Milch", "f", "drink"),
    noun("water", "Wasser", "n", "drink"),
    noun("garden", "Garten", "m", "place"),
    noun("park", "Park", "m", "place"),
    noun("kitchen", "Küche", "f", "place"),
    noun("school", "Schule", "f", "place"),
    noun("city", "Stadt", "f", "place"),
    noun("house", "Haus", "n", "place"),
)

VERBS = (
    verb("see sees seen", "sehe sieht sehen gesehen", "person animal thing", subjects="person animal", place=True),
    verb("find finds found", "finde findet finden gefunden", "person animal thing", place=True),
    verb("buy buys bought", "kaufe kauft kaufen gekauft", "goods", place=True),
    verb("read reads read", "lese liest lesen gelesen", "text", place=True),
    verb("drink drinks drunk", "trinke trinkt trinken getrunken", "drink", place=True),
    verb("visit visits visited", "besuche besucht besuchen besucht", "person"),
    verb("help helps helped", "helfe hilft helfen geholfen", "person", case=DATIVE, place=True),
    verb("give gives given", "gebe gibt geben gegeben", "gift", recipient=True),
    verb("show shows shown", "zeige zeigt zeigen gezeigt", "gift", recipient=True),
    verb("sleep sleeps slept", "schlafe schläft schlafen geschlafen", subjects="person animal", place=True),
    verb("work works worked", "arbeite arbeitet arbeiten gearbeitet", place=True),
    verb("laugh laughs laughed", "lache lacht lachen gelacht", place=True),
    verb("call calls called", "rufe ruft rufen angerufen", "person", prefix="an"),
    verb("open opens opened", "mache macht machen aufgemacht", "opening", prefix="auf"),
    verb("close closes closed", "mache macht machen zugemacht", "opening", prefix="zu"),
    verb("turn turns turned", "mache macht machen angemacht", "device", particle="on", prefix="an"),
    verb("get gets got", "stehe steht stehen aufgestanden", particle="up", prefix="auf", perfect="be"),
    verb("arrive arrives arrived", "komme kommt kommen angekommen", prefix="an", place=True, perfect="be"),
)

SPEECH = (
    verb("say says said", "sage sagt sagen gesagt"),
    verb("believe believes believed", "glaube glaubt glauben geglaubt"),
    verb("know knows known", "weiß weiß wissen gewusst"),
)

WANT = verb("want wants wanted", "will will wollen gewollt")

DO = ("do", "does", "do")
HAVE = ("have", "has", "have")
BE = ("am", "is", "are")
PERFECT = {"have": ("habe", "hat", "haben"), "be": ("bin", "ist", "sind")}
MODALS = {"can": ("kann", "kann", "können"), "must": ("muss", "muss", "müssen"), "will": ("werde", "wird", "werden")}

ADJECTIVES = {  # the German stem, and the kinds of noun that it suits
    "old": ("alt", {"person", "animal", "thing", "place"}),
    "young": ("jung", {"person", "animal"}),
    "small": ("klein", {"person", "animal", "thing", "place"}),
    "big": ("groß", {"person", "animal", "thing", "place"}),
    "beautiful": ("schön", {"person", "animal", "thing", "place"}),
    "good": ("gut", {"person", "animal", "thing", "drink"}),
    "new": ("neu", {"thing", "place"}),
    "red": ("rot", {"thing"}),
    "cold": ("kalt", {"drink"}),
    "hot": ("heiß", {"drink"}),
}

# Articles and endings by gender (p: plural), then by case: nominative, accusative, dative.
DER = {"m": "der den dem", "f": "die die der", "n": "das das dem", "p": "die die den"}
DIES = {"m": "dieser diesen diesem", "f": "diese diese dieser", "n": "dieses dieses diesem", "p": "diese diese diesen"}
EIN = {"m": "ein einen einem", "f": "eine eine einer", "n": "ein ein einem"}
MEIN = {"m": "mein meinen meinem", "f": "meine meine meiner", "n": "mein mein meinem", "p": "meine meine meinen"}
WEAK = {"m": "e en en", "f": "e e en", "n": "e e en", "p": "en en en"}
MIXED = {"m": "er en en", "f": "e e en", "n": "es es en", "p": "en en en"}
STRONG = {"m": "er en em", "f": "e e er", "n": "es es em", "p": "e e en"}
DETERMINERS = {"the": (DER, WEAK), "this": (DIES, WEAK), "a": (EIN, MIXED), "my": (MEIN, MIXED)}
DEFINITE = ("the", "this", "my")

PRONOUNS = {  # agreement, and the German pronoun by case
    "I": (FIRST, ("ich",)),
    "he": (THIRD, ("er",)),
    "she": (THIRD, ("sie",)),
    "we": (PLURAL, ("wir",)),
    "you": (PLURAL, ("Sie",)),
    "they": (PLURAL, ("sie",)),
    "me": (FIRST, ("", "mich", "mir")),
    "him": (THIRD, ("", "ihn", "ihm")),
    "her": (THIRD, ("", "sie", "ihr")),
    "us": (PLURAL, ("", "uns", "uns")),
    "them": (PLURAL, ("", "sie", "ihnen")),
    "who": (THIRD, ("wer", "wen", "wem")),
    "what": (THIRD, ("was", "was")),
}
IT = {"m": "er ihn", "f": "sie sie", "n": "es es"}  # by gender, then by case
REFERRED = ("thing", "drink", "animal")  # what "it" can be: kinds with nouns of every gender
SUBJECT_PRONOUNS = ("I", "I", "he", "she", "we", "you", "they")
OBJECT_PRONOUNS = ("me", "him", "her", "us", "them")

HOURS = {"two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "ten": "zehn", "twelve": "zwölf"}
NUMBERS = HOURS | {
    "twenty-one": "einundzwanzig",
    "thirty-two": "zweiunddreißig",
    "forty-three": "dreiundvierzig",
    "fifty-four": "vierundfünfzig",
}
ORDINALS = {
    "first": "ersten",
    "second": "zweiten",
    "third": "dritten",
    "fifth": "fünften",
    "tenth": "zehnten",
    "twentieth": "zwanzigsten",
    "twenty-first": "einundzwanzigsten",
}
MONTHS = {
    "January": "Januar",
    "March": "März",
    "May": "Mai",
    "June": "Juni",
    "July": "Juli",
    "August": "August",
    "October": "Oktober",
    "December": "Dezember",
}
WEEKDAYS = {"Monday": "Montag", "Tuesday": "Dienstag", "Friday": "Freitag", "Sunday": "Sonntag"}
ADVERBS = {"today": "heute", "tomorrow": "morgen", "where": "wo", "when": "wann"}
CONJUNCTIONS = {"that": "dass", "because": "weil", "if": "wenn", "but": "aber"}

# What train, dev and test never hold: marks that do not meet within one clause. `recombined` consists of them.
HELD_OUT = (
    ("separable verb in a question", {"question", "separable"}),
    ("number in a subordinate clause", {"subordinate", "number"}),
    ("date in first position", {"first date"}),
    ("modal verb in a condition in first position", {"first condition", "modal"}),
    *(
        ("adjective with noun", {pair})
        for pair in ("red door", "beautiful horse", "young teacher", "small book", "new lamp", "big cat")
    ),
)

# ---------------------------------------------------------------------------------------------------------- grammar


@dataclass(frozen=True, eq=False)
class Word:
    """One word in one place; a German one names the English words that it translates. Compared by identity."""

    text: str
    sources: tuple[Word, ...] = ()


Words = tuple[Word, ...]
COMMA = Word(",")


@dataclass(frozen=True)
class Phrase:
    """The same in both languages, in one piece."""

    english: Words
    german: Words
    agreement: int = THIRD
    definite: bool = True
    marks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Predicate:
    """The verb of a clause, in the pieces that word order moves about."""

    auxiliary: Words  # English: before the subject in a question
    main: Words  # English: after "not"
    finite: Word  # German: second, first or last
    prefix: Words  # German: at the end, or one word with the finite verb when that is last
    final: Words  # German: participle, infinitive or complement, at the end
    marks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Clause:
    """A clause whose words are all there and whose order is still open."""

    subject: Phrase
    predicate: Predicate
    negator: Word | None = None  # English
    objects: tuple[Phrase, ...] = ()  # in English order: what, then to whom
    place: Phrase | None = None
    time: Phrase | None = None
    front: Phrase | None = None  # a time or a question word, first on both sides
    inverted: bool = False  # a question that is not about the subject


@dataclass(frozen=True)
class Pair:
    """One line of the corpus."""

    english: str
    german: str
    links: str
    held_out: frozenset[str]  # names in HELD_OUT of which it is an instance


Document = list[Pair]
Nouns = tuple[Noun, ...]
Frame = Callable[[Noun], Pair]


def lexical(english: str, german: str, marks: frozenset[str] = frozenset()) -> Phrase:
    """A phrase of one word a side."""
    word = Word(english)
    return Phrase((word,), (Word(german, (word,)),), marks=marks)


def pronoun(english: str, case: int = NOMINATIVE) -> Phrase:
    """A personal or interrogative pronoun."""
    agreement, forms = PRONOUNS[english]
    word = Word(english)
    return Phrase((word,), (Word(forms[case], (word,)),), agreement)


def anaphor(noun: Noun, case: int = NOMINATIVE) -> Phrase:
    """It: of German only the noun that it stands for can say which word that is."""
    word = Word("it")
    return Phrase((word,), (Word(IT[noun.gender].split()[case], (word,)),))


def noun_phrase(
    noun: Noun,
    determiner: str,
    case: int = NOMINATIVE,
    *,
    plural: bool = False,
    adjective: str = "",
    negator: Word | None = None,
) -> Phrase:
    """A noun with its determiner ("" for none, or a number, which makes it plural) and at most one adjective.

    A negator joins an indefinite article, or stands where there is none, as "kein"; a definite phrase ignores it.
    """
    plural = plural or determiner in NUMBERS
    gender = "p" if plural else noun.gender
    definite = determiner in DEFINITE
    english, german, endings = determine(determiner, gender, case, adjective, None if definite else negator)
    if adjective:
        word = Word(adjective)
        english.append(word)
        german.append(Word(ADJECTIVES[adjective][0] + endings[gender].split()[case], (word,)))
    head = Word(noun.english[plural])
    english.append(head)
    german.append(Word(noun.german[plural + (plural and case == DATIVE)], (head,)))
    marks = frozenset((f"{adjective} {noun.english[0]}", "number" if determiner in NUMBERS else ""))
    return Phrase(tuple(english), tuple(german), PLURAL if plural else THIRD, definite, marks)


def determine(
    determiner: str, gender: str, case: int, adjective: str, negator: Word | None
) -> tuple[list[Word], list[Word], dict[str, str]]:
    """The words of a determiner in both languages, and the endings of an adjective after it."""
    negation = (negator,) if negator else ()
    if determiner in NUMBERS:
        word = Word(determiner)
        return [word], [Word(NUMBERS[determiner], (word,))], STRONG
    if not determiner:
        kein = [Word("k" + EIN[gender].split()[case], negation)] if negator else []
        return [], kein, MIXED if negator else STRONG
    articles, endings = DETERMINERS[determiner]
    text = determiner
    if determiner == "a" and adjective.startswith(tuple("aeiou")):
        text = "an"
    elif determiner == "this" and gender == "p":
        text = "these"
    word = Word(text)
    german = articles[gender].split()[case]
    return [word], [Word("k" + german if negator else german, (*negation, word))], endings


def recipient(phrase: Phrase) -> Phrase:
    """To somebody: English says it with "to", German with the dative, so "to" is linked to the word with the case."""
    to = Word("to")
    first, *rest = phrase.german
    german = (Word(first.text, (to, *first.sources)), *rest)
    return Phrase((to, *phrase.english), german, phrase.agreement, phrase.definite, phrase.marks)


def place(noun: Noun, adjective: str = "") -> Phrase:
    """In a place: "in dem" is always contracted to "im"."""
    preposition = Word("in")
    inside = noun_phrase(noun, "the", DATIVE, adjective=adjective)
    article, *rest = inside.german
    if article.text == "dem":
        german = (Word("im", (preposition, *article.sources)), *rest)
    else:
        german = (Word("in", (preposition,)), article, *rest)
    return Phrase((preposition, *inside.english), german, marks=inside.marks)


def weekday(day: str) -> Phrase:
    """On Monday, am Montag."""
    preposition, word = Word("on"), Word(day)
    return Phrase((preposition, word), (Word("am", (preposition,)), Word(WEEKDAYS[day], (word,))))


def date(ordinal: str, month: str) -> Phrase:
    """On the third of May, am dritten Mai."""
    on, the, number, of, name = english = tuple(map(Word, ("on", "the", ordinal, "of", month)))
    german = (Word("am", (on, the)), Word(ORDINALS[ordinal], (number,)), Word(MONTHS[month], (of, name)))
    return Phrase(english, german, marks=frozenset({"date"}))


def clock(hour: str) -> Phrase:
    """At five o'clock, um fünf Uhr."""
    at, number, oclock = english = tuple(map(Word, ("at", hour, "o'clock")))
    return Phrase(english, (Word("um", (at,)), Word(HOURS[hour], (number,)), Word("Uhr", (oclock,))))


def predicate(verb: Verb, mode: str, agreement: int, negator: Word | None = None, inverted: bool = False) -> Predicate:
    """A verb in a mode: present, perfect, can, must, will or want.

    The auxiliary "do" belongs to the finite verb, "to" to the infinitive, and a prefix or a particle to its partner
    on the other side, or to the whole verb where it has none.
    """
    base, third, participle = verb.english
    particle = (Word(verb.particle),) if verb.particle else ()
    separable = frozenset({"separable"} if verb.prefix else ())
    if mode == "present" and (negator or inverted):
        do, head = Word(DO[agreement]), Word(base)
        finite = Word(verb.german[agreement], (do, head))
        return Predicate((do,), (head, *particle), finite, apart(verb, head, particle), (), separable)
    if mode == "present":
        head = Word(third if agreement == THIRD else base)
        finite = Word(verb.german[agreement], (head,))
        return Predicate((), (head, *particle), finite, apart(verb, head, particle), (), separable)
    if mode == "perfect":
        have, head = Word(HAVE[agreement]), Word(participle)
        finite = Word(PERFECT[verb.perfect][agreement], (have,))
        final = Word(verb.german[-1], (head, *particle))
        return Predicate((have,), (head, *particle), finite, (), (final,), separable)

    head, marks = Word(base), separable | {"modal"}
    infinitive = verb.prefix + verb.german[PLURAL]
    if mode == "want":
        want, to = predicate(WANT, "present", agreement, negator, inverted), Word("to")
        final = Word(infinitive, (to, head, *particle))
        return Predicate(want.auxiliary, (*want.main, to, head, *particle), want.finite, (), (final,), marks)
    modal = negator if negator and negator.text == "cannot" else Word(mode)
    finite = Word(MODALS[mode][agreement], (modal,))
    return Predicate((modal,), (head, *particle), finite, (), (Word(infinitive, (head, *particle)),), marks)


def apart(verb: Verb, head: Word, particle: Words) -> Words:
    """The separated prefix of a verb, if it has one."""
    return (Word(verb.prefix, particle or (head,)),) if verb.prefix else ()


def copula(complement: Phrase, agreement: int) -> Predicate:
    """To be something: an adjective or a noun phrase in the nominative."""
    be = Word(BE[agreement])
    finite = Word(PERFECT["be"][agreement], (be,))
    return Predicate((be,), complement.english, finite, (), complement.german, complement.marks)


def english_order(clause: Clause) -> Words:
    """[front] subject auxiliary not verb objects place time; in a question the auxiliary before the subject."""
    subject, auxiliary, negator = clause.subject.english, clause.predicate.auxiliary, clause.negator
    start = (*auxiliary, *subject) if clause.inverted else (*subject, *auxiliary)
    negation = () if negator is None or negator in auxiliary else (negator,)
    front = clause.front.english if clause.front else ()
    rest = [word for phrase in (*clause.objects, clause.place, clause.time) if phrase for word in phrase.english]
    return (*front, *start, *negation, *clause.predicate.main, *rest)


def middle_field(clause: Clause) -> Words:
    """What stands between the parts of the German verb: definite objects, time, indefinite objects, nicht, place.

    Of two objects the dative is first. There is no "nicht" where some word ("kein") already says it.
    """
    objects = clause.objects[::-1]
    complement = clause.predicate.final
    before, after = [o for o in objects if o.definite], [o for o in objects if not o.definite]
    time = [clause.time] if clause.time else []
    words = [word for phrase in (*before, *time, *after) for word in phrase.german]
    negator = clause.negator
    if negator and not any(negator in word.sources for word in (*words, *complement)):
        words.append(Word("nicht", (negator,)))
    return (*words, *(clause.place.german if clause.place else ()))


def verb_last(clause: Clause) -> Words:
    """The order of a German subordinate clause; a prefix joins its verb."""
    verb = clause.predicate
    finite = verb.finite
    if verb.prefix:
        sources = dict.fromkeys((*verb.finite.sources, *verb.prefix[0].sources))
        finite = Word(verb.prefix[0].text + finite.text, tuple(sources))
    return (*clause.subject.german, *middle_field(clause), *verb.final, finite)


def verb_first(clause: Clause) -> Words:
    """The order of a German yes-no question, and of what follows anything in first position."""
    verb = clause.predicate
    return (verb.finite, *clause.subject.german, *middle_field(clause), *verb.prefix, *verb.final)


def verb_second(clause: Clause) -> Words:
    """The order of a German main clause: one phrase, then the finite verb."""
    finite, *rest = verb_first(clause)
    if clause.front:
        return (*clause.front.german, finite, *rest)
    if clause.inverted:
        return (finite, *rest)
    subject = clause.subject.german
    return (*subject, finite, *rest[len(subject) :])


def held_out(clause: Clause, *position: str) -> set[str]:
    """The names in HELD_OUT of which a clause in a position is an instance."""
    phrases = (clause.subject, *clause.objects, clause.place, clause.time, clause.front)
    marks = {mark for phrase in phrases if phrase for mark in phrase.marks}
    marks |= {*position, *clause.predicate.marks}
    if clause.front:
        marks |= {f"first {mark}" for mark in clause.front.marks}
    return {name for name, needed in HELD_OUT if needed <= marks}


def simple(clause: Clause, end: str = ".") -> Pair:
    """A sentence of one clause, ended by "." or "?"."""
    names = held_out(clause, "question" if end == "?" else "statement")
    return finish(english_order(clause), verb_second(clause), end, names)


def subordinated(main: Clause, conjunction: str, clause: Clause, end: str = ".") -> Pair:
    """A main clause, then "that", "because" or "if" with a subordinate clause."""
    link = lexical(conjunction, CONJUNCTIONS[conjunction])
    names = held_out(main, "question" if end == "?" else "statement") | held_out(clause, "subordinate")
    english = (*english_order(main), *link.english, *english_order(clause))
    german = (*verb_second(main), COMMA, *link.german, *verb_last(clause))
    return finish(english, german, end, names)


def conditional(clause: Clause, main: Clause) -> Pair:
    """A condition in first position, after which the German main clause begins with its verb."""
    link = lexical("if", CONJUNCTIONS["if"])
    names = held_out(clause, "subordinate", "first condition") | held_out(main, "statement")
    english = (*link.english, *english_order(clause), COMMA, *english_order(main))
    german = (*link.german, *verb_last(clause), COMMA, *verb_first(main))
    return finish(english, german, ".", names)


def coordinated(first: Clause, second: Clause) -> Pair:
    """Two main clauses, joined by "but"."""
    link = lexical("but", CONJUNCTIONS["but"])
    names = held_out(first, "statement") | held_out(second, "statement")
    english = (*english_order(first), COMMA, *link.english, *english_order(second))
    german = (*verb_second(first), COMMA, *link.german, *verb_second(second))
    return finish(english, german, ".", names)


def finish(english: Words, german: Words, end: str, names: set[str]) -> Pair:
    """Both sides as text and the links between their words, counted from 0."""
    source, positions = spell(english, end)
    target, _ = spell(german, end)
    words = [word for word in german if word is not COMMA]
    links = sorted({(positions[source], j) for j, word in enumerate(words) for source in word.sources})
    return Pair(source, target, " ".join(f"{i}-{j}" for i, j in links), frozenset(names))


def spell(words: Words, end: str) -> tuple[str, dict[Word, int]]:
    """The text of a sentence, capitalised, its marks attached to the word before; and the place of every word."""
    texts: list[str] = []
    positions: dict[Word, int] = {}
    for word in words:
        if word is COMMA:
            texts[-1] += word.text
        else:
            positions[word] = len(texts)
            texts.append(word.text)
    text = " ".join(texts) + end
    return text[0].upper() + text[1:], positions


# ---------------------------------------------------------------------------------------------------------- sampler


class Sampler:
    """Draws sentences; every choice is here and is made by one seeded generator."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def pick(self, options: Iterable[str]) -> str:
        """One of some words, all equally likely."""
        return self.random.choice(list(options))

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self.random.random() < probability

    def noun(self, kinds: frozenset[str] | set[str], other_than: Phrase | None = None) -> Noun:
        """A noun of one of some kinds whose English form is not in another phrase."""
        taken = {word.text for word in other_than.english} if other_than else set()
        return self.random.choice([n for n in NOUNS if n.kinds & kinds and taken.isdisjoint(n.english)])

    def adjective(self, noun: Noun, probability: float = 0.4) -> str:
        """An adjective that suits a noun, or none."""
        suitable = [adjective for adjective, (_, kinds) in ADJECTIVES.items() if kinds & noun.kinds]
        return self.pick(suitable) if self.chance(probability) else ""

    def described(
        self,
        noun: Noun,
        case: int,
        negator: Word | None = None,
        *,
        definite: bool = False,
        adjective: float = 0.4,
    ) -> Phrase:
        """A noun phrase. Numbers are not negated, and what is drunk has no plural and no article of its own."""
        options = ["the", "the", "this"] + ["my"] * noun.owned
        if not definite:
            options += [""] * 6 if "drink" in noun.kinds else ["a"] * 3 + ["number"] * (negator is None)
        determiner = self.pick(options)
        if determiner == "number":
            determiner = self.pick(NUMBERS)
        plural = determiner in DEFINITE and len(noun.english) > 1 and self.chance(0.3)
        chosen = self.adjective(noun, adjective)
        return noun_phrase(noun, determiner, case, plural=plural, adjective=chosen, negator=negator)

    def subject(self, kinds: frozenset[str], negated: bool = False) -> Phrase:
        """A pronoun or a noun; with a negation a definite one, for whose negation it would otherwise be unclear."""
        if self.chance(0.4):
            return pronoun(self.pick(SUBJECT_PRONOUNS))
        return self.described(self.noun(kinds), NOMINATIVE, definite=negated)

    def object_pronoun(self, subject: Phrase, case: int) -> Phrase:
        """A pronoun that is not the subject itself."""
        speaker = subject.english[0].text in ("I", "we")
        return pronoun(self.pick(p for p in OBJECT_PRONOUNS if not (speaker and p in ("me", "us"))), case)

    def objects(self, verb: Verb, subject: Phrase, negator: Word | None) -> tuple[Phrase, ...]:
        """The objects that a verb asks for; no pronoun with an indefinite subject, which it would precede in German."""
        if not verb.takes:
            return ()
        if "person" in verb.takes and subject.definite and self.chance(0.25):
            return (self.object_pronoun(subject, verb.case),)
        what = self.described(self.noun(verb.takes, subject), verb.case, negator)
        if not verb.recipient:
            return (what,)
        if subject.definite and self.chance(0.4):
            return what, recipient(self.object_pronoun(subject, DATIVE))
        who = self.noun(frozenset({"person"}), subject)
        return what, recipient(self.described(who, DATIVE, definite=True, adjective=0.2))

    def mode(self, position: str) -> str:
        """A mode of the verb; "if he will" is not English."""
        mode = self.random.choices(["present", "perfect", "modal"], [5, 2, 3])[0]
        if mode == "modal":
            return self.pick(["can", "must", "want"] + ["will"] * (position != "condition"))
        return mode

    def negator(self, mode: str, probability: float) -> Word | None:
        """A negation; "must not" is left out, for it is another verb in German."""
        if mode == "must" or not self.chance(probability):
            return None
        return Word("cannot" if mode == "can" else "not")

    def time(self, mode: str) -> Phrase:
        """A time; what has been has been today."""
        if mode == "perfect":
            return lexical("today", ADVERBS["today"])
        kind = self.pick(["adverb", "weekday", "date", "date", "clock"])
        if kind == "adverb":
            adverb = self.pick(["today", "tomorrow"])
            return lexical(adverb, ADVERBS[adverb])
        if kind == "weekday":
            return weekday(self.pick(WEEKDAYS))
        if kind == "date":
            return date(self.pick(ORDINALS), self.pick(MONTHS))
        return clock(self.pick(HOURS))

    def place(self) -> Phrase:
        """A place."""
        noun = self.noun({"place"})
        return place(noun, self.adjective(noun, 0.2))

    def description(self, inverted: bool = False) -> Clause:
        """Somebody or something is, or is not, as an adjective says."""
        negator = None if inverted else self.negator("present", 0.25)
        noun = self.noun({"person", "animal", "thing", "drink"})
        suitable = [adjective for adjective, (_, kinds) in ADJECTIVES.items() if kinds & noun.kinds]
        if self.chance(0.3) and "person" in noun.kinds:
            subject = pronoun(self.pick(SUBJECT_PRONOUNS))
        else:
            subject = self.described(noun, NOMINATIVE, definite=True, adjective=0.0)
        adjective = self.pick(suitable)
        complement = lexical(adjective, ADJECTIVES[adjective][0])
        return Clause(subject, copula(complement, subject.agreement), negator, inverted=inverted)

    def identification(self, inverted: bool = False) -> Clause:
        """This is, or is not, something."""
        negator = None if inverted else self.negator("present", 0.25)
        noun = self.noun({self.pick(["person", "animal", "thing", "thing", "drink"])})
        determiner = self.pick(["a" if len(noun.english) > 1 else ""] * 3 + ["the"] + ["my"] * noun.owned)
        adjective = self.adjective(noun, 0.75)
        complement = noun_phrase(noun, determiner, adjective=adjective, negator=negator)
        return Clause(lexical("this", "das"), copula(complement, THIRD), negator, inverted=inverted)

    def clause(self, position: str) -> Clause:
        """A clause for a position: statement, question, subordinate or condition."""
        inverted = position == "question"
        if self.chance(0.1):
            return self.description(inverted)
        if self.chance(0.1):
            return self.identification(inverted)
        verb = self.random.choice(VERBS)
        mode = self.mode(position)
        negator = None if inverted else self.negator(mode, 0.25)
        subject = self.subject(verb.subjects, negated=negator is not None)
        return Clause(
            subject,
            predicate(verb, mode, subject.agreement, negator, inverted),
            negator,
            self.objects(verb, subject, negator),
            place=self.place() if verb.place and self.chance(0.25) else None,
            time=self.time(mode) if self.chance(0.25) else None,
            inverted=inverted,
        )

    def fronted(self) -> Clause:
        """A statement that begins with its time."""
        verb = self.random.choice(VERBS)
        mode = self.mode("statement")
        subject = self.subject(verb.subjects)
        objects = self.objects(verb, subject, None)
        return Clause(subject, predicate(verb, mode, subject.agreement), objects=objects, front=self.time(mode))

    def interrogation(self) -> Clause:
        """A question about the subject, the object, the place or the time."""
        verb = self.random.choice(VERBS)
        mode = self.mode("question")
        whom = (
            self.pick(["who"] * ("person" in verb.takes) + ["what"] * (verb.takes != {"person"})) if verb.takes else ""
        )
        asked = self.pick(
            ["subject"] + ["object"] * 2 * bool(verb.takes) + ["where"] * verb.place + ["when"] * (mode != "perfect")
        )
        if asked == "subject":
            subject = pronoun("who")
            return Clause(subject, predicate(verb, mode, THIRD), objects=self.objects(verb, subject, None))
        subject = self.subject(verb.subjects)
        objects = self.objects(verb, subject, None)
        if asked == "object":
            front, objects = pronoun(whom, verb.case), objects[1:]
        else:
            front = lexical(asked, ADVERBS[asked])
        return Clause(
            subject,
            predicate(verb, mode, subject.agreement, inverted=True),
            objects=objects,
            front=front,
            inverted=True,
        )

    def speech(self, inverted: bool) -> Clause:
        """A clause that another one with "that" completes."""
        verb = self.random.choice(SPEECH)
        negator = None if inverted else self.negator("present", 0.15)
        subject = self.subject(frozenset({"person"}), negated=True)
        main = predicate(verb, "present", subject.agreement, negator, inverted)
        return Clause(subject, main, negator, inverted=inverted)

    def sentence(self) -> Pair:
        """A sentence of any construction."""
        kinds = ["statement", "fronted", "question", "interrogation", "this", "that", "because", "if", "first", "but"]
        kind = self.random.choices(kinds, [24, 10, 12, 12, 7, 14, 7, 5, 9, 5])[0]
        if kind == "statement":
            return simple(self.clause("statement"))
        if kind == "fronted":
            return simple(self.fronted())
        if kind == "question":
            return simple(self.clause("question"), "?")
        if kind == "interrogation":
            return simple(self.interrogation(), "?")
        if kind == "this":
            return simple(self.identification())
        if kind == "that":
            asked = self.chance(0.15)
            return subordinated(self.speech(asked), "that", self.clause("subordinate"), "?" if asked else ".")
        if kind == "because":
            return subordinated(self.clause("statement"), "because", self.clause("subordinate"))
        if kind == "if":
            return subordinated(self.clause("statement"), "if", self.clause("condition"))
        if kind == "first":
            return conditional(self.clause("condition"), self.clause("statement"))
        return coordinated(self.clause("statement"), self.clause("statement"))

    def fitting(self) -> Pair:
        """A sentence of a length that the corpus holds."""
        while True:
            pair = self.sentence()
            if SHORTEST <= len(pair.english.split()) <= LONGEST:
                return pair

    # Documents. What is drawn are frames: sentences that are complete but for the noun that the document is about.

    def document(self) -> dict[str, Document]:
        """A document about a masculine, a feminine and a neuter noun, the same but for that; "it" is always the noun.

        Nothing else in it can be "it": other nouns are persons, and none of these is neuter.
        """
        kind = self.random.choices(REFERRED, [6, 2, 2])[0]
        nouns = {
            gender: self.random.choice([noun for noun in NOUNS if kind in noun.kinds and noun.gender == gender])
            for gender in IT
        }
        about = tuple(nouns.values())
        frames = [self.introduction(about), self.mention(about)]
        if self.chance(0.5):
            frames = [self.opening(), *frames] if self.chance(0.5) else [*frames, self.mention(about)]
        return {gender: [frame(noun) for frame in frames] for gender, noun in nouns.items()}

    def person(self, case: int = NOMINATIVE) -> Phrase:
        """A pronoun or a noun that is definite and not neuter."""
        if case == NOMINATIVE and self.chance(0.5):
            return pronoun(self.pick(SUBJECT_PRONOUNS))
        noun = self.random.choice([noun for noun in NOUNS if "person" in noun.kinds and noun.gender != "n"])
        return self.described(noun, case, definite=True, adjective=0.2)

    def opening(self) -> Frame:
        """A sentence of a person alone."""
        pair = simple(self.idle())
        return lambda noun: pair

    def idle(self) -> Clause:
        """Somebody does something that needs nothing."""
        verb = self.random.choice([verb for verb in VERBS if not verb.takes])
        mode, subject = self.mode("statement"), self.person()
        time = self.time(mode) if self.chance(0.25) else None
        return Clause(subject, predicate(verb, mode, subject.agreement), time=time)

    def opinion(self) -> Clause:
        """Somebody says something that is still to come."""
        verb, subject = self.random.choice(SPEECH), self.person()
        return Clause(subject, predicate(verb, "present", subject.agreement))

    def introduction(self, nouns: Nouns) -> Frame:
        """A sentence with one of the nouns in it, whichever that will be."""
        adjective = self.common_adjective(nouns) if self.chance(0.4) else ""
        drunk = any("drink" in noun.kinds for noun in nouns)
        if self.chance(0.2):
            determiner = self.pick(["my", "" if drunk else "a"])
            this = lexical("this", "das")
            return lambda noun: simple(Clause(this, copula(noun_phrase(noun, determiner, adjective=adjective), THIRD)))
        determiner = self.pick(["the", "this", "my", *(["", ""] if drunk else ["a", "a"])])
        verb = self.random.choice([verb for verb in VERBS if all(noun.kinds & verb.takes for noun in nouns)])
        mode, subject = self.mode("statement"), self.person()
        others = (recipient(self.person(DATIVE)),) if verb.recipient else ()
        time = self.time(mode) if self.chance(0.25) else None

        def sentence(noun: Noun) -> Pair:
            what = noun_phrase(noun, determiner, verb.case, adjective=adjective)
            return simple(Clause(subject, predicate(verb, mode, subject.agreement), objects=(what, *others), time=time))

        return sentence

    def mention(self, nouns: Nouns) -> Frame:
        """A sentence with "it" as its subject or its object."""
        kind = self.random.choices(["is", "question", "that", "because", "object"], [5, 2, 2, 2, 5])[0]
        if kind == "object":
            return self.done_to(nouns)
        is_so = self.state(nouns, inverted=kind == "question")
        if kind in ("is", "question"):
            return lambda noun: simple(is_so(noun), "?" if kind == "question" else ".")
        main = self.opinion() if kind == "that" else self.idle()
        return lambda noun: subordinated(main, kind, is_so(noun))

    def done_to(self, nouns: Nouns) -> Frame:
        """Somebody does something to it."""
        fitting = [verb for verb in VERBS if all(noun.kinds & verb.takes for noun in nouns) and not verb.recipient]
        verb, mode, subject = self.random.choice(fitting), self.mode("statement"), self.person()
        negator = self.negator(mode, 0.25)
        time = self.time(mode) if self.chance(0.25) else None
        acting = predicate(verb, mode, subject.agreement, negator)
        return lambda noun: simple(Clause(subject, acting, negator, (anaphor(noun, verb.case),), time=time))

    def state(self, nouns: Nouns, inverted: bool) -> Callable[[Noun], Clause]:
        """It is as an adjective says, or it sleeps."""
        negator = None if inverted else self.negator("present", 0.25)
        if all("animal" in noun.kinds for noun in nouns) and self.chance(0.3):
            (sleep,) = (verb for verb in VERBS if verb.english[0] == "sleep")
            acting = predicate(sleep, "present", THIRD, negator, inverted)
        else:
            adjective = self.common_adjective(nouns)
            acting = copula(lexical(adjective, ADJECTIVES[adjective][0]), THIRD)
        return lambda noun: Clause(anaphor(noun), acting, negator, inverted=inverted)

    def common_adjective(self, nouns: Nouns) -> str:
        """An adjective that suits all of some nouns."""
        return self.pick(name for name, (_, kinds) in ADJECTIVES.items() if all(kinds & noun.kinds for noun in nouns))


# ----------------------------------------------------------------------------------------------------------- corpus


def words(pair: Pair) -> list[str]:
    """The words of both sides as they are written, without punctuation; the side is part of a word."""
    return [f"en {w.strip('.,?')}" for w in pair.english.split()] + [
        f"de {w.strip('.,?')}" for w in pair.german.split()
    ]


def corpus(seed: int = SEED) -> dict[str, list[Pair]]:
    """All splits. No sentence of either language is in it twice, and every word outside train occurs in train."""
    sampler = Sampler(seed)
    seen: set[str] = set()
    counts: Counter[str] = Counter()

    def take(pair: Pair) -> Pair:
        seen.update((pair.english, pair.german))
        counts.update(map(str.lower, words(pair)))
        return pair

    def fresh(pair: Pair) -> bool:
        return seen.isdisjoint((pair.english, pair.german))

    pool: list[Pair] = []
    while len(pool) < sum(SIZES.values()) * 1.02:  # some of dev and test may have a word that train has not
        drawn = [sampler.fitting() for _ in range(CANDIDATES)]
        usable = [pair for pair in drawn if fresh(pair) and not pair.held_out]
        if usable:
            pool.append(take(min(usable, key=lambda pair: min(counts[word.lower()] for word in words(pair)))))
    sampler.random.shuffle(pool)

    train, rest = pool[: SIZES["train"]], pool[SIZES["train"] :]
    known = {word for pair in train for word in words(pair)}
    rest = [pair for pair in rest if known.issuperset(words(pair))]
    splits = {"train": train, "dev": rest[: SIZES["dev"]], "test": rest[SIZES["dev"] :][: SIZES["test"]]}

    wanted = {name: RECOMBINED_EACH for name, _ in HELD_OUT}
    splits["recombined"] = []
    while any(wanted.values()):
        pair = sampler.fitting()
        name = next(iter(pair.held_out), "")
        if len(pair.held_out) == 1 and wanted[name] and fresh(pair) and known.issuperset(words(pair)):
            wanted[name] -= 1
            splits["recombined"].append(take(pair))
    return splits


def documents(seed: int = SEED) -> dict[str, list[Document]]:
    """All splits of documents, none of which is there twice, in no split.

    Train has one document of each that is drawn, its noun's gender by turns; dev and test have all three, one after the
    other, so that whoever reads each sentence alone is right about one "it" of three at most.
    """
    sampler, seen = Sampler(seed + 1), set[tuple[str, ...]]()
    splits: dict[str, list[Document]] = {}
    for name, size in sorted(DOCUMENTS.items(), key=lambda split: split[0] == "documents.train"):
        splits[name] = found = []
        while size:
            drawn = sampler.document()
            chosen = [drawn[list(IT)[size % len(IT)]]] if name == "documents.train" else list(drawn.values())
            texts = {tuple(pair.english for pair in document) for document in drawn.values()}
            plain = not any(pair.held_out for document in drawn.values() for pair in document)
            if plain and seen.isdisjoint(texts) and all(len({*text}) == len(text) for text in texts):
                seen |= texts
                found += chosen
                size -= 1
    return splits


def files(seed: int = SEED) -> dict[str, bytes]:
    """The content of every file of the corpus by its name."""
    contents = {}
    for split, pairs in corpus(seed).items():
        for suffix, lines in (
            ("en", [pair.english for pair in pairs]),
            ("de", [pair.german for pair in pairs]),
            ("align", [pair.links for pair in pairs]),
        ):
            contents[f"{split}.{suffix}"] = "".join(f"{line}\n" for line in lines).encode()
    for split, found in documents(seed).items():
        for suffix, side in (("en", "english"), ("de", "german")):
            texts = ("".join(f"{getattr(pair, side)}\n" for pair in document) for document in found)
            contents[f"{split}.{suffix}"] = "\n".join(texts).encode()
    return contents


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or say which are not as they would be written; 0 is good."""
    parser = argparse.ArgumentParser(description="Write the toy corpus from its grammar.")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "data" / "toy", help="folder of the corpus"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is different")
    options = parser.parse_args(arguments)
    different = []
    for name, content in files().items():
        path = options.out / name
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        elif not path.is_file() or path.read_bytes() != content:
            different.append(str(path))
    for name in different:
        print(f"{name}: not what the grammar gives; run scripts/make_toy.py", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
