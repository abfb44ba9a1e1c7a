"""Helm, and the chart rendered once per value set.

No cluster runs here. Shown: the chart renders, its objects are valid by the schemas of Kubernetes, and they
keep the rules that these tests state. Not shown: admission, scheduling, probes and network policies in force.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from testbed.cache import must_be_available
from testbed.helm import Helm, helm
from testbed.server import ServerUnavailable
from tests.kubernetes.chart import SETS, Rendered

HERE = Path(__file__).parent
BUILD_LIMIT_SECONDS = 900
"""The first test may have to build Helm."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(BUILD_LIMIT_SECONDS))


@pytest.fixture(scope="session")
def the_helm() -> Helm:
    try:
        return helm()
    except ServerUnavailable as error:
        reason = f"NOT RUN: {error}"
        if must_be_available():
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session", params=sorted(SETS))
def rendered(request: pytest.FixtureRequest, the_helm: Helm) -> Rendered:
    """Each value set in turn."""
    return Rendered.of(the_helm, values=SETS[request.param])


@pytest.fixture(scope="session")
def minimal(the_helm: Helm) -> Rendered:
    return Rendered.of(the_helm, values=SETS["minimal"])


@pytest.fixture(scope="session")
def large(the_helm: Helm) -> Rendered:
    return Rendered.of(the_helm, values=SETS["large"])
