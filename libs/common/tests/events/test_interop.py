"""The codec against the CloudEvents project's own Python SDK, which nobody here wrote."""

import json
from collections.abc import Callable

import pytest
from cloudevents.core.bindings.kafka import (
    KafkaMessage,
    from_kafka,
    to_binary_event,
    to_structured_event,
)
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as SdkEvent

from isocenter.common.events import codec
from isocenter.common.events.models import CloudEvent, InstancesStored, StudySettled

Build = Callable[..., CloudEvent]


def test_the_sdk_reads_what_we_write(settled: StudySettled, cloud_event: Build) -> None:
    event = cloud_event(settled, sequence=3, correlation_id="flow", causation_id="cause")
    headers, body = codec.encode(event)

    message = KafkaMessage(headers=dict(headers), key=settled.study_key.encode(), value=body)
    read = from_kafka(message, JSONFormat())

    assert event.id == read.get_id()
    assert event.source == read.get_source()
    assert event.type == read.get_type()
    assert event.subject == read.get_subject()
    assert event.time == read.get_time()
    assert codec.schema_uri(StudySettled) == read.get_dataschema()
    assert "application/json" == read.get_datacontenttype()
    assert "00000000000000000003" == read.get_extension("sequence")
    assert settled.study_key == read.get_extension("partitionkey")
    assert "flow" == read.get_extension("correlationid")
    assert "cause" == read.get_extension("causationid")
    data = read.get_data()
    assert settled.model_dump(mode="json") == (data if isinstance(data, dict) else json.loads(data or ""))


@pytest.mark.parametrize("write", [to_binary_event, to_structured_event])
def test_we_read_what_the_sdk_writes(
    write: Callable[[SdkEvent], KafkaMessage], stored: InstancesStored, cloud_event: Build
) -> None:
    event = cloud_event(stored, sequence=9, correlation_id="flow")
    attributes = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": event.time,
        "datacontenttype": "application/json",
        "partitionkey": stored.study_key,
        "sequence": f"{9:020d}",
        "correlationid": "flow",
    }

    message = write(SdkEvent(attributes, stored.model_dump(mode="json")))

    assert event == codec.decode(list(message.headers.items()), message.value)
