"""The series that is read, as files in each encoding, and as a staged volume."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, HTJ2KLossless, JPEG2000Lossless

from isocenter.cli.phantom import Torso
from isocenter.gpu_stager.manifest import Entry
from isocenter.gpu_stager.testing import Site, Steps, ct, part10, set_pixels

DIFFERENT = 64
"""Slices that differ; a longer series repeats them, under UIDs of their own."""


@dataclass(frozen=True)
class Files:
    """One encoding of the series on disk."""

    name: str
    paths: tuple[Path, ...]
    size: int

    def drop(self) -> None:
        drop(self.paths)


@dataclass(frozen=True)
class Staged:
    """The volume, and what staging it took: from the objects of an archive, its page cache warm."""

    folder: Path
    entry: Entry
    seconds: float

    @property
    def data(self) -> Path:
        return self.folder / self.entry.stacks[0].data


def drop(paths: tuple[Path, ...]) -> None:
    """Their pages leave the cache of this machine; what lies below it may keep them."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def datasets(slices: int) -> list[FileDataset]:
    """A synthesised torso, 512 x 512, 12 bits in 16."""
    phantom = Torso(seed=7)
    pixels = [
        (phantom.slice_at(z) + 1024).clip(0, 4095).astype("<u2") for z in np.linspace(40.0, 360.0, DIFFERENT)
    ]
    made = ct(slices, shape=(512, 512))
    for index, dataset in enumerate(made):
        set_pixels(dataset, pixels[index % DIFFERENT], bits_stored=12)
    return made


def encoded(made: list[FileDataset], syntax: UID) -> list[FileDataset]:
    """The same pixels, compressed without loss."""
    known: dict[bytes, bytes] = {}
    for dataset in made:
        pixels = dataset.pixel_array
        raw = bytes(dataset.PixelData)
        if raw not in known:
            if syntax == HTJ2KLossless:
                known[raw] = bytes(imagecodecs.htj2k_encode(pixels, reversible=True))
            elif syntax == JPEG2000Lossless:
                known[raw] = bytes(
                    imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0)
                )
            else:
                raise ValueError(syntax)
        dataset.PixelData = encapsulate([known[raw]])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
    return made


def written(folder: Path, name: str, objects: list[bytes]) -> Files:
    target = folder / name
    target.mkdir()
    paths = []
    for number, data in enumerate(objects):
        path = target / f"{number:04}.dcm"
        path.write_bytes(data)
        paths.append(path)
    return Files(name, tuple(paths), sum(map(len, objects)))


def staged(folder: Path, objects: list[bytes]) -> Staged:
    """As the stager does it, from an archive that holds the objects unsealed."""

    async def run() -> Staged:
        site = await Site.open(folder)
        try:
            records = await site.keep(*objects)
            manifests = await site.settle(records[0].study_instance_uid)
            builder = site.builder()
            target = folder / "entry"
            target.mkdir()
            started = time.perf_counter()
            plan = await builder.plan(records[0].study_key, manifests[records[0].series_key])
            entry = await builder.build(plan, target, Steps())
            return Staged(target, entry, time.perf_counter() - started)
        finally:
            await site.close()

    folder.mkdir()
    return asyncio.run(run())


def all_objects(slices: int, syntax: UID | None) -> list[bytes]:
    made = datasets(slices)
    return part10(made if syntax is None else encoded(made, syntax))
