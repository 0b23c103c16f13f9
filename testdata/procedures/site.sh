# The site of the tests, for the procedures in this folder: two hosts, and PostgreSQL with its data and its log on two protected
# file systems, under the load of pgbench. At a real site these functions would go through ssh and to its own scripts.
#
# SITE_DIR has for each host a program HOST/enter, which runs its arguments there, and what the site keeps outside of the
# protected volumes.
# shellcheck shell=bash
: "${SITE_DIR:?}"

# --- hosts -----------------------------------------------------------------------------------------------------------
step() { printf '\n%s. %s\n' "$1" "$2"; }

# Shows a command as it is typed on a host, and runs it there. What it writes is kept for `see`.
typed() {
  local host=$1
  shift
  printf '%s# %s\n' "$host" "$*"
  "$SITE_DIR/$host/enter" "$@" 2>&1 | tee "$SITE_DIR/said"
}
prod1() { typed prod1 "$@"; }
rec1() { typed rec1 "$@"; }

# The last command must have written this.
see() {
  grep -qF -- "$1" "$SITE_DIR/said" && return
  printf 'not seen: %s\n' "$1" >&2
  exit 1
}

# Asks whoever holds the plugs for something, and waits until it is done.
plug() {
  touch "$SITE_DIR/$1.wanted"
  while [ -e "$SITE_DIR/$1.wanted" ]; do sleep 0.1; done
}
production_comes_online() { plug production-online; }
production_data_was_lost() { [ -e "$SITE_DIR/production-data-lost" ]; }

# A cluster manager that is told to leave its groups alone, and then to take them up again.
cluster_manager() { printf '%s: resource groups: %s\n' "$1" "$2"; }
backup() { printf '%s: no archive here\n' "$1"; }

