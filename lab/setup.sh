#!/bin/sh
# Installs what the demo and the tests need and this machine lacks; says what and why.
#
# Quick and silent when all is there. Debian 12 on x86-64. Needs root, or sudo for
# the installation only. Starts no daemon: of dnsmasq only the bare program is
# installed, and what the guests are made of is unpacked under .lab/, not installed.
set -eu

say() { echo "setup: $*" >&2; }
die() { say "$@"; exit 1; }

[ "$(uname -s)" = Linux ] || die "the lab boots its PCs on Linux only"
command -v apt-get >/dev/null || die "this set-up knows Debian's packages only; on another system install QEMU, OVMF, SeaBIOS, iPXE, dnsmasq, debootstrap, mtools, dosfstools, sfdisk, cpio and zstd by hand"

PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin
command -v cargo >/dev/null || die "cargo is missing: install a Rust toolchain, 1.88 or newer (Debian 12's own is older; rustup brings one), then try again"

# package: what it is for. Debian marks what is installed as "ii".
needed="
qemu-system-x86: the PCs
seabios: their BIOS
ovmf: their UEFI
ipxe-qemu: the boot ROM of their network card
ipxe: the loaders diskless serves
iproute2: network namespaces, so that nothing reaches your LAN
debootstrap: the Debian image of the demo
e2fsprogs: its file system
dosfstools: its EFI partition
mtools: files into that partition
fdisk: partition tables
gdisk: a second opinion on ours (sgdisk)
cpio: the tiny guest's initramfs
zstd: the same, compressed
xorriso: a disc for the DVD drive
dnsmasq-base: somebody else's DHCP server, to stand beside (the program only, no service)
libiscsi-bin: a second opinion on our iSCSI target
qemu-utils: another (qemu-img and qemu-io)
qemu-block-extra: their iSCSI
tftp-hpa: a second opinion on our TFTP server
isc-dhcp-client: a second opinion on our DHCP server
valgrind: counts the instructions of an operation
"
command -v busybox >/dev/null || needed="$needed
busybox: another (its udhcpc)
"
command -v cc >/dev/null || needed="$needed
build-essential: the C compiler and linker Rust calls
"
command -v openssl >/dev/null || needed="$needed
openssl: an HTTPS server for downloads
"
command -v curl >/dev/null || needed="$needed
curl: a second opinion on our HTTP server
"

missing=
because=
while IFS=: read -r package why; do
    [ -n "$package" ] || continue
    case $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) in
    ii*) ;;
    *)
        missing="$missing $package"
        because="$because
setup:   $package:$why"
        ;;
    esac
done <<LIST
$needed
LIST

here=$(cd "$(dirname "$0")" && pwd)
tools=${DISKLESS_LAB:-$here/../.lab}/tools/.key
if [ -z "$missing" ] && { [ -e "$tools" ] || [ -n "$(apt-cache show linux-image-cloud-amd64 2>/dev/null)" ]; }; then
    exit 0
fi

sudo=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "packages are missing ($missing ) and installing them needs root: run this as root, or install sudo"
    sudo=sudo
fi
root() { $sudo env DEBIAN_FRONTEND=noninteractive "$@"; }

[ -z "$missing" ] || say "installing with apt-get${sudo:+ (through sudo: packages belong to root)}:$because"
root apt-get -qq update || die "apt-get update failed"
[ -n "$missing" ] || exit 0

# The stable QEMU conflicts with a qemu-utils from backports: then all of QEMU comes from there.
from_backports=
plain=
utils=$(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null || true)
for package in $missing; do
    case $utils:$package in
    *~bpo*:qemu-system-x86 | *~bpo*:seabios | *~bpo*:ovmf | *~bpo*:ipxe-qemu | *~bpo*:qemu-block-extra) from_backports="$from_backports $package" ;;
    *) plain="$plain $package" ;;
    esac
done
if [ -n "$from_backports" ]; then
    . /etc/os-release
    backports=$VERSION_CODENAME-backports
    if ! apt-cache policy | grep -q "a=.*$backports\|n=$backports"; then
        mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $VERSION_CODENAME" "Created-By: Packages" | head -n 1)
        [ -n "$mirror" ] || die "qemu-utils is from backports, and apt's sources name no mirror to take the rest of QEMU from: add $backports to them"
        list=/etc/apt/sources.list.d/diskless-backports.list
        say "adding $list: your qemu-utils is from backports, so the rest of QEMU must be too"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $backports main" | root tee "$list" >/dev/null
        root apt-get -qq update || die "apt-get update failed"
    fi
    # shellcheck disable=SC2086
    root apt-get install -y -qq --no-install-recommends -t "$backports" $from_backports >/dev/null || die "apt-get could not install$from_backports"
fi
if [ -n "$plain" ]; then
    # shellcheck disable=SC2086
    root apt-get install -y -qq --no-install-recommends $plain >/dev/null || die "apt-get could not install$plain"
fi
say "done"
