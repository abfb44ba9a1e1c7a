"""CloudEvents 1.0 over Kafka records: binary mode out, binary and structured mode in.

Binding: CloudEvents Kafka Protocol Binding 1.0.2 sections 3.2 and 3.3, JSON Event Format section 3.
Readers are tolerant: unknown attributes and fields are ignored, unknown enumeration values become `unknown`.
Messages of the errors raised here name an attribute or a field path and the kind of fault, never a value:
what a foreign publisher wrote may be PHI.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from isocenter.common.errors import InvalidEvent, UnknownEventType
from isocenter.common.events.models import EVENT_MODELS, READER, CloudEvent, Event

Headers = list[tuple[str, bytes]]

SPEC_VERSION = "1.0"
CONTENT_TYPE = "content-type"
JSON_CONTENT_TYPE = "application/json"
STRUCTURED_CONTENT_TYPE = "application/cloudevents+json"
TRACEPARENT = "traceparent"
PREFIX = "ce_"
SEQUENCE_DIGITS = 20
"""The `sequence` extension compares strings: 20 digits hold any unsigned 64-bit number."""
MAX_ATTRIBUTE_CHARS = 1024

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SEQUENCE = re.compile(rf"[0-9]{{1,{SEQUENCE_DIGITS}}}", re.ASCII)


def schema_uri(model: type[Event]) -> str:
    """`dataschema` of a model: its type without the major version, then major.minor.

    A URN, because it names a contract and must never be fetched from a network.
    """
    name, _, major = model.event_type.rpartition(".v")
    return f"urn:isocenter:schema:{name}:{major}.{model.schema_minor}"


def source_of(service: str) -> str:
    """CloudEvents `source` of a service: a URI reference without host names."""
    return f"/isocenter/{service}"


def encode(event: CloudEvent, traceparent: str | None = None) -> tuple[Headers, bytes]:
    """Record headers and value in binary mode.

    Raises:
        InvalidEvent: an attribute breaks CloudEvents section 3 (empty, control character, no time zone).
    """
    attributes = {
        "specversion": SPEC_VERSION,
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": format_time(event.time),
        "dataschema": schema_uri(type(event.data)),
    }
    if event.subject:
        attributes |= {"subject": event.subject, "partitionkey": event.subject}
    if event.sequence is not None:
        attributes["sequence"] = f"{event.sequence:0{SEQUENCE_DIGITS}d}"
    if event.correlation_id is not None:
        attributes["correlationid"] = event.correlation_id
    if event.causation_id is not None:
        attributes["causationid"] = event.causation_id
    headers = [(PREFIX + name, _checked(name, value).encode()) for name, value in attributes.items()]
    headers.append((CONTENT_TYPE, JSON_CONTENT_TYPE.encode()))
    if traceparent is not None:
        headers.append((TRACEPARENT, traceparent.encode()))
    return headers, event.data.model_dump_json(exclude_none=True).encode()


def decode(headers: Iterable[tuple[str, bytes | None]], body: bytes | None) -> CloudEvent:
    """The event in a record, in either mode. Null headers count as absent; of repeated ones the last counts.

    Raises:
        InvalidEvent: no CloudEvent, or data that break the schema of its type.
        UnknownEventType: a CloudEvent of a type without a model here.
    """
    raw = {name.lower(): value for name, value in headers if value is not None}
    content_type = _media_type(raw.get(CONTENT_TYPE))
    if content_type.startswith("application/cloudevents"):
        if content_type != STRUCTURED_CONTENT_TYPE:
            raise InvalidEvent("content-type: unsupported event format")
        attributes, data = _structured(body)
    else:
        if content_type and not _is_json(content_type):
            raise InvalidEvent("content-type: not JSON")
        attributes, data = _Binary(raw), body
    return _build(attributes, data, len(body or b""))


def event_type_of(headers: Iterable[tuple[str, bytes | None]]) -> str | None:
    """The `ce_type` of a binary-mode record, for counting and filtering; None where it cannot be read."""
    for name, value in headers:
        if name.lower() == "ce_type" and value is not None:
            try:
                return value.decode()
            except UnicodeDecodeError:
                return None
    return None


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds. Raises InvalidEvent for a time without zone."""
    if moment.tzinfo is None:
        raise InvalidEvent("time: no time zone")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


