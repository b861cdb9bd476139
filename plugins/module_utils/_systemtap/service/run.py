# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run over tracers that stay: look, plan, carry out, look again. Private to the collection."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ..._core import lock
from ..._core.audit import log_plan
from ..._core.disk import disk_errors
from ..._core.errors import ItemsFailed, TapvirtError, error_row
from ..._core.options import read_lock_timeout
from ..._core.plan import Plan, converge
from ..._core.root import Root
from ..signature.signature import signature_refusal
from ..supervise.supervisor import LOCKS, read_stext
from ..trace.start import Refused, Request, check_free, check_host
from .apply import Applier, step_failure
from .model import (
    Wanted,
    check_name,
    directory_of,
    module_path,
    program,
    python_command,
    read_wanted,
    sha256_of,
    spec_of,
)
from .observe import Host, is_own, known_names, observe
from .plan import Program, Step, is_resting, plan, settings_for
from .result import find_fault, row

_RUNNING_SYSTEMD = "/run/systemd/system"


def run(params: t.Mapping[str, t.Any], check_mode: bool, with_diff: bool) -> dict[str, t.Any]:
    """Carry out a task of ``stap_service``; return its result.

    :raises InvalidInput: an option is not acceptable.
    :raises TapvirtError: the host forbids a tracer or cannot keep one, or a tracer failed; its fields are the result.
    """
    wait_seconds = read_lock_timeout(params)
    root = Root()
    wanted = read_wanted(params["services"])
    data = program()
    tool = Program(data, sha256_of(data), python_command())
    shipped = params["_shipped"] or {}
    steps = Applier(wanted, tool, shipped)
    names = [one.name for one in wanted]

    def checked_plan(host: Host) -> Plan:
        planned = plan(wanted, host, tool)
        check(root, wanted, host, planned, shipped)
        return planned

    def verify(host: Host) -> Plan:
        # A step without effect is an error of its tracer's row; the others have theirs.
        for left in plan(wanted, host, tool):
            if isinstance(left, Step):
                outcome = f"reported success, but reading back shows no effect: {left.why}"
                steps.errors.setdefault(left.service, step_failure(left, outcome))
        return Plan()

    def apply(planned: Plan, host: Host) -> None:
        log_steps(wanted, planned, host.release)
        steps.apply(planned)

    with _alone(check_mode, wait_seconds):
        planned, host = converge(check_mode, lambda: observe(root, names), checked_plan, apply, verify)
    stext = read_stext()
    rows = []
    errors: list[TapvirtError | None] = []
    for one in wanted:
        spec = spec_of(one, tool.sha256) if one.state != "absent" else {}
        told = row(one.name, host.services[one.name], host, stext, spec)
        changes = [step.what for step in planned if isinstance(step, Step) and step.service == one.name]
        error = steps.errors.get(one.name) or _fault(one, host, tool, told, bool(changes) and check_mode)
        errors.append(error)
        rows.append(dict(told, changed=bool(changes), changes=changes, error=error_row(error)))
    result = {"services": rows, "kernels": kernel_rows(host), **planned.result(with_diff)}
    if any(errors):
        raise ItemsFailed(errors, **result)
    return result


def log_steps(wanted: t.Sequence[Wanted], planned: Plan, release: str) -> None:
    """Write what is about to be changed to the system log; a start with the digest of the module that it loads."""
    for one in wanted:
        own = [step for step in planned if isinstance(step, Step) and step.service == one.name]
        loads = any(step.action in ("start", "restart") for step in own)
        build = one.builds.get(release, {}) if loads else {}
        log_plan({"tracer": one.name, "load": build.get("name"), "sha256": build.get("sha256")}, own)


def _fault(
    one: Wanted, host: Host, tool: Program, told: t.Mapping[str, t.Any], only_planned: bool
) -> TapvirtError | None:
    if (
        one.state == "started"
        and only_planned
        and not is_resting(host.services[one.name], settings_for(one, host.release, tool))
    ):
        return None
    return find_fault(one.state, told)


def check(root: Root, wanted: t.Sequence[Wanted], host: Host, planned: Plan, shipped: t.Mapping[str, str]) -> None:
    """Refuse what the host forbids, before anything is changed.

    :raises TapvirtError: a module must not, or cannot, be loaded here, or nothing would start it.
    """
    if planned and not host.systemd:
        raise TapvirtError(
            f"A persistent tracer is a unit of systemd, and this host is not run by systemd ({_RUNNING_SYSTEMD} does "
            "not exist). Use tapvirt.host.stap_run for a trace that ends."
        )
    by_name = {one.name: one for one in wanted}
    for step in planned:
        if isinstance(step, Step) and step.action in ("start", "restart"):
            try:
                _check_start(root, by_name[step.service], host, shipped)
            except Refused as error:
                message = f"Service {step.service!r} cannot start: {error.reason}. Nothing was changed."
                raise TapvirtError(message, service=step.service, outcome="refused") from None


def _check_start(root: Root, one: Wanted, host: Host, shipped: t.Mapping[str, str]) -> None:
    build, seen = one.builds[host.release], host.services[one.name]
    check_host(root, Request(build, one.values, 0, one.buffer_mb, 0, 0))
    if not is_own(seen, build["name"]):
        check_free(build)
    kept = os.path.join(directory_of(one.name), module_path(build))
    path = kept if seen.modules.get(module_path(build)) == build["sha256"] else ""
    unsigned = signature_refusal(root, build, shipped.get(build["sha256"]) or path)
    if unsigned:
        raise Refused(unsigned)


@contextlib.contextmanager
def _alone(check_mode: bool, wait_seconds: float) -> t.Iterator[None]:
    """Keep other tasks on this host away; the lock leaves nothing."""
    if check_mode or not os.path.isdir(_RUNNING_SYSTEMD):
        yield
        return
    path = os.path.join(LOCKS, "services")
    with contextlib.ExitStack() as stack:
        with disk_errors("Nothing was changed."):
            stack.enter_context(lock.hold(path, "the tracers of this host", wait_seconds, temporary=True))
        yield


def kernel_rows(host: Host) -> list[dict[str, t.Any]]:
    """Return the kernels that a host can boot."""
    return [
        {"release": kernel.release, "version": kernel.version, "running": kernel.running} for kernel in host.kernels
    ]


def info(names: t.Sequence[str]) -> dict[str, t.Any]:
    """Return what there is of tracers on this host, all of them where none is named, and the kernels it can boot.

    :raises InvalidInput: a name is not that of a service.
    """
    for index, name in enumerate(names):
        check_name(f"names[{index}]", name)
    root = Root()
    host = observe(root, names or known_names(root))
    stext = read_stext()
    rows = [row(name, seen, host, stext, seen.spec) for name, seen in host.services.items()]
    return {"services": rows, "kernels": kernel_rows(host)}
