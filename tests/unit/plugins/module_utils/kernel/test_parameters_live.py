# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parameters of this machine's own kernel: real files of sysfs, with /etc and /var of a scratch tree."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.plan import Plan
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.values import kind_of_value, read_value
from ansible_collections.tapvirt.host.tests.unit.support.kernel.parameters import set_parameters

SYSFS = pathlib.Path("/sys/module")
ARCH = os.uname().machine
# Where the collection was imported from: the tests themselves may be run from the tree.
COLLECTIONS = str(pathlib.Path(str(sys.modules[Root.__module__].__file__)).parents[6])

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may write module parameters"),
    pytest.mark.usefixtures("this_kernel"),
]


def file_of(label: str) -> pathlib.Path:
    module, _dot, name = label.partition(".")
    return SYSFS / module / "parameters" / name


def needs(*labels: str) -> pytest.MarkDecorator:
    missing = [label for label in labels if not file_of(label).exists() or not file_of(label).stat().st_mode & 0o200]
    return pytest.mark.skipif(bool(missing), reason=f"this kernel lets nobody set {', '.join(missing)}")


def plain_write(label: str, data: bytes) -> None:
    descriptor = os.open(file_of(label), os.O_WRONLY)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def kept(*labels: str) -> t.Iterator[dict[str, str]]:
    """Give the values, and put them back."""
    before = {label: file_of(label).read_text() for label in labels}
    try:
        yield before
    finally:
        for label, text in before.items():
            if file_of(label).read_text() != text:
                plain_write(label, read_value(kind_of_value(text), text, 64).text.encode() or b"\0")
            assert file_of(label).read_text() == text


@pytest.fixture
def root(tmp_path) -> Root:
    for name in ("sys", "proc", "lib"):
        (tmp_path / name).symlink_to("/" + name)
    (tmp_path / "etc").mkdir()
    (tmp_path / "var" / "lib").mkdir(parents=True)
    return Root(str(tmp_path))


def set_here(root: Root, values: t.Mapping[str, t.Any], **options: t.Any) -> tuple[Plan, dict[str, t.Any]]:
    return set_parameters(root, values, machine=ARCH, **options)


def writable() -> list[str]:
    found = []
    for path in sorted(SYSFS.glob("*/parameters/*")):
        if path.stat().st_mode & 0o600 == 0o600:
            found.append(f"{path.parent.parent.name}.{path.name}")
    return found


BOOLEANS = [
    "1",
    "0",
    "2",
    "-1",
    " 1",
    '"1"',
    "o",
    "\n",
    "on",
    "off",
    "Y",
    "n",
    "y\n",
    "True",
    "false",
    "t",
    "f",
    "Yes",
    "no",
]
# The kernel reads the first one or two characters of these.
NOT_BOOLEANS = ["10", "1 ", "yes please", "0x1", "of", 0.5, float("nan")]
NUMBERS = ["0x10", "0X10", "010", "08", "+16", "16\n", "16\n\n", " 16", "16 ", "1_000", "0o10", "0b10", "1e3", "16k"]
NUMBERS += ["\u0661", "99999999999999999999", "2147483648", "-2147483649", "-5", "16\0junk", ""]
LIVE = [("vxlan.log_ecn_error", value) for value in BOOLEANS]
LIVE += [("tcp_cubic.hystart_low_window", value) for value in NUMBERS if value]
LIVE += [("haltpoll.guest_halt_poll_ns", value) for value in ("-1", "4294967296", "+1", "0xffffffff")]
LIVE += [("vt.default_red", ",".join(["9"] * count)) for count in (16, 17)]
LIVE += [
    ("vt.default_red", "9,9,bad," + ",".join(["9"] * 13)),
    ("vt.default_red", "1 ,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16"),
]
LIVE += [("vt.default_red", ",".join(["256"] * 16)), ("vt.default_red", ",".join(["0xfe"] * 16))]
LIVE += [("workqueue.default_affinity_scope", value) for value in ("NUMA", "numa", "nosuch")]
LIVE += [("memory_hotplug.online_policy", value) for value in ("auto_movable", "auto-movable")]


