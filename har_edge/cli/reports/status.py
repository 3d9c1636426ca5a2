"""Draw a snapshot of a deployment for people, on terminals of any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from har_edge.cli.reports.training import status_lines
from har_edge.units import duration, size

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from har_edge.monitor.snapshot import EpochView, FlowView, NodeView, Snapshot, StageView

# A snapshot has this plan for slices in a folder (monitor/fixed_pipeline.py, not imported here).
FIXED = "fixed"
UNREPORTED = "unreported"
# From these widths on there is room for more columns.
WIDE, WIDER = 100, 118
MAX_ROWS = 64
MOST_SENT = 12
# Clocks that differ by more than this spoil latencies and the order of repetitions.
SKEW_S = 0.5
# Columns whose texts go on in the next line where a table is too wide; all others stay whole.
_FOLDED = frozenset({"node", "stages", "standby"})
GOOD, BAD, DIM = "green", "red", "dim"
_STATE_STYLE = {"busy": GOOD, "ready": GOOD, "draining": "yellow", "init": "yellow"}
_PHASE_STYLE = {"running": GOOD, "drained": DIM, "failed": BAD, "unreported": BAD}


def draw(seen: Snapshot, columns: int) -> Group:
    """Return the whole report for a terminal of so many columns."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Table | Text] = [_headline(seen), _verdict(seen, columns)]
    parts += [
        Text(f"coordinator: {one.detail}", style="" if one.alive else DIM)
        for one in seen.nodes
        if one.role == "coordinator" and one.detail
    ]
    if seen.disagreement:
        parts.append(Text(f"warning: {seen.disagreement}", style="yellow"))
    if seen.nodes:
        parts += [Text(), _nodes(seen, columns)]
    for epoch in seen.epochs if seen.plan != FIXED else ():
        parts += [Text(), _stages(epoch, [one for one in seen.stages if one.epoch == epoch.epoch], columns)]
    if seen.plan == FIXED:
        parts += [Text(), _fixed_stages(seen)]
        told = [f"stage {one.stage}: {one.detail}" for one in seen.stages if one.detail]
        parts += [_with_command(text, columns) for text in told]
    known = {epoch.epoch for epoch in seen.epochs}
    beside = [one for one in seen.stages if one.epoch not in known]
    if beside:
        parts += [Text(), _stages(None, beside, columns)]
    for one in seen.trainings:
        parts += [Text(), *(Text(line) for line in status_lines(one, max(0.0, seen.time - one.time)))]
    return Group(*parts, Text(), _below(seen))


def _headline(seen: Snapshot) -> Text:
    from rich.text import Text

    text = Text.assemble("pipeline ", (seen.pipeline, "bold"), "" if seen.base == "har" else f" below {seen.base}")
    if seen.plan == "none":
        return text.append(", no plan")
    if seen.plan == FIXED:
        return text.append(f", {seen.model}, fixed slices, epoch {seen.epoch}")
    if seen.plan not in ("current", "preparing"):
        return text.append(f", its plan is not followed: {seen.plan}", BAD)
    epoch = f"epoch {seen.epoch}" if seen.epoch else "no epoch yet"
    return text.append(f", {seen.model or 'no model yet'}, {epoch}, revision {seen.revision} of the plan")


def _verdict(seen: Snapshot, columns: int) -> Text:
    """Return whether a window goes through; a command that stands below the stages is not said here, too."""
    from rich.text import Text

    from har_edge.cli.console import split_command
    from har_edge.monitor.trainings import trains_alone

    def shown(text: str) -> str:
        below = seen.plan == FIXED and any(one.detail and text.endswith(one.detail) for one in seen.stages)
        return text.rpartition("; ")[0] if below and split_command(text)[1] else _with_command(text, columns).plain

    if alone := trains_alone(seen):
        return Text(f"no pipeline is deployed; training goes on: {', '.join(alone)}", style=GOOD)
    if seen.probe is None:
        said = shown(seen.obstacle) or "nothing that was seen stands in the way of windows"
        return Text(f"not probed; {said}", style=BAD if seen.obstacle else "yellow")
    if seen.probe.answered and seen.probe.seconds is not None:
        spared = shown(seen.probe.where)
        said = f"ready: a probe window went through in {duration(seen.probe.seconds)}"
        return Text(f"{said}; {spared}" if spared else said, style=GOOD)
    return Text(f"not ready: {shown(seen.probe.where)}", style=BAD)


