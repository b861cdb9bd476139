# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module information and modprobe.d: recorded sections of real modules, trees of configuration files."""

from __future__ import annotations

import json
import lzma
import pathlib

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.image import elf
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.image.cmdline import split_word, split_words
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.modules import modprobe_d
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.modules.installed import InstalledModules
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.modules.modinfo import (
    parameters_of,
    parse_modinfo,
)
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.model import wanted_list
from ansible_collections.tapvirt.host.tests.unit.support.files import write_files
from ansible_collections.tapvirt.host.tests.unit.support.kernel.module_object import object_file
from ansible_collections.tapvirt.host.tests.unit.support.kernel.parameters import set_parameters

FIXTURES = next(path for path in pathlib.Path(__file__).parents if path.name == "unit") / "fixtures" / "kernel"
RELEASE = "6.12.107+deb13-cloud-amd64"
KVM = (FIXTURES / RELEASE / "kvm.modinfo").read_bytes()


@pytest.fixture
def tree(tmp_path):
    """A host of kernel 6.12 with kvm loaded, dummy installed, and types of what is built in."""
    modules = tmp_path / "lib" / "modules" / RELEASE
    (modules / "kernel").mkdir(parents=True)
    (modules / "modules.dep").write_text(
        "kernel/kvm.ko.xz:\nkernel/dummy.ko:\nkernel/snd-pcm.ko:\nkernel/nf_conntrack_ftp.ko:\n"
    )
    ftp = b"parmtype=ports:array of ushort\0parmtype=loose:bool\0parmtype=names:array of charp\0"
    (modules / "kernel" / "nf_conntrack_ftp.ko").write_bytes(object_file(ftp))
    (modules / "modules.builtin").write_text("kernel/drivers/block/brd.ko\n")
    (modules / "modules.builtin.modinfo").write_bytes((FIXTURES / RELEASE / "modules.builtin.modinfo").read_bytes())
    (modules / "kernel" / "kvm.ko.xz").write_bytes(lzma.compress(object_file(KVM)))
    dummy = b"parm=numdummies:Number of dummy pseudo devices\0parmtype=numdummies:int\0parmtype=model:charp\0"
    (modules / "kernel" / "dummy.ko").write_bytes(object_file(dummy, wide=False))
    (modules / "kernel" / "snd-pcm.ko").write_bytes(object_file(b"parmtype=preallocate_dma:int\0"))
    write_files(
        tmp_path,
        {
            "proc/sys/kernel/osrelease": RELEASE,
            "proc/cmdline": "quiet rcutree.blimit=20 panic=5",
            "sys/module/kvm/initstate": "live\n",
            "sys/module/kvm/parameters/halt_poll_ns": "200000\n",
            "sys/module/kvm/parameters/nx_huge_pages": "never\n",
            "sys/module/rcutree/parameters/blimit": "10\n",
            "sys/module/firmware_class/parameters/path": "\n",
            "sys/module/kernel/parameters/panic": "5\n",
            "sys/module/vt/parameters/default_red": ",".join(["1"] * 16) + "\n",
        },
    )
    (tmp_path / "etc" / "modprobe.d").mkdir(parents=True)
    return tmp_path


def set_in(tree, values, **options):
    return set_parameters(Root(str(tree)), values, **options)


def conf(tree, name, text):
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def own(tree):
    return (tree / modprobe_d.OWN_FILE).read_text()


def test_types_and_descriptions_are_joined_by_name():
    found = parameters_of(
        [
            ("parm", "a:text: more\nlines"),
            ("parmtype", "a:int"),
            ("parmtype", "b-c:bool"),
            ("parm", "d:x"),
            ("license", "GPL"),
        ]
    )
    assert {name: (info.type, info.description) for name, info in found.items()} == {
        "a": ("int", "text: more\nlines"),
        "b_c": ("bool", None),
        "d": (None, "x"),
    }


