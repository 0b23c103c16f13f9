#!/usr/bin/env bash
# Planned failover and failback: the application is stopped and everything is drained, so nothing is lost and nothing has to
# be copied. The failback is typed on the recovery server first, as the reference of rtdr has it; unplanned-failover.sh types it
# in the other order. SITE and Q are as there.
set -euo pipefail
# shellcheck source=testdata/procedures/site.sh
. "${SITE:?}"
Q=${Q-}

step 1 "Create the failover context, on both the production and recovery servers"
prod1 rtdr -C 1 -F 2 setup
rec1 rtdr -C 1 -F 2 setup

step 2 "Stop the application, and drain"
application_stop prod1
prod1 rtumnt -FC 1
see 'All data has been synchronized to the Recovery Server.'
prod1 rtstop -FSC 1
see 'All data has been synchronized to the Recovery Server.'
see 'Stopping scrt_lca'

step 3 "Validate the data integrity of the replica"
rec1 scrt_ra -C 1 -X
rec1 rtmnt -C 1
validate rec1
rec1 rtumnt -C 1
rec1 scrt_ra -C 1 -W

step 4 "Failover, and start the application"
rec1 rtdr $Q -C 1 failover
see '--- Failover Context ID <2> is production on rec1. ---'
application_start rec1

step 5 "Resync, on both servers"
prod1 rtdr $Q -C 1 resync
see '-- Failover Context ID <2> is enabled and ready for re-sync. ---'
see 'to copy     0 B written here,'
rec1 rtdr $Q -C 1 resync
see '--- System re-sync is activated. ---'

step 6 "Stop the application, and drain"
application_stop rec1
rec1 rtumnt -FC 1
see 'All data has been synchronized to the Recovery Server.'
rec1 rtstop -FSC 1
see 'All data has been synchronized to the Recovery Server.'

step 7 "Failback, first on the recovery server, and then on the production server"
rec1 rtdr $Q -C 1 failback
see 'Waiting for prod1: run rtdr -C 1 failback there'
prod1 rtdr $Q -C 1 failback
see 'Starting scrt_lca'
see '--- Primary Context ID <1> is enabled. ---'
rec1 backstay wait -C 1 --until enabled --timeout 60

step 8 "Start the application"
application_start prod1
