# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bounded run on this host: check, install the module, start the supervisor. What it leaves is for ``collect.py``.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import sys
import time
import typing as t

from ..._core import command
from ..._core.audit import log_change
from ..._core.disk import disk_errors
from ..._core.errors import NEEDS_ROOT, InvalidInput, TapvirtError, nearest_names, option_path
from ..._core.files import open_regular
from ..._core.packages import read_distribution, remedy
from ..._core.plan import Change, Plan
from ..._core.privilege import lacking
from ..._core.root import Root
from ..._core.write import make_directories, write_atomic, write_new_place
from .. import limits
from ..script.check import read_values
from ..signature.signature import signature_refusal
from ..supervise import cleanup, supervisor
from .collect import has_leftover, other_run, read_handle, remove_run_directory, run_directory, sweep, unit_of
from .schedule import Schedule, check_start_at, estimate_load, load_file, plan_schedule

CACHE = "/var/cache/tapvirt/modules"
_LIBVIRT_RUN = "run/libvirt/qemu"
_SAFE_NAME = re.compile(r"^[a-z0-9_]{1,55}\Z")
_SHA256 = re.compile(r"^[0-9a-f]{64}\Z")
_GIVE_BUILD = "Give the module that stap_module returned"
_BUILD_FIELDS = (
    ("kernel", str, "a text"),
    ("globals", dict, "a dictionary"),
    ("probes", list, "a list"),
    ("assigned", dict, "a dictionary"),
    ("schema", dict, "a dictionary"),
    ("limits", dict, "a dictionary"),
    ("guru_reason", str, "a text"),
)
_REQUIRED_FIELDS = ("kernel", "globals", "probes")


class Refused(TapvirtError):
    """The run was not started; nothing was changed on the host. ``reason`` is a phrase."""

    def __init__(self, reason: str, **fields: t.Any) -> None:
        self.reason = reason
        super().__init__(
            f"The run was refused before anything was loaded: {reason}.",
            run={"phase": "check", "outcome": "refused", "reason": reason},
            **fields,
        )


@dataclasses.dataclass(frozen=True)
class Request:
    """What a run is asked to do: ``build`` is what ``stap_module`` returned, ``values`` are checked globals.

    ``is_kept`` is whether the result stays for whoever collects it later.
    """

    build: t.Mapping[str, t.Any]
    values: t.Mapping[str, str | int]
    duration_seconds: float
    buffer_mb: int
    max_output_bytes: int
    record_limit: int
    is_kept: bool = False

    def kept(self) -> dict[str, t.Any]:
        """Return the data that any collector needs to make a result of the run's leftovers."""
        build = self.build
        return {
            "build": {key: build[key] for key in ("name", "sha256", "kernel", "probes")},
            "limits": build.get("limits") or {},
            "guru_reason": build.get("guru_reason"),
            "schema": build.get("schema") or {},
            "builder": {key: build.get(key) for key in ("stap", "compiler", "key")},
            "path": cache_path(build),
            "duration": self.duration_seconds,
            "record_limit": self.record_limit,
            "keep": self.is_kept,
        }