def test_the_section_of_a_real_module():
    types = {name: info.type for name, info in parameters_of(parse_modinfo(KVM)).items()}
    assert types["halt_poll_ns"] == "uint" and types["ignore_msrs"] == "bool"


def test_module_files_of_both_classes_and_damaged_ones(tree):
    installed = InstalledModules(Root(str(tree)), RELEASE)
    assert installed.parameters("kvm")["halt_poll_ns"].type == "uint"
    assert installed.parameters("dummy")["numdummies"].description == "Number of dummy pseudo devices"
    assert installed.file_of("snd-pcm") is not None
    assert installed.file_of("snd-pcm") == installed.file_of("snd_pcm")
    assert installed.is_built_in("brd") and not installed.is_built_in("kvm")
    (tree / "lib/modules" / RELEASE / "kernel/kvm.ko.xz").write_bytes(b"damaged")
    assert InstalledModules(Root(str(tree)), RELEASE).parameters("kvm") == {}
    with pytest.raises(elf.ElfError):
        elf.section(object_file(KVM)[:100], ".modinfo")


@pytest.mark.parametrize(
    ("module", "name", "kind"),
    [
        ("rcutree", "blimit", "long"),
        ("rcupdate", "rcu_expedited", "int"),
        ("module", "sig_enforce", "bool_enable_only"),
        ("vt", "default_red", "array of byte"),
        ("firmware_class", "path", "string"),
        ("xen", "balloon_boot_timeout", "uint"),
        ("kfence", "burst", "uint"),
    ],
)
def test_built_in_modules_that_no_list_names_have_their_types(module, name, kind, tree):
    assert InstalledModules(Root(str(tree)), RELEASE).parameters(module)[name].type == kind


def test_files_are_joined_masked_and_read_in_the_order_of_their_names(tree):
    conf(tree, "usr/lib/modprobe.d/a.conf", "options kvm a=1 b=1\n  options kvm c=1\n")
    conf(tree, "usr/lib/modprobe.d/b.conf", "options kvm a=masked\n")
    conf(tree, "etc/modprobe.d/b.conf", "# x\noptions kvm \\\n b=2 \noptions kvm-amd nested=1\noptions x\n")
    conf(tree, "run/modprobe.d/c.txt", "options kvm a=3\n")
    conf(tree, "lib/modprobe.d/c.conf", 'options kvm d="x # y" e=1 # f\n')
    found = modprobe_d.effective(modprobe_d.options_of(modprobe_d.read_lines(Root(str(tree)))))
    assert {key: option.value for key, option in found.items()} == {
        ("kvm", "a"): "1",
        ("kvm", "b"): "2",
        ("kvm", "c"): "1",
        ("kvm_amd", "nested"): "1",
        ("kvm", "d"): "x # y",
        ("kvm", "e"): "1",
        ("kvm", "#"): None,
        ("kvm", "f"): None,
    }
    assert found["kvm", "b"].source == "/etc/modprobe.d/b.conf"


def test_hidden_files_are_no_files_of_modprobe(tree):
    conf(tree, "etc/modprobe.d/.a.conf", "options kvm a=1\n")
    assert modprobe_d.read_lines(Root(str(tree))) == []


def test_a_backslash_is_read_as_modprobe_reads_it():
    lines = modprobe_d.parse_lines("options a p=C:\\dir q=x\\\\y \\\n r=1\r\nblacklist\tb \\", "f")
    assert [(line.command, line.rest) for line in lines] == [
        ("options", "a p=C:dir q=x\\y  r=1\r"),
        ("blacklist", "b "),
    ]


