"""An unfair comparison is refused, and the lean sender is a sender that DCMTK accepts."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks import retrieve
from benchmarks.corpus import FULL, QUICK, Corpus, Generator
from benchmarks.dimse import VERIFICATION, Association
from benchmarks.ingest import fairness
from benchmarks.ingest.report import KEYS
from benchmarks.peers import BitPreservingScp

ROOT = Path(__file__).resolve().parents[2]
CORPORA = ("ct", "small", "large")
TARGETS = {"isocenter": 400.0, "isocenter_ingest": 600.0, "orthanc_sync": 200.0, "storescp": 1600.0}


def rows() -> list[dict[str, Any]]:
    """A fair comparison."""
    return [
        {
            "target": target,
            "corpus": corpus,
            "associations": 1,
            "durable": target != "storescp",
            "instances_per_s": rate,
            "peak_rss_mb": 120.4,
            "sender": "benchmarks.sender",
            "address": "127.0.0.1, loopback",
            "corpus_digest": ["a", "b", "c"],
            "seeds": [1, 2, 3],
            "instances": 100,
            "stored": 100,
            "counted": 100,
            "bytes": 52_000_000,
            "tcp_nodelay": True,
            "failures": [],
        }
        for corpus in CORPORA
        for target, rate in TARGETS.items()
    ]


def test_a_fair_comparison_yields_exactly_the_promised_ratios() -> None:
    assert {
        "ct_vs_orthanc_sync": 3.0,
        "ct_platform_vs_orthanc_sync": 2.0,
        "ct_vs_storescp": 0.375,
        "small_vs_orthanc_sync": 3.0,
        "small_platform_vs_orthanc_sync": 2.0,
        "small_vs_storescp": 0.375,
        "large_vs_orthanc_sync": 3.0,
        "large_platform_vs_orthanc_sync": 2.0,
        "large_vs_storescp": 0.375,
        "rss_mb_large": 120.4,
        "rss_mb_large_platform": 120.4,
    } == fairness.ratios(rows())


def test_four_associations_and_stow_have_ratios_of_their_own() -> None:
    for row in (found := rows()):
        row["associations"] = 4
        if row["corpus"] == "small":
            row["corpus"] = "stow_ct"
            row["target"] = row["target"].replace("orthanc_sync", "orthanc_dicomweb")
    ratios = fairness.ratios(found)
    assert (3.0, 2.0) == (ratios["ct_vs_orthanc_sync_x4"], ratios["ct_platform_vs_orthanc_sync_x4"])
    assert (3.0, 2.0) == (ratios["stow_vs_orthanc_x4"], ratios["stow_platform_vs_orthanc_x4"])
    assert "ct_vs_orthanc_sync" not in ratios


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("sender", "dcmsend", "sender differs"),
        ("instances", 99, "instances differs"),
        ("bytes", 1, "bytes differs"),
        ("seeds", [4], "seeds differs"),
        ("corpus_digest", ["a", "b", "d"], "corpus_digest differs"),
        ("address", "10.0.0.1", "not on this machine"),
        ("durable", False, "is durable before Success and isocenter is not"),
        ("tcp_nodelay", False, "without TCP_NODELAY"),
        ("failures", ["status 0xa700"], "transfers failed"),
        ("stored", 99, "99 acknowledged of 100"),
        ("counted", 99, "holds 99 of 100"),
    ],
)
def test_an_unfair_comparison_is_refused(field: str, value: object, reason: str) -> None:
    """One field of our own row is enough."""
    found = rows()
    assert "isocenter" == found[0]["target"]
    found[0][field] = value
    with pytest.raises(fairness.Unfair, match=reason):
        fairness.ratios(found)


def test_a_peer_that_is_called_synchronous_must_be() -> None:
    found = rows()
    assert "orthanc_sync" == found[2]["target"]
    found[2]["durable"] = False
    with pytest.raises(fairness.Unfair, match="named as synchronous"):
        fairness.ratios(found)


@pytest.mark.parametrize(
    ("damage", "status"),
    [
        (lambda document: None, 0),
        (lambda document: document["ratios"].update(ct_vs_storescp=3.0), 2),
        (lambda document: document["rows"][0].update(counted=1), 2),
        (lambda document: document.update(note="and one more thing"), 2),
    ],
)
def test_a_results_file_can_be_judged_again(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], status: int
) -> None:
    found = rows()
    document = dict.fromkeys(KEYS, "") | {"rows": found, "ratios": fairness.ratios(found)}
    damage(copied := copy.deepcopy(document))
    path = tmp_path / "results.json"
    path.write_text(json.dumps(copied))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ingest", "--verify", str(path)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert status == done.returncode


def test_the_committed_results_are_fair_and_follow_from_their_rows() -> None:
    path = ROOT / "benchmarks" / "results" / "ingest.json"
    if not path.exists():
        pytest.skip("no results yet: make bench")
    document = json.loads(path.read_text())
    assert KEYS == tuple(document)
    assert fairness.ratios(document["rows"]) == document["ratios"]


def test_the_corpora_are_those_that_were_promised() -> None:
    sizes = {corpus.name: (corpus.instances, corpus.pixel_bytes) for corpus in FULL}
    promised = {
        "ct": (1000, 524_288),
        "small": (5000, 20_000),
        "large": (5, 209_715_200),
        "stow_ct": (1000, 524_288),
        "stow_small": (5000, 20_000),
    }
    assert promised == sizes
    assert [corpus.name for corpus in FULL] == [corpus.name for corpus in QUICK]


def test_no_two_instances_of_a_corpus_have_the_same_content_and_a_seed_repeats_them() -> None:
    corpus = Corpus("small", 0, 32, 32)
    first, again, other = Generator(7), Generator(7), Generator(8)

    def contents(generator: Generator) -> list[bytes]:
        return [b"".join(instance.parts) for instance in generator.study(corpus, 1, 50)]

    assert contents(first) == contents(again)
    assert 50 == len(set(contents(first)))
    assert first.digest(corpus, [corpus]) == again.digest(corpus, [corpus]) != other.digest(corpus, [corpus])
    assert not set(contents(first)) & set(contents(other))


def trial(tmp_path: Path, module: str, *arguments: str) -> dict[str, Any]:
    """What a short round of a benchmark writes."""
    output = tmp_path / "results.json"
    places = ("--scratch", str(tmp_path), "--output", str(output))
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", "--quick", *arguments, *places],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert 0 == done.returncode, done.stderr
    document: dict[str, Any] = json.loads(output.read_text())
    assert KEYS == tuple(document)
    return document


@pytest.mark.slow
def test_the_ingest_benchmark_finds_everything_it_sent_in_the_platform_and_in_ingest(tmp_path: Path) -> None:
    arguments = ("--targets", "isocenter,isocenter_ingest", "--corpora", "stow_small", "--associations", "1")
    document = trial(tmp_path, "ingest", *arguments)
    assert fairness.ratios(document["rows"]) == document["ratios"]
    assert {("isocenter", 60), ("isocenter_ingest", 60)} == {
        (row["target"], row["counted"]) for row in document["rows"]
    }


@pytest.mark.slow
def test_the_benchmark_of_flat_cost_compares_each_mark_with_the_first(tmp_path: Path) -> None:
    document = trial(tmp_path, "flat", "--targets", "isocenter_ingest")
    assert {50, 100} == {row["mark"] for row in document["rows"]}
    assert set(document["ratios"]) == {f"isocenter_ingest_{p}_100_over_50" for p in ("p50", "p99")}


@pytest.mark.peer
def test_the_lean_sender_is_understood_by_dcmtk(reference: BitPreservingScp) -> None:
    """Every byte it was given arrives, over fragments of several sizes."""
    corpora = (Corpus("ct", 0, 512, 512), Corpus("tiny", 0, 4, 4), Corpus("many", 0, 64, 64, frames=3))
    address = ("127.0.0.1", reference.port)
    generator = Generator(1)
    sent = {}
    classes = sorted({corpus.sop_class_uid for corpus in corpora})
    with Association(address, [VERIFICATION, *classes]) as association:
        assert 0 == association.echo()
        for study, corpus in enumerate(corpora):
            for instance in generator.study(corpus, study, 3):
                assert 0 == association.store(instance)
                sent[instance.sop_instance_uid] = hashlib.sha256(b"".join(instance.parts)).hexdigest()
    received = {retrieve.sop_instance_uid(part): retrieve.digest(part) for part in reference.received()}
    assert sent == received
