"""Pulls over DICOMweb: WADO-RS, and QIDO-RS to find what is missing (PS3.18 sections 10.4 and 10.6).

No redirect is followed, no proxy of the environment is used, and nothing of an answer becomes part of a URL
but UIDs that are UIDs. An answer is asked for as it is stored, without content coding.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import httpx

from isocenter.common.dicom.uids import is_valid_uid
from isocenter.common.errors import Misconfigured
from isocenter.ingest.pull.domain import Place, PullFailed, PullReason, PullRefused, chosen
from isocenter.ingest.pull.tasks import each
from isocenter.ingest.stow.negotiation import BadContentType, UnsupportedMediaType, body_type

if TYPE_CHECKING:
    from isocenter.ingest.pull.ports import Sink
    from isocenter.ingest.pull.sources import DicomwebSource

AS_STORED: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_PAGE: Final = 1000
_MAX_PAGE_BYTES: Final = 32 << 20
_SERIES: Final = "0020000E"
_SOP_INSTANCE: Final = "00080018"
_SOP_CLASS: Final = "00080016"


class DicomwebRemote:
    """One study at a DICOMweb service."""

    def __init__(self, source: DicomwebSource, path: str, study: str) -> None:
        """Raises Misconfigured: a secret or certificate cannot be read."""
        base = (source.endpoint or source.root).rstrip("/")
        self._source = source
        self._study = f"{base}/{path}/studies/{study}" if path else f"{base}/studies/{study}"
        headers = {"Accept-Encoding": "identity", "User-Agent": "isocenter-ingest"}
        auth = None
        if source.token is not None:
            headers["Authorization"] = f"Bearer {source.token.read()}"
        if source.username is not None and source.password is not None:
            auth = httpx.BasicAuth(source.username, source.password.read())
        self._client = httpx.AsyncClient(
            auth=auth,
            headers=headers,
            verify=_tls(source),
            timeout=httpx.Timeout(source.idle_seconds, connect=min(10.0, source.idle_seconds)),
            limits=httpx.Limits(max_connections=source.connections),
            follow_redirects=False,
            trust_env=False,
        )

    async def places(self) -> list[Place] | None:
        """None where the service has no QIDO-RS that can be used: the whole study is fetched then."""
        found: dict[str, Place] = {}
        try:
            while len(found) <= self._source.max_instances:
                page = await self._page(len(found))
                new = {place.sop_instance_uid: place for place in page}
                if not new.keys() - found.keys():
                    break
                found |= new
        except (PullFailed, PullRefused):
            return None
        return list(found.values()) or None

    async def fetch(self, sink: Sink, here: set[str], places: list[Place] | None) -> None:
        missing, of_series = chosen(places, here) if places else ([], {})
        if places is None or len(missing) == len(places):
            await self._retrieve(self._study, sink)
            return
        sink.known([place.sop_instance_uid for place in places if place.sop_instance_uid in here])
        urls = []
        for series, instances in of_series.items():
            root = f"{self._study}/series/{series}"
            urls += [f"{root}/instances/{each_.sop_instance_uid}" for each_ in instances] or [root]
        await each(urls, lambda url: self._retrieve(url, sink), self._source.connections)

    async def close(self) -> None:
        await self._client.aclose()

    async def _retrieve(self, url: str, sink: Sink) -> None:
        async with self._get(url, AS_STORED) as answer:
            try:
                body = body_type(answer.headers.get("content-type"), answer.headers.get("content-encoding"))
            except (UnsupportedMediaType, BadContentType):
                raise PullRefused(PullReason.MALFORMED_ANSWER) from None
            if body.boundary is None:
                await sink.store(answer.aiter_raw())
            else:
                await sink.parts(body.boundary, answer.aiter_raw())

    async def _page(self, offset: int) -> list[Place]:
        url = f"{self._study}/instances?limit={_PAGE}&offset={offset}"
        async with self._get(url, "application/dicom+json", empty=True) as answer:
            body = bytearray()
            async for data in answer.aiter_raw():
                body += data
                if len(body) > _MAX_PAGE_BYTES:
                    raise PullRefused(PullReason.MALFORMED_ANSWER)
        try:
            documents = json.loads(body) if body.strip() else []
            places = [_place(document) for document in documents]
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise PullRefused(PullReason.MALFORMED_ANSWER) from None
        return places

    @contextlib.asynccontextmanager
    async def _get(self, url: str, accept: str, *, empty: bool = False) -> AsyncIterator[httpx.Response]:
        try:
            async with self._client.stream("GET", url, headers={"Accept": accept}) as answer:
                _check(answer.status_code, empty=empty)
                yield answer
        except httpx.TimeoutException:
            raise PullFailed(PullReason.TOO_SLOW) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise PullFailed(PullReason.SOURCE_UNAVAILABLE, cause=type(error).__name__) from None


def _check(status: int, *, empty: bool) -> None:
    if status == 200 or (empty and status == 204):
        return
    if 300 <= status < 400:
        raise PullRefused(PullReason.REDIRECTED, status=status)
    if status in {401, 403, 407}:
        raise PullFailed(PullReason.ACCESS_DENIED, status=status)
    if status in {204, 404, 410}:
        raise PullFailed(PullReason.STUDY_NOT_FOUND, status=status)
    raise PullFailed(PullReason.SOURCE_UNAVAILABLE, status=status)


def _place(document: Any) -> Place:
    series, instance = _value(document, _SERIES), _value(document, _SOP_INSTANCE)
    if not is_valid_uid(series) or not is_valid_uid(instance):
        raise ValueError
    sop_class = document.get(_SOP_CLASS, {}).get("Value", [""])[0]
    return Place(series, instance, sop_class if isinstance(sop_class, str) else "")


def _value(document: Any, tag: str) -> str:
    return str(document[tag]["Value"][0])


def _tls(source: DicomwebSource) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if source.ca_file is None else str(source.ca_file))
        if source.certificate_file is not None:
            context.load_cert_chain(source.certificate_file, source.key_file)
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured(
            f"source {source.name}: its certificates cannot be used: {type(error).__name__}"
        ) from None
    return context
