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
from .stored_devices import new_host_devices, removed_devices

_NEVER_ADDED = re.compile(
    r"(?:title|description|genid|maxMemory|memoryBacking|memtune|blkiotune|cputune|numatune|iothreads|iothreadids"
    r"|resource|pm|defaultiothread|throttlegroups|sysinfo|idmap|keywrap|launchSecurity|perf|bootloader|bootloader_args)\Z"
    r"|(?:memoryBacking|memtune|blkiotune|cputune|numatune|launchSecurity|resource|pm)[/@]"
    r"|seclabel\b|features/(?!gic)[^@]*\Z|clock/timer\b|\{"
    r"|vcpu@cpuset\Z|cpu/(?:topology|numa|feature|cache)(?:\[[^/]*\])?\Z"
    r"|os/(?:kernel|initrd|cmdline|dtb|bootmenu|smbios|bios)\b"
    r"|devices/disk\[[^/]*\]/(?:shareable|transient|iotune|serial|wwn|vendor|product|encryption|boot|blockio|geometry|auth"
    r"|backenddomain)\b"
    r"|devices/disk\[[^/]*\]/source(?:@startupPolicy\Z|/[^@]*\Z)"
    r"|devices/disk\[[^/]*\]/driver@(?!name\Z|type\Z)"
    r"|devices/interface\[[^/]*\]/(?:filterref|bandwidth|vlan|mtu|link|boot|guest|tune|coalesce|teaming|ip|route|port"
    r"|backenddomain|script|downscript)\b"
    r"|devices/interface\[[^/]*\]/source/[^@]*\Z"
    r"|devices/(?:controller|input|interface|memballoon|rng)\[[^/]*\]/driver\b"
    r"|devices/[^/]*\]/alias\b"
    r"|devices/graphics\[[^/]*\]@(?:passwd|passwdValidTo)\Z"
)
# Libvirt adds the driver of a disk, with a name and a format.
_DISK_DRIVER = re.compile(r"devices/disk\[[^/]*\]/driver\Z")
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
        if row.after is not None or row.path in lost or _is_removed(row, removable)
    ]
    # The rows identify devices of the host by position; here the source does: another one may be in the same place.
    rows = [row for row in rows if not any(_is_below(row.path, path) for path in removed)]
    places = {row.path for row in rows}
    new = {"devices/" + label: device for label, device in new_host_devices(stored, desired).items()}
    rows += [
        Difference(path, element_text(removed[path]), element_text(new.get(path)))
        for path in removed
        if path not in places
    ]
    return rows


def _is_below(path: str, place: str) -> bool:
    return path.startswith((place + "/", place + "@"))


def _is_removed(row: Difference, removable: set[str]) -> bool:
    read_only = _READ_ONLY.match(row.path)
    if read_only:
        # Libvirt adds it to a drive.
        return read_only.group(1) not in removable
    if _DISK_DRIVER.match(row.path) and row.before is not None:
        driver = ET.fromstring(row.before)
        return len(driver) > 0 or not set(driver.attrib) <= {"name", "type"}
    return bool(_NEVER_ADDED.match(row.path))
