"""Ports that several processes share: chosen and kept by their supervisor."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from isocenter.common.errors import Misconfigured

if TYPE_CHECKING:
    from types import TracebackType


class Reservation:
    """Holds ports without listening on them (SO_REUSEPORT), so that only those who listen get connections.

    A port stays ours while no process listens on it, between the death of one and the start of the next.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def take(self, host: str, port: int) -> int:
        """The port, or one that is free where it is 0.

        Raises:
            Misconfigured: somebody else has it.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            # Who shares a port is not told of others who do: ask first as one who does not.
            with socket.socket(family) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind((host, port))
            kept = self._stack.enter_context(socket.socket(family))
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            kept.bind((host, port))
        except OSError as error:
            raise Misconfigured(f"cannot listen on {host}:{port}: {error.strerror}") from None
        return int(kept.getsockname()[1])
