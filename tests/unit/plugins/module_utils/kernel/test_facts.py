# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of a kernel: parsers on recorded files, and this machine's own facts against other readers."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import subprocess
import sys

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.facts import facts
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.facts.traceability import traceability
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.image import config, elf, identity
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.image.taints import taint_flags
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.mounts import mount_point

pytestmark = pytest.mark.usefixtures("this_kernel")

FIXTURES = next(path for path in pathlib.Path(__file__).parents if path.name == "unit") / "fixtures" / "kernel"
ARCH = os.uname().machine


def all_facts(root="/", subsets=frozenset(facts.SUBSETS), names=()):
    return facts.gather(Root(str(root)), subsets, names, ARCH)


@pytest.mark.parametrize(
    ("release", "code"),
    [
        ("3.12.0", 199680),
        ("4.9.337-generic", (4 << 16) + (9 << 8) + 255),
        ("6.12.107+deb13-cloud-amd64", 396395),
        ("7.2", 459264),
    ],
)
def test_version_code_is_what_the_kernels_makefile_computes(release, code):
    assert identity.version_code(release) == code


def test_a_release_that_is_none_is_an_error():
    with pytest.raises(TapvirtError, match="does not begin with a kernel version"):
        identity.version_code("vanilla")


@pytest.mark.parametrize(
    ("release", "build_id"),
    [
        ("6.1.0-50-cloud-amd64", "bb603a9147d3efe4744bf83c83eee397c591cc20"),
        ("6.12.107+deb13-cloud-amd64", "e1b6c81f7afcf08c49c197583920e5307d281cdf"),
        ("7.2.12+deb14-cloud-amd64", "4bbce01e305eafdcfe5a7e808f0e347e013801e3"),
    ],
)
def test_the_build_id_is_one_of_several_notes(release, build_id):
    data = (FIXTURES / release / "notes").read_bytes()
    assert identity.build_id(data) == build_id
    assert len(elf.parse_notes(data)) > 3
    assert identity.build_id(data[:30]) is None


def test_taints_have_names():
    assert taint_flags(12288) == ["out_of_tree_module", "unsigned_module"]
    assert taint_flags(1 | 1 << 25) == ["proprietary_module", "bit_25"]
    assert taint_flags(0) == []


def test_the_command_line_is_split_as_the_kernel_splits_it():
    text = 'root=/dev/vda quiet console=tty0 console=ttyS0,115200 dyndbg="file a.c +p; b" "x.y=a b" odd="a -- init -v\n'
    parsed = identity.parse_command_line(text)
    assert parsed["parameters"] == {
        "root": ["/dev/vda"],
        "quiet": [None],
        "console": ["tty0", "ttyS0,115200"],
        "dyndbg": ["file a.c +p; b"],
        "x.y": ["a b"],
        "odd": ["a -- init -v\n"],
    }
    assert identity.parse_command_line("a b=1 -- single --x\n") == {
        "parameters": {"a": [None], "b": ["1"]},
        "init_arguments": ["single", "--x"],
    }


def test_a_configuration_is_typed():
    text = "CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=250\nCONFIG_E=0xffffffff\n"
    text += 'CONFIG_F="a \\"b\\""\nCONFIG_G=-1\n'
    assert config.parse_config(text) == {
        "CONFIG_A": True,
        "CONFIG_B": "m",
        "CONFIG_D": 250,
        "CONFIG_E": 0xFFFFFFFF,
        "CONFIG_F": 'a "b"',
        "CONFIG_G": -1,
    }


def test_a_configuration_is_found_where_distributions_put_it(tmp_path):
    assert config.read_config(Root(str(tmp_path)), "6.1") is None
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / "config-6.1").write_text("CONFIG_A=y\n")
    assert config.read_config(Root(str(tmp_path)), "6.1") == {"CONFIG_A": True}
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "config.gz").write_bytes(gzip.compress(b"CONFIG_B=y\n"))
    assert config.read_config(Root(str(tmp_path)), "6.1") == {"CONFIG_B": True}
    (tmp_path / "proc" / "config.gz").write_bytes(b"\x1f\x8bdamaged")
    assert config.read_config(Root(str(tmp_path)), "6.1") == {"CONFIG_A": True}


def test_an_option_may_be_named_without_its_prefix():
    assert config.option_names(["KVM", "CONFIG_KVM"]) == ["CONFIG_KVM", "CONFIG_KVM"]
    with pytest.raises(InvalidInput, match=r"^Invalid value 'KVM=y' for config\[1\]: The name of a kernel option "):
        config.option_names(["KVM", "KVM=y"])


