#!/bin/sh
# Installs what a comparison needs and this machine lacks; says what and why.
#
# Without an argument: for the comparison of iSCSI targets. Debian starts a service
# that it installs: tgt's would take port 3260. So for the time of the installation
# it is told not to.
#
# With a directory: for the comparison on a LAN. The servers of others are
# unpacked there, not installed, so that none is ever started but by us.
set -eu

say() { echo "setup: $*" >&2; }

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo

install() {
    say "installing with apt-get:$*"
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap '$sudo rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
        $sudo chmod 755 "$policy"
    fi
    $sudo apt-get -qq update
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

missing=
need() { command -v "$1" >/dev/null || missing="$missing $2"; }

if [ $# = 0 ]; then
    need tgtd tgt # the target we are compared with
    need fio fio # the judge of cold reads
    need taskset util-linux # pinning
    # shellcheck disable=SC2086
    [ -z "$missing" ] || install $missing
    exit 0
fi

need ip iproute2 # cables
need unshare util-linux # network namespaces
need dnsmasq dnsmasq-base # DHCP and TFTP (the program only, no service)
# shellcheck disable=SC2086
[ -z "$missing" ] || install $missing

# kea-dhcp4-server: DHCP; tftpd-hpa: TFTP; nginx: HTTP.
servers="kea-dhcp4-server tftpd-hpa nginx"
tools=$1
[ ! -e "$tools/complete" ] || exit 0
say "unpacking under $tools: $servers"
rm -rf "$tools"
mkdir -p "$tools/archives/partial"
$sudo apt-get -qq update
# shellcheck disable=SC2086
$sudo apt-get -y -qq --no-install-recommends --download-only -o Dir::Cache::archives="$tools/archives" install $servers >/dev/null
for archive in "$tools"/archives/*.deb; do
    dpkg-deb -x "$archive" "$tools"
done
# What is installed here already was not downloaded.
for program in kea-dhcp4 in.tftpd nginx; do
    [ -e "$tools/usr/sbin/$program" ] || {
        mkdir -p "$tools/usr/sbin"
        ln -s "$(PATH=$PATH:/usr/sbin command -v "$program")" "$tools/usr/sbin/$program"
    }
done
touch "$tools/complete"
