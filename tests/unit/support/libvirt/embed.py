# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Libvirt's real QEMU driver below a directory, without a daemon, and modules that run on it."""

from __future__ import annotations

import base64
import pathlib
import subprocess
import sys
import textwrap
import typing as t

from ansible_collections.tapvirt.host.playbooks.filter_plugins.boot_sector import boot_sector

TALKER = """
<domain type='qemu'>
  <name>{name}</name>
  <description>{description}</description>
  <memory unit='MiB'>{memory}</memory>
  <currentMemory unit='MiB'>{current}</currentMemory>
  <vcpu current='{vcpus}'>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <features>{features}</features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{image}'/><target dev='hda' bus='ide'/>
    </disk>
    {devices}
    <serial type='pty'/>
  </devices>
</domain>
"""


class Embed:
    """A root of the embedded driver, modules run on it, and libvirt itself beside them.

    ``image`` is the disk of a talker: it writes ``line`` to its serial port for ever and listens to nobody.
    """

    line = "hello from the talker"

    def __init__(self, root: pathlib.Path, run_module: t.Callable[..., dict[str, t.Any]]) -> None:
        self.root = root
        self.uri = f"qemu:///embed?root={root}/e"
        self._run = run_module
        self.image = root / "talker.img"
        self.image.write_bytes(base64.b64decode(boot_sector(self.line)))

    def module(self, module: str, /, check: bool = False, **args: t.Any) -> dict[str, t.Any]:
        return self._run(module, {"uri": self.uri, **args}, check=check, timeout=120)

    def converge(self, *domains: dict[str, t.Any], check: bool = False, **args: t.Any) -> dict[str, t.Any]:
        """Converge, and fail if the module does."""
        result = self.module("libvirt_domain", check=check, domains=list(domains), **args)
        assert not result.get("failed"), result["msg"]
        # Of the machine, where a user without a mount namespace of their own sees its /dev/kvm.
        warnings = [one for one in result.get("warnings", []) if "/dev/kvm exists, but " not in str(one)]
        assert warnings == []
        return result

    def libvirt(self, code: str) -> str:
        """Run Python with ``connection`` open on the root, as somebody else would."""
        program = textwrap.dedent(
            """
            import libvirt, os, sys, threading
            libvirt.registerErrorHandler(lambda *_: None, None)
            libvirt.virEventRegisterDefaultImpl()
            run = lambda: [libvirt.virEventRunDefaultImpl() for _ in iter(int, 1)]
            threading.Thread(target=run, daemon=True).start()
            connection = libvirt.open(sys.argv[1])
            """
        )
        # Ends at once: a thread that is inside libvirt when the interpreter goes crashes it now and then.
        program += textwrap.dedent(code) + "\nsys.stdout.flush()\nos._exit(0)\n"
        argv = [sys.executable, "-c", program, self.uri]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def talker(self, name: str = "talker", **changes: t.Any) -> str:
        values = {
            "memory": 16,
            "current": 16,
            "vcpus": 1,
            "description": "one",
            "devices": "",
            "features": "<acpi/>",
            **changes,
        }
        return TALKER.format(name=name, image=self.image, **values)
