"""Settings of the indexer: `ISOCENTER_INDEXER_*`. All periods in seconds."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from isocenter.common.settings import ServiceSettings
from isocenter.indexer.domain import SettlingPolicy

Seconds = Annotated[float, Field(gt=0, le=7 * 86_400)]


class IndexerSettings(ServiceSettings):
    """Defaults suit senders that pause less than a minute between series."""

    model_config = SettingsConfigDict(env_prefix="ISOCENTER_INDEXER_")

    quiet_seconds: Seconds = 60.0
    """A study settles after so long without an arrival."""
    quiet_after_close_seconds: Seconds = 2.0
    """The same, once every transfer that brought instances of it has ended."""
    max_wait_seconds: Seconds = 5400.0
    """It settles at the latest so long after the first unsettled arrival."""
    lease_seconds: Seconds = 30.0
    """How long a study waits for a settler that died over it."""
    settle_poll_seconds: Seconds = 0.5
    """Between two looks at the index while studies arrive; while nothing can be due, they come less often."""
    outbox_poll_seconds: Seconds = 1.0
    """Before the next attempt to publish what the bus refused."""
    describe_concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    """Objects read at the same time for one event."""
    parsers: Annotated[int, Field(ge=0, le=16)] = 1
    """Child processes that parse headers, with limits of memory and time. 0: headers are parsed in the
    service's own process, where a hostile one slows down everything.
    """

    @property
    def policy(self) -> SettlingPolicy:
        return SettlingPolicy(
            quiet=timedelta(seconds=self.quiet_seconds),
            quiet_after_close=timedelta(seconds=self.quiet_after_close_seconds),
            max_wait=timedelta(seconds=self.max_wait_seconds),
        )
