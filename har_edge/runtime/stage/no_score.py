"""Why a window has no score: which slice of the model made what is no number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.config.wiring import Wiring
from har_edge.errors import MessageError


class NoScore(MessageError):
    """The model answered with what is no number."""


def check_scores(scores: Sequence[float]) -> None:
    """Raise NoScore where one of the scores is NaN or infinite."""
    for score in scores:
        if not math.isfinite(score):
            raise NoScore(f"the model's score is {'NaN' if math.isnan(score) else 'infinite'}; expected a number")


def explain(error: NoScore, entered: Mapping[str, npt.NDArray[Any]], wiring: Wiring) -> MessageError:
    """Return an error that says which slice made it; `entered` holds what went into the one that ran, by tensor.

    Codes of sensors that hold NaN or infinity are refused as they come, so it is the model that makes it.
    """
    bad = {name for name, array in entered.items() if array.dtype.kind in "fc" and not np.isfinite(array).all()}
    makers = {maker: sorted(bad.intersection(names)) for maker, names in wiring.earlier.items()}
    known = next(
        (f"stage {maker} gave {names[0]!r} with NaN or infinity" for maker, names in makers.items() if names), ""
    )
    where = known or "all that entered this slice are finite numbers"
    return MessageError(
        f"{error}; {where}: the model itself makes it of what the sensors sent, which are numbers; look for a "
        "logarithm, a root or a division in it, and whether the windows are such as it was trained on"
    )
