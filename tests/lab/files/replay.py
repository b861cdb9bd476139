# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a host of the lab: set parameters with plain writes and with the collection's code, and print both results.

The collection and the file of the loaded module params_test are in the current directory. Standard input is JSON:
``inputs`` (label -> values), ``options`` (label -> other options), ``guessed`` (as ``inputs``, for a host
that has no module information), ``requests`` (rows of label, value, options). Standard output is JSON, a key for each
function.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import struct
import sys
import tempfile
import typing as t

from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.model import wanted_list
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.run import Parameters

RELEASE = os.uname().release
DEFAULTS = {
    "value": None,
    "runtime": True,
    "persist": "none",
    "read_back": "auto",
    "reload": "never",
    "allow_taint": False,
}
IN_MODIFY = 2
TRUE = ["Y", "y", "1", "yes", "on", "true", "t"]
FALSE = ["N", "n", "0", "no", "off", "False"]


def file_of(label: str) -> str:
    return "/sys/module/{}/parameters/{}".format(*label.split(".", 1))


def read(label: str) -> bytes:
    with open(file_of(label), "rb", buffering=0) as stream:
        return stream.read()


def write(label: str, data: bytes) -> None:
    with open(file_of(label), "wb", buffering=0) as stream:
        stream.write(data)


def put_back(label: str, before: bytes) -> None:
    if read(label) != before:
        chosen = re.search(rb"\[(\S+)\]", before)
        write(label, chosen.group(1) if chosen else without_newline(before) or b"\0")


def without_newline(text: bytes) -> bytes:
    """Remove the newline that the kernel adds; a few parameters have none."""
    return text[:-1] if text.endswith(b"\n") else text


def scratch_root(described: bool) -> str:
    """Return a tree with the /sys and /proc of this host, and with its own /etc and /var.

    With ``described``, it has the module information of the host and of params_test.
    """
    top = tempfile.mkdtemp(dir=os.getcwd())
    for name in ("sys", "proc"):
        os.symlink("/" + name, os.path.join(top, name))
    here = os.path.join(top, "lib", "modules", RELEASE)
    for directory in (here, os.path.join(top, "etc", "modprobe.d")):
        os.makedirs(directory)
    if described:
        real = os.path.join("/lib/modules", RELEASE)
        for name in os.listdir(real):
            if name != "modules.dep":
                os.symlink(os.path.join(real, name), os.path.join(here, name))
        with open(os.path.join(real, "modules.dep"), encoding="ascii") as stream:
            text = stream.read()
        with open(os.path.join(here, "modules.dep"), "w", encoding="ascii") as stream:
            stream.write("params_test.ko:\n" + text)
        os.symlink(os.path.join(os.getcwd(), "params_test.ko"), os.path.join(here, "params_test.ko"))
    return top


def parameters(top: str, values: t.Mapping[str, t.Any], **options: t.Any) -> Parameters:
    entries = []
    for label, value in values.items():
        module, name = label.split(".", 1)
        entries.append({**DEFAULTS, "module": module, "name": name, "value": value, **options})
    return Parameters(Root(top), os.uname().machine, wanted_list(entries, "present"), "present")


def replay(top: str, inputs: t.Mapping[str, t.Sequence[str]], options: t.Mapping[str, t.Any]) -> list[list[t.Any]]:
    """Return for each input (label, value, plain result, result of the collection, type or error message, whether a
    second run would change more or a failed run left a change).
    """
    rows = []
    for label, values in inputs.items():
        before = read(label)
        for value in values:
            plain = ours = None
            with contextlib.suppress(OSError):
                write(label, value.encode() or b"\0")
                plain = read(label).decode()
            put_back(label, before)
            try:
                run = parameters(top, {label: value}, **options.get(label, {}))
                kind = run.converge(False)[1]["params"][0]["type"]
                ours = read(label).decode()
                again = bool(run.converge(False)[0]) or read(label).decode() != ours
            except TapvirtError as error:
                kind = error.message
                again = read(label) != before
            put_back(label, before)
            rows.append([label, value, plain, ours, kind, again])
        if read(label) != before:
            raise SystemExit(f"{label} is not as it was")
    return rows


def request_errors(top: str, rows: t.Sequence[t.Sequence[t.Any]]) -> list[str | None]:
    """Return the error message of each row, or ``None``."""
    messages = []
    for label, value, options in rows:
        message = None
        try:
            parameters(top, {label: value}, **options).converge(False)
        except TapvirtError as error:
            message = error.message
        messages.append(message)
    return messages


