"""The server round a model that can be held, counted and broken: who waits, who goes together, who is turned away."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from scripted import Copier
from torch import Tensor, nn

from s2s.commands import serve as command
from s2s.commands.serve import Options, names_of
from s2s.data.tokenizer import Tokenizers, WhitespaceTokenizer
from s2s.errors import UsageError
from s2s.search.beam import SearchSettings
from s2s.search.sampling import SamplingSettings
from s2s.serve import app, connection
from s2s.serve.asked import Asked, Refused, read
from s2s.serve.desk import Desk, Offered
from s2s.tree import Tree

WORDS = WhitespaceTokenizer(b"a\nb\nc\nbad\n<script>alert(1)</script>")
VOCABULARY = 9
BAD = 7
SHORT = 1.0
"""Seconds of patience here."""


class Echo(Copier, nn.Module):
    """Attends to each word as it says it. ``gate`` holds it; at the word "bad" it breaks."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        Copier.__init__(self, VOCABULARY)
        self.weight = nn.Parameter(torch.zeros(3))
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        """Released at every batch that begins."""
        self.batches: list[int] = []
        """Sentences of each batch."""

    def start(self, source: Tensor, *more: Any) -> tuple[Tree, Tree]:
        self.batches.append(len(source))
        self.begun.release()
        assert self.gate.wait(30)
        if (source == BAD).any():
            raise RuntimeError("a secret of the model")
        return super().start(source, *more)

    def step(self, token: Tensor, memory: Tree, state: Tree) -> tuple[Tensor, Tensor | None, Tree]:
        words, _, after = super().step(token, memory, state)
        weights = torch.zeros(memory[0].shape)
        weights[torch.arange(len(token)), state] = 1.0
        return words, weights, after


class _Trained(NamedTuple):
    model: Echo
    tokenizers: Tokenizers
    update: int


class Server:
    """Where it listens, what it serves, and the desk behind it."""

    def __init__(self, port: int, model: Echo, desk: Desk) -> None:
        self.port, self.model, self.desk = port, model, desk

    def ask(self, *sentences: str, **more: Any) -> tuple[int, dict[str, Any]]:
        """Status and answer."""
        status, body, _ = self.send("POST", "/api/translate", json.dumps({"sentences": sentences, **more}).encode())
        return status, body

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            client.request(method, path, body, {"Content-Type": "application/json"} if headers is None else headers)
            response = client.getresponse()
            text = response.read()
            is_json = response.headers["content-type"] == "application/json"
            return response.status, json.loads(text) if is_json else text.decode(), response.headers
        finally:
            client.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def waiting(self, count: int) -> None:
        """Until so many requests have been taken."""
        until(lambda: self.send("GET", "/healthz")[1]["requests"] == count)

    def at_the_desk(self, count: int) -> None:
        """Until so many requests have been read too, and wait at the desk."""
        until(lambda: len(self.desk._waiting) == count)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


@contextmanager
def serving(search: SearchSettings | None = None, **options: Any) -> Iterator[Server]:
    """A server in threads of this process."""
    model, desk = Echo(), Desk()
    trained: Any = _Trained(model, Tokenizers(WORDS, WORDS), 7)
    offered = Offered("echo", trained, search or SearchSettings(beam=2), has_attention=True)
    with command._listener("127.0.0.1", 0) as listener, ThreadPoolExecutor(2) as threads:
        port = listener.getsockname()[1]
        uvicorn = command._server(desk, [offered], Options(**options))
        running = [threads.submit(desk.work), threads.submit(uvicorn.run, [listener])]
        try:
            yield Server(port, model, desk)
        finally:
            model.gate.set()
            desk.close()
            uvicorn.should_exit = True
        for thread in running:
            thread.result(30)


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as threads:
        yield threads


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (app, connection):
        monkeypatch.setattr(module, "PATIENCE", SHORT)


def texts(answer: dict[str, Any]) -> list[str]:
    """The best translations, whose lines are counted from 1."""
    assert [one["line"] for one in answer["translations"]] == [*range(1, len(answer["translations"]) + 1)]
    return [one["hypotheses"][0]["text"] for one in answer["translations"]]


