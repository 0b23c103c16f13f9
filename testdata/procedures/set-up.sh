#!/usr/bin/env bash
# Two hosts become nodes, two volumes are protected, and the bank opens on them. SITE is as in unplanned-failover.sh; FILL more
# transfers are made before the load begins.
set -euo pipefail
# shellcheck source=testdata/procedures/site.sh
. "${SITE:?}"

step 1 "Pair the hosts"
prod1 backstay links >/dev/null
rec1 backstay links >/dev/null
rec1 backstay init --state-dir "$SITE_DIR/rec1/state"
string=$(sed -n 's/^pairing string.*: //p' "$SITE_DIR/said")
prod1 backstay init --state-dir "$SITE_DIR/prod1/state" --peer "$string"

step 2 "Protect two volumes"
prod1 backstay protect -C 1 data=160M wal=64M --failover-id 2 --fs ext4 --mount data=/mnt/data --mount wal=/mnt/wal
prod1 backstay wait -C 1 --until consistent --timeout 60

step 3 "Open the bank"
for folder in data wal; do prod1 install -d -o postgres "/mnt/$folder/pg"; done
as_postgres prod1 "$programs/initdb" -D /mnt/data/pg -X /mnt/wal/pg/wal --wal-segsize=1 -A trust -E UTF8 --locale=C >/dev/null
printf '%s\n' 'shared_buffers = 16MB' 'max_wal_size = 16MB' 'min_wal_size = 4MB' |
  "$SITE_DIR/prod1/enter" tee -a /mnt/data/pg/postgresql.conf >/dev/null
# What is not synced may be gone after a crash, or be zeros.
"$SITE_DIR/prod1/enter" sync -f /mnt/data
database prod1 start
as_postgres prod1 "$programs/createdb" -h /mnt/run bank
as_postgres prod1 "$programs/pgbench" -h /mnt/run -i -q bank 2>/dev/null
sql prod1 "CREATE TABLE proof(number serial, name text, sum text, transactions bigint)"
as_postgres prod1 "$programs/pgbench" -n -c 2 -t 100 -h /mnt/run bank >/dev/null 2>&1
prove prod1 opened
settle
load_start prod1
