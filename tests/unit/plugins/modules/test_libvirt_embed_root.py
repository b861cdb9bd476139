# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt_domain on roots of the embedded driver that are not as they should be, and on a host whose KVM is broken."""

from __future__ import annotations

import os

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.kvm import kvm_warning
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain import run
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.embed import Embed
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.session_daemon import run_here


def test_a_root_that_was_left_with_an_empty_etc_is_finished(embed: Embed) -> None:
    """Without the configuration a start asks for virtlogd, which runs nowhere near an embedded driver."""
    (embed.root / "e" / "etc").mkdir(parents=True)
    wanted = {"name": "talker", "xml": embed.talker(), "state": "paused"}
    planned = embed.converge(wanted, check=True)
    done = embed.converge(wanted)
    assert done["plan"] == planned["plan"]
    assert done["plan"][0]["what"] == f"{embed.root}/e/etc/qemu.conf"
    assert embed.converge(wanted)["plan"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to another user")
def test_nothing_is_written_to_a_new_root_of_another_user(embed: Embed) -> None:
    """The owner is checked before the configuration is written, as for a root in use."""
    (embed.root / "e").mkdir()
    os.chown(embed.root / "e", 4321, 4321)
    result = embed.module("libvirt_domain", name="talker", xml=embed.talker())
    assert "4321 owns " in result["msg"]
    assert os.listdir(embed.root / "e") == []


def test_a_broken_kvm_is_reported_once(embed: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "kvm_warning", lambda: kvm_warning("/dev/null"))
    domains = [{"name": "one", "xml": embed.talker("one")}]
    domains += [{"name": "two", "xml": embed.talker("two").replace("talker.img", "other.img")}]
    result = run_here("libvirt_domain", {"uri": embed.uri, "domains": domains}, check=True)
    assert [row["changed"] for row in result["domains"]] == [True, True]
    (warning,) = result["warnings"]
    assert warning.startswith("/dev/null exists, but KVM_CREATE_VM fails: ")
