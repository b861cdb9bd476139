# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the lab tests: the running lab and its hosts."""

from __future__ import annotations

import os
import pathlib

import pytest
import yaml

from .support.hosts import LabHosts


def kernel_hosts() -> list[str]:
    """Return a host of each kernel, and every running Xen dom0, which starts only when it is named."""
    inventory = os.environ.get("TAPVIRT_LAB_INVENTORY", "")
    groups = yaml.safe_load(pathlib.Path(inventory).read_text(encoding="utf-8")) if inventory else {}
    return ["trace1", "trace2", "trace3", *groups.get("xen_hosts", {}).get("hosts", {})]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``kernel_host`` once for each of these hosts."""
    if "kernel_host" in metafunc.fixturenames:
        metafunc.parametrize("kernel_host", kernel_hosts(), scope="module")


@pytest.fixture(scope="session", name="kernel_hosts")
def all_kernel_hosts() -> list[str]:
    """The hosts of ``kernel_host``, for a test that uses all of them at once."""
    return kernel_hosts()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> LabHosts:
    """The running lab; without one the tests fail, they are never skipped."""
    inventory = os.environ.get("TAPVIRT_LAB_INVENTORY", "")
    if not inventory:
        pytest.fail("No lab: run these tests with './dev test lab', which brings it up.")
    return LabHosts(pathlib.Path(inventory), tmp_path_factory.mktemp("lab"))
