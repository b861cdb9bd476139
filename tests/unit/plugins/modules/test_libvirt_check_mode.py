# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check mode of every libvirt module and every state changes nothing, and plans what the real run then does.

A real libvirtd, all of whose files are looked at: /etc/libvirt, /run and /var/lib/libvirt are its own, and so is the
root of an embedded driver in /run. Each case has an item of its own, in the state that the case begins with.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib
import json
import os
import pathlib
import re
import signal
import stat
import subprocess
import tempfile
import typing as t

import libvirt
import pytest
from ansible_collections.tapvirt.host.playbooks.filter_plugins.boot_sector import boot_sector
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.module_server import MODULES, ModuleServer
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.system_daemon import SystemDaemon, system_daemon

HERE = pathlib.Path(__file__).resolve().parent
FOLDERS = ("/etc/libvirt", "/run", "/var/lib/libvirt")
IMAGES = "/var/lib/libvirt/images"
IMAGE = IMAGES + "/{name}"
POOLS = "/var/lib/libvirt/pools"
NVRAM = "/var/lib/libvirt/qemu/nvram"
SYSTEM = "qemu:///system"
EMBED = "qemu:///embed?root=/run/e"
# What changes by itself: logs; who has the embedded driver's root, and what QEMU can do, whenever that is opened.
LEFT_OUT = re.compile(r"/run/.*\.log|/run/e/(\.tapvirt(/.*)?|run/qemu/driver\.pid|cache/.*)")
# Where only the time of writing does: libvirt locks a console while it is read, an embedded driver that is opened
# writes down what it knows of its guests, and one that starts QEMU for its capabilities makes a directory for its
# monitor (``qmp-XXXXXX``) and removes it.
SAME_BUT_TIME = re.compile(r"/run/(lock|e/run/qemu(/.*)?|e/lib/qemu)|/var/lib/libvirt/qemu")
INACTIVE = 1  # the same bit for networks and pools
MIB = 1 << 20
SOAK = bool(os.environ.get("TAPVIRT_SOAK"))
DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <description>{description}</description>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type>{firmware}<boot dev='hd'/></os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='{form}'/><source file='{image}'/><target dev='hda' bus='ide'/>
    </disk>
    {devices}
    <serial type='pty'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""
DISK = "<disk type='file' device='disk'><source file='{image}'/><target dev='{target}' bus='virtio'/></disk>"
FIRMWARE = f"""
<loader readonly='yes' type='pflash'>{IMAGES}/firmware</loader><nvram>{NVRAM}/{{name}}.fd</nvram>
"""
NETWORK = "<network><forward mode='bridge'/><bridge name='{bridge}'/>{more}</network>"
PORTS = "<portgroup name='one'/>"
POOL = f"<pool type='dir'><target><path>{POOLS}/{{folder}}</path></target></pool>"


@dataclasses.dataclass(frozen=True)
class Case:
    """One task: a module, the state that it asks for, the one that its item is in, and what else it is told.

    ``{name}`` is the name of its item. ``domain`` is what a domain of that name is made from; null: there is none.
    ``snapshots`` are those of the domain, each the child of the one before. ``soak``: CI has no time for it.
    """

    module: str
    state: str | None
    start: str
    note: str
    params: dict[str, t.Any]
    domain: dict[str, t.Any] | None = None
    snapshots: tuple[str, ...] = ()
    soak: bool = False

    @property
    def name(self) -> str:
        """Return the name of its item."""
        kind = self.module.partition("_")[2]
        return "-".join(word for word in (kind, self.state, self.start, self.note) if word).replace(" ", "-")

    def args(self) -> dict[str, t.Any]:
        """Return what its module is told."""
        args = json.loads(json.dumps(self.params).replace("{name}", self.name))
        return {**args, "state": self.state} if self.state is not None else args


