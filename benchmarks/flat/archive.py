"""A receiver that is filled, and measured between."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from benchmarks.corpus import Corpus, Generator
from benchmarks.dimse import Association, AssociationError
from benchmarks.ingest.processes import TargetFailed
from benchmarks.ingest.targets import Running

_LANES = 4
_STUDY = 500
"""Instances of a study: archives have many studies, and each has a key of its own."""
_SETTLE_SECONDS = 600.0
_SLOWEST = 25
"""Instances per second that the platform deals with at the very least."""


class Archive:
    """Raises (every method) TargetFailed."""

    def __init__(self, running: Running, *, seed: int) -> None:
        self._running = running
        self._address = ("127.0.0.1", running.port)
        self._generator = Generator(seed)
        self._studies = 0
        self.held = 0

    def fill(self, corpus: Corpus, mark: int) -> None:
        """Stores until `mark` instances are held, and waits until everything has been dealt with."""
        sent: list[tuple[int, int]] = []
        while self.held < mark:
            counts = []
            for _ in range(_LANES):
                count = min(_STUDY, mark - self.held)
                if count > 0:
                    self._studies += 1
                    counts.append((self._studies, count))
                    self.held += count
            failures: list[str] = []
            threads = [
                threading.Thread(target=self._store_all, args=(corpus, study, count, failures))
                for study, count in counts
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if failures:
                raise TargetFailed(failures[0])
            sent += counts
        if sent:
            self._settle(sent)

    def window(self, corpus: Corpus) -> list[float]:
        """Stores `corpus` as a study over one association; seconds from each request to its response."""
        self._studies += 1
        latencies = []
        try:
            with self._associate(corpus) as association:
                for instance in self._generator.study(corpus, self._studies, corpus.instances):
                    began = time.perf_counter()
                    status = association.store(instance)
                    latencies.append(time.perf_counter() - began)
                    if status:
                        raise TargetFailed(f"C-STORE status {status:#06x}")
        except AssociationError as error:
            raise TargetFailed(str(error)) from error
        self.held += corpus.instances
        self._settle([(self._studies, corpus.instances)])
        return latencies

    def _store_all(self, corpus: Corpus, study: int, count: int, failures: list[str]) -> None:
        try:
            with self._associate(corpus) as association:
                for instance in self._generator.study(replace(corpus, instances=count), study, count):
                    status = association.store(instance)
                    if status:
                        failures.append(f"C-STORE status {status:#06x}")
                        break
        except AssociationError as error:
            failures.append(str(error))

    def _associate(self, corpus: Corpus) -> Association:
        return Association(self._address, [corpus.sop_class_uid], called=self._running.called)

    def _settle(self, sent: list[tuple[int, int]]) -> None:
        """Waits until all of `sent` can be found, so that no measurement pays for a backlog."""
        deadline = time.monotonic() + _SETTLE_SECONDS + sum(count for _, count in sent) / _SLOWEST
        # The youngest first: when they are found, most of the others are.
        waiting = [(0, self.held)] if self._running.counts_all else sent[::-1]
        for study, expected in waiting:
            while self._running.count([self._generator.study_uid(study)]) < expected:
                if time.monotonic() > deadline:
                    raise TargetFailed(f"{expected} instances were acknowledged and are not all found")
                time.sleep(0.5)
