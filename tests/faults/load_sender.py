"""A sender that does not give up: its own process, so that it survives the platform.

Each lane is one association after another, to one receiver after another, one study each. What is not
acknowledged is sent again over a new association until it is, as a modality's queue does. Every
acknowledgement is one JSON line in the report, written with one append before the next instance goes out: the
report never claims less than was heard.

SIGTERM: no new study is begun; exits 0 when the studies in hand are acknowledged to the last instance.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import threading
import time
from types import FrameType

from benchmarks.corpus import Corpus, Generator
from benchmarks.dimse import Association, AssociationError, DataSet

SHAPES = (
    Corpus("tiny", 0, 16, 16),
    Corpus("small", 0, 128, 128),
    Corpus("ct", 0, 512, 512),
)
WEIGHTS = (5, 4, 1)
RESEND_EVERY = 11
"""Every so many instances an acknowledged one is sent again, as modalities do after a doubt."""


class Report:
    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, record: dict[str, object]) -> None:
        os.write(self._descriptor, (json.dumps(record) + "\n").encode())


class Lane:
    def __init__(
        self, number: int, arguments: argparse.Namespace, report: Report, stop: threading.Event
    ) -> None:
        self._number = number
        self._ports = arguments.port
        self._turn = number
        self._pace = arguments.pace
        self._called = arguments.called
        self._generator = Generator(arguments.seed * 1000 + number)
        self._random = random.Random(arguments.seed * 1000 + number)
        self._report = report
        self._stop = stop

    def run(self) -> None:
        study = 0
        while not self._stop.is_set():
            study += 1
            shape = self._random.choices(SHAPES, WEIGHTS)[0]
            self._send_study(shape, study, self._random.randint(3, 30))

    def _send_study(self, shape: Corpus, study: int, count: int) -> None:
        number = 0
        while number < count:
            address = ("127.0.0.1", self._ports[self._turn % len(self._ports)])
            self._turn += 1
            try:
                with Association(
                    address,
                    [shape.sop_class_uid],
                    called=self._called,
                    calling=f"LANE{self._number}",
                    timeout=30,
                ) as association:
                    while number < count:
                        instance = self._generator.instance(shape, study, number)
                        self._send(association, instance, study)
                        if number % RESEND_EVERY == RESEND_EVERY - 1:
                            again = self._generator.instance(shape, study, self._random.randint(0, number))
                            self._send(association, again, study)
                        number += 1
                        time.sleep(self._pace)
            except AssociationError as error:
                self._report.write({"lane": self._number, "broken": str(error).split(":", 1)[0]})
                time.sleep(0.05)

    def _send(self, association: Association, instance: DataSet, study: int) -> None:
        """Returns once it is acknowledged; a failure status is heard, waited for, and sent again."""
        while True:
            status = association.store(instance)
            if status == 0:
                digest = hashlib.sha256(b"".join(instance.parts)).hexdigest()
                self._report.write(
                    {
                        "lane": self._number,
                        "study": self._generator.study_uid(study),
                        "sop": instance.sop_instance_uid,
                        "sha256": digest,
                    }
                )
                return
            self._report.write({"lane": self._number, "status": status})
            time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--port",
        type=int,
        action="append",
        required=True,
        help="may be given several times: each association goes to the next one",
    )
    parser.add_argument("--called", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--report", required=True)
    parser.add_argument("--pace", type=float, default=0.0, help="seconds that a lane rests between instances")
    arguments = parser.parse_args()
    stop = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask_to_stop)
    report = Report(arguments.report)
    lanes = [Lane(number, arguments, report, stop) for number in range(1, arguments.lanes + 1)]
    threads = [threading.Thread(target=lane.run) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
