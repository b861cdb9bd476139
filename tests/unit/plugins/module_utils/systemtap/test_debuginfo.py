# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which debug information a build uses, where stap finds it, and what it means for the key."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import random
import struct
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.image.elf import ElfError
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.image.identity import file_build_id
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.probed_modules import (
    needs_debug_info,
    probed_modules,
    tapset_aliases,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build import build
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.compilers import Compiler, Origin
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.debuginfo import (
    DebugFiles,
    DebugInfo,
    choose_debug_info,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.store import Store
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.sysroot import make_sysroot
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.tapset import read_tapsets
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.toolchain import (
    Kernel,
    Toolchain,
    missing_to_build,
    target_of,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.readiness import find_problems
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.resolve.host_facts import module_build_ids
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.resolve.stap_tapset import (
    modules_of_aliases,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.script.check import read_script
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.script.deploy import prepare
from ansible_collections.tapvirt.host.tests.unit.support.systemtap.debuginfod_servers import (
    KERNEL_ID,
    MODULE_ID,
    OTHER_ID,
    compile_elf,
)

RELEASE = "6.12.117+deb13-cloud-amd64"
GCC = Compiler("gcc", 14, "gcc-14")
KERNEL = Kernel(RELEASE, "#1", Origin("gcc", 14), GCC, None, "abc")
TOOLS = Toolchain("5.6", "stap 5.6", None, [GCC])
SERVERS: dict[str, t.Any] = {
    "servers": ["http://a"],
    "timeout_seconds": 300,
    "max_cache_bytes": 1 << 30,
    "max_cache_age": "30d",
}


def choose(
    kernel: Kernel = KERNEL, probes: t.Sequence[str] = ('kernel.function("vfs_read")',), **options: t.Any
) -> DebugInfo:
    params = {"build_id": None, "module_build_ids": None, "debuginfod": None, **options}
    return choose_debug_info(params, kernel, probed_modules(probes))


@pytest.fixture
def packaged(tmp_path: pathlib.Path) -> Kernel:
    """A kernel with debug information on the builder, which has a build-id."""
    path = tmp_path / "vmlinux"
    compile_elf(path, KERNEL_ID)
    return dataclasses.replace(KERNEL, vmlinux=str(path))


def test_without_options_the_builders_own_is_used(packaged: Kernel) -> None:
    assert choose() == DebugInfo()
    assert choose(packaged) == DebugInfo(own=KERNEL_ID)


def test_the_builders_own_of_the_same_kernel_goes_before_servers(packaged: Kernel) -> None:
    assert choose(packaged, build_id=KERNEL_ID.upper(), debuginfod=SERVERS) == DebugInfo(KERNEL_ID, own=KERNEL_ID)
    assert choose(packaged, debuginfod=SERVERS).source is None


def test_that_of_another_build_does_not(packaged: Kernel) -> None:
    chosen = choose(packaged, build_id=OTHER_ID, debuginfod=SERVERS)
    assert chosen.source is not None and chosen.build_id == OTHER_ID
    with pytest.raises(InvalidInput) as caught:
        choose(packaged, build_id=OTHER_ID)
    assert caught.value.message == (
        f"Invalid value {OTHER_ID!r} for build_id: {packaged.vmlinux} on this builder is the debug information of "
        f"another build, with the build-id {KERNEL_ID}. Install the debug package of the traced host's {RELEASE}, or "
        "use a debuginfod server."
    )


@pytest.mark.parametrize("text", ["", "x", "3bde3", "3bde", "3bde3ce03156c39bec3310fbdd6bd14bfbefb62g", "../../etc"])
def test_what_is_no_build_id_is_refused(text: str) -> None:
    for options in ({"build_id": text or "0"}, {"module_build_ids": {"kvm": text}}):
        with pytest.raises(InvalidInput, match="A build-id has an even number of hexadecimal digits"):
            choose(probes=['module("kvm").function("x")'], **options)


def test_servers_need_the_build_id_of_the_kernel_and_of_each_module_that_is_probed() -> None:
    with pytest.raises(
        InvalidInput, match=r"for build_id: The traced kernel's build-id is needed, .* Pass ansible_facts"
    ):
        choose(debuginfod=SERVERS)
    with pytest.raises(
        InvalidInput, match=r"for module_build_ids\.kvm_amd: The build-id of the module kvm_amd is needed"
    ):
        choose(probes=['module("kvm-amd").function("x")'], build_id=KERNEL_ID, debuginfod=SERVERS)
    ids = {"kvm": MODULE_ID, "kvm-amd": OTHER_ID, "ext4": None, "nfs": KERNEL_ID}
    chosen = choose(
        probes=['module("kvm").function("x"), module("kvm_amd").function("y")', 'module("ext4").function("z")?'],
        build_id=KERNEL_ID,
        module_build_ids=ids,
        debuginfod=SERVERS,
    )
    assert chosen.modules == {"kvm": MODULE_ID, "kvm_amd": OTHER_ID} and chosen.exact


def test_a_wildcard_takes_the_modules_that_the_host_has() -> None:
    chosen = choose(
        probes=['module("kvm*").function("x")'],
        build_id=KERNEL_ID,
        module_build_ids={"kvm": MODULE_ID, "kvm_amd": OTHER_ID, "ext4": OTHER_ID},
        debuginfod=SERVERS,
    )
    assert chosen.modules == {"kvm": MODULE_ID, "kvm_amd": OTHER_ID} and not chosen.exact


@pytest.mark.parametrize(
    ("probes", "points", "modules"),
    [
        (['kernel.function("x")', "timer.s(1)", 'kernel.trace("a:b")'], [], {}),
        (['kprobe.module("kvm").function("x")'], [], {}),
        (['module("{kvm}").statement("x@y.c:1")'], [], {"{kvm}": True}),
        (['module("kvm").{function("x"),function("y").return}'], [], {"kvm": True}),
        (['module("a").function("x")!, module("b").function("x")'], [], {"a": False, "b": False}),
        (["own.alias, vfs.read"], ['module("nfs").function("x")'], {"nfs": False}),
    ],
)
def test_modules_that_a_script_probes(probes: list[str], points: list[str], modules: dict[str, bool]) -> None:
    assert probed_modules(probes, points) == modules


def test_the_key_covers_the_debug_information(packaged: Kernel) -> None:
    infos = [
        (KERNEL, DebugInfo()),
        (KERNEL, DebugInfo(KERNEL_ID)),
        (packaged, DebugInfo(KERNEL_ID)),
        (KERNEL, choose(build_id=KERNEL_ID, debuginfod=SERVERS)),
        (KERNEL, choose(build_id=OTHER_ID, debuginfod=SERVERS)),
    ]
    infos += [
        (KERNEL, choose(probes=['module("kvm").function("x")'], build_id=KERNEL_ID, module_build_ids={"kvm": key},
                        debuginfod=SERVERS))
        for key in (MODULE_ID, OTHER_ID)
    ]  # fmt: skip
    orders = [build.BuildRequest("x", "probe begin { }", kernel, False, 10, info) for kernel, info in infos]
    assert len({build.key_of(order, TOOLS) for order in orders}) == len(infos)
    # Neither where the servers are nor how large the cache may be changes the module.
    moved = {**SERVERS, "servers": ["http://b"], "max_cache_age": "1d"}
    other = build.BuildRequest("x", "probe begin { }", KERNEL, False, 10, choose(build_id=KERNEL_ID, debuginfod=moved))
    assert build.key_of(other, TOOLS) == build.key_of(orders[3], TOOLS)


def test_another_build_of_the_builders_own_is_another_key(tmp_path: pathlib.Path) -> None:
    keys = set()
    for build_id in (KERNEL_ID, OTHER_ID):
        compile_elf(tmp_path / "vmlinux", build_id)
        kernel = dataclasses.replace(KERNEL, vmlinux=str(tmp_path / "vmlinux"))
        keys.add(build.key_of(build.BuildRequest("x", "probe begin { }", kernel, False, 10, choose(kernel)), TOOLS))
    assert len(keys) == 2


BRANCHES = """
%( kernel_v >= "6.12" && CONFIG_KVM != "" %? probe module("kvm").function("x") { } %: probe begin { } %)
%( arch == "{}" %? probe module("here").function("x") { } %: probe module("else-where").function("x") { } %)
"""


@pytest.mark.parametrize(
    ("release", "config", "modules"),
    [
        ("6.12.117-1", "CONFIG_KVM=m\n", {"kvm": True, "here": True}),
        ("6.12.117-1", "CONFIG_KVM2=m\n# CONFIG_KVM is not set\n", {"here": True}),
        ("6.1.0-56-amd64", "CONFIG_KVM=m\n", {"here": True}),
    ],
)
def test_the_branches_of_the_traced_kernel_are_read(
    release: str, config: str, modules: dict[str, bool], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "usr/src/kernels" / release).mkdir(parents=True)
    (tmp_path / "usr/src/kernels" / release / ".config").write_text(config)
    target = target_of(Root(str(tmp_path)), release, "5.6", False)
    script = read_script("x", BRANCHES.replace("{}", target.arch), False, target=target)
    assert probed_modules(script.probes) == modules
    own = tmp_path / "tapset"
    own.mkdir()
    (own / "own.stp").write_text(
        '%( CONFIG_KVM == "[ym]" %? probe own.x = module("kvm").function("x") { } %)\nglobal x'
    )
    assert bool(read_tapsets([str(own)], target).points) == ("CONFIG_KVM=" in config)


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        (BRANCHES, ["else_where", "here", "kvm"]),
        ("probe nfs.proc.read { }", ["*"]),
        ('probe module("kvm").function("x"), {own.alias, begin} { }', ["*", "kvm"]),
        ('probe mine.x = module("kvm").function("x") { } probe mine.x { }', ["kvm"]),
        ('probe kernel.function("x"), timer.s(1), kernel.trace("a:b") { }', []),
    ],
)
def test_a_script_names_the_modules_of_any_host(text: str, modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert prepare("src", "x", text, {}, False)[0]["modules"] == modules


TAPSET = """
# probe nfs.never = module("comment").function("x") { }
/* probe nfs.never = module("comment").function("x") {
 */
probe nfs.proc.read_setup = kernel.function ("nfs_proc_read_setup") !,
                            %( kernel_v > "5" %? module("nfs").function ("read_setup") !,
                            module("nfsv3").{function("a"), function("b")}? %) { name = "x" }
probe nfs.proc.all = nfs.proc.read_setup, nfs.proc.write { }
probe nfs.proc.write += module("nfs-v4").statement("x@y:1") { }
probe scsi.io = module("scsi_mod").function("x")? { }
"""


@pytest.mark.parametrize(
    ("probe", "modules"),
    [
        ("nfs.proc.read_setup.return", {"nfs", "nfsv3"}),
        ("nfs.proc.all", {"nfs", "nfsv3", "nfs_v4"}),
        ("nfs.*.*?", {"nfs", "nfsv3", "nfs_v4"}),
        ("scsi.io", {"scsi_mod"}),
        ("nfs.proc", set()),
        ("nfs.never", set()),
        ('kernel.function("x")', set()),
    ],
)
def test_aliases_of_the_tapset_name_modules(probe: str, modules: set[str], tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "usr/share/systemtap/tapset/linux"
    folder.mkdir(parents=True)
    (folder / "nfs.stp").write_text(TAPSET)
    assert modules_of_aliases(Root(str(tmp_path)), tapset_aliases([probe])) == modules


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("global n function f(x) { return x + 1 } probe timer.ms(100) { n <<< f(1); println(@count(n)) }", False),
        ('@define one %( 1 %) probe begin, timer.s(1), end { printf("%d", @one); if (@one) exit() }', False),
        ('probe procfs("x").read { $value = "x" }', False),
        ("probe timer.profile { print_backtrace() }", True),
        ('probe timer.s(1) { println(@var("jiffies@kernel/time/timer.c")) }', True),
        ("probe timer.s(1) { println(task_execname(task_current())) }", True),
        ("function f() %{ /* pragma:symbols */ %} probe begin { f() }", True),
        ('probe timer.s(1), kernel.function("x") { }', True),
        ("probe timer.s(1), vfs.read { }", True),
    ],
)
def test_a_script_of_timers_alone_needs_no_debug_information(text: str, needed: bool) -> None:
    points = [point.text for point in read_script("x", text).points]
    assert needs_debug_info(text, points) == needed


def test_nothing_is_fetched_where_no_debug_information_is_needed(packaged: Kernel) -> None:
    params = {"build_id": None, "module_build_ids": None, "debuginfod": SERVERS}
    assert choose_debug_info(params, KERNEL, {}, needed=False) == DebugInfo()
    chosen = choose_debug_info({**params, "build_id": OTHER_ID}, packaged, {}, needed=False)
    assert chosen.source is None


def cached(store: Store, key: str) -> str:
    path = pathlib.Path(store.directory) / ".debuginfo" / "files" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(key)
    return str(path)


def test_stap_finds_the_files_in_a_root_of_the_kernels_own(tmp_path: pathlib.Path) -> None:
    store = Store(str(tmp_path / "store"))
    files = DebugFiles(KERNEL_ID, cached(store, KERNEL_ID), {"kvm": cached(store, MODULE_ID)})
    root = Root(str(tmp_path))
    for _time in range(2):
        base = pathlib.Path(make_sysroot(store, KERNEL, root, files))
    modules = base / "lib/modules" / RELEASE
    # No links: the path of a file outside of the root would become part of the module.
    assert not (modules / "vmlinux").is_symlink() and (modules / "vmlinux").read_text() == KERNEL_ID
    assert (modules / "kernel/kvm.ko").read_text() == MODULE_ID
    assert sorted(path.name for path in modules.iterdir()) == ["build", "kernel", "vmlinux"]
    assert not (base / "usr").exists(), "debug information of the builder's own may be of another build"
    assert base != pathlib.Path(make_sysroot(store, KERNEL, root))
    plain = DebugFiles(KERNEL_ID, files.vmlinux)
    assert make_sysroot(store, KERNEL, root, plain) == str(base)
    # A file that was fetched again takes the place of the old one.
    os.unlink(files.vmlinux)
    cached(store, KERNEL_ID)
    make_sysroot(store, KERNEL, root, plain)
    assert os.path.samefile(modules / "vmlinux", files.vmlinux)


def test_another_build_of_a_module_and_a_wildcard_have_roots_of_their_own(tmp_path: pathlib.Path) -> None:
    store = Store(str(tmp_path / "store"))
    vmlinux, first, second = (cached(store, key) for key in (KERNEL_ID, MODULE_ID, OTHER_ID))
    root = Root(str(tmp_path))
    bases = [
        make_sysroot(store, KERNEL, root, DebugFiles(KERNEL_ID, vmlinux, modules, exact))
        for modules, exact in (({"kvm": first}, True), ({"kvm": second}, True), ({"kvm": first}, False))
    ]
    assert len(set(bases)) == 3
    for base, key in zip(bases, (MODULE_ID, OTHER_ID, MODULE_ID)):
        assert pathlib.Path(base, "lib/modules", RELEASE, "kernel/kvm.ko").read_text() == key


def test_a_builder_whose_server_answers_lacks_no_debug_information(tmp_path: pathlib.Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text("ID=debian\n")
    kernel = {"version": "#1", "compiler": "gcc-14", "compiled_with": "gcc 14", "debuginfo": False}
    host = {
        "kernel": {"release": RELEASE},
        "traceability": {"reasons": [], "conditions": []},
        "staprun": "5.6",
        "privilege": {"load_modules": True, "groups": []},
        "memory": {"free_bytes": 1 << 30, "buffers_bytes": 0, "cpus_online": 2, "available_bytes": 1 << 30},
        "loaded": [],
    }
    for answering, reasons in (
        (["http://a"], []),
        ([], [f"for {RELEASE}, and no debuginfod server answers (http://a)"]),
        (None, [f"for {RELEASE}"]),
    ):
        servers = None if answering is None else {"servers": ["http://a"], "answering": answering}
        row = {"stap": "5.6", "compilers": ["gcc-14"], "kernels": {RELEASE: kernel}, "debuginfod": servers}
        missing = missing_to_build(Root(str(tmp_path)), row, [RELEASE])
        assert [one["reason"] for one in missing] == [f"there is no debug information {text}" for text in reasons]
        findings = [one.reason.partition(":")[0] for one in find_problems(host, row) if one.check == "debuginfo"]
        assert findings == [f"the builder has no debug information {text}".partition(":")[0] for text in reasons]


def test_the_build_ids_of_this_machines_modules() -> None:
    root = Root()
    loaded = [name for name in root.listdir("sys/module") if root.exists(f"sys/module/{name}/notes/.note.gnu.build-id")]
    found = module_build_ids(root, ["*"])
    assert sorted(found) == loaded and all(len(key) == 40 for key in found.values())
    assert module_build_ids(root, [name.replace("_", "-") for name in loaded]) == found


def test_the_build_ids_of_modules_in_a_tree(tmp_path: pathlib.Path) -> None:
    notes = tmp_path / "sys/module/kvm_amd/notes"
    notes.mkdir(parents=True)
    note = b"\4\0\0\0\24\0\0\0\3\0\0\0GNU\0" + bytes.fromhex(MODULE_ID)
    (notes / ".note.gnu.build-id").write_bytes(note)
    (tmp_path / "sys/module/ext4").mkdir()
    assert module_build_ids(Root(str(tmp_path)), ["kvm-amd", "ext4", "nfs"]) == {"kvm_amd": MODULE_ID}


def test_a_file_is_whole_or_refused(tmp_path: pathlib.Path) -> None:
    whole = compile_elf(tmp_path / "file", KERNEL_ID)
    assert file_build_id(str(tmp_path / "file")) == KERNEL_ID
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        (tmp_path / "half").write_bytes(whole[:size])
        with pytest.raises(ElfError):
            file_build_id(str(tmp_path / "half"))


def test_a_section_that_lies_beyond_the_end_is_damage(tmp_path: pathlib.Path) -> None:
    damaged = bytearray(compile_elf(tmp_path / "file", KERNEL_ID))
    (sections,) = struct.unpack_from("<Q", damaged, 40)
    struct.pack_into("<Q", damaged, sections + 2 * 64 + 32, len(damaged))
    (tmp_path / "file").write_bytes(damaged)
    with pytest.raises(ElfError, match="ends before the last of its sections"):
        file_build_id(str(tmp_path / "file"))


def test_damaged_files_do_no_harm(tmp_path: pathlib.Path) -> None:
    whole = compile_elf(tmp_path / "file", KERNEL_ID)
    chance = random.Random(19)
    path = tmp_path / "damaged"
    for _trial in range(1000):
        damaged = bytearray(whole)
        for _byte in range(chance.randint(1, 8)):
            damaged[chance.choice([chance.randrange(64), chance.randrange(len(whole))])] = chance.choice(
                [0, 1, 0x7F, 0xFF, chance.randrange(256)]
            )
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(ElfError):
            key = file_build_id(str(path))
            assert key is None or len(key) % 2 == 0


NO_MODULES = ["../../../../../../../tmp/x", "/etc/x", "a/b", "", ".", "..", "a.ko", "a\0", "a\n", "x" * 65, "\u00e4"]


@pytest.mark.parametrize("name", NO_MODULES)
def test_the_name_of_a_module_cannot_lead_out_of_the_store(name: str) -> None:
    """A traced host names its modules, and the builder links files of these names."""
    with pytest.raises(InvalidInput) as caught:
        choose(
            probes=['module("*").function("x")'],
            build_id=KERNEL_ID,
            module_build_ids={name: MODULE_ID},
            debuginfod=SERVERS,
        )
    assert caught.value.option == "module_build_ids" and "has only letters, digits" in caught.value.message
