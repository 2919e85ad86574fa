"""How much of an output is written, for the process that a launcher starts in the place of the one that wrote it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from s2s.commands.output import Output, Sink, results, standard_output
from s2s.data.text import OutputFile
from s2s.distributed import World
from s2s.errors import SystemRefused

_NAME = "output"


@dataclass
class Written:
    """What the processes before these have written."""

    begun: bool = False
    complete: bool = False
    lines: int = 0
    """Lines of input whose answers are written."""
    place: tuple[str, int] | None = None
    """See `OutputFile.place`; None of standard output."""
    closed: bool = False
    """Whether nothing was written after these lines; in a file it can be cut off."""

    @classmethod
    def before(cls, world: World) -> Self:
        """As the launcher's store has it; nothing where these processes are the first."""
        text = world.look(_NAME, lasting=True)
        return cls() if text is None else cls(**json.loads(text))

    def sink(self, output: Path | None, overwrite: bool, inputs: Sequence[Path], *, standard_input: bool) -> Sink:
        """Where the rest goes. Raises SystemRefused where nobody can go on with it."""
        if not self.begun:
            return results(output, overwrite, inputs)
        pipes = ["standard input"] if standard_input else [path for path in inputs if not path.is_file()]
        if pipes:
            raise SystemRefused(pipes[0], "a process failed, and this cannot be read again", "give a file")
        if self.place is not None and output is not None:
            name, size = self.place
            return OutputFile(output, overwrite=overwrite, inputs=inputs, begun=(name, size))
        sink = standard_output()
        sink.check()
        if not self.closed:
            what = "the process that wrote here was killed, and nobody knows how far it came"
            raise SystemRefused("standard output", what, "give --output FILE, which can be gone on with")
        return sink

    def note(self, world: World, sink: Sink, done: int, last: bool) -> None:
        """``done`` more lines than before are out, and with the ``last`` note no more will be."""
        place = None if isinstance(sink, Output) else sink.place
        now = Written(begun=True, lines=self.lines + done, place=place, closed=last)
        world.put(_NAME, json.dumps(asdict(now)), lasting=True)

    def end(self, world: World) -> None:
        """All is written, and in its place."""
        world.put(_NAME, json.dumps(asdict(Written(begun=True, complete=True))), lasting=True)
