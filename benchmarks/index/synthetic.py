"""An archive of any size, the same every time: what study number n is follows from n alone.

Studies arrive at a constant rate, so a larger archive is one that has been filling for longer: a day has as
many studies in it as before, a patient as many, and there are more days and more patients. Documents are made
by the functions that the index makes its own with; instances of a series are copies of the first with their
own names, number, keys, digest and (incompressible) metadata.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from isocenter.common.events.models import SettleReason
from isocenter.common.index.encoding import micros, of_level
from isocenter.common.index.merge import merge, order_of
from isocenter.common.index.mongo import documents
from isocenter.common.index.mongo.aggregates import series_fields, study_fields
from isocenter.common.index.query import Level
from isocenter.common.index.records import DicomJson, InstanceRecord, SettleState
from isocenter.common.index.testing import EXPLICIT_LE, element

Document = dict[str, Any]

STUDIES_PER_DAY = 300
STUDIES_PER_PATIENT = 3
FIRST_DAY = datetime(2020, 1, 1, tzinfo=UTC)
METADATA_BYTES = 1200
"""Compressed DICOM JSON of an instance; a CT slice with private elements has about 2000, without 700."""
KINDS: tuple[tuple[float, str, int, int], ...] = (
    # share, modality, series, instances of a series
    (0.40, "CR", 1, 2),
    (0.25, "MR", 6, 42),
    (0.333, "CT", 4, 88),
    (0.017, "CT", 3, 400),
)
INSTANCES_PER_STUDY = sum(share * series * instances for share, _, series, instances in KINDS)
_POOL = random.Random(1).randbytes(1 << 20)
_TEXT = base64.b32encode(_POOL).decode().lower()


@dataclass(frozen=True, slots=True)
class Study:
    """Names and shape of one study."""

    number: int
    uid: str
    study_key: str
    patient: str
    accession: str
    arrived: datetime
    modality: str
    series: int
    instances: int
    """Of each series."""

    def series_uid(self, series: int) -> str:
        return f"{self.uid}.{series + 1}"

    def sop_uid(self, series: int, instance: int) -> str:
        return f"{self.uid}.{series + 1}.{instance + 1}"


def study(number: int) -> Study:
    rng = random.Random(number)
    kind = rng.choices(KINDS, [share for share, *_ in KINDS])[0]
    patients = number // (STUDIES_PER_DAY * 30) * (STUDIES_PER_DAY * 30 // STUDIES_PER_PATIENT)
    patient = patients + rng.randrange(STUDIES_PER_DAY * 30 // STUDIES_PER_PATIENT)
    return Study(
        number=number,
        uid=f"1.2.826.0.1.3680043.8.498.{rng.getrandbits(80):025d}",
        study_key=base64.b32encode(rng.randbytes(16)).decode().lower().rstrip("="),
        patient=f"P{patient:07d}",
        accession=f"A{number:09d}",
        arrived=FIRST_DAY + timedelta(days=number / STUDIES_PER_DAY),
        modality=kind[1],
        series=kind[2],
        instances=kind[3],
    )


def records_of(one: Study) -> list[InstanceRecord]:
    """The first instance of each series, as the indexer would have read it."""
    return [_record(one, series) for series in range(one.series)]


def _record(one: Study, series: int) -> InstanceRecord:
    sop = one.sop_uid(series, 0)
    day = one.arrived.strftime("%Y%m%d")
    attributes: DicomJson = {
        "00080008": element("CS", "ORIGINAL", "PRIMARY", "AXIAL"),
        "00080016": element("UI", "1.2.840.10008.5.1.4.1.1.2"),
        "00080018": element("UI", sop),
        "00080020": element("DA", day),
        "00080021": element("DA", day),
        "00080030": element("TM", one.arrived.strftime("%H%M%S")),
        "00080050": element("SH", one.accession),
        "00080060": element("CS", one.modality),
        "00080070": element("LO", "Example Systems"),
        "00080090": element("PN", f"Referrer^{one.number % 400}"),
        "00081030": element("LO", f"{one.modality} examination {one.number % 60}"),
        "0008103E": element("LO", f"series {series + 1}"),
        "00100010": element("PN", f"Family{one.patient}^Given"),
        "00100020": element("LO", one.patient),
        "00100030": element("DA", "19700101"),
        "00100040": element("CS", "FM"[one.number % 2]),
        "00180015": element("CS", "CHEST"),
        "0020000D": element("UI", one.uid),
        "0020000E": element("UI", one.series_uid(series)),
        "00200010": element("SH", str(one.number)),
        "00200011": element("IS", series + 1),
        "00200013": element("IS", 1),
        "00280010": element("US", 512),
        "00280011": element("US", 512),
    }
    return InstanceRecord(
        study_instance_uid=one.uid,
        series_instance_uid=one.series_uid(series),
        sop_instance_uid=sop,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid=EXPLICIT_LE,
        study_key=one.study_key,
        series_key=_text(one.number * 31 + series, 26),
        instance_key=_text(one.number * 37 + series, 26),
        object_key=f"instances/w/{_text(one.number * 41 + series, 26)}",
        content_digest=_POOL[:32].hex(),
        size_bytes=526_000,
        received_at=one.arrived,
        sender="SCANNER",
        attributes=attributes,
        metadata=_POOL[:METADATA_BYTES],
        frames=_POOL[:16],
    )


def study_and_series(one: Study, *, receiving: bool) -> tuple[Document, list[Document]]:
    """The documents of a study, settled or with its quiet period over, and of its series."""
    records = records_of(one)
    total = one.series * one.instances
    size = records[0].size_bytes
    series = []
    for record in records:
        own = [(_order(record), of_level(record, Level.SERIES))]
        counts = {"instances": one.instances, "size_bytes": one.instances * size}
        series.append(documents.new_series(record) | series_fields(merge({}, {}, own)) | counts)
    arrived = micros(one.arrived)
    document: Document = {"_id": one.uid} | documents.new_study(
        one.study_key, arrived, arrived + 5_400_000_000
    )
    of_study = [(_order(record), of_level(record, Level.STUDY)) for record in records]
    document |= study_fields(document, merge({}, {}, of_study), [one.modality])
    document |= {
        "series": one.series,
        "instances": total,
        "size_bytes": total * size,
        "revision": total // 100 + 1,
        "touched": total // 100 + 1,
        "position": arrived,
    }
    if receiving:
        document |= {"settle_at": arrived + 60_000_000, "settle_reason": SettleReason.QUIET.value}
    else:
        document |= {
            "state": SettleState.SETTLED.value,
            "version": 1,
            "epoch": 1,
            "settled_at": arrived + 61_000_000,
            "settled_reason": SettleReason.QUIET.value,
            "manifests": {record.series_key: f"manifests/{record.series_key}" for record in records},
        }
    return document, series


def instances(one: Study) -> Iterator[Document]:
    for series, record in enumerate(records_of(one)):
        first = documents.new_instance(record)
        own, terms = first["attributes"], first["terms"]
        numbered = '"00200013":{"Value":[1],'
        for number in range(one.instances):
            sop = one.sop_uid(series, number)
            at = (one.number * 7919 + series * 1013 + number * 1213) % (len(_POOL) - METADATA_BYTES)
            yield {
                **first,
                "_id": f"{one.uid} {sop}",
                "sop": sop,
                "number": number + 1,
                "instance_key": _text(at, 26),
                "object_key": f"instances/w/{_text(at + 26, 26)}",
                "content_digest": _POOL[at : at + 32].hex(),
                "attributes": own.replace(record.sop_instance_uid, sop).replace(
                    numbered, f'"00200013":{{"Value":[{number + 1}],'
                ),
                "terms": [
                    f"00200013={number + 1}"
                    if term == "00200013=1"
                    else term.replace(record.sop_instance_uid, sop)
                    for term in terms
                ],
                "metadata": _POOL[at : at + METADATA_BYTES],
            }


def _order(record: InstanceRecord) -> str:
    return order_of(micros(record.received_at), record.object_key)


def _text(at: int, length: int) -> str:
    at %= len(_TEXT) - length
    return _TEXT[at : at + length]
