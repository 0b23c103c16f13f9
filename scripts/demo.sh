#!/usr/bin/env bash
# The main job on this machine: two nodes, two protected ext4 volumes, a SQLite ledger that is ruined and brought back; then
# the application moves to the recovery node, and home again.
# Prints the operator commands that it runs. Leaves nothing behind, also after Ctrl-C.
set -euo pipefail
: "${BACKSTAY:?the program to show}"
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C

top=$(mktemp -d /tmp/backstay-demo.XXXXXX)
export BACKSTAY_ETC="$top/etc"
mkdir -p "$top/bin" "$top/etc"
ln -s "$BACKSTAY" "$top/bin/backstay"
for name in scrt_ra rtmnt rtumnt rtstart rtstop rtmark rtdr; do ln -s "$BACKSTAY" "$top/bin/$name"; done
export PATH="$top/bin:$PATH"
started=$SECONDS
accounts=100
total=$((accounts * 1000))

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
# Shows a command as the operator would type it on that node, and runs it there.
on() { local node=$1; shift; printf '%s# %s\n' "$node" "$*"; "$@" --node "$node"; }

cleanup() {
  local code=$?
  trap - EXIT INT TERM HUP
  { on rec rtumnt -C 1; on prod rtumnt -C 1; } >/dev/null 2>&1 || true
  # Each daemon by the id that it gave.
  for node in prod rec; do
    pid=$(cat "$top/state/$node/pid" 2>/dev/null || true)
    [ -z "$pid" ] || { kill "$pid" 2>/dev/null && for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done; } || true
  done
  awk -v top="$top/" 'index($2, top) == 1 { print $2 }' /proc/mounts | sort -r | while read -r at; do
    umount "$at" 2>/dev/null || umount -l "$at" 2>/dev/null || true
  done
  rm -rf --one-file-system "$top"
  [ "$code" -eq 0 ] || echo "the demo ended with $code" >&2
  exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

milliseconds() { local from=$1; echo $((($(date +%s%N) - from) / 1000000)); }

# --- the ledger: accounts whose sum never changes; every transfer is written to the log volume first -----------------
root=$([ "$(id -u)" -eq 0 ] && [ -e /dev/fuse ] && echo yes || echo no)
if [ "$root" = yes ]; then
  db="$top/data/ledger.db" log="$top/log/transfers.log"
  past_db="$top/state/rec/mnt$top/data/ledger.db" past_log="$top/state/rec/mnt$top/log/transfers.log"
else
  db="$top/files/ledger.db" log="$top/files/transfers.log"
  past_db="$top/past/ledger.db" past_log="$top/past/transfers.log"
  mkdir -p "$top/files" "$top/past"
fi
make_ledger() {
  sqlite3 "$db" "PRAGMA journal_mode=DELETE; CREATE TABLE account(id INTEGER PRIMARY KEY, balance INT);
    CREATE TABLE transfer(id INTEGER PRIMARY KEY);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<$accounts)
    INSERT INTO account SELECT i, 1000 FROM n;" >/dev/null
  : > "$log"
}
transfers=0
home=prod # where the application runs
transfer() { # COUNT: that many transfers, each durable in the log before it is in the database
  for _ in $(seq "$1"); do
    transfers=$((transfers + 1))
    local from=$((RANDOM % accounts + 1)) to=$((RANDOM % accounts + 1)) sum=$((RANDOM % 50))
    echo "$transfers $from $to $sum" >> "$log"
    sync -d "$log"
    sqlite3 "$db" "BEGIN; UPDATE account SET balance=balance-$sum WHERE id=$from;
      UPDATE account SET balance=balance+$sum WHERE id=$to; INSERT INTO transfer VALUES($transfers); COMMIT;"
  done
  store
}
store() { # without root the files go to the raw volumes as they are
  [ "$root" = yes ] && return
  nbdcopy --flush "$db" "nbd+unix:///c1/data?socket=$top/state/$home/nbd.sock"
  nbdcopy --flush "$log" "nbd+unix:///c1/log?socket=$top/state/$home/nbd.sock"
  stat -c %s "$log" > "$top/past/bytes"
}
fetch() { # EXPORT-SUFFIX: without root, the past as files
  [ "$root" = yes ] && return
  rm -f "$past_db" "$past_log"
  for volume in data log; do
    nbdcopy "nbd+unix:///c1/$1/$volume?socket=$top/state/rec/nbd.sock" "$top/past/$volume.raw"
  done
  cp "$top/past/data.raw" "$past_db"
  tr -d '\0' < "$top/past/log.raw" > "$past_log"
}
check() { # LABEL: sum of all accounts, integrity, and no transfer in the database that the log does not know
  local whole sum rows last logged
  whole=$(sqlite3 "$past_db" 'PRAGMA integrity_check')
  sum=$(sqlite3 "$past_db" 'SELECT coalesce(sum(balance),0) FROM account')
  rows=$(sqlite3 "$past_db" 'SELECT count(*) FROM transfer')
  last=$(sqlite3 "$past_db" 'SELECT coalesce(max(id),0) FROM transfer')
  logged=$(awk 'END { print $1+0 }' "$past_log")
  printf '   ledger %s: integrity %s, sum %s of %s, %s transfers, the log knows %s: ' "$1" "$whole" "$sum" "$total" "$rows" "$logged"
  if [ "$whole" = ok ] && [ "$sum" = "$total" ] && [ "$rows" = "$last" ] && [ "$last" -le "$logged" ]; then
    echo GOOD; return 0
  fi
  echo BAD; return 1
}
expect() { # good|bad LABEL
  local is=bad
  check "$2" && is=good
  [ "$is" = "$1" ] || { echo "the ledger $2 should be $1 and is $is" >&2; exit 1; }
}
look() { # good|bad LABEL TARGET-LETTERS...: a snapshot, mounted, checked, released
  local want=$1 label=$2 from
  shift 2
  from=$(date +%s%N)
  on rec scrt_ra -C 1 "$@" | tee "$top/snapshot"
  snapshot_ms=$(milliseconds "$from")
  level=$(sed -n 's#.*/rsn\([0-9]*\)/.*#\1#p' "$top/snapshot" | head -1)
  if [ "$root" = yes ]; then on rec rtmnt -C 1; else fetch "sn$level"; fi
  expect "$want" "$label"
  if [ "$root" = yes ]; then on rec rtumnt -C 1; fi
  on rec scrt_ra -C 1 -W
}

