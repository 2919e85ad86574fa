"""`s2s serve`: trained models behind a web page and a JSON API, until a signal ends it."""

from __future__ import annotations

import errno
import importlib
import socket
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from s2s.commands.models import load, search_settings
from s2s.commands.stop import Stop
from s2s.errors import SystemRefused, UsageError, printable
from s2s.progress import say, warn
from s2s.search.translate import gives_attention
from s2s.training.trainer import resolve_device

if TYPE_CHECKING:
    import uvicorn

    from s2s.serve.desk import Desk, Offered

_GRACE = 5
"""Seconds that clients have, when the server stops, to take their answers."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says, beside the models."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0: any that is free."""
    allow_host: Sequence[str] = ()
    """Names under which clients may know the server, beside its addresses and localhost."""
    checkpoint: str = "best"
    device: str = "auto"
    search: Sequence[str] = ()
    """``KEY=VALUE`` over the search settings of every model."""
    timeout: float = 60.0
    """Seconds that a request waits for its translation."""
    queue: int = 256
    """Requests to translate that are taken at once."""


def serve(models: Sequence[Path], options: Options) -> None:
    """Serve ``models``. Ends by raising Stopped.

    Raises UsageError where the extra is not installed, a host does not exist or a model is given twice; SystemRefused
    where the port cannot be had; CheckpointError and ConfigError as other commands do.
    """
    _require_extra()
    names = names_of(models)
    with _listener(options.host, options.port) as listener:
        _run(listener, _offered(models, names, options), options)


def names_of(models: Sequence[Path]) -> list[str]:
    """What clients call the models: the last parts of their paths, as many as tell them apart.

    Raises UsageError for a model that is given twice.
    """
    paths = [path.resolve() for path in models]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise UsageError(models[number], "is given twice", "name every model once")
    return [_shortest(path, [other for other in paths if other != path]) for path in paths]


def _shortest(path: Path, others: Sequence[Path]) -> str:
    for count in range(1, len(path.parts) + 1):
        parts = path.parts[-count:]
        if all(other.parts[-count:] != parts for other in others):
            break
    return printable("/".join(parts))


def _require_extra() -> None:
    try:
        for name in ("starlette", "uvicorn"):
            importlib.import_module(name)
    except ImportError:
        todo = "pip install -e '.[serve]' in the folder of s2s"
        raise UsageError("s2s serve", f"{name} is not installed", todo) from None


def _listener(host: str, port: int) -> socket.socket:
    """A socket that takes connections already. Raises UsageError or SystemRefused, with the way out."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError("--host", f"{host!r} is not known here", "give an address, as 127.0.0.1") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just ended does not hinder us
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        todo = {
            errno.EADDRINUSE: "end what uses it, or give another --port",
            errno.EACCES: "give a --port from 1024 on",
            errno.EADDRNOTAVAIL: "give an address of this machine as --host",
        }.get(error.errno or 0, "")
        raise SystemRefused(f"{host} port {port}", f"cannot be listened to: {error.strerror}", todo) from error
    if not ip_address(address[0]).is_loopback:
        warn(f"{host} can be reached by other machines, whose users may all use the models: there is no password")
    return listener


def _offered(models: Sequence[Path], names: Sequence[str], options: Options) -> list[Offered]:
    from s2s.serve.asked import BEAM
    from s2s.serve.desk import Offered

    device = resolve_device(options.device)
    offered = []
    for path, name in zip(models, names, strict=True):
        search = search_settings(path, options.search)
        if search.beam > BEAM:
            raise UsageError(path, f"its search.beam, {search.beam}, is over {BEAM}", f"give --search beam={BEAM}")
        trained = load(path, device, options.checkpoint)
        has_attention = gives_attention(trained.model, device)
        if search.coverage_penalty and not has_attention:
            what = "has no attention for search.coverage_penalty to count"
            raise UsageError(path, what, "give --search coverage_penalty=0")
        offered.append(Offered(name, trained, search, has_attention))
    return offered


def _run(listener: socket.socket, offered: Sequence[Offered], options: Options) -> None:
    """Serve until a signal comes, which raises Stopped here; the two threads have ended then."""
    from s2s.serve.desk import Desk

    desk = Desk()
    server = _server(desk, offered, options)
    with ThreadPoolExecutor(2, "serve") as threads:
        try:
            with Stop(lambda: f"after {server.server_state.total_requests} requests"):
                running = [threads.submit(desk.work), threads.submit(server.run, [listener])]
                say(f"serving {', '.join(model.name for model in offered)} at {_url(listener)} (end with Ctrl-C)")
                wait(running, return_when=FIRST_COMPLETED)
        finally:
            desk.close()
            server.should_exit = True
    for thread in running:
        thread.result()


def _server(desk: Desk, offered: Sequence[Offered], options: Options) -> uvicorn.Server:
    import uvicorn

    from s2s.serve.app import application
    from s2s.serve.connection import Connection

    hosts = [options.host, *options.allow_host]
    app = application(desk, offered, hosts=hosts, queue=options.queue, timeout=options.timeout)
    config = uvicorn.Config(
        app, http=Connection, loop="asyncio", ws="none", lifespan="off", interface="asgi3", proxy_headers=False,
        server_header=False, access_log=False, log_config=None, log_level="critical",
        timeout_graceful_shutdown=_GRACE,
    )  # fmt: skip
    return uvicorn.Server(config)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
