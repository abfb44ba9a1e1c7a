"""Kafka without Kafka: a durable partitioned log in one SQLite file, behind FastStream's own broker."""

from isocenter.common.bus.embedded.broker import EmbeddedKafkaBroker
from isocenter.common.bus.embedded.groups import Coordinator
from isocenter.common.bus.embedded.log import EmbeddedLog

__all__ = ["Coordinator", "EmbeddedKafkaBroker", "EmbeddedLog"]