def held(server: Server, clients: ThreadPoolExecutor) -> Future[tuple[int, dict[str, Any]]]:
    """A first request, at which the model stands still."""
    server.model.gate.clear()
    first = clients.submit(server.ask, "a")
    assert server.model.begun.acquire(timeout=30)
    return first


# --- answers ----------------------------------------------------------------------------------------------------------


def test_answers_line_by_line() -> None:
    with serving() as server:
        status, answer = server.ask("a  b", "", "c\n a", " ", "b")
        assert status == 200
        assert texts(answer) == ["a b", "", "c a", "", "b"]
        assert (answer["model"], answer["update"]) == ("echo", 7)
        assert [len(one["hypotheses"]) for one in answer["translations"]] == [1] * 5
        status, answer = server.ask("a b c", n_best=3, beam=4, model="echo", length_penalty="none", length_alpha=0.5)
        scores = [one["score"] for one in answer["translations"][0]["hypotheses"]]
        assert status == 200 and len(scores) == 3 and scores == sorted(scores, reverse=True)


def test_pictures_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 x 3 squares and 2 x 2 fit 13, another does not; a blank line has none."""
    monkeypatch.setattr("s2s.serve.desk._SQUARES", 13)
    with serving() as server:
        _, answer = server.ask("a <script>alert(1)</script> c", "", "b b", "a", attention=True)
        pictures = [one["hypotheses"][0]["attention"] for one in answer["translations"]]
        assert [picture is not None for picture in pictures] == [True, False, True, False]
        assert pictures[0].startswith("<svg ") and "<script" not in pictures[0]
        assert pictures[0].count("→ ") >= 9
        assert "attention" not in server.ask("a")[1]["translations"][0]["hypotheses"][0]


@pytest.mark.fault("X10")
def test_requests_that_wait_together_go_together(clients: ThreadPoolExecutor) -> None:
    with serving() as server:
        first = held(server, clients)
        sentences = [["a b", "b"] if number % 2 else ["c"] for number in range(20)]
        others = [clients.submit(server.ask, *some) for some in sentences]
        wider = [clients.submit(server.ask, "b a", beam=3) for _ in range(5)]
        server.at_the_desk(25)
        server.model.gate.set()
        assert texts(first.result(30)[1]) == ["a"]
        assert [texts(one.result(30)[1]) for one in others] == sentences
        assert [texts(one.result(30)[1]) for one in wider] == [["b a"]] * 5
    assert server.model.batches[0] == 1 and sorted(server.model.batches[1:]) == [5, 30]


def test_a_model_that_samples_answers_one_by_one(clients: ThreadPoolExecutor) -> None:
    """Draws depend on the number of the line, so a request must not move the lines of another."""
    search = SearchSettings(beam=1, sampling=SamplingSettings(seed=3, temperature=20.0))
    with serving(search) as server:
        alone = server.ask("a b c", "b", n_best=3)
        first = held(server, clients)
        others = [clients.submit(server.ask, "a b c", "b", n_best=3) for _ in range(3)]
        server.waiting(4)
        server.model.gate.set()
        assert [one.result(30) for one in others] == [alone] * 3
        assert first.result(30)[0] == 200
    assert len({one["text"] for one in alone[1]["translations"][0]["hypotheses"]}) > 1  # it did draw


@pytest.mark.fault("X10")
def test_one_request_cannot_break_another(clients: ThreadPoolExecutor, capfd: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        first = held(server, clients)
        good = [clients.submit(server.ask, "a b") for _ in range(3)]
        bad = clients.submit(server.ask, "bad a")
        server.waiting(5)
        server.model.gate.set()
        assert texts(first.result(30)[1]) == ["a"]
        assert [texts(one.result(30)[1]) for one in good] == [["a b"]] * 3
        status, answer = bad.result(30)
        assert status == 500 and "secret" not in str(answer) and "Traceback" not in str(answer)
        assert texts(server.ask("c")[1]) == ["c"]
    assert "a secret of the model" in capfd.readouterr().err  # for whoever runs the server


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("X10")
def test_more_requests_than_may_wait(clients: ThreadPoolExecutor) -> None:
    with serving(queue=3) as server:
        taken = [held(server, clients), *(clients.submit(server.ask, "b") for _ in range(2))]
        server.waiting(3)
        status, answer, headers = server.send("POST", "/api/translate", b'{"sentences": ["a"]}')
        assert (status, answer["status"], headers["retry-after"]) == (429, 429, "2")
        assert server.send("GET", "/")[0] == 200  # the page and the rest are there all the same
        server.model.gate.set()
        assert [one.result(30)[0] for one in taken] == [200] * 3
        assert server.ask("a")[0] == 200


@pytest.mark.fault("X10")
def test_who_waits_too_long_is_told_and_forgotten(clients: ThreadPoolExecutor) -> None:
    with serving(timeout=2.0) as server:
        first = held(server, clients)
        status, answer = server.ask("b", "c")
        assert status == 503 and "within 2 seconds" in answer["errors"][0]
        assert first.result(30)[0] == 503
        server.model.gate.set()
        assert server.ask("c")[0] == 200
    assert server.model.batches == [1, 1]  # nobody translated what nobody waited for


@pytest.mark.fault("X10")
def test_who_waits_to_be_read_waits_no_longer(clients: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request holds the reader; another, behind it, is told as soon as its time is over, and a third is gone."""
    begun, gate, read = threading.Semaphore(0), threading.Event(), app.read

    def slow(body: bytes) -> Asked:
        begun.release()
        assert gate.wait(30)
        return read(body)

    monkeypatch.setattr(app, "read", slow)
    with serving(timeout=3.0) as server:
        first = clients.submit(server.ask, "a")
        assert begun.acquire(timeout=30)
        with server.connect() as client:
            client.sendall(b"POST /api/translate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           b"Content-Length: 20\r\n\r\n" + b'{"sentences": ["b"]}')  # fmt: skip
            server.waiting(2)
        server.waiting(1)  # before its time was over, and that of the first
        assert not first.done()
        began = time.monotonic()
        assert server.ask("c")[0] == first.result(30)[0] == 503
        assert time.monotonic() - began < 20
        server.waiting(0)
        gate.set()
        assert server.ask("d")[0] == 200
    assert begun.acquire(blocking=False) and not begun.acquire(blocking=False)  # only the last was read after that
    assert server.model.batches == [1]


@pytest.mark.fault("X10")
def test_who_goes_away_is_forgotten(clients: ThreadPoolExecutor) -> None:
    with serving() as server:
        first = held(server, clients)
        body = b'{"sentences": ["b", "c"]}'
        head = b"POST /api/translate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with server.connect() as client:
            client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            server.waiting(2)
        server.waiting(1)
        server.model.gate.set()
        assert first.result(30)[0] == 200
        assert server.ask("c")[0] == 200
    assert server.model.batches == [1, 1]


@pytest.mark.fault("X10")
def test_who_waits_when_the_server_stops_is_told(clients: ThreadPoolExecutor) -> None:
    with serving() as server:
        waiting = [held(server, clients), clients.submit(server.ask, "b")]
        server.waiting(2)
        server.desk.close()
        for one in waiting:
            status, answer = one.result(30)
            assert status == 503 and "stopping" in answer["errors"][0]
        assert server.ask("c")[0] == 503


HEAD = b"POST /api/translate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def answered(client: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    found = b""
    while part := client.recv(1 << 16):
        found += part
    return found


def dripped(client: socket.socket, data: bytes) -> bytes:
    """Send a byte now and then, always before patience ends, and give the answer."""
    client.settimeout(SHORT / 4)
    for byte in data:
        client.sendall(bytes([byte]))
        try:
            first = client.recv(1 << 16)
        except TimeoutError:
            continue
        client.settimeout(30)
        return first + answered(client)
    raise AssertionError("never answered")


@pytest.mark.fault("X10")
@pytest.mark.parametrize(
    ("sent", "slow", "status"),
    [
        (b"", HEAD, b"408"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /healthz HTTP", b"408"),  # the second of two
        (HEAD + b"Content-Length: 26\r\n\r\n", b'{"sentences":["a"],      ', b"408"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n" * 9, b"408"),
    ],
    ids=["head", "second head", "body", "chunks"],
)
@pytest.mark.usefixtures("impatient")
def test_who_sends_byte_by_byte(sent: bytes, slow: bytes, status: bytes) -> None:
    with serving() as server, server.connect() as client:
        client.sendall(sent)
        if sent.startswith(b"GET"):
            first = b""
            while not first.endswith(b"}\n"):
                first += client.recv(1 << 16)
            assert first.startswith(b"HTTP/1.1 200 ")
        answer = dripped(client, slow)
        assert answer.startswith(b"HTTP/1.1 " + status) and answer.count(b'"status": ' + status) == 1
        assert server.ask("a")[0] == 200


@pytest.mark.fault("X10")
@pytest.mark.usefixtures("impatient")
def test_who_says_nothing_or_announces_more_than_comes() -> None:
    with serving() as server, server.connect() as silent, server.connect() as lying:
        lying.sendall(HEAD + b'Content-Length: 1000\r\n\r\n{"sentences": ["a"]}')
        assert answered(lying).startswith(b"HTTP/1.1 408 ")
        assert answered(silent) == b""


@pytest.mark.fault("X10")
@pytest.mark.usefixtures("impatient")
def test_who_goes_on_sending_after_a_refusal_reads_it_first() -> None:
    """A socket closed upon bytes that nobody read resets the connection, and the answer may be lost with it."""
    with serving() as server, server.connect() as client:
        client.sendall(b"nonsense\r\n\r\n")
        found = client.recv(1 << 16)
        for _ in range(3):
            client.sendall(b"more of it\r\n\r\n")
            time.sleep(SHORT / 20)
        assert (found + answered(client)).startswith(b"HTTP/1.1 400 ")
        with pytest.raises(ConnectionError):  # it is read for a while, not for ever
            for _ in range(40):
                client.sendall(b"and more\r\n\r\n")
                time.sleep(SHORT / 10)
        assert server.ask("a")[0] == 200


@pytest.mark.fault("X10")
@pytest.mark.usefixtures("impatient")
def test_who_does_not_read_is_cut_off() -> None:
    """Requests one after the other, and not a word of the answers is taken."""
    with serving() as server, server.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(ConnectionError):
            for _ in range(100_000):
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        assert server.ask("a")[0] == 200


@pytest.mark.fault("X10")
def test_more_connections_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECTIONS", 4)
    with serving() as server:
        clients = [server.connect() for _ in range(4)]
        until(lambda: server_is_full(server))
        for client in clients:
            client.close()
        until(lambda: not server_is_full(server))
        assert server.ask("a")[0] == 200


def server_is_full(server: Server) -> bool:
    with server.connect() as client:
        client.settimeout(SHORT)
        try:
            return client.recv(100).startswith(b"HTTP/1.1 503 ")
        except TimeoutError:
            return False


# --- what is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("X10")
@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "is not JSON"),
        (b"\xff{}", 400, "byte 1, 0xff, is not UTF-8"),
        (b'{"sentences": ["\xc3"]}', 400, "byte 17, 0xc3, is not UTF-8"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"a":' * 100_000, 400, "nested too deeply"),
        (b'{"sentences": ["a"], "sentences": ["b"]}', 400, "there twice"),
        (b'{"sentences": ["a"], "length_alpha": NaN}', 400, "NaN is not a finite number"),
        (b'{"sentences": ["a"], "length_alpha": 1e999}', 400, "1e999 is not a finite number"),
        (b'{"sentences": ["a"], "beam": 1' + b"0" * 5000 + b"}", 400, "is not JSON"),
        (b'{"sentences": ["a"]} x', 400, "Extra data"),
        (b"[]", 422, "body: "),
        (b"null", 422, "body: "),
        (b"{}", 422, "sentences: "),
        (b'{"sentences": "a"}', 422, "sentences: "),
        (b'{"sentences": []}', 422, "sentences: "),
        (b'{"sentences": ["a", 1]}', 422, "sentences.1: "),
        (b'{"sentences": ["\\ud800"]}', 422, "sentences.0: "),
        (json.dumps({"sentences": ["a"] * 129}).encode(), 422, "sentences: "),
        (b'{"sentences": ["a"], "beam": 0}', 422, "beam: "),
        (b'{"sentences": ["a"], "beam": 17}', 422, "beam: "),
        (b'{"sentences": ["a"], "beam": 1000000000000000000000000}', 422, "beam: "),
        (b'{"sentences": ["a"], "beam": true}', 422, "beam: "),
        (b'{"sentences": ["a"], "beam": 2.5}', 422, "beam: "),
        (b'{"sentences": ["a"], "n_best": 17}', 422, "n_best: "),
        (b'{"sentences": ["a"], "attention": "yes"}', 422, "attention: "),
        (b'{"sentences": ["a"], "batch_tokens": 1}', 422, "batch_tokens: "),
        (b'{"sentences": ["a"], "path": "/etc"}', 422, "path: "),
    ],
    ids=range(27),
)
def test_what_is_no_request(body: bytes, status: int, words: str) -> None:
    with pytest.raises(Refused) as caught:
        read(body)
    assert caught.value.status == status
    assert len(caught.value.problems) == 1 and words in caught.value.problems[0]
    assert len(caught.value.problems[0]) < 300


def test_many_mistakes_are_not_all_told() -> None:
    with pytest.raises(Refused) as caught:
        read(json.dumps({"sentences": [1] * 100, **{f"{number}" * 1000: number for number in range(100)}}).encode())
    assert len(caught.value.problems) == 10
    assert max(map(len, caught.value.problems)) < 300


@pytest.mark.fault("X10")
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"n_best": 5}, "n_best: 5 is more than the beam, 4"),
        ({"n_best": 4, "beam": 3}, "n_best: 4 is more than the beam, 3"),
        ({"length_penalty": "best"}, "length_penalty: "),
        ({"length_alpha": -1}, "length_alpha: "),
    ],
)
def test_settings_that_cannot_be(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        Asked.model_validate({"sentences": ["a"], **asked}).search(SearchSettings(beam=4))
    assert caught.value.status == 422


def test_settings_are_laid_over_the_runs_own() -> None:
    own = SearchSettings(beam=4, length_alpha=0.7, min_length=3)
    assert Asked(sentences=["a"], n_best=4).search(own) == own
    asked = Asked(sentences=["a"], beam=7, length_penalty="gnmt", length_alpha=1, n_best=7)
    assert asked.search(own) == SearchSettings(beam=7, length_penalty="gnmt", length_alpha=1.0, min_length=3)
    sampled = SearchSettings(beam=1, sampling=SamplingSettings())
    assert Asked(sentences=["a"], n_best=16).search(sampled) == sampled
    with pytest.raises(Refused, match="sampling"):
        Asked(sentences=["a"], beam=2).search(sampled)


@pytest.mark.fault("X10")
def test_sentences_that_are_too_long() -> None:
    with serving() as server:
        assert server.ask(" ".join(["a"] * 512))[0] == 200
        status, answer = server.ask("a", " ".join(["a"] * 513), "b")
        assert (status, len(answer["errors"])) == (422, 1)
        assert answer["errors"][0].startswith("sentences.1: has 513 tokens")


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/runs/one"], ["one"]),
        (["/runs/one", "/runs/two/"], ["one", "two"]),
        (["/x/run", "/y/run", "/y/other"], ["x/run", "y/run", "other"]),
        (["/a/x/run", "/b/x/run"], ["a/x/run", "b/x/run"]),
        (["/run", "/x/run"], ["//run", "x/run"]),
        (["/runs/a\nb\x1b\u202e"], [r"a\nb\x1b\u202e"]),
    ],
)
def test_names(paths: Sequence[str], names: list[str]) -> None:
    assert names_of([Path(path) for path in paths]) == names


def test_a_model_given_twice(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(UsageError, match="given twice"):
        names_of([tmp_path / "run", tmp_path / "other", tmp_path / "link"])