@pytest.mark.parametrize(("label", "value"), LIVE)
def test_the_verdict_is_what_a_plain_write_and_read_back_shows(label, value, root):
    if not file_of(label).exists():
        pytest.skip(f"this kernel has no {label}")
    with kept(label) as before:
        try:
            plain_write(label, value.encode())
            plain: t.Any = file_of(label).read_text()
        except OSError:
            plain = None
        if file_of(label).read_text() != before[label]:
            plain_write(label, before[label].rstrip("\n").encode())
        try:
            set_here(root, {label: value})
            ours: t.Any = file_of(label).read_text()
        except TapvirtError:
            ours = None
            assert file_of(label).read_text() == before[label]
        assert ours == plain
        if ours is not None:
            plan, _result = set_here(root, {label: value})
            assert not plan


@needs("vxlan.log_ecn_error")
@pytest.mark.parametrize("value", NOT_BOOLEANS)
def test_what_only_begins_like_a_boolean_is_refused(value: t.Any, root: t.Any) -> None:
    with kept("vxlan.log_ecn_error") as before:
        with pytest.raises(InvalidInput, match="vxlan.log_ecn_error takes a boolean"):
            set_here(root, {"vxlan.log_ecn_error": value})
        assert file_of("vxlan.log_ecn_error").read_text() == before["vxlan.log_ecn_error"]


@needs("vt.default_red")
def test_an_array_that_is_too_short_is_refused_as_the_kernel_would_keep_its_tail(root):
    with kept("vt.default_red"), pytest.raises(
        InvalidInput, match="has 16 elements, and the kernel would keep those.* Give all 16 elements."
    ):
        set_here(root, {"vt.default_red": [9, 9]})


def spellings(text: str) -> list[t.Any]:
    kind = kind_of_value(text)
    value = read_value(kind, text, 64)
    if kind.word == "bool":
        return [value.shown, *(["1", "yes", "True", "on"] if value.shown else ["0", "no", "False", "off"])]
    if kind.word == "number":
        number = value.shown
        sign, size = ("-", -number) if number < 0 else ("", number)
        return [number, f"{sign}0x{size:X}", f"{sign}0{size:o}", f"{number}\n"]
    if kind.is_array:
        return [value.shown, value.text, ",".join(f"{part:#x}" for part in value.shown)]
    return [value.shown]


def opened_for_writing(action: t.Callable[[], t.Any]) -> list[str]:
    """Return what was opened for writing meanwhile, as the interpreter itself reports it."""
    seen: list[str] = []
    active = [True]

    def hook(event: str, arguments: tuple[t.Any, ...]) -> None:
        if active[0] and event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            seen.append(str(arguments[0]))

    sys.addaudithook(hook)
    action()
    active[0] = False
    return seen


@pytest.mark.parametrize("turn", range(5))
def test_every_parameter_set_to_its_own_value_in_any_spelling_is_no_change_and_no_write(turn, root):
    values: dict[str, t.Any] = {}
    for label in writable():
        texts = spellings(file_of(label).read_text())
        values[label] = texts[turn % len(texts)]
    assert len(values) > 20
    results = []
    opened = opened_for_writing(lambda: results.append(set_here(root, values)))
    plan, result = results[0]
    assert plan.rows() == []
    assert {row["verdict"] for row in result["params"]} == {"unchanged"}
    assert opened == []


def some_numbers(count: int) -> list[str]:
    """Parameters that take a neighbouring number without doing anything at once."""
    harmless: tuple[str, ...] = (
        "tcp_cubic.",
        "haltpoll.",
        "nf_conntrack_sip.",
        "kvm.",
        "rcupdate.rcu_task",
        "overlay.",
        "vt.color",
    )
    harmless += (
        "vt.italic",
        "vt.underline",
        "virtio_blk.",
        "nf_conntrack_h323.",
        "vxlan.",
        "dns_resolver.",
        "sch_htb.",
    )
    harmless += ("jbd2.", "pnp.", "fuse.max_user", "keyboard.", "nf_conntrack_ftp.", "nf_conntrack_amanda.", "printk.")
    labels = [label for label in writable() if label.startswith(harmless) and label != "overlay.check_copy_up"]
    return [label for label in labels if kind_of_value(file_of(label).read_text()).word in ("number", "bool")][:count]


def neighbour(text: str) -> t.Any:
    value = read_value(kind_of_value(text), text, 64).shown
    return not value if isinstance(value, bool) else value + 1


