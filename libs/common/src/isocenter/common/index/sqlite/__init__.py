"""The embedded index: one SQLite file."""

from isocenter.common.index.sqlite.index import SqliteIndex

__all__ = ["SqliteIndex"]