class Watch:
    """Watch files for writes with inotify(7)."""

    def __init__(self, labels: t.Iterable[str]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        self._labels = {
            libc.inotify_add_watch(self._descriptor, file_of(label).encode(), IN_MODIFY): label for label in labels
        }

    def seen(self) -> list[str]:
        """Return the parameters that were written since the last call."""
        labels = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(self._descriptor, 65536)
                while data:
                    watch, _mask, _cookie, length = struct.unpack_from("iIII", data)
                    labels.append(self._labels[watch])
                    data = data[16 + length :]
        return labels


def writable() -> list[str]:
    labels = []
    for module in sorted(os.listdir("/sys/module")):
        directory = os.path.join("/sys/module", module, "parameters")
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            if os.stat(os.path.join(directory, name)).st_mode & 0o600 == 0o600:
                labels.append(f"{module}.{name}")
    return labels


def spellings(kind: str, text: str) -> list[str]:
    """Return all spellings of the value in a file of this type; custom types have one spelling."""
    if kind in ("bool", "invbool", "bint", "bool_enable_only"):
        return TRUE if text in ("Y", "1") else FALSE
    if kind in ("byte", "short", "ushort", "int", "uint", "long", "ulong", "ullong", "hexint"):
        number = int(text, 0)
        sign, size = ("-", -number) if number < 0 else ("", number)
        same = [str(number), f"{sign}{size:#x}", f"{sign}0{size:o}", f"{number}\n"]
        return [*same, f"{number}\0junk", *([] if sign else [f"+{number}", f"0X{size:X}"])]
    if kind.startswith("array of ") and text:
        columns = [spellings(kind[len("array of ") :], part) for part in text.split(",")]
        turns = range(max(map(len, columns)))
        rows = [[column[turn % len(column)] for column in columns] for turn in turns]
        # A newline, and the text after a zero byte, belong to the whole text and not to an element.
        return [",".join(re.sub(r"[\n\0].*", "", part, flags=re.DOTALL) for part in row) for row in rows]
    return [text]


def own_values(top: str) -> dict[str, t.Any]:
    """Set every parameter to its current value in every spelling; return the planned changes and the writes."""
    texts = {label: without_newline(read(label)).decode() for label in writable()}
    rows = parameters(top, texts).converge(True)[1]["params"]
    ways = {label: spellings(row["type"], texts[label]) for label, row in zip(texts, rows, strict=True)}
    watch = Watch(texts)
    planned = []
    for turn in range(max(len(way) for way in ways.values())):
        values = {label: way[turn % len(way)] for label, way in ways.items()}
        try:
            plan, _result = parameters(top, values).converge(False)
            planned += [[row["what"], values.get(row["what"]), row["before"]] for row in plan.rows()]
        except TapvirtError as error:
            planned.append([error.message])
    written = watch.seen()
    write("params_test.an_int", read("params_test.an_int"))
    return {
        "types": sorted(row["type"] for row in rows),
        "planned": planned,
        "written": written,
        "written_plainly": watch.seen(),
    }


def state() -> str:
    """Return one sum over all that /etc and /var/lib/tapvirt hold, and over the values of all parameters."""
    total = hashlib.sha256()
    for top in ("/etc", "/var/lib/tapvirt"):
        for directory, _names, files in sorted(os.walk(top)):
            for name in sorted(files):
                path = os.path.join(directory, name)
                found = os.lstat(path)
                total.update(f"{path} {found.st_mode} {found.st_mtime_ns}\n".encode())
                if os.path.isfile(path):
                    with open(path, "rb") as stream:
                        total.update(stream.read())
    for label in writable():
        total.update(label.encode() + read(label))
    return total.hexdigest()


def check_mode() -> dict[str, t.Any]:
    """Plan another value for every boolean, persisted too, on the host itself; return its state before and after."""
    values = {}
    for label in writable():
        text = read(label)
        if text in (b"Y\n", b"N\n") and not label.startswith("params_test."):
            values[label] = text == b"N\n"
    before = state()
    plan, _result = parameters("/", values, persist="auto", read_back="exact", allow_taint=True).converge(True)
    return {"planned": len(plan), "values": len(values), "before": before, "after": state()}


def main() -> None:
    work = json.load(sys.stdin)
    described = scratch_root(True)
    json.dump(
        {
            "own_values": own_values(described),
            "check_mode": check_mode(),
            "rows": replay(described, work["inputs"], work["options"]),
            "guessed": replay(scratch_root(False), work["guessed"], work["options"]),
            "requests": request_errors(described, work["requests"]),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