def test_subsets():
    assert facts.chosen_subsets(["all"]) == set(facts.SUBSETS)
    assert facts.chosen_subsets(["min"]) == {"identity"}
    assert facts.chosen_subsets(["!symbols"]) == set(facts.SUBSETS) - {"symbols"}
    assert facts.chosen_subsets(["!all", "config"]) == {"identity", "config"}
    with pytest.raises(InvalidInput, match=r"^Invalid value 'symbol' for gather_subset\[0\]: .* mean symbols\?$"):
        facts.chosen_subsets(["symbol"])
    with pytest.raises(InvalidInput, match=r"^Invalid value '!symbol' for gather_subset\[1\]: .* mean !symbols\?$"):
        facts.chosen_subsets(["all", "!symbol"])
    with pytest.raises(InvalidInput, match="^Invalid value '!' for "):
        facts.chosen_subsets(["!"])


def test_this_machines_facts_agree_with_other_readers():
    found = all_facts(names=["BPF_JIT"])
    assert found["release"] == os.uname().release
    assert found["version"] == os.uname().version
    assert found["arch"] == os.uname().machine
    assert found["cpus"]["online"] == os.sysconf("SC_NPROCESSORS_ONLN")
    assert found["memory"]["total_bytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found["version_code_source"] == "vdso"
    version, patchlevel = (int(part) for part in os.uname().release.split(".")[:2])
    assert found["version_code"] >> 8 == (version << 8) + patchlevel
    assert found["symbols"]["total"] == len(pathlib.Path("/proc/kallsyms").read_bytes().splitlines())
    assert found["parameters"]["count"] == len(list(pathlib.Path("/sys/module").glob("*/parameters/*")))
    assert found["tainted"] == int(pathlib.Path("/proc/sys/kernel/tainted").read_text())
    assert "CONFIG_BPF_JIT" in (found["config"] or {"CONFIG_BPF_JIT": 0})
    assert len(json.dumps(found)) < 8192


SHELL = r"""
echo "release=$(uname -r)"
echo "version=$(uname -v)"
echo "arch=$(uname -m)"
configs="$(gzip -dc /proc/config.gz 2>/dev/null; cat "/boot/config-$(uname -r)" 2>/dev/null)"
echo "config=$(echo "$configs" | sed -n 's/^CONFIG_HZ=//p' | head -n 1)"
echo "lockdown=$(sed 's/.*\[\(.*\)\].*/\1/' /sys/kernel/security/lockdown 2>/dev/null)"
echo "debugfs=$(awk '$3 == "debugfs" {print $2; exit}' /proc/self/mounts)"
echo "flags=$(sed -n 's/^flags.*: //p' /proc/cpuinfo | head -n 1)"
echo "core=$(awk '/\t/ {exit} {print substr($0, 18)}' /proc/kallsyms | sha256sum | cut -c 1-32)"
awk -F '\t' 'NF == 1 {count++} END {print "vmlinux=" count}' /proc/kallsyms
awk '/\t/ {exit} {letters[$2]++} END {for (letter in letters) print "type_" letter "=" letters[letter]}' /proc/kallsyms
"""


def test_this_machines_facts_are_what_the_shell_reports():
    done = subprocess.run(["sh", "-c", SHELL], capture_output=True, text=True, check=True)
    variables = {line.split("=", 1)[0]: line.split("=", 1)[1] for line in done.stdout.splitlines() if "=" in line}
    found = all_facts(names=["HZ"])
    assert [found[name] for name in ("release", "version", "arch")] == [
        variables[name].strip() for name in ("release", "version", "arch")
    ]
    if variables["config"].strip():
        assert found["config"]["CONFIG_HZ"] == int(variables["config"])
    if variables["lockdown"].strip():
        assert found["lockdown"] == variables["lockdown"].strip()
    assert (found["tracing"]["debugfs"] or "") == variables["debugfs"].strip()
    assert set(found["cpus"]["virtualization_flags"]) <= set(variables["flags"].split())
    symbols = found["symbols"]
    assert symbols["core_fingerprint"] == variables["core"]
    assert symbols["by_owner"]["vmlinux"] == int(variables["vmlinux"])
    # Modules and BPF programs add to these.
    for letter, count in symbols["by_type"].items():
        assert count >= int(variables.get("type_" + letter, 0))
    assert sum(int(count) for name, count in variables.items() if name.startswith("type_")) == int(variables["vmlinux"])


UNPRIVILEGED = """
import json, os, sys
sys.path.insert(0, {collections!r})
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.facts import facts
print(json.dumps(facts.gather(Root(), set(facts.SUBSETS), [], "")))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="already unprivileged")
def test_an_unprivileged_user_gets_the_same_identity_and_reasons(readable_collections):
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c"]
    done = subprocess.run(
        [*argv, UNPRIVILEGED.format(collections=readable_collections)], capture_output=True, text=True, check=True
    )
    theirs, ours = json.loads(done.stdout), all_facts()
    for name in ("release", "version", "version_code", "build_id", "config", "taints", "lockdown", "hypervisor"):
        assert theirs[name] == ours[name]
    assert theirs["symbols"]["core_fingerprint"] == ours["symbols"]["core_fingerprint"]
    assert theirs["traceability"] == ours["traceability"]


def test_an_empty_tree_gives_nulls_and_reasons(tmp_path):
    found = all_facts(tmp_path)
    assert found["release"] is None and found["build_id"] is None and found["symbols"] is None
    assert found["config"] is None and found["lockdown"] is None and found["tainted"] is None
    assert found["unavailable"]["release"] == "/proc/sys/kernel/osrelease: No such file or directory"
    assert found["unavailable"]["symbols"] == "there is no /proc/kallsyms"


def write_tree(tmp_path, files):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_xen_control_domain_is_one(tmp_path):
    files = {
        "type": "xen\n",
        "version/major": "4\n",
        "version/minor": "20\n",
        "version/extra": ".2\n",
        "guest_type": "PV\n",
    }
    write_tree(tmp_path, {"sys/hypervisor/" + name: text for name, text in files.items()})
    write_tree(tmp_path, {"proc/xen/capabilities": "control_d\n"})
    found = all_facts(tmp_path, {"hypervisor"})["hypervisor"]
    assert found == {"type": "xen", "version": "4.20.2", "role": "control_domain", "guest_type": "pv"}


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"sys/devices/system/clocksource/clocksource0/available_clocksource": "kvm-clock tsc acpi_pm\n"}, "kvm"),
        ({"sys/class/dmi/id/sys_vendor": "QEMU\n"}, "qemu"),
        ({"proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu hypervisor lm\n"}, "unknown"),
        ({"proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu vmx\n"}, "none"),
    ],
)
def test_what_is_below_the_kernel(files, kind, tmp_path):
    write_tree(tmp_path, files)
    assert all_facts(tmp_path, {"hypervisor"})["hypervisor"]["type"] == kind


@pytest.mark.parametrize(
    ("kptr_restrict", "paranoid", "visible_to"),
    [(0, 1, "everybody"), (0, -1, "everybody"), (0, 2, "cap_syslog"), (1, 1, "cap_syslog"), (2, 1, "nobody")],
)
def test_who_may_see_addresses(kptr_restrict, paranoid, visible_to, tmp_path):
    files = {"kptr_restrict": kptr_restrict, "perf_event_paranoid": paranoid}
    write_tree(tmp_path, {"proc/sys/kernel/" + name: f"{value}\n" for name, value in files.items()})
    assert all_facts(tmp_path, {"security"})["addresses"]["visible_to"] == visible_to


def test_a_mount_point_may_have_a_space(tmp_path):
    write_tree(tmp_path, {"proc/self/mounts": "none /a\\040b debugfs rw 0 0\n"})
    assert mount_point(Root(str(tmp_path)), "debugfs") == "/a b"
    assert mount_point(Root(str(tmp_path)), "tracefs") is None


GOOD = {
    "config": {"CONFIG_MODULES": True, "CONFIG_KPROBES": True, "CONFIG_KALLSYMS": True, "CONFIG_RELAY": True},
    "tracing": {"kprobes": True, "modules_loadable": True, "modules_disabled": False, "kprobes_enabled": True},
    "lockdown": "none",
}


def test_a_kernel_with_all_it_needs_can_be_traced():
    assert traceability(GOOD) == {"traceable": True, "reasons": [], "conditions": []}
    assert traceability({})["traceable"] is True


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"CONFIG_MODULES": False}}, "without CONFIG_MODULES"),
        ({"config": {"CONFIG_KPROBES": False}}, "without CONFIG_KPROBES"),
        ({"config": {"CONFIG_RELAY": False}}, "without CONFIG_RELAY"),
        ({"tracing": {"modules_disabled": True}}, "kernel.modules_disabled is 1"),
        ({"tracing": {"kprobes": False}}, "has no kprobes"),
        ({"tracing": {"modules_loadable": False}}, "no /proc/modules"),
        ({"lockdown": "confidentiality"}, "confidentiality mode"),
    ],
)
def test_what_forbids_tracing_is_reported(changes, words):
    verdict = traceability({**GOOD, **changes})
    assert verdict["traceable"] is False
    assert words in verdict["reasons"][0]


def test_conditions_of_tracing_are_reported():
    assert "signed" in traceability({**GOOD, "lockdown": "integrity"})["conditions"][0]
    assert "switched off" in traceability({**GOOD, "tracing": {"kprobes_enabled": False}})["conditions"][0]
