# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict that stap_probe_info gives from a host's facts is what registration then does, on three kernels.

100 functions drawn at random from each guest's kallsyms (set ``TAPVIRT_SEED`` for another draw), and 20 that are
blacklisted, inlined, misspelt, only there as ``.isra`` and the like, of the boot phase, or in a module not loaded.
A small kernel module asks ``register_kprobe`` itself, which is what SystemTap's modules call, for each name and for
each address of the name. What equal means:

- ``kprobe.function("f")`` is registered by name, and the kernel takes the first symbol of that name: ``armable`` just
  when it takes the probe, ``missing``, ``optimised_variant_only`` and ``module_not_loaded`` just when it knows no
  such name, or it is the name of a variable, ``discarded`` and all else when it does not take the place. ``unknown`` is
  never right here: a root user can know all of it.
- ``kernel.function("f")`` is registered by address, once for each function of that name (file-local functions of
  several source files share names; aliases are two names of one address): as many
  ``points`` as addresses that are taken.
  Where only a variant of the name is left, its points are the variants' addresses.
- Functions that ftrace cannot hook (notrace, cold parts, assembly) are functions like others: register_kprobe is asked,
  not tracefs, which refuses those by itself.
- A name that SystemTap leaves out by a list of its own is ``blacklisted``, although the kernel would take it: then
  SystemTap itself, not the kernel, is the judge, and a sample of all is built and run to see what is armed.
- The function that a module began with is gone; its stale address is still in kallsyms and may by now be that of other
  code. It is ``discarded``, and is never tried: registering it can crash the kernel.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re

import pytest
import yaml

from .support.places import FILES

HOSTS = ("trace1", "trace2", "trace3")
pytestmark = pytest.mark.soak
SEED = int(os.environ.get("TAPVIRT_SEED", "20"))
DRAWN = 100
SAMPLE = 15
INLINED = ("file_inode", "i_size_read", "task_pid_nr", "list_add_tail", "netdev_priv", "sk_user_ns", "page_count")
MODULES_NOT_LOADED = (("dummy", "dummy_setup"), ("loop", "loop_configure"), ("nbd", "nbd_ioctl"))
ENOENT = -2
# The kernel returns the same for init functions of modules, and for a name of which only a variant exists.
NOT_FOUND = ["missing", "optimised_variant_only", "module_not_loaded", "discarded"]
BUILD = """
set -e
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/kprobe_try.c"
echo 'obj-m := kprobe_try.o' > "$work/Makefile"
make -s -C "/usr/lib/modules/$1/build" M="$work" CC="$2" CONFIG_DEBUG_INFO_BTF_MODULES= modules >&2
strip --strip-debug "$work/kprobe_try.ko"
base64 "$work/kprobe_try.ko"
"""
FACTS = """
import glob, json
init = {}
for path in glob.glob("/sys/module/*/sections/*"):
    _, _, _, module, _, name = path.split("/")
    try:
        init.setdefault(module, []).append((int(open(path).read(), 16), name))
    except (OSError, ValueError):
        pass
debugfs = [line.split()[1] for line in open("/proc/self/mounts") if line.split()[2] == "debugfs"]
print(json.dumps({"symbols": open("/proc/kallsyms").read(), "sections": init,
                  "blacklist": open(debugfs[0] + "/kprobes/blacklist").read()}))
"""


def read_symbols(lab, host):
    """Read the text symbols of a guest (address, name, owner), those of freed code, and the blacklist of kprobes."""
    data = json.loads(lab.run(host, "python3", "-", stdin=FACTS, timeout=120).stdout)
    rows = re.findall(r"^([0-9a-f]+) ([a-zA-Z]) (\S+)(?:\t\[(\S+)\])?$", data["symbols"], re.MULTILINE)
    marks = {name: int(address, 16) for address, _type, name, owner in rows if not owner}
    spans = [(marks["_stext"], marks["_etext"]), (marks["_sinittext"], marks["_einittext"])]
    symbols: list[tuple[int, str, str]] = []
    gone: list[tuple[int, str, str]] = []
    for address, kind, name, owner in ((int(row[0], 16), *row[1:]) for row in rows):
        if kind not in "tTwW" or name.startswith(("__pfx_", "__cfi_")):
            continue
        if owner in data["sections"]:
            before = [row for row in data["sections"][owner] if row[0] <= address]
            (gone if before and "init." in max(before)[1] else symbols).append((address, name, owner))
        elif not owner and any(start <= address < end for start, end in spans):
            symbols.append((address, name, ""))
    names = {row[2] for row in rows}
    return {"symbols": symbols, "gone": gone, "spans": spans, "names": names, "blacklist": data["blacklist"]}


