# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt_daemon on a libvirtd of its own, whose files are this test's alone (a mount namespace)."""

from __future__ import annotations

import datetime
import pathlib
import re
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.plan import Change, Plan
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.daemon.logging import (
    Logging,
    apply,
    compile_match,
    entries_in,
    read_log,
    read_wanted,
    read_window,
    recent,
    stored_in,
    with_settings,
)
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.results import plan_changes
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.system_daemon import SystemDaemon, system_daemon

OUTPUTS = ["1:file:/run/here.log", "3:stderr"]


CONFIG = "/etc/libvirt/libvirtd.conf"


@pytest.fixture(scope="module")
def libvirtd() -> t.Iterator[SystemDaemon]:
    with system_daemon() as libvirtd:
        libvirtd.write(CONFIG, '# kept\n#log_filters="1:x"\nmax_clients = 50\n')
        yield libvirtd


@pytest.fixture(scope="module")
def run_daemon(libvirtd: SystemDaemon) -> t.Callable[..., dict[str, t.Any]]:
    """Run the module beside a daemon: its result, with the daemon's file as ``file``; ``said``: it is to fail."""

    def run(check: bool = False, fails: bool = False, **args: t.Any) -> dict[str, t.Any]:
        result = (libvirtd.module if fails else libvirtd.done)("libvirt_daemon", check=check, **args)
        return {**result, "file": libvirtd.path(CONFIG).read_text(encoding="utf-8")}

    return run


def test_filters_and_outputs_are_set_while_it_runs_and_kept_on_request(run_daemon) -> None:
    wanted = {"log_filters": ["1:qemu", "3:util.object"], "log_outputs": OUTPUTS}
    planned = run_daemon(check=True, **wanted)
    done = run_daemon(**wanted)
    assert planned["plan"] == done["plan"]
    assert planned["logging"]["running"] == {"log_filters": [], "log_outputs": ["3:stderr"]}
    assert done["logging"]["running"] == {"log_filters": ["1:*qemu*", "3:*util.object*"], "log_outputs": OUTPUTS}
    assert done["file"] == planned["file"]
    assert run_daemon(**wanted)["plan"] == []
    kept = run_daemon(persist=True, **wanted)
    assert [row[0] for row in plan_changes(kept)] == [
        "/etc/libvirt/libvirtd.conf log_filters",
        "/etc/libvirt/libvirtd.conf log_outputs",
    ]
    assert kept["file"].startswith('# kept\n#log_filters="1:x"\nmax_clients = 50\n')
    assert kept["logging"]["stored"] == wanted
    again = run_daemon(persist=True, **wanted)
    assert (again["changed"], again["plan"]) == (False, [])
    quiet = run_daemon(log_filters=[], persist=True)
    assert quiet["logging"]["running"]["log_filters"] == quiet["logging"]["stored"]["log_filters"] == []
    assert quiet["logging"]["running"]["log_outputs"] == OUTPUTS


def test_the_log_is_bounded_by_time_size_and_pattern(run_daemon) -> None:
    run_daemon(log_outputs=OUTPUTS, log_filters=["1:rpc"])
    log = run_daemon(fetch_log=True, log_max_bytes=2000)["log"]
    assert (log["source"], log["truncated"]) == ("/run/here.log", True)
    assert log["bytes"] == len(log["text"]) <= 2000
    matched = run_daemon(fetch_log=True, log_match="virNetServerClient")["log"]["text"].splitlines()
    assert matched
    assert all("virNetServerClient" in line for line in matched)
    run_daemon(log_outputs=["4:stderr"], log_filters=[])
    assert (
        "logs to 4:stderr, where no log can be read. Add a file or journald to log_outputs."
        in run_daemon(fails=True, fetch_log=True)["msg"]
    )


def test_what_the_daemon_refuses_is_reported(run_daemon) -> None:
    refused = run_daemon(fails=True, log_outputs=["1:file:/nowhere/x.log"])
    assert "failed to open /nowhere/x.log: No such file or directory." in refused["msg"]
    absent = run_daemon(fails=True, daemon="virtxend")
    assert "The log filters of virtxend could not be read: " in absent["msg"]


def running(daemon) -> dict[str, list[str]]:
    return daemon(check=True)["logging"]["running"]


def test_filters_stay_when_outputs_are_refused(run_daemon) -> None:
    run_daemon(log_filters=["3:before"], log_outputs=["3:stderr"])
    refused = run_daemon(fails=True, log_filters=["1:qemu"], log_outputs=["1:file:/nowhere/x.log"])
    assert refused["msg"].endswith("failed to open /nowhere/x.log: No such file or directory.")
    assert running(run_daemon) == {"log_filters": ["3:*before*"], "log_outputs": ["3:stderr"]}


