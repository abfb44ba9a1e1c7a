"""The cut of the network is one: connections neither open nor answer, and are as before afterwards."""

from __future__ import annotations

import socket
import threading

import pytest
from testbed import network
from testbed.cache import must_be_available
from testbed.server import ServerUnavailable


@pytest.fixture
def echo() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                while data := peer.recv(100):
                    peer.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    return listener


def test_nothing_passes_while_it_is_cut(echo: socket.socket) -> None:
    try:
        network.prepare()
    except ServerUnavailable as error:
        if must_be_available():
            pytest.fail(f"NOT RUN: {error}")
        pytest.skip(f"NOT RUN: {error}")
    port = echo.getsockname()[1]
    with echo, socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        peer.sendall(b"1")
        assert b"1" == peer.recv(1)
        peer.settimeout(0.5)
        with network.cut(port):
            peer.sendall(b"2")
            with pytest.raises(TimeoutError):
                peer.recv(1)
            with pytest.raises(TimeoutError):
                socket.create_connection(("127.0.0.1", port), timeout=0.5)
        peer.settimeout(10)
        assert b"2" == peer.recv(1)
