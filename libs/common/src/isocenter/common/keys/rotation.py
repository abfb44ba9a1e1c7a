"""Rotation of the wrapping key: every row is wrapped anew, and no object is touched.

Can be cut off anywhere and run again: the old key still unwraps until no row needs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from isocenter.common.errors import Misconfigured
from isocenter.common.keys.keyfile import KeyFile
from isocenter.common.keys.study import StudyKeys


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """How study keys are wrapped now.

    Attributes:
        current: name of the wrapping key that new rows get.
        rows: name of a wrapping key -> study keys that it wraps.
    """

    current: str
    rows: dict[str, int]

    @property
    def behind(self) -> int:
        """Study keys that another than the current key wraps: a rotation would wrap them anew."""
        return sum(count for name, count in self.rows.items() if name != self.current)


async def status(keys: StudyKeys) -> KeyStatus:
    """Raises KeysUnavailable, Misconfigured."""
    rows = Counter[str]()
    async for row in keys.table.list():
        rows[row.wrapper] += 1
    return KeyStatus(await keys.wrapper.current(), dict(rows))


async def rotate(keys: StudyKeys, tell: Callable[[int], None]) -> int:
    """Wraps every study key by the newest wrapping key. Returns how many it wrapped.

    A key file of ours gets a new key first, unless an earlier rotation was cut off, and loses the old ones in
    the end; nobody else may use it meanwhile. Elsewhere the new key comes from whoever owns it: the second
    32 bytes of a mounted file, a new version of the transit key, another key of KMS.

    Raises:
        KeysUnavailable: run it again.
        KeyUnusable: a row does not unwrap; every other has been looked at no further.
        Misconfigured
    """
    wrapper = keys.wrapper
    ours = isinstance(wrapper, KeyFile) and not wrapper.mounted
    if ours and isinstance(wrapper, KeyFile) and wrapper.generations == 1:
        wrapper.add()
    done = 0
    while (found := await status(keys)).behind:
        before = done
        async for row in keys.table.list():
            if row.wrapper != found.current and await keys.rewrap(row):
                done += 1
                tell(done)
        if done == before:
            raise Misconfigured("study keys change while they are wrapped anew", behind=found.behind)
    if ours and isinstance(wrapper, KeyFile):
        wrapper.drop_old()
    return done
