#!/usr/bin/env bash
# Coverage-guided fuzzing of everything that reads bytes from outside: scripts/fuzz.sh SECONDS [TARGET...]
# Each target runs so many seconds, one after the other. What was found before is kept in the corpus, so that a later run goes on; what
# fails is written to fuzz/artifacts and ends with an error.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?how many seconds a target}
shift
all=$(sed -n 's/^name = "fuzz_\(.*\)"$/\1/p' fuzz/Cargo.toml)
[ $# -gt 0 ] || set -- $all
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/backstay/target}
corpus=${BACKSTAY_CORPUS:-$(dirname "$CARGO_TARGET_DIR")/corpus}
mkdir -p fuzz/artifacts

# The workspace's own crates with counters, all others as in every build; cargo keeps the two kinds apart.
wrapper=$(mktemp)
trap 'rm -f "$wrapper"' EXIT
cat > "$wrapper.sh" <<'W'
#!/bin/sh
case " $* " in
  *" --crate-type proc-macro "* | *" --crate-name build_script_"*) exec "$@" ;;
esac
exec "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares
W
# By a name that stays: it is part of what cargo knows a build by.
install -m 0755 "$wrapper.sh" "$(dirname "$CARGO_TARGET_DIR")/fuzz-rustc"
rm -f "$wrapper.sh"
RUSTC_WORKSPACE_WRAPPER="$(dirname "$CARGO_TARGET_DIR")/fuzz-rustc" \
  cargo build --quiet --locked -p backstay-fuzz --bins --target-dir "$CARGO_TARGET_DIR"
# The programs of a plain build have the same names.
bin=$(mktemp -d)
trap 'rm -rf "$wrapper" "$bin"' EXIT
for target in "$@"; do cp "$CARGO_TARGET_DIR/debug/fuzz_$target" "$bin/"; done

hex() { tr -d ' ' | xxd -r -p; }
# What golden files and tests say becomes the beginning.
begin() { # TARGET FOLDER
  local to=$2 n=0 line
  case $1 in
    journal_frame | journal_superblock | journal_tail)
      cp "testdata/journal/${1#journal_}.bin" "$to/golden"
      [ "$1" != journal_superblock ] || cat testdata/journal/superblock.bin testdata/journal/superblock.bin > "$to/both" ;;
    journal_rows)
      cp testdata/journal/lfc-row.bin "$to/golden"
      while read -r line; do n=$((n + 1)); printf '%s' "${line##* }" | hex > "$to/$n" || true; done \
        < <(cat testdata/journal/store.txt testdata/journal/map-rows.txt) ;;
    overlay) cp testdata/overlay/index-log.bin "$to/golden" ;;
    state_map_text) cp testdata/journal/state-map.txt "$to/golden" ;;
    control_lines) while IFS= read -r line; do n=$((n + 1)); printf '%s\n' "$line" > "$to/$n"; done < testdata/control/conversation.jsonl ;;
    wire_messages) while read -r _ line; do n=$((n + 1)); printf '%s' "$line" | hex > "$to/$n"; done < <(cat testdata/wire/v1.txt testdata/wire/v1-compressed.txt) ;;
    nbd_handshake) for line in testdata/nbd/handshake-*.txt; do n=$((n + 1)); sed -n 's/^C //p' "$line" | hex > "$to/$n"; done ;;
    nbd_transmission)
      # A read, a write with FUA, a flush, a block status and the end, in both lengths of header.
      printf '00 25609513 0000 0000 0000000000000001 0000000000000000 00001000 25609513 0001 0001 0000000000000002 0000000000000200 00000004 61626364 25609513 0000 0003 0000000000000003 0000000000000000 00000000 25609513 0000 0002 0000000000000004 0000000000000000 00000000' | hex > "$to/plain"
      printf '02 21e41c71 0000 0000 0000000000000001 0000000000000000 0000000000001000 21e41c71 0001 0007 0000000000000002 0000000000000000 0000000000010000 21e41c71 0020 0006 0000000000000003 0000000000000000 0000000000001000' | hex > "$to/extended" ;;
    config)
      printf 'name = "prod"\nstate_dir = "/x"\nmount_root = "/"\n[listen]\npeer = "127.0.0.1:7400"\n[attach]\nmethod = "auto"\n[hooks]\ntimeout = "2m"\n[access]\nreaders = ["a"]\n' > "$to/node"
      printf 'id = 1\nfailover_id = 2\nproduction = "prod"\nrecovery = ["rec"]\nlfc_size = "2M"\nrollback_window = "24h, 500G"\n[[volume]]\nname = "data"\nsize = "1M"\nfilesystem = "ext4"\nmount = "/data"\n' > "$to/context" ;;
    date_target) for line in 'lfc:70250' 'epoch:1793491200' 'mark:good' '-10m' 'seq:7' 'latest' '2026-10-25T02:30:00' '10252230.15' '2026-10-25 02:30 CET'; do n=$((n + 1)); printf '\1%s' "$line" > "$to/$n"; done ;;
  esac
}

failed=0
for target in "$@"; do
  mkdir -p "$corpus/$target"
  begin "$target" "$corpus/$target"
  echo "== $target: $seconds s"
  # The log is long and says little; its end says how many runs there were, and what was found.
  if ! "$bin/fuzz_$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix=fuzz/artifacts/"$target"- "$corpus/$target" > "$bin/log" 2>&1; then
    tail -n 40 "$bin/log"
    failed=1
  fi
  awk '/stat::number_of_executed_units/ { runs = $2 } /stat::peak_rss_mb/ { rss = $2 } / cov: / { for (i = 1; i < NF; i++) if ($i == "cov:") cov = $(i + 1) }
    END { printf "   %d runs, %d edges covered, at most %d MiB\n", runs, cov, rss }' "$bin/log"
done
exit "$failed"
