"""multipart/related bodies (RFC 2387), streamed: no part is ever held whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from isocenter.gateway.streams import closing


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its header fields and its bytes."""

    headers: tuple[tuple[str, str], ...]
    body: AsyncIterator[bytes]


def content_type(boundary: str, inner: str, transfer_syntax: str | None = None) -> str:
    suffix = f"; transfer-syntax={transfer_syntax}" if transfer_syntax else ""
    return f'multipart/related; type="{inner}"; boundary={boundary}{suffix}'


async def encode(boundary: str, parts: AsyncIterator[Part]) -> AsyncIterator[bytes]:
    """The body. A reader knows that it has everything once it sees the closing delimiter."""
    lead = b""
    async with closing(parts) as each:
        async for part in each:
            head = "".join(f"{name}: {value}\r\n" for name, value in part.headers)
            yield lead + f"--{boundary}\r\n{head}\r\n".encode("latin-1")
            async with closing(part.body) as pieces:
                async for piece in pieces:
                    yield piece
            lead = b"\r\n"
    yield lead + f"--{boundary}--\r\n".encode()


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data
