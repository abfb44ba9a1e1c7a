"""Modality and study date together: the question that worklists and reading rooms ask all day.

An index leads to either of the two and not to both, and a day has studies of every modality. So a study also
keeps `modality NUL date` for each of its modalities and dates, among its terms: both conditions become one
range of one index. No normal form holds a NUL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from isocenter.common.index import attributes as kept
from isocenter.common.index.encoding import bindable
from isocenter.common.index.query import Condition, Exact, OneOf, Range
from isocenter.common.index.terms import Term, high_of, low_of, text_of

STUDY_DATE = "00080020"
PREFIX = f"{kept.MODALITIES_IN_STUDY}+{STUDY_DATE}="
MANY = f"{PREFIX}*"
"""Stands for all pairs of a study that has more than MOST of them: its header breaks the standard, where a
study has one date.
"""
MOST = 64
FEW = 8
_MODALITY = (kept.MODALITIES_IN_STUDY,)
_DATE = (STUDY_DATE,)


def pairs_of(terms: Iterable[Term]) -> set[str]:
    """What is kept of a study's terms."""
    terms = list(terms)
    modalities = {text for path, _, text in terms if path == _MODALITY}
    dates = {text for path, _, text in terms if path == _DATE}
    if len(modalities) * len(dates) > MOST:
        return {MANY}
    return {f"{PREFIX}{modality}\0{date}" for modality in modalities for date in dates}


def find(conditions: Sequence[Condition]) -> tuple[Condition, Condition] | None:
    """A few modalities, and a date or a range of dates, among conditions that must all hold."""
    modality = date = None
    for one in conditions:
        if isinstance(one, Exact | OneOf) and one.path == _MODALITY and 1 <= len(_values(one)) <= FEW:
            modality = one
        elif isinstance(one, Exact | Range) and one.path == _DATE:
            date = one
    return None if modality is None or date is None else (modality, date)


def ranges(modality: Condition, date: Condition) -> list[tuple[str, str]]:
    """Least and greatest pair, for each modality that is asked for."""
    if isinstance(date, Range):
        low, high = low_of("DA", date.low), high_of("DA", date.high)
    else:
        low = high = text_of("DA", date.value if isinstance(date, Exact) else "")
    return [
        (f"{PREFIX}{each}\0{bindable(low)}", f"{PREFIX}{each}\0{bindable(high)}")
        for each in _values(modality)
    ]


def _values(condition: Condition) -> list[str]:
    match condition:
        case Exact(_, value):
            values: tuple[str, ...] = (value,)
        case OneOf(_, values):
            pass
        case _:
            values = ()
    return sorted({bindable(text_of("CS", value)) for value in values})