@dataclasses.dataclass(frozen=True)
class Task:
    """The cases that one task has room for: items of one module that is told the same of all of them."""

    module: str
    cases: tuple[Case, ...]
    rows: str
    args: dict[str, t.Any]

    @property
    def name(self) -> str:
        """Return a name for the task."""
        return f"{self.module}-{self.args['apply']}" if "apply" in self.args else self.cases[0].name


def tasks(cases: t.Iterable[Case]) -> list[Task]:
    """Put cases into as few tasks as they take."""
    rooms: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        item = items_of(case.module)[1]
        same = {} if item is None else {key: value for key, value in case.params.items() if key not in item}
        rooms.setdefault((case.module, case.name if item is None else json.dumps(same)), []).append(case)
    found = []
    for (module, same_text), room in rooms.items():
        rows, item = items_of(module)
        if item is None:
            found.append(Task(module, tuple(room), "", room[0].args()))
        else:
            items = [{key: value for key, value in case.args().items() if key in item} for case in room]
            found.append(Task(module, tuple(room), rows, {**json.loads(same_text), rows: items}))
    return found


def items_of(module: str) -> tuple[str, dict[str, t.Any] | None]:
    """Return the option of a module that takes many items, and what there is to say of one; null: it takes one."""
    for name, option in spec_of(module).items():
        if "state" in option.get("options", {}):
            return name, option["options"]
    return "", None


def spec_of(module: str) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", importlib.import_module(MODULES + module).ARGUMENT_SPEC)


# ---- the cases -------------------------------------------------------------------------------------------------------


EVERYTHING = ["nvram", "tpm", "managed_save", "snapshots", "checkpoints"]


def domain_xml(name: str, **changes: t.Any) -> str:
    values = {"description": "one", "memory": 16, "form": "raw", "image": IMAGE, "devices": "", "firmware": ""}
    return DOMAIN.format(**{**values, "name": name, **changes}).replace("{name}", name)


def domain_case(
    state: str, start: str, note: str = "", has: t.Any = None, xml: t.Any = None, soak: bool = False, **params: t.Any
) -> Case:
    """Return a case of libvirt_domain; ``xml`` is what its definition differs in from the one that is there."""
    # These guests never shut down; memory takes its time to be written.
    task = {
        "apply": "both",
        "remove": EVERYTHING,
        "wait_seconds": 60 if state == "saved" else 0,
        "on_timeout": "destroy",
    }
    params = {"name": "{name}", **task, **params}
    if xml is not None:
        params["xml"] = domain_xml("{name}", **{**(has or {}), **xml})
    return Case("libvirt_domain", state, start, note, params, has or {}, soak=soak)


OTHER = {"description": "other"}
CDROM = "<disk type='file' device='cdrom'>{medium}<target dev='hdc' bus='ide'/><readonly/></disk>"
NIC = "<interface type='user'><mac address='52:54:00:00:00:0{number}'/><model type='e1000'/>{link}</interface>"
BEFORE = CDROM.format(medium="") + NIC.format(number=1, link="")
AFTER = CDROM.format(medium=f"<source file='{IMAGES}/medium'/>") + NIC.format(number=1, link="<link state='down'/>")
MORE = NIC.format(number=2, link="")
TPM = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>"
DOMAINS = [
    domain_case("present", "absent", xml={}),
    domain_case("present", "off", xml=OTHER),
    domain_case("present", "running", has={"devices": BEFORE}, xml={"devices": AFTER + MORE, **OTHER}),
    domain_case("present", "off", "autostart", autostart=True),
    domain_case("running", "absent", xml={}),
    domain_case("running", "off"),
    domain_case("running", "paused"),
    domain_case("running", "saved", soak=True),
    domain_case("shutdown", "absent", xml={}),
    domain_case("shutdown", "off", xml=OTHER),
    domain_case("shutdown", "running"),
    domain_case("shutdown", "paused", soak=True),
    domain_case("paused", "absent", xml={}),
    domain_case("paused", "off"),
    domain_case("paused", "running"),
    domain_case("paused", "saved", soak=True),
    domain_case("saved", "running"),
    domain_case("saved", "paused"),
    domain_case("absent", "off"),
    domain_case("absent", "running", remove_disks=["hda"]),
    domain_case("absent", "saved"),
    domain_case("absent", "off", "disk", remove_disks=["hda"]),
    domain_case("absent", "off", "volume", has={"image": f"{POOLS}/volumes/{{name}}"}, remove_disks=["hda"]),
    domain_case("absent", "off", "nvram", has={"firmware": FIRMWARE}),
    domain_case("absent", "off", "tpm", has={"devices": TPM}),
    domain_case("absent", "off", "snapshots", has={"form": "qcow2"}),
    domain_case("absent", "paused", "checkpoints", has={"form": "qcow2"}, soak=True),
    domain_case("present", "paused", "config", xml=OTHER, apply="config", soak=True),
    domain_case("present", "paused", "live", xml=OTHER, apply="live"),
    domain_case("paused", "paused", "restart", xml={"memory": 24}, apply="restart_if_needed"),
]


