# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to change for tracers to be as wanted: a pure function of what is wanted and what was observed.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..._core.errors import InvalidInput
from ..._core.plan import Change, Plan
from .model import (
    UNITS,
    VERSION_CHARS,
    Wanted,
    directory_of,
    module_path,
    output_directory,
    settings_of,
    spec_of,
    spec_text,
    unit_name,
    unit_text,
)
from .observe import Host, Seen

# A start, or what comes to it by itself.
_ALIVE = ("running", "restarting")
_AGAIN = "running, started again"
_SETTINGS = {
    "globals": "its global variables change, which SystemTap sets only while a module is loaded",
    "buffer_mb": "its buffer changes",
    "output": "its output changes",
    "program": "the program that keeps it changes",
}


@dataclasses.dataclass(frozen=True)
class Step(Change):
    """One step for one tracer. ``action`` is what carries it out, ``argument`` a path or a kernel's release."""

    service: str = ""
    action: str = ""
    argument: str = ""


@dataclasses.dataclass(frozen=True)
class Program:
    """The program of every tracer's unit, and the Python that runs it."""

    data: bytes
    sha256: str
    python: str


def plan(wanted: t.Sequence[Wanted], host: Host, program: Program) -> Plan:
    """Return the steps, in the order in which they are to be taken.

    :raises InvalidInput: the running kernel has no module for a tracer that is to run.
    """
    steps: list[Step] = []
    for one in wanted:
        seen = host.services[one.name]
        steps += _absent(one, seen) if one.state == "absent" else _present(one, seen, host, program)
    return Plan(steps)


def settings_for(one: Wanted, release: str, program: Program) -> dict[str, t.Any]:
    """Return what a tracer that runs on a kernel must have been started with."""
    return dict(settings_of(one, program.sha256), key=one.builds[release]["key"])


def _present(one: Wanted, seen: Seen, host: Host, program: Program) -> list[Step]:
    if one.state == "started" and host.release not in one.builds:
        problem = f"Service {one.name!r} has no module for the running kernel {host.release}"
        raise InvalidInput(f"{one.path}.modules", ", ".join(sorted(one.builds)), problem)
    steps = _stop(one, seen) if one.state == "stopped" else []
    steps += _files(one, seen, program)
    if seen.unit.enabled != one.enabled:
        why = "it is to start at boot" if one.enabled else "it is not to start at boot"
        action = "enable" if one.enabled else "disable"
        steps.append(_step(one, "enabled", seen.unit.enabled, one.enabled, "systemctl " + action, why, action))
    return steps + (_start(one, seen, settings_for(one, host.release, program)) if one.state == "started" else [])


def _step(
    one: Wanted, what: str, before: t.Any, after: t.Any, how: str, why: str, action: str, argument: str = ""
) -> Step:
    return Step(
        what=f"{one.name}: {what}",
        before=before,
        after=after,
        how=how,
        why=why,
        service=one.name,
        action=action,
        argument=argument,
    )


def _files(one: Wanted, seen: Seen, program: Program) -> list[Step]:
    steps = []
    for release, build in sorted(one.builds.items()):
        path, sha256 = module_path(build), str(build["sha256"])
        found = seen.modules.get(path)
        if found != sha256:
            why = "there is no module for this kernel" if found is None else "the module differs"
            steps.append(_step(one, path, found, sha256, "copy", why, "module", release))
    wanted = {module_path(build) for build in one.builds.values()}
    for path, sha256 in sorted(seen.modules.items()):
        if path not in wanted:
            steps.append(_step(one, path, sha256, None, "remove", "it is not wanted any more", "remove", path))
    if seen.program_sha256 != program.sha256:
        why = "it is not there" if seen.program_sha256 is None else "it is another collection's release"
        steps.append(_step(one, "program.pyz", seen.program_sha256, program.sha256, "write", why, "program"))
    spec = spec_of(one, program.sha256)
    if seen.spec_text != spec_text(spec):
        why = "it is not there" if seen.spec_text is None else "it differs"
        before = _shown(seen.spec) if seen.spec_text is not None else None
        steps.append(_step(one, "service.json", before, _shown(spec), "write", why, "spec"))
    text = unit_text(one.name, program.python)
    if seen.unit_text != text or seen.unit.stale:
        why = "it is not there" if seen.unit_text is None else "it differs"
        why = "systemd has not read it since it was changed" if seen.unit_text == text else why
        path = f"/{UNITS}/{unit_name(one.name)}"
        steps.append(_step(one, path, seen.unit_text, text, "write, daemon-reload", why, "unit"))
    return steps


