#!/usr/bin/env bash
# Unplanned failover, resync and failback: the steps of the operators' guide in its own command lines, with 1 as the primary
# and 2 as the failover context. The host that a command is typed on stands before it, as a prompt does: prod1 is the
# configured production server, rec1 the configured recovery server.
#
#   SITE     the file that knows the hosts and the application (site.sh)
#   Q=-q     answers no questions; without it, whoever stands at stdin answers them
#   LETTER   how the restore point is written: -t, -S or -D
set -euo pipefail
# shellcheck source=testdata/procedures/site.sh
. "${SITE:?}"
Q=${Q-} LETTER=${LETTER:--t}

step 1 "On the recovery server, make sure all snapshot filesystems are unmounted"
rec1 /usr/scrt/bin/rtumnt -C 1

step 2 "Make sure no snapshots already exist on the recovery server"
rec1 /usr/scrt/bin/scrt_ra -C 1 -W

step 3 "On the recovery server, create a snapshot based on the current redo log"
rec1 /usr/scrt/bin/scrt_ra -C 1 -X
see 'Making SNAP '
see 'Snap Devs (read only, raw)'

step 4 "Mount the snapshot filesystems on the recovery server, and validate the data"
rec1 /usr/scrt/bin/rtmnt -C 1
see 'Determining Filesystems to mount...'
see 'Mounting '
point=()
if validate rec1; then
  rec1 /usr/scrt/bin/rtumnt -C 1
  rec1 /usr/scrt/bin/scrt_ra -C 1 -W
else
  rec1 /usr/scrt/bin/rtumnt -C 1
  rec1 /usr/scrt/bin/scrt_ra -C 1 -W
  rec1 /usr/scrt/bin/scrt_ra -C1 -vpe
  see 'Rollback window'
  choose_restore_point "$LETTER"
  rec1 /usr/scrt/bin/scrt_ra -C 1 "${point[@]}"
  rec1 /usr/scrt/bin/rtmnt -C 1
  validate rec1
  rec1 /usr/scrt/bin/rtumnt -C 1
  rec1 /usr/scrt/bin/scrt_ra -C 1 -W
fi

step 5 "Backup the replica"
backup rec1

step 6 "Rollback the replica to the validated location, or failover using the current redo log"
[ ${#point[@]} -eq 0 ] || rec1 scrt_ra $Q -C 1 -F "${point[@]}"

step 7 "On the recovery server, failover the replication group"
rec1 rtdr $Q -C 1 failover
see '--- Failover Context ID <2> is production on rec1. ---'

step 8 "On the new production server, start your application"
application_start rec1
production_comes_online

step 9 "On the configured production server, unmanage the resource groups"
cluster_manager prod1 unmanage

step 10 "On the configured production server stop your application"
application_abandon prod1

step 11 "On the new recovery server, execute the resync command"
prod1 /usr/scrt/bin/rtdr $Q -C 1 resync
see 'scsetup: You have requested failover processing.'
see 'scsetup: Do you wish to continue? [y|n]'
see '!!! RESET WARNING !!!'
see 'You have requested an LCA reset.'
see 'All outstanding sealed LFCs will be dumped.'
see 'Do you wish to do this? [y|n]'

step 12 "On the new recovery server verify that the resync process completed"
see '-- Failover Context ID <2> is enabled and ready for re-sync. ---'

step 13 "On the new production server, execute the resync command"
rec1 /usr/scrt/bin/rtdr $Q -C 1 resync

step 14 "On the new production server verify that the resync process completed"
see '--- System re-sync is activated. ---'

step 15 "All protected data was lost on the production server: resync all of it"
if production_data_was_lost; then rec1 /usr/scrt/bin/scconfig $Q -B -G -C 2; fi

step 16 "Before performing the failback operation, stop your application on the new production server"
application_stop rec1

step 17 "On the new production server, unmount the protected file systems, transfer any current LFC data"
rec1 /usr/scrt/bin/rtumnt -FC2

step 18 "On the new production server verify that the synchronization of data has successfully completed"
see 'Determining Filesystems to unmount...'
see 'Unmounting '
see 'Sync: transferring current LFC to Recovery Server'
see 'Waiting for synchronization of data to complete.'
see 'All data has been synchronized to the Recovery Server.'

step 19 "On the new production server, use rtstop"
rec1 /usr/scrt/bin/rtstop -FSC2

step 20 "On the new production server verify that the synchronization of data has successfully completed"
see 'No mounted filesystems'
see 'Sync: transferring any current LFC data to Recovery Server'
see 'Waiting for synchronization of data to complete.'
see 'All data has been synchronized to the Recovery Server.'
see 'Stopping scrt_lca'

step 21 "On the new recovery server execute the failback command"
prod1 /usr/scrt/bin/rtdr $Q -C 1 failback

step 22 "On the new recovery server verify that the failback process completed"
see 'Starting scrt_lca'
see 'Mounting '
see '--- Primary Context ID <1> is enabled. ---'

step 23 "On the new production server execute the failback command"
rec1 /usr/scrt/bin/rtdr $Q -C 2 failback

step 24 "On the new production server verify that the failback process completed"
see 'Starting scrt_aba'
see '--- Primary Context ID <1> is enabled. ---'

step 25 "On the production server start your application"
application_start prod1

step 26 "Manage the resource groups"
cluster_manager prod1 manage

echo "This concludes the unplanned failover operations."
