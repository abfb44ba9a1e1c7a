"""The query tree as MongoDB filters. What is searched are the normal forms of `index.terms`, kept as
`path=text`.

Values of a query only ever stand where MongoDB expects a value, never where it expects an operator.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from isocenter.common.errors import Permanent
from isocenter.common.index import attributes as kept
from isocenter.common.index.attributes import Attribute
from isocenter.common.index.encoding import bindable
from isocenter.common.index.mongo import pairs
from isocenter.common.index.query import (
    All,
    AnyOf,
    Condition,
    Exact,
    Level,
    OneOf,
    Path,
    Qualified,
    Range,
    Wildcard,
)
from isocenter.common.index.terms import high_of, low_of, name_groups, pattern_of, text_of

Filter = dict[str, Any]
_Leaf = Exact | OneOf | Wildcard | Range

_COLUMNS: dict[Path, str] = {(kept.STUDY_INSTANCE_UID,): "_id", (kept.SOP_INSTANCE_UID,): "sop"}
"""UIDs that are fields of their own and need no term."""
_QUALIFIED: dict[Path, tuple[str, str]] = {
    (kept.PATIENT_ID,): ("patient_id", "patient_issuer"),
    (kept.ACCESSION_NUMBER,): ("accession", "accession_issuer"),
}
LONGEST_PATTERN = 32_000
"""Characters of a regular expression: the server takes no more than 32,764."""

NOTHING: Filter = {"_id": {"$in": []}}
EVERYTHING: Filter = {}


def term(path: Path, text: str) -> str:
    """A term as it is kept."""
    return f"{'.'.join(path)}={text}"


def conjuncts(where: Condition) -> Iterator[Condition]:
    """Parts of which all must hold, keys of one sequence kept together: they must match in one item (PS3.4
    section C.2.2.2.6).
    """
    if not isinstance(where, All):
        yield where
        return
    sequences: dict[str, list[Condition]] = defaultdict(list)
    for condition in where.conditions:
        if isinstance(condition, _Leaf) and len(condition.path) > 1:
            sequences[condition.path[0]].append(condition)
        else:
            yield condition
    for leaves in sequences.values():
        yield All(tuple(leaves))


def paths_of(condition: Condition) -> Iterator[Path]:
    """Of every key in the condition."""
    if isinstance(condition, All | AnyOf):
        for inner in condition.conditions:
            yield from paths_of(inner)
    else:
        yield condition.path


def both(filters: list[Filter]) -> Filter:
    """All of them."""
    filters = [one for one in filters if one]
    if len(filters) <= 1:
        return filters[0] if filters else EVERYTHING
    return {"$and": filters}


@dataclass(frozen=True, slots=True)
class Compiler:
    """Attributes:
    level: of the search. A key of another level raises Permanent: the caller checks `matching_key` first.
    fields: per level what stands before the names of its fields, where documents of several levels have
        been joined; a level that is not in it is at the top.
    """

    level: Level
    default_issuer: str
    fields: Mapping[Level, str]

    def condition(self, condition: Condition) -> Filter:
        match condition:
            case All(conditions) if self._one_sequence(conditions):
                return self._leaves([leaf for leaf in conditions if isinstance(leaf, _Leaf)])
            case All():
                return both(self.conjunction(list(conjuncts(condition))))
            case AnyOf(conditions):
                filters = [self.condition(part) for part in conditions]
                if EVERYTHING in filters:
                    return EVERYTHING
                return {"$or": filters} if filters else NOTHING
            case Qualified(path, value, issuer):
                return self._qualified(path, value, issuer)
            case _:
                return self._leaves([condition])

    def conjunction(self, parts: list[Condition]) -> list[Filter]:
        """Filters of which all must hold: one for each part, but modality and study date are one."""
        found = pairs.find(parts)
        filters = [self.condition(part) for part in parts if found is None or part not in found]
        if found is not None:
            filters.append(self._paired(*found))
        return filters

    def _paired(self, modality: Condition, date: Condition) -> Filter:
        terms = f"{self.fields.get(Level.STUDY, '')}terms"
        alone = [{terms: pairs.MANY}, self.condition(modality), self.condition(date)]
        ranges = pairs.ranges(modality, date)
        return {
            "$or": [
                *({terms: {"$elemMatch": {"$gte": low, "$lte": high}}} for low, high in ranges),
                {"$and": alone},
            ]
        }

    @staticmethod
    def _one_sequence(conditions: tuple[Condition, ...]) -> bool:
        leaves = [one for one in conditions if isinstance(one, _Leaf) and len(one.path) > 1]
        return bool(leaves) and len(leaves) == len(conditions) and len({one.path[0] for one in leaves}) == 1

    def _leaves(self, leaves: list[_Leaf]) -> Filter:
        """One condition, or several that must hold in one sequence item."""
        attributes = [self.key(leaf.path) for leaf in leaves]
        tests = [
            (leaf, attribute)
            for leaf, attribute in zip(leaves, attributes, strict=True)
            if not (isinstance(leaf, Wildcard) and pattern_of(attribute.vr, leaf.pattern) in {"", "*"})
        ]
        if not tests:
            return EVERYTHING  # `*` alone also matches absent values (PS3.4 section C.2.2.2.4)
        before = self.fields.get(tests[0][1].level, "")
        filters: list[Filter] = []
        for leaf, attribute in tests:
            column = _COLUMNS.get(leaf.path)
            if column is not None:
                filters.append({before + column: _test(leaf, attribute.vr, "")})
            else:
                filters.append({f"{before}terms": _among(_test(leaf, attribute.vr, term(leaf.path, "")))})
        if len(tests) > 1:
            items = [{"terms": _among(_test(leaf, a.vr, term(leaf.path, "")))} for leaf, a in tests]
            filters.append({f"{before}items": {"$elemMatch": {"$and": items}}})
        return both(filters)

    def _qualified(self, path: Path, value: str, issuer: str) -> Filter:
        columns = _QUALIFIED.get(path)
        if columns is None:
            raise Permanent("only patient id and accession number have an issuer", tag=".".join(path))
        before = self.fields.get(Level.STUDY, "")
        text, issuer = bindable(text_of("LO", value)), bindable(issuer.strip())
        if issuer == self.default_issuer:
            assigned: Any = {"$in": [issuer, ""]}
        elif issuer:
            assigned = issuer
        else:
            return NOTHING
        # The identity is the first value; the term leads the index to it.
        return {
            f"{before}terms": term(path, text),
            f"{before}{columns[0]}": text,
            f"{before}{columns[1]}": assigned,
        }

    def key(self, path: Path) -> Attribute:
        attribute = kept.matching_key(path, self.level)
        if attribute is None:
            raise Permanent("not a matching key at this level", tag=".".join(path), level=self.level.value)
        return attribute


def _test(leaf: _Leaf, vr: str, before: str) -> Any:
    """What the text must be; `before` stands in front of every text."""
    match leaf:
        case Exact(_, value):
            return _equal(vr, (value,), before)
        case OneOf(_, values):
            return _equal(vr, values, before)
        case Wildcard(_, pattern):
            return _like(bindable(pattern_of(vr, pattern)), before)
        case Range(_, low, high):
            return {
                "$gte": before + bindable(low_of(vr, low)),
                "$lte": before + bindable(high_of(vr, high)),
            }


def _among(test: Any) -> Any:
    """For a field of many texts: one and the same must be within both bounds."""
    return {"$elemMatch": test} if isinstance(test, dict) and "$gte" in test else test


def _equal(vr: str, values: tuple[str, ...], before: str) -> Any:
    texts = [
        before + bindable(text)
        for value in values
        for text in (name_groups(value) if vr == "PN" else (text_of(vr, value),))
    ]
    return texts[0] if len(texts) == 1 else {"$in": texts}


def _like(pattern: str, before: str) -> Filter:
    """A wildcard pattern: bounds for the index, and a regular expression that cannot run away.

    Between two stars the first place that fits is as good as any other, so each part is an atomic group:
    nothing is tried twice, whatever the pattern.
    """
    head, *parts = pattern.split("*")
    expression = f"^{re.escape(before)}{_literal(head)}"
    if parts:
        *middle, last = parts
        expression += "".join(f"(?>.*?{_literal(part)})" for part in middle)
        expression += f".*{_literal(last)}" if last else ""
    if not parts or parts[-1]:
        expression += r"\z"
    if len(expression.encode()) > LONGEST_PATTERN:
        raise Permanent("the wildcard pattern is too long")
    begin = before + head.split("?")[0]
    return {"$gte": begin, **_below_next(begin), "$regex": expression, "$options": "s"}


def _literal(part: str) -> str:
    """A part of a pattern as a regular expression; `?` is any one character."""
    return ".".join(re.escape(piece) for piece in part.split("?"))


def _below_next(begin: str) -> Filter:
    """What every text that begins with `begin` is below."""
    stem = begin.rstrip("\U0010ffff")
    if not stem:
        return {}
    last = ord(stem[-1]) + 1
    return {"$lt": stem[:-1] + chr(0xE000 if last == 0xD800 else last)}