def test_the_first_line_that_fits_a_module_is_followed_and_an_install_line_not_beside_a_softdep():
    lines = modprobe_d.parse_lines(
        "install kvm-* /bin/false\ninstall kvm_amd /bin/true\nblacklist k*\nblacklist snd-pcm\ninstall nbd\n"
        "softdep n?d pre: brd\ninstall nbd /bin/true\nsoftdep null_blk pre: post:\ninstall null[-_]blk /bin/true\n",
        "f",
    )

    def about(command, module):
        line = modprobe_d.line_about(lines, command, module)
        return None if line is None else line.rest

    assert about("install", "kvm_amd") == "kvm-* /bin/false"
    assert about("install", "kvm") is None
    assert about("blacklist", "kvm") is None
    assert about("blacklist", "snd_pcm") == "snd-pcm"
    assert about("install", "nbd") == "nbd /bin/true"
    assert modprobe_d.install_line(lines, "nbd") is None
    assert modprobe_d.install_line(lines, "null_blk") is not None


def test_our_own_file_is_read_back_as_it_was_written():
    options = {("dummy", "model"): "a b", ("kvm", "x"): "1", ("kvm", "a"): "", ("kvm", "y"): "it's # ok"}
    options.update({("nbd", "p"): "C:\\dir", ("nbd", "q"): "a b\\", ("nbd", "r"): "a\\"})
    parsed = modprobe_d.options_of(modprobe_d.parse_lines(modprobe_d.edited("", options), "f"))
    assert {(option.module, option.name): option.value for option in parsed} == options
    assert modprobe_d.edited("", {}) == ""


@pytest.mark.parametrize("value", ['a"b', "a\nb", "a\tb"])
def test_what_modprobe_d_cannot_hold_is_refused(value, tree):
    with pytest.raises(InvalidInput, match="The value of \\S+ cannot be persisted: modprobe.d.5. cannot "):
        set_in(tree, {"dummy.model": value}, persist="auto")
    assert list((tree / "etc/modprobe.d").iterdir()) == []


def test_set_persist_second_run_restored(tree):
    plan, result = set_in(tree, {"kvm.halt_poll_ns": "0x493e0"}, persist="auto")
    assert [change.how for change in plan] == ["sysfs", "/etc/modprobe.d/zz-tapvirt.conf"]
    row = result["params"][0]
    assert (row["type"], row["before"], row["after"]) == ("uint", 200000, 300000)
    assert (row["persisted_in"], row["pending"]) == ("/etc/modprobe.d/zz-tapvirt.conf", [])
    assert own(tree).endswith("\noptions kvm halt_poll_ns=300000\n")
    assert not set_in(tree, {"kvm.halt-poll-ns": 300000}, persist="auto")[0]
    plan, result = set_in(tree, {"kvm.halt_poll_ns": None}, state="restored")
    assert len(plan) == 2
    assert (tree / "sys/module/kvm/parameters/halt_poll_ns").read_text() == "200000"
    assert list((tree / "etc/modprobe.d").iterdir()) == []
    assert not (tree / "var/lib/tapvirt/kernel_module_param.json").exists()


def test_check_mode_reports_the_same_and_writes_nothing(tree):
    before = {path: path.read_bytes() for path in sorted(tree.rglob("*")) if path.is_file()}
    plan, result = set_in(tree, {"kvm.halt_poll_ns": 1, "dummy.numdummies": 2}, persist="auto", check=True)
    assert {path: path.read_bytes() for path in sorted(tree.rglob("*")) if path.is_file()} == before
    assert result["params"][0]["persisted_in"] == "/etc/modprobe.d/zz-tapvirt.conf"
    assert set_in(tree, {"kvm.halt_poll_ns": 1, "dummy.numdummies": 2}, persist="auto")[0].rows() == plan.rows()


def test_a_vendors_line_that_reports_it_already_is_enough(tree):
    conf(tree, "usr/lib/modprobe.d/vendor.conf", "options kvm halt_poll_ns=0x30d40 ignore_msrs=1\n")
    plan, result = set_in(tree, {"kvm.halt_poll_ns": 200000}, persist="auto")
    assert not plan
    assert result["params"][0]["persisted_in"] == "/usr/lib/modprobe.d/vendor.conf"


