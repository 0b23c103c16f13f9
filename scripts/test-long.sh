#!/usr/bin/env bash
# The full version of what `make test` keeps a quick one of: at most an hour on 2 cores, one part after the other. Each part prints its
# counts; the end says which parts failed. PARTS="fuzz soak" takes only those.
set -uo pipefail
cd "$(dirname "$0")/.."
started=$(date +%s)
failed=()
part() { # NAME COMMAND...
  local name=$1 from
  shift
  [[ " ${PARTS:-$name} " == *" $name "* ]] || return 0
  from=$(date +%s)
  echo "== $name"
  "$@" || failed+=("$name")
  echo "== $name: $(($(date +%s) - from)) s"
}
tests() { # VARIABLES... -- TEST [FILTER]
  local variables=()
  while [ "$1" != -- ]; do
    variables+=("$1")
    shift
  done
  shift
  local test=$1
  shift
  # Tests print what they counted; what they wait for is no news.
  env "${variables[@]}" cargo test --quiet --locked --test "$test" -- --nocapture "$@" 2>&1 | tail -n 40
  return "${PIPESTATUS[0]}"
}
journal() { # VARIABLES... -- FILTER
  local variables=()
  while [ "$1" != -- ]; do
    variables+=("$1")
    shift
  done
  shift
  env "${variables[@]}" cargo test --quiet --locked -p backstay-journal --lib -- --nocapture "$@" 2>&1 | tail -n 20
  return "${PIPESTATUS[0]}"
}

part boundaries tests BACKSTAY_POINTS=10500 -- boundaries
part roles tests BACKSTAY_SEEDS=20 -- role_histories random_histories
part cores tests BACKSTAY_SEEDS=4 -- core_histories random
part journal journal BACKSTAY_SEEDS=4 -- random
part power tests BACKSTAY_CUTS=3 -- power
part rot tests BACKSTAY_FLIPS=3 -- rot
part faults tests BACKSTAY_FAULTS=3 -- faults link_every_weather
part kills tests BACKSTAY_KILLS=4 -- soak kills_
part soak tests BACKSTAY_SOAK_SECONDS=480 -- soak soak
part fuzz scripts/fuzz.sh 60

echo "== $(($(date +%s) - started)) s in all; failed: ${failed[*]:-nothing}"
[ ${#failed[@]} -eq 0 ]
