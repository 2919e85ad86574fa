"""Every failure a user can cause or meet, with its exit code; the command line prints one line and exits with it."""

from __future__ import annotations

import unicodedata


def printable(text: object) -> str:
    """Text that cannot disturb a terminal: control and format characters become backslash escapes."""
    return "".join(
        ascii(character)[1:-1] if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") else character
        for character in str(text)
    )


class S2SError(Exception):
    """An expected failure: ``where`` it is, ``what`` is wrong, what ``todo`` about it (each may be empty).

    ``str(error)`` is ``WHERE: WHAT; WHAT TO DO``, safe for a terminal.
    """

    code = 1
    told = False
    """Whether another process of the same work has said it, or something that this follows from."""

    def __init__(self, where: object, what: object, todo: object = "") -> None:
        self.where, self.what, self.todo = printable(where), printable(what), printable(todo)
        text = f"{self.where}: {self.what}" if self.where else self.what
        super().__init__(f"{text}; {self.todo}" if self.todo else text)

    def __reduce__(self) -> tuple[type[S2SError], tuple[str, str, str]]:
        """So that one process can tell another of it."""
        return type(self), (self.where, self.what, self.todo)


class UsageError(S2SError):
    """The command line asks for something that cannot be."""

    code = 2


class ConfigError(S2SError):
    """A setting is wrong. ``problems`` holds every line to print, one per mistake in the file."""

    code = 2

    def __init__(self, where: object, what: object, todo: object = "", problems: tuple[str, ...] = ()) -> None:
        super().__init__(where, what, todo)
        self.problems = problems or (str(self),)


class DataError(S2SError):
    """Input data cannot be used."""

    code = 3


class CheckpointError(S2SError):
    """A checkpoint or a model cannot be used."""

    code = 4


class DivergedError(S2SError):
    """Training met a loss or gradient that is not finite."""

    code = 5


class SystemRefused(S2SError):
    """The system refused: disk full, permission, memory."""

    code = 6


def refusal(error: OSError) -> SystemRefused:
    """What the system said, as what we say."""
    return SystemRefused(error.filename or "", error.strerror or str(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the system, or a GPU, had no more memory; torch says so in several ways."""
    words = ("out of memory", "can't allocate memory", "bad_alloc")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def out_of_memory() -> SystemRefused:
    """What to say then, where no batch can be named."""
    return SystemRefused("", "out of memory", "lower search.batch_tokens or batches.tokens, or use a smaller model")


class RunInUse(S2SError):
    """Another process holds the run directory."""

    code = 7


class Stopped(S2SError):
    """A signal ended the work after saving; the exit code is 128 + its number."""

    def __init__(self, signal_number: int, what: object, todo: object = "") -> None:
        super().__init__("", what, todo)
        self.code = 128 + signal_number
