# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module parameters on three kernels: a plain write and read-back decides the right result.

files/params_test.c is a module with a parameter of every type and behaviour, built for each kernel on the builder.
"""

from __future__ import annotations

import base64
import concurrent.futures
import json
import re
import shlex
import subprocess
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.layers import load_flaws
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.model import Reader

from .support.places import FILES, TREE

MODULE_UTILS = ["host/plugins/module_utils/_core", "host/plugins/module_utils/_kernel"]
HOSTS = ("trace1", "trace2", "trace3")

WORDS = ["1", "0", "2", "-1", " 1", '"1"', "o", "\n", "on", "OFF", "Y", "n", "y\n", "True", "false", "t", "f", "no", ""]
# The kernel reads the first one or two characters of these.
NOT_BOOLEANS = ["10", "1 ", "yes please", "0x1", "of", "Disable", 0.5]
DIGITS = ["0x10", "0X1f", "010", "08", "+16", "16\n", "16\n\n", " 16", "16 ", "1_000", "0o10", "0b10", "1e3", "16k"]
DIGITS += ["-1", "-0", "+-1", "0x", "", "\u0661", "16\0junk", "1,2", str(1 << 64)]


def numbers(bits: int, signed: bool) -> list[str]:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return [*DIGITS, str(low - 1), str(low), hex(high), str(high + 1)]


INPUTS = {
    "params_test.a_byte": numbers(8, False),
    "params_test.a_short": numbers(16, True),
    "params_test.a_ushort": numbers(16, False),
    "params_test.an_int": numbers(32, True),
    "params_test.a_uint": numbers(32, False),
    "params_test.a_long": numbers(64, True),
    "params_test.a_ulong": numbers(64, False),
    "params_test.a_ullong": numbers(64, False),
    "params_test.a_hexint": numbers(32, False),
    "params_test.a_bool": WORDS,
    "params_test.an_invbool": WORDS,
    "params_test.a_bint": WORDS,
    "params_test.a_charp": ["x", " a b ", "y\n", "\n", "(null)", "\u00e9", "z" * 1024, "z" * 1025, 'q"uo', ""],
    "params_test.a_string": ["x", " a b ", "y\n", "\n", "z" * 15, "z" * 16, "z" * 14 + "\n", "(null)", ""],
    "params_test.some_ints": ["9,9,9,9", "9,9,bad,9", "1,2,3,4,5", "1 ,2,3,4", "1, 2,3,4", ",", "1,2,3,", "1,2,3,4\n"],
    "params_test.some_ushorts": ["9,9,9", "9,bad,9", "1,2,3,4", "1,2,-1", "0xffff,010,+2", "65536,1,2"],
    "params_test.some_bools": ["Y,N", "1,0", "on,off", "1,2", "yes,n", "1,", "Y,N,Y"],
    "params_test.rounded": ["1000", "1024", "262143", "1", "0", "-1", "5000000000", "0x300"],
    "params_test.clamped": ["5", "1000", "100", "-1", "0x400"],
    "params_test.a_word": ["NUMA", "numa", "nosuch", "cpu"],
    "params_test.a_choice": ["numa", "NUMA", "cpu", "nosuch", "numa\n"],
    "vt.default_red": [",".join([word] * 16) for word in ("9", "0xfe", "256", "9 ", "-1")] + [",".join("9" * 17)],
    "printk.always_kmsg_dump": ["1", "yes", "2"],
    "firmware_class.path": ["/tmp/fw", "/tmp/fw\n", "/" * 255, "/" * 256],
}
OPTIONS = {"params_test.rounded": {"read_back": "rounded"}, "params_test.clamped": {"read_back": "clamped"}}
GUESSED = {
    "params_test.a_bool": ["1", "2", "yes", "N"],
    "params_test.an_int": ["16", "0x10", "08", "16k", "4294967296"],
    "params_test.a_byte": ["255", "256", "-1"],
    "params_test.a_charp": ["x", " a b ", "y\n", "B", "x/y"],
    "params_test.some_ints": ["9,9,9,9", "9,9,bad,9", "0x10,010,3,4"],
    "params_test.some_bools": ["Y,N", "N,Y", "1,2"],
    "params_test.a_choice": ["numa", "nosuch"],
}
# Requests that are made one after another, and a pattern of the error (None: no error).
REQUESTS: list[tuple[str, t.Any, dict[str, t.Any], str | None]] = [
    ("params_test.some_ints", [9, 9], {}, "has 4 elements, and the kernel would keep those that the value leaves out"),
    ("params_test.a_charp", "set", {}, None),
    ("params_test.a_charp", "(null)", {}, "the kernel cannot unset params_test.a_charp. Write '' for an empty text."),
    (
        "params_test.a_charp",
        'q"uo',
        {"persist": "modprobe_d"},
        "cannot be persisted: modprobe.d.5. cannot escape a double quote",
    ),
    ("params_test.a_string", "z" * 16, {}, "params_test.a_string takes a text of at most 15 bytes"),
    ("params_test.some_ints", [1, 2, 3, 4, 5], {}, "params_test.some_ints takes at most 4 elements, not 5"),
    ("params_test.some_ints", [], {"persist": "modprobe_d"}, "params_test.some_ints takes at least one element"),
    ("params_test.a_word", "z" * 4096, {}, "takes a value of at most 4095 bytes, which is what one write holds"),
    ("params_test.an_enable_only", "Y", {}, None),
    ("params_test.an_enable_only", "N", {}, "Once enabled, params_test.an_enable_only stays enabled until a reboot"),
    ("params_test.write_only", 5, {}, None),
    ("params_test.write_only", 5, {"read_back": "exact"}, "cannot be read back .mode 0200."),
    (
        "params_test.read_only",
        2,
        {},
        "cannot be set now: it is read-only .mode 0444 in sysfs.. Set persist to modprobe_d",
    ),
    ("params_test.read_only", 2, {"persist": "modprobe_d"}, None),
    ("params_test.hidden", 2, {}, "cannot be set now: it has no file in sysfs. Set persist to modprobe_d"),
    ("params_test.hidden", 2, {"persist": "modprobe_d"}, None),
    ("params_test.no_set", 2, {}, r"it has no way to be set.*\(EPERM\)"),
    ("params_test.triggered", 2, {}, r"the kernel has no way to set it while it runs.*\(EIO\)"),
    (
        "params_test.a_word",
        "cachejunk",
        {},
        "The kernel took 'cachejunk' for .*, but 'cache' reads back.*Everything is as it",
    ),
    ("params_test.trigger", 1, {}, "The kernel took '1' for .*, but 0 reads back. .*set read_back to trigger"),
    ("params_test.trigger", 1, {"read_back": "trigger"}, None),
    (
        "params_test.rounded",
        3000,
        {"read_back": "exact"},
        "The kernel took '3000' for params_test.rounded, but 4096 reads back",
    ),
    *(
        ("params_test.a_bool", value, {}, "params_test.a_bool takes a boolean .Y or N, 1 or 0.")
        for value in NOT_BOOLEANS
    ),
    ("params_test.unsafe_int", 2, {}, "allow_taint"),
    ("params_test.unsafe_int", 2, {"allow_taint": True}, None),
]
# What a module is loaded with; none has functions of its own, as only the kernel knows what those take.
LOADS = ["an_int=5", "an_int=", "an_int", "an_int = 5", "an_int=lots an_int=5", "a_byte=256", "hidden=x", "unknown=1"]
LOADS += ["a_bool", "a_bool=", "a_bint", "an_invbool", "an_enable_only", "some_bools", "=", "dyndbg=+p"]
LOADS += ["some_ints=1,2,3,4", "some_ints=1,2,3,4,5", "some_ints=", "some_ints=1,", "some_ushorts=1,x"]
LOADS += ["a_charp", "a_charp=", "a_charp=" + "z" * 1025, "a_charp=\u00e0 =b", 'a_charp="a b"']
LOADS += ["a_string=" + "z" * 15, "a_string=" + "z" * 16]
LOAD = """
set -e
file=$(mktemp); trap 'rm -f $file' EXIT
base64 -d >$file <<'END'
{module}
END
while read -r words; do
  if insmod $file "$words" 2>/dev/null; then rmmod params_test; echo 0; else echo 1; fi
