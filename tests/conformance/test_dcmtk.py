"""DCMTK sends, and its own bit-preserving receiver says which bytes that were."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import peers, retrieve
from benchmarks.embedded import Embedded
from benchmarks.peers import BitPreservingScp
from benchmarks.samples import sample
from pydicom.uid import generate_uid

pytestmark = [pytest.mark.peer, pytest.mark.usefixtures("dcmtk")]

STORESCU = (
    ("CT_small.dcm", ()),
    ("MR_small_implicit.dcm", ("--propose-implicit",)),
    ("image_dfl.dcm", ("--propose-deflated",)),
    ("MR_small_RLE.dcm", ("--propose-rle",)),
    ("MR_small_jp2klossless.dcm", ("-xv",)),
    ("JPEG2000.dcm", ("-xw",)),
    ("SC_rgb_jpeg_gdcm.dcm", ("--propose-lossless",)),
    ("SC_jpeg_no_color_transform.dcm", ("--propose-jpeg8",)),
    ("JPEG-lossy.dcm", ("--propose-jpeg12",)),
    ("MR_small_jpeg_ls_lossless.dcm", ("--propose-jls-lossless",)),
    ("SC_rgb_jls_lossy_line.dcm", ("--propose-jls-lossy",)),
)
"""File of the pydicom package, and storescu's option for its transfer syntax."""

DCMSEND = ("examples_overlay.dcm", "SC_rgb_rle_16bit.dcm", "examples_jpeg2k.dcm", "ExplVR_BigEnd.dcm")


def stored_data_set(platform: Embedded, resource: str) -> bytes:
    """The data set of one instance, as WADO-RS gives it without transcoding."""
    (part,) = platform.instances(resource)
    return retrieve.data_set(part)


def test_echoscu_hears_success(platform: Embedded) -> None:
    done = peers.dcmtk(
        "echoscu", "--verbose", "-aec", platform.ae_title, "127.0.0.1", str(platform.dicom_port)
    )
    assert 0 == done.returncode
    assert "Received Echo Response (Success)" in done.stdout + done.stderr


@pytest.mark.parametrize(("name", "options"), STORESCU)
def test_storescu_bytes_are_kept(
    platform: Embedded,
    reference: BitPreservingScp,
    tmp_path: Path,
    name: str,
    options: tuple[str, ...],
) -> None:
    """In every transfer syntax: what a bit-preserving receiver wrote is what we give back."""
    file = sample(name, tmp_path)
    for called, port in ((platform.ae_title, platform.dicom_port), ("REFERENCE", reference.port)):
        done = peers.dcmtk(
            "storescu", "--required", *options, "-aec", called, "127.0.0.1", str(port), file.path
        )
        assert 0 == done.returncode, done.stderr
    (expected,) = reference.received()

    assert retrieve.data_set(expected) == stored_data_set(platform, file.resource)


BIG_ENDIAN_ONLY = """
[[TransferSyntaxes]]
[Big]
TransferSyntax1 = BigEndianExplicit
[[PresentationContexts]]
[Contexts]
PresentationContext1 = MRImageStorage\\Big
[[Profiles]]
[Default]
PresentationContexts = Contexts
"""
"""With --propose-big alone storescu offers little endian beside it, and receivers may choose differently."""


def test_storescu_bytes_are_kept_in_big_endian(
    platform: Embedded, reference: BitPreservingScp, tmp_path: Path
) -> None:
    file = sample("MR_small_bigendian.dcm", tmp_path)
    profile = tmp_path / "storescu.cfg"
    profile.write_text(BIG_ENDIAN_ONLY)
    for called, port in ((platform.ae_title, platform.dicom_port), ("REFERENCE", reference.port)):
        done = peers.dcmtk(
            *("storescu", "-xf", profile, "Default", "-aec", called, "127.0.0.1", str(port), file.path)
        )
        assert 0 == done.returncode, done.stderr
    (expected,) = reference.received()

    kept = stored_data_set(platform, file.resource)
    assert b"\x00\x08" == kept[:2]
    assert retrieve.data_set(expected) == kept


@pytest.mark.parametrize("name", DCMSEND)
def test_dcmsend_bytes_are_kept(
    platform: Embedded, reference: BitPreservingScp, tmp_path: Path, name: str
) -> None:
    file = sample(name, tmp_path)
    for called, port in ((platform.ae_title, platform.dicom_port), ("REFERENCE", reference.port)):
        done = peers.dcmtk(
            *("dcmsend", "--verbose", "--decompress-never", "-aec", called, "127.0.0.1", str(port), file.path)
        )
        assert 0 == done.returncode, done.stderr
        # dcmsend exits with 0 when an instance is refused.
        assert "with status SUCCESS  : 1" in done.stdout + done.stderr
    (expected,) = reference.received()

    assert retrieve.data_set(expected) == stored_data_set(platform, file.resource)


def test_dcmsend_sends_a_whole_directory_and_reports_every_instance(
    platform: Embedded, tmp_path: Path
) -> None:
    """Several SOP classes and transfer syntaxes over as many associations as dcmsend wants."""
    study = generate_uid()
    names = ("CT_small.dcm", "MR_small_RLE.dcm", "MR_small_implicit.dcm", "rtdose.dcm", "image_dfl.dcm")
    for name in names:
        sample(name, tmp_path, study=study)
    report = tmp_path / "report.txt"
    done = peers.dcmtk(
        "dcmsend",
        *("--decompress-never", "--scan-directories", "--scan-pattern", "*.dcm"),
        *("--create-report-file", report, "-aec", platform.ae_title),
        *("127.0.0.1", str(platform.dicom_port), tmp_path),
    )
    assert 0 == done.returncode, done.stderr
    assert len(names) == report.read_text().count("0x0000 (Success)"), report.read_text()

    assert len(names) == len(platform.instances(f"/dicom-web/studies/{study}", at_least=len(names)))


def test_dcmdump_reads_what_we_give_back(platform: Embedded, tmp_path: Path) -> None:
    """The Part 10 stream we write around the kept data set is one that DCMTK reads without a warning."""
    file = sample("CT_small.dcm", tmp_path)
    sent = peers.dcmtk(
        "storescu", "-aec", platform.ae_title, "127.0.0.1", str(platform.dicom_port), file.path
    )
    assert 0 == sent.returncode, sent.stderr
    (part,) = platform.instances(file.resource)
    path = tmp_path / "retrieved.dcm"
    path.write_bytes(part)

    dumped = peers.dcmtk("dcmdump", "--print-all", "--load-all", path)
    assert 0 == dumped.returncode
    assert "" == dumped.stderr
    assert f"UI [{file.instance}]" in dumped.stdout
    assert "MediaStorageSOPInstanceUID" in dumped.stdout


def test_a_sender_that_aborts_half_way_leaves_the_acceptor_working(
    platform: Embedded, tmp_path: Path
) -> None:
    address = ("-aec", platform.ae_title, "127.0.0.1", str(platform.dicom_port))
    peers.dcmtk("storescu", "--abort", *address, sample("MR_small.dcm", tmp_path).path)
    assert 0 == peers.dcmtk("echoscu", *address).returncode
