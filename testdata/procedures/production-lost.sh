#!/usr/bin/env bash
# Production and all its data are lost. After the failover the state maps of the acting production are dirtied, in the failover
# context, so that the resync copies everything; then the failback. As the reference of rtdr has it. SITE and Q are as in
# unplanned-failover.sh.
set -euo pipefail
# shellcheck source=testdata/procedures/site.sh
. "${SITE:?}"
Q=${Q-}

step 1 "Failover to the newest data, and start the application"
rec1 rtdr $Q -C 1 failover
see '--- Failover Context ID <2> is production on rec1. ---'
application_start rec1

step 2 "To dirty all statemaps, in the failover context on the recovery server"
application_stop rec1
rec1 rtstop -C 1 -F
rec1 scconfig $Q -C 1 -M
rec1 rtstart -C 1
rec1 rtmnt -C 1
application_start rec1

step 3 "Revive production, and resync"
production_comes_online
prod1 rtdr $Q -C 1 resync
see '-- Failover Context ID <2> is enabled and ready for re-sync. ---'
rec1 rtdr $Q -C 1 resync
see '--- System re-sync is activated. ---'
see 'to copy     everything'

step 4 "Stop the application, drain, and failback"
application_stop rec1
rec1 rtumnt -FC 2
see 'All data has been synchronized to the Recovery Server.'
rec1 rtstop -FSC 2
prod1 rtdr $Q -C 1 failback
see '--- Primary Context ID <1> is enabled. ---'
rec1 rtdr $Q -C 1 failback
see '--- Primary Context ID <1> is enabled. ---'

step 5 "Start the application"
application_start prod1
