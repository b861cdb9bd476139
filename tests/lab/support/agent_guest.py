# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that is up in seconds under emulation: a kernel, this machine's own programs, and QEMU's guest agent.

Everything is in its initial file system, which is written here (kernel's ``driver-api/early-userspace/buffer-format``).
"""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import typing as t

PROGRAMS = """
cat chmod chown cp cut dd echo env getent head id kill ls mkdir mktemp mount mv python3 qemu-ga readlink rm sh sha256sum
sleep stat su sync touch true uname wc
""".split()
PATH = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
# Parts of Python's library that no module of Ansible needs.
LEFT_OUT = {"dist-packages", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter"}
# Without HOME, as a service's environment is. What is in /run/agent-options is for the agent's next start.
INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /proc /sys /dev /run /root /tmp /var/tmp
chmod 1777 /tmp /var/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
cd /
unset HOME
while true; do
  options=
  if [ -e /run/agent-options ]; then read -r options < /run/agent-options; rm /run/agent-options; fi
  qemu-ga -m virtio-serial -p /dev/$(cd /sys/class/virtio-ports && echo vport*) -t /run $options &
  echo $! > /run/agent.pid
  wait $!
  sleep 0.2
done
"""
TEXTS = {
    "init": INIT,
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/sh\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/pam.d/su": "auth sufficient pam_rootok.so\naccount required pam_permit.so\nsession required pam_permit.so\n",
}
# Without cx16: QEMU 7.2 emulates that instruction so that kernels with it come to harm after some thousand processes.
DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>console=ttyS0 quiet mitigations=off</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact'>
    <model fallback='forbid'>qemu64</model>
    <feature policy='disable' name='cx16'/>
  </cpu>
  <devices>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <serial type='file'><source path='{log}'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def _program(name: str) -> pathlib.Path:
    found = shutil.which(name, path=PATH)
    assert found, f"this machine has no {name}"
    return pathlib.Path(found)


def _libraries(paths: t.Iterable[pathlib.Path]) -> set[pathlib.Path]:
    """Return the shared libraries that programs are loaded with, and their loader."""
    done = subprocess.run(["ldd", *map(str, paths)], capture_output=True, text=True, check=False)
    return {pathlib.Path(path) for path in re.findall(r"(/\S+) \(0x", done.stdout)}


def _files() -> dict[str, tuple[bytes, int]]:
    """Return the files of the guest: path without the first slash -> (content, modification time).

    Python compiles a file again whose modification time differs from the one in its compiled form.
    """
    programs = [_program(name) for name in PROGRAMS]
    ask = "import sysconfig; print(sysconfig.get_path('stdlib'))"
    done = subprocess.run([_program("python3"), "-c", ask], capture_output=True, text=True, check=True)
    library = pathlib.Path(done.stdout.strip())
    python = [
        path
        for path in library.rglob("*")
        if path.is_file() and not any(part in LEFT_OUT or part.startswith("config-") for part in path.parts)
    ]
    modules = [path for path in python if path.suffix == ".so"]
    pam = [
        path for path in pathlib.Path("/lib").glob("*/security/pam_*.so") if path.stem in ("pam_rootok", "pam_permit")
    ]
    paths = {*programs, *python, *pam, *_libraries([*programs, *modules, *pam])}
    found = {str(path).lstrip("/"): (path.read_bytes(), int(path.stat().st_mtime)) for path in sorted(paths)}
    found["bin/sh"] = (_program("sh").read_bytes(), 0)
    return found | {path: (text.encode("ascii"), 0) for path, text in TEXTS.items()}


def write_initrd(target: pathlib.Path) -> None:
    """Write the guest's initial file system."""
    files = _files()
    folders = {str(parent) for path in files for parent in pathlib.PurePath(path).parents} - {"."}
    with target.open("wb") as stream:
        for number, path in enumerate([*sorted(folders), *files, "TRAILER!!!"], 1):
            data, changed = files.get(path, (b"", 0))
            mode = 0o040755 if path in folders else 0o100755
            name = path.encode() + b"\0"
            numbers = [number, mode, 0, 0, 1, changed, len(data), 0, 0, 0, 0, len(name), 0]
            head = b"070701" + b"".join(b"%08x" % value for value in numbers) + name
            stream.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))