# --- PostgreSQL --------------------------------------------------------------------------------------------------------
programs=$(printf '%s\n' /usr/lib/postgresql/*/bin | tail -1)

# Runs a command as the database's user on a host; it reads no answers meant for others.
as_postgres() {
  local host=$1
  shift
  "$SITE_DIR/$host/enter" runuser -u postgres -- "$@" </dev/null
}
sql() { as_postgres "$1" "$programs/psql" -h /mnt/run -qAtX -v ON_ERROR_STOP=1 -d bank -c "$2"; }
database() { # HOST start|stop
  as_postgres "$1" "$programs/pg_ctl" "$2" -D /mnt/data/pg -s -w -t 60 -l /mnt/run/log -m fast -o "-h '' -k /mnt/run" && return
  as_postgres "$1" tail -20 /mnt/run/log >&2
  return 1
}
is_running() { as_postgres "$1" "$programs/pg_ctl" status -D /mnt/data/pg >/dev/null 2>&1; }

load_start() { # HOST: transfers until they are stopped
  rm -f "$SITE_DIR/exactly"
  as_postgres "$1" setsid sh -c \
    "exec '$programs/pgbench' -n -c 2 -R 60 -T 3600 -h /mnt/run bank >/mnt/run/load.log 2>&1 & echo \$! >/mnt/run/load.pid"
}
load_stop() {
  as_postgres "$1" sh -c '[ ! -e /mnt/run/load.pid ] || { p=$(cat /mnt/run/load.pid); rm /mnt/run/load.pid
    kill "$p" 2>/dev/null && while kill -0 "$p" 2>/dev/null; do sleep 0.1; done; true; }'
}

# Everything in the bank as one checksum.
# shellcheck disable=SC2016
content="md5(concat(
  (SELECT string_agg(aid || ':' || abalance, ',' ORDER BY aid) FROM pgbench_accounts), '/',
  (SELECT string_agg(tid || ':' || tbalance, ',' ORDER BY tid) FROM pgbench_tellers), '/',
  (SELECT string_agg(bid || ':' || bbalance, ',' ORDER BY bid) FROM pgbench_branches), '/',
  (SELECT string_agg(concat_ws(':', tid, bid, aid, delta, mtime), ',' ORDER BY mtime, tid, aid, delta) FROM pgbench_history)))"

# A backend ends the commit it is in, though whoever asked for it is gone: waits until the bank is alone.
alone() { # HOST
  until [ "$(sql "$1" "SELECT count(*) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")" = 0 ]; do sleep 0.1; done
}

# Writes down what the bank holds, in the bank and outside of it.
prove() { # HOST NAME
  alone "$1"
  sql "$1" "INSERT INTO proof(name, sum, transactions) SELECT '$2', $content, count(*) FROM pgbench_history"
  sql "$1" "SELECT sum, transactions FROM proof ORDER BY number DESC LIMIT 1" >"$SITE_DIR/proof"
  touch "$SITE_DIR/exactly"
  printf '%s: proof %s: %s\n' "$1" "$2" "$(cat "$SITE_DIR/proof")"
}

# Whether the bank is in order: every balance is the sum of its transfers, and the last proof is there. When the bank was closed
# behind that proof, or EXACTLY is set, it must hold exactly what the proof says.
audit() { # HOST
  local said
  said=$(sql "$1" "WITH s AS (SELECT (SELECT sum(abalance) FROM pgbench_accounts) a, (SELECT sum(tbalance) FROM pgbench_tellers) t,
      (SELECT sum(bbalance) FROM pgbench_branches) b, (SELECT coalesce(sum(delta), 0) FROM pgbench_history) h),
    p AS (SELECT * FROM proof ORDER BY number DESC LIMIT 1)
    SELECT concat_ws(' ', CASE WHEN a = t AND a = b AND a = h THEN 'balanced' ELSE 'UNBALANCED' END, p.sum || '|' || p.transactions,
      CASE WHEN p.sum = $content THEN 'exactly' ELSE 'since' END) FROM s, p")
  printf '%s: audit: %s\n' "$1" "$said"
  case "$said" in
    "balanced $(cat "$SITE_DIR/proof") exactly") return 0 ;;
    "balanced $(cat "$SITE_DIR/proof") since") [ -z "${EXACTLY-}" ] && [ ! -e "$SITE_DIR/exactly" ] ;;
    *) return 1 ;;
  esac
}

# Waits until the recovery host has all that production has: with the load stopped.
settle() { typed prod1 backstay wait -C 1 --until drained --timeout 60; }

# Analyzes the data with the application itself: on whatever is mounted there.
validate() { # HOST
  local good=1
  database "$1" start
  audit "$1" && good=0
  database "$1" stop
  return $good
}

application_start() {
  database "$1" start
  audit "$1"
  load_start "$1"
}

application_stop() {
  is_running "$1" || return 0
  load_stop "$1"
  prove "$1" "stopped on $1"
  database "$1" stop
}

# Closes the bank for a proof and a mark, opens it, and deploys something that ruins it while transfers go on.
deploy() { # HOST
  load_stop "$1"
  prove "$1" before-deploy
  typed "$1" rtmark -C 1 --name before-deploy
  settle
  load_start "$1"
  sleep 2
  sql "$1" "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % 3 = 0"
  sleep 2
}

# Ends what still runs on the host that is not production any more, whatever state its storage is in, and unmounts. No proof:
# what it holds is about to give way.
application_abandon() {
  load_stop "$1"
  typed "$1" rtumnt -C 1 -f -q </dev/null
}

# The restore point that somebody would take from the list: the mark before the deploy. Sets `point`.
choose_restore_point() { # LETTER
  local row epoch date time lfc
  row=$(awk '$6 == "before-deploy"' "$SITE_DIR/said" | head -1)
  read -r epoch date time lfc _ <<<"$row"
  case "$1" in
    -t) point=(-t "$lfc") ;;
    -S) point=(-S "$epoch") ;;
    -D) point=(-D "$date $time") ;;
  esac
}
