"""Times that must be smaller than others, which stand in other rooms: what breaks where one is changed alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec
import pytest

import har_edge
from har_edge import timing
from har_edge.cli.main import build_parser
from har_edge.config.pipeline_config import PipelineConfig
from har_edge.mqtt.bus import Session

PACKAGE = Path(har_edge.__file__).parent
# Each is smaller than the next: (smaller, larger, what would go wrong).
ORDERS = [
    (timing.STUCK_RUN_S, timing.FLOW_PATIENCE_S, "the coordinator guesses before the node has said what hangs"),
    (2 * timing.HEARTBEAT_S, timing.NODE_LOST_S, "one late heartbeat makes a living node lost"),
    (2 * timing.HEARTBEAT_S, timing.SILENT_S, "one late heartbeat makes status call a node dead"),
    (2 * timing.HEARTBEAT_S, timing.NAME_LISTEN_S, "two nodes of one name do not hear each other"),
    (2 * timing.HEARTBEAT_S, timing.OTHERS_LISTEN_S, "doctor misses the heartbeats that prove a right"),
    (timing.SILENT_S, timing.STATUS_LISTEN_S, "status calls nodes dead that it has not listened for"),
    (2 * timing.TRAINING_PROGRESS_S, timing.TRAINING_LISTEN_S, "two trainings of one name do not hear each other"),
    (timing.SILENT_S, timing.DOCTOR_LISTEN_S, "doctor calls nodes dead that it has not listened for"),
    (timing.NODE_LOST_S + timing.HEARTBEAT_S, timing.RECONNECT_GRACE_S, "an outage of the broker makes nodes lost"),
    (timing.BACKOFF_CAP_S, timing.RECONNECT_GRACE_S, "nodes that come back a little later are lost"),
    (timing.STATUS_S, timing.STAGE_SILENT_S, "a stage is called silent between two statuses"),
    (timing.NODE_STATUS_S, timing.FORGET_NODE_S, "the status of a living node is removed before it says it again"),
    (timing.BACKOFF_FIRST_S, timing.BACKOFF_CAP_S, "the wait does not grow"),
    (timing.CONNECT_TIMEOUT_S, timing.KEEPALIVE_S / 2, "a ping is due while the connection is still being made"),
    (timing.WORKER_GRACE_S, timing.LEASE_GRACE_S, "a worker looks at the broker before it reads the plan"),
    (timing.LEASE_GRACE_S + timing.LEASE_LOOK_S, timing.CONNECT_TIMEOUT_S, "the look is longer than a connection"),
    (
        1.5 * timing.KEEPALIVE_S,
        timing.RESULT_SESSION_S,
        "a session ends before its client is known to be gone",
    ),
    (timing.RESULT_SESSION_S, timing.STAGE_SESSION_S, "results outlive the windows that they are for"),
    (timing.GIVE_UP_S, timing.RESULT_SESSION_S, "results end before the sensor gives up waiting for them"),
    (timing.PUBLISH_RETRY_S, timing.OVERTAKEN_S, "a window is given up before what nobody heard is published again"),
    (timing.REPLAY_BUFFER_AFTER_S, timing.RESEND_S, "sensors resend to stages that still hold what came before"),
    (timing.RESEND_S, timing.RESEND_CAP_S, "the wait does not grow"),
    (timing.RESEND_CAP_S, timing.REPLAY_BUFFER_S, "what a stage keeps is gone before the rest is sent again"),
    (timing.RESEND_CAP_S, timing.GIVE_UP_S, "a sensor gives up without a last try"),
    (timing.BACKOFF_CAP_S + timing.CONNECT_TIMEOUT_S, timing.RECENT_AFTER_S, "others are not back when it is sent"),
    (timing.FILES_AGAIN_S, timing.SWITCH_S, "the coordinator goes on before a sensor has looked for files again"),
    (timing.HANDOVER_S, timing.LEAVE_S, "a node goes before its stages are handed over"),
    (timing.NO_BROKER_S, timing.LAST_ACKS_S, "without a broker a process waits longer than with one"),
    (timing.LAST_ACKS_S + timing.CLOSE_TIMEOUT_S, timing.WORKER_END_S, "a node abandons workers that still publish"),
    (timing.LAST_ACKS_S + timing.CLOSE_TIMEOUT_S, timing.PROCESS_STOP_S, "a process is killed while it publishes"),
    (
        timing.LAST_ANSWERS_S + timing.LAST_ACKS_S + timing.CLOSE_TIMEOUT_S,
        timing.PROCESS_STOP_S,
        "a sensor is killed while it waits for its last answers",
    ),
    (timing.LEAVE_S + timing.WORKER_END_S, timing.SERVICE_STOP_S, "systemd kills a node that hands its stages over"),
]


@pytest.mark.parametrize(("smaller", "larger", "else_"), ORDERS, ids=[order[2] for order in ORDERS])
def test_one_time_is_smaller_than_another(smaller: float, larger: float, else_: str) -> None:
    assert smaller < larger, f"else {else_}"


def test_every_constant_says_what_it_is_and_is_used_by_another_file() -> None:
    path = PACKAGE / "timing.py"
    lines = path.read_text(encoding="utf-8").splitlines()
    names = {
        name.id
        for node in ast.parse("\n".join(lines)).body
        if isinstance(node, ast.Assign)
        for name in ast.walk(node.targets[0])
        if isinstance(name, ast.Name)
    }
    assert len(names) > 30
    assert all(" = " in line and "  # " in line for line in lines if line and line[0].isupper() and "_S" in line)
    texts = [other.read_text(encoding="utf-8") for other in PACKAGE.rglob("*.py") if other != path]
    unused = {name for name in names if not any(name in text for text in texts)}
    assert unused == {"SERVICE_STOP_S"}  # that of the unit files, below


def test_units_of_systemd_stop_as_late_as_is_reckoned_with() -> None:
    units = sorted((PACKAGE / "service").glob("*.service"))
    assert len(units) >= 5
    for unit in units:
        (said,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
        assert float(said) == timing.SERVICE_STOP_S, unit.name


def test_what_a_person_may_set_begins_with_these_times() -> None:
    parser = build_parser()
    assert parser.parse_args(["node"]).drain_timeout == timing.LEAVE_S
    assert parser.parse_args(["sensor", "--pipeline", "har"]).give_up == timing.GIVE_UP_S
    assert Session("x").keepalive_s == timing.KEEPALIVE_S
    defaults = {field.name: field.default for field in msgspec.structs.fields(PipelineConfig)}
    assert defaults["session_expiry_s"] == timing.STAGE_SESSION_S
