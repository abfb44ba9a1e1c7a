"""Search: from studies, newest first, down to the level asked for, as one stream that a page cuts off.

Conditions on a study narrow the studies before anything is joined, those on a series the series, and so on;
conditions that mix levels are applied where their lowest level has been joined.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from isocenter.common.index import attributes as kept
from isocenter.common.index.mongo import documents
from isocenter.common.index.mongo.compile import EVERYTHING, Compiler, Filter, both, conjuncts, paths_of
from isocenter.common.index.mongo.driver import Database, Document
from isocenter.common.index.mongo.schema import INSTANCES, SERIES, STUDIES
from isocenter.common.index.query import MOST_COUNTED, Condition, Exact, Level, Match, OneOf, Page, Query

_LEVELS = (Level.STUDY, Level.SERIES, Level.INSTANCE)
_JOINED = {Level.SERIES: "se", Level.INSTANCE: "in"}
_NEWEST = {"last_received_at": -1, "_id": 1}
_SHOWN = {
    Level.STUDY: ("attributes", "modalities", "series", "instances"),
    Level.SERIES: ("uid", "attributes", "instances"),
    Level.INSTANCE: ("sop", "attributes"),
}
_MATCHED = {
    Level.SERIES: ("terms", "items"),
    Level.INSTANCE: ("terms", "sop"),
}
MOST_CANDIDATES = 10_000
"""Series or instances up to which a condition on them alone is looked up first, to know their studies."""


@dataclass(slots=True)
class Plan:
    """Filters by where they apply.

    Attributes:
        own: on documents of one level, before they are joined.
        mixed: on joined documents, where the level has been joined.
    """

    own: dict[Level, list[Filter]] = field(default_factory=lambda: {level: [] for level in _LEVELS})
    mixed: dict[Level, list[Filter]] = field(default_factory=lambda: {level: [] for level in _LEVELS})


async def search(database: Database, query: Query, default_issuer: str) -> Page:
    plan = plan_of(query, default_issuer)
    studies = await _candidates(database, query, plan)
    if studies is not None:
        plan.own[Level.STUDY].append({"_id": {"$in": studies}})
    limit, offset = max(0, query.limit), max(0, query.offset)
    matches: list[Match] = []
    if limit:
        found = await database.aggregate(STUDIES, page_pipeline(query.level, plan, offset, limit))
        matches = [_match(document, query.level) for document in found]
    remaining = 0
    if len(matches) == limit:
        counted = await database.aggregate(STUDIES, count_pipeline(query.level, plan, offset + limit))
        remaining = counted[0]["count"] if counted else 0
    return Page(tuple(matches), remaining)


def plan_of(query: Query, default_issuer: str) -> Plan:
    """Raises Permanent for a key that the level cannot match on."""
    plan = Plan()
    alone = Compiler(query.level, default_issuer, {})
    joined = Compiler(query.level, default_issuer, {level: f"{name}." for level, name in _JOINED.items()})
    own: dict[Level, list[Condition]] = {level: [] for level in _LEVELS}
    for part in _parts(query):
        levels = {alone.key(path).level for path in paths_of(part)} or {Level.STUDY}
        lowest = max(levels, key=_LEVELS.index)
        if len(levels) == 1:
            own[lowest].append(part)
        else:
            plan.mixed[lowest].append(joined.condition(part))
    for level, parts in own.items():
        plan.own[level] = alone.conjunction(parts)
    return plan


def page_pipeline(level: Level, plan: Plan, offset: int, limit: int) -> list[Document]:
    return [
        {"$match": both(plan.own[Level.STUDY])},
        {"$sort": _NEWEST},
        *_joins(level, plan, ordered=True),
        {"$skip": offset},
        {"$limit": limit},
        {"$project": _shown(level)},
    ]


def count_pipeline(level: Level, plan: Plan, seen: int) -> list[Document]:
    """Matches after the first `seen`, up to MOST_COUNTED."""
    return [
        {"$match": both(plan.own[Level.STUDY])},
        *_joins(level, plan, ordered=False),
        {"$skip": seen},
        {"$limit": MOST_COUNTED},
        {"$count": "count"},
    ]


def _joins(level: Level, plan: Plan, *, ordered: bool) -> list[Document]:
    stages: list[Document] = []
    if level is Level.STUDY:
        return stages
    stages += _join(Level.SERIES, SERIES, ("_id", "study"), "uid", plan, ordered=ordered)
    if level is Level.INSTANCE:
        stages += _join(Level.INSTANCE, INSTANCES, ("se._id", "series_id"), "sop", plan, ordered=ordered)
    return stages


def _join(
    level: Level, collection: str, fields: tuple[str, str], order: str, plan: Plan, *, ordered: bool
) -> list[Document]:
    inner: list[Document] = [
        {"$match": both(plan.own[level])},
        {"$project": dict.fromkeys((*_SHOWN[level], *_MATCHED[level]), 1)},
    ]
    if ordered:
        inner.append({"$sort": {order: 1}})
    name = _JOINED[level]
    join = {"from": collection, "localField": fields[0], "foreignField": fields[1], "pipeline": inner}
    stages: list[Document] = [{"$lookup": {**join, "as": name}}, {"$unwind": f"${name}"}]
    if plan.mixed[level]:
        stages.append({"$match": both(plan.mixed[level])})
    return stages


def _shown(level: Level) -> Document:
    shown = dict.fromkeys(_SHOWN[Level.STUDY], 1)
    for lower in _LEVELS[1 : _LEVELS.index(level) + 1]:
        shown |= {f"{_JOINED[lower]}.{name}": 1 for name in _SHOWN[lower]}
    return shown


def _parts(query: Query) -> list[Condition]:
    parts = list(conjuncts(query.where))
    if query.study_instance_uid is not None:
        parts.append(Exact((kept.STUDY_INSTANCE_UID,), query.study_instance_uid))
    if query.series_instance_uid is not None and query.level is not Level.STUDY:
        parts.append(Exact((kept.SERIES_INSTANCE_UID,), query.series_instance_uid))
    return parts


async def _candidates(database: Database, query: Query, plan: Plan) -> list[str] | None:
    """UIDs of the studies that can match, where that is known from conditions on series or instances alone.

    None: all of them, as far as can be told cheaply.
    """
    if query.study_instance_uid is not None or query.level is Level.STUDY:
        return None
    named = {part.path for part in _parts(query) if isinstance(part, Exact | OneOf) and len(part.path) == 1}
    if (kept.SOP_INSTANCE_UID,) in named:
        return await _studies_of(database, INSTANCES, "series_id", plan.own[Level.INSTANCE])
    narrow = any(one != EVERYTHING for one in plan.own[Level.STUDY])
    if (kept.SERIES_INSTANCE_UID,) in named or (not narrow and any(plan.own[Level.SERIES])):
        return await _studies_of(database, SERIES, "study", plan.own[Level.SERIES])
    return None


async def _studies_of(
    database: Database, collection: str, name: str, filters: list[Filter]
) -> list[str] | None:
    cursor = (
        database.collection(collection).find(both(filters), {"_id": 0, name: 1}).limit(MOST_CANDIDATES + 1)
    )
    found = await cursor.to_list(None)
    if len(found) > MOST_CANDIDATES:
        return None
    return sorted({document[name].partition(" ")[0] for document in found})


def _match(document: Document, level: Level) -> Match:
    shown = documents.study_view(document)
    series = instance = None
    if level is not Level.STUDY:
        series = document["se"]
        shown |= documents.series_view(series)
    if level is Level.INSTANCE:
        instance = document["in"]
        shown |= json.loads(instance["attributes"])
    return Match(
        study_instance_uid=document["_id"],
        series_instance_uid=series["uid"] if series else None,
        sop_instance_uid=instance["sop"] if instance else None,
        attributes=dict(sorted(shown.items())),
    )
