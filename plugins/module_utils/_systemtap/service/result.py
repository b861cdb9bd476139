# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of a result: what there is of each tracer that stays. Pure functions, private to the collection."""

from __future__ import annotations

import typing as t

from ..._core.errors import TapvirtError
from ..supervise.outcome import Arming, prove_arming
from ..trace.hints import host_hints
from .model import VERSION_CHARS, output_directory
from .observe import Host, Kernel, Seen

_SHOWN_MISSING = 20


def row(name: str, seen: Seen, host: Host, stext: int | None, spec: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return a tracer's row; ``spec`` is the ``service.json`` to judge it by, ``stext`` the address of ``_stext``."""
    builds = spec.get("builds", {})
    build = builds.get(host.release)
    kernels = [_kernel(kernel, builds.get(kernel.release)) for kernel in host.kernels] if builds else []
    running = seen.current == "running"
    arming = (
        prove_arming(build["probes"], seen.state.get("sites", ()), stext, running=True) if running and build else None
    )
    return {
        "name": name,
        "state": seen.current,
        "reason": None if running else seen.state.get("reason"),
        "outcome": None if running else seen.state.get("outcome"),
        "enabled": seen.unit.enabled,
        "restarts": seen.unit.restarts,
        "started": seen.state.get("started"),
        "digest": {"loaded": seen.digest, "wanted": build["key"][:VERSION_CHARS] if build else None},
        "kernels": kernels,
        "probes": _probes(arming) if arming else None,
        "output": _output(name, seen, spec),
        "pending": pending(seen, kernels, arming),
        "hints": _hints(seen.state, build),
    }


def _hints(state: t.Mapping[str, t.Any], build: t.Mapping[str, t.Any] | None) -> list[str]:
    """Return what helps a tracer that met limits in its last start, also while it runs; see stap_run."""
    messages = state.get("messages") or {}
    limits = (build or {}).get("limits") or {}
    return host_hints(messages.get("errors", ()), messages.get("warnings", ()), state.get("hits", {}), limits)


def _kernel(kernel: Kernel, build: t.Mapping[str, t.Any] | None) -> dict[str, t.Any]:
    reason = None
    if build is None:
        reason = "there is no module for it"
    elif build.get("kernel_version") and kernel.version and build["kernel_version"] != kernel.version:
        reason = (
            f"the module is for another build of it, {build['kernel_version']!r}, than is installed, {kernel.version!r}"
        )
    return {"release": kernel.release, "running": kernel.running, "ready": reason is None, "reason": reason}


def _probes(arming: Arming) -> dict[str, t.Any]:
    return {
        "asked": arming.asked,
        "armed": arming.armed,
        "proved": arming.proved,
        "missing": arming.missing[:_SHOWN_MISSING],
    }


def _output(name: str, seen: Seen, spec: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    bounds = spec.get("settings", {}).get("output", {})
    return {
        "directory": output_directory(name),
        "files": len(seen.output),
        "bytes": sum(file.size_bytes for file in seen.output),
        "limit_bytes": bounds["file_bytes"] * bounds["files"] if bounds else None,
        "dropped_bytes": seen.state.get("dropped_bytes", 0),
    }


def pending(seen: Seen, kernels: t.Sequence[t.Mapping[str, t.Any]], arming: Arming | None) -> list[str]:
    """Return what is not as it should be and waits for something else, in words."""
    words = [
        f"kernel {kernel['release']}: {kernel['reason']}, so the tracer does not start with it"
        for kernel in kernels
        if not kernel["ready"]
    ]
    if arming and arming.missing:
        text = (
            f"{arming.armed} of {arming.asked} probes are armed; missing: {', '.join(arming.missing[:_SHOWN_MISSING])}"
        )
        words.append(text)
    if seen.current in ("overloaded", "failed", "pending", "ended"):
        words.append(f"it does not run: {seen.state.get('reason') or seen.unit.said}")
    if seen.state.get("dropped_bytes"):
        words.append(f"{seen.state['dropped_bytes']} bytes of output could not be written and are lost")
    return words


def find_fault(state: str, rows: t.Mapping[str, t.Any]) -> TapvirtError | None:
    """Return why a tracer that was to be started is of no use, or None."""
    if state != "started":
        return None
    service = f"Service {rows['name']!r}"
    if rows["state"] == "overloaded":
        return TapvirtError(
            f"{service} stays stopped, because it used more of a CPU than its build allows ({rows['reason']}). To "
            "start it again, change its script or its settings, or set state: stopped and then state: started."
        )
    probes = rows["probes"]
    if probes and probes["asked"] and not probes["armed"]:
        missing = ", ".join(probes["missing"])
        return TapvirtError(f"{service} runs, but none of its {probes['asked']} probes is armed: {missing}.")
    return None
