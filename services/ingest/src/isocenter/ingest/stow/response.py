"""What a STOW-RS request hears: the Store Instances Response (PS3.18 annex I), or a problem document."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from starlette.responses import Response

from isocenter.common.errors import RejectReason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from isocenter.ingest.domain import Outcome

DICOM_JSON: Final = "application/dicom+json"
PROBLEM_JSON: Final = "application/problem+json"
RETRY_AFTER_SECONDS: Final = 10

_TITLES: Final = {
    400: "Bad Request",
    404: "Not Found",
    406: "Not Acceptable",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """RFC 9457. `detail` is ours word for word: nothing of the request is quoted."""
    document = {"type": "about:blank", "title": _TITLES[status], "status": status, "detail": detail}
    return Response(json.dumps(document), status, dict(headers or {}), media_type=PROBLEM_JSON)


def status_of(outcomes: Sequence[Outcome]) -> int:
    """PS3.18 table 10.5.3-1: 200 all, 202 some, 409 none; 503 if none because we could not take it now."""
    stored = sum(outcome.stored for outcome in outcomes)
    if stored == len(outcomes):
        return 200
    if stored:
        return 202
    busy = any(outcome.reason is RejectReason.OUT_OF_RESOURCES for outcome in outcomes)
    return 503 if busy else 409


def store_response(outcomes: Sequence[Outcome], *, root: str, study: str | None) -> Response:
    """The answer to a request whose body was read to its end.

    Args:
        outcomes: one per instance of the request.
        root: service root such as `http://host/dicom-web`, for the retrieve URLs.
        study: the study that the request addressed, if it did.
    """
    status = status_of(outcomes)
    if status == 503:
        return problem(
            503,
            "The archive cannot store now; nothing of this request was kept. Send it again later.",
            {"Retry-After": str(RETRY_AFTER_SECONDS)},
        )
    document: dict[str, Any] = {}
    studies = {outcome.study_instance_uid for outcome in outcomes if outcome.stored}
    if study is not None and studies:
        studies = {study}
    if len(studies) == 1:
        document["00081190"] = _element("UR", _url(root, studies.pop()))
    failed, other, referenced = [], [], []
    for outcome in outcomes:
        item = _reference(outcome)
        if outcome.stored:
            url = _url(
                root, outcome.study_instance_uid, outcome.series_instance_uid, outcome.sop_instance_uid
            )
            referenced.append(item | {"00081190": _element("UR", url)})
            continue
        reason = {"00081197": _element("US", outcome.status)}
        if outcome.sop_class_uid and outcome.sop_instance_uid:
            failed.append(item | reason)
        else:
            # Failures that cannot name their instance have a sequence of their own (PS3.18 table I.2-1).
            other.append(reason)
    for tag, items in (("00081198", failed), ("00081199", referenced), ("0008119A", other)):
        if items:
            document[tag] = {"vr": "SQ", "Value": items}
    return Response(json.dumps(document), status, media_type=DICOM_JSON)


def _reference(outcome: Outcome) -> dict[str, Any]:
    return {
        "00081150": _element("UI", outcome.sop_class_uid),
        "00081155": _element("UI", outcome.sop_instance_uid),
    }


def _element(vr: str, value: str | int) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}


def _url(root: str, study: str, series: str | None = None, instance: str | None = None) -> str:
    url = f"{root}/studies/{quote(study)}"
    if series and instance:
        url += f"/series/{quote(series)}/instances/{quote(instance)}"
    return url
