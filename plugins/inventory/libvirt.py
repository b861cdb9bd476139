# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: libvirt
short_description: Use the libvirt domains of many hypervisors as hosts
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Asks many libvirts side by side, read-only, which domains they have, and makes each a host with the variable
    C(tapvirt_domain) - a row as M(tapvirt.host.libvirt_domain_info) returns it, with C(uri) (without a password) and
    C(hypervisor) (the host name in the URI; C(localhost) where it names none).
  - Each URI is asked by a process of its own, which is ended when it does not answer in time. Those that answered are
    in the inventory then, and a warning names the others. The process has no terminal, so C(ssh) asks for nothing.
  - A host that another inventory has already keeps what that says of it, and has C(tapvirt_domain) as well.
  - The file must be called C(libvirt.yml), or end with C(.libvirt.yml); C(.yaml) will do.
extends_documentation_fragment:
  - constructed
  - inventory_cache
options:
  plugin:
    description: What makes this file one of this plugin.
    type: str
    required: true
    choices: [tapvirt.host.libvirt]
  uris:
    description: The libvirts, as connection URIs. Credentials are best left to ssh or to libvirt's C(auth.conf).
    type: list
    elements: str
    required: true
  names:
    description: Only domains with these names; C(*) and C(?) stand for any characters.
    type: list
    elements: str
    default: ["*"]
  states:
    description: Only domains in these states; all of them where none is named.
    type: list
    elements: str
    choices: [nostate, running, blocked, paused, shutdown, shutoff, crashed, pmsuspended]
    default: []
  host_name:
    description:
      - A Jinja2 expression for the host's name, over the keys of C(tapvirt_domain).
      - Two domains of the same name are an error. With C(name ~ '.' ~ hypervisor) they are two hosts.
    type: str
    default: name
  timeout_seconds:
    description: How long each URI may take to answer, in seconds.
    type: int
    default: 30
  parallel:
    description: How many URIs are asked at a time.
    type: int
    default: 16
  on_error:
    description: Whether a URI that does not answer is a warning or ends everything.
    type: str
    choices: [warn, fail]
    default: warn
requirements:
  - libvirt's Python binding (C(libvirt-python)) on the controller, for Ansible's own Python or for that of the system
"""

EXAMPLES = r"""
# libvirt.yml: the running domains of three hypervisors, in groups by hypervisor and by machine type
plugin: tapvirt.host.libvirt
uris:
  - qemu+ssh://root@hv1.example.org/system
  - qemu+ssh://root@hv2.example.org/system
  - qemu:///system
states: [running]
host_name: name ~ '.' ~ hypervisor
keyed_groups:
  - {key: tapvirt_domain.hypervisor, prefix: hypervisor}
  - {key: tapvirt_domain.machine, prefix: machine}
groups:
  waits_for_a_restart: tapvirt_domain.pending | length > 0
"""

import typing as t

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.utils.unsafe_proxy import wrap_var
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet import domains


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    NAME = "tapvirt.host.libvirt"

    def verify_file(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        wanted = name.rpartition(".")[0].split(".")[-1] == "libvirt" and name.endswith((".yml", ".yaml"))
        return bool(super().verify_file(path)) and wanted

    def parse(self, inventory: t.Any, loader: t.Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        for row in self._rows(path, cache):
            self._add(row)

    def _rows(self, path: str, cache: bool) -> list[dict[str, t.Any]]:
        """Return what all URIs have, from the cache where it is to be used and has it."""
        key = self.get_cache_key(path)
        if cache and self.get_option("cache") and key in self._cache:
            return t.cast("list[dict[str, t.Any]]", self._cache[key])
        rows, errors = domains.ask_all(
            self.get_option("uris"), self.get_option("timeout_seconds"), self.get_option("parallel")
        )
        for error in errors:
            if self.get_option("on_error") == "fail":
                raise AnsibleParserError(error)
            self.display.warning(error)
        if self.get_option("cache") and not errors:
            self._cache[key] = rows
        return rows

    def _add(self, row: dict[str, t.Any]) -> None:
        if not domains.is_wanted(row, self.get_option("names"), self.get_option("states")):
            return
        row = wrap_var(row)  # what guests and their owners wrote is never a template
        host = wrap_var(str(self._compose(self.get_option("host_name"), row)))
        known = self.inventory.get_host(host)
        other = known.get_vars().get("tapvirt_domain") if known else None
        if other:
            raise AnsibleParserError(
                f"Host {host!r} is there twice: as domain {row['name']!r} of {row['uri']}, and of {other['uri']}. "
                "'host_name' can tell them apart."
            )
        self.inventory.add_host(host)
        self.inventory.set_variable(host, "tapvirt_domain", row)
        variables = {"tapvirt_domain": row}
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, host, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, host, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, host, strict=strict)