def _table(columns: list[tuple[str, bool]]) -> Table:
    """Return a table without lines; each column has a name and says whether it holds figures."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), title_justify="left", title_style="bold", pad_edge=False)
    for name, figures in columns:
        table.add_column(
            name,
            justify="right" if figures else "left",
            no_wrap=name not in _FOLDED or figures,
            header_style=DIM,
            overflow="fold",
        )
    return table


def _nodes(seen: Snapshot, columns: int) -> Table:
    from rich.text import Text

    wide, wider = columns >= WIDE, columns >= WIDER
    names = [("node", False), ("role", False), ("state", False), ("beat", True), ("clock", True), ("stages", False)]
    names += [("cores", True), ("memory", True)] if wide else []
    names += [("speed", True), ("version", False)] if wider else []
    rows: list[tuple[list[Text], bool]] = []
    shown = sorted(seen.nodes, key=lambda one: (not one.alive, one.role, one.name))[:MAX_ROWS]
    for node in shown:
        cells = [
            Text(node.name),
            Text(_short(node.role, 11)),
            _state(node),
            Text("-" if node.beat_age_s is None else duration(node.beat_age_s)),
            _clock(node),
            Text(_holds(node, seen.epoch)),
        ]
        card = node.protocol is not None
        cells += (
            [Text(str(node.cores) if card else "-"), Text(size(node.memory_bytes) if card else "-")] if wide else []
        )
        cells += [Text(f"{node.speed:.0f}/s" if card else "-"), Text(node.version)] if wider else []
        rows.append((cells, node.alive))
    kept = [k for k in range(len(names)) if any(cells[k].plain not in ("-", "") for cells, _ in rows)]
    table = _table([names[k] for k in kept])  # a folder has no heartbeats: columns without any figure only take room
    for cells, alive in rows:
        table.add_row(*(cells[k] for k in kept), style=None if alive else DIM)
    if len(seen.nodes) > len(shown):
        table.add_row(Text(f"and {len(seen.nodes) - len(shown)} more"))
    return table


def _state(node: NodeView) -> Text:
    from rich.text import Text

    if not node.alive and node.state in _STATE_STYLE:
        return Text("silent", style=BAD)
    state = "running" if node.state == "busy" and node.role == "node" else node.state  # it runs stages, idle ones too
    return Text(state, style=_STATE_STYLE.get(node.state, BAD if node.state == "lost" else DIM))


def _clock(node: NodeView) -> Text:
    from rich.text import Text

    if node.ahead_s is None:
        return Text("-")
    ahead_s = node.ahead_s
    words = "0 ms" if abs(ahead_s) < 0.0005 else f"{'+' if ahead_s > 0 else '-'}{duration(abs(ahead_s))}"
    return Text(words, style=BAD if abs(ahead_s) > SKEW_S else "")


def _holds(node: NodeView, current: int) -> str:
    """Return the stages of a node: numbers, a replica's behind a dot, and another generation's in brackets."""
    if node.role == "sensor":
        return f"to {node.epoch}" if node.epoch else "-"
    names = []
    for text in node.stages:
        stage, _, epoch = text.partition("@")
        name = stage.removesuffix(".0")
        names.append(name if epoch == str(current) else f"({name})")
    return " ".join(names) or "-"


def _stages(epoch: EpochView | None, stages: list[StageView], columns: int) -> Table:
    from rich.text import Text

    wide, wider = columns >= WIDE, columns >= WIDER
    names = [
        ("stage", True),
        ("ops", True),
        ("node", False),
        ("phase", False),
        ("win/s", True),
        ("service", True),
    ]
    names += [("wait", True), ("queue", True), ("busy", True)]
    names += [("windows", True), ("parts", True)] if wide else []
    names += [("lost", True), ("err", True)]
    names += [("standby", False)] if wider else []
    table = _table(names)
    table.title = f"epoch {epoch.epoch}, {epoch.phase}" if epoch else "not in the plan"
    told: list[str] = []
    for one in stages[:MAX_ROWS]:
        cut = epoch.cuts[one.stage] if epoch and 0 <= one.stage < len(epoch.cuts) else None
        cells = [
            Text(f"{one.stage}.{one.replica}" if one.replica else str(one.stage)),
            Text(f"{cut[0]}-{cut[1]}" if cut else "-"),
            Text(one.node),
            Text(
                one.phase if one.planned or epoch is None else f"{one.phase}*",
                style=_PHASE_STYLE.get(one.phase, "yellow"),
            ),
            Text("-" if one.rate is None else f"{one.rate:.1f}"),
            Text(_seconds(one.service_s)),
            Text(_seconds(one.queue_s)),
            Text("-" if one.phase == UNREPORTED else str(one.queued)),
            Text("-" if one.busy is None else f"{one.busy:.0%}"),
        ]
        counts = [Text(str(one.windows)), Text(str(one.waiting))] if wide else []
        counts += [_bad(one.lost), _bad(one.errors)]
        cells += [Text("-") for _ in counts] if one.phase == UNREPORTED else counts
        cells += [Text(" ".join(one.standby) or "-")] if wider else []
        table.add_row(*cells)
        if one.detail:
            told.append(f"stage {one.stage} on {one.node}: {one.detail}")
    if told:
        table.caption, table.caption_justify = Text("\n".join(told)), "left"
    return table


def _fixed_stages(seen: Snapshot) -> Table:
    """Return the stages of a folder; the cause stands below a stage that does not run its slice."""
    from rich.text import Text

    figures = ("windows", "lost", "errors", "age")
    table = _table([("stage", True), ("operators", False), ("state", False), *((name, True) for name in figures)])
    (epoch,) = seen.epochs
    for one, (start, stop) in zip(seen.stages, epoch.cuts, strict=True):
        style = GOOD if one.phase == "running" else BAD
        counts = [Text(str(one.windows)), _bad(one.lost), _bad(one.errors), Text(_age(one))]
        if one.phase == UNREPORTED:  # nobody has counted anything
            counts = [Text("-") for _ in figures]
        table.add_row(Text(str(one.stage)), Text(f"[{start}, {stop})"), Text(one.phase, style=style), *counts)
    return table


def _with_command(text: str, columns: int) -> Text:
    """Return a text with the command at its end, if any, on lines of its own that can be copied together."""
    from rich.text import Text

    from har_edge.cli.console import continue_command, split_command

    said, command = split_command(text)
    return Text("\n".join([said, *(continue_command(command, columns, "    ") if command else [])]))


def _age(stage: StageView) -> str:
    """Return the age of counters; a retained status may be older than this command."""
    return f"> {duration(stage.listened_s)}" if stage.age_s is None else duration(stage.age_s)


def _below(seen: Snapshot) -> Table:
    """Return the flow and the losses: a name and a text, whose lines stand below each other."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, text in (*_flow(seen.flow), *_brokers(seen), *_sent(seen), ("counts", _counts(seen))):
        grid.add_row(Text(name, style=DIM), text)
    return grid


