from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import (
    AE,
    ALL_TRANSFER_SYNTAXES,
    AllStoragePresentationContexts,
    VerificationPresentationContexts,
    evt,
)

from isocenter.cli import send_dimse
from isocenter.cli.commands_send import deliver, dimse_transmitter
from isocenter.cli.errors import CommandError
from isocenter.cli.files import Candidate, inspect
from isocenter.cli.outcome import Fate, Outcome, Watcher, count
from isocenter.cli.output import transfer_progress
from isocenter.cli.scu import VERIFICATION, Association, AssociationError
from isocenter.cli.send_dimse import Peer, batches
from isocenter.common.dicom.header import InstanceHeader
from isocenter.common.dicom.part10 import FileMeta


@dataclass
class Scp:
    """What pynetdicom's own server received. `status` answers; `abort_on` aborts at that instance."""

    port: int = 0
    status: int = 0x0000
    abort_on: int | None = None
    data_sets: list[bytes] = field(default_factory=list)
    associations: int = 0
    contexts: list[int] = field(default_factory=list)

    def on_store(self, event: Any) -> int:
        self.data_sets.append(event.request.DataSet.getvalue())
        if self.abort_on == len(self.data_sets):
            event.assoc.abort()
        return self.status

    def on_accepted(self, event: Any) -> None:
        self.associations += 1
        self.contexts.append(len(event.assoc.requestor.requested_contexts))


@pytest.fixture
def scp() -> Iterator[Scp]:
    receiver = Scp()
    ae: Any = AE("PEER")
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
    for context in VerificationPresentationContexts:
        ae.add_supported_context(context.abstract_syntax)
    server = ae.start_server(
        ("127.0.0.1", 0),
        block=False,
        evt_handlers=[(evt.EVT_C_STORE, receiver.on_store), (evt.EVT_ACCEPTED, receiver.on_accepted)],
    )
    receiver.port = server.server_address[1]
    with contextlib.closing(_Closing(server.shutdown)):
        yield receiver


@dataclass
class _Closing:
    close: Callable[[], None]


def _peer(port: int) -> Peer:
    return Peer("127.0.0.1", port, "PEER", "TEST")


def _files(package: Path, *names: str) -> list[Candidate]:
    return [inspect(package / name) for name in names]


def _data_set(candidate: Candidate) -> bytes:
    assert candidate.meta is not None
    return candidate.path.read_bytes()[candidate.meta.header_bytes :]


def test_data_sets_arrive_as_they_lie_in_their_files(scp: Scp, package: Path) -> None:
    """Native, compressed, deflated, big endian, and one with another UID in its file meta information."""
    files = _files(
        package,
        "CT_small.dcm",
        "MR_small_bigendian.dcm",
        "image_dfl.dcm",
        "JPEG2000.dcm",
        "SC_rgb_jpeg_dcmd.dcm",
        "rtdose.dcm",
    )

    outcomes = send_dimse.send(files, _peer(scp.port), Watcher())

    assert len(files) == count(outcomes, Fate.STORED)
    assert [_data_set(each) for each in files] == scp.data_sets
    assert 1 == scp.associations


def test_bytes_are_counted_as_they_leave(scp: Scp, package: Path) -> None:
    files = _files(package, "CT_small.dcm", "SC_rgb_jpeg_dcmd.dcm")
    seen: list[int] = []

    send_dimse.send(files, _peer(scp.port), Watcher(on_bytes=seen.append))

    assert sum(len(_data_set(each)) for each in files) == sum(seen)


def test_a_failure_status_is_told_with_its_meaning(scp: Scp, package: Path) -> None:
    scp.status = 0xA700

    (outcome,) = send_dimse.send(_files(package, "CT_small.dcm"), _peer(scp.port), Watcher())

    assert Fate.REFUSED is outcome.fate
    assert outcome.status == 0xA700
    assert "Out of Resources" in outcome.reason


def test_a_warning_status_is_stored_and_told(scp: Scp, package: Path) -> None:
    scp.status = 0xB000

    (outcome,) = send_dimse.send(_files(package, "CT_small.dcm"), _peer(scp.port), Watcher())

    assert Fate.STORED is outcome.fate
    assert "Coercion" in outcome.reason


