# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tracers that stay: what a task wants of them, checked before anything is changed, and the files that say so.

Private to the collection. On a host, a tracer NAME is::

    /etc/systemd/system/tapvirt-trace-NAME.service     its unit
    /var/lib/tapvirt/services/NAME/service.json        what is wanted, for each kernel that there is a module for
    /var/lib/tapvirt/services/NAME/program.pyz         the unit's program (supervise/tracer_daemon.py)
    /var/lib/tapvirt/services/NAME/modules/RELEASE/    a module for each kernel
    /var/lib/tapvirt/services/NAME/state.json          how far it is, or how it ended
    /var/log/tapvirt/NAME/trace.NNNNNN                 its output, a ring of bounded files
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import sys
import typing as t
import zipfile

from ..._core.errors import InvalidInput, duplicate, option_path
from ..limits import MAX_BUFFER_MB
from ..script.check import read_values
from ..supervise import cleanup, outcome, ring, supervisor, tracer_daemon
from ..trace.start import check_build, check_field

DIRECTORY = cleanup.SERVICES[1:]
OUTPUT = "var/log/tapvirt"
UNITS = "etc/systemd/system"
PREFIX = "tapvirt-trace-"
#: How much of a digest the module itself carries (build.py: --modinfo version=).
VERSION_CHARS = 40
NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,31}\Z")
_KEY = re.compile(r"^[0-9a-f]{64}\Z")
_RELEASE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+~-]{0,100}\Z")
_LEAST_FILE_BYTES = 4096
_MOST_FILE_BYTES = 1 << 30
_MOST_FILES = 100

# A start that fails is repeated after 5 s, five times in ten minutes at most; not after an overload (EXIT_STAY).
_UNIT = """\
# Written by tapvirt.host.stap_service; the next run of the task replaces changes made here.
[Unit]
Description=SystemTap tracer {name}
After=local-fs.target systemd-modules-load.service
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
Type=notify
ExecStart={program} run {directory}
ExecStopPost={program} clean {directory}
KillMode=mixed
StandardOutput=null
TimeoutStartSec=120
TimeoutStopSec=90
Restart=on-failure
RestartSec=5
RestartPreventExitStatus={stay}

[Install]
WantedBy=multi-user.target
"""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One tracer as a task wants it.

    ``path`` is its option, such as ``services[0]``. ``builds`` are what ``stap_module`` returned, by kernel release.
    """

    path: str
    name: str
    state: str
    enabled: bool
    builds: t.Mapping[str, t.Mapping[str, t.Any]]
    values: t.Mapping[str, str | int]
    buffer_mb: int
    output_file_bytes: int
    output_files: int
    remove_output: bool

    @property
    def module_name(self) -> str | None:
        """Return the kernel module's name, the same for every kernel; null where no module was given."""
        return next((str(build["name"]) for build in self.builds.values()), None)


def unit_name(name: str) -> str:
    return f"{PREFIX}{name}.service"


def read_wanted(services: t.Sequence[t.Mapping[str, t.Any]]) -> list[Wanted]:
    """Check the option ``services``.

    :raises InvalidInput: an entry is not acceptable.
    """
    wanted = [_read_one(f"services[{index}]", entry) for index, entry in enumerate(services)]
    seen: dict[str, str] = {}
    names: dict[str, str] = {}
    for one in wanted:
        if one.name in names:
            raise duplicate(f"{one.path}.name", one.name, names[one.name])
        names[one.name] = one.path
        module = one.module_name
        if module is not None and module in seen:
            problem = f"Service {seen[module]!r} has the same module, and a kernel can load it only once"
            raise InvalidInput(f"{one.path}.modules", module, problem, "Give each service a script of its own")
        if module is not None:
            seen[module] = one.name
    return wanted


def _read_one(path: str, entry: t.Mapping[str, t.Any]) -> Wanted:
    with option_path(path):
        builds = _check_one(path, entry)
        values = _read_values(builds, entry["globals"])
    return Wanted(
        path=path,
        name=entry["name"],
        state=entry["state"],
        enabled=entry["enabled"] and entry["state"] != "absent",
        builds=builds,
        values=values,
        buffer_mb=entry["buffer_mb"],
        output_file_bytes=entry["output_file_bytes"],
        output_files=entry["output_files"],
        remove_output=entry["remove_output"],
    )


def check_name(option: str, name: str) -> None:
    """Check the name of a service.

    :raises InvalidInput: it is not acceptable.
    """
    if not NAME.match(name):
        problem = (
            "The name of a service is 1 to 32 lower-case letters, digits, dashes and underscores, and begins with a "
            "letter or a digit"
        )
        nearest = re.sub(r"[^a-z0-9_-]+", "_", name.lower()).strip("_-")[:32]
        raise InvalidInput(option, name, problem, None, [nearest] if NAME.match(nearest) else [])


