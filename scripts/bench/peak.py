"""Runs a command and writes the peak of its resident memory, in KiB, to a file: python peak.py FILE COMMAND...

A process begins with the peak of the one that starts it, which Linux keeps when another program takes its place. So
what starts a program to be measured must itself be small: nothing is imported here that could be left out.
"""

import os
import sys

file, *command = sys.argv[1:]
started = os.posix_spawnp(command[0], command, os.environ)
_, status, usage = os.wait4(started, 0)
with open(file, "w", encoding="ascii") as out:  # noqa: PTH123 - pathlib alone is larger than the rest
    out.write(str(usage.ru_maxrss))
code = os.waitstatus_to_exitcode(status)
sys.exit(code if code >= 0 else 128 - code)