def run(params: t.Mapping[str, t.Any], check_mode: bool) -> tuple[Plan, dict[str, t.Any]]:
    """Start a run; return what is kept on the host as a plan, and what there is to tell.

    That is ``ship`` when the host lacks the module, else the handle of the run. A controller that lost the answer
    asks again with the same ``_stage.run``, and gets it once more: the run is not started twice.

    :raises InvalidInput: an option is not acceptable.
    :raises Refused: the host or the module forbids the run.
    """
    root = Root()
    request = read_request(params, root)
    directory = "" if check_mode else run_directory(request.build["name"], params["_stage"]["run"])
    if os.path.isdir(directory):
        return started_result(request, directory)
    check_host(root, request)
    unsigned = signature_refusal(root, request.build, params["_shipped"] or cache_path(request.build))
    if unsigned:
        raise Refused(unsigned)
    plan = cache_plan(request, params["_shipped"] is None and has_module(request.build))
    if check_mode:
        check_free(request.build, sweeps=True)
        return plan, {"phase": "check", "outcome": "ok", "reason": "nothing forbids the run", "records": []}
    if plan and params["_shipped"] is None:
        return plan, {"ship": True}
    # What the sweep finds is in this answer alone, so somebody has to wait for it.
    check_awaited(params["_stage"])
    found = sweep(request.record_limit)
    try:
        check_free(request.build)
    except Refused as refused:
        refused.fields["run"]["previous_leftovers"] = found
        raise
    install_module(request.build, params["_shipped"])
    try:
        schedule = read_schedule(params, request)
        begun_with = {
            "previous_leftovers": found,
            "kept_before": not plan,
            "supervisor": "systemd" if has_systemd() else "guard",
            "times": schedule.times(),
            "clock": params["_stage"].get("clock"),
        }
        check_awaited(params["_stage"])
        claim(request, root, directory, schedule, begun_with)
    except FileExistsError:
        # The answer to an earlier question was lost while its process still worked.
        return started_result(request, directory)
    except Refused as refused:
        refused.fields["run"]["previous_leftovers"] = found
        raise
    log_load(request, directory)
    start(request, directory, schedule)
    return started_result(request, directory)


def log_load(request: Request, directory: str) -> None:
    """Write to the system log which module is about to be loaded."""
    build, run_id = request.build, os.path.basename(directory)
    log_change(load=build["name"], sha256=build["sha256"], run=run_id, guru_reason=build.get("guru_reason"))


def read_schedule(params: t.Mapping[str, t.Any], request: Request) -> Schedule:
    """Return when the run starts, by this host's clock.

    :raises InvalidInput: the start is in the past, or too far ahead.
    """
    start_at, now = params["start_at"], time.time()
    if start_at is not None:
        skew = params["_stage"]["clock"]["skew_seconds"]
        check_start_at(start_at, now - skew)
        start_at += skew
    return plan_schedule(start_at, request.duration_seconds, estimate_load(cache_path(request.build)), now)


def check_awaited(stage: t.Mapping[str, t.Any]) -> None:
    """Check that the controller still waits for the answer: on a slow line, a start arrives after it gave the host up.

    Nothing is checked where the controller does not know the host's clock.

    :param stage: ``until`` is how long the controller waits, in seconds since 1970 by its own clock.
    :raises Refused: it does not wait any more.
    """
    until, clock = stage.get("until"), stage.get("clock") or {}
    if until is None or clock.get("skew_seconds") is None:
        return
    late = time.time() - clock["skew_seconds"] - clock["uncertainty_seconds"] - until
    if late > 0:
        raise Refused(f"the start came {late:.1f} seconds after the controller had given this host up")


