# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of SystemTap in real builds and runs: limits and their hints, own tapsets with guru mode, stacks."""

from __future__ import annotations

import os
import typing as t

import pytest

pytestmark = pytest.mark.soak
HOST = "trace2"
REASON = "counts in C"
# Of this run alone: the builder may serve another one.
TAPSET = f"/var/lib/tapvirt/tapset-test-{os.getpid()}"
OWN = "function own_one:long() %{ STAP_RETVALUE = 1; %}\nprobe own.tick = timer.ms(10) { step = own_one() }\n"
SCRIPTS = {
    # A hundred new keys a second.
    "full": "global seen\nprobe timer.ms(10) { seen[gettimeofday_ns()] = 1 }\n",
    "loop": "probe timer.ms(100) { for (number = 0; number < 20000; number++) step = number }\n",
    "own": "global ticks\nprobe own.tick { ticks += step }\n"
    'probe end { printf("{\\"kind\\":\\"count\\",\\"key\\":\\"ticks\\",\\"count\\":%d}\\n", ticks) }\n',
    "badvar": 'probe kernel.function("vfs_read").call { printf("%d", $no_such_variable) exit() }\n',
    "stack": 'probe kernel.function("vfs_read").call { print_backtrace() exit() }\n',
}


@pytest.fixture(scope="module")
def builds(lab, tmp_path_factory) -> t.Iterator[dict[str, dict[str, t.Any]]]:
    """The builds by name; the tapset is removed from the builder afterwards."""
    folder = tmp_path_factory.mktemp("options")
    files = {name: folder / f"options_{name}.stp" for name in SCRIPTS}
    for name, text in SCRIPTS.items():
        files[name].write_text(text, encoding="utf-8")
    done = lab.run("builder", "sh", "-ec", f"mkdir -p {TAPSET}; cat > {TAPSET}/own.stp", stdin=OWN)
    assert done.returncode == 0, done.stderr

    def build(name: str, guru: dict[str, str] | None = None, **options: t.Any) -> dict[str, t.Any]:
        made = lab.build(HOST, {name: files[name]}, guru=guru or {}, module=options)
        return t.cast("dict[str, t.Any]", made[HOST][name])

    try:
        yield {
            "small": build("full", limits={"max_map_entries": 20}),
            "large": build("full", limits={"max_map_entries": 5000}),
            "loop": build("loop"),
            "long loop": build("loop", limits={"max_action": 100000}),
            "own": build("own", guru={"own": REASON}, tapsets=[TAPSET]),
            "own without guru": build("own", tapsets=[TAPSET]),
            "stack": build("stack"),
            "stack in virtio_blk": build("stack", stack_modules=["virtio_blk"]),
            "no such module": build("stack", stack_modules=["no_such_module"]),
            "badvar": build("badvar"),
            "badvar skipped": build("badvar", skip_badvars=True),
        }
    finally:
        lab.run("builder", "rm", "-r", TAPSET)


@pytest.fixture(scope="module")
def runs(lab, builds) -> dict[str, dict[str, t.Any]]:
    names = ["small", "large", "loop", "long loop", "own"]
    tasks = [
        {
            "name": f"Run {name}",
            "tapvirt.host.stap_run": {"module": builds[name]["module"], "duration_seconds": 3},
            "ignore_errors": True,
        }
        for name in names
    ]
    done = lab.run_tasks(HOST, tasks)
    return {name: done.of(HOST, f"Run {name}") for name in names}


def test_full_array_names_the_option(runs):
    small, large = runs["small"], runs["large"]["run"]
    assert small["run"]["outcome"] == "script_error" and "Array overflow" in small["run"]["reason"], small
    (hint,) = small["run"]["hints"]
    assert "limits.max_map_entries" in hint and "to more than 20," in hint
    assert small["msg"].endswith(hint) and small["error"]["hint"] == hint
    assert (large["outcome"], large["hints"]) == ("ok", []), large


def test_action_limit_names_the_option(runs):
    loop, long_loop = runs["loop"]["run"], runs["long loop"]["run"]
    assert loop["outcome"] == "script_error" and "MAXACTION exceeded" in loop["reason"], loop
    assert "limits.max_action" in loop["hints"][0] and "to more than 1000," in loop["hints"][0]
    assert (long_loop["outcome"], long_loop["hints"]) == ("ok", []), long_loop


def test_own_tapset_is_used_and_needs_guru_mode(builds, runs):
    run = runs["own"]["run"]
    assert run["outcome"] == "ok" and run["records"][0]["count"] > 50, run
    assert run["guru_reason"] == REASON == builds["own"]["module"]["guru_reason"]
    refused = builds["own without guru"]
    assert "module" not in refused and refused["error"]["option"] == "tapsets[0]", refused
    assert f"The tapset {TAPSET}/own.stp contains embedded C" in refused["error"]["problem"]


def test_symbols_for_stacks_are_in_the_module(builds):
    assert builds["stack in virtio_blk"]["module"]["bytes"] > builds["stack"]["module"]["bytes"]
    missing = builds["no such module"]
    assert "module" not in missing and missing["error"]["option"] == "stack_modules", missing


def test_unknown_variables_are_skipped_on_request(builds):
    assert builds["badvar"]["outcome"] == "build_failed", builds["badvar"]
    assert builds["badvar skipped"]["module"]["name"].startswith("tapvirt_options_badvar_")


def test_each_value_is_a_build_of_its_own(builds):
    for names in (["small", "large"], ["stack", "stack in virtio_blk"]):
        assert len({builds[name]["module"]["key"] for name in names}) == 2
        assert len({builds[name]["module"]["name"] for name in names}) == 1