def test_a_vendors_line_that_reports_otherwise_is_overruled_and_left_alone(tree):
    conf(tree, "etc/modprobe.d/vendor.conf", "options kvm halt_poll_ns=1\n")
    plan, result = set_in(tree, {"kvm.halt_poll_ns": 200000}, persist="modprobe_d")
    assert plan.changes[0].why == "/etc/modprobe.d/vendor.conf sets another value"
    assert result["params"][0]["persisted_in"] == "/etc/modprobe.d/zz-tapvirt.conf"
    assert (tree / "etc/modprobe.d/vendor.conf").read_text() == "options kvm halt_poll_ns=1\n"


def test_a_line_that_comes_after_ours_is_named_and_does_not_make_us_write_again(tree):
    conf(tree, "etc/modprobe.d/zzz.conf", "options kvm halt_poll_ns=1\n")
    set_in(tree, {"kvm.halt_poll_ns": 200000}, persist="auto")
    plan, result = set_in(tree, {"kvm.halt_poll_ns": 200000}, persist="auto")
    assert not plan
    row = result["params"][0]
    assert (row["verdict"], row["persisted_in"]) == ("pending", None)
    assert row["pending"] == ["/etc/modprobe.d/zzz.conf says halt_poll_ns=1, which comes after our file and wins"]


CONVERGING = [
    # What a vendor's file says, what is wanted, how many steps the first run takes, what our own file says then.
    ("options kvm halt_poll_ns=1 ignore_msrs=1 unknown=2\n", {"kvm.ignore_msrs": True}, 1, None),
    ("options kvm halt_poll_ns=1 ignore_msrs=1\n", {"kvm.ignore_msrs": "no"}, 1, "options kvm ignore_msrs=N"),
    ("options kvm ignore_msrs\n", {"kvm.ignore_msrs": "Y"}, 1, None),
    ("options snd-pcm preallocate-dma=0\n", {"snd-pcm.preallocate_dma": 0}, 0, None),
    ("options snd_pcm preallocate_dma=1\n", {"snd-pcm.preallocate-dma": 0}, 1, "options snd_pcm preallocate_dma=0"),
    ('options dummy numdummies=0x2 model="a b"\n', {"dummy.model": "a b", "dummy.numdummies": 2}, 0, None),
    ('options dummy "model=a b"\n', {"dummy.model": "a  b"}, 1, 'options dummy model="a  b"'),
    ("options dummy model=a\noptions dummy model=b \\\n numdummies=3\n", {"dummy.model": "b"}, 0, None),
    ("options dummy model=\n", {"dummy.model": ""}, 0, None),
    ("", {"dummy.model": "# C:\\x", "dummy.numdummies": "010"}, 2, 'options dummy model="# C:\\\\x" numdummies=8'),
]


@pytest.mark.parametrize(("vendor", "values", "steps", "written"), CONVERGING)
def test_the_second_run_has_nothing_to_do(vendor, values, steps, written, tree):
    conf(tree, "sys/module/kvm/parameters/ignore_msrs", "N\n")
    conf(tree, "usr/lib/modprobe.d/vendor.conf", vendor)
    plan, _result = set_in(tree, values, persist="modprobe_d")
    assert len(plan) == steps
    assert (own(tree).splitlines()[1:] if (tree / modprobe_d.OWN_FILE).exists() else None) == (written and [written])
    plan, result = set_in(tree, values, persist="modprobe_d")
    assert not plan
    assert {row["verdict"] for row in result["params"]} <= {"unchanged", "pending"}
    assert all(row["persisted_in"] for row in result["params"])
    assert (tree / "usr/lib/modprobe.d/vendor.conf").read_text() == vendor


def test_an_array_that_only_a_load_can_set_may_be_given_in_part(tree):
    conf(tree, "sys/module/dummy/parameters/some", "1,2,3\n")
    (tree / "sys/module/dummy/parameters/some").chmod(0o444)
    _plan, result = set_in(tree, {"dummy.some": [9, 2]}, persist="auto")
    assert result["params"][0]["pending"] == ["not in effect: it takes effect when the module is loaded again"]
    assert own(tree).endswith("\noptions dummy some=9,2\n")
    conf(tree, "sys/module/dummy/parameters/some", "9,2,3\n")
    plan, result = set_in(tree, {"dummy.some": [9, 2]}, persist="auto")
    assert not plan
    assert (result["params"][0]["verdict"], result["params"][0]["pending"]) == ("unchanged", [])
    (tree / "sys/module/dummy/parameters/some").chmod(0o644)
    with pytest.raises(InvalidInput, match="has 3 elements, and the kernel would keep those.* Give all 3 elements."):
        set_in(tree, {"dummy.some": [9, 2]})


