# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The frame of every module: plan, errors, commands, files, journal."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core import command, errors, plan, write
from ansible_collections.tapvirt.host.plugins.module_utils._core.journal import Journal
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root

CHANGE = plan.Change("kvm.halt_poll_ns", 0, 200000, "sysfs", "differs")


def test_an_empty_plan_changes_nothing():
    assert plan.Plan().result(with_diff=True) == {"changed": False, "plan": [], "diff": {"before": "", "after": ""}}


def test_rows_and_diff_come_from_the_same_changes():
    result = plan.Plan([CHANGE, plan.Change("file", None, "a\nb\n", "write", "absent")]).result(with_diff=True)
    assert result["changed"] is True
    assert result["plan"][0] == {
        "what": "kvm.halt_poll_ns",
        "before": 0,
        "after": 200000,
        "how": "sysfs",
        "why": "differs",
    }
    assert result["diff"]["before"] == "kvm.halt_poll_ns: 0\n"
    assert result["diff"]["after"] == "kvm.halt_poll_ns: 200000\nfile:\na\nb\n"


def test_a_diff_is_only_there_when_asked_for():
    assert "diff" not in plan.Plan([CHANGE]).result(with_diff=False)


def test_a_secret_is_in_neither_rows_nor_diff():
    secret = plan.Plan(
        [plan.Change("graphics passwd", "old-secret", "new-secret", "defineXML", "differs", secret=True)]
    )
    assert "secret" not in str(secret.rows()).replace("graphics passwd", "")
    assert "new-secret" not in str(secret.diff())


def test_check_mode_stops_after_the_plan():
    applied = []
    planned, observed = plan.converge(True, lambda: 1, lambda seen: plan.Plan([CHANGE]), lambda p, o: applied.append(p))
    assert planned and observed == 1 and not applied


def test_apply_is_verified_by_a_fresh_look():
    world = {"value": 0}

    def changes(seen: int) -> plan.Plan:
        return plan.Plan([] if seen == 5 else [CHANGE])

    planned, observed = plan.converge(False, lambda: world["value"], changes, lambda p, o: world.update(value=5))
    assert len(planned) == 1 and observed == 5
    assert not plan.converge(False, lambda: world["value"], changes, lambda p, o: world.update(value=6))[0]


def test_success_without_effect_is_a_failure_that_reports_it():
    with pytest.raises(errors.NoEffect, match=r"kvm\.halt_poll_ns"):
        plan.converge(False, lambda: 0, lambda seen: plan.Plan([CHANGE]), lambda p, o: None)


def test_nearest_names_in_a_large_table():
    table = [f"some_symbol_{number}" for number in range(200000)] + ["vfs_read", "vfs_readv", "vfs_write"]
    started = time.monotonic()
    assert errors.nearest_names("vfs_raed", table)[0] == "vfs_read"
    assert time.monotonic() - started < 5


def test_invalid_input_is_one_paragraph_and_a_row():
    error = errors.InvalidInput("params[0].value", "20x", "kvm.halt_poll_ns takes a whole number", "Use 20", ["20"])
    assert error.message == (
        "Invalid value '20x' for params[0].value: kvm.halt_poll_ns takes a whole number. Use 20. Did you mean 20?"
    )
    assert error.row() == {
        "option": "params[0].value",
        "value": "20x",
        "problem": "kvm.halt_poll_ns takes a whole number.",
        "hint": "Use 20.",
        "candidates": ["20"],
    }


def test_the_given_value_is_no_candidate():
    error = errors.InvalidInput("trace_function", "vfs_read", "No module has it.", None, ["vfs_read", "vfs_readv", "b"])
    assert error.message.endswith("No module has it. Did you mean vfs_readv or b?")
    assert error.candidates == ["vfs_readv", "b"]


def test_a_line_is_named_and_a_text_of_several_lines_is_not_repeated():
    error = errors.InvalidInput("domains[1].xml", "<domain>\n<memroy/>", "<memroy> is not an element", line=2)
    assert error.message == "Invalid value for domains[1].xml, line 2: <memroy> is not an element."
    assert "None" not in errors.InvalidInput("kernel", None, "A release is needed").message


def test_an_option_inside_of_others_has_its_path():
    with pytest.raises(errors.InvalidInput) as caught, errors.option_path("modules[2]"), errors.option_path("build"):
        raise errors.InvalidInput("sha256", "x", "It is not a checksum.", line=3)
    assert caught.value.option == "modules[2].build.sha256" and caught.value.line == 3
    assert errors.InvalidInput("[1]", 0, "It is 0.").below("names").option == "names[1]"


def test_any_other_failure_has_a_row_of_the_same_form():
    assert errors.error_row(None) is None
    assert errors.error_row(errors.TapvirtError("It broke.", changed=True)) == {
        "option": None,
        "value": None,
        "problem": "It broke.",
        "hint": None,
        "candidates": [],
    }


