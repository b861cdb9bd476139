# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host or a builder lacks for its jobs, from what was read of it. Private to the collection."""

from __future__ import annotations

import re
import typing as t

from ...module_utils._core.errors import TapvirtError
from .._format import shorten
from .._trace.builders import asked_builders, choose_builder
from .._transport.edge import ANY, FLAG, NUMBER, TEXT, Each, Need, Odd, parse
from .model import Job, Lack, Row
from .probe import Probe, parse_probe
from .reads import HOST_CACHE, IMAGES

MOST_SKEW_SECONDS = 5.0
LEAST_HOST_BYTES = 128 << 20
LEAST_STORE_BYTES = 512 << 20
LEAST_CACHE_BYTES = 2 << 30
LEAST_IMAGES_BYTES = 1 << 30
_REASON_CHARS = 400
_MIB = 1 << 20

_ANSWER = Need(
    {
        "reached": Need(FLAG),
        "reason": TEXT,
        "output": TEXT,
        "directories": Need([TEXT]),
        "begin": NUMBER,
        "end": NUMBER,
        "results": Each({"failed": ANY, "msg": TEXT, "module_stderr": TEXT, "module_stdout": TEXT}),
    }
)
_FINDINGS = {"host": ANY, "builder": ANY, "missing": [dict.fromkeys(("what", "reason", "remedy"), Need(TEXT))]}

_BECOME = re.compile(r"(?i)\b(sudo|doas|pbrun|dzdo|su|become|privilege escalation|sudoers)\b")
_BECOME_FIX = (
    "let the user become root: give the password with -K, or as ansible_become_password in a vault, or allow sudo"
    " without a password"
)
_ROOT_FIX = "set ansible_become: true"
_UNREACHABLE = (
    (
        re.compile(r"(?i)permission denied|authenticat|too many.*failures|no such identity"),
        "set ansible_user, and put the user's key on the host; try: ssh USER@HOST true",
    ),
    (
        re.compile(r"(?i)host key|identification has changed"),
        "check the host's key and add it to known_hosts; try: ssh HOST true",
    ),
    (
        re.compile(r"(?i)resolve|name or service|nodename"),
        "set ansible_host to an address or a name that the controller can resolve",
    ),
)
_UNREACHABLE_FIX = "start the host, or correct ansible_host and ansible_port; try: ssh HOST true"
_PYTHON = re.compile(r"(?i)interpreter|python|not found|no such file")
_NO_REASON = re.compile(r"MODULE FAILURE|The module failed")
_PYTHON_FIX = (
    "install Python 3.8 or newer on the host (3.9 or newer with ansible-core 2.20 and later), and set"
    " ansible_python_interpreter to its path"
)
_OLD_PYTHON = ", and this collection needs Python"
# What a role of this collection does about a finding, by its check.
_ROLES = {
    "staprun": "the role tapvirt.host.trace_host does this",
    "headers": "the role tapvirt.host.trace_builder does this (trace_builder_kernels)",
    "debuginfo": "the role tapvirt.host.trace_builder does this (trace_builder_kernels, or trace_builder_debuginfod)",
    "compiler": "the role tapvirt.host.trace_builder does this (trace_builder_kernels)",
}
_BINDING = "can import 'libvirt'"
_HELPS = re.compile(r"\s*What helps: (.*?)\.?\Z", re.DOTALL)
_DAEMON_FIX = (
    "start libvirt: systemctl enable --now libvirtd.socket, or virtqemud.socket where libvirt has a daemon for each"
    " driver; the role tapvirt.host.virt_host does this"
)


def judge_host(
    answer: t.Any, jobs: t.Sequence[Job], *, builders: t.Mapping[str, Row], chosen: str = "", signs: bool = False
) -> list[Lack]:
    """Return what a host lacks for its jobs.

    :param answer: what the action ``preflight_read`` returned; None where it did not.
    :param builders: the usable builders: name -> what ``stap_host_info`` returned as ``builder``. Empty: nothing is
        said about builders.
    :param chosen: the host's own variable ``trace_builder``, if it is set.
    :param signs: whether its ``trace_sign`` is true.
    """
    every = tuple(jobs)
    known, probe, lacks = _read(answer, every)
    if known is None or probe is None:
        return lacks
    # Libvirt itself decides who may manage domains.
    lacks += _judge_root(probe, tuple(job for job in every if job != "domains"))
    if "trace" in every:
        lacks += _judge_trace(answer["results"].get("stap_host_info", {}), probe.uid == 0, builders, chosen, signs)
        lacks += _judge_security(probe)
        lacks += _judge_space(probe, HOST_CACHE, LEAST_HOST_BYTES, "trace", blocks=True)
        lacks += _judge_clock(known, probe)
    if "domains" in every:
        lacks += _judge_libvirt(known["results"].get("libvirt_domain_info", {}), probe.uid == 0)
        if not probe.has_kvm:
            fix = "load kvm_intel or kvm_amd, or switch on virtualization in the firmware or for this guest"
            reason = "/dev/kvm does not exist: only domains without KVM (type qemu, xen or lxc) can start"
            lacks.append(Lack(("domains",), False, reason, fix))
        lacks += _judge_space(probe, IMAGES, LEAST_IMAGES_BYTES, "domains", blocks=False)
    return lacks


