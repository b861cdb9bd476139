# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The facts of three kernels against other readers: uname, awk, and the kernels' headers, maps and debug files."""

from __future__ import annotations

import base64
import gzip
import re

import pytest
import yaml
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.compare import compare
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.sources import Source, map_table
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.table import SymbolTable

HOSTS = ("trace1", "trace2", "trace3")
NAMES = ["vfs_read", "do_sys_openat2", "init_once", "schedule", "no_such_name"]
# Read a guest with awk, sha256sum and others in one round trip. The symbol table is included, compressed.
READERS = r"""
cat /proc/kallsyms >/tmp/tapvirt-facts
cd /tmp
echo "release=$(uname -r)"
echo "version=$(uname -v)"
echo "machine=$(uname -m)"
echo "cpus=$(nproc)"
echo "memory=$(awk '/^MemTotal/ {print $2 * 1024}' /proc/meminfo)"
echo "tainted=$(cat /proc/sys/kernel/tainted)"
echo "lockdown=$(sed 's/.*\[\(.*\)\].*/\1/' /sys/kernel/security/lockdown 2>/dev/null)"
echo "parameters=$(ls -d /sys/module/*/parameters/* | wc -l)"
echo "config_set=$(grep -c '^CONFIG_KVM_AMD=m' /boot/config-$(uname -r))"
echo "hz=$(sed -n 's/^CONFIG_HZ=//p' /boot/config-$(uname -r))"
echo "lines=$(wc -l <tapvirt-facts)"
echo "core=$(awk '/\t/ {exit} {print substr($0, 18)}' tapvirt-facts | sha256sum | cut -c 1-32)"
awk '{types[$2]++} END {for (letter in types) print "type_" letter "=" types[letter]}' tapvirt-facts
awk -F '\t' '{owners[NF > 1 ? substr($2, 2, length($2) - 2) : "vmlinux"]++}
    END {for (owner in owners) print "owner_" owner "=" owners[owner]}' tapvirt-facts
for name in NAMES; do awk -v n=$name '$3 == n {print "at_" n "=" $1 " " $2}' tapvirt-facts | sort | head -n 1; done
for name in NAMES; do echo "count_$name=$(awk -v n=$name '$3 == n' tapvirt-facts | wc -l)"; done
for name in NAMES; do echo "ftrace_$name=$(grep -c -x $name /sys/kernel/tracing/available_filter_functions)"; done
echo "table=$(gzip -1 -c tapvirt-facts | base64 -w 0)"
rm tapvirt-facts
""".replace("NAMES", " ".join(NAMES))


@pytest.fixture(scope="module")
def module_results(lab, kernel_hosts):
    """The result of a playbook that runs both modules on every guest."""
    tasks = [
        {"name": "symbols", "tapvirt.host.kernel_symbol_info": {"symbols": NAMES, "compare_with": "system_map"}},
        # Last, so that the other readers look right after it.
        {"name": "facts", "tapvirt.host.kernel_facts": {"gather_subset": ["all"], "config": ["KVM_AMD", "HZ"]}},
    ]
    later = [{"name": "later", "tapvirt.host.kernel_facts": {"gather_subset": ["min"]}, "async": 120, "poll": 2}]
    plays = [
        {"hosts": ":".join(kernel_hosts), "gather_facts": False, "tasks": tasks},
        {"hosts": HOSTS[0], "gather_facts": False, "tasks": later},
    ]
    result = lab.playbook(yaml.safe_dump(plays))
    assert result.rc == 0, result.stdout
    return result


@pytest.fixture(scope="module")
def reader_values(lab, kernel_hosts, module_results):
    """The values that other programs read in each guest after the modules: host -> name -> value."""
    assert module_results.rc == 0
    values = {}
    for host in kernel_hosts:
        done = lab.run(host, "sh", stdin=READERS, timeout=180)
        assert done.returncode == 0, done.stderr
        values[host] = {
            name: value.strip() for name, value in re.findall(r"^([^=\s]+)=(.*)$", done.stdout, re.MULTILINE)
        }
    return values


def facts_of(module_results, host):
    return module_results.of(host, "facts")["ansible_facts"]["tapvirt_kernel"]


