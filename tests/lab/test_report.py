# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook that reports the state of an inventory: one page with its findings, and no host changed."""

from __future__ import annotations

import json

import pytest

from .support.places import PLAYBOOKS

HOSTS = ["trace1", "trace2"]
GONE = "all: {hosts: {gone: {ansible_host: 127.0.0.1, ansible_port: 1}}}\n"
TABLE = [{"module": "kvm", "name": "halt_poll_ns", "value": 123456}]


@pytest.fixture(scope="module")
def reported(lab, tmp_path_factory):
    """The result and the page of a report about two hosts with a wrong parameter and one that does not answer."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "gone.yml").write_text(GONE, encoding="utf-8")
    variables = {
        "report_targets": [*HOSTS, "gone"],
        "report_dest": str(folder / "deep" / "page.html"),
        "report_symbols": "vfs_read, no_such_function",
        "module_params_wanted": TABLE,
    }
    run = lab.playbook(PLAYBOOKS / "report.yml", "-i", str(folder / "gone.yml"), "-e", json.dumps(variables))
    assert run.rc == 0, run.stdout[-3000:]
    return run, (folder / "deep" / "page.html").read_text(encoding="utf-8")


def test_no_host_is_changed(reported):
    run, _page = reported
    assert run.changes() == dict.fromkeys([*HOSTS, "gone"], 0)


@pytest.mark.parametrize(
    "text",
    [
        "gone: did not answer: ",
        "kvm.halt_poll_ns is not as wanted on 2 hosts: trace1, trace2.",
        "wanted 123456",
        "3</b><span>hosts",
        "2 of 2</b><span>can be traced",
        "2</b><span>kernels",
        "that were asked for are the same on all hosts",
    ],
)
def test_page_shows_the_findings(reported, text):
    _run, page = reported
    assert text in page


def test_output_lists_the_findings(reported):
    run, _page = reported
    assert "kvm.halt_poll_ns is not as wanted on 2 hosts" in run.stdout
    assert "page.html" in run.stdout
