# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random edits of domains, and what each has to give: rows of the plan, and an effect or what waits and for what.

What is expected follows from what was edited and from libvirt's own XML before and after. Nothing of the collection's
code is used for it.
"""

from __future__ import annotations

import dataclasses
import random
import typing as t
from xml.sax.saxutils import escape

KINDS = (
    "memory", "vcpus", "disk added", "disk removed", "NIC model", "media", "password", "description", "CPU mode",
)  # fmt: skip
MASK = "********"
STORED_WHY, RUNNING_WHY = "the definition is another one", "the running domain differs"
DISK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class World:
    """Where the domains are: their type, the folder of their images, processors that run there."""

    type: str
    folder: str
    models: tuple[str, ...]
    modes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Disk:
    """A disk, CD or floppy; ``extra`` is what else its XML says."""

    target: str
    bus: str
    file: str | None
    device: str = "disk"
    extra: str = ""

    def xml(self) -> str:
        source = f"<source file='{self.file}'/>" if self.file else ""
        readonly = "<readonly/>" if self.device == "cdrom" else ""
        return (
            f"<disk type='file' device='{self.device}'><driver name='qemu' type='raw'/>{source}"
            f"<target dev='{self.target}' bus='{self.bus}'/>{readonly}{self.extra}</disk>"
        )


@dataclasses.dataclass(frozen=True)
class Guest:
    """A domain that boots the talker's sector. Sizes are (number, unit) or, where it is left out, null."""

    name: str
    machine: str = "pc"
    memory: tuple[int, str] = (16, "MiB")
    current: tuple[int, str] | None = None
    vcpus: tuple[int, int] = (1, 1)
    title: str | None = None
    description: str | None = None
    features: str = "<acpi/><apic/>"
    cpu: str = ""
    disks: tuple[Disk, ...] = ()
    nics: tuple[tuple[str, str], ...] = ()
    display: str = ""
    devices: str = ""

    def image(self, world: World) -> str:
        return f"{world.folder}/{self.name}.img"

    def xml(self, world: World) -> str:
        boot = Disk(*(("sda", "sata") if self.machine == "q35" else ("hda", "ide")), self.image(world))
        parts = [
            f"<domain type='{world.type}'><name>{self.name}</name>",
            *(f"<{tag}>{escape(text)}</{tag}>" for tag, text in self.texts() if text is not None),
            "<memory unit='{1}'>{0}</memory>".format(*self.memory),
            "<currentMemory unit='{1}'>{0}</currentMemory>".format(*self.current) if self.current else "",
            "<vcpu current='{}'>{}</vcpu>".format(*self.vcpus),
            f"<os><type arch='x86_64' machine='{self.machine}'>hvm</type><boot dev='hd'/></os>",
            f"<features>{self.features}</features>{self.cpu}<devices>",
            *(disk.xml() for disk in (boot, *self.disks)),
            *(f"<interface type='user'>{mac}<model type='{model}'/></interface>" for mac, model in self.nics),
            f"{self.display}{self.devices}<serial type='pty'/></devices></domain>",
        ]
        return "\n".join(part for part in parts if part)

    def texts(self) -> list[tuple[str, str | None]]:
        return [("title", self.title), ("description", self.description)]


@dataclasses.dataclass(frozen=True)
class Device:
    """In place of a value: the device as libvirt's XML has it, ``stored`` or ``running``, ``before`` or ``after``."""

    path: str
    which: str
    when: str


Value = str | int | Device | None


