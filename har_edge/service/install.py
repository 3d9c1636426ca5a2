"""Write and remove the files of services, without harm to what a person edited."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from har_edge.errors import ConfigError
from har_edge.files import write_atomic
from har_edge.service.render import Service, ServiceRole, is_own

UNIT_MODE, ENVIRONMENT_MODE = 0o644, 0o600


@dataclass(frozen=True, slots=True)
class ServicePaths:
    """The folder of unit files, and the folder of environment files."""

    units: Path
    environments: Path

    def unit(self, service: Service) -> Path:
        return self.units / service.unit

    def environment(self, service: Service) -> Path:
        return self.environments / service.environment


def system_paths(root: Path = Path("/")) -> ServicePaths:
    """Return the folders of system services, below `root` for the image of another machine."""
    return ServicePaths(root / "etc/systemd/system", root / "etc/har-edge")


def user_paths() -> ServicePaths:
    """Return the folders of a user's services: below $XDG_CONFIG_HOME, by default ~/.config."""
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return ServicePaths(base / "systemd/user", base / "har-edge")


@dataclass(frozen=True, slots=True)
class InstalledService:
    """A service with files on this machine, and whether its unit file is as har-edge wrote it."""

    service: Service
    path: Path
    own: bool


def write_service(
    places: ServicePaths, service: Service, unit: str, environment: str, *, force: bool = False
) -> list[Path]:
    """Write both files of a service and return those that changed; write nothing if a person edited a file.

    Raises ConfigError for a file that is not as har-edge wrote it, unless `force`, and for missing write permission.
    """
    wanted = [
        (places.unit(service), unit, UNIT_MODE),
        (places.environment(service), environment, ENVIRONMENT_MODE),
    ]
    for path, _, _ in wanted:
        if not force:
            _refuse_edited(path, "overwritten")
    return [path for path, text, mode in wanted if _write(path, text, mode)]


def remove_service(places: ServicePaths, service: Service, *, force: bool = False) -> list[Path]:
    """Remove both files of a service and return those that existed. Raises ConfigError for an edited one, unless
    `force`.
    """
    paths = [path for path in (places.unit(service), places.environment(service)) if path.exists()]
    if not paths:
        raise ConfigError(
            f"no service {service.name}: {places.unit(service)} is not there; see `har-edge service list`"
        )
    for path in paths:
        if not force:
            _refuse_edited(path, "removed")
    for path in paths:
        path.unlink()
    return paths


def list_services(places: ServicePaths) -> Iterator[InstalledService]:
    """Yield the installed services, by name."""
    for path in sorted(places.units.glob("har-edge-*.service")):
        name = path.name.removeprefix("har-edge-").removesuffix(".service")
        command, _, instance = name.partition("-")
        with contextlib.suppress(ValueError, ConfigError):
            yield InstalledService(Service(ServiceRole(command), instance), path, is_own(_read(path)))


def _refuse_edited(path: Path, verb: str) -> None:
    if path.exists() and not is_own(_read(path)):
        raise ConfigError(
            f"{path} is not as har-edge wrote it, so nothing is {verb}; keep your changes in a drop-in "
            "(`systemctl edit`), or give --force to lose them"
        )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; run this with the rights to it") from None


def _write(path: Path, text: str, mode: int) -> bool:
    """Write a file whole, with its mode from the start; return whether it changed anything."""
    if path.exists() and _read(path) == text and path.stat().st_mode & 0o777 == mode:
        return False
    try:
        write_atomic(path, text.encode(), mode)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}; run this as root, or give --user for a service of your own"
        ) from None
    return True
