"""Which engines a site runs on, and how each is opened.

The only place that decides between embedded and cluster: services never know. Each engine is chosen by its
own settings, so that a site can move one at a time; only Kafka asks for MongoDB, because replicas must agree
on which studies wait for a retry.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from isocenter.common.bus.factory import EmbeddedTransport, KafkaTransport
from isocenter.common.errors import Misconfigured
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.common.keys import SiteKeys
from isocenter.common.keys.open import open_table, open_wrapper
from isocenter.common.keys.study import StudyKeys
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.settings import (
    KafkaSettings,
    KeySettings,
    MongoSettings,
    PlatformSettings,
    S3Settings,
)

if TYPE_CHECKING:
    from pathlib import Path

    from isocenter.common.bus.factory import Transport
    from isocenter.common.clock import Clock
    from isocenter.common.index.ports import Index
    from isocenter.common.objects.ports import ObjectStore

ENGINE_SETTINGS = (KafkaSettings, MongoSettings, S3Settings, KeySettings)

INDEX_FILE = "index.sqlite"
BUS_FILE = "bus.sqlite"
OBJECTS_FOLDER = "objects"
SPANS_FILE = "spans.sqlite"
KEYS_FILE = "keys.sqlite"


@dataclass(frozen=True, slots=True)
class Engines:
    """What a process opens. Nothing is opened before it is asked for."""

    platform: PlatformSettings
    kafka: KafkaSettings
    mongo: MongoSettings
    s3: S3Settings
    wrapping: KeySettings = field(default_factory=lambda: KeySettings(wrapper="file", file=None))

    @classmethod
    def load(cls, platform: PlatformSettings | None = None) -> Self:
        """From the environment. Raises Misconfigured: a variable is wrong."""
        kafka, mongo, s3 = KafkaSettings.load(), MongoSettings.load(), S3Settings.load()
        return cls(platform or PlatformSettings.load(), kafka, mongo, s3, KeySettings.load())

    @classmethod
    def embedded(cls, platform: PlatformSettings) -> Self:
        """Those in the data directory, whatever the environment says."""
        return cls(
            platform, KafkaSettings(bootstrap=None), MongoSettings(uri=None), S3Settings(endpoint=None)
        )

    @property
    def needs_data_dir(self) -> bool:
        """Whether anything at all is kept on this machine."""
        elsewhere = self.kafka.bootstrap and self.mongo.uri and self.s3.endpoint
        keys = self.platform.site_key_file and (self.wrapping.file or self.wrapping.wrapper != "file")
        return not (elsewhere and keys and self.platform.spans_kept == 0)

    @property
    def disks(self) -> tuple[Path, ...]:
        """Directories of this machine that fill up with objects, events, or uploads that wait."""
        found = []
        if self.s3.endpoint is None:
            found.append(self.platform.data_dir / OBJECTS_FOLDER)
        elif self.s3.scratch_dir is not None:
            found.append(self.s3.scratch_dir)
        if self.kafka.bootstrap is None or self.mongo.uri is None:
            found.append(self.platform.data_dir)
        return tuple(found)

    def describe(self) -> dict[str, str]:
        """Variable -> value in force of the engines that are chosen, secrets masked."""
        chosen = (
            (self.kafka, self.kafka.bootstrap),
            (self.mongo, self.mongo.uri),
            (self.s3, self.s3.endpoint),
            (self.wrapping, self.wrapping.file or self.wrapping.wrapper != "file"),
        )
        return {name: value for one, on in chosen if on for name, value in one.describe().items()}

    async def open_keys(self) -> SiteKeys:
        """Raises Misconfigured: the site secret is missing where one is named, is open to others, or each
        replica would make its own.
        """
        self._require_one_file(PlatformSettings.variable("site_key_file"), self.platform.site_key_file)
        if self.platform.site_key_file is not None:
            return await asyncio.to_thread(SiteKeys.load, self.platform.site_key_file)
        return await asyncio.to_thread(SiteKeys.load_or_create, self.key_file)

    async def open_study_keys(self, clock: Clock) -> StudyKeys:
        """Keys of studies, wrapped: in MongoDB where there is one, else in the data directory.

        Raises:
            Misconfigured: the wrapping key is missing, open to others, or another than wrapped the keys that
                are there; replicas without a database that they share.
            KeysUnavailable: the table does not answer.
        """
        if self.kafka.bootstrap is not None and self.mongo.uri is None:
            raise Misconfigured(
                f"{KafkaSettings.variable('bootstrap')} needs {MongoSettings.variable('uri')}:"
                " replicas keep study keys there"
            )
        if self.wrapping.wrapper == "file":
            self._require_one_file(KeySettings.variable("file"), self.wrapping.file)
        table = await open_table(self.wrapping, self.mongo, self.platform.data_dir / KEYS_FILE)
        try:
            wrapper = await open_wrapper(self.wrapping, self.wrap_key_file, table)
        except BaseException:
            await table.close()
            raise
        return StudyKeys(table, wrapper, tenant=self.platform.tenant, clock=clock)

    async def open_store(self) -> ObjectStore:
        """Raises Misconfigured, StoreUnavailable."""
        if self.s3.endpoint is None:
            return LocalObjectStore(self.platform.data_dir / OBJECTS_FOLDER)
        from isocenter.common.objects.s3 import S3ObjectStore  # noqa: PLC0415 - embedded sites load no S3 client

        return await S3ObjectStore.open(self.s3)

    async def open_index(self) -> Index:
        """Raises Misconfigured, IndexUnavailable."""
        self._require_shared_parking()
        issuer = self.platform.default_issuer
        if self.mongo.uri is None:
            return await SqliteIndex.open(self.platform.data_dir / INDEX_FILE, default_issuer=issuer)
        from isocenter.common.index.mongo import MongoIndex  # noqa: PLC0415 - nor a MongoDB client

        return await MongoIndex.open(self.mongo, default_issuer=issuer)

    def open_transport(self) -> Transport:
        """Connects with its first bus."""
        if self.kafka.bootstrap is None:
            return EmbeddedTransport(self.platform.data_dir / BUS_FILE)
        if self.mongo.uri is None:  # who only reads the log has no consumers, and nothing to park
            return KafkaTransport(self.kafka)
        from isocenter.common.bus.mongo_parking import MongoParking  # noqa: PLC0415 - nor a MongoDB client

        return KafkaTransport(self.kafka, parking=MongoParking(self.mongo))

    def _require_shared_parking(self) -> None:
        if self.kafka.bootstrap is not None and self.mongo.uri is None:
            raise Misconfigured(
                f"{KafkaSettings.variable('bootstrap')} needs {MongoSettings.variable('uri')}:"
                " replicas keep there which studies wait for a retry"
            )

    def _require_one_file(self, variable: str, named: Path | None) -> None:
        if self.kafka.bootstrap is not None and named is None:
            raise Misconfigured(
                f"{KafkaSettings.variable('bootstrap')} needs {variable}: a file that is the same for every"
                " replica. Each would make its own, and none could find or open what another stored"
            )

    @property
    def wrap_key_file(self) -> Path:
        """Where the wrapping key is, if it is in a file."""
        return self.wrapping.file or self.platform.data_dir / "keys" / "wrap.key"

    @property
    def key_file(self) -> Path:
        """Where the site secret is."""
        return self.platform.site_key_file or self.platform.data_dir / "keys" / "site.key"
