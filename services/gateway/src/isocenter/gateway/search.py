"""QIDO-RS parameters to the index's syntax tree (PS3.18 section 8.3.4, PS3.4 section C.2.2.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from isocenter.common.dicom.uids import is_valid_uid
from isocenter.common.index.attributes import ISSUER_OF_PATIENT_ID, PATIENT_ID, matching_key
from isocenter.common.index.query import (
    All,
    Condition,
    Exact,
    Level,
    OneOf,
    Path,
    Qualified,
    Query,
    Range,
    Wildcard,
)
from isocenter.gateway.attributes import RETURNED, levels_up_to, lookup, vr_of
from isocenter.gateway.domain import Target, bad_request

MAX_PARAMETERS = 200
MAX_VALUE_LENGTH = 1024
MAX_LIST_LENGTH = 2000
MAX_WILDCARDS = 16
MAX_OFFSET = 2**31 - 1
_FULL_TIME = len("HHMMSS.FFFFFF")

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_UINT = re.compile(r"[0-9]{1,10}")
_DATE = re.compile(r"[0-9]{4}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])")
_TIME = re.compile(r"(?:[01][0-9]|2[0-3])(?:[0-5][0-9](?:(?:[0-5][0-9]|60)(?:\.[0-9]{1,6})?)?)?")
_WILDCARD_VRS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
"""PS3.4 section C.2.2.2.4: the others match `*` and `?` as themselves."""

FUZZY = "The fuzzymatching parameter is not supported. Only literal matching has been performed."
EMPTY = (
    "The emptyvaluematching parameter is not supported. A parameter without a value has matched every value."
)
MULTIPLE = (
    "The multiplevaluematching parameter is not supported."
    " Only single values and UID lists have been matched."
)


@dataclass(frozen=True, slots=True)
class Search:
    """A parsed search.

    Attributes:
        fields: top-level tags to return, or None for everything the index keeps.
        warnings: texts for `Warning: 299`; they name attributes by tag or keyword, never values.
    """

    query: Query
    fields: frozenset[str] | None
    warnings: tuple[str, ...]


def parse_search(
    level: Level,
    target: Target,
    parameters: Iterable[tuple[str, str]],
    *,
    default_limit: int,
    max_limit: int,
) -> Search:
    """Reads the parameters of one search.

    Raises:
        Problem: 400, naming the parameter.
    """
    keys: dict[Path, tuple[str, str]] = {}
    included: set[str] = set()
    everything = False
    warnings: list[str] = []
    limit, offset = default_limit, 0
    seen: set[str] = set()
    for count, (name, value) in enumerate(parameters, start=1):
        if count > MAX_PARAMETERS:
            raise bad_request("query", f"At most {MAX_PARAMETERS} parameters are read.")
        if name in {"limit", "offset", "fuzzymatching"} and name in seen:
            raise bad_request(name, f"{name} is given more than once.")
        seen.add(name)
        if name in {"accept", "charset"}:
            continue
        if name == "limit":
            limit = min(_uint(name, value), max_limit)
        elif name == "offset":
            offset = _uint(name, value)
        elif name == "includefield":
            for item in filter(None, (part.strip() for part in value.split(","))):
                if item == "all":
                    everything = True
                else:
                    included.add(_path(item, "includefield")[0])
        elif name in _SWITCHES:
            if _boolean(name, value):
                warnings.append(_SWITCHES[name])
        else:
            path = _path(name, name)
            if path in keys:
                raise bad_request(name, "The same attribute is given more than once.")
            keys[path] = (name, value)
    conditions, ignored = _conditions(level, keys)
    warnings.extend(
        f"Matching on {'.'.join(path)} is not supported for this resource. It has been ignored."
        for path in ignored
    )
    query = Query(
        level=level,
        study_instance_uid=target.study,
        series_instance_uid=target.series,
        where=All(tuple(conditions)),
        limit=limit,
        offset=offset,
    )
    fields = None if everything else _returned(level, target) | included | {path[0] for path in keys}
    return Search(query, fields, tuple(warnings))


_SWITCHES = {"fuzzymatching": FUZZY, "emptyvaluematching": EMPTY, "multiplevaluematching": MULTIPLE}


def _returned(level: Level, target: Target) -> frozenset[str]:
    """A relational search also returns the attributes of the levels that its path leaves open."""
    tags = RETURNED[level]
    for above in levels_up_to(level)[:-1]:
        named = target.study if above is Level.STUDY else target.series
        if named is None:
            tags |= RETURNED[above]
    return tags


def _uint(name: str, value: str) -> int:
    if not _UINT.fullmatch(value) or int(value) > MAX_OFFSET:
        raise bad_request(name, f"{name} must be an integer from 0 to {MAX_OFFSET}.")
    return int(value)


def _boolean(name: str, value: str) -> bool:
    if value not in {"true", "false"}:
        raise bad_request(name, f"{name} must be true or false.")
    return value == "true"


def _path(text: str, parameter: str) -> Path:
    """Tag path of `00100010`, `PatientName`, or a dotted path through sequences."""
    steps = text.split(".")
    tags = []
    for index, step in enumerate(steps):
        tag = step.upper() if _TAG.fullmatch(step) else lookup(step)
        if tag is None:
            raise bad_request(parameter, "Neither a parameter of this resource nor a DICOM keyword or tag.")
        if index < len(steps) - 1 and vr_of(tag) not in {"SQ", None}:
            raise bad_request(parameter, "Only sequences can have attributes below them.")
        tags.append(tag)
    return tuple(tags)


def _conditions(level: Level, keys: dict[Path, tuple[str, str]]) -> tuple[list[Condition], list[Path]]:
    compiled: dict[Path, Condition] = {}
    for path, (name, value) in keys.items():
        if len(value) > MAX_VALUE_LENGTH and vr_of(path[-1]) != "UI":
            raise bad_request(name, f"The value has more than {MAX_VALUE_LENGTH} characters.")
        condition = compile_key(path, value, name)
        if condition is not None:
            compiled[path] = condition
    patient, issuer = compiled.get((PATIENT_ID,)), compiled.get((ISSUER_OF_PATIENT_ID,))
    if isinstance(patient, Exact) and isinstance(issuer, Exact):
        del compiled[issuer.path]
        compiled[patient.path] = Qualified(patient.path, patient.value, issuer.value)
    ignored = [path for path in compiled if matching_key(path, level) is None]
    return [condition for path, condition in compiled.items() if path not in ignored], ignored


def compile_key(path: Path, value: str, name: str) -> Condition | None:
    """One matching key as a condition; None for universal matching (no value, or only `*`).

    Raises:
        Problem: 400 if the value cannot be one of this attribute.
    """
    vr = vr_of(path[-1])
    if "\0" in value:
        raise bad_request(name, "The value holds a NUL character.")
    text = value.strip()
    if not text.strip("*"):
        return None
    if vr == "SQ":
        raise bad_request(name, "A sequence cannot be matched by itself: name an attribute inside it.")
    if vr == "UI":
        return _uid_condition(path, text, name)
    if vr in {"DA", "TM", "DT"}:
        return _temporal_condition(vr, path, text, name)
    if vr == "CS" and ("," in text or "\\" in text):
        return _list_condition(path, text, name)
    if vr in _WILDCARD_VRS and ("*" in text or "?" in text):
        pattern = re.sub(r"\*+", "*", text)
        if pattern.count("*") > MAX_WILDCARDS:
            raise bad_request(name, f"At most {MAX_WILDCARDS} wildcards are matched.")
        return Wildcard(path, pattern)
    return Exact(path, text)


def _list_condition(path: Path, text: str, name: str) -> Condition:
    values = tuple(dict.fromkeys(item.strip() for item in re.split(r"[,\\]", text) if item.strip()))
    if len(values) > MAX_LIST_LENGTH:
        raise bad_request(name, f"At most {MAX_LIST_LENGTH} values are matched.")
    if not values:
        raise bad_request(name, "The list holds no value.")
    return Exact(path, values[0]) if len(values) == 1 else OneOf(path, values)


def _uid_condition(path: Path, text: str, name: str) -> Condition:
    condition = _list_condition(path, text, name)
    values = condition.values if isinstance(condition, OneOf) else (text.strip(",\\ "),)
    if not all(is_valid_uid(uid) for uid in values):
        raise bad_request(name, "The value is neither a UID nor a list of UIDs (PS3.5 section 9.1).")
    return condition


def _temporal_condition(vr: str, path: Path, text: str, name: str) -> Condition:
    low, dash, high = (part.strip() for part in text.partition("-"))
    if vr == "DT":
        # A "-" may also begin an offset from UTC; date-times are compared as text and none is indexed.
        return Range(path, low or None, high or None) if dash else Exact(path, low)
    form = _DATE if vr == "DA" else _TIME
    if not all(form.fullmatch(part) for part in (low, high) if part) or not (low or high):
        wanted = "YYYYMMDD" if vr == "DA" else "HHMMSS.FFFFFF"
        raise bad_request(
            name, f"The value is neither {wanted} nor a range of two, one of which may be open."
        )
    if dash:
        return Range(path, low or None, high or None)
    if vr == "TM" and len(low) < _FULL_TIME:
        return Range(path, low, low)  # 1030 stands for every moment of that minute
    return Exact(path, low)