done <<'END'
{words}
END
"""
BUILD = """
set -e
top=$(mktemp -d); trap 'rm -rf $top' EXIT; cd $top
for release in "$@"; do
  mkdir $release; echo 'obj-m := params_test.o' >$release/Makefile; base64 -d >$release/params_test.c <<END
{source}
END
  case $release in 6.*) compiler=gcc-14 ;; *) compiler=gcc ;; esac
  make -s -C /lib/modules/$release/build M=$top/$release CC=$compiler CONFIG_DEBUG_INFO_BTF_MODULES= modules >&2
  strip -g $release/params_test.ko
  echo "$release $(base64 -w0 $release/params_test.ko)"
done
"""
REPLAY = """
set -e
top=$(mktemp -d); cd $top
trap 'cd /; rm -rf $top; rmmod params_test' EXIT
mkdir -p ansible_collections/tapvirt; base64 -d <<END | tar -C ansible_collections/tapvirt -xzm
{code}
END
# The guest has no Ansible, and no module runs here.
mkdir -p ansible/module_utils; echo 'class AnsibleModule: pass' >ansible/module_utils/basic.py
base64 -d >params_test.ko <<END
{module}
END
cat >replay.py <<'END'
{replay}
END
insmod params_test.ko
chmod 644 /sys/module/params_test/parameters/triggered
printf %s {work} | PYTHONPATH=$top python3 replay.py
"""


@pytest.fixture(scope="module")
def module_files(lab) -> dict[str, str]:
    """The test module for each host's kernel, base64."""
    releases = {host: lab.release(host) for host in HOSTS}
    source = base64.b64encode((FILES / "params_test.c").read_bytes()).decode()
    done = lab.run("builder", "sh", "-s", *releases.values(), stdin=BUILD.format(source=source), timeout=120)
    assert done.returncode == 0, done.stderr
    modules = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    return {host: modules[release] for host, release in releases.items()}