class _Binary(Mapping[str, str]):
    """Context attributes in `ce_*` headers, decoded when asked for: an unknown one may hold any bytes."""

    def __init__(self, raw: Mapping[str, bytes]) -> None:
        self._raw = raw

    def __getitem__(self, name: str) -> str:
        try:
            return self._raw[PREFIX + name].decode()
        except UnicodeDecodeError:
            raise InvalidEvent(f"{name}: not UTF-8") from None

    def __iter__(self) -> Any:
        return (name.removeprefix(PREFIX) for name in self._raw if name.startswith(PREFIX))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _structured(body: bytes | None) -> tuple[Mapping[str, Any], bytes | None]:
    try:
        envelope = from_json(body or b"", allow_inf_nan=False)
    except ValueError:
        raise InvalidEvent("envelope: not JSON") from None
    if not isinstance(envelope, dict):
        raise InvalidEvent("envelope: not an object")
    data_type = envelope.get("datacontenttype")
    if data_type is not None and not (isinstance(data_type, str) and _is_json(_media_type(data_type))):
        raise InvalidEvent("datacontenttype: not JSON")
    if "data_base64" in envelope:
        if "data" in envelope:
            raise InvalidEvent("data: given twice")
        encoded = envelope["data_base64"]
        try:
            return envelope, base64.b64decode(encoded, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise InvalidEvent("data_base64: not base64") from None
    return envelope, json.dumps(envelope["data"]).encode() if "data" in envelope else None


def _build(attributes: Mapping[str, Any], data: bytes | None, size: int) -> CloudEvent:
    if _required(attributes, "specversion") != SPEC_VERSION:
        raise InvalidEvent("specversion: unsupported")
    event_id, source = _required(attributes, "id"), _required(attributes, "source")
    model = EVENT_MODELS.get(_required(attributes, "type"))
    if model is None:
        raise UnknownEventType("type: unknown")
    if model.max_bytes is not None and size > model.max_bytes:
        raise InvalidEvent("data: too large")
    return CloudEvent(
        id=event_id,
        source=source,
        time=_parse_time(_required(attributes, "time")),
        data=_parse_data(model, data),
        sequence=_parse_sequence(_optional(attributes, "sequence")),
        correlation_id=_optional(attributes, "correlationid"),
        causation_id=_optional(attributes, "causationid"),
    )


def _parse_data(model: type[Event], data: bytes | None) -> Event:
    if data is None:
        raise InvalidEvent("data: missing")
    try:
        return model.model_validate_json(data, strict=True, context=READER)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, ('data', *fault['loc'])))}: {fault['type']}"
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        ]
    # Raised outside the except block: chained, the original would carry its input into tracebacks.
    raise InvalidEvent("; ".join(faults[:5]))


def _parse_time(text: str) -> datetime:
    if _RFC3339.fullmatch(text):
        try:
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise InvalidEvent("time: not RFC 3339")


def _parse_sequence(text: str | None) -> int | None:
    if text is None:
        return None
    if not _SEQUENCE.fullmatch(text):
        raise InvalidEvent("sequence: not a number")
    return int(text)


def _required(attributes: Mapping[str, Any], name: str) -> str:
    value = _optional(attributes, name)
    if value is None:
        raise InvalidEvent(f"{name}: missing")
    return value


def _optional(attributes: Mapping[str, Any], name: str) -> str | None:
    value = attributes.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidEvent(f"{name}: not a string")
    return _checked(name, value)


def _checked(name: str, value: str) -> str:
    if not value:
        raise InvalidEvent(f"{name}: empty")
    if len(value) > MAX_ATTRIBUTE_CHARS:
        raise InvalidEvent(f"{name}: too long")
    if _CONTROL.search(value):
        raise InvalidEvent(f"{name}: control character")
    return value


def _media_type(value: bytes | str | None) -> str:
    if value is None:
        return ""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return text.partition(";")[0].strip().lower()


def _is_json(media_type: str) -> bool:
    return media_type == JSON_CONTENT_TYPE or media_type.endswith("+json")
