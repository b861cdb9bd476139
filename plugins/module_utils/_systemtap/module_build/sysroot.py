# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The root of links in which stap finds what belongs to a kernel, whichever way its packages laid it out.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

from ..._core.root import Root
from ..._core.write import make_directories
from .debuginfo import DebugFiles
from .store import Store
from .toolchain import Kernel, expand, headers_of, modules_of

_DEBUG_MODULES = ("usr/lib/debug/lib/modules/{0}/kernel", "usr/lib/debug/usr/lib/modules/{0}/kernel")
_SYMBOL_MAPS = ("usr/lib/debug/boot/System.map-{0}", "usr/lib/debug/lib/modules/{0}/System.map", "boot/System.map-{0}")
_TRACE_HEADERS = ("include/trace/events", "arch/x86/include/asm/trace")
_COMMON_MAKEFILE = re.compile(r"^include\s+/?(\S+)/Makefile\s*$", re.MULTILINE)
_TRACE_SYSTEM = re.compile(r"^#define TRACE_SYSTEM (\w+)", re.MULTILINE)
# In a group of points, "kernel." stands apart. A name too many costs time only.
_TRACEPOINT = re.compile(r'\btrace\s*\(\s*"(?:(\w+):)?')
# Debian ships a placeholder of 83 bytes in the place of /boot/System.map.
_LEAST_REAL_MAP_BYTES = 4096


def make_sysroot(store: Store, kernel: Kernel, root: Root, files: DebugFiles | None = None) -> str:
    """Make the links through which stap finds headers, debug information and symbols, whichever way they were packed.

    Debian compresses modules and leaves a placeholder for System.map; stap looks for neither where the -dbg package
    puts them. A root of links costs nothing and changes nothing outside the store.

    :param files: debug information by build-id, which takes the place of the builder's own. Its root is another one.
    """
    base = os.path.join(store.directory, ".root") if files is None else _debug_root(store, kernel, files)
    own, headers = modules_of(root, kernel.release), headers_of(root, kernel.release)
    modules = os.path.join(base, "lib/modules", kernel.release)
    links = {os.path.join(modules, "build"): root.path(headers)}
    if files is None:
        links[os.path.join(base, "usr/lib/debug")] = root.path("usr/lib/debug")
        links[os.path.join(modules, "kernel")] = _modules_with_debuginfo(base, root, kernel.release, own)
        if kernel.vmlinux is not None:
            # In usr/lib/debug/boot, the only place of Ubuntu, a stap with a sysroot does not find it.
            links[os.path.join(modules, "vmlinux")] = kernel.vmlinux
    else:
        _link_files(modules, files)
    # Fedora and SUSE keep the map beside the modules, Arch in the headers.
    for name in [*expand(_SYMBOL_MAPS, kernel.release), *(f"{place}/System.map" for place in (own, headers))]:
        if root.exists(name) and os.path.getsize(root.path(name)) > _LEAST_REAL_MAP_BYTES:
            links[os.path.join(base, "boot", "System.map-" + kernel.release)] = root.path(name)
            break
    for link, target in links.items():
        _link(link, target)
    return base


def _debug_root(store: Store, kernel: Kernel, files: DebugFiles) -> str:
    """Return the root for debug information by build-id: the kernel's, as stap prepares itself again for each root.

    A set of modules has a root of its own where a wildcard could find others, or another build of a module is there.
    """
    roots = os.path.join(store.directory, ".debuginfo", "roots")
    base = os.path.join(roots, files.build_id)
    modules = os.path.join(base, "lib/modules", kernel.release, "kernel")
    others = (_is_another(os.path.join(modules, name + ".ko"), path) for name, path in files.modules.items())
    return base if files.exact and not any(others) else os.path.join(roots, files.name)


def _is_another(path: str, wanted: str) -> bool:
    return os.path.exists(path) and not os.path.samefile(path, wanted)


def _link_files(modules: str, files: DebugFiles) -> None:
    """Put files of the cache into a root as hard links: a path outside of it would become part of the module."""
    places = {os.path.join(modules, "kernel", name + ".ko"): path for name, path in files.modules.items()}
    places[os.path.join(modules, "vmlinux")] = files.vmlinux
    for place, path in places.items():
        make_directories(os.path.dirname(place))
        if os.path.exists(place) and os.path.samefile(place, path):
            continue
        temporary = f"{place}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # a killed build of the same number left it
        os.link(path, temporary)
        os.replace(temporary, place)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # of two links to one file, the rename keeps both


def _modules_with_debuginfo(base: str, root: Root, release: str, own: str) -> str:
    """Return the directory in which stap finds the modules of a kernel.

    Debian and Ubuntu package modules once more, whole, with debug information. Red Hat and SUSE package NAME.ko.debug,
    to which the kernel's own modules lead by build-id. On a builder without this kernel there are no such modules: each
    NAME.ko.debug gets the name of its module then.
    """
    trees = [root.path(name) for name in expand(_DEBUG_MODULES, release)]
    whole = next((tree for tree in trees if next(_files(tree, ".ko"), None)), None)
    modules = root.path(own + "/kernel")
    if whole or os.path.isdir(modules):
        return whole or modules
    # Outside of lib/modules, where stap would find each module twice.
    directory = os.path.join(base, "split", release)
    split = {os.path.relpath(path, tree): path for tree in reversed(trees) for path in _files(tree, ".ko.debug")}
    for name, path in split.items():
        _link(os.path.join(directory, name[: -len(".debug")]), path)
    return directory if split else modules


def _files(tree: str, ending: str) -> t.Iterator[str]:
    for directory, _directories, names in os.walk(tree):
        yield from (os.path.join(directory, name) for name in names if name.endswith(ending))


def link_trace_headers(sysroot: str, release: str, root: Root, text: str) -> None:
    """Link the headers of the tracepoints that a text names into a sysroot: a script with its tapsets, or a point.

    Debian keeps a kernel's headers in two trees, and from a sysroot stap looks into the first only. It compiles every
    header of tracepoints that it finds, which takes minutes for all 200 of a kernel: so those of the named systems are
    linked (``kernel.trace("sched:sched_switch")``: sched), all of them where a tracepoint is named without its system.
    """
    asked = set(_TRACEPOINT.findall(text))
    included = _COMMON_MAKEFILE.search(root.read_text_or(headers_of(root, release) + "/Makefile") or "")
    if not asked or included is None:
        return
    for folder in _TRACE_HEADERS:
        tree = f"{included.group(1)}/{folder}"
        for name in root.listdir(tree):
            systems = set(_TRACE_SYSTEM.findall(root.read_text_or(f"{tree}/{name}") or ""))
            if "" in asked or systems & asked:
                link = os.path.join(sysroot, "lib/modules", release, "source", folder, name)
                _link(link, root.path(f"{tree}/{name}"))


def _link(link: str, target: str) -> None:
    make_directories(os.path.dirname(link))
    if not os.path.islink(link) or os.readlink(link) != target:
        temporary = f"{link}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # a killed build left it
        os.symlink(target, temporary)
        os.replace(temporary, link)
