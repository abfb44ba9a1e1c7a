"""What a power loss may take from a store whose process is dead: everything that nobody has synced.

A file whose bytes are in the journal was written and linked without a sync. After a loss of power it may be
whole, short, empty, full of zeros, or have no name; so may every second name of it. Of a file that the
journal only names, the name in the staging area and the bytes were synced, and the object's name may be
missing. Those are what this takes, at random. What the store has synced stays, and so do the segments of the
journal.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from isocenter.common.errors import IntegrityError
from isocenter.common.objects.journal import SUFFIX
from isocenter.common.objects.records import Kind, scan
from isocenter.common.objects.trailer import TAIL_BYTES, decode_trailer, trailer_size

OBJECT_SUFFIX = "@1"
SECOND_NAME = ".pending"


def lose(data_dir: Path, rng: random.Random) -> Counter[str]:
    """Returns how often which loss struck."""
    objects = data_dir / "objects"
    struck = Counter[str]()
    recorded = dict(_recorded(objects / "journal"))
    for key, name in sorted(recorded.items()):
        path = objects / "objects" / f"{key}{OBJECT_SUFFIX}"
        if path.exists() and not name:
            struck[_strike(path, rng)] += 1
        elif path.exists() and (objects / "staging" / name).exists() and rng.random() < 0.5:
            path.unlink()
            struck["link"] += 1
    unsynced = {hashlib.sha256(key.encode()).hexdigest()[:32] + SECOND_NAME for key in recorded}
    named = {objects / "staging" / name for name in recorded.values() if name}
    for path in sorted((objects / "staging").rglob("*")):
        if not path.is_file() or path.suffix == ".lock" or path in named:
            continue
        # Second names that the journal does not vouch for were synced, and stay.
        if (path.suffix != SECOND_NAME or path.name in unsynced) and rng.random() < 0.5:
            path.unlink()
            struck["staged"] += 1
    return struck


def _strike(path: Path, rng: random.Random) -> str:
    size = path.stat().st_size
    loss = rng.choice(["nothing", "name", "empty", "short", "zeros", "page"])
    if loss == "name":
        path.unlink()
    elif loss == "empty":
        os.truncate(path, 0)
    elif loss == "short":
        os.truncate(path, rng.randrange(size))
    elif loss == "zeros":
        os.truncate(path, 0)
        os.truncate(path, size)
    elif loss == "page":
        with path.open("r+b") as file:
            file.seek(rng.randrange(size) & ~4095)
            file.write(bytes(min(4096, size - file.tell())))
    return loss


def _recorded(journal: Path) -> Iterator[tuple[str, str]]:
    """Keys, and the names that their files have in the staging area, if the journal has not their bytes."""
    for path in journal.glob(f"*{SUFFIX}"):
        with path.open("rb") as segment:
            for record in scan(segment.fileno()):
                if record.kind in {Kind.NAMED, Kind.NAMED_PENDING}:
                    if (place := record.place()) is not None:
                        yield place
                    continue
                if record.kind not in {Kind.OBJECT, Kind.PENDING}:
                    continue
                image = record.body()
                try:
                    length = trailer_size(image[-TAIL_BYTES:], None)
                    yield decode_trailer(image[-length:], len(image), None).key, ""
                except IntegrityError:
                    continue  # was never acknowledged