def network_xml(bridge: str = "br0", more: str = "") -> str:
    return NETWORK.format(bridge=bridge, more=more)


def network_case(state: str, start: str, note: str = "", **params: t.Any) -> Case:
    """Return a case of libvirt_network."""
    params = {"name": "{name}", "apply": "both", "disconnect": ["nobody"], **params}
    return Case("libvirt_network", state, start, note, params)


NETWORKS = [
    network_case("present", "absent", xml=network_xml()),
    network_case("present", "inactive", xml=network_xml("br1")),
    network_case("present", "active", xml=network_xml(more=PORTS)),
    network_case("present", "inactive", "autostart", autostart=True),
    network_case("active", "absent", xml=network_xml(), autostart=True),
    network_case("active", "inactive"),
    network_case("inactive", "absent", xml=network_xml()),
    network_case("inactive", "active"),
    network_case("absent", "inactive"),
    network_case("absent", "active"),
    network_case("present", "active", "config", xml=network_xml(more=PORTS), apply="config"),
    network_case("present", "active", "live", xml=network_xml(more=PORTS), apply="live"),
    network_case("active", "active", "restart", xml=network_xml("br1"), apply="restart_if_needed"),
]


def pool_case(state: str, start: str, note: str = "", folder: str | None = None, **params: t.Any) -> Case:
    """Return a case of libvirt_pool; ``folder`` is what its definition names below the folder of pools."""
    if folder is not None:
        params["xml"] = POOL.format(folder=folder)
    return Case("libvirt_pool", state, start, note, {"name": "{name}", **params})


POOL_CASES = [
    pool_case("present", "absent", folder="{name}"),
    pool_case("present", "inactive", folder="other-{name}"),
    pool_case("present", "active", folder="another-{name}"),
    pool_case("present", "inactive", "autostart", autostart=True),
    pool_case("active", "absent", folder="new/{name}", autostart=True),
    pool_case("active", "inactive"),
    pool_case("active", "absent", "build", folder="{name}", build=True),
    pool_case("inactive", "absent", folder="{name}"),
    pool_case("inactive", "active"),
    pool_case("absent", "inactive"),
    pool_case("absent", "active"),
    pool_case("absent", "in use", allow_in_use=True),
    pool_case("inactive", "in use", allow_in_use=True),
]


def volume_case(state: str, start: str, note: str = "", **params: t.Any) -> Case:
    """Return a case of libvirt_volume."""
    return Case("libvirt_volume", state, start, note, {"pool": "volumes", "name": "{name}", **params})