def test_an_install_line_is_named(tree):
    conf(tree, "etc/modprobe.d/no.conf", "install kvm /bin/true\n")
    _plan, result = set_in(tree, {"kvm.halt_poll_ns": 200000}, persist="auto")
    assert result["params"][0]["pending"] == [
        "/etc/modprobe.d/no.conf replaces the loading of the module: install kvm /bin/true"
    ]


def test_a_module_that_is_not_loaded_can_be_prepared(tree):
    with pytest.raises(
        InvalidInput,
        match="cannot be set now: its module is not loaded. Set persist to modprobe_d: the value takes effect when",
    ):
        set_in(tree, {"dummy.numdummies": 3})
    _plan, result = set_in(tree, {"dummy.numdummies": 3}, persist="auto")
    assert result["params"][0]["pending"] == ["not in effect: it takes effect when the module is loaded"]
    assert own(tree).endswith("\noptions dummy numdummies=3\n")
    with pytest.raises(InvalidInput, match="takes a whole number from -2147483648 to 2147483647.$"):
        set_in(tree, {"dummy.numdummies": 1 << 31}, persist="auto")


def test_what_is_on_the_kernel_command_line_lasts(tree):
    conf(tree, "sys/module/rcutree/parameters/blimit", "20\n")
    plan, result = set_in(tree, {"rcutree.blimit": 20, "kernel.panic": 5}, persist="auto")
    assert not plan
    assert [row["persisted_in"] for row in result["params"]] == ["/proc/cmdline", "/proc/cmdline"]
    _plan, result = set_in(tree, {"kernel.panic": 6}, persist="auto")
    assert result["params"][0]["pending"] == ["add panic=6 to the kernel command line and reboot"]


def test_a_read_only_parameter_is_persisted_and_pending(tree):
    (tree / "sys/module/kvm/parameters/nx_huge_pages").chmod(0o444)
    with pytest.raises(
        InvalidInput,
        match="it is read-only .mode 0444 in sysfs.. Set persist to modprobe_d: the value takes effect when",
    ):
        set_in(tree, {"kvm.nx_huge_pages": "force"})
    _plan, result = set_in(tree, {"kvm.nx_huge_pages": "force"}, persist="auto")
    assert result["params"][0]["pending"] == ["not in effect: it takes effect when the module is loaded again"]


def test_a_boolean_that_takes_other_words_is_compared_as_words(tree):
    path = tree / "sys/module/kvm/parameters/nx_huge_pages"
    for text, value, changes in (
        ("N", "force", 1),
        ("Y", True, 0),
        ("Y", "1", 0),
        ("never", "n", 1),
        ("never", "never", 0),
    ):
        path.write_text(text + "\n")
        assert len(set_in(tree, {"kvm.nx_huge_pages": value}, check=True)[0]) == changes


def test_an_empty_text_is_written_as_one_zero_byte(tree):
    conf(tree, "sys/module/firmware_class/parameters/path", "/lib/fw\n")
    set_in(tree, {"firmware_class.path": ""}, read_back="opaque")
    assert (tree / "sys/module/firmware_class/parameters/path").read_bytes() == b"\0"


