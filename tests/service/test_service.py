"""Services of systemd: what the files say, that systemd understands them, and that nothing edited is lost."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from har_edge.cli.arguments.options import interrupted
from har_edge.cli.main import build_parser, main
from har_edge.cli.service_check import PATHS
from har_edge.errors import ConfigError
from har_edge.service.install import ServicePaths, list_services, remove_service, write_service
from har_edge.service.render import Service, ServiceRole, is_own, quote_argument, render_environment, render_unit

if TYPE_CHECKING:
    from har_edge.runtime.stop import Stop

EXPOSURE = 4.0
ENVIRONMENT = Path("/etc/har-edge/node.env")
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def places(tmp_path: Path) -> ServicePaths:
    return ServicePaths(tmp_path / "units", tmp_path / "environments")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HAR_EDGE_")]:
        monkeypatch.delenv(name)


def analyze(*arguments: str) -> str:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_systemd
@pytest.mark.parametrize("run_as", ["", "daemon"])
@pytest.mark.parametrize("role", ServiceRole)
def test_systemd_understands_each_unit_and_calls_it_little_exposed(
    tmp_path: Path, role: ServiceRole, run_as: str
) -> None:
    path = tmp_path / f"har-edge-{role.value}.service"
    path.write_text(render_unit(Service(role), ["/bin/true", role.value], ENVIRONMENT, run_as=run_as))
    said = analyze("verify", str(path))
    assert path.name not in said, said
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", analyze("security", "--offline=true", str(path)))
    assert found is not None and float(found[1]) < EXPOSURE


@needs_systemd
@pytest.mark.parametrize("role", ServiceRole)
def test_the_manager_of_a_user_understands_each_unit(tmp_path: Path, role: ServiceRole) -> None:
    path = tmp_path / f"har-edge-{role.value}.service"
    path.write_text(render_unit(Service(role), ["/bin/true"], ENVIRONMENT, of_user=True))
    text = path.read_text()
    assert "DynamicUser" not in text and "ProtectSystem" not in text and "WantedBy=default.target" in text
    assert "NoNewPrivileges=yes" in text and "SystemCallFilter=@system-service" in text
    assert path.name not in analyze("verify", str(path))


@pytest.mark.parametrize("role", ServiceRole)
def test_a_unit_restarts_and_waits_where_it_was_taken_over(role: ServiceRole) -> None:
    text = render_unit(Service(role), ["/opt/har-edge", role.value], ENVIRONMENT)
    for line in (
        "Restart=on-failure",
        "Environment=HAR_EDGE_TAKEN_OVER_WAIT=300",
        "DynamicUser=yes",
        "ProtectSystem=strict",
    ):
        assert line in text.splitlines()
    assert f"ExecStart=/opt/har-edge {role.value}" in text and f"EnvironmentFile={ENVIRONMENT}" in text
    assert "@EXEC" not in text and "@USER" not in text and "@ENV" not in text


def test_only_a_sensor_may_use_serial_devices() -> None:
    units = {role: render_unit(Service(role), ["/bin/true"], ENVIRONMENT) for role in ServiceRole}
    assert {role for role, text in units.items() if "PrivateDevices=yes" in text} == set(ServiceRole) - {
        ServiceRole.SENSOR
    }
    assert (
        "DeviceAllow=char-ttyUSB rw" in units[ServiceRole.SENSOR] and "DevicePolicy=closed" in units[ServiceRole.SENSOR]
    )


def test_a_sensor_that_was_stopped_in_the_middle_did_not_fail() -> None:
    code = interrupted(cast("Stop", SimpleNamespace(signal=signal.SIGTERM)))
    units = {role: render_unit(Service(role), ["/bin/true"], ENVIRONMENT).splitlines() for role in ServiceRole}
    assert code == 143 and f"SuccessExitStatus={code}" in units[ServiceRole.SENSOR]
    assert [role for role, lines in units.items() if any("SuccessExitStatus" in line for line in lines)] == [
        ServiceRole.SENSOR
    ]


@pytest.mark.parametrize(
    ("argument", "quoted"),
    [
        ("/dev/ttyUSB0", "/dev/ttyUSB0"),
        ("two words", '"two words"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("100%i", '"100%%i"'),
        ("$HOME", '"$$HOME"'),
    ],
)
def test_arguments_are_what_they_were(argument: str, quoted: str) -> None:
    assert quote_argument(argument) == quoted


@pytest.mark.parametrize("bad", ["two\nlines", "bell\a"])
def test_lines_cannot_be_smuggled_in(bad: str) -> None:
    with pytest.raises(ConfigError, match="expected one line"):
        quote_argument(bad)
    with pytest.raises(ConfigError, match="the value of X holds a line end"):
        render_environment({"X": bad})


def test_values_of_the_environment_are_quoted() -> None:
    text = render_environment({"A": 'p"a$s`s\\', "B": "plain"})
    assert text.splitlines()[2:] == ['A="p\\"a\\$s\\`s\\\\"', 'B="plain"'] and is_own(text)


def test_files_are_written_once_with_their_modes(places: ServicePaths) -> None:
    service = Service(ServiceRole.NODE, "kitchen")
    unit, environment = render_unit(service, ["/bin/true"], ENVIRONMENT), render_environment({"A": "b"})
    paths = [places.units / "har-edge-node-kitchen.service", places.environments / "node-kitchen.env"]
    assert write_service(places, service, unit, environment) == paths
    assert [path.read_text() for path in paths] == [unit, environment]
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o644, 0o600]
    assert write_service(places, service, unit, environment) == []
    assert [(one.service, one.own) for one in list_services(places)] == [(service, True)]
    assert remove_service(places, service) == paths and list(list_services(places)) == []
    with pytest.raises(ConfigError, match="no service node-kitchen"):
        remove_service(places, service)


@pytest.mark.parametrize("edited", ["unit", "environment"])
def test_an_edited_file_is_neither_overwritten_nor_removed(places: ServicePaths, edited: str) -> None:
    service = Service(ServiceRole.NODE)
    unit, environment = render_unit(service, ["/bin/true"], ENVIRONMENT), render_environment({"A": "b"})
    write_service(places, service, unit, environment)
    path = getattr(places, edited)(service)
    path.write_text(path.read_text() + "# mine\n")
    before = {one: one.read_text() for one in (places.unit(service), places.environment(service))}
    newer = render_unit(service, ["/bin/false"], ENVIRONMENT), render_environment({"A": "c"})
    with pytest.raises(ConfigError, match="not as har-edge wrote it, so nothing is overwritten"):
        write_service(places, service, *newer)
    with pytest.raises(ConfigError, match="so nothing is removed"):
        remove_service(places, service)
    assert {one: one.read_text() for one in before} == before
    write_service(places, service, *newer, force=True)
    assert (places.unit(service).read_text(), places.environment(service).read_text()) == newer


@pytest.fixture
def open_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files of tests, which are in /tmp, be those of a service."""
    monkeypatch.setattr("har_edge.cli.service_check._PRIVATE", ())