SOURCE = "/run/source.raw"
CONTENT = b"content" * 1000
SUM = hashlib.sha256(CONTENT).hexdigest()
VOLUMES = [
    volume_case("present", "absent", "raw", capacity="1MiB"),
    volume_case("present", "absent", "qcow2", capacity="1MiB", format="qcow2"),
    volume_case("present", "absent", "xml", xml="<volume><capacity unit='KiB'>64</capacity></volume>"),
    volume_case("present", "absent", "backing", backing={"path": f"{POOLS}/volumes/origin", "format": "raw"}),
    volume_case("present", "absent", "upload", source=SOURCE),
    volume_case("present", "absent", "checksum", source=SOURCE, checksum=SUM),
    volume_case("present", "absent", "clone", clone_from="origin"),
    volume_case("present", "present", "grow", capacity="2MiB"),
    volume_case("present", "present", "shrink", capacity="512KiB", force_shrink=True),
    volume_case("present", "present", "checksum", source=SOURCE, checksum=SUM),
    volume_case("present", "in use", "grow", capacity="2MiB", allow_in_use=True),
    volume_case("present", "in use", "checksum", source=SOURCE, checksum=SUM, allow_in_use=True),
    volume_case("absent", "present"),
    volume_case("absent", "in use", allow_in_use=True),
]


def snapshot_case(state: str, start: str, note: str = "", has: str = "", soak: bool = False, **params: t.Any) -> Case:
    """Return a case of libvirt_snapshot; ``has`` are the snapshots that its domain has."""
    params = {"domain": "{name}", "name": "one", **params}
    return Case("libvirt_snapshot", state, start, note, params, {"form": "qcow2"}, tuple(has.split()), soak)


EXTERNAL: dict[str, t.Any] = {"kind": "external"}
SNAPSHOTS = [
    snapshot_case("present", "off", kind="internal"),
    snapshot_case("present", "running"),
    snapshot_case("present", "off", "external", **EXTERNAL),
    snapshot_case("present", "running", "memory", soak=True, memory_file=IMAGES + "/{name}.memory", **EXTERNAL),
    snapshot_case("present", "off", "child", has="internal:zero"),
    snapshot_case("absent", "off", has="internal:one"),
    snapshot_case("absent", "running", has="internal:one"),
    snapshot_case("absent", "off", "with children", has="internal:one internal:two internal:three", with_children=True),
    snapshot_case(
        "absent", "off", "without children", has="internal:one internal:two internal:three", with_children=False
    ),
    snapshot_case("absent", "off", "external", has="external:one"),
    snapshot_case("reverted", "off", has="internal:one internal:two"),
    snapshot_case("reverted", "running", has="internal:one internal:two"),
]


def console_case(start: str, **params: t.Any) -> Case:
    """Return a case of libvirt_console."""
    params = {"name": "{name}", "start": True, "until": "hello", "dest": "/run/{name}.raw", **params}
    return Case("libvirt_console", None, start, "", params, {})


CONSOLES = [console_case("off"), console_case("paused")]


def daemon_case(start: str, note: str, **params: t.Any) -> Case:
    """Return a case of libvirt_daemon; ``set`` has a filter already, while it runs and stored."""
    return Case("libvirt_daemon", None, start, note, params)


OUTPUTS = ["3:stderr", "4:file:/run/daemon.log"]
DAEMONS = [
    daemon_case("default", "filters", log_filters=["1:qemu"]),
    daemon_case("default", "outputs", log_outputs=OUTPUTS),
    daemon_case("default", "persist", log_filters=["1:qemu"], log_outputs=OUTPUTS, persist=True),
    daemon_case("set", "filters", log_filters=["2:qemu"]),
    daemon_case("set", "persist", log_filters=["2:qemu"], persist=True),
    daemon_case("set", "off", log_filters=[], persist=True),
]

