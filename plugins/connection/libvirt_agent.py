# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: libvirt_agent
short_description: Connect to guests of libvirt's QEMU driver without a network
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Runs commands and moves files in a guest through QEMU's guest agent, by way of a libvirt connection of the
    controller. The guest needs no network, no ssh and no password.
  - The hosts of the inventory P(tapvirt.host.libvirt#inventory) need nothing but
    C(ansible_connection=tapvirt.host.libvirt_agent).
  - The guest runs C(qemu-guest-agent), its domain has the channel C(org.qemu.guest_agent.0), and the agent allows
    C(guest-exec), C(guest-exec-status) and C(guest-file-open), C(-read), C(-write) and C(-close). RHEL and its like do
    not by default; an error says then which are refused and where that is set.
notes:
  - Commands run as the user of the agent, which is root, in that user's home folder, whatever C(remote_user) says;
    C(become) makes them another user's. There is no terminal, so no password can be asked for - root needs none.
  - A command line may have about 60 kB, and print 2,500,000 bytes on stdout and 500,000 on stderr. More is an error
    that says so. A file can be of any size; it is compared after it was transferred.
  - M(ansible.builtin.fetch) with C(become) makes a file's content such an output; without, it is a file.
  - With pipelining, what does not fit a request to the agent (22 kB, and every module is larger) is in a file of the
    guest for a moment, below C(/run), C(/dev/shm) or C(/tmp), that only root can read. It is gone before the command
    begins.
  - A command that outlives its deadline goes on in the guest; the error names its process.
  - On guests with SELinux the agent's commands are confined until C(virt_qemu_ga_run_unconfined) is on.
  - The embedded driver (V(qemu:///embed?root=/DIR)) is used by one process at a time; tasks wait for one another.
extends_documentation_fragment:
  - connection_pipelining
options:
  libvirt_uri:
    description:
      - Which libvirt, as a connection URI; V(qemu+ssh://root@hv1.example.org/system) is another host's.
      - By default the one of which the inventory has the domain, else V(qemu:///system).
    type: str
    vars:
      - name: tapvirt_libvirt_uri
    env:
      - name: TAPVIRT_LIBVIRT_URI
    ini:
      - section: libvirt_agent_connection
        key: libvirt_uri
  domain:
    description:
      - The domain's name.
      - By default the one that the inventory has, else O(remote_addr).
    type: str
    vars:
      - name: tapvirt_libvirt_domain
  domain_row:
    description: The domain as P(tapvirt.host.libvirt#inventory) describes it; its C(name) and C(uri) are used.
    type: dict
    vars:
      - name: tapvirt_domain
  facts:
    description:
      - The facts of the guest. A guest may return a fact with the name of a variable above; the task fails then, as a
        guest must not choose where the controller connects to.
    type: dict
    default: {}
    vars:
      - name: ansible_facts
  remote_addr:
    description: The domain's name, where nothing else tells it.
    type: str
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_host
  executable:
    description: The shell in the guest that runs the commands.
    type: str
    default: /bin/sh
    vars:
      - name: ansible_executable
    env:
      - name: ANSIBLE_EXECUTABLE
    ini:
      - section: defaults
        key: executable
  answer_timeout_seconds:
    description: How long libvirt, and then the agent, may take for each answer, in seconds; at least 10.
    type: int
    default: 30
    vars:
      - name: tapvirt_agent_answer_timeout_seconds
    env:
      - name: TAPVIRT_AGENT_ANSWER_TIMEOUT_SECONDS
    ini:
      - section: libvirt_agent_connection
        key: answer_timeout_seconds
  command_timeout_seconds:
    description: How long each command, and each file's transfer, may take, in seconds.
    type: int
    default: 3600
    vars:
      - name: tapvirt_agent_command_timeout_seconds
    env:
      - name: TAPVIRT_AGENT_COMMAND_TIMEOUT_SECONDS
    ini:
      - section: libvirt_agent_connection
        key: command_timeout_seconds
requirements:
  - libvirt's Python binding (C(libvirt-python)) on the controller
"""

import contextlib
import os
import typing as t

from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.plugins.connection import ConnectionBase
from ansible.utils.display import Display
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.plugin_utils._agent import agent
from ansible_collections.tapvirt.host.plugins.plugin_utils._agent.messages import NotReached

display = Display()


class Connection(ConnectionBase):
    transport = "tapvirt.host.libvirt_agent"
    has_pipelining = True
    has_tty = False
    default_user = "root"

    _connected: bool
    _guest: t.Any = None

    def _connect(self) -> Connection:
        self._play_context.remote_user = self.default_user  # what older versions of Ansible look at
        if not self._connected:
            with self._errors():
                guest = self._found()
                guest.open()
                self._guest, self._connected = guest, True
        return self

    def _found(self) -> agent.Guest:
        given = {name: self.get_option(name) for name in agent.VARIABLES}
        agent.refuse_facts(self.get_option("facts"), given)
        row, host = given["domain_row"], self.get_option("remote_addr")
        uri, name = agent.place(given["libvirt_uri"], given["domain"], row, host)
        seconds = [self.get_option(name) for name in ("answer_timeout_seconds", "command_timeout_seconds")]
        return agent.Guest(uri, name, *seconds)

    @contextlib.contextmanager
    def _errors(self) -> t.Iterator[None]:
        try:
            yield
        except NotReached as error:
            self.close()  # whatever comes next begins anew
            raise AnsibleConnectionFailure(error.message) from error
        except TapvirtError as error:
            raise AnsibleError(error.message) from error
        except OSError as error:  # of a file on the controller
            raise AnsibleError(str(error)) from error

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        display.vvv(f"EXEC {to_text(cmd)}", host=self.get_option("remote_addr"))
        with self._errors():
            done = self._guest.run(self.get_option("executable"), to_text(cmd), in_data)
        return done.status, done.stdout, done.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        display.vvv(f"PUT {in_path} TO {out_path}", host=self.get_option("remote_addr"))
        local = to_bytes(in_path, errors="surrogate_or_strict")
        if not os.path.exists(local):
            raise AnsibleFileNotFound(f"file or module does not exist: {to_text(in_path)}")
        with self._errors(), open(local, "rb") as source:
            self._guest.put(source, to_text(out_path))

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        display.vvv(f"FETCH {in_path} TO {out_path}", host=self.get_option("remote_addr"))
        local = to_bytes(out_path, errors="surrogate_or_strict")
        with self._errors(), open(local, "wb") as target:
            try:
                self._guest.fetch(to_text(in_path), target)
            except (TapvirtError, OSError):
                os.unlink(local)
                raise

    def reset(self) -> None:
        self.close()

    def close(self) -> None:
        if self._guest is not None:
            self._guest.close()
        self._guest, self._connected = None, False
