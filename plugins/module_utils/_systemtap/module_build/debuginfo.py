# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a build's debug information comes from: the builder's packages, or a cache of what debuginfod servers sent.

Private to the collection. The cache is part of the store (see store.py) and bounded by size and age. A file in it was
checked, is complete, and stays while a build holds its lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import os
import re
import shutil
import stat
import time
import typing as t

from ..._core.errors import InvalidInput, TapvirtError
from ..._core.root import Root
from ..._core.write import make_directories, sync_directory
from ..._kernel.image.elf import ElfError
from ..._kernel.image.identity import file_build_id
from ..language.probed_modules import is_wild
from .debuginfod import BUILD_ID, Debuginfod, DebuginfoError, check_build_id, read_debuginfod
from .download import fetch
from .store import Store
from .toolchain import Kernel

#: What stays free on the file system: a build writes about 100 MB into the store, and the host needs some space.
RESERVE_BYTES = 512 << 20
_CACHE = ".debuginfo"
_ATTEMPTS = 3
# Part of a path on the builder, and given by the traced host.
_MODULE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


@dataclasses.dataclass(frozen=True)
class DebugInfo:
    """The debug information that a build is to use.

    ``build_id`` is the traced kernel's (``None``: not given), ``modules`` are the build-ids of the modules that the
    script probes, by name, which it names without a wildcard if it is ``exact``. ``source`` is ``None`` for what the
    builder has of its own, whose build-id is ``own`` where it has one.
    """

    build_id: str | None = None
    modules: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    exact: bool = True
    source: Debuginfod | None = None
    own: str | None = None

    def wanted(self, release: str) -> dict[str, str]:
        """Return the build-ids of the files to fetch, each with what it belongs to, in words."""
        if self.source is None or self.build_id is None:
            return {}
        modules = {build_id: f"the module {name} of {release}" for name, build_id in sorted(self.modules.items())}
        return {self.build_id: f"the kernel {release}", **modules}


@dataclasses.dataclass(frozen=True)
class DebugFiles:
    """Files of the cache: the kernel's build-id and path, and the paths of modules by name; see DebugInfo."""

    build_id: str
    vmlinux: str
    modules: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    exact: bool = True

    @property
    def name(self) -> str:
        """Return a name for this set of files, which begins with the kernel's build-id."""
        if not self.modules:
            return self.build_id
        paths = "\n".join(f"{name} {path}" for name, path in sorted(self.modules.items()))
        return f"{self.build_id}-{hashlib.sha256(paths.encode()).hexdigest()[:16]}"


def choose_debug_info(
    params: t.Mapping[str, t.Any], kernel: Kernel, probed: t.Mapping[str, bool], needed: bool = True
) -> DebugInfo:
    """Return where the debug information comes from; the builder's own of the traced kernel has priority.

    :param params: the options ``build_id``, ``module_build_ids`` and ``debuginfod`` of a module.
    :param probed: what :func:`probed_modules` returns.
    :param needed: whether the script may need debug information at all; nothing is fetched for one that does not.
    :raises InvalidInput: an option is not acceptable, or does not suffice; the builder has that of another kernel.
    """
    source = read_debuginfod(params["debuginfod"])
    build_id = check_build_id("build_id", params["build_id"]) if params["build_id"] else None
    given = _read_module_ids(params["module_build_ids"] or {})
    modules = {name: text for name, text in given.items() if any(fnmatch.fnmatchcase(name, one) for one in probed)}
    exact = not any(map(is_wild, probed))
    own = _own_build_id(kernel)
    if kernel.vmlinux is not None and (build_id in (None, own) or (own is None and source is None)):
        return DebugInfo(build_id, modules, exact, own=own)
    if source is not None and not needed:
        return DebugInfo(build_id, own=own)
    if source is not None:
        _check_build_ids(build_id, [name for name, needed in probed.items() if needed], modules)
    elif kernel.vmlinux is not None:
        problem = (
            f"{kernel.vmlinux} on this builder is the debug information of another build, with the build-id {own}."
        )
        hint = f"Install the debug package of the traced host's {kernel.release}, or use a debuginfod server."
        raise InvalidInput("build_id", build_id, problem, hint, phase="debuginfo")
    return DebugInfo(build_id, modules, exact, source)


