# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Privilege is what the kernel says in CapEff, not the user id: root in a container lacks most of it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.privilege import lacking

# Capabilities of root in a container of Docker and Podman, without CAP_SYS_MODULE and CAP_SYS_ADMIN.
CONTAINER = "Name:\tpython3\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n"
PR_CAPBSET_DROP = 24
CAP_SYS_MODULE = 16
# As root without the capability, or as another user who has it.
CODE = """
import os
from ansible_collections.tapvirt.host.plugins.module_utils._core.privilege import missing_permission
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.readiness import read_host
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace import start
try:
    start.check_host(Root(), None)
except start.Refused as error:
    print(error.message)
except AttributeError:
    print("goes on")
print(read_host(Root(), os.uname().machine)["privilege"]["load_modules"])
print(missing_permission(PermissionError(1, "Operation not permitted", "/x"), "root"))
"""


def test_the_effective_set_decides() -> None:
    assert lacking("CAP_SYS_MODULE", "CAP_SETUID", status=CONTAINER) == ["CAP_SYS_MODULE"]
    assert lacking("CAP_SYS_MODULE", status="CapEff:\t000001ffffffffff\n") == []
    assert lacking("CAP_SYS_MODULE", status="CapEff:\t0000000000000000\n") == ["CAP_SYS_MODULE"]
    assert lacking("CAP_SYS_MODULE", status="") == ([] if os.geteuid() == 0 else ["CAP_SYS_MODULE"])


def _drop() -> None:
    assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE, 0, 0, 0) == 0


@pytest.mark.skipif(os.geteuid() != 0 or bool(lacking("CAP_SYS_MODULE")), reason="needs a capability to drop")
def test_root_without_the_capability_cannot_trace() -> None:
    def lines(before: t.Callable[[], None] | None = None) -> list[str]:
        argv = [sys.executable, "-c", CODE]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, preexec_fn=before)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    refused, load, denied = lines(_drop)
    assert refused.endswith("root cannot load modules here, since it lacks CAP_SYS_MODULE, as in a container.")
    assert load == "False"
    assert denied == (
        "Root was refused /x (Operation not permitted), and lacks CAP_SYS_MODULE, as in a container; run the task "
        "on the host itself."
    )
    _goes_on, load, denied = lines()
    assert load == "True" and denied.startswith("Even root was refused /x ")
