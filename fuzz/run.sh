#!/bin/sh
# Sends arbitrary bytes through every door, SECONDS in total, and prints what
# came of it. Ends with an error at the first that crashes, hangs or takes too
# much memory; what did it lies in fuzz/found/DOOR/.
#
# fuzz/corpus/DOOR holds the inputs a door starts from, and what was found
# before; the run's own finds stay in fuzz/found/DOOR/new, to start from next
# time. ASAN=1 has every memory access checked as well.
set -eu
cd "$(dirname "$0")"

seconds=${SECONDS_IN_ALL:-60}
doors=${DOOR:-$(ls corpus)}
target=$(rustc -vV | sed -n 's/^host: //p')
here=${CARGO_TARGET_DIR:-$PWD/target}

# The flags of `cargo fuzz`, which need no nightly toolchain.
flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
if [ -n "${ASAN:-}" ]; then
    flags="$flags -Zsanitizer=address"
    export RUSTC_BOOTSTRAP=1
fi
RUSTFLAGS="$flags" ${CARGO:-cargo} build --quiet --release --target "$target"

# Whole sessions and commands have more to be found than one header.
share() {
    case $1 in
    session) echo 8 ;;
    commands) echo 5 ;;
    login) echo 3 ;;
    *) echo 1 ;;
    esac
}
shares=0
for door in $doors; do
    [ -d "corpus/$door" ] || { echo "fuzz: no door is called $door: $(ls corpus | tr '\n' ' ')" >&2; exit 2; }
    shares=$((shares + $(share "$door")))
done

printf '%-10s %8s %12s %10s %8s\n' door seconds executions coverage corpus
failed=0
for door in $doors; do
    time=$((seconds * $(share "$door") / shares))
    [ "$time" -gt 0 ] || time=1
    mkdir -p "found/$door/new"
    log=found/$door/log
    status=0
    FUZZ_DOOR=$door "$here/$target/release/fuzz" -max_total_time="$time" -max_len=8192 \
        -timeout=25 -rss_limit_mb=1024 -malloc_limit_mb=64 -print_final_stats=1 \
        -artifact_prefix="found/$door/" "found/$door/new" "corpus/$door" >"$log" 2>&1 || status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    covered=$(sed -n 's/.* cov: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
    printf '%-10s %8s %12s %10s %8s\n' "$door" "$time" "${runs:-?}" "${covered:-?}" "$(ls "found/$door/new" | wc -l)"
    if [ "$status" != 0 ]; then
        failed=1
        echo "fuzz: $door failed ($status):" >&2
        tail -n 40 "$log" >&2
    fi
done
exit $failed