def judge_builder(answer: t.Any, store: str) -> tuple[list[Lack], Row | None]:
    """Return what a builder lacks, and what it can build: what ``stap_host_info`` returned as ``builder``, or None.

    :param answer: what the action ``preflight_read`` returned.
    :param store: the directory of its store.
    """
    known, probe, lacks = _read(answer, ("trace",))
    if known is None or probe is None:
        return lacks, None
    result = answer["results"].get("stap_host_info", {})
    if result.get("failed"):
        return [*_judge_root(probe, ("trace",)), *_unread("what can be built", result, probe.uid == 0)], None
    try:
        found = parse(result, _FINDINGS)
    except Odd as error:
        return [*lacks, _odd(("trace",), error)], None
    lacks += _judge_root(probe, ("trace",))
    for row in found.get("missing") or ():
        if row["what"] in ("toolchain", "compiler"):
            fix = f"{_clean(row['remedy'])}; the role tapvirt.host.trace_builder does this"
            lacks.append(Lack(("trace",), True, _clean(row["reason"]), fix))
    lacks += _judge_space(probe, store, LEAST_STORE_BYTES, "trace", blocks=True)
    lacks += _judge_space(probe, HOST_CACHE, LEAST_CACHE_BYTES, "trace", blocks=False)
    lacks += _judge_clock(known, probe)
    builder = found.get("builder")
    is_usable = isinstance(builder, t.Mapping) and not any(lack.blocks for lack in lacks)
    return lacks, t.cast("Row", builder) if is_usable else None


def _read(answer: t.Any, jobs: tuple[Job, ...]) -> tuple[dict[str, t.Any] | None, Probe | None, list[Lack]]:
    """Return an answer and what its command printed, or why nothing else can be read."""
    if answer is None:
        return None, None, [Lack(jobs, True, "the host was not read", "start the playbook again")]
    try:
        known = parse(answer, _ANSWER)
    except Odd as error:
        return None, None, [_odd(jobs, error)]
    reason = _clean(known.get("reason") or "")
    if not known["reached"]:
        return None, None, [_unreachable(jobs, reason)]
    probe = parse_probe(known.get("output") or "", known["directories"])
    if probe is None:
        fix = _BECOME_FIX if _BECOME.search(reason) else "log in to the host and run: sh -c 'id -u'"
        return None, None, [Lack(jobs, True, f"no command can be run: {reason or 'the shell printed nothing'}", fix)]
    facts = known["results"].get("kernel_facts", {})
    if facts.get("failed"):
        return None, None, [_no_python(jobs, facts)]
    return known, probe, []


def _unreachable(jobs: tuple[Job, ...], reason: str) -> Lack:
    """Return why a host does not answer. What only names the host is left out, so that equal causes are one."""
    if _BECOME.search(reason) and "onnect" not in reason:
        return Lack(jobs, True, f"the user cannot become root: {reason}", _BECOME_FIX)
    cause = reason.rstrip(". ").rpartition(": ")[2] or "no reason was given"
    fix = next((fix for pattern, fix in _UNREACHABLE if pattern.search(reason)), _UNREACHABLE_FIX)
    return Lack(jobs, True, f"no answer: {cause}", fix)


def _no_python(jobs: tuple[Job, ...], result: Row) -> Lack:
    """Return why the first module, which has no needs but Python, failed."""
    # Ansible's own message names no reason where no Python ran at all.
    said = next(iter(str(result.get("module_stderr") or "").strip().splitlines()), "")
    message = _clean(said if said and _NO_REASON.match(str(result.get("msg"))) else str(result.get("msg") or ""))
    printed = " ".join(str(result.get(key) or "") for key in ("msg", "module_stderr", "module_stdout"))
    if _PYTHON.search(printed):
        first = message.partition(_OLD_PYTHON)[0].partition(". ")[0].rstrip(".")
        return Lack(jobs, True, f"no usable Python: {first}", _PYTHON_FIX)
    return Lack(jobs, True, f"no module can be run: {message}", "run: ansible HOST -m tapvirt.host.kernel_facts -vvv")


def _judge_root(probe: Probe, jobs: tuple[Job, ...]) -> list[Lack]:
    if probe.uid == 0 or not jobs:
        return []
    return [Lack(jobs, True, "tasks do not run as root", _ROOT_FIX, f"uid {probe.uid}")]


