#!/bin/sh
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Turn the builder into one of another distribution, in a mount namespace: layouts.sh LAYOUT RELEASE DIRECTORY.
# The packages of a kernel's headers and debug information put their files as here. DIRECTORY is that of the machine, and
# DIRECTORY/LAYOUT.pid says which process keeps the namespace.
set -e
layout=$1 release=$2 directory=$3
mount --make-rprivate /
mount -t tmpfs -o mode=755 layout /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work layout /mnt/root
cd /mnt/root
for name in proc sys dev; do mount --rbind "/$name" "$name"; done
mount --rbind "$directory" ".$directory"
debug=usr/lib/debug
modules=$debug/lib/modules/$release/kernel
kvm=arch/x86/kvm
vmlinux=/$debug/boot/vmlinux-$release
rm -f "$debug"/vmlinux-* "$debug/lib/modules/$release/vmlinux" etc/os-release

# Of all the modules with debug information, the two that the tests probe are kept: split, as NAME.ko.debug.
split_modules() {
    rm -rf "$modules"
    mkdir -p "$1/$kvm"
    for name in kvm kvm-amd; do
        objcopy --only-keep-debug "/$modules/$kvm/$name.ko" "$1/$kvm/$name.ko.debug"
    done
}

case $layout in
ubuntu)
    printf 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n' > etc/os-release
    ;;
el9) # kernel-devel and kernel-debuginfo: the link in /lib/modules is in another package.
    printf 'ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n' > etc/os-release
    rm -rf "usr/lib/modules/$release"
    mkdir -p usr/src/kernels
    ln -s "/usr/src/linux-headers-$release" "usr/src/kernels/$release"
    split_modules "$modules"
    touch "$debug/lib/modules/$release/vmlinux"
    mount --bind "$vmlinux" "$debug/lib/modules/$release/vmlinux"
    rm -rf "${debug:?}/boot"
    ;;
suse15 | suse)
    printf 'ID="sles"\nID_LIKE="suse"\nVERSION_ID="15.6"\n' > etc/os-release
    rm -rf "usr/lib/modules/$release/kernel"
    rm -f "$debug"/boot/vmlinux-*
    if [ "$layout" = suse15 ]; then
        split_modules "$modules"
        objcopy --only-keep-debug "$vmlinux" "$debug/boot/vmlinux-$release.debug"
    else
        split_modules "$debug/usr/lib/modules/$release/kernel"
        objcopy --only-keep-debug "$vmlinux" "$debug/usr/lib/modules/$release/vmlinux.debug"
    fi
    ;;
esac
echo $$ > "$directory/$layout.pid"
exec sleep infinity
