# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loading a module again with other parameters, without losing what it had: only when nothing uses it.

Private to the collection. What the kernel counts (``refcnt``, ``holders``) is not all: a driver may be unloaded under
its devices, and a network interface disappears with its module whether it is up or not.
"""

from __future__ import annotations

import array
import fcntl
import os
import re
import socket
import struct
import time
import typing as t

from ..._core.command import run
from ..._core.errors import TapvirtError
from ..._core.root import Root
from ..modules import modprobe_d
from ..modules.modinfo import canonical
from .model import Item, parameter_file
from .values import Value, is_put_back, read_value
from .write import write_parameter

_LOAD_SECONDS = 120.0
_IN_USE_SECONDS = 20.0
_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 3
_DRVINFO_BYTES = 196
_UP = 1
_FEW = 5
# What some drivers of virtual interfaces call themselves, although no link type of their module has that name.
_OTHER_NAMES = {"802.1Q VLAN Support": "vlan"}


def reload_blockers(root: Root, module: str, lines: t.Sequence[modprobe_d.Line], aliases: str) -> list[str]:
    """Return what uses a module, or else keeps it from being unloaded and loaded again, in words.

    :param lines: the commands of modprobe.d, :param aliases: the text of ``modules.alias``.
    """
    found = list(_users(root, module))
    if not found:
        found += [f"it drives {_some(devices)}" for devices in [_devices(root, module)] if devices]
        up = sorted(_interfaces(root, _link_types(module, aliases)))
        found += [f"the network interface {_some(up)} is up"] if up else []
    if re.search(rf"^{re.escape(module)} .*\[permanent\]", root.read_text_or("proc/modules") or "", re.M):
        found.append("it cannot be unloaded (permanent)")
    if (root.read_text_or("proc/sys/kernel/modules_disabled") or "0").strip() != "0":
        found.append("no module can be loaded any more (kernel.modules_disabled)")
    for line in lines:
        if line.command in ("install", "remove") and [canonical(word) for word in line.rest.split()[:1]] == [module]:
            found.append(f"{line.source} says: {line.command} {line.rest}")
    return found


def reload_module(root: Root, module: str, keep: t.Mapping[str, tuple[Item, Value]]) -> None:
    """Unload a module and load it again; ``keep`` is what parameters must be afterwards whatever else is configured.

    A value of ``keep`` that the load did not give is written, or, where it cannot be, given to a second load.

    :raises TapvirtError: it was not unloaded, not loaded again, or a value of ``keep`` was lost.
    """
    unload(module)
    load_module(root, module, keep)


def load_module(root: Root, module: str, keep: t.Mapping[str, tuple[Item, Value]]) -> None:
    """Load a module and see to it that the parameters are as ``keep`` says.

    :raises TapvirtError: it was not loaded, or a value was lost.
    """
    _load(module, [])
    lost = _put_back(root, keep)
    if lost:
        unload(module)
        _load(module, [f"{name}={value.text}" for name, value in lost.items()])
        lost = _put_back(root, keep)
    if lost:
        raise TapvirtError(
            f"The module {module} was loaded again, but lost the values of "
            f"{', '.join(f'{name} ({value.text})' for name, value in sorted(lost.items()))}.",
            module=module,
            lost=sorted(lost),
        )


def recover(root: Root, module: str, keep: t.Mapping[str, tuple[Item, Value]]) -> list[str]:
    """Load a module if it is not loaded, and write what differs; return what differs and cannot be written.

    :raises TapvirtError: it was not loaded, or a value was lost.
    """
    if not root.exists("sys/module/" + module):
        load_module(root, module, keep)
    return sorted(_put_back(root, keep))


def unload(module: str) -> None:
    """Unload this one module, not the ones that it needs.

    :raises TapvirtError: the kernel or rmmod(8) refused.
    """
    give_up = time.monotonic() + _IN_USE_SECONDS
    while True:
        # modprobe -r would take along every module that nothing else needs, with its parameters.
        done = run(["rmmod", module], timeout_seconds=_LOAD_SECONDS)
        # Who looks at new devices, as udev does, holds them for a moment.
        if done.rc == 0 or "in use" not in done.stderr or time.monotonic() > give_up:
            break
        time.sleep(0.2)
    if done.rc != 0:
        raise TapvirtError(f"The module {module} could not be unloaded: {_last_line(done.stderr)}", module=module)


def _load(module: str, arguments: t.Sequence[str]) -> None:
    done = run(["modprobe", module, *arguments], timeout_seconds=_LOAD_SECONDS)
    if done.rc != 0:
        raise TapvirtError(f"The module {module} could not be loaded: {_last_line(done.stderr)}", module=module)


def _put_back(root: Root, keep: t.Mapping[str, tuple[Item, Value]]) -> dict[str, Value]:
    """Write what differs; return what differs and cannot be written."""
    lost: dict[str, Value] = {}
    for name, (item, value) in keep.items():
        path = parameter_file(item.module, name)
        text = root.read_text_or(path)
        if text is None or is_put_back(item.kind, read_value(item.kind, text, item.word_bits), value):
            continue
        if not os.stat(root.path(path)).st_mode & 0o222:
            lost[name] = value
            continue
        try:
            write_parameter(root.path(path), "" if value.key is None else value.text)
        except OSError:
            lost[name] = value
    return lost


def _users(root: Root, module: str) -> t.Iterator[str]:
    holders = root.listdir(f"sys/module/{module}/holders")
    if holders:
        yield f"it is used by {_some(holders)}"
    count = root.read_text_or(f"sys/module/{module}/refcnt")
    if count is None:
        yield "this kernel cannot unload modules"
    elif int(count) > len(holders):
        yield f"it is in use ({int(count) - len(holders)} times: open devices, mounts, sockets or the like)"


def _devices(root: Root, module: str) -> list[str]:
    """Return the devices that are bound to the module's drivers."""
    found: set[str] = set()
    drivers = f"sys/module/{module}/drivers"
    for driver in root.listdir(drivers):
        directory = f"{drivers}/{driver}"
        names = [name for name in root.listdir(directory) if name != "module"]
        found |= {name for name in names if os.path.islink(root.path(f"{directory}/{name}"))}
    return sorted(found)