[ "$root" = yes ] || say "Not root: file systems cannot be mounted here. The ledger's files go to raw exports instead."

say "Two nodes on this machine, paired, with TLS between them"
echo "# backstay init --local prod rec"
backstay init --local prod rec --state-dir "$top/state"

say "Protect two volumes: data and log"
if [ "$root" = yes ]; then
  on prod backstay protect -C 1 data=256M log=64M --fs ext4 --mount data="$top/data" --mount log="$top/log"
else
  on prod backstay protect -C 1 data=16M log=1M
fi

say "A ledger of $accounts accounts with $total in all; transfers move money, the sum never changes"
make_ledger
transfer 60
on prod rtmark -C 1 --name end-of-day --description "the books are closed"
mark_transfers=$transfers
transfer 40
sleep 1.2
second=$(date +%s)
sleep 1.2
transfer 40

probe=$(on prod backstay probe -C 1)
echo "$probe"

say "23:59, a deploy with a DELETE without WHERE"
sqlite3 "$db" 'DELETE FROM account WHERE id > 10; UPDATE account SET balance = balance * 3;'
store
on prod backstay status -C 1 || true
lag=$(backstay status -C 1 --json --node prod || true)

say "On the recovery host: where can we go?"
on rec scrt_ra -C 1 -vpe --limit 8

say "Now: look before trusting"
look bad "now" -X

say "At the mark 'end-of-day'"
look good "at the mark" --mark end-of-day

say "At an arbitrary second between: $second"
look good "at $second" -S "$second"

say "The mark is good: roll the replica itself back to it"
if [ "$root" = yes ]; then on prod rtumnt -C 1; fi
on prod rtstop -FSC 1
from=$(date +%s%N)
on rec scrt_ra -C 1 -F --mark end-of-day -q
restore_ms=$(milliseconds "$from")
say "And check the restored replica once more"
look good "restored" --at restored

say "The application moves: fail over to the restored replica"
on rec scrt_ra -C 1 -p
from=$(date +%s%N)
on rec rtdr -qC 1 failover
failover_ms=$(milliseconds "$from")
home=rec
if [ "$root" = yes ]; then
  prod_db=$db prod_log=$log db=$past_db log=$past_log
else
  # Its files are as they were at the mark.
  cp "$past_db" "$db"; cp "$past_log" "$log"
fi
check "on rec"
transfers=$(sqlite3 "$db" 'SELECT coalesce(max(id),0) FROM transfer')
moved_at=$transfers
say "It goes on there, while the old production follows: only what differs crosses"
transfer 10
on prod rtdr -qC 1 resync
on rec rtdr -qC 1 resync
transfer 10
from=$(date +%s%N)
on rec backstay wait -C 1 --until resynced --timeout 60
on rec backstay wait -C 1 --until drained --timeout 60
resync_ms=$(milliseconds "$from")
on prod backstay status -C 1 || true

say "And home: drain, stop, fail back on prod, then on rec"
on rec rtumnt -FC1001
on rec rtstop -FSC1001
on prod rtdr -C 1 failback
on rec rtdr -C 1001 failback
home=prod
if [ "$root" = yes ]; then past_db=$prod_db past_log=$prod_log db=$prod_db log=$prod_log; else
  for volume in data log; do nbdcopy "nbd+unix:///c1/$volume?socket=$top/state/prod/nbd.sock" "$top/past/$volume.raw"; done
  cp "$top/past/data.raw" "$past_db"; tr -d '\0' < "$top/past/log.raw" > "$past_log"
fi
expect good "home again"
on prod backstay wait -C 1 --until drained --timeout 60
on prod backstay status -C 1 || true

say "In figures"
rows=$(backstay status -C 1 --json --node rec || true) # 2: rolled back, and its peer is stopped
pick() { printf '%s' "$1" | tr ',{' '\n\n' | sed -n "s/.*\"$2\": *\([0-9.]*\).*/\1/p" | head -1; }
printf '%-34s %s\n' "lag at the ruin, writes" "$(pick "$lag" writes)" "lag at the ruin, bytes" "$(pick "$lag" bytes)" \
  "probe: a mark, there and applied" "${probe##*: }" "snapshot, command to prompt" "$snapshot_ms ms" "failover restore" "$restore_ms ms" \
  "failover, with its mounts" "$failover_ms ms" "resync, once both had said so" "$resync_ms ms" "transfers at the failover, at home" "$moved_at, $transfers" \
  "journal on the recovery host, bytes" "$(pick "$rows" journal_bytes)" "transfers written, at the mark" "$transfers, $mark_transfers" \
  "whole demo" "$((SECONDS - started)) s"