def test_asynchronous_task_returns_the_same_facts(module_results):
    later = module_results.of(HOSTS[0], "later")["ansible_facts"]["tapvirt_kernel"]
    facts = facts_of(module_results, HOSTS[0])
    keys = ("arch", "build_id", "release", "version", "version_code")
    assert [later[key] for key in keys] == [facts[key] for key in keys]


def test_facts_agree_with_other_readers(kernel_host, module_results, reader_values):
    facts, values = facts_of(module_results, kernel_host), reader_values[kernel_host]
    assert (facts["release"], facts["version"], facts["arch"]) == (
        values["release"],
        values["version"],
        values["machine"],
    )
    assert facts["cpus"]["online"] == int(values["cpus"])
    assert facts["memory"]["total_bytes"] == int(values["memory"])
    assert facts["tainted"] == int(values["tainted"])
    assert facts["lockdown"] == values["lockdown"]
    assert facts["parameters"]["count"] == int(values["parameters"])
    assert facts["config"]["CONFIG_HZ"] == int(values["hz"])
    assert (facts["config"]["CONFIG_KVM_AMD"] == "m") == (values["config_set"] == "1")
    symbols = facts["symbols"]
    assert symbols["core_fingerprint"] == values["core"]
    assert symbols["total"] == int(values["lines"])
    assert symbols["by_type"] == {name[5:]: int(value) for name, value in values.items() if name.startswith("type_")}
    owners = {name[6:]: int(value) for name, value in values.items() if name.startswith("owner_")}
    assert symbols["owners"] == len(owners)
    assert symbols["by_owner"].items() <= owners.items()


def test_symbols_agree_with_awk(kernel_host, module_results, reader_values):
    values = reader_values[kernel_host]
    for row in module_results.of(kernel_host, "symbols")["symbols"]:
        name = row["name"]
        assert row["count"] == int(values["count_" + name]), name
        if row["matches"]:
            first = min(row["matches"], key=lambda match: int(match["address"], 16))
            assert f"{int(first['address'], 16):016x} {first['type']}" == values["at_" + name]
            assert row["ftrace"] == (values["ftrace_" + name] != "0")
            core = {match["owner"] for match in row["matches"]} == {"vmlinux"}
            status = "found" if row["count"] == 1 else "ambiguous"
            assert (row["section"], row["status"]) == ("text" if core else None, status)
        else:
            assert (row["status"], row["section"]) == ("absent", None)


def test_system_map_of_the_guests_is_a_placeholder(kernel_host, module_results):
    comparison = module_results.of(kernel_host, "symbols")["comparison"]
    assert (comparison["verdict"], comparison["with"]["state"]) == ("unknown", "placeholder")
    assert "-dbg package" in comparison["reason"]


def test_facts_agree_with_the_files_of_the_kernel(lab, module_results, reader_values):
    releases = {host: reader_values[host]["release"] for host in HOSTS}
    line = "echo {0}=$(sed -n 's/#define LINUX_VERSION_CODE //p' /usr/src/linux-headers-{0}/{1}) $(file -bL {2}-{0})"
    places = ("include/generated/uapi/linux/version.h", "/usr/lib/debug/boot/vmlinux")
    script = "\n".join(line.format(release, *places) for release in releases.values())
    values = dict(line.split("=", 1) for line in lab.run("builder", "sh", stdin=script).stdout.splitlines())
    tables = {host: SymbolTable(gzip.decompress(base64.b64decode(reader_values[host]["table"]))) for host in HOSTS}
    for host, release in releases.items():
        facts = facts_of(module_results, host)
        assert facts["version_code"] == int(values[release].split()[0])
        assert facts["build_id"] == re.search(r"BuildID\[sha1\]=(\w+)", values[release]).group(1)
        assert tables[host].counts().core_fingerprint == facts["symbols"]["core_fingerprint"]
        maps = f"/usr/lib/debug/boot/System.map-{release} /usr/lib/debug/lib/modules/{release}/System.map"
        text = lab.run("builder", "sh", "-c", f"cat {maps} 2>/dev/null || true").stdout
        table = map_table(text.encode())
        assert table is not None, release
        source = Source("system_map", "System.map", "readable", None, table)
        for other in HOSTS:
            verdict = compare(source, Source("kallsyms", other, "readable", None, tables[other]))
            assert verdict["verdict"] == ("same_kernel" if other == host else "another_kernel"), (host, other, verdict)
            if other == host:
                assert (verdict["differing"], verdict["compared"] > 20000) == (0, True)
