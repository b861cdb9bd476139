# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can this host be traced, and how: the host's facts, a builder's facts, and one verdict over both.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import grp
import os
import re
import typing as t

from .._core import command
from .._core.packages import Distribution, packages, read_distribution, remedy
from .._core.privilege import lacking
from .._core.root import Root
from .._kernel.facts.facts import gather
from .limits import BUFFER_BYTES_PER_CPU, Memory, buffer_check, buffer_remedy, read_memory
from .signature.signature import key_names, trusted_keys

_VERSION = re.compile(r"version (\d+\.\d+)")
_TESTED = re.compile(r"tested kernel versions: (\S+) \.\.\. (\S+)")
_GROUPS = ("stapdev", "stapsys", "stapusr")
# How a family's package manager prints the version of a package. Arch's staprun prints its own.
_PACKAGE_VERSION = {
    "Debian": ("dpkg-query", "--show", "--showformat", "version ${Version}"),
    "RedHat": ("rpm", "--query", "--queryformat", "version %{VERSION}"),
    "SUSE": ("rpm", "--query", "--queryformat", "version %{VERSION}"),
}
VERSION_SECONDS = 20
PROC_SYSTEMTAP = "proc/systemtap"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that forbids (``blocks``) or deserves to be known: the reason in words, and what helps."""

    check: str
    blocks: bool
    reason: str
    remedy: str

    def row(self) -> dict[str, t.Any]:
        return dataclasses.asdict(self)


def parse_version(text: str) -> str | None:
    """Return the release in ``stap --version`` or ``staprun -V``: ``(version 5.6/0.196, Debian 5.6-1)`` -> 5.6."""
    found = _VERSION.search(text)
    return found.group(1) if found else None


def version_tuple(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: ``6.12.107+deb13-cloud-amd64`` -> (6, 12, 107)."""
    numbers = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in numbers.group(0).split(".")) if numbers else ()


def parse_tested_range(text: str) -> tuple[str, str] | None:
    """Return the kernels that ``stap --version`` says it was tested with: lowest and highest."""
    found = _TESTED.search(text)
    return (found.group(1), found.group(2)) if found else None


def staprun_version(distribution: Distribution) -> str | None:
    """Return the version of the host's staprun, ``unknown``, or null where it is not installed.

    That of SystemTap 5.1 (Debian 13) prints nothing for ``-V``, with exit status 0: the package knows it then. A
    package manager that fails knows nothing: rpm without its database prints versions of Berkeley DB.

    :raises CommandTimeout: the database of packages does not answer.
    """
    if command.find_program("staprun") is None:
        return None
    query = _PACKAGE_VERSION.get(distribution.family or "")
    result = command.run(["staprun", "-V"], timeout_seconds=VERSION_SECONDS)
    version = parse_version(result.stdout + result.stderr)
    if version is None and query and command.find_program(query[0]) is not None:
        result = command.run([*query, *packages("runtime", distribution)], timeout_seconds=VERSION_SECONDS)
        version = parse_version(result.stdout) if result.rc == 0 else None
    return version or "unknown"


def loaded_stap_modules(root: Root) -> list[dict[str, t.Any]]:
    """Return the SystemTap modules that are loaded: name, the digest given at the build, how many use it."""
    modules = []
    for name in root.listdir(PROC_SYSTEMTAP):
        version = root.read_text_or(f"sys/module/{name}/version")
        users = root.read_text_or(f"sys/module/{name}/refcnt")
        modules.append(
            {
                "name": name,
                "version": version.strip() if version else None,
                "users": int(users) if users and users.strip().isdigit() else None,
            }
        )
    return modules