@dataclasses.dataclass(frozen=True)
class Edit:
    """An edit and what it has to give.

    ``stored`` and ``running`` are rows of the plan (place, before, after; with the call for running ones), ``pending``
    what waits afterwards (place, running, stored, reason). ``beside`` are patterns of places that libvirt changes on
    its own along with it: their rows are held against its XML. ``shows`` and ``lives`` are places of the stored and of
    the running XML and what is there afterwards, the same where only the first tells. ``refused``: the guest or the
    hypervisor does not do what it is asked, which only asking can tell.
    """

    kind: str
    before: Guest
    after: Guest
    stored: tuple[tuple[str, Value, Value], ...] = ()
    running: tuple[tuple[str, Value, Value, str], ...] = ()
    pending: tuple[tuple[str, Value, Value, str], ...] = ()
    beside: tuple[str, ...] = ()
    shows: tuple[tuple[str, str | None], ...] = ()
    lives: tuple[tuple[str, str | None], ...] = ()
    refused: bool = False
    state: str = "running"

    @property
    def name(self) -> str:
        """Return the name of its domain."""
        return self.before.name

    def files(self) -> set[str]:
        """Return the files that its disks and media need, its domain's own image left out."""
        return {disk.file for guest in (self.before, self.after) for disk in guest.disks if disk.file}


def edits(world: World, kind: str, count: int, seed: int) -> list[Edit]:
    """Return that many edits of a kind, each of a domain of its own; the same for the same seed."""
    made = []
    for number in range(count):
        random_ = random.Random(f"{seed}/{kind}/{number}")
        name = f"edit-{kind.lower().replace(' ', '-')}-{number}"
        guest = _surroundings(random_, Guest(name, machine=random_.choice(["pc", "q35"])))
        made.append(_MAKERS[kind](world, random_, number, guest))
    return made


def _surroundings(random_: random.Random, guest: Guest) -> Guest:
    """Give a domain what others have, too, and what no edit touches."""
    devices = [
        "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
        "<watchdog model='i6300esb' action='reset'/>",
        "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
        "<input type='tablet' bus='usb'/>",
        "<memballoon model='virtio'><stats period='10'/></memballoon>",
    ]
    chosen = "".join(random_.sample(devices, random_.randrange(3)))
    return dataclasses.replace(guest, devices=chosen, description=random_.choice([None, "one", "Zeile 1\nZeile 2"]))


