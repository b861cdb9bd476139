# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is of tracers that stay on a host: units, files, loaded modules, output, and the kernels it can boot.

Private to the collection. Nothing here writes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import typing as t

from ..._core import command
from ..._core.root import Root
from ..module_build.store import hash_file
from ..readiness import loaded_stap_modules
from ..supervise import supervisor
from ..supervise.cleanup import BASE
from ..supervise.ring import File, list_files
from ..supervise.tracer_daemon import EXIT_STAY
from .model import DIRECTORY, NAME, PREFIX, UNITS, directory_of, output_directory, unit_name

_PROPERTIES = ("Id", "ActiveState", "UnitFileState", "NeedDaemonReload", "NRestarts", "ExecMainStatus", "StatusText")
_KERNEL_OWN_LIST = "lib/modules/{0}/modules.builtin"
_IMAGES = ("boot/vmlinuz-{0}", "lib/modules/{0}/vmlinuz")
_HEADER_BYTES = 0x10000


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An installed kernel. ``version`` is what ``uname -v`` says there, null where its image does not tell."""

    release: str
    version: str | None
    running: bool


@dataclasses.dataclass(frozen=True)
class Unit:
    """What systemd says of a unit. ``said`` is the text of ``systemctl status``."""

    active: str
    enabled: bool
    stale: bool
    restarts: int
    exit_status: int
    said: str


@dataclasses.dataclass(frozen=True)
class Seen:
    """What there is of one tracer; null and empty: nothing.

    ``modules`` maps the kept modules' paths to their SHA-256. ``state`` is what its program wrote. ``digest`` is the
    version of the loaded module of its last start, ``users`` how many processes have that open. ``holds_sysctls``: it
    has changed sysctls and not put them back yet.
    """

    unit: Unit
    unit_text: str | None
    spec_text: str | None
    program_sha256: str | None
    modules: t.Mapping[str, str]
    state: t.Mapping[str, t.Any]
    digest: str | None
    users: int | None
    output: t.Sequence[File]
    has_directory: bool
    has_output: bool
    holds_sysctls: bool = False

    @property
    def spec(self) -> dict[str, t.Any]:
        """Return ``service.json`` taken apart; a damaged one is empty."""
        try:
            value = json.loads(self.spec_text or "{}")
        except (ValueError, RecursionError):
            return {}
        return value if _is_spec(value) else {}

    @property
    def current(self) -> str:
        """Return the tracer's state in one word; ``RETURN`` of ``stap_service`` explains them."""
        told = str(self.state.get("state", ""))
        if self.unit.active in ("active", "reloading"):
            return "running"
        if self.unit.active in ("activating", "deactivating"):
            return "restarting"
        if self.unit_text is None and not self.has_directory:
            return "absent"
        if told in ("overloaded", "pending", "ended"):
            return told
        if self.unit.active == "failed":
            # The state could not be written (a full disk), and systemd still knows the words.
            stayed = self.unit.exit_status == EXIT_STAY
            return self.unit.said.partition(":")[0] if stayed and self.unit.said else "failed"
        return "stopped"


def _is_spec(value: t.Any) -> bool:
    """Return whether a value has the shape that service.spec_of makes: somebody may have edited the file."""
    builds, settings = (value.get(key, {}) if isinstance(value, dict) else None for key in ("builds", "settings"))
    output = settings.get("output", {}) if isinstance(settings, dict) else None
    return (
        isinstance(builds, dict)
        and isinstance(output, dict)
        and (not output or all(isinstance(output.get(key), int) for key in ("file_bytes", "files")))
        and all(isinstance(build, dict) and _is_build(build) for build in builds.values())
    )


def _is_build(build: t.Mapping[str, t.Any]) -> bool:
    probes = build.get("probes")
    return (
        isinstance(build.get("key"), str)
        and isinstance(build.get("limits") or {}, dict)
        and isinstance(probes, list)
        and all(
            isinstance(probe, dict) and all(isinstance(probe.get(key), str) for key in ("point", "asked"))
            for probe in probes
        )
    )