def read_host(root: Root, arch: str) -> dict[str, t.Any]:
    """Return what matters for tracing on this host; shapes as in the documentation of ``stap_host_info``."""
    distribution = read_distribution(root)
    facts = gather(root, {"identity", "security", "tracing", "config"}, [], arch)
    memory = read_memory(root)
    groups = {
        group.gr_name for group in grp.getgrall() if group.gr_gid in os.getgroups() or group.gr_gid == os.getegid()
    }
    modules = (
        {line.split(b" ", 1)[0].decode() for line in root.lines("proc/modules")}
        if root.exists("proc/modules")
        else set()
    )
    return {
        "distribution": dataclasses.asdict(distribution),
        "kernel": {key: facts.get(key) for key in ("release", "version", "arch", "build_id")},
        "traceability": facts["traceability"],
        "lockdown": facts.get("lockdown"),
        "module_signatures_enforced": (facts.get("tracing") or {}).get("module_signatures_enforced"),
        "trusted_keys": trusted_keys(root),
        "staprun": staprun_version(distribution),
        "privilege": {"load_modules": not lacking("CAP_SYS_MODULE"), "groups": sorted(groups.intersection(_GROUPS))},
        "memory": dataclasses.asdict(memory),
        "kvm_module": next((name for name in ("kvm_amd", "kvm_intel") if name in modules), None),
        "loaded": loaded_stap_modules(root),
    }


def find_problems(host: t.Mapping[str, t.Any], builder: t.Mapping[str, t.Any] | None) -> list[Finding]:
    """Return everything that speaks against tracing this host, by itself and with a given builder."""
    findings = [
        Finding("kernel", True, reason, "boot a kernel with loadable modules and kprobes, or trace another host")
        for reason in host["traceability"]["reasons"]
    ]
    if host["staprun"] is None:
        findings.append(Finding("staprun", True, "staprun is not installed", remedy("runtime", _distribution(host))))
    findings += _judge_privilege(host["privilege"])
    findings += [_judge_condition(reason, host.get("trusted_keys")) for reason in host["traceability"]["conditions"]]
    shortage = buffer_check(Memory(**host["memory"]))
    if shortage is not None:
        findings.append(Finding("memory", True, shortage, buffer_remedy(BUFFER_BYTES_PER_CPU)))
    findings += [
        Finding(
            "left_over",
            False,
            f"the SystemTap module {row['name']} is loaded and nothing uses it",
            f"staprun -d {row['name']}",
        )
        for row in host["loaded"]
        # One in use is somebody's run, or a tracer that stays.
        if row["users"] == 0
    ]
    return findings + (_judge_builder(host, builder) if builder else [])


def has_debuginfod(builder: t.Mapping[str, t.Any]) -> bool:
    """Return whether a builder has a debuginfod server that answers: it needs no debug package then."""
    return bool((builder.get("debuginfod") or {}).get("answering"))


def silent_servers(builder: t.Mapping[str, t.Any]) -> str:
    """Return the rest of a sentence about a builder whose debuginfod servers do not answer; empty without servers."""
    servers = (builder.get("debuginfod") or {}).get("servers") or []
    return f", and no debuginfod server answers ({', '.join(map(str, servers))})" if servers else ""


def _distribution(facts: t.Mapping[str, t.Any]) -> Distribution:
    """Return the distribution in a host's or a builder's facts; facts without it name no packages."""
    told = facts.get("distribution")
    known = told if isinstance(told, dict) else {}
    return Distribution(*(str(known[key]) if known.get(key) else None for key in ("name", "family")))


def _judge_privilege(privilege: t.Mapping[str, t.Any]) -> list[Finding]:
    """Judge what the user may do (man staprun): with CAP_SYS_MODULE or stapdev any module, with stapusr some."""
    groups = set(privilege["groups"])
    if privilege["load_modules"] or groups >= {"stapdev", "stapusr"}:
        return []
    if "stapusr" in groups:
        reason = "the user is in stapusr without stapdev: only modules under /lib/modules/RELEASE/systemtap can be run"
        return [Finding("privilege", False, reason, "put the module there, or the user into stapdev as well")]
    return [
        Finding(
            "privilege",
            True,
            "the user has no capability to load modules (CAP_SYS_MODULE, which root lacks in a container) and is not "
            "in the group stapusr, whose members alone may run staprun",
            "use become: true, or put the user into stapusr for modules under /lib/modules/RELEASE/systemtap",
        )
    ]


