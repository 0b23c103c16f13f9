#!/usr/bin/env bash
# Runs every test and closes with one count over all of them.
set -uo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo '== tests'
[ "$(id -u)" -eq 0 ] || echo '!! not root: tests that mount file systems are SKIPPED; they run as root'
RUST_BACKTRACE=1 cargo test --locked --workspace --no-fail-fast 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
awk '/^test result:/ { p += $4; f += $6; s += $8 } END { printf "%d passed, %d failed, %d skipped\n", p, f, s }' "$log"
exit "$status"
