# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads of a known size for the scripts of the trace role's catalogue: ``catalogue_load.py SCRIPT...``.

Prints the process of each script as JSON and continues in the background. A process does its load when the probes of
the script are armed, and writes its size to /run/catalogue-SCRIPT.json when the module is unloaded. It waits by
signals, so that only the load is traced.
"""

from __future__ import annotations

import fcntl
import glob
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time

WAKE = {signal.SIGUSR1}
# A module is listed a little before its tracepoints are registered, and emulated hosts are slow.
SETTLE_SECONDS = 3
MISSING_SECONDS = 60


def function_count():
    null = os.open("/dev/null", os.O_RDWR)
    for _number in range(500):
        os.read(null, 1)
    for _number in range(300):
        os.write(null, b"x")
    return {"vfs_read": 500, "vfs_write": 300}


def function_rate():
    null = os.open("/dev/null", os.O_RDWR)
    for _burst in range(3):
        for _number in range(100):
            os.read(null, 1)
        time.sleep(1)
    return {"vfs_read": 300}


def syscall_latency():
    for _number in range(1000):
        os.getppid()
    for _number in range(20):
        time.sleep(0.01)
    return {"getppid": 1000}


def block_io_latency():
    disk = os.open("/dev/vda", os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    for number in range(64):
        os.preadv(disk, [page], number * 8192)
    return {"vda read": 64, "bytes": 64 * 4096}


def run_queue_latency():
    for _number in range(100):
        time.sleep(0.005)
    return {"waits": 100}


def page_faults():
    pages = 1000
    memory = mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for number in range(pages):
        memory[number * mmap.PAGESIZE] = 1
    return {"faults": pages}


def tcp_retransmits():
    """A listener whose queue is full drops further SYN segments; each is sent again after one second."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    clients = [socket.socket() for _number in range(12)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(listener.getsockname())
    time.sleep(1.7)
    # tcpi_total_retrans is at 100 in struct tcp_info (include/uapi/linux/tcp.h).
    infos = [client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104) for client in clients]
    for client in clients:
        client.close()
    return {"segments": sum(struct.unpack_from("I", info, 100)[0] for info in infos), "port": listener.getsockname()[1]}


def lock_contention():
    """Read /proc/kmsg: a read holds the position lock of the file, a mutex, until a message comes; four more wait."""
    messages = os.open("/proc/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while os.read(messages, 1 << 16):
            pass
    except BlockingIOError:
        fcntl.fcntl(messages, fcntl.F_SETFL, 0)
    readers = [threading.Thread(target=os.read, args=(messages, 1 << 16)) for _number in range(5)]
    for reader in readers:
        reader.start()
    time.sleep(0.5)
    while any(reader.is_alive() for reader in readers):
        with open("/dev/kmsg", "wb", buffering=0) as kmsg:
            kmsg.write(b"<7>catalogue_load: a reader may go on")
        time.sleep(0.05)
    return {"mutex": 4}


def module_functions():
    for _number in range(50):
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    return {"tun_chr_open": 50, "tun_chr_close": 50}


def usage():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"faults": used.ru_minflt + used.ru_majflt, "switches": used.ru_nvcsw + used.ru_nivcsw}


def work(name):
    """Do a load between two signals; write its size, and the accounts of the kernel about it."""
    outer = usage()
    signal.sigwait(WAKE)
    inner = usage()
    size = globals()[name]()
    done = usage()
    signal.sigwait(WAKE)
    end = usage()
    accounts = {key: [done[key] - inner[key], end[key] - outer[key]] for key in done}
    with open(f"/run/catalogue-{name}.json", "w", encoding="ascii") as report:
        json.dump({"size": size, "accounts": accounts}, report)


def armed(name):
    """Tell whether a run of the script's module has armed its probes."""
    for path in glob.glob("/run/tapvirt/stap/*/state.json"):
        try:
            with open(path, encoding="utf-8") as stream:
                state = json.load(stream)
        except (OSError, ValueError):
            continue
        if state.get("state") == "running" and state["name"].startswith(f"tapvirt_{name}_"):
            return True
    return False


def loaded(name):
    return bool(glob.glob(f"/proc/systemtap/tapvirt_{name}_*"))


def until(done, name):
    end = time.monotonic() + MISSING_SECONDS
    while not done(name) and time.monotonic() < end:
        time.sleep(0.2)


def main():
    names = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKE)
    workers = {}
    for name in names:
        workers[name] = os.fork()
        if workers[name] == 0:
            for descriptor in (0, 1, 2):
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            work(name)
            os._exit(0)
    print(json.dumps(workers), flush=True)
    if os.fork():
        os._exit(0)
    for descriptor in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    os.setsid()
    for name in names:
        until(armed, name)
        time.sleep(SETTLE_SECONDS)
        os.kill(workers[name], signal.SIGUSR1)
        until(lambda asked: not loaded(asked), name)
        os.kill(workers[name], signal.SIGUSR1)


if __name__ == "__main__":
    main()