def _link_types(module: str, aliases: str) -> set[str]:
    """Return what a module's network interfaces may say that they are: its name, and its aliases for link types."""
    types = re.findall(rf"^alias rtnl-link-(\S+) {re.escape(module)}$", aliases, re.M)
    return {module, *(canonical(name) for name in types)}


def _interfaces(root: Root, types: t.Collection[str]) -> t.Iterator[str]:
    """Yield the network interfaces of these types that are up."""
    for name in root.listdir("sys/class/net"):
        directory = f"sys/class/net/{name}/"
        flags = int(root.read_text_or(directory + "flags") or "0", 16)
        if not flags & _UP:
            continue
        kind = re.search(r"^DEVTYPE=(\S+)$", root.read_text_or(directory + "uevent") or "", re.M)
        driver = _driver(name)
        named = {kind.group(1) if kind else "", canonical(_OTHER_NAMES.get(driver, driver))}
        if named & set(types):
            yield name


def _driver(interface: str) -> str:
    """Return what a network interface's driver calls itself (``ethtool -i``); empty where it says nothing."""
    answer = array.array("B", struct.pack("I", _ETHTOOL_GDRVINFO) + bytes(_DRVINFO_BYTES - 4))
    request = struct.pack("16sP", interface.encode("ascii", "replace")[:15], answer.buffer_info()[0])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCETHTOOL, request)
    except OSError:
        return ""
    return answer.tobytes()[4:36].partition(b"\0")[0].decode("ascii", "replace")


def _some(names: t.Sequence[str]) -> str:
    left = len(names) - _FEW
    return ", ".join(names[:_FEW]) + (f" and {left} more" if left > 0 else "")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"