def special_functions(found, chance):
    """Return 20 functions, as pairs of name and owner, that cannot simply be probed."""
    core = [name for _address, name, owner in found["symbols"] if not owner]
    whole = {name for name in core if "." not in name}
    listed = [name for name in re.findall(r"^\S+\s+(\S+)$", found["blacklist"], re.MULTILINE) if name in whole]
    variants = {name.partition(".")[0] for name in core if re.search(r"\.(isra|constprop|part)\.", name)}
    boot = [name for address, name, owner in found["symbols"] if not owner and address >= found["spans"][1][0]]
    absent = [name for name in INLINED if name not in found["names"]]
    misspelt = [name[1:] + "_" for name in chance.sample(sorted(whole), 3)]
    names = [
        *chance.sample(listed, 5),
        *chance.sample(sorted(variants - found["names"]), 3),
        *chance.sample([name for name in boot if "." not in name], 3),
        *absent[:3],
        *misspelt,
    ]
    return [(name, "") for name in names] + [(function, module) for module, function in MODULES_NOT_LOADED]


def probe_points(name, owner):
    """Return the probe points of a function: by name, and by debug information."""
    if owner:
        return f'kprobe.module("{owner}").function("{name}")', f'module("{owner}").function("{name}")'
    return f'kprobe.function("{name}")', f'kernel.function("{name}")'


def addresses_of(symbols, name, owner):
    """Return the addresses of a name, and those of its variants that are functions."""
    same = [address for address, other, place in symbols if (other, place) == (name, owner)]
    variants = [
        address
        for address, other, place in symbols
        if place == owner and other.startswith(name + ".") and ".cold" not in other
    ]
    return same, variants


def verdicts_play(chosen, releases):
    """Return a play that reads the verdicts of all functions, then builds and runs a sample of them."""
    sample = {
        host: ",\n".join(
            probe_points(*pair)[1] + ".call ?" for pair in [*pairs[:SAMPLE], *pairs[DRAWN:]] if "." not in pair[0]
        )
        for host, pairs in chosen.items()
    }
    return [
        {
            "hosts": ":".join(HOSTS),
            "gather_facts": False,
            "vars": {
                "probes": {
                    host: [point for pair in pairs for point in probe_points(*pair)] for host, pairs in chosen.items()
                },
                "script": {host: f"probe {text} {{ next }}\n" for host, text in sample.items()},
                "releases": releases,
            },
            "tasks": [
                {
                    "name": "Verdicts",
                    "tapvirt.host.stap_probe_info": {"probes": "{{ probes[inventory_hostname] }}", "limit": 200},
                },
                {
                    "name": "Render",
                    "tapvirt.host.stap_script": {
                        "src": "verdicts.stp.j2",
                        "variables": "{{ {'text': script[inventory_hostname]} }}",
                    },
                    "delegate_to": "builder",
                    "register": "rendered",
                },
                {
                    "name": "Build",
                    "tapvirt.host.stap_module": {
                        "script": "{{ rendered.script }}",
                        "kernel": "{{ releases[inventory_hostname] }}",
                    },
                    "delegate_to": "builder",
                    "register": "built",
                },
                {
                    "name": "Run",
                    "tapvirt.host.stap_run": {"module": "{{ built.module }}", "duration_seconds": 3},
                    "register": "traced",
                    "ignore_errors": True,
                },
            ],
        }
    ]


def try_all(lab, host, release, compiler, names, addresses):
    """Have a guest's kernel register each name, armed, and each address, not armed; return the return codes."""
    source = (FILES / "kprobe_try.c").read_text(encoding="utf-8")
    built = lab.run("builder", "bash", "-c", BUILD, "build", release, compiler, stdin=source, timeout=120)
    assert built.returncode == 0, built.stderr
    base64.b64decode(built.stdout)
    lines = "\n".join([*names, "disabled", *map(hex, addresses), ""])
    script = (
        "set -e; exec 2>&1; base64 -d > /run/kprobe_try.ko <<'END'\n" + built.stdout + "END\n"
        "insmod /run/kprobe_try.ko; trap 'rmmod kprobe_try; rm -f /run/kprobe_try.ko' EXIT\n"
        "cat > /proc/tapvirt_kprobe_try <<'END'\n" + lines + "END\ncat /proc/tapvirt_kprobe_try\n"
    )
    done = lab.run(host, "bash", "-s", stdin=script, timeout=300)
    assert done.returncode == 0, done.stdout
    codes = list(map(int, done.stdout.split()))
    assert len(codes) == len(names) + len(addresses)
    return dict(zip(names, codes[: len(names)], strict=True)), dict(zip(addresses, codes[len(names) :], strict=True))