def test_a_failing_thirteenth_of_twenty_leaves_all_as_before_and_reports_which(root):
    labels = some_numbers(19)
    failing = "workqueue.default_affinity_scope"
    if len(labels) < 19 or not file_of(failing).exists():
        pytest.skip("this kernel has too few harmless parameters")
    with kept(*labels, failing) as before:
        values = {label: neighbour(before[label]) for label in labels[:12]}
        values[failing] = "cachejunk"
        values.update({label: neighbour(before[label]) for label in labels[12:]})
        with pytest.raises(
            TapvirtError, match=f"The kernel took 'cachejunk' for {failing}, but.*Everything is as it was"
        ):
            set_here(root, values)
        assert {label: file_of(label).read_text() for label in before} == before
        assert not os.path.exists(root.path("var/lib/tapvirt/kernel_module_param.json"))


def test_set_second_run_restored(root):
    labels = some_numbers(10)
    with kept(*labels) as before:
        values = {label: neighbour(before[label]) for label in labels}
        plan, result = set_here(root, values)
        assert len(plan) == len(labels)
        assert {row["verdict"] for row in result["params"]} == {"changed"}
        assert [row["after"] for row in result["params"]] == list(values.values())
        assert not set_here(root, values)[0]
        set_here(root, {label: neighbour(file_of(label).read_text()) for label in labels})
        plan, result = set_here(root, dict.fromkeys(labels), state="restored")
        assert {row["verdict"] for row in result["params"]} <= {"restored", "unchanged"}
        assert plan
        assert {label: file_of(label).read_text() for label in labels} == before
        assert not set_here(root, dict.fromkeys(labels), state="restored")[0]


def test_check_mode_plans_the_same_and_touches_nothing(root, tmp_path):
    labels = some_numbers(10)
    with kept(*labels) as before:
        values = {label: neighbour(before[label]) for label in labels}
        checks: list[t.Any] = []
        assert opened_for_writing(lambda: checks.append(set_here(root, values, check=True))) == []
        assert {label: file_of(label).read_text() for label in labels} == before
        assert list((tmp_path / "var" / "lib").iterdir()) == []
        plan, _result = set_here(root, values)
        assert checks[0][0].rows() == plan.rows()


def everything() -> dict[str, str]:
    """Return what each file of /etc and /var/lib/tapvirt holds (as a sum) and the value of each parameter."""
    found = {}
    for top in ("/etc", "/var/lib/tapvirt"):
        for path in pathlib.Path(top).rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                data = path.read_bytes() if path.is_file() else b""
                found[str(path)] = f"{path.lstat().st_mode:o} {hashlib.sha256(data).hexdigest()}"
    for path in SYSFS.glob("*/parameters/*"):
        if path.stat().st_mode & 0o400:
            found[str(path)] = path.read_text(errors="replace")
    return found


def test_check_mode_leaves_all_of_etc_and_all_parameters():
    labels = some_numbers(50)
    assert labels
    # Whatever else runs on this machine may change something meanwhile; what check mode changes would differ each time.
    always: set[str] | None = None
    for _turn in range(3):
        with kept(*labels) as texts:
            before = everything()
            values = {label: neighbour(text) for label, text in texts.items()}
            plan, result = set_here(Root("/"), values, persist="auto", check=True)
            assert len(plan) >= len(labels)
            assert {row["verdict"] for row in result["params"]} == {"changed"}
            different = {name for name, _what in before.items() ^ everything().items()}
        always = different if always is None else always & different
        if not always:
            return
    pytest.fail(f"these differ every time: {sorted(always or ())}")


