# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles that prepare a traced host and a builder: they restore what is missing, and change nothing else."""

from __future__ import annotations

import typing as t

import pytest

from .support.tasks import role_task

USER = "roles-tracer"
STORE = "/var/lib/tapvirt/roles-store"


def apply_role(lab, host: str, role: str, variables: t.Mapping[str, object], *options: str):
    """Apply a role to a host; return the names of the changed tasks, and the result."""
    result = lab.run_tasks(host, [role_task(role, variables)], *options)
    assert result.rc == 0, result.stdout[-3000:]
    changed = [row["task"].rpartition(" : ")[2] for row in result.results if row["result"].get("changed")]
    return changed, result


@pytest.fixture
def tracer(lab):
    """A user who is missing from one of the two groups; debugfs is restored afterwards."""
    mounted = lab.shell("trace4", "systemctl is-active sys-kernel-debug.mount || true")
    lab.shell("trace4", f"useradd --system --groups stapusr {USER}")
    yield USER
    restore = "" if mounted == "active" else "; systemctl stop sys-kernel-debug.mount"
    lab.shell("trace4", f"userdel {USER}{restore}")


@pytest.mark.soak
def test_trace_host_restores_a_lost_group_once(lab, tracer):
    variables = {"trace_host_developers": [tracer]}
    checked, _result = apply_role(lab, "trace4", "trace_host", variables, "--check")
    assert set(checked) <= {"Add the users to the groups", "Mount debugfs"} and "Add the users to the groups" in checked
    assert set(lab.shell("trace4", f"id -nG {tracer}").split()) == {tracer, "stapusr"}
    assert apply_role(lab, "trace4", "trace_host", variables)[0] == checked
    assert set(lab.shell("trace4", f"id -nG {tracer}").split()) == {tracer, "stapusr", "stapdev"}
    assert lab.shell("trace4", "grep -c ' /sys/kernel/debug debugfs ' /proc/mounts") == "1"
    assert apply_role(lab, "trace4", "trace_host", variables)[0] == []


def test_unknown_user_is_refused_and_not_created(lab):
    role = role_task("trace_host", {"trace_host_runners": ["no-such-tracer"]})
    result = lab.run_tasks("trace4", [role])
    assert result.rc != 0
    assert "no-such-tracer" not in lab.shell("trace4", "cut -d: -f1 /etc/passwd").split()


def test_trace_builder_creates_and_repairs_its_store(lab):
    (found,) = lab.ansible("builder", "tapvirt.host.stap_host_info", {}).values()
    kernels = sorted(found["builder"]["kernels"])
    variables = {"trace_builder_kernels": kernels, "trace_builder_store": STORE, "trace_builder_store_mode": "0750"}
    try:
        assert apply_role(lab, "builder", "trace_builder", variables)[0] == ["Create the store"]
        assert apply_role(lab, "builder", "trace_builder", variables)[0] == []
        lab.shell("builder", f"chmod 700 {STORE}")
        assert apply_role(lab, "builder", "trace_builder", variables)[0] == ["Create the store"]
        assert lab.shell("builder", f"stat -c %a {STORE}") == "750"
    finally:
        lab.run("builder", "rmdir", STORE)


def test_missing_headers_are_reported_as_packages(lab):
    variables = {"trace_builder_kernels": ["9.9.9-none"], "trace_builder_store": STORE}
    role = role_task("trace_builder", variables)
    show = {"name": "Show", "ansible.builtin.debug": {"var": "trace_builder_missing"}, "vars": dict(variables)}
    result = lab.run_tasks("builder", [{"name": "Try", "block": [role], "rescue": [show]}], "--check")
    missing = ["linux-headers-9.9.9-none", "linux-image-9.9.9-none-dbg"]
    assert result.of("builder", "Show")["trace_builder_missing"] == missing, result.stdout[-3000:]


def test_trace_builder_creates_a_private_key_once(lab):
    folder = "/etc/tapvirt-roles-test"
    variables = {
        "trace_builder_store": STORE,
        "trace_builder_signing": True,
        "trace_builder_signing_key": f"{folder}/key.pem",
        "trace_builder_signing_certificate": f"{folder}/certificate.pem",
        "trace_builder_older_than": "30d",
    }
    state = f"stat -c '%a %n' {folder} {folder}/key.pem; sha256sum {folder}/*"
    try:
        assert apply_role(lab, "builder", "trace_builder", variables, "--check")[0][-1] != "Prune the store"
        assert lab.run("builder", "test", "-e", folder).returncode == 1
        made = apply_role(lab, "builder", "trace_builder", variables)[0]
        assert made[-2:] == ["Create the private directory of the key", "Create the key and its certificate"]
        first = lab.shell("builder", state)
        assert first.startswith(f"700 {folder}\n600 {folder}/key.pem\n")
        certificate = lab.shell(
            "builder",
            f"openssl x509 -in {folder}/certificate.pem -noout -subject -ext keyUsage,subjectKeyIdentifier",
        )
        assert (
            "CN=tapvirt builder" in certificate.replace(" = ", "=")
            and "Digital Signature" in certificate
            and "Key Identifier" in certificate
        )
        assert apply_role(lab, "builder", "trace_builder", variables)[0] == []
        assert lab.shell("builder", state) == first
    finally:
        lab.run("builder", "rm", "-rf", folder, STORE)


def test_invalid_certificate_name_is_refused(lab):
    variables = {"trace_builder_store": STORE, "trace_builder_signing": True, "trace_builder_signing_name": "x/O=y"}
    variables["trace_builder_signing_key"] = "/etc/tapvirt-roles-test/key.pem"
    role = role_task("trace_builder", variables)
    result = lab.run_tasks("builder", [role], "--check")
    assert result.rc != 0 and "trace_builder_signing_name: x/O=y must have" in result.stdout
