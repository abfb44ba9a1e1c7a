"""FastStream's broker on a cluster: its connect step, with clients made the same way everywhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from faststream._internal.parser import DefaultCodec
from faststream.kafka import KafkaBroker

from isocenter.common.bus.kafka import AIOKafkaAdminClient, AIOKafkaConsumer, AIOKafkaProducer
from isocenter.common.bus.kafka_options import bootstrap_of, client_options, producer_options, security_of
from isocenter.common.bus.kafka_producer import SteadyProducer
from isocenter.common.settings import KafkaSettings


class ClusterBroker(KafkaBroker):
    """Leans on what the embedded broker leans on: `_connect` and `config.broker_config`."""

    def __init__(self, settings: KafkaSettings, *, client_id: str, **options: Any) -> None:
        super().__init__(
            bootstrap_of(settings), client_id=client_id, security=security_of(settings), **options
        )
        self._clients = client_options(settings, client_id)
        make = partial(AIOKafkaProducer, **producer_options(settings, client_id))
        self._steady = SteadyProducer(make, parser=options.get("parser"), decoder=options.get("decoder"))
        self.config.broker_config.producer = self._steady

    async def _connect(self) -> Callable[..., Any]:
        config = self.config.broker_config
        await self._steady.open(config.fd_config._serializer, config.broker_codec or DefaultCodec())  # noqa: SLF001 - what FastStream's own connect passes
        admin = AIOKafkaAdminClient(**self._clients)
        try:
            await admin.start()
        except BaseException:
            await self._steady.disconnect()
            raise
        config.admin.admin_client = cast("Any", admin)
        clients = {name: value for name, value in self._clients.items() if name != "client_id"}
        config.builder = cast("Any", partial(AIOKafkaConsumer, **clients))
        return config.builder
