"""The site secret must be one on both sides: every key is made from it. And a target must not be another's.

A target is marked with an empty-handed object whose name tells the secret from others (a keyed hash, nothing
of the secret itself). The name carries it, not the content, so that no store need know conditional writes:
two sites that mark a store at the same moment both see the other's mark afterwards.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.migration.iterating import closing
from isocenter.common.index.ports import Index
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.ports import ObjectStore

MARKS = "site/"
_CONTENT = b'{"format":"isocenter.site","format_version":1}\n'


def share(source: Path, target: Path, *, write: bool) -> SiteKeys:
    """The secret of both sides.

    Args:
        source: must be there.
        target: gets a copy (mode 0600) if it is not.
        write: False: nothing is written.

    Raises:
        CommandError: the source has none, or the target another one.
        Misconfigured: others can replace one of them.
    """
    if not source.exists():
        raise CommandError(
            f"there is no site secret at {source}",
            hint="name it with ISOCENTER_SITE_KEY_FILE, or the data directory with --data-dir",
            code=Exit.NOT_FOUND,
        )
    keys = SiteKeys.load(source)
    if target != source:
        if target.exists():
            if SiteKeys.load(target).fingerprint() != keys.fingerprint():
                raise CommandError(
                    f"{target} holds another site's secret than {source}",
                    hint="a site keeps its secret when it moves: use the one that its data were stored with",
                    code=Exit.MISCONFIGURED,
                )
        elif write:
            _install(source.read_bytes(), target)
    return keys


async def check_store(store: ObjectStore, keys: SiteKeys) -> None:
    """Raises CommandError: another site has marked the store."""
    ours = MARKS + keys.fingerprint()
    async for info in store.list(MARKS):
        if info.key != ours:
            raise CommandError(
                "the target's object store holds another site's data",
                hint="give the site a bucket or directory of its own",
                code=Exit.MISCONFIGURED,
            )


async def claim(store: ObjectStore, keys: SiteKeys) -> None:
    """Marks the store. Raises CommandError: another site has, too."""
    await check_store(store, keys)
    await store.put(MARKS + keys.fingerprint(), _CONTENT)
    await check_store(store, keys)


async def check_index(index: Index, keys: SiteKeys, side: str) -> None:
    """Raises CommandError: the records were not made with this secret."""
    async with closing(index.studies()) as studies:
        async for study in studies:
            if keys.study_key(study.study_instance_uid) != study.study_key:
                raise CommandError(
                    f"the {side}'s index was not made with this site secret",
                    hint="name the right one with ISOCENTER_SITE_KEY_FILE, or another target",
                    code=Exit.MISCONFIGURED,
                )
            return


def _install(secret: bytes, path: Path) -> None:
    """Durable, and whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secret)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
