"""Blocks of a translation among processes: in order, each line once, whoever is slow, gone or started again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from s2s import distributed
from s2s.commands import divided
from s2s.commands.divided import Blocks, Numbered
from s2s.commands.output import results
from s2s.commands.written import Written
from s2s.data.text import OutputFile
from s2s.distributed import World
from s2s.errors import DataError, S2SError, Stopped, SystemRefused
from s2s.interfaces import EOS
from s2s.search.beam import Wishes
from s2s.search.translate import Line, Taken, _Asked

Check = Callable[[], None]


def taken(number: int) -> Taken:
    """A line that says its number, behind two others."""
    part = _Asked([number, EOS], [0, -1], Wishes(), ([number - 1, EOS], [number - 2, EOS]))
    return Taken(number, Line(f"line {number}", "begin", ("a", "b"), True), [part])


def windows(sizes: Sequence[int]) -> Iterator[list[Taken]]:
    """Windows of so many lines."""
    number = 0
    for size in sizes:
        yield [taken(one) for one in range(number + 1, number + size + 1)]
        number += size


def shout(lines: list[Numbered], check: Check) -> Iterator[list[str]]:
    """What stands for translating: two lines of output for each."""
    check()
    for number, line, before in lines:
        assert (line, before) == (taken(number).line, taken(number).before)
        yield [f"{number}", line.text.upper()]


def expected(first: int, last: int) -> list[list[str]]:
    return [[f"{number}", f"LINE {number}"] for number in range(first, last + 1)]


def serving(
    store: Store, rank: int, translate: Callable[..., Iterator[list[str]]] = shout
) -> tuple[threading.Thread, list[BaseException | None]]:
    """Another process, as a thread; what it ended with stands in the list."""
    ended: list[BaseException | None] = []

    def serve() -> None:
        try:
            Blocks(World(rank, 3, store, "one"), translate).serve()
        except BaseException as error:
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread, ended


@pytest.mark.parametrize("sizes", [[], [1], [3, 1, 4, 1, 5, 9, 2, 6], [2] * 40])
def test_every_line_once_and_in_order(sizes: list[int]) -> None:
    store = HashStore()
    others = [serving(store, rank) for rank in (1, 2)]
    answers = list(Blocks(World(0, 3, store, "one"), shout).answers(windows(sizes)))
    assert answers == expected(1, sum(sizes))
    for thread, ended in others:
        thread.join(10)
        assert ended == [None]


def test_what_is_read_ahead_is_bounded_and_nothing_stays_in_the_store() -> None:
    store, read = HashStore(), [0]

    def counted() -> Iterator[list[Taken]]:
        for window in windows([2] * 50):
            read[0] += 1
            yield window

    world = World(0, 3, store, "one")
    for done, _ in enumerate(Blocks(world, shout).answers(counted())):
        assert read[0] <= done // 2 + 3 * divided._AHEAD
    assert not any(world.has(f"block/{number}") for number in range(50))
    assert not any(world.has(f"answer/{number}", lasting=True) for number in range(50))


def test_the_block_of_a_process_that_is_gone_is_done_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has taken the first block, and never answers."""
    monkeypatch.setattr(divided, "_IDLE", 0.05)
    store = HashStore()
    assert World(1, 3, store, "one").ticket("block") == 0
    answers = list(Blocks(World(0, 3, store, "one"), shout).answers(windows([2, 2, 2])))
    assert answers == expected(1, 6)


def test_a_slow_process_leaves_a_block_that_another_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told between two batches, and ends with the others."""
    monkeypatch.setattr(divided, "_IDLE", 0.05)
    begun, overtaken = threading.Event(), threading.Event()

    def slow(lines: list[Numbered], check: Check) -> Iterator[list[str]]:
        begun.set()
        for _ in range(1000):
            time.sleep(0.01)
            try:
                check()
            except Exception:
                overtaken.set()
                raise
        yield from shout(lines, check)

    store = HashStore()
    thread, ended = serving(store, 1, translate=slow)

    def late() -> Iterator[list[Taken]]:
        for number, window in enumerate(windows([2, 2, 2])):
            yield window
            if not number:
                assert begun.wait(10) or number

    blocks = Blocks(World(0, 3, store, "one"), shout)
    assert list(blocks.answers(late())) == expected(1, 6)
    thread.join(10)
    assert ended == [None] and overtaken.is_set()


def test_an_error_in_the_input_comes_after_the_lines_before_it() -> None:
    def broken() -> Iterator[list[Taken]]:
        yield from windows([2, 3])
        raise DataError("input: line 6", "is too long")

    answers = Blocks(World(0, 3, HashStore(), "one"), shout).answers(broken())
    assert [next(answers) for _ in range(5)] == expected(1, 5)
    with pytest.raises(DataError, match="line 6"):
        next(answers)


def test_a_signal_while_the_input_is_read_ends_the_work_at_once() -> None:
    """Unlike an error in it: what was shown is not translated first."""

    def stopped() -> Iterator[list[Taken]]:
        yield from windows([2, 3])
        raise Stopped(15, "stopped by SIGTERM after 0 lines")

    begun: list[int] = []

    def noted(lines: list[Numbered], check: Check) -> Iterator[list[str]]:
        begun.append(lines[0][0])
        return shout(lines, check)

    with pytest.raises(Stopped):
        next(Blocks(World(0, 3, HashStore(), "one"), noted).answers(stopped()))
    assert begun == []


def test_a_failure_of_another_process_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its exit code and its words, which the first one is to say; where it does not listen, they are said."""
    monkeypatch.setattr(distributed, "_FAREWELL", 0.05)
    store = HashStore()
    first, other = (World(rank, 2, store, "one") for rank in (0, 1))
    with pytest.raises(DataError) as alone, other.led():
        raise DataError("the model", "cannot do that")
    assert not alone.value.told
    with pytest.raises(S2SError) as caught, first.led():
        list(Blocks(first, shout).answers(windows([1])))
    assert (caught.value.code, caught.value.told, str(caught.value)) == (3, False, "the model: cannot do that")
    with pytest.raises(S2SError) as late, other.led():
        Blocks(other, shout).serve()
    assert (late.value.code, late.value.told) == (3, True)


