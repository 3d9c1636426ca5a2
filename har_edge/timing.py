"""The time constants that depend on each other across files, in seconds; tests/test_timing.py holds the inequalities.

A constant that one file alone depends on stands in that file.
"""

# Heartbeats and statuses.
HEARTBEAT_S = 0.5  # between two heartbeats of a node or coordinator
NODE_LOST_S = 1.5  # without a heartbeat until the coordinator calls a node lost
SILENT_S = 1.5  # without a heartbeat until status and doctor call a node not alive
NAME_LISTEN_S = 1.5  # that a new node listens for a heartbeat of another node with its name
OTHERS_LISTEN_S = 1.2  # that doctor listens for heartbeats of others, to prove that it may read them
STATUS_LISTEN_S = 1.8  # that `har-edge status` listens before it says who is alive
DOCTOR_LISTEN_S = 2.0  # that `har-edge doctor` listens before it says who is alive
RECONNECT_GRACE_S = 3.0  # that every node gets to be heard again after the coordinator was without the broker
STATUS_S = 5.0  # between two statuses of a stage, sensor or coordinator of which nothing changed
FLOW_PATIENCE_S = 3.0  # that nothing may come out of a generation while a probe is unanswered, or three latencies
STUCK_RUN_S = 2.5  # that a run of a slice may take until its node says that it failed, or longer, by what it takes
STAGE_SILENT_S = 6.5  # without a status until a stage of a fixed folder is called silent
NODE_STATUS_S = 60.0  # between two statuses of a node of which nothing changed: somebody may have removed the first
FORGET_NODE_S = 3600.0  # that a node must have been stopped or lost until the coordinator removes its status

# Connections and sessions.
CONNECT_TIMEOUT_S = 5.0  # for TCP, TLS and CONNACK
CLOSE_TIMEOUT_S = 2.0  # for the last bytes of a connection that is closed
BACKOFF_FIRST_S, BACKOFF_CAP_S = 0.1, 2.0  # the bounds of the first and of any later wait before a new connection
KEEPALIVE_S = 30  # MQTT keep alive: a broker drops a client that it has not heard for 1.5 times as long
WORKER_GRACE_S = 0.25  # that a worker lets the plan say who took its session, before it looks
LEASE_GRACE_S = 0.5  # that a client lets a successor say that it took the session, before it looks
LEASE_LOOK_S = 1.0  # that such a look at the retained status may take
RESULT_SESSION_S = 300  # that the broker keeps results for a sensor or watcher without a connection
WATCH_SESSION_S = 86_400  # the same for a watcher that has a name of its own
STAGE_SESSION_S = 86_400  # that the broker keeps the queue of a stage without a connection, unless the pipeline says

# Training on the devices.
TRAINING_PROGRESS_S = 1.0  # between two messages about the progress of a training
TRAINING_LISTEN_S = 2.5  # that a new training listens for the progress of another of its name

# Windows: resending, joining, replaying.
PUBLISH_RETRY_S = 0.5  # until what nobody subscribed to is published again
REPLAY_BUFFER_AFTER_S = 3.0  # that parts wait for others until they are released to the replay buffer
OVERTAKEN_S = 5.0  # that a window waits for parts when later ones of its stream are done
RESEND_S = 5.0  # without an answer until a sensor sends a window again, at first
RESEND_CAP_S = 30.0  # the same at most, after it was doubled each time
RECENT_AFTER_S = 8.0  # after the broker forgot a sensor, until it sends again what was answered meanwhile
REPLAY_BUFFER_S = 60.0  # that parts are good in the replay buffer
GIVE_UP_S = 120.0  # without any answer until a sensor gives its windows up

# Rollout, handover and the end of a process.
FILES_AGAIN_S = 5.0  # until a sensor looks again for files that a new plan names
SWITCH_S = 10.0  # that sensors may take to switch to a new generation
HANDOVER_S = 8.0  # that a node that leaves waits, for the coordinator, until its successor has loaded
LEAVE_S = 10.0  # that it waits in any case (--drain-timeout)
NO_BROKER_S = 1.5  # that a process which ends waits for a broker that is not there
LAST_ANSWERS_S = 1.0  # that a sensor which ends waits for answers that are on their way
LAST_ACKS_S = 3.0  # that it waits until the broker has acknowledged what it published
OWN_BROKER_LINGER_S = 1.0  # that its own broker stays after its stages, for who fetches what they sent last
STUCK_END_S = 6.0  # that a stage which failed so may still end, until the node starts itself anew
WORKER_END_S = 6.0  # that a node waits for its workers to end
PROCESS_STOP_S = 10.0  # until a process on this machine that does not end is killed
SERVICE_STOP_S = 20.0  # the same by systemd (TimeoutStopSec of har_edge/service/*.service)