EVERY_CASE = [*DOMAINS, *NETWORKS, *POOL_CASES, *VOLUMES, *SNAPSHOTS, *CONSOLES, *DAEMONS]
CASES = [case for case in EVERY_CASE if SOAK or not case.soak]
GUESTS = ("libvirt_domain", "libvirt_snapshot")
# The same on an embedded driver, which has no more than these; in CI with two beginnings for each state.
EMBEDDED = [
    dataclasses.replace(case, note=f"{case.note} embedded".strip())
    for case in CASES
    if case.module in GUESTS and case.note in ("", "with children")
]
if not SOAK:
    several = [[one for one in EMBEDDED if (one.module, one.state) == (case.module, case.state)] for case in EMBEDDED]
    EMBEDDED = [case for case, those in zip(EMBEDDED, several) if case in those[:2]]
# One domain stands on all that is in use.
IN_USE = {case.name: case for case in CASES if case.start == "in use"}
USER = "user"
# Every module of the collection that speaks with libvirt.
ALL_MODULES = sorted(path.stem for path in HERE.parents[3].glob("plugins/modules/libvirt_*.py"))
# It takes two hosts, which are not here.
ELSEWHERE = {"libvirt_migration"}
INFOS = [name for name in ALL_MODULES if name.endswith("_info")]


# ---- the world -------------------------------------------------------------------------------------------------------

# What a domain is at first, by what a case begins with; what is saved has to run before.
FIRST = {"off": "shutdown", "running": "running", "paused": "paused", "saved": "running"}