def test_nobody_waits_for_a_process_that_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper of the store leaves when the others have heard why."""
    monkeypatch.setattr(distributed, "_FAREWELL", 60.0)
    store, ended = HashStore(), threading.Event()

    def fail() -> None:
        with suppress(DataError), World(0, 2, store, "one").led():
            raise DataError("line 6", "is too long")
        ended.set()

    threading.Thread(target=fail, daemon=True).start()
    other = World(1, 2, store, "one")
    with pytest.raises(S2SError) as caught, other.led():
        while True:
            other.check_others()
    assert (caught.value.code, caught.value.told) == (3, True)
    assert ended.wait(10)


@pytest.mark.parametrize("skip", [0, 1, 4, 5, 9, 10])
def test_processes_that_are_started_again_go_on(skip: int) -> None:
    """With the answers that are there, after the lines that are written; none is answered twice."""
    store, sizes = HashStore(), [4, 1, 4, 1]
    first = Blocks(World(0, 2, store, "one"), shout)
    begun = first.answers(windows(sizes))
    assert [next(begun) for _ in range(min(skip, 9))] == expected(1, min(skip, 9))
    answered: list[int] = []

    def noted(lines: list[Numbered], check: Check) -> Iterator[list[str]]:
        answered.append(lines[0][0])
        return shout(lines, check)

    again = Blocks(World(0, 2, store, "two"), noted)
    assert list(again.answers(windows(sizes), skip=skip)) == expected(skip + 1, 10)
    assert len(answered) == len(set(answered))
    assert all(number + size > skip for number, size in zip([1, 5, 6, 10], sizes, strict=True) if number in answered)


def test_a_text_of_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2s.distributed._PIECE", 3)
    store = HashStore()
    one, other = (World(rank, 2, store, "one") for rank in (0, 1))
    assert other.look("text") is None
    one.put("text", "größer als drei")
    assert other.look("text") == "größer als drei" and other.has("text")
    assert other.look("text", lasting=True) is None
    one.drop("text")
    assert other.look("text") is None and not other.has("text")


# --- the output -------------------------------------------------------------------------------------------------------


def test_a_file_is_gone_on_with(tmp_path: Path) -> None:
    """Under its temporary name after a kill, under that of a partial file after a signal; what is uncertain goes."""
    for ending in ("kill", "signal"):
        path, world = tmp_path / ending, World(0, 2, HashStore(), "one")
        before = Written.before(world)
        assert not before.begun and not before.complete
        sink = before.sink(path, False, [], standard_input=False)
        assert isinstance(sink, OutputFile)
        sink.__enter__()
        sink.write_line("one")
        sink.flush()
        before.note(world, sink, 1, last=False)
        sink.write_line("two")
        sink.flush()
        if ending == "signal":
            failure = SystemRefused("", "a signal")
            sink.__exit__(type(failure), failure, None)
        else:
            sink._file.close()
        after = Written.before(World(0, 2, world._lasting, "two"))
        assert (after.lines, after.begun, after.complete) == (1, True, False)
        with after.sink(path, False, [], standard_input=False) as again:
            again.write_line("TWO")
            after.note(world, again, 1, last=True)
        after.end(world)
        assert path.read_bytes() == b"one\nTWO\n"
        assert [name.name for name in tmp_path.iterdir() if name.name.startswith((".s2s", f"{ending}."))] == []
        assert Written.before(world).complete


def test_what_cannot_be_gone_on_with(tmp_path: Path) -> None:
    world = World(0, 2, HashStore(), "one")
    sink = results(None, False, [])
    Written().note(world, sink, 7, last=True)
    after = Written.before(world)
    assert after.sink(None, False, [], standard_input=False) and after.lines == 7
    with pytest.raises(SystemRefused, match=r"standard input: .*cannot be read again"):
        after.sink(None, False, [], standard_input=True)
    Written().note(world, sink, 7, last=False)
    with pytest.raises(SystemRefused, match=r"standard output: .*nobody knows how far"):
        Written.before(world).sink(None, False, [], standard_input=False)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").touch()
    inputs = [tmp_path / "text", tmp_path / "pipe"]
    Written().note(world, sink, 7, last=True)
    with pytest.raises(SystemRefused, match=r"pipe: .*cannot be read again"):
        Written.before(world).sink(None, False, inputs, standard_input=False)
    assert Written.before(world).sink(None, False, inputs[:1], standard_input=False)
    lost = Written(begun=True, lines=1, place=(".s2s-gone", 4))
    with (
        pytest.raises(SystemRefused, match="is gone; begin again"),
        lost.sink(tmp_path / "out", False, [], standard_input=False),
    ):
        pass
