#!/bin/sh
# Fetches Debian's signed chains: the shim that Microsoft has signed, and two
# GRUBs with network that this shim accepts. Prints the directory of both, each
# laid out as a directory of loaders:
#
#   2.06/secure/debian/{shimx64.efi,grubx64.efi}   Debian 12's shim and GRUB
#   2.12/secure/debian/{shimx64.efi,grubx64.efi}   its shim and Debian 13's GRUB
#
# Nothing is installed: the packages are unpacked here, and apt reads lists of
# its own for Debian 13.
. "$(dirname "$0")/workshop.sh"

out=$LAB/chain-$(key "$0")
if [ -s "$out/2.12/secure/debian/grubx64.efi" ]; then
    echo "$out"
    exit 0
fi
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Created-By: Packages' | head -n 1)
[ -n "$mirror" ] || die "apt's sources name no mirror of Debian 12 (bookworm): the signed chain is fetched from it"

say "downloading Debian's shim and signed GRUBs (unpacked under $out, not installed)"
work=$(mktemp -d "$LAB/chain.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# fetch SUITE PACKAGE...: downloads and unpacks packages of one release of Debian.
fetch() {
    local suite=$1
    shift
    mkdir -p "$work/$suite/lists/partial" "$work/$suite/cache/archives/partial" "$work/$suite/root"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/$suite/sources.list"
    local own="-qq -o APT::Sandbox::User= -o Dir::Etc::sourceparts=-"
    own="$own -o Dir::Etc::sourcelist=$work/$suite/sources.list -o Dir::State::lists=$work/$suite/lists -o Dir::Cache=$work/$suite/cache"
    (
        cd "$work/$suite"
        # shellcheck disable=SC2086
        apt-get $own update
        # shellcheck disable=SC2086
        apt-get $own download "$@"
        for deb in *.deb; do
            dpkg-deb -x "$deb" root
        done
    ) >&2
}
fetch bookworm shim-signed grub-efi-amd64-signed
fetch trixie grub-efi-amd64-signed

grub=usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed
# lay_out VERSION SUITE: the chain with the GRUB of a release.
lay_out() {
    local chain=$work/chain/$1/secure/debian
    mkdir -p "$chain"
    cp "$work/bookworm/root/usr/lib/shim/shimx64.efi.signed" "$chain/shimx64.efi"
    cp "$work/$2/root/$grub" "$chain/grubx64.efi"
}
lay_out 2.06 bookworm
lay_out 2.12 trixie
rm -rf "$out"
mv "$work/chain" "$out"
for old in "$LAB"/chain-*; do
    [ "$old" = "$out" ] || rm -rf "$old"
done
echo "$out"