def _flow(flow: FlowView) -> list[tuple[str, Text]]:
    from rich.text import Text

    if flow.p50_s is None or flow.p95_s is None or flow.p99_s is None:
        return [("flow", Text("no answer came while this looked"))]
    latency = f"p50 {_held(flow.p50_s)}, p95 {_held(flow.p95_s)}, p99 {_held(flow.p99_s)} from capture to answer"
    lines = [("flow", Text(f"{flow.rate:.1f} answers/s, {flow.results} seen")), ("latency", Text(latency))]
    if flow.hops:
        hops = [f"stage\u00a0{hop.stage} {_held(hop.queue_s)}\u00a0+\u00a0{_held(hop.service_s)}" for hop in flow.hops]
        rest = "" if flow.elsewhere_s is None else f"; elsewhere {_held(flow.elsewhere_s)}"
        lines.append(("hops", Text(f"{', '.join(hops)} (waiting + service){rest}")))
    return lines


def _brokers(seen: Snapshot) -> list[tuple[str, Text]]:
    """Return the brokers that living nodes carry, each with the flows that go through it."""
    from rich.text import Text

    carried = sorted((one.name, one.broker) for one in seen.nodes if one.alive and one.broker)
    if not carried:
        return []
    flows = next((one.flows for one in seen.epochs if one.epoch == seen.epoch), {})
    lines = []
    for node, url in carried[:MAX_ROWS]:
        own = ", ".join(level for level, at in flows.items() if at == node)
        lines.append(f"{node} at {url}: {f'flow {own}' if own else 'no flow'}")
    if len(carried) > MAX_ROWS:
        lines.append(f"and {len(carried) - MAX_ROWS} more")
    return [("brokers", Text("\n".join(lines)))]


def _sent(seen: Snapshot) -> list[tuple[str, Text]]:
    """Return what became of the windows that sensors sent: a line for each stream, the most incomplete first."""
    from rich.text import Text

    lines = []
    for one in sorted(seen.sent, key=lambda view: (-view.lost, -view.open, view.stream, view.node)):
        text = Text(f"{one.stream} by {one.node}: {one.sent} windows, ")
        text.append("answers not heard" if one.answered is None else f"{one.answered} answered, {one.open} open")
        if one.lost:
            text.append(f", {one.lost} lost", BAD)
        if one.incomplete:
            text.append(f", {one.incomplete} that other sensors did not send")
        lines.append(text)
    if len(lines) > MOST_SENT:
        lines[MOST_SENT:] = [Text(f"and {len(lines) - MOST_SENT} more, see --json")]
    return [("" if number else "sent", line) for number, line in enumerate(lines)]


def _counts(seen: Snapshot) -> Text:
    from rich.text import Text

    counts, text = seen.counts, Text()
    shown = (
        ("lost", counts.lost, True),
        ("never answered", counts.unanswered, True),
        ("errors", counts.errors, True),
        ("dropped at sensors", counts.dropped, True),
        ("resent", counts.resent, False),
        ("unusable here", counts.unusable, True),
    )
    for number, (name, value, bad) in enumerate(shown):
        text.append(", " if number else "").append(f"{name} {value}", BAD if bad and value else "")
    return text


def _bad(count: int) -> Text:
    from rich.text import Text

    return Text(str(count), style=BAD if count else "")


def _seconds(value: float | None) -> str:
    return "-" if value is None else duration(value)


def _held(seconds: float) -> str:
    """Return a duration that no line break splits."""
    return ("-" if seconds < 0 else "") + duration(abs(seconds)).replace(" ", "\u00a0")


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