class Host:
    """Libvirt with an item for each case, its files, and what it says of itself."""

    def __init__(self, libvirtd: SystemDaemon, server: ModuleServer) -> None:
        self.libvirtd = libvirtd
        self.server = server
        path = libvirtd.path("/run/libvirt/libvirt-sock")
        self.connection = libvirt.open(f"qemu+unix:///system?socket={path}")
        self.boot = base64.b64decode(boot_sector("hello"))
        self.qcow2 = empty_qcow2()
        for name in ("firmware", "medium"):
            self.image(f"{IMAGES}/{name}", bytes(MIB))
        self.image(f"{POOLS}/volumes/origin", bytes(MIB))
        self.image(SOURCE, CONTENT)
        libvirtd.path("/run/lock").mkdir()

    # ---- what is there ----

    def files(self) -> dict[str, str]:
        """Return all that can be told of each file, a regular one's content included."""
        found = {}
        for folder in FOLDERS:
            top = self.libvirtd.path(folder)
            for path in [top, *top.rglob("*")]:
                name = folder + str(path)[len(str(top)) :]
                if LEFT_OUT.fullmatch(name):
                    continue
                at = path.lstat()
                facts: list[t.Any] = [at.st_mode, at.st_uid, at.st_gid, at.st_size]
                if not SAME_BUT_TIME.fullmatch(name):
                    facts.append(at.st_mtime_ns)
                if stat.S_ISREG(at.st_mode):
                    facts.append(hashlib.sha256(path.read_bytes()).hexdigest())
                if stat.S_ISLNK(at.st_mode):
                    facts.append(path.readlink())
                found[name] = repr(facts)
        return found

    def state(self) -> dict[str, t.Any]:
        """Return what libvirt tells of everything that it has."""
        inactive, secure = libvirt.VIR_DOMAIN_XML_INACTIVE, libvirt.VIR_DOMAIN_XML_SECURE
        found: dict[str, t.Any] = {}
        for one in self.connection.listAllDomains():
            flags = [one.ID(), one.state(), one.autostart(), one.isPersistent(), one.hasManagedSaveImage()]
            held = [thing.getXMLDesc() for thing in [*one.listAllSnapshots(), *one.listAllCheckpoints()]]
            found[f"domain {one.name()}"] = [one.XMLDesc(secure), one.XMLDesc(secure | inactive), flags, held]
        for one in [*self.connection.listAllNetworks(), *self.connection.listAllStoragePools()]:
            if isinstance(one, libvirt.virStoragePool) and one.isActive():
                one.refresh()
                # Whoever reads a volume's content is noted there.
                texts = [re.sub("<atime>.*</atime>", "", inner.XMLDesc()) for inner in one.listAllVolumes()]
                found[f"volumes {one.name()}"] = sorted(texts)
            flags = [one.isActive(), one.autostart(), one.isPersistent()]
            found[f"{type(one).__name__} {one.name()}"] = [one.XMLDesc(), one.XMLDesc(INACTIVE), flags]
        return found

    def logging(self, module: str) -> list[str]:
        """Return what the daemon logs, and where to; of no other module's concern."""
        asked = ("filters", "outputs") if module == "libvirt_daemon" else ()
        return [self.libvirtd.run("virt-admin", "-q", f"daemon-log-{what}") for what in asked]

    def unchanged(self, module: str, check: bool = True, **args: t.Any) -> dict[str, t.Any]:
        """Run a module and return its result; nothing may be another than it was before, nor told to be."""
        files, state, logging = self.files(), self.state(), self.logging(module)
        result = self.server.done(module, check=check, **args)
        files_now, state_now = self.files(), self.state()
        assert digest(files_now) == digest(files), differing(files, files_now)
        assert differing(state, state_now) == []
        assert self.logging(module) == logging
        return result

    # ---- how it came to be ----

    def image(self, path: str, content: bytes, size: int | None = None) -> None:
        """Have a file of some content and size."""
        file = self.libvirtd.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        if size is not None:
            os.truncate(file, size)

    def make_domains(self, cases: t.Sequence[Case], uri: str = SYSTEM) -> None:
        """Have the image of each case's domain, and the domain in the state that the case begins with."""
        wanted = []
        for case in cases:
            if case.domain is not None:
                image = case.domain.get("image", IMAGE).format(name=case.name)
                self.image(image, self.qcow2 if "form" in case.domain else self.boot)
                if case.start in FIRST:
                    xml = domain_xml(case.name, **case.domain)
                    wanted.append({"name": case.name, "xml": xml, "state": FIRST[case.start]})
        self.server.done("libvirt_domain", uri=uri, domains=wanted)
        saved = [{"name": case.name, "state": "saved"} for case in cases if case.start == "saved"]
        self.server.done("libvirt_domain", uri=uri, domains=saved)
        snapshots = [
            {"domain": case.name, "name": name.rpartition(":")[2], "kind": name.rpartition(":")[0]}
            for case in cases
            for name in case.snapshots
        ]
        self.server.done("libvirt_snapshot", uri=uri, snapshots=snapshots)

    def make_networks(self, cases: t.Sequence[Case]) -> None:
        """Have the network of each case that begins with one."""
        there = [case for case in cases if case.module == "libvirt_network" and case.start != "absent"]
        wanted = [{"name": case.name, "xml": network_xml(), "state": case.start} for case in there]
        self.server.done("libvirt_network", networks=wanted)

    def make_storage(self, cases: t.Sequence[Case]) -> None:
        """Have the pool and the volume of each case that begins with one."""
        states = {"volumes": "active"}
        for case in cases:
            if case.module == "libvirt_pool" and case.start != "absent":
                states[case.name] = "active" if case.start == "in use" else case.start
            if case.module == "libvirt_volume" and case.start != "absent":
                self.image(f"{POOLS}/volumes/{case.name}", b"", MIB)
        wanted = [{"name": name, "xml": POOL.format(folder=name), "state": state} for name, state in states.items()]
        self.server.done("libvirt_pool", pools=wanted)
        disks = ""
        for number, (name, case) in enumerate(IN_USE.items()):
            image = f"{POOLS}/volumes/{name}" if case.module == "libvirt_volume" else f"{POOLS}/{name}/disk"
            self.image(image, b"", MIB)
            disks += DISK.format(image=image, target=f"vd{'abcdef'[number]}")
        self.image(IMAGE.format(name=USER), self.boot)
        self.server.done("libvirt_domain", name=USER, xml=domain_xml(USER, devices=disks), state="paused")

    def make_belongings(self, cases: t.Sequence[Case]) -> None:
        """Have what an undefine may take, and what modules have nothing to do with."""
        for case in cases:
            if case.note == "nvram":
                self.image(f"{NVRAM}/{case.name}.fd", b"nvram")
            if case.note == "tpm":
                uuid = self.connection.lookupByName(case.name).UUIDString()
                self.image(f"/var/lib/libvirt/swtpm/{uuid}/tpm2/state", b"tpm")
            if case.note == "snapshots":
                self.server.done("libvirt_snapshot", domain=case.name, name="one")
            if case.note == "checkpoints":
                xml = "<domaincheckpoint><name>one</name></domaincheckpoint>"
                self.connection.lookupByName(case.name).checkpointCreateXML(xml)

    def begin(self, case: Case) -> None:
        """Have the daemon log what a case begins with."""
        if case.module == "libvirt_daemon":
            self.libvirtd.path("/etc/libvirt/libvirtd.conf").unlink(missing_ok=True)
            filters = ["1:qemu"] if case.start == "set" else []
            self.server.done("libvirt_daemon", log_filters=filters, log_outputs=["3:stderr"], persist=bool(filters))


