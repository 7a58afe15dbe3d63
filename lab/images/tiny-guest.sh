#!/bin/sh
# Builds the tiny guest: a disk image that boots by BIOS and by UEFI into Debian's
# cloud kernel and a busybox initramfs that logs in to its own iSCSI disk and then
# obeys the serial console (tiny-init). Needs no root. Prints the image's path.
#
#   sector 2048  BIOS boot partition: GRUB's core.img
#   sector 4096  EFI system partition: EFI/BOOT/BOOTX64.EFI, vmlinuz, initrd
#   after it     64 MiB of zeros, the tests' to write
. "$(dirname "$0")/workshop.sh"

DATA_SECTORS=131072
out=$LAB/tiny-$(key "$0" "$HERE/workshop.sh" "$HERE/tiny-init").raw
if [ -s "$out" ]; then
    echo "$out"
    exit 0
fi
unpack_tools
say "building the tiny guest"
work=$(mktemp -d "$LAB/tiny.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

root=$work/root
mkdir -p "$root/bin" "$root/sbin" "$root/etc/iscsi" "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/var" "$root/lib64" "$root/lib/modules"
cp "$TOOLS/bin/busybox" "$root/bin/"
for applet in $("$TOOLS/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
cp "$TOOLS/usr/lib/klibc/bin/ipconfig" "$root/bin/ipconfig"
cp "$TOOLS"/lib/klibc-*.so "$root/lib/"
ln -s /run "$root/var/run"
for program in iscsistart iscsid iscsiadm; do
    cp "$TOOLS/sbin/$program" "$root/sbin/"
    libraries_of "sbin/$program" |
        awk '$2 == "=>" { print $3 }' | while read -r library; do
        cp -nL "$library" "$root/lib/"
    done
done
cp -L "$TOOLS/lib64/ld-linux-x86-64.so.2" "$root/lib64/"
cp "$TOOLS/etc/iscsi/iscsid.conf" "$root/etc/iscsi/"
# The disk outlives any restart of the server: commands wait, they do not fail.
sed -i 's/^iscsid.startup/#&/; s/^\(node.session.timeo.replacement_timeout\) *=.*/\1 = 86400/' "$root/etc/iscsi/iscsid.conf"
echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
cp "$HERE/tiny-init" "$root/init"
chmod 755 "$root/init"

# Only the modules it loads, and theirs.
release=$(ls "$TOOLS/lib/modules")
[ -s "$TOOLS/lib/modules/$release/modules.dep" ] || "$TOOLS/bin/busybox" depmod -b "$TOOLS" "$release"
modules=$root/lib/modules/$release
mkdir -p "$modules"
wanted="virtio_pci virtio_net iscsi_ibft iscsi_tcp sd_mod"
for module in $wanted; do
    line=$(grep "/$module.ko:" "$TOOLS/lib/modules/$release/modules.dep") || die "kernel $release has no module $module"
    for file in $(echo "$line" | tr -d :); do
        mkdir -p "$modules/$(dirname "$file")"
        cp "$TOOLS/lib/modules/$release/$file" "$modules/$file"
    done
done
cp "$TOOLS/lib/modules/$release/modules.builtin" "$TOOLS/lib/modules/$release/modules.order" "$modules/"
"$TOOLS/bin/busybox" depmod -b "$root" "$release"
(cd "$root" && find . | sort | cpio --quiet -o -H newc -R 0:0) | zstd -q -15 -o "$work/initrd"

cat >"$work/grub.cfg" <<CONFIG
linux /vmlinuz console=ttyS0,115200 quiet loglevel=1 mitigations=off nokaslr audit=0 panic=10
initrd /initrd
boot
CONFIG
grub_core "$work/core.img" i386-pc '(,gpt2)/grub' "$work/grub.cfg" biosdisk part_gpt fat linux boot
grub_core "$work/bootx64.efi" x86_64-efi /grub "$work/grub.cfg" part_gpt fat linux boot

esp=$work/esp
kilobytes=$(( ($(stat -c %s "$TOOLS/boot/vmlinuz-$release") + $(stat -c %s "$work/initrd")) / 1024 + 8192))
# FAT32's smallest size that every firmware accepts is about 33 MiB.
[ "$kilobytes" -ge 36864 ] || kilobytes=36864
truncate -s "${kilobytes}K" "$esp"
mkfs.fat -F 32 -n TINY -i d15c1e55 "$esp" >/dev/null
mmd -i "$esp" ::EFI ::EFI/BOOT
mcopy -i "$esp" "$work/bootx64.efi" ::EFI/BOOT/BOOTX64.EFI
mcopy -i "$esp" "$TOOLS/boot/vmlinuz-$release" ::vmlinuz
mcopy -i "$esp" "$work/initrd" ::initrd

esp_sectors=$((kilobytes * 2))
image=$work/image
truncate -s $(((ESP_START + esp_sectors + DATA_SECTORS + 2048) * 512)) "$image"
sfdisk -q "$image" <<TABLE
label: gpt
start=$BIOS_BOOT_START, size=$BIOS_BOOT_SECTORS, type=21686148-6449-6E6F-744E-656564454649
start=$ESP_START, size=$esp_sectors, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
size=$DATA_SECTORS, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4
TABLE
dd if="$esp" of="$image" bs=1M seek=$((ESP_START / 2048)) conv=notrunc,sparse status=none
install_bios_grub "$image" "$work/core.img"
chmod 444 "$image"
mv "$image" "$out"
for old in "$LAB"/tiny-*.raw; do
    [ "$old" = "$out" ] || rm -f "$old"
done
echo "$out"