# What does not read back as it was written: the value, and what becomes of it: a verdict and what is read, or an error.
READS_OTHERWISE: list[tuple[str, t.Any, tuple[str, t.Any] | str]] = [
    ("nf_conntrack.hashsize", 1000, ("adjusted", 1024)),
    ("nf_conntrack.hashsize", 262143, ("adjusted", 262144)),
    ("nf_conntrack.hashsize", 1, ("adjusted", 512)),
    ("nf_conntrack.hashsize", 0, "the kernel does not accept this value .EINVAL."),
    ("rcutree.jiffies_till_first_fqs", 100000, ("adjusted", None)),
    ("rcutree.jiffies_till_next_fqs", 0, ("adjusted", 1)),
    ("fuse.max_user_bgreq", 0, ("adjusted", None)),
    ("fuse.max_user_bgreq", 70000, ("adjusted", 65535)),
    ("fuse.max_user_bgreq", 4294967295, ("adjusted", 65535)),
    ("workqueue.default_affinity_scope", "NUMA", ("changed", "numa")),
    (
        "workqueue.default_affinity_scope",
        "cachejunk",
        "The kernel took 'cachejunk' for workqueue.default_affinity_scope, but 'cache' reads back",
    ),
    ("acpi.ec_event_clearing", "queryx", "The kernel took 'queryx' for acpi.ec_event_clearing, but 'query' reads back"),
    ("memory_hotplug.online_policy", "auto_movable", "the kernel does not accept this value .EINVAL."),
    ("memory_hotplug.online_policy", "auto-movable", ("changed", "auto-movable")),
    ("zswap.compressor", "nosuch", "zswap.compressor takes only what this kernel has or can load"),
    ("zswap.compressor", " lzo", "zswap.compressor takes only what this kernel has or can load"),
    ("zswap.max_pool_percent", 1000, ("changed", 1000)),
    ("xt_recent.ip_list_perms", "0644", ("unchanged", 420)),
]


@pytest.mark.parametrize(("label", "value", "expected"), READS_OTHERWISE)
def test_what_reads_otherwise_is_reported_or_refused_and_never_changed_twice(label, value, expected, root):
    if not file_of(label).exists():
        pytest.skip(f"this kernel has no {label}")
    with kept(label) as before:
        if isinstance(expected, str):
            with pytest.raises(TapvirtError, match=expected):
                set_here(root, {label: value})
            assert file_of(label).read_text() == before[label]
            return
        verdict, after = expected
        row = set_here(root, {label: value})[1]["params"][0]
        assert row["verdict"] == verdict
        assert row["after"] == after or (after is None and row["after"] != value)
        plan, result = set_here(root, {label: value})
        assert not plan
        assert result["params"][0]["verdict"] == ("unchanged" if verdict == "changed" else verdict)


@needs("nf_conntrack.hashsize")
def test_a_rounded_number_is_refused_where_the_exact_one_is_asked_for(root):
    with kept("nf_conntrack.hashsize"), pytest.raises(TapvirtError, match="reads back"):
        set_here(root, {"nf_conntrack.hashsize": 3000}, read_back="exact")


@needs("workqueue.default_affinity_scope")
def test_a_word_that_the_kernel_takes_for_another_is_put_back(root):
    label = "workqueue.default_affinity_scope"
    with kept(label):
        set_here(root, {label: "numa"})
        with pytest.raises(TapvirtError, match="but 'cache' reads back.*Everything is as it was"):
            set_here(root, {label: "cachejunk"})
        assert file_of(label).read_text() == "numa\n"


