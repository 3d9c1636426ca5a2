"""`har-edge train --int8`: an int8 model beside the float32 one, with ranges that the nodes measured."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.cli.console import say
from har_edge.protocol.text import with_origin
from har_edge.units import plural

if TYPE_CHECKING:
    from har_edge.cli.training_inputs import TrainingInputs
    from har_edge.learning.quantization.tensor_ranges import TensorRanges
    from har_edge.learning.server.held_out import HeldOutSamples
    from har_edge.learning.server.server import TrainingServer
    from har_edge.learning.server.service import TrainingService
    from har_edge.runtime.artifact_store import Store
    from har_edge.runtime.stop import Stop

# A worker measures on samples of so many of its blocks at most: classes are mixed in each.
_BLOCKS = 16


def measure_ranges(
    service: TrainingService, server: TrainingServer, inputs: TrainingInputs, store: Store, stop: Stop
) -> TensorRanges | None:
    """Let the workers of a training measure ranges with the weights that were learned; None where none could."""
    from har_edge.cli.reports.training_files import trained_content
    from har_edge.learning.preparation import store_files
    from har_edge.learning.quantization.tensor_ranges import RangeCollection, write_range_graph
    from har_edge.tflite.model import read_model

    job, topics = server.settings.job, server.settings.topics
    graph = write_range_graph(read_model(trained_content(server, inputs)))
    (file,) = store_files(store, [graph.content])
    blocks = {one.name: (0,) if job.own else tuple(sorted(one.held)[:_BLOCKS]) for one in server.pool.active}
    collection = RangeCollection(
        topics, job, graph, {name: held for name, held in blocks.items() if held}, time.monotonic()
    )
    say(f"int8: {plural(len(collection.awaited), 'worker')} measure the ranges of {len(graph.names)} tensors")
    service.measure_ranges(collection, file, stop)
    for name in collection.awaited:
        say(f"int8: {name} sent no ranges in time (its har-edge may be older, or the access list lacks train/+/ranges)")
    for name, problem in sorted(collection.problems.items()):
        say(f"int8: {name} measured no ranges: {problem}")
    return collection.merged()


def write_int8(
    args: argparse.Namespace,
    run: str,
    content: bytes,
    ranges: TensorRanges | None,
    inputs: TrainingInputs,
    held_out: HeldOutSamples,
) -> bytes | None:
    """Write the int8 model, and print its accuracy beside that of the float32 one; None where there are no ranges."""
    from har_edge.cli.reports.training_files import store_trained
    from har_edge.learning.quantization.int8_model import quantize

    if ranges is None:
        say("no int8 model: no worker measured ranges")
        return None
    made = quantize(content, ranges)
    path: Path = store_trained(args, made, f"{run}-int8.tflite", "int8", inputs)
    scores = [held_out.score_file(one) for one in (made, content)]
    figures = [
        f"accuracy {accuracy:.4f}" if inputs.trainable.classes else f"loss {loss:.4f}" for accuracy, loss in scores
    ]
    whose = "their own samples" if args.own_data else "the samples that they trained on"
    say(
        f"int8: {path.name} from ranges of {plural(len(ranges.workers), 'worker')} on {ranges.samples} of {whose}; "
        f"{figures[0]}, float32 {figures[1]}, on {len(inputs.data.test)} held-out samples of "
        f"{with_origin(inputs.data.test.name, real=inputs.data.test.real)}"
    )
    return made