def test_what_an_interrupted_run_began_is_put_back(tree):
    label = "kvm.halt_poll_ns"
    journal = {"in_progress": {label: "200000"}, "originals": {label: "7"}}
    for boot_id, recovered in (("this", ["kvm.halt_poll_ns"]), ("another", [])):
        conf(tree, "proc/sys/kernel/random/boot_id", "this\n")
        conf(tree, "sys/module/kvm/parameters/halt_poll_ns", "300000\n")
        conf(
            tree,
            "var/lib/tapvirt/kernel_module_param.json",
            json.dumps({**journal, "boot_id": boot_id}),
        )
        checked = set_in(tree, {"kernel.panic": 5}, check=True)[0].rows()
        plan, result = set_in(tree, {"kernel.panic": 5})
        assert (result["recovered"], plan.rows()) == (recovered, checked)
        assert set_in(tree, {"kernel.panic": 5})[1]["recovered"] == []
        assert (tree / "sys/module/kvm/parameters/halt_poll_ns").read_text().strip() == (
            "200000" if recovered else "300000"
        )
        set_in(tree, {"kvm.halt_poll_ns": None}, state="restored")
        assert (tree / "sys/module/kvm/parameters/halt_poll_ns").read_text().strip() == "7"


def test_a_parameter_named_twice_is_refused(tree):
    entry = {"value": 1, "runtime": True, "persist": "none", "read_back": "auto"}
    entries = [{"module": "a-b", "name": "c_d", **entry}, {"module": "a_b", "name": "c-d", **entry}]
    with pytest.raises(InvalidInput, match=r"'c-d' for params\[1\].name: params\[0\] has the same module and name.$"):
        wanted_list(entries, "present")


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("persist", ["auto", "modprobe_d"])
@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("ports", [], "takes at least one element."),
        ("ports", "", "takes a whole number from 0 to 65535 as element 1, not ''."),
        ("ports", [21, None], "takes one value as element 2, not None."),
        ("ports", [[21]], r"takes one value as element 1, not \[21\]."),
        ("ports", ["21,22"], "takes a value without a comma as element 1, not '21,22'."),
        ("loose", "", "takes a boolean .Y or N, 1 or 0.."),
        ("names", [], "takes at least one element."),
        ("names", ["a", {"b": 1}], "takes one value as element 2, not {'b': 1}."),
        ("names", ["a,b"], "takes a value without a comma as element 1, not 'a,b'."),
    ],
)
def test_what_would_keep_a_module_from_being_loaded_is_refused_and_nothing_is_written(
    name, value, rule, persist, check, tree
):
    with pytest.raises(InvalidInput, match=f" for params.1..value: nf_conntrack_ftp.{name} {rule}$"):
        set_in(tree, {"dummy.numdummies": 3, "nf_conntrack_ftp." + name: value}, persist=persist, check=check)
    assert list((tree / "etc/modprobe.d").iterdir()) == []
    assert not (tree / "var").exists()


WHOLE = "a whole number from -2147483648 to 2147483647"
BAD = [
    # What a file of somebody else says, and the sentence that names it (null: the kernel takes it, or ignores it).
    ("options dummy numdummies=lots\n", f"sets numdummies=lots for dummy, but numdummies takes {WHOLE}: "),
    ("options dummy numdummies=lots\noptions dummy numdummies=3\n", "sets numdummies=lots for dummy"),
    ("options dummy numdummies=\n", f"sets numdummies= for dummy, but numdummies takes {WHOLE}: "),
    ("options dummy numdummies\n", "sets numdummies for dummy, but numdummies needs a value: "),
    ("options dummy numdummies = 3\n", "sets numdummies for dummy, but numdummies needs a value: "),
    ("options dummy numdummies=2147483648\n", f"sets numdummies=2147483648 for dummy, but numdummies takes {WHOLE}: "),
    ("options dummy model\n", "sets model for dummy, but model needs a value: "),
    ("options dummy unknown=1 dyndbg async_probe = numdummies=1\n", None),
    ("options kvm halt_poll_ns=lots\n", None),
]


