# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A kernel that loads only signed modules: a module without the signature of an enrolled key is refused unloaded."""

from __future__ import annotations

import json
import pathlib
import subprocess
import typing as t

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.documents import sample, shown_in

from .support.tasks import RUNNING_KERNEL

HOST = "secure1"
FOLDER = "/etc/tapvirt-signing-test"
SCRIPT = f"{FOLDER}/signing_test.stp"
PREFIX = "tapvirt_signing_test_"  # of the names of its modules
# The passphrase in the documentation of the firmware's package.
PASSPHRASE = "snakeoil"
TEXT = """#: record count key:string count:integer
global reads
probe kprobe.function("vfs_read") { reads <<< 1 }
probe end { printf("{\\"kind\\":\\"count\\",\\"key\\":\\"reads\\",\\"count\\":%d}\\n", @count(reads)) }
"""
# What a run may leave, and messages of the kernel about refused modules.
STATE = (
    "ls -A /proc/systemtap /run/tapvirt /var/cache/tapvirt/modules 2>/dev/null; cat /proc/sys/kernel/tainted;"
    " dmesg | grep -c -e 'Loading of' -e 'module verification failed'; true"
)


def openssl(*argv: str, stdin: str = "") -> str:
    """Run openssl and return its output."""
    return subprocess.run(["openssl", *argv], input=stdin, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def keys(lab, tmp_path_factory):
    """Key pairs on the builder: the firmware of the guest trusts one, and nothing trusts the other."""
    folder = tmp_path_factory.mktemp("keys")
    beside = lab.inventory.parent
    enrolled = openssl("rsa", "-in", str(beside / f"{HOST}.key.pem"), "-passin", f"pass:{PASSPHRASE}")
    new = ["-new", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=stranger", "-days", "30"]
    openssl("req", *new, "-keyout", str(folder / "stranger.key"), "-out", str(folder / "stranger.crt"))
    lab.run("builder", "mkdir", "-p", FOLDER)
    lab.write("builder", SCRIPT, TEXT + f"# {folder}\n")
    certificates = {
        "enrolled": (enrolled, (beside / f"{HOST}.certificate.pem").read_text()),
        "stranger": ((folder / "stranger.key").read_text(), (folder / "stranger.crt").read_text()),
    }
    yield {
        name: {
            "key": lab.write("builder", f"{FOLDER}/{name}.key", key, "600"),
            "certificate": lab.write("builder", f"{FOLDER}/{name}.crt", certificate),
        }
        for name, (key, certificate) in certificates.items()
    }
    lab.run("builder", "rm", "-r", FOLDER)


def key_id(certificate: str) -> str:
    """Return the identifier of the key of a certificate."""
    text = openssl("x509", "-noout", "-ext", "subjectKeyIdentifier", stdin=certificate)
    return text.splitlines()[-1].strip().replace(":", "").lower()


@pytest.fixture(scope="module")
def enrolled_id(lab) -> str:
    """The identifier of the enrolled key."""
    return key_id((lab.inventory.parent / f"{HOST}.certificate.pem").read_text())


@pytest.fixture(scope="module")
def signed_runs(lab, keys):
    """The result of a playbook that builds and runs one script unsigned, signed by the stranger and signed by the
    enrolled key; the state of the host before, and the compilations.
    """
    before = lab.builds(PREFIX)
    tasks: list[dict[str, t.Any]] = [{"name": "Facts", "tapvirt.host.kernel_facts": {"gather_subset": ["cpus"]}}]
    for name, sign in {"unsigned": None, **keys}.items():
        module = {
            "script": SCRIPT,
            **RUNNING_KERNEL,
            **({"sign": sign} if sign else {}),
        }
        tasks.append(
            {
                "name": f"Build {name}",
                "tapvirt.host.stap_module": module,
                "delegate_to": "builder",
                "register": f"built_{name}",
            }
        )
    run = {"duration_seconds": 2, "module": "{{ built.module }}"}
    for name in ("unsigned", "stranger"):
        tasks.append(
            {
                "name": f"Run {name}",
                "tapvirt.host.stap_run": run,
                "vars": {"built": f"{{{{ built_{name} }}}}"},
                "ignore_errors": True,
            }
        )
    tasks.append({"name": "State", "ansible.builtin.command": {"argv": ["sh", "-c", STATE]}, "changed_when": False})
    tasks.append({"name": "Run enrolled", "tapvirt.host.stap_run": run, "vars": {"built": "{{ built_enrolled }}"}})
    untouched = lab.shell(HOST, STATE, check=False)
    result = lab.run_tasks(HOST, tasks, "-v")
    lab.run(HOST, "rm", "-rf", "/var/cache/tapvirt/modules")
    return result, untouched, lab.builds(PREFIX)[len(before) :]


def test_host_info_reports_the_trusted_keys(lab, enrolled_id):
    (info,) = lab.ansible(HOST, "tapvirt.host.stap_host_info", {}).values()
    assert info["host"]["module_signatures_enforced"] is True
    assert {"name": "SnakeOil Test Key for EFI Secure Boot", "key_id": enrolled_id, "keyring": ".platform"} in info[
        "host"
    ]["trusted_keys"]
    (finding,) = [row for row in info["findings"] if row["check"] == "signing"]
    assert "signatures are enforced" in finding["reason"] and enrolled_id in finding["remedy"]


def test_unsigned_module_is_refused_with_the_reason(signed_runs, enrolled_id):
    run = signed_runs[0].of(HOST, "Run unsigned")
    assert run["run"]["outcome"] == "refused" and run["run"]["phase"] == "check", run
    expected = " ".join(sample("docs/docsite/rst/guide_builders.rst", "The run was refused").split())
    assert shown_in(expected, run["msg"]) and enrolled_id in run["msg"]


def test_module_signed_by_an_unknown_key_is_refused_with_the_reason(signed_runs, keys, lab):
    run = signed_runs[0].of(HOST, "Run stranger")
    certificate = lab.run("builder", "cat", keys["stranger"]["certificate"]).stdout
    assert run["run"]["outcome"] == "refused", run
    assert key_id(certificate) in run["msg"] and "not enrolled" in run["msg"]


def test_refused_modules_leave_nothing_and_are_never_loaded(signed_runs):
    result, untouched, _built = signed_runs
    assert result.of(HOST, "State")["stdout"] == untouched


def test_module_signed_by_an_enrolled_key_runs(signed_runs, lab):
    run = signed_runs[0].of(HOST, "Run enrolled")["run"]
    assert run["outcome"] == "ok", run
    assert run["probes"]["armed"] == 1 and run["hits"] > 0
    # The module counts as signed: no taint for an unsigned module (bit 13), only for an external one (bit 12).
    assert int(lab.run(HOST, "cat", "/proc/sys/kernel/tainted").stdout) & (1 << 13) == 0


def test_three_modules_need_one_compilation_and_two_signatures(signed_runs, lab, keys, enrolled_id):
    result, _untouched, compiled = signed_runs
    modules = {name: result.of(HOST, f"Build {name}")["module"] for name in ("unsigned", "stranger", "enrolled")}
    assert len(compiled) == 1, compiled
    assert modules["unsigned"]["signature"] is None
    assert len({module["sha256"] for module in modules.values()}) == 3
    assert len({module["key"] for module in modules.values()}) == 3
    assert [row["how"] for row in result.of(HOST, "Build enrolled")["plan"]] == ["sign-file"]
    enrolled = modules["enrolled"]
    assert enrolled["signature"]["key_id"] == enrolled_id
    version = lab.run("builder", "modinfo", "-F", "version", enrolled["path"]).stdout.strip()
    assert version == enrolled["key"][:40] == modules["unsigned"]["key"][:40]


def test_openssl_accepts_the_signature(signed_runs, keys, lab, tmp_path):
    result, _untouched, _built = signed_runs
    content, signed = (
        pathlib.Path(result.of(HOST, f"Build {name}")["module"]["controller_path"]) for name in ("unsigned", "enrolled")
    )
    data, unsigned = signed.read_bytes(), content.read_bytes()
    assert data.startswith(unsigned)
    message, certificate = tmp_path / "signature", tmp_path / "certificate"
    # After the message come 12 bytes that describe it, and 28 of a magic text.
    message.write_bytes(data[len(unsigned) : -40])
    verify = ["cms", "-verify", "-binary", "-inform", "DER", "-in", str(message), "-content", str(content)]
    verify += ["-nointern", "-noverify", "-out", "/dev/null", "-certfile", str(certificate)]
    certificate.write_text(lab.run("builder", "cat", keys["enrolled"]["certificate"]).stdout)
    openssl(*verify)
    certificate.write_text(lab.run("builder", "cat", keys["stranger"]["certificate"]).stdout)
    with pytest.raises(subprocess.CalledProcessError):
        openssl(*verify)


def test_private_key_stays_on_the_builder(signed_runs, keys, lab):
    result, _untouched, _built = signed_runs
    secret = lab.run("builder", "cat", keys["enrolled"]["key"]).stdout.splitlines()[5]
    assert secret not in result.stdout and secret not in json.dumps(result.results)
    module = result.of(HOST, "Build enrolled")["module"]
    assert secret.encode() not in pathlib.Path(module["controller_path"]).read_bytes()
    folder = module["path"].rpartition("/")[0]
    assert lab.run("builder", "grep", "-rl", secret, folder).stdout == ""


def test_second_signing_changes_nothing_and_a_wrong_pair_is_refused(signed_runs, keys, lab):
    module = signed_runs[0].of(HOST, "Build enrolled")["module"]
    args = {"script": SCRIPT, "kernel": module["kernel"], "sign": keys["enrolled"]}
    (again,) = lab.ansible("builder", "tapvirt.host.stap_module", args).values()
    assert (again["changed"], again["module"]["sha256"]) == (False, module["sha256"])
    mixed = {"key": keys["enrolled"]["key"], "certificate": keys["stranger"]["certificate"]}
    (refused,) = lab.ansible("builder", "tapvirt.host.stap_module", {**args, "sign": mixed}).values()
    assert refused["failed"] and "for sign.certificate: The certificate does not belong to the key" in refused["msg"]
