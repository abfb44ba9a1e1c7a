"""Instances that lie: refused with a status and an event of their own, in bounds, and nothing is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.hostile.attacks import (
    CT,
    HOSTILE_UIDS,
    LIES,
    PIXELS,
    PROGRAMS,
    Attack,
    Instance,
    element,
    image,
)
from tests.hostile.site import Site, bounded, failure_reasons, multipart

from isocenter.common.errors import RejectReason
from isocenter.ingest.dimse.command import INVALID_SOP_INSTANCE
from isocenter.ingest.domain import STATUS_OF


@pytest.mark.parametrize("attack", LIES, ids=lambda attack: attack.name)
async def test_a_lie_over_c_store(site: Site, attack: Attack) -> None:
    instance = attack.make()
    data_set = instance.data_set()
    with bounded():
        assert await site.c_store(instance, data_set) == attack.status
    await site.assert_rejected(attack.reason, attack.status)


@pytest.mark.parametrize("attack", LIES, ids=lambda attack: attack.name)
async def test_a_lie_over_stow(site: Site, attack: Attack) -> None:
    body = multipart(attack.make().file())
    with bounded():
        answer = await site.post(body)
    assert answer.status == 409
    assert failure_reasons(answer) == [attack.status]
    await site.assert_rejected(attack.reason, attack.status)


@pytest.mark.parametrize("field", ["stated_sop", "study", "series"])
async def test_hostile_uids(site: Site, field: str) -> None:
    status = STATUS_OF[RejectReason.INVALID_UID]
    with bounded(cpu_seconds=5):
        for name, value in HOSTILE_UIDS.items():
            hostile = replace(Instance().numbered(), **{field: value})  # type: ignore[arg-type]
            assert await site.c_store(hostile) == status, name
            answer = await site.post(multipart(hostile.file()))
            assert failure_reasons(answer) == [status], name
            assert b"etc" not in answer.body
            assert b"script" not in answer.body
    await site.assert_rejected(RejectReason.INVALID_UID, status, times=2 * len(HOSTILE_UIDS))


@pytest.mark.parametrize("field", ["stated_sop", "study", "series", "stated_class"])
async def test_empty_uids(site: Site, field: str) -> None:
    status = STATUS_OF[RejectReason.MISSING_UID]
    for value in (b"", b"    ", b"\0\0"):
        hostile = replace(Instance().numbered(), **{field: value})  # type: ignore[arg-type]
        assert await site.c_store(hostile) == status
        assert failure_reasons(await site.post(multipart(hostile.file()))) == [status]
    await site.assert_rejected(RejectReason.MISSING_UID, status, times=6)


async def test_hostile_uids_in_the_command(site: Site) -> None:
    values = ("../../../etc/passwd", "1.2.abc", "1.02", "1.2.3\0/../4", "1" * 65)
    for value in values:
        assert await site.c_store(Instance().numbered(), sop=value) == INVALID_SOP_INSTANCE
    await site.assert_rejected(RejectReason.INVALID_UID, INVALID_SOP_INSTANCE, times=len(values))


async def test_hostile_uids_in_the_path(site: Site) -> None:
    for value in ("..%2f..%2fetc", "1.2.abc", "1." + "2" * 63, "1.2.3%00", "%2e%2e", "1.2.3%0d%0aX:1"):
        answer = await site.post(multipart(Instance().numbered().file()), path=f"/{value}")
        assert answer.status in {400, 404}, value
        assert b"etc" not in answer.body


async def test_files_that_are_programs_or_pages_as_well(site: Site) -> None:
    status = STATUS_OF[RejectReason.UNSAFE_PREAMBLE]
    for name, preamble in PROGRAMS.items():
        answer = await site.post(multipart(Instance(preamble=preamble).numbered().file()))
        assert answer.status == 409, name
        assert failure_reasons(answer) == [status], name
    await site.assert_rejected(RejectReason.UNSAFE_PREAMBLE, status, times=len(PROGRAMS))


async def test_a_program_sent_over_c_store_loses_its_preamble(site: Site) -> None:
    """There is none in a C-STORE: what is written in front is ours."""
    assert await site.c_store(Instance(preamble=PROGRAMS["Windows"]).numbered()) == 0
    [stored] = (await site.world.objects()).values()
    assert stored[:132] == bytes(128) + b"DICM"
    site.kept += 1


@pytest.mark.parametrize("preamble", [b"II*\0\x10\0\0\0", b"MM\0*\0\0\0\x10", b"\1", b"Made by a scanner"])
async def test_preambles_of_images_are_kept_as_they_came(site: Site, preamble: bytes) -> None:
    file = Instance(preamble=preamble).numbered().file()
    assert (await site.post(multipart(file))).status == 200
    assert list((await site.world.objects()).values()) == [file]
    site.kept += 1


async def test_what_is_strange_and_harms_nobody_is_kept(site: Site) -> None:
    """Huge private values, character sets nobody has, too much pixel data, markup as text."""
    strange = (
        element(0x00080005, "CS", b"ISO_IR 9999\\NOBODY"),
        element(0x00091010, "UN", bytes(range(256)) * 8192),
        element(0x00100010, "PN", b"\x1b$B<script>^\xff\xfe "),
        element(0x00104000, "LT", b"<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;"),
    )
    instance = replace(
        Instance().numbered(),
        before=b"".join(strange),
        tail=image(4, 4, "1", element(PIXELS, "OW", bytes(64))),
    )
    with bounded():
        assert await site.c_store(instance) == 0
        assert (await site.post(multipart(instance.file()))).status == 200
    assert [data.endswith(instance.data_set()) for data in (await site.world.objects()).values()] == [True]
    site.kept += 1


async def test_the_same_uid_with_other_bytes_overwrites_nothing(site: Site) -> None:
    first = Instance().numbered()
    second = replace(first, tail=image(4, 4, "1", element(PIXELS, "OW", b"\1" * 32)))
    assert [await site.c_store(first), await site.c_store(second)] == [0, 0]
    assert len(await site.world.objects()) == 2
    site.kept += 2


async def test_a_directory_of_files_is_no_instance(site: Site) -> None:
    """A DICOMDIR names files; nothing is read that it names."""
    directory = Instance(stated_class="1.2.840.10008.1.3.10", stated_sop=b"").numbered()
    assert failure_reasons(await site.post(multipart(directory.file()))) == [0xC000]
    await site.assert_rejected(RejectReason.MISSING_UID, 0xC000)
    wire = await site.associate((CT, "1.2.840.10008.1.2.1"), ("1.2.840.10008.1.3.10", "1.2.840.10008.1.2.1"))
    await wire.close()