@pytest.mark.parametrize(("text", "sentence"), BAD)
def test_an_option_that_the_kernel_refuses_is_named_and_no_value_is_called_persisted(text, sentence, tree):
    conf(tree, "etc/modprobe.d/vendor.conf", text)
    checked = set_in(tree, {"dummy.numdummies": 3}, persist="auto", check=True)[1]["params"][0]
    plan, result = set_in(tree, {"dummy.numdummies": 3}, persist="auto")
    again, _result = set_in(tree, {"dummy.numdummies": 3}, persist="auto")
    row = result["params"][0]
    assert (len(plan) <= 1, again.rows(), row["pending"]) == (True, [], checked["pending"])
    flaws = [line for line in row["pending"] if "cannot be loaded" in line]
    if sentence is None:
        assert (flaws, row["persisted_in"], checked["persisted_in"]) == ([], *["/" + modprobe_d.OWN_FILE] * 2)
        return
    assert (row["persisted_in"], checked["persisted_in"]) == (None, None)
    assert len(flaws) == 1 and flaws[0].startswith("/etc/modprobe.d/vendor.conf sets ")
    assert sentence in flaws[0]
    assert flaws[0].endswith(": the module cannot be loaded until that is corrected")


def test_a_bad_option_of_the_kernel_command_line_and_of_another_parameter_count_too(tree):
    conf(tree, "proc/cmdline", "quiet nf_conntrack_ftp.ports=21,many nf_conntrack_ftp.ports=21")
    conf(tree, "etc/modprobe.d/vendor.conf", "options nf-conntrack-ftp loose\n")
    row = set_in(tree, {"nf_conntrack_ftp.loose": True}, persist="auto")[1]["params"][0]
    assert row["persisted_in"] is None
    assert row["pending"][1].startswith(
        "/proc/cmdline sets ports=21,many for nf_conntrack_ftp, but ports takes a whole "
    )
    assert not (tree / modprobe_d.OWN_FILE).exists()
    conf(tree, "proc/cmdline", "quiet")
    row = set_in(tree, {"nf_conntrack_ftp.loose": True}, persist="auto")[1]["params"][0]
    assert row["persisted_in"] == "/etc/modprobe.d/vendor.conf"


def test_a_value_of_our_own_file_that_the_kernel_refuses_is_replaced(tree):
    conf(tree, modprobe_d.OWN_FILE, "options nf_conntrack_ftp ports= loose=1\n")
    conf(tree, "etc/modprobe.d/zzz.conf", "options nf_conntrack_ftp ports=21\n")
    row = set_in(tree, {"nf_conntrack_ftp.loose": True}, persist="auto")[1]["params"][0]
    assert "zz-tapvirt.conf sets ports= for nf_conntrack_ftp" in row["pending"][1]
    plan, result = set_in(tree, {"nf_conntrack_ftp.ports": [21]}, persist="auto")
    assert [change.why for change in plan] == ["the kernel refuses the value that /etc/modprobe.d/zz-tapvirt.conf has"]
    assert own(tree) == "options nf_conntrack_ftp ports=21 loose=1\n"
    assert result["params"][0]["persisted_in"] == "/etc/modprobe.d/zzz.conf"
    assert not set_in(tree, {"nf_conntrack_ftp.ports": [21]}, persist="auto")[0]


BY_HAND = """\
# Rack 12: see the ticket
blacklist nouveau
options kvm halt_poll_ns=1 ignore_msrs # for Windows guests
  options kvm-amd \\
    nested=0
options snd_pcm preallocate_dma=1 preallocate_dma=0

softdep kvm pre: irqbypass
options nf_conntrack_ftp loose"""


