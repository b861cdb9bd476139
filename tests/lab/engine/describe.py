# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the lab's description."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LabError

KINDS = ("guest", "builder", "xen")


@dataclass(frozen=True)
class Host:
    """A host as described, running or not."""

    name: str
    kind: str
    groups: tuple[str, ...]
    kernel: str | None = None
    memory_mib: int = 0
    cpus: int = 1
    only_when_named: bool = False
    signed_modules: bool = False
    selinux: bool = False


@dataclass(frozen=True)
class Root:
    """A root file system: a Debian suite and its packages."""

    suite: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    hosts: dict[str, Host]
    roots: dict[str, Root]

    def choose(self, names: list[str] | None) -> list[Host]:
        """The hosts of these names; without names all that do not have to be named."""
        if not names:
            return [host for host in self.hosts.values() if not host.only_when_named]
        unknown = [name for name in names if name not in self.hosts]
        if unknown:
            raise LabError(f"the lab has no host {', '.join(unknown)}; it has {', '.join(self.hosts)}")
        return [self.hosts[name] for name in dict.fromkeys(names)]

    def kernels_for(self, hosts: list[Host]) -> list[str]:
        """Return the kernels that a builder must serve: those of the trace hosts among these hosts, else all."""
        chosen = [host.kernel for host in hosts if host.kind == "guest" and host.kernel]
        return list(dict.fromkeys(chosen or [host.kernel for host in self.hosts.values() if host.kernel]))


def read(path: Path) -> Description:
    """The description in a TOML file, checked."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        hosts = {name: _host(name, table) for name, table in data["hosts"].items()}
        roots = {name: Root(table["suite"], tuple(table["packages"])) for name, table in data["roots"].items()}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise LabError(f"{path}: {error}") from error
    except (KeyError, TypeError) as error:
        raise LabError(f"{path}: a host needs kind and groups, a root suite and packages: {error!r}") from error
    return Description(hosts, roots)


def _host(name: str, table: dict[str, Any]) -> Host:
    host = Host(name=name, **{**table, "groups": tuple(table["groups"])})
    if host.kind not in KINDS:
        raise LabError(f"host {name}: kind is {host.kind!r}, not one of {', '.join(KINDS)}")
    if host.kind == "guest" and not host.kernel:
        raise LabError(f"host {name}: a guest needs a kernel (the Debian suite it comes from)")
    return host
