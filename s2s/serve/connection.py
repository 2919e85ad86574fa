"""One client's connection: uvicorn's, and what it lacks against clients that dawdle, are too many, or talk nonsense."""

from __future__ import annotations

import asyncio
import socket
import struct

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from s2s.strictjson import json_line

PATIENCE = 10.0
"""Seconds for the head of a request, from the connection or the last answer on; as many to take an answer."""
CONNECTIONS = 512
"""Clients that are connected at once: below the usual limit of open files, 1024."""


def error_body(status: int, *problems: str) -> bytes:
    """What every answer says that is not a success."""
    return json_line({"status": status, "errors": problems}).encode()


class Connection(H11Protocol):
    """Closes where the head of a request, or the taking of an answer, lasts too long; refuses in JSON.

    The body of a request and the wait for its answer are timed by the application.
    """

    _idle: asyncio.TimerHandle | None = None
    """Runs while no request is in progress."""
    _refused = False
    """Whether only the client's end of the connection is awaited."""
    _stalled: asyncio.TimerHandle | None = None
    """Runs while the client does not take what was sent."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called once, before anything is received."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > CONNECTIONS:
            self._refuse(503, f"the server has its {CONNECTIONS} connections; try again later")
            self.transport.close()  # the others need the place

    def connection_lost(self, exc: Exception | None) -> None:
        """Called once, at the end."""
        for timer in (self._idle, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called with every piece of what the client sends."""
        if self._refused:
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Called when an answer is written; the next request may have been received already."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Called when the client takes less than it is sent."""
        super().pause_writing()
        self._stalled = self.loop.call_later(PATIENCE, self._cut)

    def resume_writing(self) -> None:
        """Called when it has taken most of it."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def send_400_response(self, msg: str) -> None:
        """Called for what is not HTTP."""
        self._refuse(400, "request: is not HTTP, or its head is over 16 KiB; send a proper one")

    def _watch(self) -> None:
        """Start the timer of the head when a request is awaited, stop it when one is in progress."""
        if self._awaits_request():
            if self._idle is None:
                self._idle = self.loop.call_later(PATIENCE, self._dawdled)
        elif self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _awaits_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _dawdled(self) -> None:
        if self.conn.trailing_data[0] and not self.transport.is_closing():
            self._refuse(408, f"request: its head was not there within {PATIENCE:g} seconds; send it at once")
        else:
            self.transport.abort()

    def _cut(self) -> None:
        """End the connection with a reset: the system forgets what was not taken, and does not go on offering it."""
        connected = self.transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _refuse(self, status: int, problem: str) -> None:
        """Answer without asking the application, and say no more; too late for words where an answer has begun.

        A connection closed upon bytes that nobody read is reset, and the answer may be lost with it (RFC 9112, 9.6). So
        what still comes is read and dropped, until the client closes or patience ends.
        """
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = error_body(status, problem)
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        head = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        if not self._awaits_request():
            self.transport.close()  # the application learns so that there is nobody to answer
            return
        self.transport.write_eof()
        self._refused = True
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self.loop.call_later(PATIENCE, self.transport.abort)