def _kib(size: tuple[int, str]) -> int:
    number, unit = size
    return -(-number * {"KiB": 1024, "MiB": 1 << 20, "MB": 10**6, "KB": 1000}[unit] // 1024)


def _memory(world: World, random_: random.Random, number: int, guest: Guest) -> Edit:
    old, new = random_.sample(range(16, 49), 2)
    variant = ("both", "odd", "less", "more", "unit", "rounded")[number % 6]
    most = (48, "MiB")
    before, after = dataclasses.replace(guest, memory=(old, "MiB")), dataclasses.replace(guest, memory=(new, "MiB"))
    if variant == "odd":
        after = dataclasses.replace(guest, memory=(new * 1000 + 1, "KB"))
        before, after = (after, before) if number % 2 else (before, after)
    elif variant == "less":
        before = dataclasses.replace(guest, memory=most, current=most)
        after = dataclasses.replace(before, current=(new % 32 + 15, "MiB"))
    elif variant == "more":
        before = dataclasses.replace(guest, memory=most, current=(new % 32 + 15, "MiB"))
        after = dataclasses.replace(before, current=most)
    elif variant == "rounded":
        before = dataclasses.replace(guest, memory=(old * 1024 - 100, "KiB"))
        after = dataclasses.replace(guest, memory=(old * 1024 - 37, "KiB"))
    elif variant == "unit":
        after = dataclasses.replace(guest, memory=(old * 1024, "KiB"))
    total = [str(_kib(one.memory)) for one in (before, after)]
    current = [str(_kib(one.current or one.memory)) for one in (before, after)]
    places = (("memory", total[0], total[1]), ("currentMemory", current[0], current[1]))
    rows = tuple(row for row in places if row[1] != row[2])
    shows = (("memory", total[1]), ("currentMemory", current[1]))
    # Nobody in the talker gives memory back, so it has all that it was started with.
    room, wanted = int(_up(total[0])), int(current[1])
    asked: tuple[tuple[str, Value, Value, str], ...] = ()
    waits: tuple[tuple[str, Value, Value, str], ...] = ()
    if _up(total[1]) != str(room):
        waits = (("memory", str(room), total[1], "restart"),)
    if _up(current[1]) != str(room):
        if wanted < room:
            asked = (("currentMemory", room, wanted, "setMemory"),)
            waits += (("currentMemory", room, wanted, "guest"),)
        else:
            waits += (("currentMemory", str(room), current[1], "restart"),)
    waiting = [row[0] for row in waits]
    lives = tuple((place, str(room)) for place, _size in shows if place not in waiting)
    return Edit("memory", before, after, rows, asked, waits, shows=shows, lives=lives, refused=bool(asked))


def _up(kib: str) -> str:
    """Return the memory that QEMU starts with: whole MiB."""
    return str(-(-int(kib) // 1024) * 1024)


def _vcpus(world: World, random_: random.Random, number: int, guest: Guest) -> Edit:
    most = random_.choice([2, 3, 4])
    on = random_.randrange(1, most)
    variant = ("up", "down", "beyond", "both")[number % 4]
    old, new = (on, most), (random_.randrange(on + 1, most + 1), most)
    if variant == "down":
        old, new = new, old
    elif variant == "beyond":
        new = (most + 1, most + random_.randrange(1, 3))
    elif variant == "both":
        new = (on + 1, most + 2)
    before, after = dataclasses.replace(guest, vcpus=old), dataclasses.replace(guest, vcpus=new)
    values = [(str(most), None if on == most else str(on)) for on, most in (old, new)]
    rows = tuple(
        row
        for row in (("vcpu", values[0][0], values[1][0]), ("vcpu@current", values[0][1], values[1][1]))
        if row[1] != row[2]
    )
    pending: list[tuple[str, Value, Value, str]] = []
    if new[1] != old[1]:
        pending.append(("vcpu", str(old[1]), str(new[1]), "restart"))
    if variant == "beyond":
        pending.append(("vcpu@current", str(old[0]), str(new[0]), "restart"))
    elif variant == "down":
        pending.append(("vcpu@current", old[0], new[0], "restart"))
    edit = Edit("vcpus", before, after, rows, pending=tuple(pending), refused=variant == "down")
    edit = dataclasses.replace(edit, shows=(("vcpu", values[1][0]), ("vcpu@current", values[1][1])))
    if variant == "beyond":
        return edit
    lives = (("vcpu@current", None if new[0] == old[1] else str(new[0])),)
    asked = (("vcpu@current", old[0], new[0], "setVcpus"),)
    return dataclasses.replace(edit, running=asked, lives=() if edit.refused else lives)


# Per way to plug a disk: machine, features, target and bus, what the domain has for it, whether it can be plugged
# in, and whether it can be pulled out of a guest that does not listen (null: it is asked, and that is pending).
_ACPI, _SCSI = "<acpi/><apic/>", "<controller type='scsi' index='0' model='virtio-scsi'/>"
_PLUGS = {
    "virtio": ("pc", _ACPI, "vdb", "virtio", "", True, None),
    "usb": ("pc", _ACPI, "sdb", "usb", "<controller type='usb' index='0' model='qemu-xhci'/>", True, True),
    "scsi": ("q35", _ACPI, "sdc", "scsi", _SCSI, True, True),
    "ide": ("pc", _ACPI, "hdb", "ide", "", False, False),
    "deaf": ("pc", "", "vdb", "virtio", "", None, False),
    "sata": ("q35", _ACPI, "sdb", "sata", "", False, False),
}
_EXTRAS = ("", "<serial>WD-1</serial>", "<iotune><total_iops_sec>500</total_iops_sec></iotune>", "<shareable/>")


def _disk(world: World, random_: random.Random, number: int, guest: Guest) -> tuple[Guest, Guest, str, str]:
    """Return a domain without and with a disk, the way it is plugged, and the disk's place."""
    way = list(_PLUGS)[number % len(_PLUGS)]
    machine, features, target, bus, devices, *_may = _PLUGS[way]
    guest = dataclasses.replace(guest, machine=machine, features=features, devices=guest.devices + devices)
    disk = Disk(target, bus, f"{world.folder}/{guest.name}-data.img", extra=random_.choice(_EXTRAS))
    return guest, dataclasses.replace(guest, disks=(disk,)), way, f"devices/disk[{target}]"


def _disk_added(world: World, random_: random.Random, number: int, guest: Guest) -> Edit:
    without, with_, way, place = _disk(world, random_, number, guest)
    there = (f"{place}/source@file", with_.disks[0].file)
    after = Device(place, "stored", "after")
    edit = Edit(
        "disk added", without, with_, ((place, None, after),), beside=(r"devices/controller\[",), shows=(there,)
    )
    may = _PLUGS[way][5]
    asked = ((place, None, after, "attachDevice"),)
    if may:
        return dataclasses.replace(edit, running=asked, lives=(there,))
    waits = ((place, None, after, "restart"),)
    return dataclasses.replace(edit, running=asked if may is None else (), pending=waits, refused=may is None)


def _disk_removed(world: World, random_: random.Random, number: int, guest: Guest) -> Edit:
    without, with_, way, place = _disk(world, random_, number, guest)
    gone = ((f"{place}/source@file", None),)
    rows = ((place, Device(place, "stored", "before"), None),)
    running = Device(place, "running", "before")
    edit = Edit("disk removed", with_, without, rows, beside=(r"devices/controller\[",), shows=gone)
    may = _PLUGS[way][6]
    asked = ((place, running, None, "detachDevice"),)
    if may:
        return dataclasses.replace(edit, running=asked, lives=gone)
    pluggable = _PLUGS[way][5] is not False
    waits = ((place, running, None, "detach_pending" if may is None else "restart"),)
    return dataclasses.replace(edit, running=asked if pluggable else (), pending=waits, refused=pluggable)


def _nic_model(world: World, random_: random.Random, number: int, guest: Guest) -> Edit:
    old, new = random_.sample(["e1000", "rtl8139", "virtio", *(["e1000e"] if guest.machine == "q35" else [])], 2)
    mac = "52:54:00:{:02x}:{:02x}:{:02x}".format(*random_.randbytes(3))
    nic, other = f"<mac address='{mac}'/>", "<mac address='52:54:00:00:00:01'/>"
    some = [(other, "e1000")] * random_.randrange(2)
    before = dataclasses.replace(guest, nics=((nic, old), *some))
    after = dataclasses.replace(guest, nics=(("" if random_.randrange(2) and not some else nic, new), *some))
    place = f"devices/interface[{mac}]/model@type"
    # A model for another kind of slot moves, and so may others.
    beside = (r"devices/controller\[", ".*/address@") if guest.machine == "q35" else ()
    return Edit(
        "NIC model", before, after, ((place, old, new),), pending=((place, old, new, "restart"),), beside=beside,
        shows=((place, new),),
    )  # fmt: skip


def _media(world: World, random_: random.Random, number: int, guest: Guest) -> Edit:
    device, target, bus = ("cdrom", "sdb", "sata") if guest.machine == "q35" else ("cdrom", "hdc", "ide")
    if guest.machine == "pc" and random_.randrange(3) == 0:
        device, target, bus = "floppy", "fda", "fdc"
    one, two = (f"{world.folder}/{guest.name}-{letter}.iso" for letter in "ab")
    old, new = ((None, one), (one, two), (one, None))[number % 3]
    before, after = (dataclasses.replace(guest, disks=(Disk(target, bus, medium, device),)) for medium in (old, new))
    place = f"devices/disk[{target}]"
    source, there = f"{place}/source", (f"{place}/source@file", new)
    edit = Edit("media", before, after, shows=(there,), lives=(there,))
    if old and new:
        return dataclasses.replace(
            edit, stored=((f"{source}@file", old, new),), running=((place, old, new, "updateDevice"),)
        )
    stored = (Device(source, "stored", "before"), None) if old else (None, Device(source, "stored", "after"))
    running = (Device(source, "running", "before"), None) if old else stored
    return dataclasses.replace(edit, stored=((source, *stored),), running=((place, *running, "updateDevice"),))


def _password(world: World, random_: random.Random, number: int, guest: Guest) -> Edit:
    one, two = (f"hunter{digits}" for digits in random_.sample(range(10, 100), 2))
    old, new = ((one, two), (None, one), (one, None))[number % 3 if number % 2 else 0]
    display = "<graphics type='vnc' port='-1' autoport='yes'{0}><listen type='address' address='127.0.0.1'/></graphics>"
    before, after = (
        dataclasses.replace(guest, display=display.format(f" passwd='{word}'" if word else "")) for word in (old, new)
    )
    device, place = "devices/graphics[vnc]", "devices/graphics[vnc]@passwd"
    was, will_be = (word and MASK for word in (old, new))
    edit = Edit("password", before, after, ((place, was, will_be),), shows=((place, new),))
    asked = ((device, was, will_be, "updateDevice"),)
    if old and new:
        return dataclasses.replace(edit, running=asked, lives=edit.shows)
    # A display asks for a password or does not; that is settled when it starts.
    if new:
        return dataclasses.replace(edit, running=asked, pending=((device, was, will_be, "restart"),), refused=True)
    return dataclasses.replace(edit, pending=((place, was, will_be, "restart"),))


def _description(world: World, random_: random.Random, number: int, guest: Guest) -> Edit:
    tag = ("description", "title")[number % 4 == 3]
    texts = ["a web server", '<b>bold</b> & "quoted"', "größer", "ends in a dot."]
    texts += [] if tag == "title" else ["Line 1\nLine 2"]
    old, new = random_.sample([*texts, None], 2)
    before, after = (
        dataclasses.replace(guest, title=text) if tag == "title" else dataclasses.replace(guest, description=text)
        for text in (old, new)
    )
    there = ((tag, new),)
    return Edit(
        "description", before, after, ((tag, old, new),), ((tag, old, new, "setMetadata"),), shows=there, lives=there
    )


def _cpu_mode(world: World, random_: random.Random, number: int, guest: Guest) -> Edit:
    named = "<cpu mode='custom' match='exact'><model fallback='forbid'>{0}</model></cpu>"
    if number % 3 == 0:
        old, new = random_.sample(world.models, 2)
        before, after = (dataclasses.replace(guest, cpu=named.format(model)) for model in (old, new))
        place = "cpu/model"
        return Edit(
            "CPU mode", before, after, ((place, old, new),), pending=((place, old, new, "restart"),),
            shows=((place, new),),
        )  # fmt: skip
    modes = ["custom", *world.modes]
    old = modes[(number // 3) % len(modes)]
    new = random_.choice([mode for mode in modes if mode != old])
    model = random_.choice(world.models)
    cpus = [named.format(model) if mode == "custom" else f"<cpu mode='{mode}'/>" for mode in (old, new)]
    before, after = (dataclasses.replace(guest, cpu=cpu) for cpu in cpus)
    # A start writes the host's model out; a domain that runs has a mode of its own otherwise.
    runs = "custom" if old == "host-model" else old
    place, beside = "cpu@mode", ("cpu[@/]",)
    if runs == new:
        # Which model runs is the host's affair; it waits for the named one, beside what else its XML says.
        shows = ((place, new), ("cpu/model", model))
        return Edit("CPU mode", before, after, ((place, old, new),), beside=beside, shows=shows)
    waits = ((place, runs, new, "restart"),)
    return Edit("CPU mode", before, after, ((place, old, new),), pending=waits, beside=beside, shows=((place, new),))


_MAKERS: dict[str, t.Callable[[World, random.Random, int, Guest], Edit]] = {
    "memory": _memory,
    "vcpus": _vcpus,
    "disk added": _disk_added,
    "disk removed": _disk_removed,
    "NIC model": _nic_model,
    "media": _media,
    "password": _password,
    "description": _description,
    "CPU mode": _cpu_mode,
}
