"""Writes the dashboards: `python -m scripts.dashboards`."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.dashboards.delivery import DELIVERY
from scripts.dashboards.staging import STAGING
from scripts.dashboards.stores import STORES
from scripts.dashboards.way import WAY
from scripts.dashboards.well import WELL

BOARDS = {"well": WELL, "way": WAY, "delivery": DELIVERY, "stores": STORES, "staging": STAGING}
FOLDER = Path(__file__).parents[2] / "deploy" / "observability" / "dashboards"


def render() -> dict[str, str]:
    """File name -> content."""
    return {f"{name}.json": json.dumps(board.model(), indent=1) + "\n" for name, board in BOARDS.items()}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in render().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
