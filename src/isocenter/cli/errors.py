"""How a command ends when it cannot do its work: one clear line, what to do, and a documented exit code."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command; `isocenter --help` prints this table."""

    OK = 0
    REFUSED = 1
    """The command ran, and something it handled was refused or found wrong."""
    USAGE = 2
    UNREACHABLE = 3
    """No platform answers, or it went away in the middle."""
    BUSY = 4
    """Another process holds the data directory, or a running platform is in the way."""
    MISCONFIGURED = 5
    NOT_FOUND = 6
    BUG = 70
    INTERRUPTED = 130


EXIT_TABLE = """
0 done
1 done, and something was refused or found wrong
2 wrong usage
3 no platform answers
4 the data directory is in use, or a running platform is in the way
5 settings or machine cannot be used as they are
6 no such study, topic or record
70 a bug: please report it
130 interrupted
""".strip()


class CommandError(Exception):
    """A command that ends early. `hint` says what to do next."""

    def __init__(self, message: str, *, hint: str = "", code: Exit = Exit.REFUSED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
