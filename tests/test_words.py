"""Names and prose keep to the field's terms: coined words do not come back, and sentences begin with their subject."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path
    for folder in ("har_edge", "tests", "bench", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if path != Path(__file__).resolve()
)
# Findings and the change log report what was so at their time.
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "tests/cli/help").glob("*.txt"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
    ]
)
# Words that no reader met elsewhere, with the term to write. They may stand in no identifier, sentence or message.
WORDS = {
    "adoption": "recovery",
    "arena": "cluster",
    "cargo": "tensors in flight",
    "checkup": "diagnostics",
    "comeback": "reconnect",
    "crew": "executor, workers",
    "drill": "fault injection",
    "gauge": "timing",
    "guardian": "watchdog",
    "helm": "coordinator service",
    "herald": "status publisher",
    "hire": "start a worker",
    "inquiry": "readiness probe",
    "knock": "probe",
    "ladder": "checks",
    "ledger": "plan store",
    "mender": "reassigner",
    "mending": "failover",
    "mortal": "restartable",
    "outbox": "retransmit buffer",
    "outfit": "reducer loader",
    "outfitter": "reducer loader",
    "pardon": "extend the deadline",
    "parcel": "chunks",
    "roster": "candidates",
    "rung": "check",
    "shelf": "replay buffer",
    "tally": "counter",
    "workshop": "planner thread",
}
# Names of classes that meant something else than a reader expects, or several things, with the names to write.
CLASSES = {
    "Account": "SessionState, WindowAccount",
    "Aim": "DesiredState",
    "Beat": "Heartbeat",
    "Bed": "Emulation",
    "Bond": "ColocationConstraint",
    "Cell": "TrialResult",
    "Claim": "SessionLease",
    "Course": "PlanFollower",
    "Credit": "FlowController",
    "Desk": "PlannerClient",
    "Echo": "LinkBenchmark",
    "Entrance": "InputSpec",
    "Equipment": "WorkerContext",
    "Exchange": "SensorPublisher",
    "Feed": "InputAdapter",
    "Found": "BeamResult, or what was found",
    "Gathered": "PartialWindow",
    "Given": "BuildContext",
    "Ground": "Environment",
    "Guard": "StreamValidator",
    "Hand": "WorkerHandle",
    "Holder": "SessionOwner",
    "Job": "Trial, or the recipe",
    "Journal": "FaultLog",
    "Kept": "UnackedBatch",
    "Known": "ResolvedModel",
    "Lacking": "ArtifactUnavailable",
    "Made": "BuiltSensor",
    "Malformed": "MalformedPacket",
    "Method": "ReducerMethod",
    "Move": "Reassignment",
    "Order": "PlanRequest",
    "Pace": "SendPolicy",
    "Part": "ModelPart, MethodSpec",
    "Peer": "Member",
    "Place": "StagePlacement, Host",
    "Post": "ReplicaId",
    "Prices": "DualPrices",
    "Receipt": "PublishOutcome",
    "Reception": "BrokerChecks",
    "Repeats": "RepeatFilter",
    "Scene": "PlanningProblem",
    "Setup": "CoordinatorConfig",
    "Strays": "StaleSubscriptions",
    "Sweep": "BeamSearch",
    "Takes": "EncoderInput",
    "Terms": "BrokerCapabilities",
    "Totals": "StageMetrics",
    "Track": "EventTrack",
    "Way": "InputForm",
    "Welcome": "ConnackProperties",
    "Whole": "LocalCluster",
    "Wish": "PlacementSpec",
}
# Names of functions, with the verb to write.
FUNCTIONS = {
    "absent": "missing_input",
    "climb": "run_check",
    "coarse": "quantize",
    "find_absent": "missing_input",
    "give_up": "expire, evict",
    "go_on": "expire_missing",
    "informed": "apply_overrides",
    "know": "resolve_model",
    "shake_hands": "perform_handshake",
    "start_echo": "replay_recent",
    "stir": "retry_now",
    "take_echo": "replay_recent",
    "travelling": "copy_with_files",
}
# A sentence that begins so has to be read twice; a question and a heading may.
OPENINGS = re.compile(r"(?:^|(?<=[.!?:;])\s+|\n\s*\n\s*|\n\s*[-*] )(Whoever|Whatever|What|Where|Of)\b[^.!?]*(\?)?")
PHRASES = {r"\bTell (?:whether|if|which|what)\b": "Return whether"}
# Such a word, or its plural or past, as a word; and anywhere, as in a name.
COINED = re.compile(rf"(?<![A-Za-z])({'|'.join(WORDS)})(?:s|ed)?(?![A-Za-z])", re.IGNORECASE)
SOMEWHERE = re.compile("|".join(WORDS), re.IGNORECASE)
OPENING_WORDS = re.compile(r"Who|What|Where|\bOf\b|Tell")
# Names of other people's, and figures of an earlier state: (file, word).
EXCEPTIONS = {
    ("har_edge/training/bottleneck.py", "workshop"),  # a conference
    ("docs/results.md", "outbox"),  # the names of the state before
}


@dataclass(frozen=True, slots=True)
class Found:
    path: Path
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.word}; write {self.instead}"


def excepted(path: Path, word: str) -> bool:
    name = path.relative_to(ROOT).as_posix()
    return any(fnmatch(name, pattern) and word == other for pattern, other in EXCEPTIONS)


def parts(name: str) -> list[str]:
    """Return the words of an identifier: `take_over`, `TakenOver` and `LOST_AFTER_S` have two, two and three."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Yield each name that a module gives, with the table of whole names that it is looked up in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.lineno, node.name, CLASSES
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name, FUNCTIONS
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg, {}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr, {}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id, {}


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the string literals that are sentences or parts of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def coined(path: Path, line: int, text: str) -> Iterator[Found]:
    for match in COINED.finditer(text):
        if not excepted(path, match[1].lower()):
            yield Found(path, line, match[0], WORDS[match[1].lower()])


