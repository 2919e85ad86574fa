"""`s2s serve` in a process of its own, round trained models: the answers of `s2s translate`, and no way past it."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import random
import re
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from harness import Cli, assert_error
from served import Server

LIMIT = 1 << 20
HOSTILE = "a <script>alert(1)</script> \"'&"
"""The name of a model's directory; nothing of it may become an element or an attribute."""


@pytest.fixture(scope="module")
def server(finished: Path, finished_transformer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two models, one of a name that means harm; at the end it must have had nothing to complain of."""
    hostile = tmp_path_factory.mktemp("models") / HOSTILE.replace("/", "|")
    shutil.copytree(finished_transformer, hostile)
    running = Server(finished, hostile)
    yield running
    outcome = running.end(signal.SIGTERM)
    assert outcome.code == 143
    assert re.fullmatch(r"s2s: error: stopped by SIGTERM after \d+ requests\n", outcome.err), outcome.err


def listed(cli: Cli, run: Path, lines: list[str], *more: str) -> list[dict[str, Any]]:
    """What `s2s translate` makes of lines."""
    stdin = "".join(f"{line}\n" for line in lines).encode()
    outcome = cli("translate", "--model", run, "--format", "jsonl", *more, stdin=stdin)
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.decode().split("\n")[:-1]]


LINES = [
    "The old dog sees a man.", "", "The  small\tking finds a tree .", "The red man buys a book.", "a", "König \x07 €",
    "The old bird loves a dog. " * 9,
]  # fmt: skip


@pytest.mark.fault("X10")
def test_answers_are_those_of_translate(server: Server, finished: Path, finished_transformer: Path, cli: Cli) -> None:
    assert server.ask(LINES) == listed(cli, finished, LINES)
    wide = ["--n-best", "4", "--beam", "4", "--search", "length_penalty=gnmt", "--search", "length_alpha=0.6"]
    asked = server.ask(LINES, n_best=4, beam=4, length_penalty="gnmt", length_alpha=0.6)
    assert asked == listed(cli, finished, LINES, *wide)
    other = json.loads(server.send("GET", "/api/models")[1])["models"][1]["name"]
    assert server.ask(LINES, model=other) == listed(cli, finished_transformer, LINES)


@pytest.mark.fault("X10")
def test_two_hundred_requests_at_once(server: Server, finished: Path, cli: Cli, project: Path) -> None:
    """Each of its own lines, settings and length; every answer is the one that the command line gives.

    Scores are float32 and other sentences are in the batch, so their last digit is left out.
    """
    known = [*LINES, *(project / "valid.en").read_text().splitlines()]
    ways: list[tuple[dict[str, Any], list[str]]] = [
        ({}, []),
        ({"beam": 3, "n_best": 3}, ["--beam", "3", "--n-best", "3"]),
        ({"length_penalty": "none"}, ["--search", "length_penalty=none"]),
    ]
    right = [
        {line: rounded(one) for line, one in zip(known, listed(cli, finished, known, *options), strict=True)}
        for _, options in ways
    ]
    draw = random.Random(1)
    requests = [(draw.randrange(len(ways)), draw.sample(known, draw.randint(1, 8))) for _ in range(200)]
    with ThreadPoolExecutor(200) as clients:
        answers = list(clients.map(lambda request: server.ask(request[1], **ways[request[0]][0]), requests))
    for (way, lines), answer in zip(requests, answers, strict=True):
        assert [one["line"] for one in answer] == [*range(1, len(lines) + 1)]
        assert [one["hypotheses"] for one in answer] == [right[way][line] for line in lines]


def rounded(translation: dict[str, Any]) -> list[dict[str, Any]]:
    """The hypotheses, whose numbers equal those that are the same but for rounding."""
    return [
        {name: pytest.approx(value, abs=1e-4) if isinstance(value, float) else value for name, value in one.items()}
        for one in translation["hypotheses"]
    ]


def test_attention_is_drawn(server: Server, finished: Path, tmp_path: Path, cli: Cli) -> None:
    """The picture is the one that `s2s translate --attention` draws."""
    line = 'The old dog sees a "<b>&man".'
    outcome = cli("translate", "--model", finished, "--attention", tmp_path / "map.svg", stdin=f"{line}\n".encode())
    assert outcome.code == 0
    (answer,) = server.ask([line], attention=True)
    svg = answer["hypotheses"][0]["attention"]
    assert svg.strip() == (tmp_path / "map.svg").read_text().strip()
    assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_what_is_offered(server: Server) -> None:
    status, body, _ = server.send("GET", "/api/models")
    answer = json.loads(body)
    assert status == 200
    assert [one["name"] for one in answer["models"]] == ["rnn", HOSTILE.replace("/", "|")]
    assert answer["models"][0]["search"] == {"beam": 2, "length_penalty": "average", "length_alpha": 1.0}
    assert all(one["attention"] is True and one["parameters"] > 1000 for one in answer["models"])
    assert answer["limits"] == {
        "body_bytes": 1 << 20, "sentences": 128, "tokens": 512, "beam": 16, "requests": 256, "seconds": 60.0,
    }  # fmt: skip
    assert "/" not in body.decode().replace("|script", "")  # no path of this machine
    assert json.loads(server.send("GET", "/healthz")[1])["status"] == "ok"


# --- the page ---------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Elements and attributes of a page as a browser would see them, and the text of its options."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.options: list[str] = []
        """The text in each."""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self.lasttag == "option":
            self.options.append(data.strip())


@pytest.mark.fault("X10", "X4")
def test_the_page(server: Server) -> None:
    status, body, headers = server.send("GET", "/")
    page = body.decode()
    found = Elements(page)
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    assert found.tags.count("script") == found.tags.count("style") == 1
    assert ("data-name", HOSTILE.replace("/", "|")) in found.attributes
    offered = json.loads(server.send("GET", "/api/models")[1])["models"]
    models = [f"{one['name']}, update {one['update']}" for one in offered]
    penalties = ["its own", "average", "gnmt", "none"]
    assert [option for option in found.options if option] == [*penalties, *models, "no other model", *models]
    assert not {name for name, _ in found.attributes} & {"onclick", "onmouseover", "onload", "onerror", "style"}
    assert not [value for name, value in found.attributes if name == "src" or (value or "").startswith("http")]
    labelled = {value for name, value in found.attributes if name == "for"}
    assert labelled >= {"sentence", "beam", "n_best", "length_penalty", "length_alpha", "model-1", "model-2"}
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ") and policy.endswith("; frame-ancestors 'none'")
    assert "connect-src 'self'" in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


@pytest.mark.fault("X10")
@pytest.mark.parametrize("path", ["/", "/healthz", "/api/models", "/api/translate", "/nowhere"])
def test_every_answer_has_the_headers_that_browsers_obey(server: Server, path: str) -> None:
    status, _, headers = server.send("GET", path)
    assert status == {"/api/translate": 405, "/nowhere": 404}.get(path, 200)
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers and "server" not in headers


# --- what is refused --------------------------------------------------------------------------------------------------


def error(status: int, answer: tuple[int, bytes, http.client.HTTPMessage]) -> str:
    """What an answer complains of, which must have this status, in JSON, and show nothing of the program."""
    assert answer[0] == status, answer
    assert answer[2]["content-type"] == "application/json"
    body = json.loads(answer[1])
    assert body["status"] == status and body["errors"]
    assert "Traceback" not in str(body) and ".py" not in str(body)
    return "\n".join(body["errors"])


@pytest.mark.fault("X10")
def test_bodies_that_are_too_large(server: Server) -> None:
    padding = b'{"sentences": ["a"], "model": null' + b" " * LIMIT
    exact = padding[: LIMIT - 1] + b"}"
    assert server.send("POST", "/api/translate", exact)[0] == 200
    assert "1048576 bytes" in error(413, server.send("POST", "/api/translate", exact + b" "))
    assert "1048576 bytes" in error(413, server.send("POST", "/api/translate", b" " * (20 * LIMIT)))
    chunks = (b" " * 50_000 for _ in range(400))
    assert "1048576 bytes" in error(413, server.send("POST", "/api/translate", chunks))  # sent without a length


@pytest.mark.fault("X10")
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b'{"sentences": ["a"], "beam": Infinity}', 400),
        (b"{}", 422),
        (json.dumps({"sentences": ["a"] * 129}).encode(), 422),
        (json.dumps({"sentences": ["dog " * 513]}).encode(), 422),
        (b'{"sentences": ["a"], "beam": 17}', 422),
        (b'{"sentences": ["a"], "n_best": 3}', 422),
        (b'{"sentences": ["\\udcff"]}', 422),
    ],
    ids=range(10),
)
def test_bodies_that_are_no_request(server: Server, body: bytes, status: int) -> None:
    error(status, server.send("POST", "/api/translate", body))


@pytest.mark.fault("X10")
def test_a_request_cannot_name_a_path(server: Server, finished: Path) -> None:
    for name in (str(finished), "../rnn", "./rnn", "rnn/", "rnn/checkpoints/step-00000040", ""):
        body = json.dumps({"sentences": ["a"], "model": name}).encode()
        assert error(422, server.send("POST", "/api/translate", body)).startswith("model: there is none of this name")


@pytest.mark.fault("X10")
def test_other_methods_paths_and_kinds(server: Server) -> None:
    good = b'{"sentences": ["a"]}'
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "GET"):
        assert error(405, server.send(method, "/api/translate"))
    assert server.send("PUT", "/api/translate")[2]["allow"] == "POST"
    for path in ("/x", "/healthz/", "/../../etc/passwd", "//evil.example/", "/api", "/%2e%2e/"):
        error(404, server.send("GET", path))
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        error(415, server.send("POST", "/api/translate", good, Content_Type=kind))
    assert server.send("POST", "/api/translate", good, Content_Type="application/JSON; charset=utf-8")[0] == 200


@pytest.mark.fault("X10")
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:1", 200), ("127.0.0.1", 200), ("[::1]:8080", 200), ("192.168.1.7", 200),
        ("evil.example", 400), ("localhost.evil.example", 400), ("127.0.0.1.evil.example:80", 400), ("", 400),
        ("localhost@evil.example", 400), ("1270.0.1", 400), ("a b", 400),
    ],
)  # fmt: skip
def test_names_that_are_not_ours(server: Server, host: str, status: int) -> None:
    """DNS rebinding: a page of evil.example whose address has become ours."""
    answer = server.send("GET", "/api/models", Host=host)
    assert answer[0] == status
    if status == 400:
        assert error(400, answer).startswith("Host: ")


HEAD = b"POST /api/translate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.fault("X10")
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HEAD + b"\r\n", 411),
        (HEAD + b"Content-Length: -1\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: 2x\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ", 400),
        (HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: 99999999999999999999\r\n\r\n{}", 413),
        (HEAD + b'Content-Length: 3\r\n\r\n{"sentences": ["a"]}', 400),  # shorter than it is
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nnot a number\r\n", 400),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 400),
        (b"GET /" + b"a" * 100_000, 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    ],
    ids=range(16),
)
def test_requests_that_are_not_http_or_lie(server: Server, data: bytes, status: int) -> None:
    answer = server.raw(data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"content-type: application/json" in head.lower()
    assert json.loads(body)["status"] == status


@pytest.mark.fault("X10")
def test_memory_is_bounded(server: Server) -> None:
    """Thirty clients, each with as much as is read before it is refused, twice."""
    server.ask(LINES)
    deep = b"[" * LIMIT
    lists = b'{"sentences": [' + b"[]," * (LIMIT // 3 - 20) + b"[]]}"
    names = b"{" + b",".join(b'"%d":0' % number for number in range(95_000)) + b"}"
    bodies = [deep, lists, names, b" " * (2 * LIMIT), b'{"sentences": ["' + b"a" * (LIMIT - 30) + b'"]}'] * 6
    before = server.peak()
    for _ in range(2):
        with ThreadPoolExecutor(30) as clients:
            answers = list(clients.map(lambda body: server.send("POST", "/api/translate", body)[0], bodies))
        assert answers == [400, 422, 422, 413, 422] * 6
    assert server.peak() - before < 300, "MiB more than before"
    assert server.ask(["a"])


# --- beginning and end ------------------------------------------------------------------------------------------------


@pytest.mark.fault("X10", "S5")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_end_it(finished: Path, number: signal.Signals) -> None:
    running = Server(finished)
    running.ask(["a"])
    with socket.create_connection(("127.0.0.1", running.port)) as idle:
        idle.sendall(b"GET / HTT")
        outcome = running.end(number)
    assert outcome.code == 128 + number
    assert re.fullmatch(rf"s2s: error: stopped by {number.name} after \d requests\n", outcome.err), outcome.err


def test_what_is_asked_of_the_server_on_the_command_line(finished: Path) -> None:
    """Names that it is known by, how many may wait, and for how long."""
    running = Server(finished, "--allow-host", "translate.example", "--queue", "7", "--timeout", "9")
    try:
        for host, status in (("translate.example", 200), ("127.0.0.1", 200), ("other.example", 400)):
            assert running.send("GET", "/healthz", Host=host)[0] == status, host
        limits = json.loads(running.send("GET", "/api/models")[1])["limits"]
        assert (limits["requests"], limits["seconds"]) == (7, 9)
    finally:
        assert running.end(signal.SIGINT).code == 130


@pytest.mark.fault("X10")
def test_the_port_is_in_use(finished: Path, cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        outcome = cli("serve", finished, "--port", str(other.getsockname()[1]))
    assert_error(outcome, 6, "127.0.0.1 port", "Address already in use", "--port")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{run}x"], 4, "no config.yaml here"),
        (["{run}", "{run}/"], 2, "is given twice"),
        (["{run}", "--host", "no.such.name.invalid"], 2, "is not known here"),
        (["{run}", "--host", "192.0.2.1"], 6, "give an address of this machine"),
        (["{run}", "--search", "beam=17"], 2, "over 16"),
        (["{run}", "--search", "bean=2"], 2, "did you mean"),
        (["{run}", "--checkpoint", "step-3"], 4, "step-3"),
    ],
)
def test_what_cannot_be_served(finished: Path, cli: Cli, arguments: list[str], code: int, words: str) -> None:
    outcome = cli("serve", *(argument.format(run=finished) for argument in arguments), "--port", "0")
    assert_error(outcome, code, words)


def test_nothing_is_served_without_a_model(cli: Cli) -> None:
    assert cli("serve").code == 2


@pytest.mark.parametrize("name", ["starlette", "uvicorn"])
def test_the_extra_is_not_installed(finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert_error(cli("serve", finished), 2, f"{name} is not installed", "pip install -e '.[serve]'")


@pytest.mark.fault("X10")
def test_only_this_machine_reaches_it(server: Server) -> None:
    """By default it listens at the loopback address alone; the table of sockets says so."""
    sockets = [line.split()[1:4] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    own = {address for address, _, state in sockets if state == "0A" and address.endswith(f":{server.port:04X}")}
    assert own == {f"0100007F:{server.port:04X}"}
