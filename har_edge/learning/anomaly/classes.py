"""One class of labelled pictures as what is normal, all others as anomalies."""

from __future__ import annotations

import numpy as np

from har_edge.errors import DataError
from har_edge.learning.anomaly.pictures import AnomalyPictures
from har_edge.learning.data.dataset_files import LabelledData


def one_class(data: LabelledData, normal: str) -> AnomalyPictures:
    """Return the pictures of one class to train with, and all test pictures.

    Raises DataError for a class that there is not, for one without pictures, and for samples that are no pictures.
    """
    train, test = data.train, data.test
    if normal not in train.classes:
        raise DataError(f"{train.name} has the classes {', '.join(train.classes)}; {normal!r} came as the normal one")
    if train.x.dtype != np.uint8 or len(train.shape) not in (2, 3) or (train.shape[2:] not in ((), (1,), (3,))):
        raise DataError(
            f"{train.name}: samples are {train.x.dtype} {list(train.shape)}; expected pictures uint8 [height, width], "
            "or with 1 or 3 channels behind"
        )
    place = train.classes.index(normal)
    chosen = train.x[train.y == place]
    if not len(chosen):
        raise DataError(f"{train.name} has no pictures of class {normal!r} to train with; choose another --normal")
    height, width, channels = (*train.shape, 1)[:3]
    return AnomalyPictures(
        train=chosen.reshape(-1, height, width, channels),
        test=test.x.reshape(-1, height, width, channels),
        anomalous=test.y != place,
        kinds=tuple(test.classes[label] for label in test.y),
        names=tuple(f"test picture {number}" for number in range(len(test))),
        masks=None,
        name=f"{train.name}, class {normal}",
        real=train.real and test.real,
    )
