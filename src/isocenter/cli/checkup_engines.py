"""What `isocenter doctor` asks of the engines that the environment names. No check raises."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from isocenter.cli.checkup import Finding, Verdict
from isocenter.common.bus.admin import connect
from isocenter.common.bus.provision import diff, wanted
from isocenter.common.engines import Engines
from isocenter.common.errors import IsocenterError, Misconfigured
from isocenter.common.events.topics import all_topics
from isocenter.common.settings import PlatformSettings

LIMIT_SECONDS = 20.0


def examine_engines(data_dir: Path) -> list[Finding]:
    """One finding per engine in force; none where everything is embedded."""
    try:
        engines = Engines.load(PlatformSettings.load(data_dir=data_dir))
    except Misconfigured:
        return []  # the finding about the settings names it
    checks: list[tuple[str, str, Callable[[], Awaitable[Finding]]]] = []
    if engines.kafka.bootstrap:
        checks.append(("Kafka", engines.kafka.bootstrap, lambda: _kafka(engines)))
    if engines.mongo.uri:
        checks.append(("MongoDB", f"database {engines.mongo.database}", lambda: _index(engines)))
    if engines.s3.endpoint:
        checks.append(("S3", f"{engines.s3.endpoint}/{engines.s3.bucket}", lambda: _store(engines)))
    return asyncio.run(_all(checks))


async def _all(checks: list[tuple[str, str, Callable[[], Awaitable[Finding]]]]) -> list[Finding]:
    return list(await asyncio.gather(*(_bounded(*check) for check in checks)))


async def _bounded(name: str, where: str, check: Callable[[], Awaitable[Finding]]) -> Finding:
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            return await check()
    except TimeoutError:
        return Finding(name, Verdict.FAIL, f"{where} does not answer", "is it up, and may we reach it?")
    except IsocenterError as error:
        return Finding(name, Verdict.FAIL, f"{where}: {error.message}", "see the settings of this engine")
    except Exception as error:  # noqa: BLE001 - a client's own error; its text may quote the settings
        return Finding(
            name, Verdict.FAIL, f"{where}: {type(error).__name__}", "see the settings of this engine"
        )


async def _kafka(engines: Engines) -> Finding:
    async with connect(engines.kafka) as admin:
        changes = diff(wanted(engines.kafka), await admin.topics())
    where = str(engines.kafka.bootstrap)
    if changes:
        return Finding(
            "Kafka", Verdict.FAIL, f"{where}: {len(changes)} differences of topics", "isocenter topics diff"
        )
    return Finding("Kafka", Verdict.OK, f"{where}, {len(all_topics())} topics as they should be")


async def _index(engines: Engines) -> Finding:
    index = await engines.open_index()
    try:
        await index.check()
        backlog = await index.backlog()
    finally:
        await index.close()
    return Finding(
        "MongoDB",
        Verdict.OK,
        f"database {engines.mongo.database} answers; {backlog.receiving} studies receiving,"
        f" {backlog.outbox} events waiting in the outbox",
    )


async def _store(engines: Engines) -> Finding:
    store = await engines.open_store()
    try:
        await store.check()
    finally:
        await store.close()
    return Finding("S3", Verdict.OK, f"{engines.s3.endpoint}/{engines.s3.bucket} can be written and read")
