# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a stored definition has and the XML leaves out, so that it would be removed. Libvirt adds none of it by itself.

For plans without libvirt's own reading of the XML, which cannot compare what is left out. Private to the collection.
Pure. The names are those of libvirt's page "Domain XML format".
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from ..connection.xml import Difference, element_text
from .live.edits import vcpus_of
from .mark import differences
from .stored_devices import removed_devices

_NEVER_ADDED = re.compile(
    r"(?:title|description|genid|maxMemory|memoryBacking|memtune|blkiotune|cputune|numatune|iothreads|iothreadids"
    r"|defaultiothread|throttlegroups|sysinfo|idmap|keywrap|launchSecurity|perf|bootloader|bootloader_args)\Z"
    r"|(?:memoryBacking|memtune|blkiotune|cputune|numatune|launchSecurity)[/@]"
    r"|seclabel\b|features/(?!gic)[^@]*\Z|clock/timer\b|\{"
    r"|vcpu@cpuset\Z|cpu/(?:topology|numa|feature|cache)(?:\[[^/]*\])?\Z"
    r"|os/(?:kernel|initrd|cmdline|dtb|bootmenu|smbios|bios)\b"
    r"|devices/disk\[[^/]*\]/(?:shareable|transient|iotune|serial|wwn|vendor|product|encryption|boot|blockio|geometry|auth)\b"
    r"|devices/disk\[[^/]*\]/driver@(?!name\Z|type\Z)"
    r"|devices/interface\[[^/]*\]/(?:filterref|bandwidth|vlan|mtu|link|boot|guest|tune|coalesce|teaming|ip|route|port)\b"
    r"|devices/graphics\[[^/]*\]@(?:passwd|passwdValidTo)\Z"
)
_READ_ONLY = re.compile(r"(devices/disk\[[^/]*\])/readonly\Z")


def definition_rows(stored: ET.Element, desired: ET.Element) -> list[Difference]:
    """Return where the stored definition is not what the desired one says, and what the desired one would remove."""
    drives = [disk for disk in desired.iterfind("devices/disk") if disk.get("device", "disk") in ("cdrom", "floppy")]
    removable = {f"devices/disk[{target.get('dev')}]" for disk in drives for target in disk.findall("target")}
    removed = {"devices/" + label: device for label, device in removed_devices(stored, desired).items()}
    # Without a number of processors, libvirt takes one.
    lost = [*removed, *(["vcpu"] if vcpus_of(stored)[1] > 1 and desired.find("vcpu") is None else [])]
    rows = [
        row
        for row in differences(stored, desired)
        if row.after is not None or row.path in lost or _is_removed(row.path, removable)
    ]
    places = {row.path for row in rows}
    # Devices of the host are told by position in the rows, and by source here.
    rows += [Difference(path, element_text(removed[path]), None) for path in removed if path not in places]
    return rows


def _is_removed(path: str, removable: set[str]) -> bool:
    read_only = _READ_ONLY.match(path)
    if read_only:
        # Libvirt adds it to a drive.
        return read_only.group(1) not in removable
    return bool(_NEVER_ADDED.match(path))