def _sound_state(state: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return ``state.json`` when it has the shape that the tracer's program writes, else nothing."""
    sites = state.get("sites", [])
    messages, hits = state.get("messages", {}), state.get("hits", {})
    sound = (
        isinstance(state.get("module", ""), str)
        and isinstance(messages, dict)
        and all(isinstance(lines, list) and all(isinstance(line, str) for line in lines) for lines in messages.values())
        and isinstance(hits, dict)
        and all(isinstance(count, int) for count in hits.values())
        and isinstance(sites, list)
        and all(
            isinstance(site, dict)
            and all(isinstance(site.get(key), str) for key in ("address", "kind", "symbol"))
            and isinstance(site.get("rest"), list)
            for site in sites
        )
    )
    return state if sound else {}


@dataclasses.dataclass(frozen=True)
class Host:
    """A host and the tracers asked for, by name."""

    systemd: bool
    release: str
    kernels: t.Sequence[Kernel]
    services: t.Mapping[str, Seen]


def observe(root: Root, names: t.Sequence[str]) -> Host:
    """Look at a host and at the tracers of these names."""
    release = root.read_text("proc/sys/kernel/osrelease").strip()
    systemd = root.exists("run/systemd/system")
    units = read_units([unit_name(name) for name in names]) if systemd and names else {}
    loaded = {row["name"]: row for row in loaded_stap_modules(root)}
    services = {name: _see(root, name, units.get(unit_name(name), _NO_UNIT), loaded) for name in names}
    return Host(systemd, release, installed_kernels(root, release), services)


_NO_UNIT = Unit("inactive", False, False, 0, 0, "")


def is_own(seen: Seen, module: str) -> bool:
    """Tell whether a module that may be loaded is this tracer's, running or left over, and no other run's."""
    return seen.state.get("module") == module and (seen.current in ("running", "restarting") or not seen.users)


def known_names(root: Root) -> list[str]:
    """Return the tracers that a host has anything of but output, by name."""
    units = {
        name[len(PREFIX) : -len(".service")]
        for name in root.listdir(UNITS)
        if name.startswith(PREFIX) and name.endswith(".service")
    }
    # A directory that somebody else made there is no tracer, and systemctl refuses to answer for its name.
    return sorted(name for name in units | set(root.listdir(DIRECTORY)) if NAME.match(name))


def _see(root: Root, name: str, unit: Unit, loaded: t.Mapping[str, t.Mapping[str, t.Any]]) -> Seen:
    directory = root.path(directory_of(name))
    state = _sound_state(supervisor.read_json(os.path.join(directory, "state.json")))
    module = loaded.get(state.get("module", ""), {})
    program = os.path.join(directory, "program.pyz")
    return Seen(
        unit=unit,
        unit_text=root.read_text_or(f"{UNITS}/{unit_name(name)}"),
        spec_text=root.read_text_or(f"{DIRECTORY}/{name}/service.json"),
        program_sha256=hash_file(program) if os.path.isfile(program) else None,
        modules=_modules(directory),
        state=state,
        digest=module.get("version"),
        users=module.get("users"),
        output=list_files(root.path(output_directory(name))),
        has_directory=os.path.isdir(directory),
        has_output=os.path.isdir(root.path(output_directory(name))),
        holds_sysctls=root.exists(f"{BASE}/service.{name}/holds"),
    )


def _modules(directory: str) -> dict[str, str]:
    """Return every file below ``modules``, with its SHA-256: what is not wanted there is found as well."""
    found = {}
    for place, _folders, files in os.walk(os.path.join(directory, "modules")):
        for name in files:
            path = os.path.join(place, name)
            # A broken link or a FIFO is no module, and is replaced or removed as one that differs.
            found[os.path.relpath(path, directory)] = hash_file(path) if os.path.isfile(path) else ""
    return found


def read_units(names: t.Sequence[str]) -> dict[str, Unit]:
    """Ask systemd for units, all at once."""
    result = command.run(["systemctl", "show", "--property=" + ",".join(_PROPERTIES), "--", *names])
    return parse_units(result.stdout)


def parse_units(text: str) -> dict[str, Unit]:
    """Take ``systemctl show`` apart: blocks of ``Name=value`` with an empty line between them."""
    units = {}
    for block in text.strip().split("\n\n"):
        fields = dict(line.partition("=")[::2] for line in block.splitlines())
        units[fields.get("Id", "")] = Unit(
            active=fields.get("ActiveState", "inactive"),
            enabled=fields.get("UnitFileState") == "enabled",
            stale=fields.get("NeedDaemonReload") == "yes",
            restarts=_number(fields.get("NRestarts")),
            exit_status=_number(fields.get("ExecMainStatus")),
            said=fields.get("StatusText", ""),
        )
    return units


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def installed_kernels(root: Root, running: str) -> list[Kernel]:
    """Return the kernels below ``/lib/modules``, and the running one; leftovers of removed kernels do not count.

    The list of built-in modules belongs to the kernel's package; depmod does not make it.
    """
    releases = {name for name in root.listdir("lib/modules") if root.exists(_KERNEL_OWN_LIST.format(name))}
    return [Kernel(name, image_version(root, name), name == running) for name in sorted(releases | {running})]


def image_version(root: Root, release: str) -> str | None:
    """Return what ``uname -v`` will say with an installed kernel, from its image's header.

    The boot protocol of x86 (Documentation/arch/x86/boot.rst) has the offset of the text at 0x20e, less 0x200.
    """
    for name in _IMAGES:
        try:
            head = root.read_bytes(name.format(release), _HEADER_BYTES)
        except OSError:
            continue
        if head[0x202:0x206] != b"HdrS":
            continue
        start = 0x200 + int.from_bytes(head[0x20E:0x210], "little")
        text = head[start : start + 512].partition(b"\0")[0].decode("ascii", "replace")
        if text.split(" ")[0] == release and "#" in text:
            return text[text.index("#") :]
    return None
