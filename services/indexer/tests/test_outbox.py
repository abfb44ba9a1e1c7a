"""The relay publishes what was decided: in order per study, at least once, whatever happens to the bus."""

from collections.abc import Sequence

from isocenter.common.errors import InvalidEvent
from isocenter.common.index.ports import Applied
from isocenter.common.index.records import OutboxEntry
from isocenter.common.index.testing import arrival, entry, instance
from isocenter.indexer.outbox import PAGE, OutboxRelay
from isocenter.indexer.testing import Site


async def fill(site: Site, entries: list[OutboxEntry]) -> None:
    def report(study_key: str, applied: Applied) -> Sequence[OutboxEntry]:
        return entries

    await site.index.apply([instance("1.1", "1.1.1", "1")], arrival(), report)


async def test_entries_go_out_in_order_with_their_ids_and_leave(site: Site) -> None:
    entries = [entry(f"e{n}", f"k{n % 3}") for n in range(PAGE * 2 + 5)]
    await fill(site, entries)
    assert await site.relay.run_once()
    assert entries == site.bus.entries
    assert [] == await site.index.pending_outbox(10)


async def test_a_bus_that_is_down_loses_nothing_and_changes_no_order(site: Site) -> None:
    entries = [entry(f"e{n}", "k") for n in range(3)]
    await fill(site, entries)
    site.bus.down = True
    assert not await site.relay.run_once()
    assert entries == await site.index.pending_outbox(10)
    site.bus.down = False
    assert await site.relay.run_once()
    assert entries == site.bus.entries


async def test_a_crash_after_publishing_sends_again_with_the_same_id(site: Site) -> None:
    await fill(site, [entry("e0", "k")])
    await site.bus.publish_entry((await site.index.pending_outbox(1))[0])
    await site.restart()
    assert await site.relay.run_once()
    assert ["e0", "e0"] == [one.event_id for one in site.bus.entries]


async def test_an_entry_the_bus_refuses_holds_back_only_its_own_study(site: Site) -> None:
    entries = [entry("bad", "a"), entry("after", "a")]
    entries += [entry(f"e{n}", "b") for n in range(PAGE * 2)]
    await fill(site, entries)
    published: list[str] = []

    async def publish(one: OutboxEntry) -> None:
        if one.event_id == "bad":
            raise InvalidEvent("too large")
        published.append(one.event_id)

    assert not await OutboxRelay(site.index, publish, site.telemetry).run_once()

    assert [f"e{n}" for n in range(PAGE * 2)] == published
    assert ["bad", "after"] == [one.event_id for one in await site.index.pending_outbox(10)]


async def test_what_was_published_before_the_bus_went_down_is_not_sent_again(site: Site) -> None:
    entries = [entry(f"e{n}", "k") for n in range(4)]
    await fill(site, entries)
    sent: list[str] = []

    async def publish(one: OutboxEntry) -> None:
        site.bus.down = len(sent) == 2
        await site.bus.publish_entry(one)
        sent.append(one.event_id)

    relay = OutboxRelay(site.index, publish, site.telemetry)
    assert not await relay.run_once()
    assert ["e2", "e3"] == [one.event_id for one in await site.index.pending_outbox(10)]
