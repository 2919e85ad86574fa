"""A running server, for the tests that ask it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import Outcome, finish, start


class Server:
    """A running `s2s serve`."""

    def __init__(self, *arguments: str | Path) -> None:
        command = ["serve", *map(os.fspath, arguments), "--port", "0"]
        self.process: subprocess.Popen[bytes] = start(command)
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline().decode()
        found = re.search(r" at http://127\.0\.0\.1:(\d+)/ ", self.said)
        assert found, self.said + self.process.communicate()[1].decode()
        self.port = int(found[1])

    def send(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """One request on a connection of its own; names of headers are written with _ for -."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            if method == "POST":
                named.setdefault("Content-Type", "application/json")
            client.request(method, path, body, named)
            response = client.getresponse()
            return response.status, response.read(), response.headers
        finally:
            client.close()

    def ask(self, sentences: list[str], **more: Any) -> list[dict[str, Any]]:
        """The translations of sentences."""
        status, body, _ = self.send("POST", "/api/translate", json.dumps({"sentences": sentences, **more}).encode())
        assert status == 200, body
        translations: list[dict[str, Any]] = json.loads(body)["translations"]
        return translations

    def raw(self, data: bytes) -> bytes:
        """What comes back for these bytes until the server closes, or until an answer is whole."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as client:
            client.sendall(data)
            found = b""
            while not found.endswith(b"}") and (part := client.recv(1 << 16)):
                found += part
            return found

    def peak(self) -> int:
        """The most memory that it has had, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.M)
        assert found
        return int(found[1]) // 1024

    def end(self, number: signal.Signals) -> Outcome:
        """Its end by a signal; all that it said after the first line."""
        self.process.send_signal(number)
        return finish(self.process)