def test_an_abort_refuses_one_instance_and_the_rest_is_sent_again(scp: Scp, package: Path) -> None:
    scp.abort_on = 2
    files = _files(package, "CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "test-SR.dcm")

    outcomes = send_dimse.send(files, _peer(scp.port), Watcher())

    assert [Fate.STORED, Fate.REFUSED, Fate.STORED, Fate.STORED] == [each.fate for each in outcomes]
    assert 2 == scp.associations


def test_a_peer_that_aborts_at_once_ends_the_transfer(scp: Scp, package: Path) -> None:
    scp.abort_on = 1

    with pytest.raises(AssociationError):
        send_dimse.send(_files(package, "CT_small.dcm", "MR_small.dcm"), _peer(scp.port), Watcher())


def test_nobody_there_is_an_error_with_an_address(package: Path) -> None:
    with pytest.raises(AssociationError, match=r"127\.0\.0\.1:1 "):
        send_dimse.send(_files(package, "CT_small.dcm"), _peer(1), Watcher())


def test_what_no_presentation_context_takes_is_refused(scp: Scp, package: Path, tmp_path: Path) -> None:
    """The peer knows no such SOP Class; the file beside it is sent all the same."""
    foreign = tmp_path / "foreign.dcm"
    data = (package / "CT_small.dcm").read_bytes()
    foreign.write_bytes(data.replace(b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.10008.5.9.9.9.9.9"))

    outcomes = send_dimse.send(
        [inspect(foreign), *_files(package, "CT_small.dcm")], _peer(scp.port), Watcher()
    )

    assert [Fate.REFUSED, Fate.STORED] == [each.fate for each in outcomes]
    assert "no presentation context" in outcomes[0].reason


def test_verification(scp: Scp) -> None:
    with Association(
        "127.0.0.1", scp.port, called="PEER", calling="TEST", contexts=[VERIFICATION]
    ) as association:
        assert 0 == association.echo().status


def test_one_association_per_128_presentation_contexts() -> None:
    """Ids are odd and fit one byte: a 129th context needs another association, in the order of the files."""
    candidates = [_synthetic(f"1.2.{number}") for number in range(1, 300)]

    sizes = [len({c.sop for c in batch}) for batch in batches(candidates)]

    assert [128, 128, 43] == sizes


def _synthetic(sop_class_uid: str) -> Candidate:
    header = InstanceHeader(sop_class_uid, "1.2.3", "1.2.4", "1.2.5")
    return Candidate(Path("x"), 1, FileMeta(sop_class_uid, "1.2.3", "1.2.840.10008.1.2", 200), header)


def test_an_odd_uid_is_padded_with_a_null() -> None:
    """PS3.5 section 9.1."""
    from isocenter.cli.scu import _uid  # noqa: PLC0415 - the detail under test

    assert b"1.2\0" == _uid("1.2")
    assert b"1.23" == _uid("1.23")


def test_the_command_sets_group_length_is_right() -> None:
    from isocenter.cli.scu import _command  # noqa: PLC0415 - the detail under test

    command = _command("1.2.840.10008.5.1.4.1.1.2", 1, 7, "1.2.3")

    assert len(command) - 12 == struct.unpack_from("<I", command, 8)[0]


def test_a_receiver_that_dies_leaves_the_rest_refused_and_named(scp: Scp, package: Path) -> None:
    """What was acknowledged is told as stored all the same."""
    paths = [package / name for name in ("CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "test-SR.dcm")]
    real = dimse_transmitter(_peer(scp.port))

    def transmit(candidates: Sequence[Candidate], watcher: Watcher) -> list[Outcome]:
        real(candidates[:2], watcher)
        raise CommandError("the peer is gone")

    with transfer_progress(quiet=True) as progress:
        outcomes = deliver(paths, transmit, progress, "")

    assert [Fate.STORED, Fate.STORED, Fate.REFUSED, Fate.REFUSED] == [each.fate for each in outcomes]
    assert paths == [each.path for each in outcomes]
    assert "not sent: the peer is gone" == outcomes[-1].reason


def test_a_file_that_vanishes_is_refused_and_the_rest_is_sent(
    scp: Scp, package: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.dcm"
    copy.write_bytes((package / "CT_small.dcm").read_bytes())
    files = [inspect(copy), *_files(package, "MR_small.dcm")]
    copy.unlink()

    outcomes = send_dimse.send(files, _peer(scp.port), Watcher())

    assert [Fate.REFUSED, Fate.STORED] == [each.fate for each in outcomes]
    assert "cannot be read" in outcomes[0].reason


def test_a_file_that_shrinks_while_it_is_read_is_refused_and_never_half_stored(
    scp: Scp, package: Path, tmp_path: Path
) -> None:
    big = tmp_path / "big.dcm"
    big.write_bytes((package / "SC_rgb_jpeg_dcmd.dcm").read_bytes())
    files = [inspect(big), *_files(package, "MR_small.dcm")]

    def cut(_: int) -> None:
        with big.open("r+b") as file:
            file.truncate(100_000)

    outcomes = send_dimse.send(files, _peer(scp.port), Watcher(on_bytes=cut))

    assert [Fate.REFUSED, Fate.STORED] == [each.fate for each in outcomes]
    assert 1 == len(scp.data_sets)
    assert 2 == scp.associations