@needs("rcutree.do_rcu_barrier")
def test_a_known_trigger_acts_every_time_unless_it_is_set_to_what_it_shows(root):
    with pytest.raises(TapvirtError, match="but 0 reads back"):
        set_here(root, {"rcutree.do_rcu_barrier": 1}, read_back="exact")
    for read_back in ("auto", "auto", "trigger", "trigger"):
        plan, _result = set_here(root, {"rcutree.do_rcu_barrier": 1}, read_back=read_back)
        assert len(plan) == 1
    assert not set_here(root, {"rcutree.do_rcu_barrier": 0})[0]
    assert len(set_here(root, {"rcutree.do_rcu_barrier": 0}, read_back="trigger")[0]) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"tcp_cubik.hystart": 1},
            r"^Invalid value 'tcp_cubik' for params\[0\].module: No such module is loaded, built into the kernel, or "
            r"installed for \S+. Did you mean tcp_cubic",
        ),
        (
            {"tcp_cubic.hystrat": 1},
            r"^Invalid value 'hystrat' for params\[0\].name: The module tcp_cubic has no such parameter. "
            "Did you mean hystart",
        ),
        (
            {"tcp_cubic.hy-strat": 1},
            r"^Invalid value 'hy-strat' for params\[0\].name: The module tcp_cubic has no such parameter. ",
        ),
        (
            {"../kernel.panic": 1},
            r"^Invalid value '' for params\[0\].module: The name of a module consists of letters, digits, dots, "
            r"underscores and hyphens, and does not begin with a dot or a hyphen\.$",
        ),
        (
            {"tcp_cubic.hystart": "many"},
            r"^Invalid value 'many' for params\[0\].value: tcp_cubic.hystart takes a whole number from ",
        ),
        (
            {"tcp_cubic.hystart": None},
            r"^Invalid value for params\[0\].value: tcp_cubic.hystart needs a value, because state is present.$",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(values, message, root, tmp_path):
    module = next(iter(values)).partition(".")[0]
    if module == "tcp_cubic" and not (SYSFS / module / "parameters").exists():
        pytest.skip(f"this kernel has no {module}")
    with pytest.raises(InvalidInput, match=message):
        set_here(root, values)
    assert list((tmp_path / "var" / "lib").iterdir()) == []


def test_a_read_only_parameter_is_refused_with_its_mode_and_where_it_can_be_set(root):
    for path in sorted(SYSFS.glob("*/parameters/*")):
        text = path.read_text() if path.stat().st_mode & 0o777 == 0o444 else ""
        if kind_of_value(text).word == "bool" and not (path.parent.parent / "initstate").exists():
            label = f"{path.parent.parent.name}.{path.name}"
            with pytest.raises(
                InvalidInput, match="it is read-only .mode 0444 in sysfs.. Set \\S+=VALUE on the kernel command line"
            ):
                set_here(root, {label: text.strip() != "Y"})
            assert not set_here(root, {label: text.strip()})[0]
            return
    pytest.skip("this kernel has no read-only truth value built in")


@needs("8250.share_irqs")
def test_a_refused_hardware_parameter_is_explained(root):
    lockdown = pathlib.Path("/sys/kernel/security/lockdown")
    if lockdown.exists() and "[none]" in lockdown.read_text():
        pytest.skip("no kernel lockdown here")
    with kept("8250.share_irqs"):
        try:
            set_here(root, {"8250.share_irqs": 1})
        except TapvirtError as error:
            assert "lockdown" in error.message and "EPERM" in error.message
        else:
            set_here(root, {"8250.share_irqs": 0})


@needs("tcp_cubic.hystart")
def test_a_built_in_is_kept_on_the_command_line_and_that_is_reported(root):
    text = file_of("tcp_cubic.hystart").read_text().strip()
    if pathlib.Path("/sys/module/tcp_cubic/initstate").exists():
        pytest.skip("tcp_cubic is loadable here")
    plan, result = set_here(root, {"tcp_cubic.hystart": text}, persist="auto")
    assert not plan
    assert result["params"][0]["pending"] == [f"add tcp_cubic.hystart={text} to the kernel command line and reboot"]
    with pytest.raises(
        InvalidInput, match="is built into the kernel, and modprobe.d has no effect on it. Set persist to "
    ):
        set_here(root, {"tcp_cubic.hystart": text}, persist="modprobe_d")


CHILD = """
import os, signal, sys
sys.path.insert(0, {collections!r})
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.run import Parameters
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.model import wanted_list
entries = [dict(module=label.partition(".")[0], name=label.partition(".")[2], value=value, runtime=True,
                persist={persist!r}, read_back="auto") for label, value in {values!r}.items()]
run = Parameters(Root({root!r}), {arch!r}, wanted_list(entries, "present"), "present")
left = [{count}]
def hook(event, arguments):
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event in ("os.rename", "os.remove"):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
print("go", flush=True)
run.converge(False)
"""


def child(root: Root, values: t.Mapping[str, t.Any], count: int = 0, persist: str = "none") -> subprocess.Popen[bytes]:
    """Start a run that kills itself before it opens a file for writing, renames or removes one for the nth time."""
    names = {"collections": COLLECTIONS, "root": root.path(""), "arch": ARCH}
    script = CHILD.format(values=dict(values), count=count, persist=persist, **names)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)


def finish_journal(root: Root) -> list[str]:
    """Run for a parameter that no other run names; return what it recovered."""
    _plan, result = set_here(root, {"kernel.panic": file_of("kernel.panic").read_text().strip()})
    return list(result["recovered"])


