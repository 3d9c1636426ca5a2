"""Every window of subjects 7 and 8 through three stages over Mosquitto: is each one answered, once, and right?

    python bench/correctness.py [--models float-split,int8-split] [--stages 3] [--client native|paho]

Stages and sensors are processes of their own and every guarantee is on. "came twice" counts results that reached the
sink again, which QoS 1 allows; "doubled" those that it let through, which nothing allows. "right" are answers with the
class and the confidence of the whole model, to the last bit. Ends with 1 when a window is lost, doubled or not right.
Real recordings where $HAR_EDGE_DATA or ./data has them, else synthetic ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rig import Rig, describe, open_rig

from har_edge.cluster.cluster import Arrival, Cluster
from har_edge.cluster.summary import Summary, summarize
from har_edge.config.catalog import find_model
from har_edge.data.files import read_recordings
from har_edge.data.locate import find_data
from har_edge.data.synthetic import synthesize
from har_edge.evaluation.comparison import Answer, Comparison, compare_answers
from har_edge.evaluation.composition import load_whole
from har_edge.evaluation.prediction import Classifier, predict_recordings
from har_edge.mqtt.connect import ClientLibrary

SUBJECTS = ("subject7", "subject8")
HEAD = ("model", "windows in", "results", "lost", "came twice", "doubled", "right", "accuracy", "windows/s")
WIDTHS = (12, 11, 9, 6, 11, 9, 7, 10, 10)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One model's run: how many windows there are, what the run counted, and how its answers compare."""

    windows: int
    summary: Summary
    comparison: Comparison

    @property
    def good(self) -> bool:
        counted = self.summary
        return (
            self.comparison.identical
            and counted.windows_in == counted.windows_out == self.windows
            and counted.lost == counted.duplicated == 0
        )


def main() -> int:
    """Print one row a model; 1 when any of them is not good."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="float-split,int8-split", metavar="LIST")
    parser.add_argument("--stages", type=int, default=3, metavar="N")
    parser.add_argument("--client", default="auto", choices=("auto", "paho", "native"))
    args = parser.parse_args()
    good = True
    for model in args.models.split(","):
        with open_rig(model, args.stages) as rig:
            print(describe(rig))
            outcome = check(rig, model, args.client)
        print(_line(HEAD))
        print(_line(_cells(model, outcome)), flush=True)
        good = good and outcome.good
    print("every window answered once, as the whole model answers it" if good else "NOT every window is right")
    return 0 if good else 1


def check(rig: Rig, model: str, client: str) -> Outcome:
    """Send every window through the pipeline, and compare what comes with the whole model."""
    found, task = find_model(model), rig.pipeline.task
    where = find_data(None)
    recordings = read_recordings(rig.pipeline.stream, where, SUBJECTS) if where else synthesize(SUBJECTS)
    whole = load_whole(found.path, task)
    expected = list(predict_recordings(Classifier(whole.run, whole.inputs, task), recordings, task))
    output = next(port for port in whole.outputs if port.name == task.output)
    summary, arrivals = run(rig, client)
    index = {label: position for position, label in enumerate(task.label_ids)}
    results = [arrival.result for arrival in arrivals]
    came = {(result.stream, result.seq): Answer(index[result.label_id], result.confidence) for result in results}
    return Outcome(len(expected), summary, compare_answers(expected, came, output))


def run(rig: Rig, client: str) -> tuple[Summary, Sequence[Arrival]]:
    """Run stages and sensors until every window is answered or nothing comes any more."""
    with Cluster(rig.pipeline, rig.broker.address, client=ClientLibrary(client)) as cluster:
        cluster.start_stages()
        started = time.perf_counter()
        sensor = ["--subjects", ",".join(SUBJECTS), "--speed", "max", "--no-notice"]
        cluster.start_sensors(list(rig.pipeline.task.inputs), sensor)
        arrivals = [arrival for arrival in cluster.arrivals() if arrival is not None]
        return summarize(cluster, arrivals, time.perf_counter() - started), arrivals


def _cells(model: str, outcome: Outcome) -> tuple[str, ...]:
    counted = outcome.summary
    accuracy = "-" if counted.accuracy is None else f"{counted.accuracy:.4f}"
    figures = (counted.windows_in, counted.windows_out, counted.lost, counted.duplicates_dropped, counted.duplicated)
    rate = f"{counted.windows_out / counted.seconds:.0f}"
    return (model, *map(str, figures), str(outcome.comparison.equal), accuracy, rate)


def _line(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


if __name__ == "__main__":
    sys.exit(main())