def test_our_own_file_edited_by_hand_keeps_all_that_was_not_asked_for(tree):
    conf(tree, "sys/module/kvm/parameters/ignore_msrs", "N\n")
    conf(tree, modprobe_d.OWN_FILE, BY_HAND)
    set_in(tree, {"kvm.halt_poll_ns": 5, "dummy.model": "a b", "snd_pcm.preallocate_dma": 1}, persist="auto")
    changed = BY_HAND.replace("halt_poll_ns=1", "halt_poll_ns=5").replace(
        "preallocate_dma=1 preallocate_dma=0", "preallocate_dma=1"
    )
    assert own(tree) == changed + '\noptions dummy model="a b"\n'
    # A bare name is a boolean's 1: this is what the module is loaded with already.
    plan, result = set_in(tree, {"nf_conntrack_ftp.loose": True}, persist="auto")
    assert (plan.rows(), result["params"][0]["persisted_in"]) == ([], "/" + modprobe_d.OWN_FILE)
    values = {"kvm.halt_poll_ns": None, "dummy.model": None, "snd_pcm.preallocate_dma": None, "kvm.ignore_msrs": None}
    set_in(tree, {**values, "nf_conntrack_ftp.loose": None}, state="restored")
    assert own(tree) == BY_HAND.replace("halt_poll_ns=1 ignore_msrs ", "").replace(
        "options snd_pcm preallocate_dma=1 preallocate_dma=0\n", ""
    ).replace("\noptions nf_conntrack_ftp loose", "\n")


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        ("options a b\n", {("a", "b"): None}, ""),
        ("options a b=1\noptions a b=2 c\n", {("a", "b"): "3"}, "options a b=3 c\n"),
        ("options a-b c-d=1\n", {("a_b", "c_d"): "2", ("a_b", "e"): "3"}, "options a-b c_d=2 e=3\n"),
        ("options a p=C:\\\\x b=1", {("a", "b"): "\\"}, "options a p=C:\\\\x b=\\\\\n"),
        ("options a \\\n b=1 \\\n c=2\n# x\n", {("a", "c"): None}, "options a b=1\n# x\n"),
        ("# options a b=1 \\\noptions a b=1\n", {("a", "b"): None}, "# options a b=1 \\\noptions a b=1\n"),
        ("# x \\", {("a", "b"): True}, "# x \\\n\noptions a b\n"),
        ("blacklist a\r\noptions a b=1\r\n", {("a", "b"): "2"}, "blacklist a\r\noptions a b=2\n"),
    ],
)
def test_a_file_is_edited_word_by_word(text, changes, expected):
    assert modprobe_d.edited(text, changes) == expected
    parsed = modprobe_d.effective(modprobe_d.options_of(modprobe_d.parse_lines(expected, "f")))
    for key, setting in changes.items():
        assert (parsed[key].setting if key in parsed else None) == setting


def test_words_are_split_as_the_kernel_splits_bytes():
    assert split_words('size = 5 "a=b c" d="e f"g\u2003h \v i') == ["size", "=", "5", '"a=b c"', 'd="e f"g\u2003h', "i"]
    assert [split_word(word) for word in ("=", "=a=b", "size", "a=")] == [
        ("=", None),
        ("=a", "b"),
        ("size", None),
        ("a", ""),
    ]
    # The kernel reads bytes, and 0xa0 is white space to it: the second byte of this letter.
    assert split_words("p=\u00e0 q=1")[0] == "p=\udcc3"
    assert modprobe_d.edited("", {("a", "p"): "\u00e0"}).endswith('options a p="\u00e0"\n')


def test_several_words_of_the_command_line_that_bar_a_module_add_up(tree):
    conf(
        tree,
        "proc/cmdline",
        "modprobe.blacklist=dummy,a modprobe.blacklist=b module_blacklist=c module_blacklist=dummy",
    )
    row = set_in(tree, {"dummy.numdummies": 3}, persist="auto")[1]["params"][0]
    assert row["notes"] == [
        "/proc/cmdline says: modprobe.blacklist=dummy,a",
        "/proc/cmdline says: module_blacklist=dummy",
    ]


def test_a_value_with_a_space_is_quoted_for_the_kernel_command_line(tree):
    conf(tree, "sys/module/firmware_class/parameters/path", "/lib/a\n")
    row = set_in(tree, {"firmware_class.path": "/lib/a b"}, persist="auto", check=True)[1]["params"][0]
    assert row["pending"] == ['add firmware_class.path="/lib/a b" to the kernel command line and reboot']