def _unread(what: str, result: Row, is_root: bool) -> list[Lack]:
    """Return why a module failed; a user who is not root has one reason already."""
    if not is_root:
        return []
    message = _clean(result.get("msg") or "no reason was given")
    return [Lack(("trace",), True, f"{what} cannot be read: {message}", "correct what the message names")]


def _judge_trace(result: Row, is_root: bool, builders: t.Mapping[str, Row], chosen: str, signs: bool) -> list[Lack]:
    """Return what speaks against tracing a host, by itself and with the builders.

    :param result: what ``stap_host_info`` returned.
    """
    if result.get("failed"):
        return _unread("whether the host can be traced", result, is_root)
    asked = asked_builders([{"item": name, "builder": facts} for name, facts in builders.items()], chosen)
    try:
        choice = choose_builder(result.get("host"), asked)
    except (Odd, TapvirtError) as error:
        return [_odd(("trace",), error)]
    lacks = []
    for finding in [*choice.own, *choice.of_builder]:
        if finding.check == "privilege" and not is_root:
            continue
        if finding.check == "signing" and not finding.blocks and signs:
            continue
        # Scripts on functions need debug information. A module without a signature would be refused.
        blocks = finding.blocks or finding.check in ("debuginfo", "signing")
        fix = finding.remedy.replace("have stap_module sign (its option sign)", "set trace_sign: true, to sign")
        lacks.append(Lack(("trace",), blocks, _clean(finding.reason), _with_role(_clean(fix), finding.check)))
    if builders and not choice.builder:
        fix = _with_role(_clean("; ".join(choice.remedies)), "headers")
        lacks.append(Lack(("trace",), True, _clean("; ".join(choice.reasons)), fix))
    return lacks


def _with_role(fix: str, check: str) -> str:
    return f"{fix}; {_ROLES[check]}" if check in _ROLES and "trace_builder" not in fix else fix


def _judge_security(probe: Probe) -> list[Lack]:
    if probe.refuses_modules:
        reason = "SELinux refuses to load modules: the boolean secure_mode_insmod is on"
        return [Lack(("trace",), True, reason, "setsebool secure_mode_insmod off")]
    if probe.enforces_selinux:
        reason = "SELinux is enforcing, and its policy decides whether staprun may load modules"
        fix = "nothing in usual policies; if a run is refused, see: ausearch -m avc -ts recent"
        return [Lack(("trace",), False, reason, fix)]
    return []


def _judge_space(probe: Probe, directory: str, least: int, job: Job, *, blocks: bool) -> list[Lack]:
    free = probe.free_bytes.get(directory)
    if free is None or free >= least:
        return []
    reason = f"less than {least // _MIB} MiB are free for {directory}"
    return [
        Lack((job,), blocks, reason, f"free space in the file system of {directory}; see: df -h", f"{free // _MIB} MiB")
    ]


def _judge_clock(known: Row, probe: Probe) -> list[Lack]:
    """Return a note where the clock differs from that of the controller by more than the way there explains."""
    begin, end = known.get("begin"), known.get("end")
    if begin is None or end is None or probe.time is None:
        return []
    ahead = probe.time + 0.5 - (begin + end) / 2  # date +%s cuts the second
    if abs(ahead) - 0.5 - (end - begin) / 2 <= MOST_SKEW_SECONDS:
        return []
    way = "ahead" if ahead > 0 else "behind"
    reason = f"the clock differs from the controller's by more than {MOST_SKEW_SECONDS:.0f} s"
    fix = "synchronize the clocks: systemctl enable --now chronyd (or chrony, systemd-timesyncd)"
    return [Lack(("trace",), False, reason, fix, f"{abs(ahead):.0f} s {way}")]


def _judge_libvirt(result: Row, is_root: bool) -> list[Lack]:
    """Return why the domains of a host cannot be listed."""
    if not result.get("failed"):
        return []
    message = _clean(result.get("msg") or "no reason was given")
    helps = _HELPS.search(message)
    if _BINDING in message:
        fix = helps[1] if helps else "install libvirt's binding for Python"
        reason = "libvirt's binding for Python is not installed"
        return [Lack(("domains",), True, reason, f"{fix}; the role tapvirt.host.virt_host does this")]
    fix = _DAEMON_FIX if is_root else f"{_ROOT_FIX}, or put the user into the group libvirt; {_DAEMON_FIX}"
    return [Lack(("domains",), True, f"libvirt does not answer: {message}", fix)]


def _odd(jobs: tuple[Job, ...], error: Exception) -> Lack:
    text = str(error).replace("trace_builder_for: ", "")
    reason = _clean(f"what the host returned cannot be read: {text}")
    return Lack(jobs, True, reason, "run: ansible HOST -m tapvirt.host.stap_host_info -vvv")


def _clean(text: str) -> str:
    """Return a text of a host in one line, bounded and printable."""
    line = " ".join(text.split()).encode(errors="replace").decode()
    return shorten("".join(char if char.isprintable() else "?" for char in line), _REASON_CHARS).rstrip(".")
