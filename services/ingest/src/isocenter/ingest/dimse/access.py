"""Who may connect and with what: certificates and peers, read from files and read again when these change."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Final

from isocenter.common.errors import Misconfigured
from isocenter.common.peers import Peers
from isocenter.ingest.dimse.admission import Admission
from isocenter.ingest.dimse.tls import server_context

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from isocenter.ingest.dimse.tls import TlsFiles
    from isocenter.ingest.signals import Signals

LOOK_SECONDS: Final = 5.0
"""How often the files are looked at for a change."""

_Look = tuple[tuple[int, int, int], ...]


class Access:
    """What holds for the next connection. Associations that run keep what they were accepted with.

    Args:
        tls: None: no TLS port.
        peers_file: None: nobody is listed.
        strangers: see `Admission`.
        signals: told of every reading after the first.

    Raises:
        Misconfigured: a file cannot be used, or TLS is wanted and no peer is listed with a certificate.
    """

    def __init__(
        self, tls: TlsFiles | None, peers_file: Path | None, *, strangers: bool, signals: Signals
    ) -> None:
        self._tls = tls
        self._peers_file = peers_file
        self._strangers = strangers
        self._signals = signals
        self._watching: asyncio.Task[None] | None = None
        self._seen = self._look()
        self._context, self.admission = self._read()

    @property
    def context(self) -> ssl.SSLContext:
        """Of the TLS port; only where there is one."""
        if self._context is None:
            raise Misconfigured("there is no TLS port")
        return self._context

    def reload(self) -> None:
        """Takes up what the files say now, all or nothing: with a fault in one of them everything stays."""
        self._seen = self._look()
        try:
            self._context, self.admission = self._read()
        except Misconfigured as error:
            self._signals.access_not_reloaded(error)
        else:
            self._signals.access_reloaded(len(self.admission.peers or ()))

    def start(self) -> None:
        """Reloads at SIGHUP, where signals can be had, and a few seconds after a file has changed."""
        if self._tls is None and self._peers_file is None:
            return
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            loop.add_signal_handler(signal.SIGHUP, self.reload)
        self._watching = loop.create_task(self._watch())

    async def stop(self) -> None:
        if self._watching is None:
            return
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        self._watching.cancel()
        await asyncio.wait([self._watching])
        self._watching = None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if await asyncio.to_thread(self._look) != self._seen:
                self.reload()

    def _read(self) -> tuple[ssl.SSLContext | None, Admission]:
        peers = Peers.load(self._peers_file) if self._peers_file is not None else None
        admission = Admission(peers, strangers=self._strangers)
        if self._tls is None:
            return None, admission
        if not any(peer.certificates for peer in peers or ()):
            raise Misconfigured(
                "TLS: no peer is listed with a certificate (ISOCENTER_PEERS_FILE): nobody could associate"
            )
        return server_context(self._tls), admission

    def _look(self) -> _Look:
        """Time, size and inode of each file, through symbolic links: mounted secrets are swapped as such."""
        files = [] if self._tls is None else [self._tls.certificate, self._tls.key, self._tls.client_ca]
        if self._peers_file is not None:
            files.append(self._peers_file)
        looks = []
        for file in files:
            try:
                found = file.stat()
            except OSError:
                looks.append((0, 0, 0))  # being replaced: the next look will differ
            else:
                looks.append((found.st_mtime_ns, found.st_size, found.st_ino))
        return tuple(looks)
