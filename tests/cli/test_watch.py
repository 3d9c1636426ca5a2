"""`har-edge watch`: the results, as lines or as a table."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from har_edge.cli.commands.watch import SilenceDetector
from har_edge.cli.main import main
from har_edge.mqtt.bus import Delivery, PublishOutcome
from har_edge.protocol.events import StatusEvent, decode
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.status import NodeStatus, State, StreamCount, encode_status
from har_edge.protocol.topics import Topics
from tests.cli.fleet import Fleet

CAPTURED = time.time()


def result(seq: int) -> Result:
    missing = ["arm"] if seq == 2 else []
    return Result("subject1", seq, "walking", 4, 0.875, CAPTURED, CAPTURED + 0.5, 1, 4 if seq else None, missing)


def publish_until(fleet: Fleet, done: Callable[[], bool], payloads: list[bytes]) -> None:
    """Publish until something holds, not only once: the watcher may not have subscribed yet."""

    def again() -> bool:
        for payload in payloads:
            fleet.bus.publish(fleet.topics.result("subject1"), payload)
        return done()

    fleet.until(again, "the watcher does not do what it should")


def test_one_line_a_result_and_an_end_after_some(fleet: Fleet) -> None:
    watcher = fleet.start("watch", "--json", "--windows", "3")
    batch = encode_results([result(1), result(2)])
    publish_until(fleet, lambda: watcher.process.poll() is not None, [encode_results([result(0)]), batch])
    assert watcher.wait() == 0
    lines = [msgspec.json.decode(line) for line in watcher.output.splitlines() if line.startswith("{")]
    assert sorted(line["seq"] for line in lines) == [0, 1, 2]
    for line in lines:
        assert 0 < line.pop("latency_ms") < 86_400_000
        assert line == msgspec.to_builtins(result(line["seq"]))


def test_a_repetition_is_shown_once_and_garbage_is_explained(fleet: Fleet) -> None:
    watcher = fleet.start("watch", "--json")
    publish_until(fleet, lambda: '"seq":0' in watcher.output, [encode_results([result(0)])])
    fleet.bus.publish(fleet.topics.result("subject1"), b"{")
    for _ in range(5):
        fleet.bus.publish(fleet.topics.result("subject1"), encode_results([result(0)]))
    fleet.bus.publish(fleet.topics.result("subject1"), encode_results([result(1)]))
    fleet.until(lambda: '"seq":1' in watcher.output, "the second result does not show")
    assert watcher.end(signal.SIGINT) == 0
    assert watcher.output.count('"seq":0') == watcher.output.count('"seq":1') == 1
    assert f"dropped {fleet.topics.result('subject1')}: a result came that is no result" in watcher.output


def seqs(output: str) -> list[int]:
    return [msgspec.json.decode(line)["seq"] for line in output.splitlines() if line.startswith("{")]


def test_a_watcher_with_a_name_gets_what_came_while_it_was_away(fleet: Fleet) -> None:
    """Killed, it gets all; ended by a person or by --windows, too; told to forget, nothing is kept."""
    first = fleet.start("watch", "--json", "--name", "desk", name="watch-1")
    publish_until(fleet, lambda: '"seq":0' in first.output, [encode_results([result(0)])])
    fleet.run_for(0.5)  # what it printed is acknowledged
    first.end(signal.SIGKILL)
    for seq in (1, 2, 3):
        fleet.bus.publish(fleet.topics.result("subject1"), encode_results([result(seq)]))
    fleet.run_for(0.5)
    second = fleet.start("watch", "--json", "--name", "desk", "--windows", "2", name="watch-2")
    assert second.wait() == 0
    for seq in (4, 5):
        fleet.bus.publish(fleet.topics.result("subject1"), encode_results([result(seq)]))
    third = fleet.start("watch", "--json", "--name", "desk", "--forget", name="watch-3")
    fleet.until(lambda: '"seq":5' in third.output, "what came in between does not show")
    third.end(signal.SIGINT)
    shown = [one for one in seqs(second.output) if one]
    assert shown + seqs(third.output) == [1, 2, 3, 4, 5]
    fleet.bus.publish(fleet.topics.result("subject1"), encode_results([result(6)]))
    fleet.run_for(0.3)
    fourth = fleet.start("watch", "--json", "--name", "desk", "--forget", name="watch-4")
    publish_until(fleet, lambda: '"seq":7' in fourth.output, [encode_results([result(7)])])
    assert '"seq":6' not in fourth.output


def test_two_watchers_of_a_name_are_told(fleet: Fleet) -> None:
    """Mosquitto 2.0 does not say that a session was taken over, newer brokers do: that watcher ends."""
    older = fleet.start("watch", "--json", "--name", "desk", name="watch-1")
    publish_until(fleet, lambda: '"seq":0' in older.output, [encode_results([result(0)])])
    younger = fleet.start("watch", "--json", "--name", "desk", "--forget", name="watch-2")

    def told() -> bool:
        text = older.output + younger.output
        return older.process.poll() == 3 or "does another watcher called desk" in text

    fleet.until(told, "nobody says that there are two")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--forget"], "--forget came without --name"),
        (["--name", "a/b"], "name of the watcher is 'a/b'; expected 1 to 128"),
    ],
)
def test_a_name_of_no_use_is_explained(
    slices: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert main(["watch", "--config", str(slices), "--broker", "mqtt://127.0.0.1:1", *words]) == 2
    assert text in capsys.readouterr().err


def test_the_table_shows_activity_and_accuracy(fleet: Fleet) -> None:
    watcher = fleet.start("watch", "--windows", "2", COLUMNS="160")
    publish_until(fleet, lambda: watcher.process.poll() is not None, [encode_results([result(1), result(2)])])
    assert watcher.wait() == 0
    assert f"results below {fleet.topics.prefix}result/" in watcher.output
    assert "subject1 lacks arm" in watcher.output.splitlines()[-1] and watcher.output.endswith("\n")
    for text in ("subject1", "walking", "0.88", "1.000", "subject1 lacks arm"):
        assert text in watcher.output


def test_an_unreachable_broker_ends_it_with_code_2(slices: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--config", str(slices), "--broker", "mqtt://127.0.0.1:1"]) == 2
    assert "error: no broker at mqtt://127.0.0.1:1: " in capsys.readouterr().err


def test_lost_windows_are_named_and_the_exit_code_says_so(fleet: Fleet) -> None:
    def status(sent: int, lost: int) -> bytes:
        streams = {"subject1": StreamCount(7, time.time() + 3600.0, sent, sent - lost, lost)}
        return encode_status(NodeStatus("sensor-all", "sensor", State.STOPPED, "i", 1.0, streams=streams))

    watcher = fleet.start("watch", "--json")
    publish_until(fleet, lambda: '"seq":0' in watcher.output, [encode_results([result(0)])])
    fleet.bus.publish(fleet.topics.status("sensor-all"), status(20, 3), retain=True)
    fleet.until(lambda: "lost windows: 3 of 20 of subject1" in watcher.output, "it says nothing")
    assert watcher.end(signal.SIGINT) == 1
    assert "windows that have not come yet: 17 of 20 of subject1" in watcher.output
    fleet.bus.publish(fleet.topics.status("sensor-all"), b"", retain=True)


@pytest.mark.parametrize(("state", "code"), [(State.STOPPED, 1), (State.READY, 0)])
def test_windows_that_have_not_come_are_an_error_where_nobody_sends_them_again(
    fleet: Fleet, state: State, code: int
) -> None:
    """As of a sensor that hears no answers, and a broker that was lost with all that it held."""
    streams = {"subject1": StreamCount(7, time.time() + 3600.0, 60)}
    status = NodeStatus("sensor-all", "sensor", state, "i", 1.0, streams=streams)
    watcher = fleet.start("watch", "--json")
    publish_until(fleet, lambda: '"seq":0' in watcher.output, [encode_results([result(0)])])
    fleet.bus.publish(fleet.topics.status("sensor-all"), encode_status(status), retain=True)
    fleet.until(lambda: fleet.state("sensor-all") is state, "the broker does not pass it on")
    time.sleep(0.5)
    assert watcher.end(signal.SIGINT) == code
    assert "windows that have not come yet: 60 of 60 of subject1" in watcher.output
    assert ("whose sensors have gone: 60 of 60 of subject1" in watcher.output) is bool(code)
    fleet.bus.publish(fleet.topics.status("sensor-all"), b"", retain=True)


def test_a_pipeline_that_nobody_runs_is_named_and_waited_for(fleet: Fleet) -> None:
    watcher = fleet.start("watch", "--json", "--windows", "1")
    fleet.until(lambda: "nobody runs" in watcher.output, "it does not say that nobody runs the pipeline")
    assert f"nobody runs pipeline '{fleet.name}': no stage or node of it says that it lives; waiting" in watcher.output
    fleet.stages()
    fleet.until(lambda: "no sensor sends to it" in watcher.output, "it does not say that no sensor is there")
    assert watcher.process.poll() is None
    publish_until(fleet, lambda: watcher.process.poll() is not None, [encode_results([result(0)])])
    assert watcher.wait() == 0
    assert watcher.output.count("nobody runs") == 1 and watcher.output.count('"seq":0') == 1


def test_a_source_that_nobody_sends_is_named_once(fleet: Fleet) -> None:
    fleet.stages()
    watcher = fleet.start("watch", "--json")
    sensor = fleet.start("sensor", "--source", "chest", "--subjects", "1,2")
    said = "no results of subject1, subject2 come: no sensors at work send ankle, arm of them; waiting"
    fleet.until(lambda: said in watcher.output, "it does not say which sources lack")
    rest = [fleet.start("sensor", "--source", source, "--subjects", "1,2") for source in ("ankle", "arm")]
    fleet.until(lambda: '"seq":1' in watcher.output, "no result comes")
    assert watcher.end(signal.SIGINT) in (0, 1) and watcher.output.count(said) == 1
    for one in (sensor, *rest):
        one.end()


def test_a_watcher_that_is_killed_leaves_no_session_with_mqtt_3_1_1(fleet: Fleet) -> None:
    """The broker says when nobody listens: then the subscriptions of the killed one have gone."""
    topic = f"{fleet.topics.prefix}result/nobody"
    watcher = fleet.start("watch", "--json", "--protocol", "3.1.1")
    fleet.bus.unsubscribe([fleet.topics.result("+")])
    fleet.until(lambda: "nobody runs" in watcher.output, "it does not begin")
    heard: list[PublishOutcome] = []

    def ask() -> PublishOutcome | None:
        fleet.bus.publish(topic, b"{}", on_outcome=heard.append)
        fleet.until(lambda: not fleet.bus.unsent, "no PUBACK")
        return heard[-1] if heard else None

    assert ask() is PublishOutcome.ACKED
    watcher.end(signal.SIGKILL)
    fleet.until(lambda: ask() is PublishOutcome.NO_SUBSCRIBERS, "its session is there still")


def status(role: str, state: State = State.READY) -> StatusEvent:
    payload = encode_status(NodeStatus("n", role, state, "i", 1.0))
    event = decode(Delivery("har/v1/har/node/n/status", payload, (0, 0)))
    assert isinstance(event, StatusEvent)
    return event


def test_silence_is_explained_by_who_is_there() -> None:
    silence = SilenceDetector(Topics("har", "har"), 100.0)
    assert silence.tell(103.9, 0) == "" and silence.tell(104.0, 0).startswith("nobody runs pipeline 'har'")
    assert silence.tell(110.0, 0) == ""
    silence.take(status("node"))
    assert silence.tell(111.0, 0) == ("pipeline 'har' is there, but no sensor sends to it; waiting")
    silence.take(status("node", State.LOST))
    assert silence.tell(112.0, 0).startswith("nobody runs")
    assert silence.tell(200.0, 1) == ""