@pytest.fixture(scope="module")
def replays(lab, module_files) -> dict[str, dict[str, t.Any]]:
    """The output of files/replay.py on each host."""
    code = subprocess.run(["tar", "-C", TREE.parent, "-cz", *MODULE_UTILS], capture_output=True, check=True)
    requests = [row[:3] for row in REQUESTS]
    work = {"inputs": INPUTS, "options": OPTIONS, "guessed": GUESSED, "requests": requests}
    parts = {
        "code": base64.b64encode(code.stdout).decode(),
        "replay": (FILES / "replay.py").read_text(encoding="utf-8"),
        "work": shlex.quote(json.dumps(work)),
    }

    def on(host: str) -> dict[str, t.Any]:
        done = lab.run(host, "sh", stdin=REPLAY.format(module=module_files[host], **parts), timeout=600)
        assert done.returncode == 0, done.stderr
        return t.cast("dict[str, t.Any]", json.loads(done.stdout))

    with concurrent.futures.ThreadPoolExecutor(len(HOSTS)) as pool:
        return dict(zip(HOSTS, pool.map(on, HOSTS), strict=True))


@pytest.mark.parametrize("host", HOSTS)
def test_verdicts_equal_a_plain_write_and_read_back(replays, host):
    rows = replays[host]["rows"]
    assert len(rows) == sum(len(values) for values in INPUTS.values())
    different = [row for row in rows if row[2] != row[3]]
    assert different == []
    assert [row for row in rows if row[5]] == []
    types = {"byte", "short", "ushort", "int", "uint", "long", "ulong", "ullong", "hexint", "bool", "invbool", "bint"}
    types |= {"charp", "string", "selector", "array of int", "array of ushort", "array of bool", "array of byte"}
    assert types <= {row[4] for row in rows}


@pytest.mark.parametrize("host", HOSTS[:2])
def test_options_that_prevent_loading_are_recognized(lab, module_files, replays, host, tmp_path):
    done = lab.run(host, "sh", stdin=LOAD.format(module=module_files[host], words="\n".join(LOADS)), timeout=60)
    assert done.returncode == 0, done.stderr
    for name, data in {
        "proc/sys/kernel/osrelease": b"R",
        "lib/modules/R/modules.dep": b"params_test.ko:\n",
        "lib/modules/R/params_test.ko": base64.b64decode(module_files[host]),
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "etc/modprobe.d").mkdir(parents=True)
    refused = []
    for words in LOADS:
        (tmp_path / "etc/modprobe.d/a.conf").write_text("options params_test " + words + "\n", encoding="utf-8")
        observed = Reader(Root(str(tmp_path)), "x86_64").observe([("params_test", "a_bool")], {})
        refused.append("1" if load_flaws([], "present", observed).get("params_test") else "0")
    assert dict(zip(LOADS, refused, strict=True)) == dict(zip(LOADS, done.stdout.split(), strict=True))
    assert {"0", "1"} == set(refused)


@pytest.mark.parametrize("host", HOSTS)
def test_verdicts_do_not_depend_on_module_information(replays, host):
    rows = replays[host]["guessed"]
    assert len(rows) == sum(len(values) for values in GUESSED.values())
    assert [row for row in rows if row[2] != row[3] or row[5]] == []


@pytest.mark.parametrize("host", HOSTS)
def test_setting_the_current_value_in_any_spelling_writes_nothing(replays, host):
    found = replays[host]["own_values"]
    assert found["planned"] == []
    assert found["written"] == []
    assert found["written_plainly"] == ["params_test.an_int"]
    assert len(found["types"]) > 150
    assert {"bool", "int", "uint", "ulong", "array of byte", "charp", "hexint", "bool_enable_only"} <= {*found["types"]}


@pytest.mark.parametrize("host", HOSTS)
def test_errors_explain_what_the_kernel_refuses(replays, host):
    for (label, value, options, pattern), message in zip(REQUESTS, replays[host]["requests"], strict=True):
        if pattern is None:
            assert message is None, (label, value, options)
        else:
            assert re.search(pattern, message or ""), (label, value, options, message)


@pytest.mark.parametrize("host", HOSTS)
def test_check_mode_changes_no_file_and_no_value(replays, host):
    found = replays[host]["check_mode"]
    assert found["values"] > 20
    assert found["planned"] >= found["values"]
    assert found["before"] == found["after"]