def claim(request: Request, root: Root, directory: str, schedule: Schedule, begun_with: t.Mapping[str, t.Any]) -> None:
    """Check once more that nobody else runs the module, and make the run's directory, under the module's lock.

    The directory is what other runs see from then on; the supervisor takes the lock again, and holds it to the end.

    :raises FileExistsError: the run has its directory already.
    :raises Refused: another run has the module.
    :raises TapvirtError: there is no room for the run.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(cleanup.hold_module(request.build["name"]))
        except cleanup.ModuleInUse as error:
            if os.path.isdir(directory):
                raise FileExistsError(directory) from None
            raise Refused(str(error)) from None
        except OSError as error:
            raise Refused(f"no room for the lock of the module: {error}") from None
        check_free(request.build, directory)
        prepare(request, root, directory, schedule, begun_with)


def cache_plan(request: Request, kept_before: bool) -> Plan:
    """Return what a run adds to the host: the module, unless the host kept it before."""
    if kept_before:
        return Plan()
    path, sha256 = cache_path(request.build), request.build["sha256"]
    return Plan([Change(path, None, sha256, "copy", "the host does not have the module")])


def started_result(request: Request, directory: str) -> tuple[Plan, dict[str, t.Any]]:
    """Return what there is to tell of a run that has been prepared."""
    told = cleanup.read_json(os.path.join(directory, "begun.json"))
    return cache_plan(request, told.get("kept_before", True)), {"phase": "started", **read_handle(directory, {})}


def read_request(params: t.Mapping[str, t.Any], root: Root) -> Request:
    """Check a task's options; nothing is changed by then.

    :raises InvalidInput: an option is not acceptable.
    """
    build = params["module"]
    with option_path("module"):
        check_build(build)
    if not 0 < params["duration_seconds"] <= limits.MAX_DURATION_SECONDS:
        problem = f"The duration must be more than 0 and at most {limits.MAX_DURATION_SECONDS} seconds"
        raise InvalidInput("duration_seconds", params["duration_seconds"], problem)
    if not 1 <= params["buffer_mb"] <= limits.MAX_BUFFER_MB:
        problem = f"The output buffer must be from 1 to {limits.MAX_BUFFER_MB} MB for each online CPU"
        raise InvalidInput("buffer_mb", params["buffer_mb"], problem)
    if not params["wait"] and params["max_output_bytes"] > limits.KEPT_BYTES:
        problem = f"A result that stays on the host has at most {limits.KEPT_BYTES} bytes of output"
        raise InvalidInput("max_output_bytes", params["max_output_bytes"], problem, "Use wait: true for more")
    values = read_values(build, params["globals"], "module")
    if params["domain"] is not None:
        if "target_pid" not in build["globals"]:
            problem = "The script has no global variable target_pid, so its trace cannot be limited to a domain"
            raise InvalidInput("domain", params["domain"], problem)
        values["target_pid"] = domain_pid(root, params["domain"])
    return Request(
        build=build,
        values=values,
        duration_seconds=params["duration_seconds"],
        buffer_mb=params["buffer_mb"],
        max_output_bytes=params["max_output_bytes"],
        record_limit=params["record_limit"],
        is_kept=not params["wait"],
    )


def check_build(build: t.Mapping[str, t.Any]) -> None:
    """Check that a module's description is one that ``stap_module`` returned.

    :raises InvalidInput: with the field as its option: it is missing or has the wrong form.
    """
    for field, pattern in (("name", _SAFE_NAME), ("sha256", _SHA256)):
        check_field(build, field, pattern)
    for field, kind, what in _BUILD_FIELDS:
        if build.get(field) is None and field in _REQUIRED_FIELDS:
            raise InvalidInput(field, None, f"The module has no {field}", _GIVE_BUILD)
        if not isinstance(build.get(field), (kind, type(None))):
            raise InvalidInput(field, build[field], f"The field {field} of a module is {what}", _GIVE_BUILD)
    for index, probe in enumerate(build["probes"]):
        if not isinstance(probe, dict) or not isinstance(probe.get("point"), str):
            raise InvalidInput(f"probes[{index}]", probe, "stap_module does not return such a probe", _GIVE_BUILD)


def check_field(build: t.Mapping[str, t.Any], field: str, pattern: t.Pattern[str]) -> None:
    """Check the form of a field of a module's description.

    :raises InvalidInput: with the field as its option.
    """
    if build.get(field) is None:
        raise InvalidInput(field, None, f"The module has no {field}", _GIVE_BUILD)
    if not isinstance(build[field], str) or not pattern.match(build[field]):
        raise InvalidInput(field, build.get(field), f"stap_module does not return such a {field}", _GIVE_BUILD)


def domain_pid(root: Root, name: str) -> int:
    """Return the process id of a running libvirt domain's QEMU, from the daemon's pid file.

    :raises InvalidInput: no domain of that name runs on this host.
    """
    running = [
        entry[: -len(".pid")]
        for entry in root.listdir(_LIBVIRT_RUN)
        if entry.endswith(".pid") and entry != "driver.pid"
    ]
    if name not in running:
        problem = f"QEMU runs no domain of that name on this host; it runs {', '.join(running) or 'none'}"
        raise InvalidInput("domain", name, problem, None, nearest_names(name, running))
    return int(root.read_text(f"{_LIBVIRT_RUN}/{name}.pid"))


def check_host(root: Root, request: Request) -> None:
    """Compare the limits and the build with the host.

    :raises Refused: the module must not, or cannot, be loaded here.
    """
    if lacking("CAP_SYS_MODULE"):
        uid = os.geteuid()
        if uid != 0:
            raise Refused(f"the user with uid {uid} cannot load modules; the task needs {NEEDS_ROOT}")
        raise Refused("root cannot load modules here, since it lacks CAP_SYS_MODULE, as in a container")
    if not root.exists("proc/modules"):
        raise Refused("this kernel has no loadable modules (there is no /proc/modules), so SystemTap cannot trace it")
    release = root.read_text("proc/sys/kernel/osrelease").strip()
    if request.build["kernel"] != release:
        raise Refused(f"the module was built for kernel {request.build['kernel']}, and this host runs {release}")
    version = root.read_text("proc/sys/kernel/version").strip()
    wanted = request.build.get("kernel_version")
    if wanted and wanted != version:
        raise Refused(
            f"the module was built for {release} {wanted!r}, and this host runs another build of it, {version!r}"
        )
    if command.find_program("staprun") is None:
        raise Refused(f"staprun is not installed on this host: {remedy('runtime', read_distribution(root))}")
    if "[confidentiality]" in (root.read_text_or("sys/kernel/security/lockdown") or ""):
        raise Refused("kernel lockdown is in confidentiality mode")
    bytes_per_cpu = request.buffer_mb << 20
    shortage = limits.buffer_check(limits.read_memory(root), bytes_per_cpu)
    if shortage:
        raise Refused(f"{shortage}: {limits.buffer_remedy(bytes_per_cpu)}")


def check_free(build: t.Mapping[str, t.Any], own: str = "", sweeps: bool = False) -> None:
    """Refuse a second load of the same module; name who has it.

    :param own: the directory of the run that asks.
    :param sweeps: whether a module that a killed run left counts as free, since a run removes it first.
    :raises Refused: another run is about to load it or runs it, or it is loaded.
    """
    name = str(build["name"])
    user = other_run(name, own)
    if user:
        raise Refused(f"the module {name} is in use by {user}")
    try:
        cleanup.check_not_loaded(name)
    except cleanup.ModuleInUse as error:
        if not (sweeps and has_leftover(name)):
            raise Refused(str(error)) from None


def cache_path(build: t.Mapping[str, t.Any]) -> str:
    """Return where the host keeps a module: a folder named after its content."""
    return os.path.join(CACHE, build["sha256"], build["name"] + ".ko")


def has_module(build: t.Mapping[str, t.Any]) -> bool:
    """Tell whether the host keeps the whole module."""
    try:
        with open_regular(cache_path(build)) as stream:
            return hashlib.sha256(stream.read()).hexdigest() == str(build["sha256"])
    except OSError:
        return False


def install_module(build: t.Mapping[str, t.Any], source: str | None) -> bool:
    """Put the module into the host's cache; return whether it was not there yet.

    :raises TapvirtError: it was not shipped, or not as it was built.
    """
    if has_module(build):
        return False
    if source is None:
        raise TapvirtError(f"The module {build['name']} was not shipped to this host.")
    with open_regular(source) as stream:
        data = stream.read()
    if hashlib.sha256(data).hexdigest() != build["sha256"]:
        raise TapvirtError(f"The module {build['name']} arrived with a sha256 that differs from that of its build.")
    with disk_errors("Nothing was loaded."):
        write_new_place(cache_path(build), data)
    return True


def prepare(
    request: Request, root: Root, directory: str, schedule: Schedule, begun_with: t.Mapping[str, t.Any]
) -> None:
    """Make a new run's directory (on a file system that is empty after a reboot), with all that the run needs.

    :raises FileExistsError: the run has its directory already.
    :raises TapvirtError: there is no room for it.
    """
    job = {
        "name": request.build["name"],
        "argv": ["staprun", "-b", str(request.buffer_mb), cache_path(request.build), *_parameters(request)],
        "duration": request.duration_seconds,
        "load": limits.LOAD_SECONDS,
        "grace": limits.STOP_GRACE_SECONDS,
        "limit": request.max_output_bytes,
        "sites": count_sites(request.build["probes"]),
        "load_file": load_file(cache_path(request.build)),
        "start": schedule.start if schedule.is_planned else None,
        "wait": schedule.wait_seconds,
    }
    kept = dict(request.kept(), tainted=int(root.read_text("proc/sys/kernel/tainted")))
    _make_directory(directory)
    try:
        cleanup.write_json(os.path.join(directory, "begun.json"), begun_with)
        for name, source in supervisor.program().items():
            path = os.path.join(directory, "program", name)
            make_directories(os.path.dirname(path), 0o700)
            write_atomic(path, source.encode(), mode=0o600)
        cleanup.reserve_space(directory)
        cleanup.write_json(os.path.join(directory, "request.json"), kept)
        cleanup.write_json(os.path.join(directory, "job.json"), job)
    except OSError as error:
        remove_run_directory(directory)
        raise TapvirtError(
            f"The run could not be prepared in {directory}: {error.strerror}. Nothing was loaded.",
            run={"phase": "check", "outcome": "refused", "reason": f"no room for the run: {error.strerror}"},
        ) from None


def _parameters(request: Request) -> list[str]:
    return [f"{name}={value}" for name, value in sorted(request.values.items())]


def count_sites(probes: t.Sequence[t.Mapping[str, t.Any]]) -> int:
    """Return how many entries of debugfs kprobes/list the probes of a build make when all of them are armed."""
    return sum(1 for probe in probes if probe.get("place") or probe["point"].startswith("kprobe."))


def _make_directory(directory: str) -> None:
    try:
        cleanup.make_run_directory(directory)
    except FileExistsError:
        raise
    except OSError as error:
        raise TapvirtError(
            f"The directory {directory} cannot be created: {error.strerror}. Nothing was changed."
        ) from None


def has_systemd() -> bool:
    """Tell whether systemd runs this host (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def start(request: Request, directory: str, schedule: Schedule) -> None:
    """Start the supervisor, under systemd where there is one.

    :raises TapvirtError: systemd does not start it.
    """
    python = [sys.executable, "-IB", os.path.join(directory, "program")]
    if not has_systemd():
        command.start_detached([*python, "guard", directory])
        return
    seconds = schedule.wait_seconds + limits.LOAD_SECONDS + request.duration_seconds + 2 * limits.STOP_GRACE_SECONDS
    properties = {
        "RuntimeMaxSec": f"{seconds:.1f}",
        "KillMode": "mixed",
        "TimeoutStopSec": str(3 * limits.STOP_GRACE_SECONDS),
        # A supervisor that came to its end has cleaned up, and holds nothing: Python need not start for that.
        "ExecStopPost": f"/bin/sh -c 'test ! -e {directory}/holds || exec {' '.join(python)} clean {directory}'",
        "StandardOutput": "null",
        "Description": f"SystemTap module {request.build['name']}",
    }
    argv = ["systemd-run", "--quiet", "--collect", f"--unit={unit_of(directory)}"]
    argv += [f"--property={name}={value}" for name, value in properties.items()]
    result = command.run([*argv, *python, "run", directory], timeout_seconds=60)
    if result.rc != 0:
        remove_run_directory(directory)
        raise TapvirtError(f"systemd-run could not start the run: {result.stderr.strip()}.")
