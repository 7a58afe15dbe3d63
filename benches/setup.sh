#!/bin/sh
# Installs what the comparison needs and this machine lacks; says what and why.
#
# Debian starts a service that it installs: tgt's would take port 3260. So for the
# time of the installation it is told not to.
set -eu

say() { echo "setup: $*" >&2; }

missing=
command -v tgtd >/dev/null || missing="$missing tgt" # the target we are compared with
command -v fio >/dev/null || missing="$missing fio" # the judge of cold reads
command -v taskset >/dev/null || missing="$missing util-linux" # pinning
[ -n "$missing" ] || exit 0

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
say "installing with apt-get:$missing"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$sudo rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod 755 "$policy"
fi
$sudo apt-get -qq update
# shellcheck disable=SC2086
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