@pytest.mark.usefixtures("open_tmp")
def test_the_command_installs_lists_and_removes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    password = tmp_path / "password"
    password.write_text("secret\n")
    ca = tmp_path / "ca.crt"
    ca.write_text("pem")
    command = ["service", "install", "sensor", "--instance", "arm", "--root", str(tmp_path), "--broker", "mqtts://box",
               "--run-as", "root",
               "--username", "sensor", "--password-file", str(password), "--ca-file", str(ca),
               "--options", "--pipeline", "har", "--live", "/dev/ttyUSB0", "--source", "arm",
               "--stream", "anna"]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "systemctl daemon-reload; systemctl enable --now har-edge-sensor-arm.service" in said
    unit = (tmp_path / "etc/systemd/system/har-edge-sensor-arm.service").read_text()
    assert " sensor --pipeline har --live /dev/ttyUSB0 --source arm --stream anna\n" in unit
    assert "EnvironmentFile=/etc/har-edge/sensor-arm.env" in unit and "secret" not in unit
    environment = tmp_path / "etc/har-edge/sensor-arm.env"
    assert stat.S_IMODE(environment.stat().st_mode) == 0o600
    assert environment.read_text().splitlines()[2:] == [
        'HAR_EDGE_BROKER="mqtts://box"',
        'HAR_EDGE_USERNAME="sensor"',
        f'HAR_EDGE_PASSWORD_FILE="{password}"',
        f'HAR_EDGE_CA_FILE="{ca}"',
    ]
    assert main(["service", "list", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [
        "sensor-arm",
        str(tmp_path / "etc/systemd/system/har-edge-sensor-arm.service"),
    ]
    assert main(["service", "uninstall", "sensor", "--instance", "arm", "--root", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["service", "list", "--root", str(tmp_path)]) == 0
    listed = capsys.readouterr()
    assert listed.out == "" and "no service of har-edge is installed in" in listed.err
    assert not environment.exists()


def test_a_dry_run_prints_both_files_without_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HAR_EDGE_PASSWORD", "secret")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["service", "install", "node", "--user", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"# {tmp_path}/systemd/user/har-edge-node.service" in said and f"# {tmp_path}/har-edge/node.env" in said
    assert 'HAR_EDGE_PASSWORD="********"' in said and "secret" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["node", "--instance", "a/b"], "instance is 'a/b'; expected up to 64 letters, digits"),
        (["node", "--user", "--run-as", "pi"], "--run-as came with --user"),
        (["node", "--root", "x", "--ca-file", "/nowhere"], "--ca-file: /nowhere is no file"),
        (["node", "--root", "x", "--protocol", "3.1.1"], "give them last, after --options"),
    ],
)
def test_what_cannot_be_is_refused(options: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "install", *options]) == 2
    assert text in capsys.readouterr().err


