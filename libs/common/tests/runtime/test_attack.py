"""HTTP clients that connect and say nothing, or too little."""

from __future__ import annotations

import asyncio

import pytest

from isocenter.common import serving
from isocenter.common.health import Receive, Send
from isocenter.common.service import Scope

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


async def _slow(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(0.6)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("sent", [b"", b"GET / HT", REQUEST])
async def test_a_connection_without_a_whole_request_header_is_closed(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "HEADER_SECONDS", 0.2)
    async with serving.serve_http(_slow, "127.0.0.1", 0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_the_header_of_a_second_request_is_not_waited_for_for_ever_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "HEADER_SECONDS", 0.2)
    async with serving.serve_http(_slow, "127.0.0.1", 0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST + b"\r\n")
        assert b"204" in await reader.readuntil(b"\r\n\r\n")
        writer.write(REQUEST)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_a_request_that_is_answered_slowly_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEADER_SECONDS", 0.2)
    async with serving.serve_http(_slow, "127.0.0.1", 0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST + b"\r\n")
        assert b"204" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.close()
