# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Xen as Debian packages it, against file, readelf and nm; and a running one, against xl."""

from __future__ import annotations

import re

import pytest

# Unpacks the packages of Xen into a directory, and prints what other tools report about the files.
UNPACK = r"""
set -e
cd "$(mktemp -d /tmp/tapvirt-xen.XXXXXX)"
apt="-o Dir::State::lists=$PWD/lists -o Dir::Cache=$PWD/cache"
apt="$apt -o Acquire::Check-Valid-Until=false -o APT::Sandbox::User=root"
mkdir -p lists/partial cache
apt-get $apt update >log 2>&1 || { rm -rf "$PWD"; echo offline; exit 0; }
names=$(apt-cache $apt pkgnames xen-hypervisor- | grep -E -- '-amd64(-dbg)?$')
apt-get $apt download $names >>log 2>&1
for package in *.deb; do dpkg -x "$package" .; done
find . -name 'xen-syms-*' -exec mv {} boot/ \;
rm -rf lists cache *.deb usr
cd boot
echo "folder=$PWD"
xen=$(echo xen-*-amd64.gz) syms=$(ls xen-syms-* | grep -v map)
gzip -dc "$xen" >plain.elf
echo "file=$(file -b plain.elf)"
echo "file_syms=$(file -b "$syms")"
echo "file_efi=$(file -b xen-*.efi)"
echo "entry=$(readelf -h plain.elf | sed -n 's/.*Entry point address: *//p')"
echo "build_id=$(readelf -n plain.elf | sed -n 's/.*Build ID: *//p')"
echo "symbols=$(nm "$syms" | wc -l)"
nm "$syms" | awk '$3 == "_stext" || $3 == "__start_xen" {print $3 "=0x" $1 " " $2}'
"""


def pairs(text: str) -> dict[str, str]:
    """Return the lines ``name=value`` of an output."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def test_images_of_the_xen_packages_agree_with_other_tools(lab):
    done = lab.run("builder", "sh", stdin=UNPACK, timeout=300)
    if done.stdout.strip() == "offline":
        pytest.skip("the builder does not reach its package mirror")
    assert done.returncode == 0, done.stderr
    values = pairs(done.stdout)
    try:
        syms = f"{values['folder']}/xen-syms-{'{{ xen.images[1].version }}'}"
        look_up = {"symbols": ["_stext", "__start_xen", "vfs_read"], "source": "xen_syms", "path": syms}
        map_too = {"compare_with": "xen_syms", "compare_path": syms + ".map"}
        tasks = [
            {"name": "xen", "tapvirt.host.xen_info": {"boot": values["folder"]}, "register": "xen"},
            {"name": "symbols", "tapvirt.host.kernel_symbol_info": {**look_up, **map_too}},
        ]
        result = lab.run_tasks("builder", tasks)
        assert result.rc == 0, result.stdout
    finally:
        lab.run("builder", "rm", "-rf", values["folder"].rpartition("/")[0])
    efi, image = result.of("builder", "xen")["images"]
    assert (image["format"], image["machine"], image["entry_kind"]) == ("elf32", "i386", "multiboot")
    assert re.match(r"ELF 32-bit LSB executable, Intel (80386|i386)", values["file"])
    assert [header["version"] for header in image["multiboot"]] == [1, 2]
    assert (image["entry"], image["build_id"]) == (values["entry"], values["build_id"])
    symbols = image["symbols"]
    assert (symbols["format"], symbols["machine"], symbols["matches"]) == ("elf64", "x86_64", True)
    assert values["file_syms"].startswith("ELF 64-bit LSB executable, x86-64")
    assert symbols["build_id"] in values["file_syms"]
    assert symbols["count"] == int(values["symbols"]) > 5000
    assert (efi["format"], efi["machine"], efi["entry_kind"]) == ("pe32plus", "x86_64", "efi")
    assert re.match(r"PE32\+ executable (\(EFI application\)|for EFI \(application\),) x86-64", values["file_efi"])
    found = result.of("builder", "symbols")
    rows = {row["name"]: row for row in found["symbols"]}
    for name in ("_stext", "__start_xen"):
        match = rows[name]["matches"][0]
        assert f"{match['address']} {match['type']}" == values[name]
    assert (rows["vfs_read"]["status"], found["comparison"]["verdict"]) == ("absent", "same_kernel")
    assert found["comparison"]["offset"] == "0x0"
    assert found["comparison"]["build_id"] == values["build_id"]


def test_running_xen_agrees_with_xl(lab):
    if "xen1" not in lab.hosts:
        pytest.skip("xen1 is only started when it is named: ./dev lab up xen1")
    tasks = [
        {"name": "xen", "tapvirt.host.xen_info": {}},
        {"name": "symbols", "tapvirt.host.kernel_symbol_info": {"symbols": ["_stext", "*"], "source": "xen_syms"}},
        {"name": "facts", "tapvirt.host.kernel_facts": {"gather_subset": ["hypervisor"]}},
    ]
    result = lab.run_tasks("xen1", tasks)
    assert result.rc == 0, result.stdout
    script = "xl info | sed 's/ *: /=/'; wc -l < /proc/xen/xensyms | sed 's/^/symbols=/'"
    xl = pairs(lab.shell("xen1", script))
    running = result.of("xen1", "xen")["running"]
    assert (running["role"], running["guest_type"], running["restricted"]) == ("control_domain", "pv", [])
    assert running["version"] == xl["xen_version"]
    assert running["capabilities"] == xl["xen_caps"].split()
    assert (running["build_id"], running["page_bytes"]) == (xl["build_id"], int(xl["xen_pagesize"]))
    assert (running["compiler"], running["compile_date"]) == (xl["cc_compiler"], xl["cc_compile_date"])
    efi, image = result.of("xen1", "xen")["images"]
    assert (efi["running"], image["running"], image["format"]) == (None, True, "elf32")
    found = result.of("xen1", "symbols")
    assert found["source"]["name"] == "/proc/xen/xensyms"
    assert found["symbols"][1]["count"] == int(xl["symbols"])
    hypervisor = result.of("xen1", "facts")["ansible_facts"]["tapvirt_kernel"]["hypervisor"]
    assert (hypervisor["type"], hypervisor["version"]) == ("xen", running["version"])
