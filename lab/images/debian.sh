#!/bin/sh
# Builds a real Debian 12: debootstrap's minimal system with open-iscsi, booting by
# BIOS and by UEFI from the iSCSI disk its iBFT names. Prints the image's path.
#
#   sector 2048  BIOS boot partition: GRUB's core.img
#   sector 4096  EFI system partition: EFI/BOOT/BOOTX64.EFI
#   after it     ext4, the root file system
#
# Log in as root, password "diskless", on the serial console or the screen.
# Needs root: a root file system has files that belong to root, and its packages are
# configured in a chroot. Mounts live in a mount namespace of their own and end with it.
. "$(dirname "$0")/workshop.sh"

IMAGE_MIB=1280
ESP_SECTORS=73728
ROOT_UUID=d15c1e55-0000-4000-8000-000000000012
ROOT_PASSWORD=diskless

out=$LAB/debian-$(key "$0" "$HERE/workshop.sh").raw
if [ -s "$out" ]; then
    echo "$out"
    exit 0
fi
[ "$(id -u)" = 0 ] || die "building the Debian image needs root (files that belong to root, a chroot)"
if [ -z "${DISKLESS_UNSHARED:-}" ]; then
    unpack_tools
    DISKLESS_UNSHARED=1 exec unshare --mount --propagation private sh "$0"
fi

mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Created-By: Packages' | head -n 1)
[ -n "$mirror" ] || die "apt's sources name no mirror of Debian 12 (bookworm): the Debian image is made from it"
proxy=
eval "$(apt-config shell proxy Acquire::http::Proxy)"
if [ -n "$proxy" ]; then
    export http_proxy="$proxy"
fi

work=$(mktemp -d "$LAB/debian.XXXXXX")
trap 'umount "$work/root/proc" 2>/dev/null || true; rm -rf --one-file-system "$work"' EXIT
trap 'exit 1' INT TERM
root=$work/root

say "installing Debian 12 into $work (debootstrap, from your apt's mirror; once, a few minutes)"
debootstrap --variant=minbase --include=systemd-sysv,udev,kmod,dbus,initramfs-tools,busybox,open-iscsi,linux-image-cloud-amd64,iproute2,iputils-ping,e2fsprogs,procps,less,nano \
    bookworm "$root" "$mirror" >"$work/debootstrap.log" 2>&1 || {
    tail -n 20 "$work/debootstrap.log" >&2
    die "debootstrap failed"
}

say "configuring it"
echo 'UUID='$ROOT_UUID' / ext4 noatime,errors=remount-ro 0 1' >"$root/etc/fstab"
echo diskless >"$root/etc/hostname"
echo '127.0.0.1 localhost diskless' >"$root/etc/hosts"
# Empty, so that each machine makes its own at boot without being a "first boot".
: >"$root/etc/machine-id"
echo "root:$ROOT_PASSWORD" | chroot "$root" chpasswd

# The initramfs logs in by the iBFT; only what a virtual PC needs is in it.
echo 'ISCSI_AUTO=true' >"$root/etc/iscsi/iscsi.initramfs"
echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/diskless"
printf '%s\n' virtio_pci virtio_net iscsi_ibft iscsi_tcp sd_mod ext4 crc32c_generic >>"$root/etc/initramfs-tools/modules"
# The root disk outlives any restart of the server: the kernel waits, it does not give up.
# (iscsid sets this anew at every login; until it runs, udev does.)
sed -i 's/^\(node.session.timeo.replacement_timeout\) *=.*/\1 = 86400/' "$root/etc/iscsi/iscsid.conf"
echo 'ACTION=="add", SUBSYSTEM=="iscsi_session", ATTR{recovery_tmo}="86400"' >"$root/etc/udev/rules.d/60-diskless.rules"

# Named by its DHCP server, if that names it.
cat >"$root/etc/systemd/system/hostname-from-dhcp.service" <<'UNIT'
[Unit]
Description=Host name from the DHCP answer of the initramfs
DefaultDependencies=no
Before=sysinit.target
ConditionPathExistsGlob=/run/net-*.conf
[Service]
Type=oneshot
ExecStart=/bin/sh -c '. /run/net-*.conf; [ -z "$HOSTNAME" ] || echo "$HOSTNAME" >/proc/sys/kernel/hostname'
[Install]
WantedBy=sysinit.target
UNIT
chroot "$root" systemctl -q enable hostname-from-dhcp.service iscsid.service
# What a machine that is started to be looked at does not need; each costs seconds in emulation.
chroot "$root" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer open-iscsi.service systemd-pstore.service systemd-hwdb-update.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service modprobe@drm.service modprobe@fuse.service modprobe@efi_pstore.service \
    sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount 2>>"$work/configure.log"
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\n' >"$root/etc/systemd/journald.conf.d/diskless.conf"

mount -t proc proc "$root/proc"
chroot "$root" update-initramfs -u -k all >>"$work/configure.log" 2>&1 || {
    cat "$work/configure.log" >&2
    die "update-initramfs failed"
}
umount "$root/proc"

# Linked by the kernel package, so a later kernel is booted without a change here.
mkdir -p "$root/boot/grub"
cat >"$root/boot/grub/grub.cfg" <<CONFIG
linux /vmlinuz root=UUID=$ROOT_UUID ro console=tty0 console=ttyS0,115200 loglevel=4 mitigations=off nokaslr audit=0
initrd /initrd.img
boot
CONFIG
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/* "$root"/var/log/*.log \
    "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/*

say "writing the image"
cat >"$work/grub.cfg" <<CONFIG
search.fs_uuid $ROOT_UUID root
configfile (\$root)/boot/grub/grub.cfg
CONFIG
modules="part_gpt ext2 normal configfile linux boot search search_fs_uuid echo"
# shellcheck disable=SC2086
grub_core "$work/core.img" i386-pc /boot/grub "$work/grub.cfg" biosdisk $modules
# shellcheck disable=SC2086
grub_core "$work/bootx64.efi" x86_64-efi /boot/grub "$work/grub.cfg" fat $modules

esp=$work/esp
truncate -s $((ESP_SECTORS * 512)) "$esp"
mkfs.fat -F 32 -n ESP -i d15c1e56 "$esp" >/dev/null
mmd -i "$esp" ::EFI ::EFI/BOOT
mcopy -i "$esp" "$work/bootx64.efi" ::EFI/BOOT/BOOTX64.EFI

sectors=$((IMAGE_MIB * 2048))
root_start=$((ESP_START + ESP_SECTORS))
root_sectors=$((sectors - root_start - 2048))
image=$work/image
truncate -s $((sectors * 512)) "$image"
sfdisk -q "$image" <<TABLE
label: gpt
start=$BIOS_BOOT_START, size=$BIOS_BOOT_SECTORS, type=21686148-6449-6E6F-744E-656564454649
start=$ESP_START, size=$ESP_SECTORS, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
start=$root_start, size=$root_sectors, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
TABLE
dd if="$esp" of="$image" bs=1M seek=$((ESP_START / 2048)) conv=notrunc,sparse status=none
mke2fs -q -t ext4 -L root -U $ROOT_UUID -d "$root" -E "offset=$((root_start * 512))" "$image" "$((root_sectors / 2))k"
install_bios_grub "$image" "$work/core.img"
chmod 444 "$image"
mv "$image" "$out"
for old in "$LAB"/debian-*.raw; do
    [ "$old" = "$out" ] || rm -f "$old"
done
echo "$out"
