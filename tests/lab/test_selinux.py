# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A trace of a host with SELinux in enforcing mode: what the policy decides about, and what it denies."""

from __future__ import annotations

import json
import typing as t

import pytest

from .support.places import PLAYBOOKS

if t.TYPE_CHECKING:
    from .support.hosts import LabHosts

pytestmark = pytest.mark.soak
HOST = "selinux1"
CACHE = "/var/cache/tapvirt/modules"


def denials(lab: LabHosts) -> list[str]:
    """Return the denials in the kernel's log that concern our programs."""
    command = "dmesg | grep 'avc:  denied' | grep -E 'staprun|stapio|module_load|tapvirt|comm=\"python3' || true"
    return lab.shell(HOST, command).splitlines()


def test_a_module_of_the_cache_is_loaded_without_a_label_of_its_own(lab: LabHosts) -> None:
    assert lab.shell(HOST, "cat /sys/fs/selinux/enforce") == "1"
    before = denials(lab)
    given = {
        "trace_targets": HOST,
        "trace_function": "vfs_read",
        "trace_duration_seconds": 3,
        "trace_cpu_ceiling_percent": 50,  # an emulated guest that has little of a CPU is overloaded soon
    }
    result = lab.playbook(PLAYBOOKS / "trace.yml", "-e", json.dumps(given), timeout=1800)
    assert result.rc == 0, result.stdout[-3000:]
    run = result.of(HOST, "tapvirt.host.trace : Collect the result")["run"]
    assert run["outcome"] == "ok" and run["hits"] > 0, run
    labels = lab.shell(HOST, f"ls -RZ {CACHE}")
    assert "modules_object_t" not in labels and ".ko" in labels, labels
    assert denials(lab) == before
