"""The query tree as SQL. Every value travels as a parameter; the text is built from constants only."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field

from isocenter.common.errors import Permanent
from isocenter.common.index import attributes as kept
from isocenter.common.index.attributes import Attribute
from isocenter.common.index.encoding import bindable
from isocenter.common.index.query import (
    MOST_COUNTED,
    All,
    AnyOf,
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
from isocenter.common.index.terms import high_of, low_of, name_groups, pattern_of, text_of

_Leaf = Exact | OneOf | Wildcard | Range

_FROM = {
    Level.STUDY: "studies st",
    Level.SERIES: "series se JOIN studies st ON st.id = se.study_id",
    Level.INSTANCE: "instances i JOIN series se ON se.id = i.series_id JOIN studies st ON st.id = i.study_id",
}
_SELECT = {
    Level.STUDY: "st.study_uid AS st_uid, st.attributes AS st_attributes, st.modalities AS st_modalities,"
    " st.series AS st_series, st.instances AS st_instances",
    Level.SERIES: "se.series_uid AS se_uid, se.attributes AS se_attributes, se.instances AS se_instances",
    Level.INSTANCE: "i.sop_uid AS i_uid, i.attributes AS i_attributes",
}
_ORDER = {
    Level.STUDY: "st.last_received_at DESC, st.study_uid",
    Level.SERIES: "st.last_received_at DESC, st.study_uid, se.series_uid",
    Level.INSTANCE: "st.last_received_at DESC, st.study_uid, se.series_uid, i.sop_uid",
}
_COLUMNS: dict[Path, str] = {
    (kept.STUDY_INSTANCE_UID,): "st.study_uid",
    (kept.SERIES_INSTANCE_UID,): "se.series_uid",
    (kept.SOP_INSTANCE_UID,): "i.sop_uid",
    (kept.SOP_CLASS_UID,): "i.sop_class_uid",
}
_LEVELS = (Level.STUDY, Level.SERIES, Level.INSTANCE)


@dataclass(frozen=True, slots=True)
class Statements:
    """A page, and the count of the matches after it up to MOST_COUNTED, over the same predicate."""

    page: str
    count: str
    parameters: dict[str, str | int]


def compile_query(query: Query) -> Statements:
    """Raises Permanent for a key that the level cannot match on: the caller checks `matching_key` first."""
    compiler = _Compiler(query.level)
    conditions = [compiler.condition(query.where)]
    if query.study_instance_uid is not None:
        conditions.append(f"st.study_uid = {compiler.parameter(query.study_instance_uid)}")
    if query.series_instance_uid is not None and query.level is not Level.STUDY:
        conditions.append(f"se.series_uid = {compiler.parameter(query.series_instance_uid)}")
    where = " AND ".join(conditions)
    columns = ", ".join(_SELECT[level] for level in _LEVELS[: _LEVELS.index(query.level) + 1])
    source, order = _FROM[query.level], _ORDER[query.level]
    limit, offset = max(0, query.limit), max(0, query.offset)
    count = (
        f"SELECT count(*) FROM (SELECT 1 FROM {source} WHERE {where}"  # noqa: S608 - constants and parameters
        f" LIMIT {compiler.parameter(MOST_COUNTED)} OFFSET {compiler.parameter(offset + limit)})"
    )
    page = (
        f"SELECT {columns} FROM {source} WHERE {where} ORDER BY {order}"  # noqa: S608 - as above
        f" LIMIT {compiler.parameter(limit)} OFFSET {compiler.parameter(offset)}"
    )
    return Statements(page, count, compiler.parameters)


@dataclass
class _Compiler:
    level: Level
    parameters: dict[str, str | int] = field(default_factory=dict)

    def parameter(self, value: str | int) -> str:
        name = f"p{len(self.parameters)}"
        self.parameters[name] = bindable(value) if isinstance(value, str) else value
        return f":{name}"

    def condition(self, condition: Condition) -> str:
        match condition:
            case All(conditions):
                return self._all(conditions)
            case AnyOf(conditions):
                return f"({' OR '.join(map(self.condition, conditions)) or 'FALSE'})"
            case Qualified(path, value, issuer):
                return self._qualified(path, value, issuer)
            case _:
                return self._leaves([condition])

    def _all(self, conditions: tuple[Condition, ...]) -> str:
        """Keys of one sequence must match in one and the same item (PS3.4 section C.2.2.2.6)."""
        parts: list[str] = []
        sequences: dict[str, list[_Leaf]] = defaultdict(list)
        for condition in conditions:
            if isinstance(condition, _Leaf) and len(condition.path) > 1:
                sequences[condition.path[0]].append(condition)
            else:
                parts.append(self.condition(condition))
        parts.extend(self._leaves(leaves) for leaves in sequences.values())
        return f"({' AND '.join(parts) or 'TRUE'})"

    def _leaves(self, leaves: list[_Leaf]) -> str:
        """One condition, or several that must hold in one sequence item."""
        attributes = [self._key(leaf.path) for leaf in leaves]
        tests = [
            (leaf, attribute)
            for leaf, attribute in zip(leaves, attributes, strict=True)
            if not (isinstance(leaf, Wildcard) and pattern_of(attribute.vr, leaf.pattern) in {"", "*"})
        ]
        if not tests:
            return (
                "TRUE"  # `*` alone is universal matching: it includes absent values (PS3.4 section C.2.2.2.4)
            )
        level = tests[0][1].level
        column = _COLUMNS.get(tests[0][0].path)
        if column is not None:
            return self._test(column, *tests[0])
        if level is Level.INSTANCE:
            return self._in_document(*tests[0])
        table, owner = ("study_terms", "st.id") if level is Level.STUDY else ("series_terms", "se.id")
        return f"{owner} IN (SELECT owner FROM ({self._intersect(table, tests)}))"  # noqa: S608 - constants

    def _intersect(self, table: str, tests: list[tuple[_Leaf, Attribute]]) -> str:
        return " INTERSECT ".join(
            f"SELECT owner, item FROM {table}"  # noqa: S608 - constant table names
            f" WHERE path = {self.parameter('.'.join(leaf.path))} AND {self._test('value', leaf, attribute)}"
            for leaf, attribute in tests
        )

    def _in_document(self, leaf: _Leaf, attribute: Attribute) -> str:
        path = self.parameter(f'$."{".".join(leaf.path)}"')
        test = self._test("t.value", leaf, attribute)
        return f"EXISTS (SELECT 1 FROM json_each(i.terms, {path}) t WHERE {test})"  # noqa: S608 - constants

    def _test(self, column: str, leaf: _Leaf, attribute: Attribute) -> str:
        vr = attribute.vr
        match leaf:
            case Exact(_, value):
                return self._equals(column, vr, (value,))
            case OneOf(_, values):
                return self._equals(column, vr, values)
            case Wildcard(_, pattern):
                return f"{column} GLOB {self.parameter(_glob(pattern_of(vr, pattern)))}"
            case Range(_, low, high):
                bounds = self.parameter(low_of(vr, low)), self.parameter(high_of(vr, high))
                return f"{column} BETWEEN {bounds[0]} AND {bounds[1]}"

    def _equals(self, column: str, vr: str, values: tuple[str, ...]) -> str:
        texts = [
            text for value in values for text in (name_groups(value) if vr == "PN" else (text_of(vr, value),))
        ]
        if len(texts) == 1:
            return f"{column} = {self.parameter(texts[0])}"
        listed = self.parameter(json.dumps(texts))
        return f"{column} IN (SELECT value FROM json_each({listed}))"  # noqa: S608 - a parameter name

    def _qualified(self, path: Path, value: str, issuer: str) -> str:
        if path == (kept.PATIENT_ID,):
            columns = "st.patient_id", "st.patient_issuer"
        elif path == (kept.ACCESSION_NUMBER,):
            columns = "st.accession", "st.accession_issuer"
        else:
            raise Permanent("only patient id and accession number have an issuer", tag=".".join(path))
        return (
            f"({columns[0]} = {self.parameter(text_of('LO', value))}"
            f" AND coalesce(nullif({columns[1]}, ''), :default_issuer) = {self.parameter(issuer.strip())})"
        )

    def _key(self, path: Path) -> Attribute:
        attribute = kept.matching_key(path, self.level)
        if attribute is None:
            raise Permanent("not a matching key at this level", tag=".".join(path), level=self.level.value)
        return attribute


def _glob(pattern: str) -> str:
    """SQLite's GLOB has `*` and `?` as DICOM has them; only `[` must lose its meaning."""
    return pattern.replace("[", "[[]")
