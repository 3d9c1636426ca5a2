"""Operators that move data, or reduce it along axes."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as tflite

from tests.tflite.gradient.cases import Case, Same, W, X, options

_MIRROR = tflite.MirrorPadMode

REDUCTIONS = [
    Case(name, (X(shape), axes), options("Reducer", keepDims=keep))
    for name in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN")
    for shape, axes in (
        ((2, 5), [1]),
        ((2, 5), [-1]),
        ((2, 5), [0]),
        ((2, 3, 4), [1, 2]),
        ((2, 3, 4), [0, 2]),
        ((2, 3, 4), [0, 1, 2]),
        ((2, 3, 4, 2), [1, 2]),
        ((2, 3, 2, 3), [1, 3]),
        ((2, 3, 2, 2, 2), [1, 3]),
    )
    for keep in (False, True)
] + [Case("SUM", (X((2, 3, 4)), np.array(1, np.int32)), options("Reducer"), note="scalar axis")]
PADS = [
    Case("PAD", (X((2, 3)), [[0, 0], [1, 2]]), options("Pad")),
    Case("PAD", (X((2, 3, 4)), [[0, 0], [1, 0], [0, 2]]), options("Pad")),
    Case("PAD", (X((2, 3, 4, 2)), [[1, 0], [1, 1], [2, 0], [0, 1]]), options("Pad")),
    Case("PAD", (X((2, 3, 2, 2, 2)), [[0, 0], [1, 1], [0, 0], [1, 2], [0, 1]]), options("Pad")),
    Case("PADV2", (X((2, 3)), [[0, 0], [1, 2]], np.array(2.5, np.float32)), options("PadV2")),
    Case("PADV2", (X((2, 3, 4, 2)), [[0, 0], [1, 1], [2, 0], [0, 0]], np.array(-1, np.float32)), options("PadV2")),
    *(
        Case("MIRROR_PAD", (X(shape), pads), options("MirrorPad", mode=mode))
        for mode in (_MIRROR.REFLECT, _MIRROR.SYMMETRIC)
        for shape, pads in (
            ((2, 4), [[0, 0], [2, 3]]),
            ((2, 3, 4), [[0, 0], [1, 0], [2, 1]]),
            ((2, 4, 3, 2), [[0, 0], [2, 1], [1, 2], [0, 0]]),
            ((3, 2), [[1, 2], [0, 0]]),
        )
    ),
]
JOINS = [
    Case("CONCATENATION", (X((2, 3)), X((2, 2))), options("Concatenation", axis=1)),
    Case("CONCATENATION", (X((2, 3)), X((4, 3))), options("Concatenation", axis=0)),
    Case("CONCATENATION", (X((2, 3, 2)), W((2, 3, 1)), X((2, 3, 4))), options("Concatenation", axis=-1)),
    Case("CONCATENATION", (X((2, 3)), Same(0), X((2, 1))), options("Concatenation", axis=1)),
    Case("CONCATENATION", (X((2, 3, 2, 2)), X((2, 1, 2, 2))), options("Concatenation", axis=1)),
    Case("CONCATENATION", (X((2, 2, 3, 2, 2)), X((2, 2, 3, 1, 2))), options("Concatenation", axis=3)),
    Case("CONCATENATION", (X((2, 12)), X((2, 12))), options("Concatenation", axis=1, fusedActivationFunction=0)),
    Case("PACK", (X((2, 3)), X((2, 3))), options("Pack", axis=0, valuesCount=2)),
    Case("PACK", (X((2, 3)), X((2, 3)), Same(0)), options("Pack", axis=1, valuesCount=3)),
    Case("PACK", (X((2, 3, 2)), W((2, 3, 2))), options("Pack", axis=-1, valuesCount=2)),
    *(
        Case("UNPACK", (X((2, 3, 4)),), options("Unpack", axis=axis, num=num), num, used)
        for axis, num in ((0, 2), (1, 3), (-1, 4))
        for used in (None, (1,))
    ),
    *(
        Case("SPLIT", (axis, X((2, 6, 4))), options("Split", numSplits=parts), parts, used)
        for axis, parts in ((1, 3), (1, 2), (-1, 2), (2, 4))
        for used in (None, (1,), (0,))
    ),
    *(
        Case(
            "SPLIT_V",
            (X((2, 6, 4)), sizes, np.array(axis, np.int32)),
            options("SplitV", numSplits=len(sizes)),
            len(sizes),
            used,
        )
        for axis, sizes in ((1, [1, 3, 2]), (-1, [3, 1]), (1, [4, -1]))
        for used in (None, (1,))
    ),
]
MOVES = [
    Case("RESHAPE", (X((2, 6)), [2, 3, 2]), options("Reshape", newShape=[2, 3, 2])),
    Case("RESHAPE", (X((2, 3, 2)), [2, -1]), options("Reshape", newShape=[2, -1])),
    Case("SQUEEZE", (X((2, 1, 3, 1)),), options("Squeeze", squeezeDims=[1])),
    Case("SQUEEZE", (X((2, 1, 3, 1)),), options("Squeeze", squeezeDims=[1, -1])),
    Case("SQUEEZE", (X((2, 1, 3, 1)),), options("Squeeze", squeezeDims=[])),
    Case("EXPAND_DIMS", (X((2, 3)), np.array(1, np.int32)), options("ExpandDims")),
    Case("EXPAND_DIMS", (X((2, 3)), np.array(-1, np.int32)), options("ExpandDims")),
    *(
        Case("TRANSPOSE", (X(shape), order), options("Transpose"))
        for shape, order in (
            ((2, 3), [1, 0]),
            ((2, 3, 4), [2, 0, 1]),
            ((2, 3, 4), [0, 2, 1]),
            ((2, 3, 2, 4), [0, 3, 1, 2]),
            ((2, 1, 3, 2, 2), [4, 0, 3, 1, 2]),
            ((2, 1, 3, 2, 2, 2), [0, 5, 2, 4, 1, 3]),
        )
    ),
    *(
        Case("SPACE_TO_DEPTH", (X(shape),), options("SpaceToDepth", blockSize=2))
        for shape in ((2, 4, 6, 3), (1, 2, 2, 1))
    ),
    *(
        Case("DEPTH_TO_SPACE", (X(shape),), options("DepthToSpace", blockSize=2))
        for shape in ((2, 2, 3, 8), (1, 1, 2, 4))
    ),
    Case("SPACE_TO_BATCH_ND", (X((2, 4, 6, 3)), [2, 3], [[0, 0], [0, 0]]), options("SpaceToBatchND")),
    Case("SPACE_TO_BATCH_ND", (X((1, 3, 5, 2)), [2, 2], [[1, 0], [0, 1]]), options("SpaceToBatchND")),
    Case("SPACE_TO_BATCH_ND", (X((2, 5, 3)), [2], [[1, 2]]), options("SpaceToBatchND")),
    Case("BATCH_TO_SPACE_ND", (X((8, 2, 3, 2)), [2, 2], [[0, 0], [0, 0]]), options("BatchToSpaceND")),
    Case("BATCH_TO_SPACE_ND", (X((4, 2, 3, 2)), [2, 2], [[1, 0], [0, 2]]), options("BatchToSpaceND")),
    Case("BATCH_TO_SPACE_ND", (X((4, 4, 3)), [2], [[1, 1]]), options("BatchToSpaceND")),
    Case("TILE", (X((2, 3)), [1, 2]), options("Tile")),
    Case("TILE", (X((2, 3, 2)), [2, 3, 2]), options("Tile")),
    Case("BROADCAST_TO", (X((2, 1, 3)), [2, 4, 3]), options("BroadcastTo"), version=2),
    Case("BROADCAST_TO", (X((3, 1)), [2, 3, 2]), options("BroadcastTo"), version=2),
    Case("REVERSE_V2", (X((2, 3, 4)), [1]), options("ReverseV2")),
    *(
        Case(
            "CUMSUM", (X((2, 4, 3)), np.array(axis, np.int32)), options("Cumsum", exclusive=exclusive, reverse=reverse)
        )
        for axis in (1, -1)
        for exclusive in (False, True)
        for reverse in (False, True)
    ),
    Case("GATHER", (X((2, 5)), [0, 3, 3]), options("Gather", axis=1)),
    Case("GATHER", (X((2, 4, 3)), [[0, 1], [3, 1]]), options("Gather", axis=1)),
    Case("GATHER", (X((2, 4, 3)), np.array(2, np.int32)), options("Gather", axis=-1)),
    Case("GATHER", (X((4, 3)), [2, 2, 0]), options("Gather", axis=0)),
]
_Slice = "StridedSlice"
SLICES = [
    Case("SLICE", (X((2, 5)), [0, 1], [2, 3]), options("Slice")),
    Case("SLICE", (X((2, 5, 3)), [0, 2, 1], [-1, 2, -1]), options("Slice")),
    Case("SLICE", (X((2, 3, 4, 2)), [1, 0, 1, 0], [1, 3, 2, 1]), options("Slice")),
    Case("SLICE", (X((2, 3, 2, 2, 3)), [0, 1, 0, 1, 1], [2, 1, 2, 1, 2]), options("Slice")),
    Case("STRIDED_SLICE", (X((2, 5)), [0, 1], [2, 4], [1, 1]), options(_Slice)),
    Case("STRIDED_SLICE", (X((2, 7)), [0, 1], [2, 7], [1, 2]), options(_Slice)),
    Case("STRIDED_SLICE", (X((2, 7)), [0, 0], [2, 7], [1, 3]), options(_Slice)),
    Case("STRIDED_SLICE", (X((2, 7)), [0, 5], [2, 0], [1, -2]), options(_Slice)),
    Case("STRIDED_SLICE", (X((2, 7)), [0, -1], [2, -6], [1, -1]), options(_Slice)),
    Case("STRIDED_SLICE", (X((2, 6)), [0, 0], [0, 0], [1, -1]), options(_Slice, beginMask=3, endMask=3)),
    Case("STRIDED_SLICE", (X((2, 6)), [0, -2], [0, 0], [1, 1]), options(_Slice, beginMask=1, endMask=3)),
    Case("STRIDED_SLICE", (X((2, 6)), [0, 2], [2, 100], [1, 3]), options(_Slice)),
    Case("STRIDED_SLICE", (X((2, 6, 3)), [0, 2, 0], [2, 3, 3], [1, 1, 1]), options(_Slice, shrinkAxisMask=2)),
    Case(
        "STRIDED_SLICE",
        (X((2, 6, 3)), [0, -1, 1], [0, 0, 2], [1, 1, 1]),
        options(_Slice, beginMask=1, endMask=1, shrinkAxisMask=6),
    ),
    Case("STRIDED_SLICE", (X((2, 6, 3)), [1], [2], [1]), options(_Slice)),
    Case("STRIDED_SLICE", (X((2, 6, 3)), [1, 1], [2, 5], [1, 2]), options(_Slice)),
    Case("STRIDED_SLICE", (X((2, 4, 4, 3)), [0, 1, 0, 2], [2, 4, 4, 0], [1, 2, 3, -1]), options(_Slice)),
    Case("STRIDED_SLICE", (X((2, 3)), [0, 0, 1], [2, 0, 3], [1, 1, 1]), options(_Slice, newAxisMask=2)),
    Case("STRIDED_SLICE", (X((2, 3, 4)), [0, 1], [0, 3], [1, 1]), options(_Slice, ellipsisMask=1)),
    Case("STRIDED_SLICE", (X((2, 3, 2, 2, 3)), [0, 2, 0, 1, 0], [2, 0, 2, 2, 3], [1, -1, 1, 1, 2]), options(_Slice)),
]
RESIZES = [
    Case(
        f"RESIZE_{name}",
        (X(shape), size),
        options(kind, alignCorners=align, halfPixelCenters=half),
        version=3,
        note=note,
    )
    for name, kind in (("BILINEAR", "ResizeBilinear"), ("NEAREST_NEIGHBOR", "ResizeNearestNeighbor"))
    for align, half, note in ((False, False, ""), (True, False, ""), (False, True, ""))
    for shape, size in (
        ((2, 2, 3, 2), [4, 6]),
        ((2, 3, 2, 1), [7, 5]),
        ((2, 6, 5, 2), [3, 2]),
        ((2, 4, 4, 1), [4, 9]),
        ((1, 1, 3, 2), [1, 1]),
        ((2, 5, 1, 3), [10, 3]),
    )
]
SHAPED = [*REDUCTIONS, *PADS, *JOINS, *MOVES, *SLICES, *RESIZES]
