# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The builder: an ssh host that runs natively, in namespaces of its own on top of the cached layers."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from . import process, ssh, state
from .commands import tail_of
from .errors import LabError

# Whatever is mounted here, and whatever is started inside, ends with the namespaces: nothing is left on the machine.
# What the builder writes is in memory (a tmpfs), so two labs do not see each other's files. SystemTap's own cache is
# the exception: its findings about the headers of a kernel are the same for all.
_INIT = """
set -e
cd "$1"
lower=$2
cache=$1/$3
name=$4
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$lower,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
cd /mnt/root
mkdir -p root/.systemtap run/sshd machine
mount --bind "$cache" root/.systemtap
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
hostname "$name"
echo "$name" > etc/hostname
echo "127.0.0.1 localhost $name" > etc/hosts
pivot_root . machine
exec chroot . sh -c '
  umount -l /machine
  rmdir /machine
  /usr/sbin/sshd -D -e -o ListenAddress=127.0.0.1 -p "$0" &
  wait $!
' "$5"
"""


def start(
    cache: Path,
    folder: Path,
    name: str,
    layers: list[Path],
    systemtap_cache: Path,
    suites: list[str],
    login: Callable[[str, int], list[str]],
) -> state.Started:
    """Starts the builder; layers are folders of the cache, the upper ones first."""
    began = time.monotonic()
    port = ssh.free_port()
    lower = ":".join(str(layer.relative_to(cache)) for layer in layers)
    log = state.serial_log(folder, name)
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private",
             "sh", "-c", _INIT, "sh", str(cache), lower, str(systemtap_cache.relative_to(cache)), name, str(port)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    started = state.Started(
        name, keeper.pid, process.start_time(keeper.pid) or 0, port, "native", "start",
        kernels=suites,
    )  # fmt: skip
    state.save(folder, started)

    def check_alive() -> None:
        if started.state(folder) == "died":
            raise LabError(f"{name} ended as soon as it was started: {tail_of(log)}")

    try:
        ssh.wait_until(lambda: ssh.greets(port), check_alive, 60, f"{name} did not answer")
    except TimeoutError as error:
        raise LabError(f"{error}; its sshd said: {tail_of(log)}") from error
    started.kernel = ssh.command([*login(name, port), "uname -r"], 30).strip()
    started.ready = True
    started.seconds = round(time.monotonic() - began, 1)
    state.save(folder, started)
    return started
