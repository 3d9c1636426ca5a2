"""The bounds of a job that anyone may publish, before a node allocates anything by its numbers."""

from __future__ import annotations

import pytest

from har_edge.errors import MessageError
from har_edge.learning.worker.graph_learner import most_block_bytes
from har_edge.protocol.training import BlockFile, TrainingFile, TrainingJob

FILE = TrainingFile("a" * 64, 300)


def job(block: BlockFile, shape: tuple[int, ...] = (2, 3)) -> TrainingJob:
    return TrainingJob(
        run="r", author="one", started=0.0, graph=FILE, spec=FILE, batch=8, parameters=1, shape=shape, blocks=(block,)
    )


def test_the_largest_file_of_a_job() -> None:
    assert most_block_bytes(job(BlockFile("b" * 64, 6000, 1000))) == 6000
    assert most_block_bytes(job(BlockFile("b" * 64, 12, 2))) == 300


@pytest.mark.parametrize(
    ("block", "shape", "text"),
    [
        (BlockFile("b" * 64, 2**31, 1), (2, 3), "a job with blocks of 2147483648 bytes came"),
        (BlockFile("b" * 64, 100, 1), (2**28,) * 8, "expected at most"),
        (BlockFile("b" * 64, 5999, 1000), (2, 3), "1000 samples of 6 values in 5999 bytes came"),
        (BlockFile("b" * 64, 1000, 2**28), (1,), "268435456 samples of 1 values in 1000 bytes came"),
    ],
)
def test_a_job_whose_numbers_lie_is_refused(block: BlockFile, shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(MessageError, match=text):
        most_block_bytes(job(block, shape))