def test_options_that_the_command_refuses_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["service", "install", "node", "--root", str(tmp_path), "--options", "--nonsense"])
    assert "unrecognized arguments: --nonsense" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "options", "hidden"),
    [
        ("/tmp/venv/bin/har-edge", [], "/tmp/venv/bin/har-edge"),
        ("/var/tmp/venv/bin/har-edge", ["--run-as", "pi"], "/var/tmp/venv/bin/har-edge"),
        ("/opt/har/bin/har-edge", ["--options", "--cache", "/tmp/cache"], "/tmp/cache"),
        ("/opt/har/bin/har-edge", ["--dry-run", "--options", "--cache", "/tmp/cache"], "/tmp/cache"),
    ],
)
def test_what_is_in_tmp_is_refused_as_the_service_has_one_of_its_own(
    script: str, options: list[str], hidden: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("har_edge.cli.commands.service._executable", lambda: [script])
    assert main(["service", "install", "node", *options]) == 2
    said = capsys.readouterr().err
    assert f"{hidden} came, which is in " in said and "PrivateTmp=yes" in said and "/opt" in said


def test_a_link_into_tmp_is_refused_and_a_service_of_a_user_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target, link = tmp_path / "hidden", tmp_path / "link"
    target.mkdir()
    link.symlink_to(target)
    monkeypatch.setattr("har_edge.cli.commands.service._executable", lambda: ["/opt/har/bin/har-edge"])
    monkeypatch.setattr("har_edge.cli.service_check._PRIVATE", (target,))
    arguments = ["service", "install", "node", "--dry-run", "--options", "--cache", str(link / "cache")]
    assert main(arguments) == 2 and "link/cache came" in capsys.readouterr().err
    assert main([*arguments[:3], "--user", *arguments[3:]]) == 0


@pytest.fixture
def anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in that all may enter, with a program that all may run."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    monkeypatch.setattr("har_edge.cli.service_check._PRIVATE", ())
    monkeypatch.setattr("har_edge.cli.commands.service._executable", lambda: ["/bin/true"])
    monkeypatch.setattr("har_edge.cli.commands.service.sys.executable", "/bin/true")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command_of(said: str) -> str:
    return next(line for line in said.splitlines() if line.startswith("ExecStart=")).removeprefix(
        "ExecStart=/bin/true "
    )


@pytest.mark.parametrize(
    ("role", "given", "expected"),
    [
        ("node", ["--cache", "cache"], "node --cache {here}/cache"),
        ("stage", ["--config", "slices", "--index", "0"], "stage --config {here}/slices --index 0"),
        ("sensor", ["--config=slices", "--data", "rows"], "sensor --config={here}/slices --data {here}/rows"),
        ("sensor", ["--pipeline", "har", "--images", "rows"], "sensor --pipeline har --images {here}/rows"),
        (
            "sensor",
            ["--pipeline", "har", "--images", "rows", "slices"],
            "sensor --pipeline har --images {here}/rows {here}/slices",
        ),
        ("sensor", ["--pipeline", "har", "--images", "-"], "sensor --pipeline har --images -"),
        ("sensor", ["--pipeline", "har", "--live", "fifo"], "sensor --pipeline har --live {here}/fifo"),
        (
            "sensor",
            ["--pipeline", "har", "--live", "-", "--stream", "rows"],
            "sensor --pipeline har --live - --stream rows",
        ),
        ("coordinator", ["--model", "bottleneck"], "coordinator --model bottleneck"),
        (
            "coordinator",
            ["--model", "m.tflite", "--stream", "mhealth"],
            "coordinator --model {here}/m.tflite --stream mhealth",
        ),
        (
            "coordinator",
            ["--model", "m.tflite", "--stream", "s.toml"],
            "coordinator --model {here}/m.tflite --stream {here}/s.toml",
        ),
        ("broker", ["--config", "mosquitto.conf"], "broker --config mosquitto.conf"),
        (
            "broker",
            ["--config", "own.conf", "--directory", "d"],
            "broker --config {here}/own.conf --directory {here}/d",
        ),
    ],
)
@pytest.mark.parametrize("place", [[], ["--user"]])
def test_paths_are_absolute_in_the_unit(
    anywhere: Path, capsys: pytest.CaptureFixture[str], role: str, given: list[str], expected: str, place: list[str]
) -> None:
    for name in ("slices", "rows"):
        (anywhere / name).mkdir()
    for name in ("m.tflite", "s.toml", "own.conf"):
        (anywhere / name).touch()
    assert main(["service", "install", role, *place, "--dry-run", "--options", *given]) == 0
    assert command_of(capsys.readouterr().out) == expected.format(here=anywhere)


@pytest.mark.parametrize("place", [[], ["--user"], ["--root", "image"]])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["node", "--broker", "box"], "broker is 'box'; expected mqtt://HOST"),
        (
            ["stage", "--options", "--config", "none", "--index", "0"],
            "--config none came, but there is no {here}/none;",
        ),
        (
            ["coordinator", "--options", "--model", "no.tflite"],
            "--model no.tflite came, but there is no {here}/no.tflite;",
        ),
        (
            ["coordinator", "--options", "--model", "nonesuch"],
            "--model nonesuch came, but there is no {here}/nonesuch;",
        ),
        (
            ["sensor", "--options", "--live", "-"],
            "sensor came without --config; expected --options --config FOLDER, or",
        ),
        (["stage", "--options", "--index", "0"], "stage came without --config; expected --options --config FOLDER:"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_what_could_not_start_is_refused_in_a_rehearsal_too(
    anywhere: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str, place: list[str]
) -> None:
    cut = arguments.index("--options") if "--options" in arguments else len(arguments)
    command = ["service", "install", *arguments[:cut], *place, "--dry-run", *arguments[cut:]]
    assert main(command) == 2
    assert said.format(here=anywhere) in capsys.readouterr().err


@pytest.mark.parametrize("how", [["--dry-run"], ["--root", "image"]])
def test_a_rehearsal_and_an_image_say_what_is_closed(
    anywhere: Path, capsys: pytest.CaptureFixture[str], how: list[str]
) -> None:
    (anywhere / "slices").mkdir()
    (anywhere / "slices" / "pipeline.toml").touch(mode=0o600)
    given = ["--options", "--config", "slices", "--index", "0"]
    assert main(["service", "install", "stage", *how, *given]) == 2
    file = anywhere / "slices" / "pipeline.toml"
    assert f"error: {file} is closed to the user that systemd makes for this service, who" in capsys.readouterr().err
    assert main(["service", "install", "stage", *how, "--run-as", "root", *given]) == 0


def test_the_files_that_a_brokers_configuration_names_must_be_open_to_its_user(
    anywhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (anywhere / "key").touch(mode=0o400)
    (anywhere / "own.conf").write_text(f"keyfile {anywhere}/key\n")
    command = ["service", "install", "broker", "--dry-run"]
    assert main([*command, "--options", "--config", "own.conf"]) == 2
    assert f"{anywhere}/key is closed to the user that systemd makes" in capsys.readouterr().err
    assert main([*command, "--run-as", "daemon", "--options", "--config", "own.conf"]) == 2
    assert f"{anywhere}/key is closed to the user daemon, who needs" in capsys.readouterr().err
    (anywhere / "key").chmod(0o444)
    assert main([*command, "--run-as", "daemon", "--options", "--config", "own.conf"]) == 0
    assert main([*command, "--run-as", "nobody-here", "--options", "--config", "own.conf"]) == 2
    assert "--run-as nobody-here came; expected a user of this machine" in capsys.readouterr().err


def test_every_option_of_a_role_that_names_a_file_is_known() -> None:
    """Else a relative path would go into a unit as it is."""
    for role in ServiceRole:
        parser = build_parser().parse_args  # the parsers of commands are inside this one
        action = next(one for one in build_parser()._actions if one.dest == "command")
        assert parser and isinstance(action.choices, dict)
        for one in action.choices[role.value]._actions:
            if one.type is Path or re.search(r"FILE|FOLDER|DIR|PATH|TOML", str(one.metavar)):
                assert one.dest in PATHS, f"{role.value} {one.option_strings}"


@pytest.mark.usefixtures("open_tmp")
def test_an_interpreter_in_a_closed_home_is_named_though_its_environment_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from har_edge.cli.commands import service

    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    closed, link = tmp_path / "home", tmp_path / "python"
    closed.mkdir(mode=0o700)
    (closed / "python3").touch(mode=0o755)
    link.symlink_to(closed / "python3")
    monkeypatch.setattr(service.sys, "executable", str(link))
    monkeypatch.setattr(service, "_executable", lambda: ["/bin/true"])
    assert main(["service", "install", "node"]) == 2
    assert f"error: {closed} is closed to the user that systemd makes" in capsys.readouterr().err


@pytest.mark.usefixtures("open_tmp")
def test_a_file_that_the_user_of_the_service_cannot_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from har_edge.cli.commands import service

    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(service, "_executable", lambda: [str(closed / "har-edge")])
    assert main(["service", "install", "node"]) == 2
    said = capsys.readouterr().err
    assert "is closed to the user that systemd makes for this service" in said and "give --run-as USER" in said
