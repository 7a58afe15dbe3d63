#!/bin/sh
# Builds the initiator guest: Debian's cloud kernel and an initramfs with open-iscsi,
# e2fsprogs and sg3-utils that obeys the serial console (initiator-init). QEMU loads both
# itself: there is no disk to boot from, and no firmware story. Needs no root. Prints the
# path of a directory with vmlinuz and initrd.
. "$(dirname "$0")/workshop.sh"

# Unpacked, not installed, beside workshop.sh's tools.
PACKAGES="e2fsprogs libext2fs2 libcom-err2 libss2 libuuid1 libblkid1 sg3-utils libsgutils2-1.46-2 eject libmount1 libselinux1 libpcre2-8-0"
MODULES="virtio_pci virtio_net iscsi_tcp sd_mod sr_mod isofs sg"

out=$LAB/initiator-$(key "$0" "$HERE/workshop.sh" "$HERE/initiator-init")
if [ -s "$out/initrd" ]; then
    echo "$out"
    exit 0
fi
unpack_tools
say "building the initiator guest"
work=$(mktemp -d "$LAB/building.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

mkdir "$work/debs" "$work/more"
# shellcheck disable=SC2086
(cd "$work/debs" && apt-get -qq -o APT::Sandbox::User= download $PACKAGES) >&2
for deb in "$work"/debs/*.deb; do
    dpkg-deb -x "$deb" "$work/more"
done
more_libraries=$work/more/lib/x86_64-linux-gnu:$work/more/usr/lib/x86_64-linux-gnu:$LIBRARY_PATH

root=$work/root
mkdir -p "$root/bin" "$root/sbin" "$root/etc/iscsi" "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/var" "$root/mnt" "$root/lib64" "$root/lib/modules"
cp "$TOOLS/bin/busybox" "$root/bin/"
for applet in $("$TOOLS/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
ln -s /run "$root/var/run"

# program FILE: into the guest with its libraries; in place of busybox's, if it has one.
program() {
    rm -f "$root/bin/${1##*/}"
    cp "$1" "$root/sbin/"
    "$TOOLS/lib64/ld-linux-x86-64.so.2" --list --library-path "$more_libraries" "$1" |
        awk '$2 == "=>" { print $3 }' | while read -r library; do
        cp -nL "$library" "$root/lib/"
    done
}
for name in iscsid iscsiadm; do program "$TOOLS/sbin/$name"; done
for name in sbin/mke2fs sbin/badblocks sbin/e2fsck sbin/resize2fs usr/bin/eject; do program "$work/more/$name"; done
for name in sg_persist sg_inq sg_readcap sg_vpd sg_modes sg_get_config sg_opcodes sg_start sg_turs; do program "$work/more/usr/bin/$name"; done
ln -s mke2fs "$root/sbin/mkfs.ext4"
cp "$work/more/etc/mke2fs.conf" "$root/etc/"
cp -L "$TOOLS/lib64/ld-linux-x86-64.so.2" "$root/lib64/"
cp "$TOOLS/etc/iscsi/iscsid.conf" "$root/etc/iscsi/"
sed -i 's/^iscsid.startup/#&/' "$root/etc/iscsi/iscsid.conf"
echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
cp "$HERE/initiator-init" "$root/init"
chmod 755 "$root/init"

release=$(ls "$TOOLS/lib/modules")
[ -s "$TOOLS/lib/modules/$release/modules.dep" ] || "$TOOLS/bin/busybox" depmod -b "$TOOLS" "$release"
modules=$root/lib/modules/$release
mkdir -p "$modules"
for module in $MODULES; do
    line=$(grep "/$module.ko:" "$TOOLS/lib/modules/$release/modules.dep") || die "kernel $release has no module $module"
    for file in $(echo "$line" | tr -d :); do
        mkdir -p "$modules/$(dirname "$file")"
        cp "$TOOLS/lib/modules/$release/$file" "$modules/$file"
    done
done
cp "$TOOLS/lib/modules/$release/modules.builtin" "$TOOLS/lib/modules/$release/modules.order" "$modules/"
"$TOOLS/bin/busybox" depmod -b "$root" "$release"

mkdir "$work/out"
(cd "$root" && find . | sort | cpio --quiet -o -H newc -R 0:0) | zstd -q -15 -o "$work/out/initrd"
cp "$TOOLS/boot/vmlinuz-$release" "$work/out/vmlinuz"
rm -rf "$LAB"/initiator-*
mv "$work/out" "$out"
echo "$out"