def _shown(spec: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return ``service.json`` without what the other rows show, and without the list of probes."""
    builds = spec.get("builds", {})
    return {
        "settings": {name: value for name, value in spec.get("settings", {}).items() if name != "program"},
        "modules": {release: build.get("key", "")[:VERSION_CHARS] for release, build in builds.items()},
    }


def _stop(one: Wanted, seen: Seen) -> list[Step]:
    current = seen.current
    if current in _ALIVE:
        return [_step(one, "state", current, "stopped", "systemctl stop", "it is to be stopped", "stop")]
    if current == "overloaded":
        why = "it is known to be stopped, and may be started again"
        return [_step(one, "state", current, "stopped", "forget", why, "forget"), *_release(one, seen)]
    return [*_unload(one, seen), *_release(one, seen)]


def _release(one: Wanted, seen: Seen) -> list[Step]:
    """Return the step for sysctls that a tracer whose processes were all killed has changed."""
    if not seen.holds_sysctls:
        return []
    why = "the tracer was killed before it could put them back"
    return [_step(one, "sysctls", "changed by staprun", "as before", "write", why, "release")]


def _unload(one: Wanted, seen: Seen) -> list[Step]:
    """Return the step for a module that nothing keeps; one in use is another's."""
    if seen.digest is None or seen.users:
        return []
    module = seen.state["module"]
    return [_step(one, "module", module, None, "staprun -d", "it is loaded and nothing uses it", "unload")]


def _start(one: Wanted, seen: Seen, settings: t.Mapping[str, t.Any]) -> list[Step]:
    current = seen.current
    if current == "running":
        why = _drift(seen, settings)
        return [_step(one, "state", current, _AGAIN, "systemctl restart", why, "restart")] if why else []
    if is_resting(seen, settings):
        return []
    whys = {
        "restarting": "it is between two starts",
        "failed": f"it failed: {seen.state.get('reason')}",
        "overloaded": "what was overloaded has changed",
        "pending": "there is a module for the running kernel now",
        "ended": "its script ended itself",
    }
    why = whys.get(current, "it does not run")
    return [_step(one, "state", current, "running", "systemctl start", why, "start")]


def is_resting(seen: Seen, settings: t.Mapping[str, t.Any]) -> bool:
    """Tell whether a tracer stays stopped because it was too much for its host, as it still is wanted."""
    return seen.current == "overloaded" and seen.state.get("settings") == settings


def _drift(seen: Seen, settings: t.Mapping[str, t.Any]) -> str | None:
    """Return why a tracer that runs is not the one that is wanted."""
    digest = settings["key"][:VERSION_CHARS]
    if seen.digest is None:
        return "its module is not loaded"
    if seen.digest != digest:
        return f"the loaded module is {seen.digest[:12]}, and {digest[:12]} is wanted"
    before = seen.state.get("settings") or {}
    reasons = [why for name, why in _SETTINGS.items() if before.get(name) != settings[name]]
    return "; ".join(reasons) or None


def _absent(one: Wanted, seen: Seen) -> list[Step]:
    steps = []
    why = "the service is to be absent"
    if seen.current in _ALIVE:
        steps.append(_step(one, "state", seen.current, "stopped", "systemctl stop", why, "stop"))
    else:
        steps += [*_unload(one, seen), *_release(one, seen)]
    if seen.unit.enabled:
        steps.append(_step(one, "enabled", True, False, "systemctl disable", why, "disable"))
    if seen.unit_text is not None:
        path = f"/{UNITS}/{unit_name(one.name)}"
        steps.append(_step(one, path, seen.unit_text, None, "remove, daemon-reload", why, "remove_unit"))
    if seen.has_directory:
        files = sorted(seen.modules) + [name for name, there in _own_files(seen) if there]
        steps.append(_step(one, directory_of(one.name), files, None, "remove", why, "remove_directory"))
    if one.remove_output and seen.has_output:
        shown = {"files": len(seen.output), "bytes": sum(file.size_bytes for file in seen.output)}
        why = "its output is to be removed as well"
        steps.append(_step(one, output_directory(one.name), shown, None, "remove", why, "remove_output"))
    return steps


def _own_files(seen: Seen) -> list[tuple[str, bool]]:
    return [
        ("program.pyz", seen.program_sha256 is not None),
        ("service.json", seen.spec_text is not None),
        ("state.json", bool(seen.state)),
    ]
