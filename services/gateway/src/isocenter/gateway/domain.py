"""The gateway's own vocabulary: requests, replies and refusals of DICOMweb, without any web framework."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from isocenter.common.dicom.uids import is_valid_uid
from isocenter.common.errors import Permanent

ROOT = "/dicom-web"
"""Path of the service root. Ingest answers POST below it, the gateway GET and HEAD."""
MAX_FRAMES_PER_REQUEST = 10_000
_FRAME_NUMBER = re.compile(r"[0-9]{1,10}")

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What a handler may know of an HTTP request.

    Attributes:
        base_url: absolute address of the service root, without a trailing slash.
        path: values of the route's parameters, not checked yet.
        query: decoded name and value pairs in their order.
        headers: lower-case names; repeated fields joined with ", ".
    """

    base_url: str
    path: Mapping[str, str] = field(default_factory=dict)
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def accept(self) -> str | None:
        """The `accept` query parameter outranks the header (PS3.18 section 8.3.3)."""
        for name, value in self.query:
            if name == "accept":
                return value
        return self.headers.get("accept")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler answers. `length` is the number of bytes of a streamed body where it is known before."""

    status: int
    media_type: str | None = None
    headers: Headers = ()
    body: bytes | AsyncIterator[bytes] = b""
    length: int | None = None


class BrokenOff(Permanent):
    """An answer that had begun cannot be completed: the connection is cut, so nobody takes it for whole."""

    code: ClassVar[str] = "broken-off"


class Problem(Permanent):
    """A refusal for the client, sent as application/problem+json (RFC 9457).

    `detail` may name a parameter and what is held or supported; it never repeats a value from an object.
    """

    code: ClassVar[str] = "http-problem"

    def __init__(
        self, status: int, slug: str, detail: str, *, parameter: str | None = None, headers: Headers = ()
    ) -> None:
        super().__init__(slug, status=status)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.parameter = parameter
        self.headers = headers


def bad_request(parameter: str, detail: str) -> Problem:
    return Problem(400, "invalid-parameter", detail, parameter=parameter)


def not_found(what: str) -> Problem:
    return Problem(404, "not-found", f"There is no such {what} here.")


def not_acceptable(detail: str) -> Problem:
    return Problem(406, "not-acceptable", detail)


@dataclass(frozen=True, slots=True)
class Target:
    """The DICOM hierarchy that a path names."""

    study: str | None = None
    series: str | None = None
    instance: str | None = None

    @property
    def path(self) -> str:
        steps = (("studies", self.study), ("series", self.series), ("instances", self.instance))
        return "".join(f"/{name}/{uid}" for name, uid in steps if uid is not None)

    @property
    def what(self) -> str:
        if self.instance is not None:
            return "instance"
        return "study" if self.series is None else "series"


def target_of(path: Mapping[str, str]) -> Target:
    """Checks every UID of the path.

    Raises:
        Problem: 400, naming the path parameter.
    """
    for name in ("study", "series", "instance"):
        if name in path and not is_valid_uid(path[name]):
            raise bad_request(name, f"The {name} in the path is not a valid UID (PS3.5 section 9.1).")
    return Target(path.get("study"), path.get("series"), path.get("instance"))


def parse_frames(text: str) -> tuple[int, ...]:
    """Frame numbers of `frames/{list}`: comma separated, counted from 1, in the order asked for.

    Raises:
        Problem: 400 for anything else.
    """
    items = text.split(",")
    if len(items) > MAX_FRAMES_PER_REQUEST:
        raise bad_request(
            "frames", f"At most {MAX_FRAMES_PER_REQUEST} frames can be asked for in one request."
        )
    numbers = tuple(int(item) if _FRAME_NUMBER.fullmatch(item) else 0 for item in items)
    if min(numbers) < 1:
        raise bad_request("frames", "The frame list must be positive integers, separated by commas.")
    return numbers
