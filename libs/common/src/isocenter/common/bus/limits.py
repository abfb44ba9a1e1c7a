"""When dead-lettering stops being a remedy and becomes the loss of a topic."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class DlqLimit:
    """Stops a consumer whose records go to the dead-letter topic one after the other.

    A schema that moved or a dependency that lies makes every record look bad. A hundred dead letters are a
    defect to mend; a topic of them is an outage that looks healthy.

    Attributes:
        max_consecutive: dead letters in a row before the consumer stops.
        max_ratio: share of dead letters among the last `window` records, judged once the window is half full.
    """

    max_consecutive: int = 50
    max_ratio: float = 0.5
    window: int = 200
    _recent: deque[bool] = field(default_factory=deque, repr=False)
    _consecutive: int = field(default=0, repr=False)

    def processed(self) -> None:
        """A record was handled."""
        self._consecutive = 0
        self._push(invalid=False)

    def dead_lettered(self) -> None:
        self._consecutive += 1
        self._push(invalid=True)

    def refusal(self) -> str | None:
        """Why one more dead letter is too many, or None."""
        if self._consecutive >= self.max_consecutive:
            return f"{self._consecutive} dead letters in a row"
        invalid = sum(self._recent) + 1
        if len(self._recent) >= self.window / 2 and invalid > self.max_ratio * (len(self._recent) + 1):
            return f"{invalid - 1} dead letters among the last {len(self._recent)} records"
        return None

    def _push(self, *, invalid: bool) -> None:
        self._recent.append(invalid)
        if len(self._recent) > self.window:
            self._recent.popleft()
