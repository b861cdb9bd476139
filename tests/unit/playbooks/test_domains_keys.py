# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""domains and entries whose keys would be ignored: refused for each host, by name, before libvirt is asked."""

from __future__ import annotations

import pathlib

from ansible_collections.tapvirt.host.tests.unit.support.stubs import Stubs, artifact


def test_keys_of_a_definition_that_is_not_made_are_refused(tmp_path: pathlib.Path) -> None:
    stubs = Stubs(tmp_path, libvirt_domain='return {"changed": False, "plan": [], "domains": []}')
    wanted = [{"name": "db", "xml": "<domain/>"}, {"name": "old", "state": "absent", "vcpus": 2}]
    hosts = {
        "h1": {"domains_host": [{"name": "web", "vcpus": 8, "disks": [{"target": "vda", "file": "/a"}]}]},
        "h2": {"domains_host": [{"name": "db", "memory_mib": 64}]},
        "h3": {"domains_host": [{"name": "web", "memory_mib": 64, "vcpus": 8}]},
        "h4": {"domains_host": [{"name": "web", "allow_device_removal": True}]},
        "h5": {"domains_host": [{"name": "db", "allow_device_removal": True}]},
        "h6": {"domains_host": [{"name": "web", "state": "absent"}, {"name": "web", "state": "absent"}]},
        "h7": {"domains_host": [{"name": "{{ inventory_hostname }}", "memory_mib": "{{ 32 * 2 }}"}]},
    }
    done = stubs.run("domains", hosts, "--tags", "report", domains_wanted=wanted)
    assert done.returncode == 2, done.stdout + done.stderr
    begun = "could not be compared: "
    needed = "Invalid value for domains_host[0].memory_mib: A size is needed, because"
    ignored = "of domain 'web' would be ignored without it."
    beside = (
        "Invalid value for domains_wanted[0].xml: The XML is the whole definition of domain 'db', so memory_mib cannot "
        "be combined with it. Write memory_mib into xml, or leave xml out."
    )
    drift = artifact(done)["domains_drift"]
    assert drift["failed"] == {
        "h1": f"{begun}{needed} disks, vcpus {ignored}",
        "h2": f"{begun}{beside}",
        "h4": f"{begun}{needed} allow_device_removal {ignored}",
        "h6": drift["failed"]["h6"],
    }
    assert "'web' for domains_host[1]: The table already contains web, as domains_host[0]." in drift["failed"]["h6"]
    calls = {host: options["domains"] for host, _checked, options in stubs.calls("libvirt_domain")}
    assert sorted(calls) == ["h3", "h5", "h7"]
    made = calls.pop("h7")[2]
    assert made["name"] == "h7" and "<name>h7</name>\n  <memory unit='MiB'>64</memory>" in made["xml"]
    allowed = {host: {item["name"]: item["allow_device_removal"] for item in calls[host]} for host in calls}
    assert allowed == {"h3": {"db": False, "old": False, "web": False}, "h5": {"db": True, "old": False}}
    assert '"3 of 7 hosts are as wanted."' in done.stdout


def test_a_key_that_no_entry_has_is_refused_with_its_table(tmp_path: pathlib.Path) -> None:
    stubs = Stubs(tmp_path, libvirt_domain='return {"changed": False, "plan": [], "domains": []}')
    hosts = {
        "h1": {"domains_group_kvm": [{"name": "web", "state": "runing"}]},
        "h2": {"domains_group_kvm": [{"name": "web", "memroy_mib": 64}]},
        "h3": {"domains_group_kvm": None},
    }
    done = stubs.run("domains", hosts, "--tags", "report", domains_wanted=[{"name": "db"}])
    failed = artifact(done)["domains_drift"]["failed"]
    assert "domains_group_kvm" in failed["h1"] and "domains_group_kvm.memroy_mib" in failed["h2"], failed
    assert "domains_wanted" not in failed["h1"] + failed["h2"]
    assert sorted(failed) == ["h1", "h2"]