def test_a_run_that_was_killed_at_any_step_is_undone_by_the_next_one(root):
    labels = some_numbers(5)
    with kept(*labels) as before:
        values = {label: neighbour(before[label]) for label in labels}
        recovered, count, status = [], 0, -signal.SIGKILL
        while status == -signal.SIGKILL:
            count += 1
            with child(root, values, count) as killed:
                status = killed.wait()
            after = {label: file_of(label).read_text() for label in labels}
            recovered.append(finish_journal(root))
            settled = {label: file_of(label).read_text() for label in labels}
            assert settled == (before if recovered[-1] else after)
            assert settled == before or status == 0 or count > 3 + len(labels)
            set_here(root, dict.fromkeys(labels), state="restored")
            assert {label: file_of(label).read_text() for label in labels} == before
            assert finish_journal(root) == []
        assert status == 0
        # The lock, the journal's new file and its renaming; each parameter; the journal's again.
        assert count == 3 + len(labels) + 2 + 1
        assert sorted(len(labels) for labels in recovered if labels) == [*range(1, len(labels) + 1), len(labels)]


@needs("workqueue.default_affinity_scope")
def test_a_run_that_fails_does_not_forget_what_a_killed_one_had_set(root):
    labels, failing = some_numbers(4), "workqueue.default_affinity_scope"
    with kept(*labels, failing) as before:
        values = {label: neighbour(before[label]) for label in labels}
        with child(root, values, count=3 + 3) as killed:
            assert killed.wait() == -signal.SIGKILL
        assert sum(file_of(label).read_text() != before[label] for label in labels) == 2
        other = {labels[0]: neighbour(file_of(labels[0]).read_text()), failing: "cachejunk"}
        with pytest.raises(TapvirtError, match="but 'cache' reads back"):
            set_here(root, other)
        assert labels[1] in finish_journal(root)
        assert {label: file_of(label).read_text() for label in before} == before


def test_a_killed_run_leaves_neither_values_nor_what_is_kept_of_them(tmp_path):
    texts = {"sys/module/kvm/initstate": "live\n", "sys/module/kernel/parameters/panic": "0\n"}
    texts.update({f"sys/module/kvm/parameters/{name}": "1\n" for name in ("a", "b")})
    (tmp_path / "proc").symlink_to("/proc")
    (tmp_path / "var" / "lib").mkdir(parents=True)
    status, count = -signal.SIGKILL, 0
    while status == -signal.SIGKILL:
        count += 1
        for name, text in {**texts, "etc/modprobe.d/zz-tapvirt.conf": "options kvm a=1\n"}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        root = Root(str(tmp_path))
        with child(root, {"kvm.a": 2, "kvm.b": 2}, count, "modprobe_d") as killed:
            status = killed.wait()
        set_here(root, {"kernel.panic": 0})
        values = [(tmp_path / "sys/module/kvm/parameters" / name).read_text().strip() for name in ("a", "b")]
        own = (tmp_path / "etc/modprobe.d/zz-tapvirt.conf").read_text().splitlines()[-1]
        found = (*values, own)
        assert found in (("1", "1", "options kvm a=1"), ("2", "2", "options kvm a=2 b=2")), count
        assert not set_here(root, {"kernel.panic": 0})[0]
        set_here(root, {"kvm.a": None, "kvm.b": None}, state="restored")
    assert status == 0
    assert count == 3 + 2 + 2 + 2 + 1


def test_a_run_that_was_killed_at_a_random_moment_is_undone_by_the_next_one(root):
    labels = some_numbers(30)
    times = 50 if os.environ.get("TAPVIRT_SOAK") else 5
    with kept(*labels) as before:
        values = {label: neighbour(before[label]) for label in labels}
        with child(root, values) as whole:
            assert whole.stdout is not None
            whole.stdout.readline()
            started = time.perf_counter()
            assert whole.wait() == 0
            seconds = time.perf_counter() - started
        set_here(root, dict.fromkeys(labels), state="restored")
        interrupted = 0
        for _time in range(times):
            with child(root, values) as killed:
                assert killed.stdout is not None
                killed.stdout.readline()
                time.sleep(random.uniform(0, seconds))
                killed.send_signal(signal.SIGKILL)
            after = {label: file_of(label).read_text() for label in labels}
            recovered = finish_journal(root)
            interrupted += bool(recovered)
            settled = {label: file_of(label).read_text() for label in labels}
            assert settled == (before if recovered else after)
            assert len({settled[label] == before[label] for label in labels}) == 1
            set_here(root, dict.fromkeys(labels), state="restored")
            assert {label: file_of(label).read_text() for label in labels} == before
        print(f"killed {times} times, {interrupted} of them half-way")
        assert interrupted or times < 50
