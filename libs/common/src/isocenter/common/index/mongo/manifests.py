"""Series manifests of a settled version: in the study where they are few, else in parts of their own, so that
no document grows with the number of series.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from isocenter.common.index.mongo.driver import Database, Document
from isocenter.common.index.mongo.schema import MANIFESTS, STUDIES, below, key

PART = 1000
"""Manifests in one document: about 100 kB."""


async def write(
    database: Database, session: Any, study_uid: str, version: int, manifests: dict[str, str]
) -> Document:
    """Stores the parts of a version, if it needs any. Returns what the study's document says of them.

    Parts of the version before stay: somebody may be reading it.
    """
    parts = database.collection(MANIFESTS)
    await parts.delete_many({"_id": below(study_uid), "version": {"$ne": version - 1}}, session=session)
    if len(manifests) <= PART:
        return {"manifests": manifests, "manifest_parts": 0}
    pairs = iter(sorted(manifests.items()))
    number = 0
    while part := dict(islice(pairs, PART)):
        document = {"_id": key(study_uid, version, number), "version": version, "manifests": part}
        await parts.insert_one(document, session=session)
        number += 1
    return {"manifests": {}, "manifest_parts": number}


async def read(database: Database, study: Document) -> tuple[Document, dict[str, str]]:
    """The study, read again if it has settled anew in between, and its manifests."""
    while study["manifest_parts"]:
        wanted = {"_id": below(study["_id"], study["version"])}
        found = await database.collection(MANIFESTS).find(wanted).to_list(None)
        if len(found) == study["manifest_parts"]:
            return study, {name: to for part in found for name, to in part["manifests"].items()}
        again = await database.collection(STUDIES).find_one({"_id": study["_id"]})
        if again is None:
            break
        study = again
    return study, study["manifests"]