def _read_module_ids(option: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Return the option ``module_build_ids``: build-ids by name, without those that the traced host does not know.

    :raises InvalidInput: a name is not that of a module, or a build-id is not one.
    """
    given = {}
    for name, text in option.items():
        if not _MODULE_NAME.match(name):
            problem = "The name of a kernel module has only letters, digits, underscores and hyphens."
            hint = "Pass the module_build_ids that stap_probe_info returns on the traced host."
            raise InvalidInput("module_build_ids", name, problem, hint, phase="debuginfo")
        if text is not None:
            given[name.replace("-", "_")] = check_build_id(f"module_build_ids.{name}", str(text))
    return given


def _own_build_id(kernel: Kernel) -> str | None:
    """Return the build-id of the builder's own debug information; None where it cannot be read."""
    if kernel.vmlinux is None:
        return None
    try:
        return file_build_id(kernel.vmlinux)
    except (OSError, ElfError):
        return None


def _check_build_ids(build_id: str | None, needed: t.Iterable[str], modules: t.Container[str]) -> None:
    if build_id is None:
        problem = "The traced kernel's build-id is needed, because debuginfod servers know files by it alone."
        hint = "Pass ansible_facts.tapvirt_kernel.build_id, which kernel_facts returns on the traced host."
        raise InvalidInput("build_id", None, problem, hint, phase="debuginfo")
    for name in needed:
        if name not in modules:
            problem = f"The build-id of the module {name} is needed, because the script probes its functions."
            hint = (
                "Load the module on the traced host, and pass the module_build_ids that stap_probe_info returns there."
            )
            raise InvalidInput(f"module_build_ids.{name}", None, problem, hint, phase="debuginfo")


class DebugCache:
    """The debug information in a store. ``fetched`` are the build-ids of what was fetched by this object."""

    def __init__(self, store: Store, source: Debuginfod) -> None:
        self._store = store
        self._source = source
        self.directory = store.directory
        self._directory = os.path.join(store.directory, _CACHE)
        self.fetched: set[str] = set()

    def missing(self, info: DebugInfo, release: str) -> dict[str, str]:
        """Return the build-ids of the files that are not in the cache, each with what it belongs to."""
        return {key: what for key, what in info.wanted(release).items() if not self._has(key)}

    @contextlib.contextmanager
    def files(self, info: DebugInfo, release: str) -> t.Iterator[DebugFiles]:
        """Hold the files that a build needs; fetch those that are missing.

        :raises DebuginfoError: one cannot be fetched, or there is no room for it.
        :raises LockTimeout: another task fetched it for too long.
        """
        with contextlib.ExitStack() as stack:
            paths = {key: stack.enter_context(self._held(key, what)) for key, what in info.wanted(release).items()}
            self._prune()
            build_id = info.build_id or ""
            modules = {name: paths[key] for name, key in info.modules.items()}
            yield DebugFiles(build_id, paths[build_id], modules, info.exact)

    @contextlib.contextmanager
    def _held(self, build_id: str, what: str) -> t.Iterator[str]:
        """Hold a file, so that no other task removes it; fetch it first if it is missing."""
        lock, path = f"debuginfo-{build_id}", self._path(build_id)
        for _attempt in range(_ATTEMPTS):
            with self._store.locked(lock, shared=True):
                if self._has(build_id):
                    with contextlib.suppress(OSError):
                        os.utime(path)
                    yield path
                    return
            with self._store.locked(lock):
                if not self._has(build_id):
                    self._fetch(build_id, what)
        raise TapvirtError(f"{path} was removed again and again. Set debuginfod.max_cache_bytes higher.")

    def _path(self, build_id: str) -> str:
        return os.path.join(self._directory, "files", build_id)

    def _has(self, build_id: str) -> bool:
        """Return whether a file is in the cache, and still whole; a link in its place is none."""
        path = self._path(build_id)
        try:
            return stat.S_ISREG(os.lstat(path).st_mode) and file_build_id(path) == build_id
        except (OSError, ElfError):
            return False

    def _fetch(self, build_id: str, what: str) -> None:
        path, work = self._path(build_id), os.path.join(self._directory, "work", build_id)
        shutil.rmtree(work, ignore_errors=True)
        for directory in (work, os.path.dirname(path)):
            make_directories(directory)
        try:
            room = _Room(self, self._source, build_id, what)
            found = fetch(self._source, build_id, what, work, room)
            room.keep(os.path.getsize(found))
            with open(found, "rb") as stream:
                os.fchmod(stream.fileno(), 0o644)
                os.fsync(stream.fileno())
            os.utime(found)
            os.replace(found, path)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        sync_directory(os.path.dirname(path))
        self.fetched.add(build_id)

    def entries(self) -> list[tuple[float, str, int]]:
        """Return ``(time of last use, build-id, bytes)`` of each file, the longest unused first."""
        found = []
        for name in filter(BUILD_ID.match, Root(self._directory).listdir("files")):
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(self._path(name))
                found.append((status.st_mtime, name, status.st_size))
        return sorted(found)

    def _prune(self) -> None:
        """Remove unused files beyond the bounds of age and size, and leftovers of killed downloads."""
        entries = self.entries()
        kept = sum(size for _used, _build_id, size in entries)
        for used, build_id, size in entries:
            too_old = time.time() - used > self._source.max_cache_age_seconds
            if (too_old or kept > self._source.max_cache_bytes) and self.remove(build_id):
                kept -= size
        for name in filter(BUILD_ID.match, Root(self._directory).listdir("work")):
            with self._store.unused(f"debuginfo-{name}") as unused:
                if unused:
                    shutil.rmtree(os.path.join(self._directory, "work", name), ignore_errors=True)

    def remove(self, build_id: str) -> bool:
        """Remove a file unless a build uses it; return whether it was removed."""
        with self._store.unused(f"debuginfo-{build_id}") as unused:
            if not unused:
                return False
            with contextlib.suppress(FileNotFoundError):
                number = os.lstat(self._path(build_id)).st_ino
                os.unlink(self._path(build_id))
                for name in Root(self._directory).listdir("roots"):
                    _unlink_inode(os.path.join(self._directory, "roots", name), number)
            return True

    def free_bytes(self) -> int:
        """Return how many bytes of the file system a download may take."""
        status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize - RESERVE_BYTES


def _unlink_inode(directory: str, number: int) -> None:
    """Remove the links to a file from a sysroot, so that its space is free."""
    for folder, _folders, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(path).st_ino == number:
                    os.unlink(path)


class _Room:
    """The place for one file in the cache: within its bound, and within what is free on its file system."""

    def __init__(self, cache: DebugCache, source: Debuginfod, build_id: str, what: str) -> None:
        self._cache = cache
        self._source = source
        self._build_id = build_id
        self._what = what

    def limit(self) -> int:
        return self._source.max_cache_bytes

    def free_bytes(self) -> int:
        return max(0, min(self.limit(), self._cache.free_bytes()))

    def check(self, size: int) -> None:
        """Check that a file of this size fits, if all others make room for it; none is removed for a mere claim.

        :raises DebuginfoError: it does not.
        """
        if size > self.limit():
            raise self._too_large(size)
        free = self._cache.free_bytes()
        if free + sum(bytes_ for _build_id, bytes_ in self._others()) < max(size, 1):
            raise self._no_space(size, free)

    def make(self, count: int) -> None:
        """Make room on the file system for the next ``count`` bytes; the longest unused files are removed for it.

        :raises DebuginfoError: there is not enough.
        """
        if self._cache.free_bytes() >= count:
            return
        for build_id, _bytes in self._others():
            if self._cache.remove(build_id) and self._cache.free_bytes() >= count:
                return
        raise self._no_space(0, self._cache.free_bytes())

    def keep(self, size: int) -> None:
        """Make room within the cache's bound for a checked file; the longest unused files are removed for it.

        :raises DebuginfoError: the file is larger than the bound.
        """
        if size > self.limit():
            raise self._too_large(size)
        others = self._others()
        kept = sum(bytes_ for _build_id, bytes_ in others)
        for build_id, bytes_ in others:
            if kept + size <= self.limit():
                break
            if self._cache.remove(build_id):
                kept -= bytes_

    def _others(self) -> list[tuple[str, int]]:
        """Return build-id and size of the other files in the cache, the longest unused first."""
        return [(key, size) for _used, key, size in self._cache.entries() if key != self._build_id]

    def _too_large(self, size: int) -> DebuginfoError:
        most = self.limit()
        problem = f"The debug information of {self._what} has {size} bytes, and debuginfod.max_cache_bytes is {most}."
        return DebuginfoError("debuginfod.max_cache_bytes", most, problem, f"Set it to {size} or more.")

    def _no_space(self, size: int, free: int) -> DebuginfoError:
        directory = self._cache.directory
        needs = f"needs {_mib(size)} MiB" if size else "needs hundreds of MiB"
        problem = (
            f"The debug information of {self._what} {needs}, and the file system of {directory} has "
            f"{_mib(free + RESERVE_BYTES)} MiB free, of which {_mib(RESERVE_BYTES)} MiB stay free."
        )
        hint = "Free some space there, or set store to a directory of a larger file system."
        return DebuginfoError("store", directory, problem, hint)


def _mib(size: int) -> int:
    return -(-size // (1 << 20))
