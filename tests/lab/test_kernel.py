# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel facts, symbols and parameters on real hosts, against what the hosts' own tools say."""

from __future__ import annotations

import base64
import io
import json
import os
import pathlib
import random
import shlex
import subprocess
import typing as t

import pytest
import yaml
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel import modprobe_d

HOSTS = ("trace1", "trace2", "trace3")
QUIET = "trace4"
OWN_FILE = "/etc/modprobe.d/zz-tapvirt.conf"


@pytest.fixture(scope="module")
def facts(lab):
    found = lab.ansible(",".join(HOSTS), "tapvirt.host.kernel_facts", {"config": ["NF_TABLES", "LOCALVERSION"]})
    return {host: result["ansible_facts"]["tapvirt_kernel"] for host, result in found.items()}


def words(lab, host: str, script: str) -> str:
    done = lab.run(host, "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


def own_files(lab, host: str) -> str:
    """Return one sum over all that /etc holds."""
    return words(lab, host, "find /etc -type f | sort | xargs sha256sum | sha256sum")


@pytest.mark.parametrize("host", HOSTS)
def test_facts_agree_with_the_hosts_own_tools(lab, facts, host):
    found = facts[host]
    script = """
    uname -r; uname -v; uname -m; nproc; cat /proc/sys/kernel/tainted; ls -d /sys/module/*/parameters/* | wc -l
    grep -c . /proc/kallsyms
    awk '!/\\t/ {n++} END {print n}' /proc/kallsyms
    awk '$2=="T" {n++} END {print n}' /proc/kallsyms
    sed -n 's/^CONFIG_HZ=//p; s/^CONFIG_NR_CPUS=//p' /boot/config-$(uname -r)
    grep -cE '^CONFIG_(KPROBES|MODULES|KALLSYMS_ALL|RELAY)=y' /boot/config-$(uname -r)
    od -An -v -tx1 /sys/kernel/notes | tr -d ' \\n'; echo
    """
    lines = words(lab, host, script).splitlines()
    assert [found["release"], found["version"], found["arch"]] == lines[:3]
    assert [str(found["cpus"]["online"]), str(found["tainted"])] == lines[3:5]
    assert str(found["parameters"]["count"]) == lines[5]
    # Modules and BPF programs come and go; the kernel image does not.
    assert abs(found["symbols"]["total"] - int(lines[6])) < 3000
    assert str(found["symbols"]["by_owner"]["vmlinux"]) == lines[7]
    assert abs(found["symbols"]["by_type"]["T"] - int(lines[8])) < 500
    assert sorted(str(found["config"][name]) for name in ("CONFIG_HZ", "CONFIG_NR_CPUS")) == sorted(lines[9:11])
    assert all(found["config"]["CONFIG_" + name] is True for name in ("KPROBES", "MODULES", "KALLSYMS_ALL", "RELAY"))
    assert lines[11] == "4"
    assert found["build_id"] in lines[12]
    assert found["config"]["CONFIG_NF_TABLES"] == "m"
    assert found["config"]["CONFIG_LOCALVERSION"] == ""
    assert len(json.dumps(found)) < 8192


def test_the_version_code_is_the_source_versions_and_not_the_releases(facts):
    # Debian names its source version in the version string; the release of 6.1 hides it.
    for found in facts.values():
        version, patchlevel, sublevel = found["version"].split("Debian ")[1].split("-")[0].split(".")
        assert found["version_code"] == (int(version) << 16) + (int(patchlevel) << 8) + min(int(sublevel), 255)


def test_three_kernels_are_three_and_all_can_be_traced(facts):
    assert len({found["build_id"] for found in facts.values()}) == 3
    assert len({found["symbols"]["core_fingerprint"] for found in facts.values()}) == 3
    for found in facts.values():
        assert found["traceability"] == {"traceable": True, "reasons": [], "conditions": []}
        assert found["hypervisor"]["type"] in ("qemu", "kvm")
        assert {"svm", "vmx"} & set(found["cpus"]["virtualization_flags"])


def test_an_unprivileged_user_sees_the_same_kernel(lab, facts):
    play = [
        {
            "hosts": "trace2",
            "gather_facts": False,
            "tasks": [
                {
                    "name": "Facts",
                    "tapvirt.host.kernel_facts": {},
                    "become": True,
                    "become_user": "nobody",
                    "become_method": "ansible.builtin.su",
                    "become_flags": "-s /bin/sh",
                    "vars": {"ansible_remote_tmp": "/tmp/tapvirt-kernel-nobody"},
                }
            ],
        }
    ]
    done = lab.playbook(yaml.safe_dump(play), "-e", "ansible_shell_allow_world_readable_temp=true")
    lab.run("trace2", "rm", "-rf", "/tmp/tapvirt-kernel-nobody")
    found = done.of("trace2", "Facts")["ansible_facts"]["tapvirt_kernel"]
    assert found["symbols"]["state"] == "restricted"
    assert found["symbols"]["core_fingerprint"] == facts["trace2"]["symbols"]["core_fingerprint"]
    assert (found["build_id"], found["addresses"]["visible"]) == (facts["trace2"]["build_id"], False)
    assert found["unavailable"]["blacklist"] == "debugfs is not readable"


def test_symbols_agree_with_the_tables_of_the_host(lab):
    names = ["vfs_read", "jiffies", "do_syscall_64", "start_kernel", "vfs_reed", "kvm_vcpu_kick", "init_once"]
    result = lab.ansible("trace2", "tapvirt.host.kernel_symbol_info", {"symbols": [*names, "kvm_vcpu_*"], "limit": 80})
    rows = {row["name"]: row for row in result["trace2"]["symbols"]}
    script = "grep -E ' ({}|kvm_vcpu_[^\t]*)(\t|$)' /proc/kallsyms".format("|".join(names))
    real = [line.split() for line in words(lab, "trace2", script).splitlines()]
    for name in names:
        expected = [["0x" + field[0].lstrip("0"), field[1]] for field in real if field[2] == name]
        assert [[match["address"], match["type"]] for match in rows[name]["matches"]] == expected, name
    assert rows["kvm_vcpu_*"]["count"] == len([field for field in real if field[2].startswith("kvm_vcpu_")])
    blacklist = words(lab, "trace2", "cut -f2 /sys/kernel/debug/kprobes/blacklist").split()
    for name in ("vfs_read", "do_syscall_64"):
        assert rows[name]["probeable"] is (name not in blacklist)
    assert rows["start_kernel"]["probeable_reason"] == "lies in the init section, which is freed after boot"
    assert (rows["vfs_reed"]["status"], rows["vfs_reed"]["nearest"][0]) == ("absent", "vfs_read")
    assert rows["init_once"]["status"] == "ambiguous"
    assert rows["kvm_vcpu_kick"]["exported"] is True


def test_every_parameter_set_to_its_own_value_changes_nothing(lab):
    """One task a host, with all that can be set there: the types are what modinfo says, the values what sysfs has."""
    script = (
        "cd /sys/module; find */parameters -type f -perm -600 | sort | "
        'while read -r f; do printf "%s\\037" "$f"; cat "$f"; printf "\\036"; done'
    )
    tasks = {}
    for host in HOSTS:
        params = []
        for record in words(lab, host, script).split("\x1e"):
            path, _separator, value = record.partition("\x1f")
            # What prints itself otherwise than it can be written, and what is null, cannot be given back as it is.
            if path.strip().count("/") == 2 and "(null)" not in value:
                params.append(
                    {"module": path.strip().split("/")[0], "name": path.split("/")[2], "value": value.rstrip("\n")}
                )
        assert len(params) > 200
        tasks[host] = params
    done = lab.playbook(
        yaml.safe_dump(
            [
                {
                    "hosts": host,
                    "gather_facts": False,
                    "tasks": [{"name": "Set", "tapvirt.host.kernel_module_param": {"params": tasks[host]}}],
                }
                for host in HOSTS
            ]
        )
    )
    for host in HOSTS:
        result = done.of(host, "Set")
        assert result.get("plan") == [], (host, result.get("msg"), result.get("plan"))
        kinds = {row["type"] for row in result["params"]}
        assert {"bool", "int", "uint", "ulong", "array of byte"} <= kinds


def test_a_loadable_module_gets_its_persisted_parameter_when_it_is_loaded(lab):
    def parameters(value: t.Any, **options: t.Any) -> dict[str, t.Any]:
        params = [{"module": "nbd", "name": "max_part", "value": value, "persist": "auto"}]
        return {"params": params, **options}

    def play(*tasks: dict[str, t.Any]) -> str:
        return str(yaml.safe_dump([{"hosts": QUIET, "gather_facts": False, "tasks": list(tasks)}]))

    module, command = "tapvirt.host.kernel_module_param", "ansible.builtin.command"
    value = "/sys/module/nbd/parameters/max_part"
    before = own_files(lab, QUIET)
    try:
        done = lab.playbook(
            play(
                {"name": "Check", module: parameters(3), "check_mode": True},
                {"name": "First", module: parameters(3)},
                {"name": "Load", command: "modprobe nbd nbds_max=1"},
                {"name": "Value", command: "cat " + value},
                {"name": "Second", module: parameters("0x3")},
                {"name": "Other", module: parameters(5)},
                {"name": "Unload", command: "modprobe -r nbd"},
                {"name": "Load again", command: "modprobe nbd nbds_max=1"},
                {"name": "Value again", command: "cat " + value},
                {"name": "Restored", module: parameters(None, state="restored")},
                {"name": "Refused", module: {"params": [{"module": "nbd", "name": "max_part", "value": 7}]}},
            )
        )
    finally:
        lab.run(QUIET, "sh", "-c", "modprobe -r nbd; rm -f " + OWN_FILE)

    def of(name: str) -> dict[str, t.Any]:
        return t.cast("dict[str, t.Any]", done.of(QUIET, name))

    assert of("Check")["plan"] == of("First")["plan"] != []
    assert of("First")["params"][0]["pending"] == ["not in effect: it takes effect when the module is loaded"]
    assert of("Value")["stdout"] == "3"
    second = of("Second")
    assert (second["changed"], second["params"][0]["persisted_in"], second["params"][0]["pending"]) == (
        False,
        OWN_FILE,
        [],
    )
    assert of("Other")["params"][0]["pending"] == ["not in effect: it takes effect when the module is loaded again"]
    assert of("Value again")["stdout"] == "5"
    assert of("Restored")["changed"] is True
    assert "read-only (mode 0444 in sysfs); it can be set only when the module is loaded" in of("Refused")["msg"]
    assert own_files(lab, QUIET) == before


WORDS = ["1", "10", "1 ", "yes please", "0x1", "2", "-1", " 1", '"1"', "o", "\n", "of", "on", "Y", "n", "0"]
DIGITS = ["0x10", "0X10", "010", "08", "+16", "16\n", "16\n\n", " 16", "16 ", "1_000", "0o10", "1e3", "16k", "-1", "-0"]
DIGITS += ["-2147483648", "2147483648", "4294967295", "4294967296", "65535", "65536", "255", "256", str(1 << 64)]
INPUTS = {
    "printk.always_kmsg_dump": WORDS,
    "haltpoll.guest_halt_poll_ns": DIGITS,
    "vt.italic": DIGITS,
    "workqueue.cpu_intensive_thresh_us": DIGITS,
    "vt.default_red": [",".join([word] * 16) for word in ("9", "0xfe", "256", "9 ", "-1", "")] + [",".join("9" * 17)],
    "firmware_class.path": ["/tmp/fw", "/tmp/fw\n", " a b ", "/" * 255, "/" * 256, "/" * 300],
}
KINDS = ["bool", "uint", "int", "ulong", "array of byte", "string"]
REPLAY = """
import json, os, sys, tempfile
sys.path.insert(0, os.getcwd())
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameter_apply import Parameters
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters import wanted_list
top = tempfile.mkdtemp(dir=os.getcwd())
for name in ("sys", "proc", "lib"):
    os.symlink("/" + name, os.path.join(top, name))
def plain(path, data):
    with open(path, "wb", buffering=0) as stream:
        stream.write(data)
rows = []
for label, values in json.load(sys.stdin).items():
    module, name = label.split(".")
    path = "/sys/module/" + module + "/parameters/" + name
    before = open(path, "rb").read()
    for value in values:
        took = ours = kind = None
        try:
            plain(path, value.encode())
            took = open(path).read()
        except OSError as error:
            pass
        plain(path, before[:-1] or b"\\0")
        entry = dict(module=module, name=name, value=value, runtime=True, persist="none", read_back="auto")
        try:
            run = Parameters(Root(top), os.uname().machine, wanted_list([entry], "present"), "present")
            kind = run.converge(False)[1]["params"][0]["type"]
            ours = open(path).read()
            again = bool(run.converge(False)[0])
        except TapvirtError:
            again = open(path, "rb").read() != before
        plain(path, before[:-1] or b"\\0")
        rows.append([label, value, took, ours, kind, again])
    assert open(path, "rb").read() == before, label
print(json.dumps(rows))
"""


def test_the_verdict_is_what_a_plain_write_and_read_back_shows(lab):
    """Each input of each type is written plainly on the host, then by the module's own code; values are put back."""
    collection = next(path for path in pathlib.Path(__file__).parents if path.name == "host")
    folders = ["host/plugins/module_utils/_core", "host/plugins/module_utils/_kernel"]
    packed = subprocess.run(
        ["tar", "-C", str(collection.parent), "-cz", *folders], capture_output=True, check=True
    ).stdout
    script = (
        "set -e; top=$(mktemp -d); trap 'rm -rf $top' EXIT; cd $top; mkdir -p ansible_collections/tapvirt; "
        "cd ansible_collections/tapvirt; echo {} | base64 -d | tar xz; cd $top; "
        "printf %s {} >inputs; python3 -c {} <inputs"
    )
    parts = (base64.b64encode(packed).decode(), shlex.quote(json.dumps(INPUTS)), shlex.quote(REPLAY))
    done = lab.run(QUIET, "sh", stdin=script.format(*parts), timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == sum(len(values) for values in INPUTS.values())
    # Words that newer kernels take are taken for older ones too, as they are written as Y and N.
    different = [row for row in rows if (row[2] or None) != row[3]]
    assert different == []
    assert [row for row in rows if row[5]] == []
    assert {row[4] for row in rows} - {None} == set(KINDS)


def generated_tree(number: int) -> dict[str, str]:
    """Return files of modprobe.d, as people write them."""
    chance = random.Random(number)
    pieces = ["a=1", "b=2", 'c="x y"', "# note", "d", "e=", '"f=g h"', "a=0x10", "i=it's", "k==", "l=a,b"]
    modules = ["dummy", "kvm-amd", "kvm_amd", "snd-pcm", "nbd"]
    files = {}
    for directory in ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d"):
        for name in chance.sample(
            ["10-a.conf", "b.conf", "B.conf", "zz.conf", "x.txt", "_.conf"], chance.randint(0, 4)
        ):
            lines = []
            for _line in range(chance.randint(0, 6)):
                options = chance.choice([" ", "  ", "\t"]).join(chance.sample(pieces, chance.randint(0, 4)))
                line = "options {}{}{}".format(chance.choice(modules), chance.choice([" ", "\t", "  "]), options)
                line = chance.choice([line] * 6 + ["#" + line, "  " + line, "blacklist dummy", "", "options", "  # x"])
                lines.append(line.replace(" ", " \\\n", 1) if chance.random() < 0.1 else line)
            files["{}/{}".format(directory, name)] = "\n".join(lines) + chance.choice(["\n", ""])
    return files


def test_the_view_of_modprobe_d_is_modprobes(lab, tmp_path):
    count = 500 if os.environ.get("TAPVIRT_SOAK") else 100
    script = io.StringIO()
    script.write("set -e; top=$(mktemp -d); trap 'rm -rf $top' EXIT; mkdir $top/none; cd $top\n")
    script.write('modprobe -c -C none | grep ^options >none.txt || true; echo "$(wc -l <none.txt)"\n')
    for number in range(count):
        directories = set()
        for name, text in generated_tree(number).items():
            path = tmp_path / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            directories.add(os.path.dirname(name))
            script.write(
                "mkdir -p {0}/{1}; printf %s {2} >{0}/{3}\n".format(
                    number, os.path.dirname(name), shlex.quote(text), name
                )
            )
        places = " ".join("-C {}/{}".format(number, place) for place in modprobe_d.DIRECTORIES if place in directories)
        script.write("modprobe -c {} 2>/dev/null | grep ^options || true; echo %%%\n".format(places or "-C none"))
    output = lab.run("builder", "sh", stdin=script.getvalue(), timeout=300)
    assert output.returncode == 0, output.stderr
    first, _newline, rest = output.stdout.partition("\n")
    theirs = rest.split("%%%\n")
    seen = 0
    for number in range(count):
        lines = [line for line in modprobe_d.read_lines(Root(str(tmp_path / str(number)))) if line.command == "options"]
        mine = [(option.module, option.name, option.value) for option in modprobe_d.options_of(lines)]
        printed = [line for line in theirs[number].splitlines() if line]
        printed = printed[: len(printed) - int(first)]
        parsed = modprobe_d.options_of(modprobe_d.parse_lines("\n".join(printed), ""))
        assert mine == [(option.module, option.name, option.value) for option in parsed], number
        seen += len(mine)
    assert seen > count * 3