def empty_qcow2() -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", file.name, "1M"], check=True)
        return pathlib.Path(file.name).read_bytes()


def differing(before: dict[str, t.Any], after: dict[str, t.Any]) -> list[str]:
    """Return the names of what has changed: the whole would be too long to be read."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def digest(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


@pytest.fixture(scope="module")
def world() -> t.Iterator[Host]:
    with system_daemon() as libvirtd:
        # The daemon's log of each guest.
        libvirtd.run("mount", "-t", "tmpfs", "tmpfs", "/var/log/libvirt")
        server = ModuleServer(libvirtd.inside, set(ALL_MODULES) - ELSEWHERE)
        try:
            made = Host(libvirtd, server)
            made.make_storage(CASES)
            made.make_networks(CASES)
            made.make_domains(CASES)
            made.make_belongings(CASES)
            yield made
            made.connection.close()
        finally:
            server.end()


# ---- the tests -------------------------------------------------------------------------------------------------------


def test_every_state_of_every_module_has_cases_that_begin_in_two_ways() -> None:
    writing = set(ALL_MODULES) - set(INFOS) - ELSEWHERE
    assert len(writing) >= 7
    for module in writing:
        spec, cases = spec_of(module), [case for case in EVERY_CASE if case.module == module]
        for state in spec.get("state", {}).get("choices", [None]):
            starts = {case.start for case in cases if case.state == state and not case.soak}
            assert len(starts) >= 2, f"{module}, state {state}: begins with {starts}"
        for option in ("apply", "kind", "remove"):
            values = str([case.params.get(option) for case in cases])
            untold = [choice for choice in spec.get(option, {}).get("choices", ()) if repr(choice) not in values]
            assert not untold, f"{module}, {option}: no case has {untold}"


def args_of(task: Task, uri: str) -> dict[str, t.Any]:
    return {**task.args, **({"uri": uri} if "uri" in spec_of(task.module) else {})}


def plan_task(world: Host, task: Task, uri: str = SYSTEM) -> dict[str, t.Any]:
    """Run a task in check mode and return its result: nothing changes, and each item would."""
    planned = world.unchanged(task.module, **args_of(task, uri))
    assert planned["changed"]
    assert planned["plan"]
    assert [case.name for case, row in zip(task.cases, planned.get(task.rows, [])) if not row["changed"]] == []
    return planned


def do_task(world: Host, task: Task, planned: dict[str, t.Any], uri: str = SYSTEM) -> None:
    """Run a task for real: it does what was planned."""
    before = [digest(world.files()), *world.logging(task.module)]
    done = world.server.done(task.module, **args_of(task, uri))
    assert done["plan"] == planned["plan"]
    assert [row["state"] for row in done.get(task.rows, [])] == [row["state"] for row in planned.get(task.rows, [])]
    # Had check mode done it, it would have been seen.
    assert [digest(world.files()), *world.logging(task.module)] != before


@pytest.mark.parametrize("task", tasks(CASES), ids=lambda task: task.name)
def test_check_mode_changes_nothing_and_plans_what_is_then_done(world: Host, task: Task) -> None:
    world.begin(task.cases[0])
    planned = plan_task(world, task)
    # Starting, ending and saving guests takes longer than CI has time for.
    if SOAK or task.module not in GUESTS:
        do_task(world, task, planned)


def test_check_mode_of_a_purge(world: Host) -> None:
    names = [str(one.name()) for one in world.connection.listAllDomains()]
    world.image(IMAGE.format(name="forgotten"), world.boot)
    world.server.done("libvirt_domain", name="forgotten", xml=domain_xml("forgotten"), autostart=True)
    args: dict[str, t.Any] = {"domains": [{"name": name} for name in names], "purge": True, "apply": "config"}
    planned = world.unchanged("libvirt_domain", **args)
    assert [(row["what"], row["how"]) for row in planned["plan"]] == [("forgotten definition", "undefine")]
    assert world.server.done("libvirt_domain", **args)["plan"] == planned["plan"]


# A guest that runs at first and still does.
TALKER = "snapshot-present-running"
READS: dict[str, dict[str, t.Any]] = {
    **{name: {} for name in INFOS},
    "libvirt_domain_info": {"gather": spec_of("libvirt_domain_info")["gather"]["choices"]},
    "libvirt_console": {"name": TALKER, "timeout_seconds": 0.2, "dest": "/run/talker.raw"},
    "libvirt_daemon": {"fetch_log": True},
}


@pytest.mark.parametrize("module", READS)
def test_what_only_reads_changes_nothing(world: Host, module: str) -> None:
    if module == "libvirt_daemon":
        world.server.done(module, log_outputs=OUTPUTS)
    assert not world.unchanged(module, **READS[module]).get("changed")


def test_check_mode_on_an_embedded_driver(world: Host) -> None:
    """What it tells of itself it tells when opened, so that it is its files that are looked at.

    The driver has to start QEMU for its capabilities in the first check: on some hosts it does so at every definition.
    """
    world.make_domains(EMBEDDED, EMBED)
    for path in world.libvirtd.path("/run/e/cache/qemu/capabilities").glob("*.xml"):
        path.unlink()
    try:
        planned = [(task, plan_task(world, task, EMBED)) for task in tasks(EMBEDDED)]
        for task, then in planned if SOAK else []:
            do_task(world, task, then, EMBED)
    finally:
        for record in world.libvirtd.path("/run/e/run/qemu").glob("*embedded.pid"):
            os.kill(int(record.read_text(encoding="ascii")), signal.SIGKILL)


def test_check_mode_makes_no_root_of_an_embedded_driver(world: Host) -> None:
    new: dict[str, t.Any] = {"uri": "qemu:///embed?root=/run/not/there"}
    wanted = [
        {"name": f"new-{state}", "xml": domain_xml(f"new-{state}"), "state": state}
        for state in ("present", "running", "shutdown", "paused")
    ]
    planned = world.unchanged("libvirt_domain", domains=wanted, **new)
    assert planned["plan"][0]["what"] == "/run/not/there/etc/qemu.conf"
    assert all(row["changed"] for row in planned["domains"])
    gone: dict[str, dict[str, t.Any]] = {"libvirt_domain": {}, "libvirt_snapshot": {"domain": "new"}}
    for module, args in gone.items():
        assert world.unchanged(module, name="new", state="absent", **args, **new)["plan"] == []
    assert not world.libvirtd.path("/run/not").exists()
