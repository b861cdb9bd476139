# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which probe points SystemTap's language has: their forms, the words they begin with, and what a tapset adds.

Private to the collection. The forms are those that ``stap --dump-probe-types`` of release 5.6 lists, plus the profile
timers of its tapset. Forms that stap writes for itself, with ``.pc(number)`` and ``.die(number)`` at the end, are
accepted but never proposed.
"""

from __future__ import annotations

import fnmatch
import re
import typing as t

_NUMBERED = ("", ".call", ".exported", ".return", ".return.maxactive(number)")
_NAMED = (
    ".inline",
    ".callees",
    ".callees(number)",
    ".callee(string)",
    ".callee(string).call",
    ".callee(string).return",
    ".label(string)",
)
_MARKS = (
    ".mark(string)",
    ".provider(string).mark(string)",
    ".plt",
    ".plt.return",
    ".plt(string)",
    ".plt(string).return",
)
UNITS = ("jiffies", "ms", "msec", "ns", "nsec", "s", "sec", "us", "usec")

# First words of the aliases in SystemTap's own tapset (stap --dump-probe-aliases), and of probes in interpreters and
# in files of a debuginfod server, whose support not every stap has. What follows them is known to the builder only.
_OPEN_FAMILIES = frozenset(
    "debuginfod dw_kprocess dw_syscall generic init input ioblock ioblock_trace ioscheduler ioscheduler_trace ipmib "
    "irq_handler java json_data kprocess linuxmib nd1_syscall nd2_syscall nd_syscall netdev nfs nfsd nfsderr "
    "oneshot prometheus python python2 python3 scheduler scsi signal socket softirq stap staprun sunrpc syscall "
    "syscall_any tcp tcpmib tp_kprocess tp_syscall tty udp vfs vm workqueue".split()
)
# What begins with the word of another kind of probe and is known to some stap only: aliases of the tapset, probes of
# the BPF runtime (kernel.lsm) and of old kernels (kernel.mark). That word, and the words after it.
_ALIASES_WITHIN = {
    "kernel": frozenset(("lsm", "mark")),
    "perf": frozenset(("hw", "hw_cache", "sw")),
    "netfilter": frozenset(("arp", "bridge", "ip", "ipv4", "ipv6")),
    "process": frozenset(("insn",)),
}
# What stap writes behind a resolved point, and behind which words.
_EXACT = (("pc(number)", "die(number)"), ("die(number)", "pc(number)"))
_BEFORE_EXACT = frozenset("function statement call exported return maxactive inline callee label nearest".split())
#: Names that stand for many (fnmatch(3)).
WILD = re.compile(r"[*?\[]")
# Kinds of probes that fire at no place in the code: when a time, a counter or an event of its own has come.
_ASYNCHRONOUS = frozenset(("begin", "end", "error", "timer", "never", "procfs", "perf", "netfilter", "xdp"))


def _shapes() -> list[str]:
    shapes = ["never", "timer.hz(number)"]
    shapes += ["timer.profile" + end for end in ("", ".tick", ".freq", ".freq.hz(number)")]
    for place in ("kernel", "module(string)"):
        shapes += [*_function_shapes(place), place + ".tracepoint(string)"]
    shapes += ["kernel.statement(number).absolute", "kprobe.statement(number).absolute", "kernel.trace(string)"]
    shapes += [place + argument for place in ("kernel.xdp", "xdp") for argument in ("", "(string)")]
    shapes += _data_shapes("kernel", ("string", "number", "number).length(number"))
    for place in ("kprobe.function(string)", "kprobe.module(string).function(string)"):
        shapes += [place + suffix for suffix in _NUMBERED if suffix != ".exported"]
    shapes += [word + argument for word in ("begin", "end", "error") for argument in ("", "(number)")]
    for unit in UNITS:
        shapes += [f"timer.{unit}(number)", f"timer.{unit}(number).randomize(number)"]
    for name in ("procfs", "procfs(string)", "procfs.umask(number)", "procfs(string).umask(number)"):
        shapes += [name + ".read", name + ".read.maxsize(number)", name + ".write"]
    counter = "perf.type(number).config(number)"
    ends = ("", ".sample(number)", ".hz(number)", ".counter(string)", ".process", ".process(string)")
    shapes += [counter + end for end in (*ends, ".process(string).counter(string)")]
    for pair in ("hook(string).pf(string)", "pf(string).hook(string)"):
        shapes += [f"netfilter.{pair}", f"netfilter.{pair}.priority(string)"]
    return shapes + _process_shapes()


def _function_shapes(place: str) -> list[str]:
    shapes = []
    for argument in ("string", "number"):
        statement = f"{place}.statement({argument})"
        shapes += [f"{place}.function({argument}){suffix}" for suffix in _NUMBERED]
        shapes += [statement, statement + ".nearest"]
    return shapes + [place + ".function(string)" + suffix for suffix in _NAMED]


def _data_shapes(place: str, arguments: t.Iterable[str]) -> list[str]:
    return [f"{place}.data({argument}).{way}" for argument in arguments for way in ("rw", "write")]


def _process_shapes() -> list[str]:
    """Return the forms of probes in programs: by path or build-id, by process id, or of the traced command."""
    whole = (".begin", ".end", ".thread.begin", ".thread.end", ".syscall", ".syscall.return")
    shapes = ["process(number).statement(number).absolute", "process(number).statement(number).absolute.return"]
    for place in ("process", "process(string)", "process(number)"):
        shapes += [place + suffix for suffix in (*whole, *_MARKS)] + _function_shapes(place)
        if place != "process(number)":
            library = place + ".library(string)"
            shapes += _function_shapes(library) + [library + suffix for suffix in _MARKS]
    shapes += _data_shapes("process", ("string", "number", "string).length(number", "number).length(number"))
    return [shape for shape in shapes if "maxactive" not in shape]


FORMS = tuple(_shapes())
_STEPS = [tuple(shape.split(".")) for shape in FORMS]


def first_words() -> list[str]:
    """Return the words that a probe point can begin with, as far as SystemTap itself comes with them."""
    return sorted({steps[0].split("(")[0] for steps in _STEPS} | _OPEN_FAMILIES)


def is_alias(words: t.Sequence[str]) -> bool:
    """Tell whether only a tapset knows what a probe point of these words is.

    What begins with an underscore is a tapset's own alias (``_vfs.read``, ``__scheduler.ctxswitch.tp``).
    """
    if words[0] in _OPEN_FAMILIES or words[0].startswith("_") or WILD.search(words[0]) is not None:
        return True
    return len(words) > 1 and words[1] in _ALIASES_WITHIN.get(words[0], ())


def is_synchronous(family: str) -> bool:
    """Tell whether a kind of probe fires at a place in the code (man stapprobes, SYNTAX)."""
    return family not in _ASYNCHRONOUS


def following(done: t.Sequence[str]) -> list[str]:
    """Return what can stand after some parts of a probe point, given as ``function(string)``, ``call``, ..."""
    return sorted({steps[len(done)] for steps in _STEPS if len(steps) > len(done) and _begins(steps, done)})


def can_begin(done: t.Sequence[str]) -> bool:
    """Tell whether some probe point begins with these parts."""
    stem = _without_exact(done, (1, 2))
    if stem is not None:
        return is_complete(stem)
    return any(len(steps) >= len(done) and _begins(steps, done) for steps in _STEPS)


def is_complete(done: t.Sequence[str]) -> bool:
    """Tell whether these parts are a whole probe point."""
    done = _without_exact(done, (2,)) or done
    return any(len(steps) == len(done) and _begins(steps, done) for steps in _STEPS)


def _without_exact(done: t.Sequence[str], lengths: t.Iterable[int]) -> t.Sequence[str] | None:
    """Return what stands before the address and the offset of debug information; None where these are not."""
    for length in lengths:
        stem = done[:-length]
        if tuple(done[-length:]) not in {pair[:length] for pair in _EXACT} or not stem:
            continue
        words = [part.split("(")[0] for part in stem]
        is_function = ("function" in words or "statement" in words) and words[0] != "kprobe"
        if is_function and words[-1] in _BEFORE_EXACT and "callee" not in words[:-1] and "absolute" not in words:
            return stem
    return None


def has_double_star(parts: t.Sequence[str]) -> bool:
    """Tell whether a part stands for any number of parts (``**``)."""
    return any("**" in part for part in parts)


def _begins(steps: t.Sequence[str], done: t.Sequence[str]) -> bool:
    return all(
        step == part or (WILD.search(part) is not None and fnmatch.fnmatchcase(step, part))
        for step, part in zip(steps, done)
    )
