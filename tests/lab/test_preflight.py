# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The preflight over real guests and the builder: what is ready, what is not, and that it changes nothing."""

from __future__ import annotations

import json

from .support.places import PLAYBOOKS

HOSTS = ["trace1", "trace2", "trace3", "trace4"]
OPTIONS = {"trace_targets": "trace_hosts", "domains_targets": "virt_hosts"}


def preflight(lab, *options, **extra):
    return lab.playbook(PLAYBOOKS / "preflight.yml", *options, "-e", json.dumps({**OPTIONS, **extra}))


def test_the_lab_can_trace_and_converge_and_is_left_as_it_was(lab):
    done = preflight(lab, "--limit", ",".join(HOSTS))
    assert done.rc == 0, done.stdout[-3000:]
    assert "Trace: can be done on 4 of 4 hosts, with 1 builder." in done.stdout
    assert "Domains: can be done on 4 of 4 hosts." in done.stdout
    assert set(done.changes().values()) == {0}


def test_a_builder_without_systemtap_and_a_host_that_does_not_answer(lab):
    done = preflight(lab, "--limit", "trace1", trace_builders="trace2")
    assert done.rc == 2, done.stdout[-3000:]
    assert "as a builder: SystemTap's translator (stap) is not installed" in done.stdout
    done = preflight(lab, "--limit", "trace1", ansible_port=1)
    assert done.rc == 2, done.stdout[-3000:]
    assert "Missing on 1 host: trace1: no answer: " in done.stdout
    assert "ignoring" not in done.stdout