def _check_one(path: str, entry: t.Mapping[str, t.Any]) -> dict[str, t.Mapping[str, t.Any]]:
    """Check the options of an entry of ``services``; return its builds by the kernel's release."""
    check_name("name", entry["name"])
    absent = entry["state"] == "absent"
    if entry["remove_output"] and not absent:
        problem = "The output is removed only together with its service"
        raise InvalidInput("remove_output", True, problem, "Set state: absent")
    for option, least, most in (
        ("buffer_mb", 1, MAX_BUFFER_MB),
        ("output_file_bytes", _LEAST_FILE_BYTES, _MOST_FILE_BYTES),
        ("output_files", 2, _MOST_FILES),
    ):
        if not least <= entry[option] <= most:
            raise InvalidInput(option, entry[option], f"The number must be from {least} to {most}")
    return {} if absent else _read_builds(entry["modules"], path)


def _read_builds(modules: t.Sequence[t.Any], path: str) -> dict[str, t.Mapping[str, t.Any]]:
    if not modules:
        problem = "A service needs a module for each kernel that it is to run with"
        raise InvalidInput("modules", modules, problem, "Give the modules that stap_module returned")
    builds: dict[str, t.Mapping[str, t.Any]] = {}
    for index, build in enumerate(modules):
        with option_path(f"modules[{index}]"):
            if not isinstance(build, dict):
                problem = "stap_module does not return such a module; in check mode it returns null until it is built"
                raise InvalidInput("", build, problem)
            check_build(build)
            for field, pattern in (("key", _KEY), ("kernel", _RELEASE)):
                check_field(build, field, pattern)
            if build["kernel"] in builds:
                first = list(builds).index(build["kernel"])
                raise duplicate("kernel", build["kernel"], f"{path}.modules[{first}]", "kernel")
        builds[build["kernel"]] = build
    names = sorted({build["name"] for build in builds.values()})
    if len(names) > 1:
        problem = "The modules of a service must come from one script, which gives them the same name"
        raise InvalidInput("modules", ", ".join(names), problem)
    return builds


def _read_values(builds: t.Mapping[str, t.Mapping[str, t.Any]], given: t.Mapping[str, t.Any]) -> dict[str, str | int]:
    values: dict[str, str | int] = {}
    # A release has one module, so the builds are in the order of the option.
    for index, build in enumerate(builds.values()):
        values = read_values(build, given, f"modules[{index}]")
    return values


def python_command() -> str:
    """Return the Python that the unit runs: by the name that outlives an update, where that is the same one."""
    stable = "/usr/bin/python3"
    return stable if os.path.realpath(stable) == os.path.realpath(sys.executable) else sys.executable


def directory_of(name: str) -> str:
    """Return a tracer's own directory, absolute."""
    return f"/{DIRECTORY}/{name}"


def output_directory(name: str) -> str:
    """Return where a tracer's output goes, absolute."""
    return f"/{OUTPUT}/{name}"


def unit_text(name: str, python: str) -> str:
    """Return a tracer's unit."""
    program = f"{python} -I {directory_of(name)}/program.pyz"
    return _UNIT.format(name=name, program=program, directory=directory_of(name), stay=tracer_daemon.EXIT_STAY)


def program() -> bytes:
    """Return the unit's program: that of a run and what a tracer needs beside it, in a zip file, always the same."""
    stream = io.BytesIO()
    sources = supervisor.program()
    package = os.path.dirname(supervisor.packed_name(tracer_daemon)).replace("/", ".")
    sources["__main__.py"] = f"from {package}.tracer_daemon import main\n\nraise SystemExit(main())\n"
    for module in (outcome, tracer_daemon, ring):
        sources[supervisor.packed_name(module)] = supervisor.source_of(module)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, text in sorted(sources.items()):
            archive.writestr(zipfile.ZipInfo(name), text)
    return stream.getvalue()


def settings_of(wanted: Wanted, program_sha256: str) -> dict[str, t.Any]:
    """Return what a running tracer must have been started with, beside the module itself."""
    return {
        "globals": dict(wanted.values),
        "buffer_mb": wanted.buffer_mb,
        "output": {
            "directory": output_directory(wanted.name),
            "file_bytes": wanted.output_file_bytes,
            "files": wanted.output_files,
        },
        "program": program_sha256,
    }


def module_path(build: t.Mapping[str, t.Any]) -> str:
    """Return where a kernel's module is kept, below a tracer's own directory."""
    return f"modules/{build['kernel']}/{build['name']}.ko"


def spec_of(wanted: Wanted, program_sha256: str) -> dict[str, t.Any]:
    """Return ``service.json``: the settings, and what the program and later runs must know of each kernel's module."""
    builds = {}
    for release, build in wanted.builds.items():
        builds[release] = {
            **{key: build.get(key) for key in ("name", "key", "sha256", "kernel_version", "probes", "limits")},
            "path": module_path(build),
        }
    return {"name": wanted.name, "settings": settings_of(wanted, program_sha256), "builds": builds}


def spec_text(spec: t.Mapping[str, t.Any]) -> str:
    return json.dumps(spec, indent=1, sort_keys=True) + "\n"


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