def in_source(path: Path) -> Iterator[Found]:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    if SOMEWHERE.search(source):  # else nothing below can be found, and to read tokens takes seconds for all files
        for number, text in (*docstrings(tree), *comments(source), *messages(tree)):
            yield from coined(path, number, text)
    for word in parts(path.stem):
        if word in WORDS and not excepted(path, word):
            yield Found(path, 1, path.name, WORDS[word])
    for line, name, table in identifiers(tree):
        if name in table and not excepted(path, name):
            yield Found(path, line, name, table[name])
        for word in parts(name):
            if word in WORDS and not excepted(path, word):
                yield Found(path, line, name, WORDS[word])


def styled(path: Path) -> Iterator[Found]:
    source = path.read_text(encoding="utf-8")
    if not OPENING_WORDS.search(source):
        return
    for line, text in (*docstrings(ast.parse(source)), *comments(source)):
        for match in OPENINGS.finditer(text):
            if match.group(2) is None:
                opening = " ".join(match.group().split())[:60]
                yield Found(path, line, f"a sentence begins with {opening!r}", "its subject first")
        for phrase, instead in PHRASES.items():
            for match in re.finditer(phrase, text):
                yield Found(path, line, match.group(), instead)


def told(found: Iterator[Found]) -> str:
    return "\n".join(dict.fromkeys(map(str, found)))


def test_no_coined_name_or_word_comes_back() -> None:
    assert told(one for path in SOURCES for one in in_source(path)) == ""


def test_pages_and_help_have_no_coined_word() -> None:
    lines = (
        (page, number, line)
        for page in PAGES
        if page.exists()
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    )
    assert told(one for page, number, line in lines for one in coined(page, number, line)) == ""


def test_docstrings_and_comments_begin_with_their_subject() -> None:
    paths = [path for path in SOURCES if path.is_relative_to(ROOT / "har_edge")]
    assert told(one for path in paths for one in styled(path)) == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [("take_over", ["take", "over"]), ("TakenOver", ["taken", "over"]), ("LOST_AFTER_S", ["lost", "after", "s"])],
)
def test_identifiers_are_taken_apart(name: str, words: list[str]) -> None:
    assert parts(name) == words


def test_each_kind_of_breach_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "helm.py"
    path.write_text(
        '"""Tell whether.\n\nWhat came is kept. Where does it go?"""\n# The outfitter loads\n'
        'class Receipt:\n    def know(self):\n        self.knock_s = 1\n        raise ValueError("no ledger here")\n'
    )
    assert [str(one).partition(": ")[2] for one in in_source(path)] == [
        "outfitter; write reducer loader",
        "ledger; write plan store",
        "helm.py; write coordinator service",
        "Receipt; write PublishOutcome",
        "know; write resolve_model",
        "knock_s; write probe",
    ]
    assert [str(one) for one in styled(path)] == [
        "helm.py:1: a sentence begins with 'What came is kept'; write its subject first",
        "helm.py:1: Tell whether; write Return whether",
    ]
