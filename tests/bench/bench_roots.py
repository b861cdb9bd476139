# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What 20 domains on each of 20 hosts cost: roots of libvirt's embedded driver stand for the hosts.

There is no peer: community.libvirt runs no event loop, and the driver refuses to open without one.
"""

from __future__ import annotations

import json
import pathlib
import tempfile

from bench_domains import EMPTY, ours, play

ROOTS, DOMAINS = 20, 20
URI = {"uri": "{{ uri }}"}


def write_inventory(folder: pathlib.Path) -> str:
    """Write an inventory whose hosts differ in their root only."""
    hosts = {f"root{number:02}": {"uri": f"qemu:///embed?root={folder}/{number:02}"} for number in range(ROOTS)}
    path = folder / "inventory.yml"
    path.write_text(json.dumps({"all": {"hosts": hosts}}), encoding="utf-8")
    return str(path)


def main() -> None:
    """Print a table: wall time, seconds above an empty play, hosts that were changed."""
    our_task = {"tapvirt.host.libvirt_domain": ours(DOMAINS)["tapvirt.host.libvirt_domain"] | URI}
    tasks = {
        "an empty play": EMPTY,
        "tapvirt.host.libvirt_domain, first": our_task,
        "tapvirt.host.libvirt_domain, again": our_task,
    }
    with tempfile.TemporaryDirectory(prefix="tapvirt-", dir="/var/tmp") as name:
        folder = pathlib.Path(name)
        inventory = write_inventory(folder)
        rows = {title: play(folder, task, inventory) for title, task in tasks.items()}
    floor = rows["an empty play"][0]
    print(f"{f'{DOMAINS} domains on each of {ROOTS} roots':<48} {'s':>8} {'above':>8} {'changed':>8}")
    for title, (wall, recaps) in rows.items():
        changed = sum(recap["changed"] > 0 for recap in recaps)
        print(f"{title:<48} {wall:>8.2f} {wall - floor:>8.2f} {changed:>8}")


if __name__ == "__main__":
    main()