def test_what_was_set_is_put_back_when_the_file_cannot_be_written(run_daemon, libvirtd) -> None:
    run_daemon(log_filters=["3:before"], log_outputs=["3:stderr"])
    before = run_daemon(check=True)
    libvirtd.run("mount", "--bind", CONFIG, CONFIG)
    try:
        refused = run_daemon(fails=True, log_filters=["1:qemu"], log_outputs=["1:stderr"], persist=True)
    finally:
        libvirtd.run("umount", CONFIG)
    assert refused["msg"] == (
        f"{CONFIG} could not be written: Device or resource busy. The running log_filters were put back. The running "
        "log_outputs were put back."
    )
    after = run_daemon(check=True)
    assert (after["logging"], after["file"]) == (before["logging"], before["file"])


@pytest.mark.parametrize(
    ("filters", "outputs", "message"),
    [
        (["qemu"], None, "for log_filters[0]: A filter has the form LEVEL:NAME. LEVEL is 1 (debug), "),
        (["5:qemu"], None, "for log_filters[0]: A filter has the form LEVEL:NAME. LEVEL is 1 (debug), "),
        (["1:+qemu"], None, "for log_filters[0]: A filter has the form LEVEL:NAME. LEVEL is 1 (debug), "),
        (['1:qemu" x'], None, "for log_filters[0]: A filter has the form LEVEL:NAME. LEVEL is 1 (debug), "),
        (None, ["1:file:relative"], "for log_outputs[0]: An output has the form "),
        (None, [], "Invalid value [] for log_outputs: A daemon needs at least one output."),
    ],
)
def test_what_is_no_filter_or_output_is_refused(filters, outputs, message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        read_wanted(filters, outputs)


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^Invalid value '\(' for log_match: This is not a regular expression: "):
        compile_match("(")


def test_a_file_keeps_what_is_not_ours() -> None:
    text = 'a = 1\nlog_filters = "1:x" # why\n#log_outputs="3:stderr"\nlast = 2'
    new = with_settings(text, {"log_filters": "1:qemu", "log_outputs": "3:journald"})
    assert new == 'a = 1\nlog_filters = "1:qemu"\n#log_outputs="3:stderr"\nlast = 2\nlog_outputs = "3:journald"\n'
    assert stored_in(new) == Logging(("1:qemu",), ("3:journald",))
    assert stored_in("") == Logging(None, None)
    # The daemon takes the first of several.
    twice = 'log_filters = \'1:x\'\nlog_filters = "1:y"\nlog_outputs="""1:stderr\n 3:journald""" # why\n'
    assert stored_in(twice) == Logging(("1:x",), ("1:stderr", "3:journald"))
    new = with_settings(twice, {"log_filters": "1:z", "log_outputs": ""})
    assert new == 'log_filters = "1:z"\nlog_filters = "1:y"\nlog_outputs = ""\n'
    assert stored_in(new) == Logging(("1:z",), ())


def test_a_file_that_cannot_be_read_is_not_an_empty_one(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "etc" / "libvirt" / "libvirtd.conf"
    path.mkdir(parents=True)
    planned = Plan([Change("libvirtd.conf log_filters", None, ["1:x"], "file", "as wanted")])
    with pytest.raises(TapvirtError, match=r"libvirtd\.conf cannot be read: it is a directory, not a regular file"):
        apply(Root(str(tmp_path)), "libvirtd", planned)
    path.rmdir()
    apply(Root(str(tmp_path)), "libvirtd", planned)
    assert path.read_text(encoding="utf-8") == 'log_filters = "1:x"\n'


@pytest.mark.parametrize("window", [(0, 1), (604801, 1), (1, 0), (1, -5), (1, 10**10)])
def test_a_window_has_bounds(window: tuple[int, int]) -> None:
    with pytest.raises(
        InvalidInput, match="log_(seconds|max_bytes): The (time|size) is a number of (seconds|bytes) from 1 to "
    ):
        read_window(*window, None)


def test_lines_of_one_entry_stay_together() -> None:
    assert entries_in("b 1\n  b 2\na\n") == [["b 1", "  b 2"], ["a"]]


def test_what_matches_is_looked_for_before_the_size_is_cut(tmp_path: pathlib.Path) -> None:
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S.000+0000: ")
    log = tmp_path / "log"
    log.write_text(stamp + "needle\n" + 500 * (stamp + "hay\n"), encoding="utf-8")
    outputs = [f"1:file:{log}"]
    found = read_log("libvirtd", outputs, read_window(3600, 100, "needle"))
    assert (found["text"], found["truncated"]) == (stamp + "needle\n", False)
    assert read_log("libvirtd", outputs, read_window(3600, 100, None))["truncated"]


def test_a_line_without_a_time_belongs_to_the_one_before() -> None:
    lines = [
        "2026-01-01 00:00:00.000+0000: 1: error : old",
        "  rest",
        "2026-01-01 00:01:00.000+0000: 1: info : new",
        "x",
    ]
    assert recent(lines, 1767225650) == lines[2:]
    assert recent(lines, 1767225600) == lines
    assert recent(lines, 1767229999) == []