def test_a_long_value_is_shown_in_part():
    error = errors.InvalidInput("params[0].value", "x" * 5000, "It is too long")
    assert error.message.endswith("xxx... for params[0].value: It is too long.")
    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("inf"), "inf"),
        ([1.5, {"x": float("nan")}], [1.5, {"x": "nan"}]),
        (1 << 20000, "a number of 20001 bits"),
        ([True, None, "x"], [True, None, "x"]),
        ("x" * 500, "x" * 200 + "..."),
        (["x" * 500], "['" + "x" * 198 + "..."),
        ({"url": "https://bob:s3cret@h/x"}, {"url": "https://bob:********@h/x"}),
        ("rbd:pool/i:id=admin:key=AQs3cret==:conf=/x", "rbd:pool/i:id=admin:key=********:conf=/x"),
        (["see qemu+ssh://u:s3cret@h:22/system"], ["see qemu+ssh://u:********@h:22/system"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_value_of_a_row_is_plain_json_without_secrets(value, shown):
    error = errors.InvalidInput("x", value, "It has https://bob:s3cret@h/x", "Read rbd:a/b:key=AQs3cret")
    assert json.dumps(error.below("y").row()["value"], allow_nan=False) == json.dumps(shown)
    assert "s3cret" not in str(error.row()) + error.message


def test_several_failed_items_have_the_row_of_the_first():
    first = errors.InvalidInput("domains[1].name", "x", "It is bad")
    error = errors.ItemsFailed([None, first, errors.TapvirtError("More.")], rows=[1])
    assert (error.message, error.fields) == (f"{first.message} More.", {"rows": [1]})
    assert error.row() == first.row()


MODULE = """
from ansible_collections.tapvirt.host.plugins.module_utils._core import module
module.run_module({"number": {"type": "int"}, "texts": {"type": "list"}}, lambda _module: {})
"""


def refused_result(options: dict[str, object]):
    """Return the result of a module that takes a number and texts."""
    given = json.dumps({"ANSIBLE_MODULE_ARGS": options})
    done = subprocess.run([sys.executable, "-c", MODULE], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("options", [{"number": "x"}, {"unknown": 1}])
def test_what_ansible_refuses_has_an_error(options):
    result = refused_result(options)
    assert result["failed"]
    assert result["error"] == errors.TapvirtError(result["msg"]).row()


def test_a_nul_byte_is_refused_in_one_sentence():
    result = refused_result({"texts": ["a", {"b": "x\0"}]})
    assert result["msg"] == r"Invalid value 'x\x00' for texts[1].b: A text cannot contain a NUL byte."
    assert result["error"]["option"] == "texts[1].b"


def test_a_command_is_run_without_a_shell_in_the_c_locale():
    done = command.run(["sh", "-c", 'printf "%s" "$LC_ALL"; cat; exit 3', "; touch x"], stdin="in")
    assert (done.rc, done.stdout) == (3, "Cin")


def test_output_is_bounded_and_the_program_is_not_blocked():
    done = command.run(["sh", "-c", "head -c 3000000 /dev/zero; echo end >&2"], max_output_bytes=1000)
    assert len(done.stdout) == 1000 and done.truncated and done.stderr == "end\n" and done.rc == 0


def test_a_command_past_its_deadline_is_ended_with_its_children(tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(command.CommandTimeout, match="did not end within"):
        command.run(["sh", "-c", f"(sleep 2; touch {mark}) & sleep 30"], timeout_seconds=0.5)
    time.sleep(2.2)
    assert not mark.exists()


def test_a_missing_program_is_named():
    with pytest.raises(command.CommandMissing, match="no-such-program"):
        command.run(["no-such-program"])


def test_a_file_is_replaced_whole_and_keeps_its_rights(tmp_path):
    path = tmp_path / "x.conf"
    write.write_atomic(str(path), b"one\n", mode=0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    write.write_atomic(str(path), b"two\n")
    assert path.read_bytes() == b"two\n" and stat.S_IMODE(path.stat().st_mode) == 0o604
    assert os.listdir(tmp_path) == ["x.conf"]


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "x.conf"
    path.write_bytes(b"old\n")
    monkeypatch.setattr(os, "replace", _no_space)
    with pytest.raises(OSError, match="No space"):
        write.write_atomic(str(path), b"new\n")
    assert path.read_bytes() == b"old\n" and os.listdir(tmp_path) == ["x.conf"]


def test_an_error_of_writing_names_the_file_once(tmp_path):
    with pytest.raises(IsADirectoryError) as caught:
        write.write_atomic(str(tmp_path), b"new\n")
    assert str(caught.value) == f"[Errno 21] it is a directory, not a regular file: '{tmp_path}'"
    with pytest.raises(FileNotFoundError) as missing:
        write.write_atomic(str(tmp_path / "no" / "x"), b"new\n")
    assert str(missing.value) == f"[Errno 2] No such file or directory: '{tmp_path}/no/x'"


def _no_space(source: str, target: str) -> None:
    raise OSError(28, "No space left on device")


def test_a_journal_survives_and_an_empty_one_is_removed(tmp_path):
    journal = Journal(str(tmp_path / "state"), "parameters")
    with journal.locked():
        assert journal.read() == {}
        journal.write({"kvm.halt_poll_ns": "0"})
    assert Journal(str(tmp_path / "state"), "parameters").read() == {"kvm.halt_poll_ns": "0"}
    journal.write({})
    assert not (tmp_path / "state" / "parameters.json").exists()


@pytest.mark.parametrize("text", ["{half", "[" * 200_000 + "]" * 200_000])
def test_a_damaged_journal_is_named_and_kept(tmp_path, text):
    (tmp_path / "parameters.json").write_text(text, encoding="utf-8")
    with pytest.raises(errors.TapvirtError, match="parameters.json"):
        Journal(str(tmp_path), "parameters").read()
    assert (tmp_path / "parameters.json").read_text(encoding="utf-8") == text


def test_a_root_reads_only_below_itself(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "version").write_bytes(b"Linux \xff\n")
    root = Root(str(tmp_path))
    assert root.read_text("/proc/version") == "Linux \udcff\n"
    assert root.listdir("sys/module") == [] and root.read_text_or("proc/none", "-") == "-"