@pytest.fixture(scope="module")
def verdicts(lab, tmp_path_factory):
    """The functions drawn on each host, their verdicts, and what the kernel does when they are registered."""
    print(f"seed {SEED}")
    folder = tmp_path_factory.mktemp("verdicts")
    found, chosen, releases = {}, {}, {}
    for host in HOSTS:
        found[host] = read_symbols(lab, host)
        chance = random.Random(SEED)
        drawn = chance.sample(found[host]["symbols"], DRAWN)
        chosen[host] = [(name, owner) for _address, name, owner in drawn] + special_functions(found[host], chance)
        releases[host] = lab.release(host)
    (folder / "verdicts.stp.j2").write_text("{{ text }}", encoding="utf-8")
    plays = verdicts_play(chosen, releases)
    plays[0]["tasks"][1]["tapvirt.host.stap_script"]["src"] = str(folder / "verdicts.stp.j2")
    done = lab.playbook(yaml.safe_dump(plays))
    rows = {}
    for host in HOSTS:
        rows_by_probe = {row["probe"]: row for row in done.of(host, "Verdicts")["probes"]}
        names = sorted({f"{owner}:{name}" if owner else name for name, owner in chosen[host]})
        addresses = sorted(
            {
                address
                for pair in chosen[host]
                for part in addresses_of(found[host]["symbols"], *pair)
                for address in part
            }
        )
        compiler = done.of(host, "Build")["module"]["compiler"]
        by_name, by_address = try_all(lab, host, releases[host], compiler, names, addresses)
        rows[host] = (found[host], chosen[host], rows_by_probe, by_name, by_address, done.of(host, "Run"))
    return rows


@pytest.mark.parametrize("host", HOSTS)
def test_verdicts_by_name_agree_with_the_kernel(verdicts, host):
    _found, chosen, rows_by_probe, by_name, _by_address, _run = verdicts[host]
    wrong = []
    for name, owner in chosen:
        row, code = rows_by_probe[probe_points(name, owner)[0]], by_name[f"{owner}:{name}" if owner else name]
        expected = {0: ["armable"], ENOENT: NOT_FOUND}.get(code, ["blacklisted", "discarded", "refused"])
        if row["verdict"] not in expected:
            wrong.append((name, owner, code, row["verdict"], row["reason"]))
    assert not wrong, f"seed {SEED}: {wrong}"
    assert len({row["verdict"] for row in rows_by_probe.values()}) >= 6, "the draw has too few kinds"


@pytest.mark.parametrize("host", HOSTS)
def test_verdicts_by_address_agree_with_the_kernel(verdicts, host):
    found, chosen, rows_by_probe, _by_name, by_address, _run = verdicts[host]
    wrong = []
    for name, owner in chosen:
        row = rows_by_probe[probe_points(name, owner)[1]]
        same, variants = addresses_of(found["symbols"], name, owner)
        taken = sum(by_address[address] == 0 for address in same or variants)
        count = row["point_count"] if row["verdict"] in ("armable", "optimised_variant_only") else 0
        if count != taken and "SystemTap itself" not in row["reason"]:
            wrong.append((name, owner, taken, row["verdict"], row["reason"]))
    assert not wrong, f"seed {SEED}: {wrong}"


@pytest.mark.parametrize("host", HOSTS)
def test_systemtap_arms_a_sample_as_the_verdicts_predict(verdicts, host):
    _found, chosen, rows_by_probe, _by_name, _by_address, result = verdicts[host]
    probes = result["run"]["probes"]
    # Optional ones that debug information does not have at all (assembly, parts that the compiler split off) are left
    # out of the build; the host cannot know that.
    missing = set(probes["missing"])
    built: dict[str, bool] = {}
    for point in probes["points"]:
        name = name_in(point["point"])
        built[name] = built.get(name, False) or point["point"] not in missing
    wrong = []
    for name, owner in [*chosen[:SAMPLE], *chosen[DRAWN:]]:
        row = rows_by_probe[probe_points(name, owner)[1]]
        says = row["verdict"] in ("armable", "optimised_variant_only")
        # In a module that is not loaded the probe is built, and waits.
        if name in built and row["verdict"] != "module_not_loaded" and says != built[name]:
            wrong.append((name, owner, built[name], row["verdict"], row["reason"]))
    assert not wrong, f"seed {SEED}: {wrong}"
    assert sum(built.values()) >= SAMPLE // 2, built


def name_in(point):
    """Return the function's name in a probe point."""
    return point.partition('function("')[2].partition("@")[0].partition('"')[0]


def test_init_functions_of_modules_are_discarded(verdicts, lab):
    for host in HOSTS:
        gone = verdicts[host][0]["gone"]
        kept = {(name, owner) for _address, name, owner in verdicts[host][0]["symbols"]}
        probes = [probe_points(name, owner)[1] for _address, name, owner in gone if (name, owner) not in kept]
        if probes:
            (result,) = lab.ansible(host, "tapvirt.host.stap_probe_info", {"probes": probes}).values()
            assert {row["verdict"] for row in result["probes"]} == {"discarded"}, result
