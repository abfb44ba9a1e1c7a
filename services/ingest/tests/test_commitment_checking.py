"""What storage commitment takes for an answer, and what for none: a store that fails, or refuses us."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from isocenter.common.errors import (
    IntegrityError,
    IsocenterError,
    Misconfigured,
    NotFound,
    StoreUnavailable,
    Transient,
)
from isocenter.common.events.models import Protocol
from isocenter.common.index.commitments import Reference
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.ingest.commitment import checking
from isocenter.ingest.commitment.checking import Checker
from isocenter.ingest.commitment.domain import FailureReason
from isocenter.ingest.commitment.testing import index_everything

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from isocenter.common.objects.sealing import SealContext
    from isocenter.common.objects.vault import Vault
    from isocenter.ingest.testing import Dicom, World


@dataclass
class Troubled:
    """A vault that fails as it is told before it gives what it has."""

    vault: Vault
    errors: dict[str, list[IsocenterError]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def reader(self, key: str, context: SealContext) -> object:
        self.asked.append(key)
        if waiting := self.errors.get(key):
            raise waiting.pop(0)
        return await self.vault.reader(key, context)


@dataclass
class Kept:
    """Instances in a store, and who checks them."""

    vault: Troubled
    checker: Checker
    references: list[Reference]
    keys: list[str]

    async def verdict(self) -> dict[int, int]:
        return await self.checker.verify(self.references, await self.checker.locate(self.references))


@pytest.fixture
async def kept(
    world: World, dicom: Dicom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Kept]:
    monkeypatch.setattr(checking, "PAUSES", (0.0, 0.0))
    intake = world.intake()
    async with intake.transfer(Protocol.STOW, "TEST") as transfer:
        for _ in range(4):
            async with transfer.instance() as receiver:
                await receiver.write(dicom.file(dicom.instance()))
                assert 0 == (await receiver.finish()).status
    index = await SqliteIndex.open(tmp_path / "index.sqlite")
    references = [Reference(*pair) for pair in await index_everything(index, world.store)]
    vault = Troubled(intake.vault)
    checker = Checker(index, cast("Vault", vault))
    located = await checker.locate(references)
    keys = [located[each.sop_instance_uid][0].object_key for each in references]
    yield Kept(vault, checker, references, keys)
    await index.close()


async def test_a_store_that_fails_for_a_moment_is_asked_again_for_that_object_only(kept: Kept) -> None:
    kept.vault.errors[kept.keys[1]] = [StoreUnavailable("busy"), StoreUnavailable("busy")]

    assert {} == await kept.verdict()
    assert [1, 3, 1, 1] == [kept.vault.asked.count(key) for key in kept.keys]


@pytest.mark.parametrize("error", [StoreUnavailable("down"), Misconfigured("another key file")])
async def test_what_says_nothing_of_the_object_is_no_answer(kept: Kept, error: IsocenterError) -> None:
    kept.vault.errors[kept.keys[2]] = [error] * 3

    with pytest.raises(Transient):
        await kept.verdict()


async def test_what_does_not_open_or_is_gone_is_one(kept: Kept) -> None:
    kept.vault.errors[kept.keys[0]] = [IntegrityError("not what was sealed")]
    kept.vault.errors[kept.keys[3]] = [NotFound("gone")]

    gone, damaged = FailureReason.NO_SUCH_OBJECT_INSTANCE, FailureReason.PROCESSING_FAILURE
    assert {0: damaged, 3: gone} == await kept.verdict()