def _judge_condition(reason: str, trusted: t.Sequence[t.Mapping[str, str]] | None) -> Finding:
    """Judge a condition of the kernel's own; modules to be signed need a key that is enrolled (null: not known)."""
    if "signed" not in reason:
        what, _colon, helps = reason.partition(": ")
        return Finding("kernel", True, what, helps or "trace another host")
    remedy = f"have stap_module sign (its option sign) with {key_names(trusted)}"
    if trusted is not None and not trusted:
        return Finding(
            "signing", True, reason + ", and none is enrolled", "enrol a key (mokutil --import), then " + remedy
        )
    return Finding("signing", False, reason, remedy)


def _judge_builder(host: t.Mapping[str, t.Any], builder: t.Mapping[str, t.Any]) -> list[Finding]:
    release = host["kernel"]["release"] or ""
    stap = builder.get("stap")

    arch, own = host["kernel"].get("arch"), builder.get("arch")
    if arch and own and arch != own:
        reason = f"the builder is {own}, and does not build for {arch}"
        return [Finding("arch", True, reason, f"use a builder of the architecture {arch}")]

    def on_builder(need: str) -> str:
        of_kernel = release if need in ("headers", "debuginfo") else ""
        return remedy(need, _distribution(builder), of_kernel) + " on the builder"

    if not stap:
        return [Finding("builder", True, "the builder has no stap", on_builder("toolchain"))]
    findings = []
    kernels = builder.get("kernels") or {}
    if release not in kernels:
        known = ", ".join(sorted(kernels)) or "none"
        findings.append(
            Finding(
                "headers",
                True,
                f"the builder has no headers for {release}; it has them for: {known}",
                on_builder("headers"),
            )
        )
    else:
        findings += _judge_kernel(release, kernels[release], builder, on_builder)
    tested_up_to = (builder.get("tested") or [None, None])[1]
    return findings + check_versions(release, stap, host["staprun"], tested_up_to, _distribution(host))


def _judge_kernel(
    release: str,
    kernel: t.Mapping[str, t.Any],
    builder: t.Mapping[str, t.Any],
    on_builder: t.Callable[[str], str],
) -> list[Finding]:
    findings = []
    if not kernel.get("debuginfo") and not has_debuginfod(builder):
        findings.append(
            Finding(
                "debuginfo",
                False,
                f"the builder has no debug information for {release}{silent_servers(builder)}: "
                "only kprobe.*, tracepoints and timers",
                on_builder("debuginfo"),
            )
        )
    if not kernel.get("compiler"):
        origin = kernel.get("compiled_with") or "gcc"
        kind = origin.partition(" ")[0]
        reason = f"the builder has no {kind} to build for {release}, which was compiled with {origin}"
        findings.append(Finding("compiler", True, reason, on_builder(kind if kind == "clang" else "gcc")))
    return findings


def check_versions(
    release: str, stap: str, staprun: str | None, tested_up_to: str | None, distribution: Distribution
) -> list[Finding]:
    """Judge the versions of kernel, stap and staprun together.

    The rules: messages between module and staprun got a new frame in 5.0 (NEWS of SystemTap 5.0); a kernel newer than
    what stap was tested with often builds and then fails to load; 4.x does not build for kernels with the new
    ``task_work_cancel`` (6.1.192 among them).
    """
    findings = []
    runtime = version_tuple(staprun or "")
    if runtime and (version_tuple(stap) >= (5,)) != (runtime >= (5,)):
        findings.append(
            Finding(
                "staprun",
                True,
                f"staprun {staprun} does not understand modules of stap {stap}: the message format changed in 5.0",
                remedy("runtime", distribution, version="5.0 or newer") + " on the host"
                if version_tuple(stap) >= (5,)
                else "use a builder of the same release",
            )
        )
    kernel = version_tuple(release)[:2]
    if tested_up_to and kernel > version_tuple(tested_up_to)[:2]:
        findings.append(
            Finding(
                "stap",
                True,
                f"stap {stap} was tested up to kernel {tested_up_to}, and this is {release}",
                "use a builder with a newer SystemTap",
            )
        )
    if version_tuple(stap) < (5,) and kernel >= (6, 1):
        findings.append(
            Finding(
                "stap",
                True,
                f"stap {stap} does not build for this kernel: task_work_cancel changed",
                "use a builder with SystemTap 5.2 or newer",
            )
        )
    return findings
