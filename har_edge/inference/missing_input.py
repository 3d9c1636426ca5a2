"""The model input that replaces a missing source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from har_edge.errors import MessageError, ModelError

if TYPE_CHECKING:
    from har_edge.inference.interpreter import Port


def missing_input(port: Port, count: int) -> npt.NDArray[Any]:
    """Return the input of `count` windows whose source is missing: real zero everywhere, [count, ...] as the port is.

    Real zero is 0.0, or the zero point of an integer port. A network trained with modality dropout has learned that
    zero stands for a missing source (Neverova et al., "ModDrop: adaptive multi-modal gesture recognition", TPAMI 38(8),
    2016). An input without a batch dimension takes one window.

    Raises ModelError when a dimension after the first has no fixed size, and MessageError for several windows when the
    input has no batch.
    """
    batched = port.shape[:1] in ((-1,), (1,))
    shape = port.shape[1:] if batched else port.shape
    if not (batched or count == 1):
        raise MessageError(f"a batch of {count} windows came, but input {port.name!r} {list(port.shape)} takes one")
    if not port.shape or -1 in shape:
        raise ModelError(
            f"input {port.name!r} is {list(port.shape)}; expected [windows, ...] with fixed sizes, so that a missing "
            "source can be filled in; convert the model so, or wait for all sources"
        )
    return np.full((count, *shape) if batched else shape, port.zero_point, port.dtype)
