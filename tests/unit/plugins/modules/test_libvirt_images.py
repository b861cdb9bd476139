# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where disks are by libvirt's pools, while these come and go, and disks that could not be deleted: the test driver."""

from __future__ import annotations

import pathlib
import types
import typing as t
import xml.etree.ElementTree as ET

import libvirt
import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.disk.disks import Source
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.disk.images import ImageLocator
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.lifecycle import Waiting
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.plan import Options, Wanted
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.run import DomainRun

VOLUME = "<volume><name>{0}</name><capacity>1024</capacity></volume>"
DOMAIN = (
    "<domain type='test'><name>web1</name><memory>1024</memory><os><type>hvm</type></os><devices>{0}</devices></domain>"
)


@pytest.fixture
def connection() -> t.Iterator[libvirt.virConnect]:
    opened = libvirt.open("test:///default")
    yield opened
    opened.close()


def test_a_volume_that_vanishes_while_it_is_listed_stands_on_nothing(connection: libvirt.virConnect) -> None:
    pool = connection.storagePoolLookupByName("default-pool")
    pool.createXML(VOLUME.format("a"))

    def listed_and_gone() -> list[libvirt.virStorageVol]:
        volumes: list[libvirt.virStorageVol] = pool.listAllVolumes()
        for volume in volumes:
            volume.delete()
        return volumes

    pools = [types.SimpleNamespace(listAllVolumes=listed_and_gone)]
    racing = types.SimpleNamespace(listAllStoragePools=lambda _flags: pools)
    assert ImageLocator(racing, local=False).volume_uses() == []
    assert pool.listAllVolumes() == []


def test_a_volume_of_a_pool_that_is_off_keeps_its_name_and_may_stand_on_anything(
    connection: libvirt.virConnect,
) -> None:
    connection.storagePoolLookupByName("default-pool").destroy()
    disk = "<disk type='volume'><source pool='default-pool' volume='x'/><target dev='vda'/></disk>"
    (use,) = ImageLocator(connection, local=False).uses_in("web1", ET.fromstring(DOMAIN.format(disk)))
    assert use.names == {"volume:default-pool/x"}
    assert "not active" in (use.unseen or "")
    assert ImageLocator(connection, local=False).known_names(Source("volume", None, "none", "x")) == (
        frozenset(["volume:none/x"]),
        None,
    )


def test_the_disks_that_could_not_be_deleted_are_all_named(
    connection: libvirt.virConnect, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The domain is gone by then, so that no later run knows of them."""
    files = {target: tmp_path / f"{target}.img" for target in ("vda", "vdb", "vdc")}
    for file in files.values():
        file.write_bytes(b"data")
    disk = "<disk type='file'><source file='{1}'/><target dev='{0}'/></disk>"
    connection.defineXML(DOMAIN.format("".join(disk.format(*one) for one in files.items())))

    list_domains = connection.listAllDomains

    def list_and_replace() -> list[libvirt.virDomain]:
        domains: list[libvirt.virDomain] = list_domains()
        for target in ("vda", "vdc") if "web1" not in [domain.name() for domain in domains] else ():
            # Another file by now.
            files[target].rename(tmp_path / f"{target}.old")
            files[target].write_bytes(b"other data")
        return domains

    monkeypatch.setattr(connection, "listAllDomains", list_and_replace)
    # Its files are this host's.
    wanted = Wanted("web1", "absent", remove_disks=tuple(files))
    run = DomainRun("qemu:///system", 5, [wanted], Options("both", Waiting(1, "fail")))
    run.run(connection, check_mode=False)
    with pytest.raises(TapvirtError) as failed:
        run.result(check_mode=False, with_diff=False)
    assert failed.value.message.endswith(
        f"These disks were not deleted; delete them manually: {files['vda']} (vda), {files['vdc']} (vdc)."
    )
    assert [file.exists() for file in files.values()] == [True, False, True]
    assert failed.value.fields["changed"] is True
