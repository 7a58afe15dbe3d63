# Shared by the image builders: where things are kept, packages unpacked beside
# the host instead of installed on it, and a GRUB that needs no loop device.
#
# Sourced, never run. Sets LAB (the cache, $DISKLESS_LAB or .lab in the
# repository), TOOLS (the unpacked packages) and HERE (this folder).
set -eu

HERE=$(cd "$(dirname "$0")" && pwd)
LAB=${DISKLESS_LAB:-$HERE/../../.lab}
mkdir -p "$LAB"
LAB=$(cd "$LAB" && pwd)
TOOLS=$LAB/tools

# GRUB's own tools, and what the tiny guest is made of. They are unpacked, not
# installed: open-iscsi would start a daemon here, and busybox-static would push
# out the busybox of somebody's initramfs.
TOOL_PACKAGES="busybox-static open-iscsi libopeniscsiusr libisns0 libmount1 libblkid1
    libselinux1 libpcre2-8-0 libsystemd0 libcap2 libgcrypt20 libgpg-error0 liblz4-1
    liblzma5 libzstd1 libkmod2 libssl3 libc6 libudev1 klibc-utils libklibc
    grub-pc-bin grub-efi-amd64-bin grub-common libdevmapper1.02.1"

# Sectors are 512 bytes throughout.
BIOS_BOOT_START=2048
BIOS_BOOT_SECTORS=2048
ESP_START=4096

say() { echo "lab: $*" >&2; }
die() { echo "lab: $*" >&2; exit 1; }

# key FILE...: a short hash of these files' contents; it names what is built from them.
key() { cat "$@" | sha256sum | cut -c1-12; }

# Downloads and unpacks TOOL_PACKAGES and the cloud kernel into $TOOLS, once.
unpack_tools() {
    tools_key=$(echo "$TOOL_PACKAGES" | sha256sum | cut -c1-12)
    if [ "$(cat "$TOOLS/.key" 2>/dev/null)" = "$tools_key" ]; then
        return
    fi
    kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
    [ -n "$kernel" ] || die "apt knows no package linux-image-cloud-amd64: run apt-get update (Debian 12 on x86-64 is needed to build guests)"
    say "downloading $kernel and the guests' tools (unpacked under $TOOLS, not installed)"
    rm -rf "$TOOLS.new"
    mkdir -p "$TOOLS.new/debs"
    # shellcheck disable=SC2086
    (cd "$TOOLS.new/debs" && apt-get -qq -o APT::Sandbox::User= download $TOOL_PACKAGES "$kernel") >&2
    for deb in "$TOOLS.new"/debs/*.deb; do
        dpkg-deb -x "$deb" "$TOOLS.new"
    done
    rm -rf "$TOOLS.new/debs" "$TOOLS"
    echo "$tools_key" >"$TOOLS.new/.key"
    mv "$TOOLS.new" "$TOOLS"
}

LIBRARY_PATH=$TOOLS/lib/x86_64-linux-gnu:$TOOLS/usr/lib/x86_64-linux-gnu

# with_libraries PROGRAM ARGUMENT...: runs an unpacked program with its own unpacked libraries.
with_libraries() {
    local program=$1
    shift
    "$TOOLS/lib64/ld-linux-x86-64.so.2" --library-path "$LIBRARY_PATH" "$TOOLS/$program" "$@"
}

# libraries_of PROGRAM: "NAME => FILE ..." lines of an unpacked program.
libraries_of() {
    "$TOOLS/lib64/ld-linux-x86-64.so.2" --list --library-path "$LIBRARY_PATH" "$TOOLS/$1"
}

# little_endian VALUE BYTES: writes VALUE to stdout.
little_endian() {
    local value=$1
    local count=$2
    while [ "$count" -gt 0 ]; do
        # shellcheck disable=SC2059
        printf "\\$(printf %03o $((value & 255)))"
        value=$((value >> 8))
        count=$((count - 1))
    done
}

# patch FILE OFFSET: overwrites FILE at OFFSET with stdin.
patch() { dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }

# grub_core OUT FORMAT PREFIX CONFIG MODULE...: one GRUB with CONFIG built in.
grub_core() {
    local out=$1 format=$2 prefix=$3 config=$4
    shift 4
    with_libraries usr/bin/grub-mkimage -d "$TOOLS/usr/lib/grub/$format" -O "$format" -o "$out" -p "$prefix" -c "$config" "$@"
}

# install_bios_grub IMAGE CORE: what grub-bios-setup does to a disk, done to a file:
# boot.img into the MBR, core.img into the BIOS boot partition, each told where the next part is
# (offsets: GRUB_BOOT_MACHINE_KERNEL_SECTOR 0x5c, _DRIVE_CHECK 0x66, and the block list
# that ends core.img's first sector, include/grub/i386/pc/boot.h).
install_bios_grub() {
    local image=$1 core=$2 size sectors
    size=$(stat -c %s "$core")
    sectors=$(((size + 511) / 512))
    [ "$sectors" -le "$BIOS_BOOT_SECTORS" ] || die "core.img has $sectors sectors, the BIOS boot partition $BIOS_BOOT_SECTORS"
    dd if="$TOOLS/usr/lib/grub/i386-pc/boot.img" of="$image" bs=440 count=1 conv=notrunc status=none
    little_endian "$BIOS_BOOT_START" 8 | patch "$image" $((0x5c))
    printf '\220\220' | patch "$image" $((0x66))
    dd if="$core" of="$image" bs=512 seek="$BIOS_BOOT_START" conv=notrunc status=none
    { little_endian $((BIOS_BOOT_START + 1)) 8; little_endian $((sectors - 1)) 2; little_endian $((0x820)) 2; } |
        patch "$image" $((BIOS_BOOT_START * 512 + 0x1f4))
}
