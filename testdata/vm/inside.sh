#!/bin/bash
# Runs inside the machine that scripts/test-vm.sh starts: the units of packaging/ under systemd, on a kernel that has nbd.
# Writes what it did to /root/log; the last line is `all N steps` or what went wrong.
export LC_ALL=C PATH=/usr/local/bin:$PATH
exec > /root/log 2>&1
steps=0
trap 'sync; poweroff' EXIT
do_() { steps=$((steps + 1)); echo "# $*"; "$@" || { echo "FAILED: $* ($?)"; journalctl --no-pager | tail -60; exit 1; }; }
has() { do_ bash -c "[ \"\$(cat $1)\" = \"$2\" ]"; }
mounted() { do_ bash -c "grep -q '^$1.* $2 $3 ' /proc/mounts"; }
ready() { do_ bash -c "for _ in \$(seq 300); do backstay status --node $1 >/dev/null 2>&1; [ \$? -ne 69 ] && [ -S /var/lib/backstay/$1/control.sock ] && exit 0; sleep 0.2; done; exit 1"; }

ip link set lo up
do_ modprobe nbd nbds_max=16
do_ useradd --system --home-dir /var/lib/backstay backstay

echo '== root units; devices of the kernel nbd; ext4, xfs and btrfs'
do_ backstay init --local prod rec
do_ backstay protect -C 1 data=64M --fs ext4 --mount data=/data --node prod
do_ backstay protect -C 2 big=512M --fs xfs --mount big=/big --node prod
do_ backstay protect -C 3 tree=256M --fs btrfs --mount tree=/tree --node prod
mounted /dev/nbd /data ext4; mounted /dev/nbd /big xfs; mounted /dev/nbd /tree btrfs
for c in 1 2 3; do do_ backstay rtumnt -C $c --node prod; done
for n in prod rec; do do_ kill "$(cat /var/lib/backstay/$n/pid)"; done
sleep 3
do_ systemctl start backstay@prod backstay@rec
ready prod; ready rec
for c in 1 2 3; do do_ backstay rtmnt -C $c --node prod; done
for at in /data /big /tree; do echo before > $at/file; done
for c in 1 2 3; do
  do_ backstay rtmark -C $c --name good --node prod
  do_ backstay wait -C $c --until drained --node prod
done
for at in /data /big /tree; do echo behind > $at/file; done
# A file system stays mounted while its daemon is restarted, and while it is killed.
do_ systemctl restart backstay@prod
for at in /data /big /tree; do has $at/file behind; do_ sync -f $at; done
ready prod
do_ systemctl kill --signal=KILL --kill-whom=main backstay@prod
for at in /data /big /tree; do echo later > $at/file; do_ sync -f $at; done
ready prod
do_ systemctl is-active backstay@prod
for c in 1 2 3; do
  do_ backstay scrt_ra -q -C $c --mark good --node rec
  # A btrfs and its view have one id, and production's is mounted here, too.
  [ $c -eq 3 ] && do_ backstay rtumnt -C 3 --node prod
  do_ backstay rtmnt -C $c --node rec
done
mounted /dev/nbd /var/lib/backstay/rec/mnt/data ext4
for at in /data /big /tree; do has /var/lib/backstay/rec/mnt$at/file before; done
for c in 1 2 3; do do_ backstay rtumnt -C $c --node rec; done
for c in 1 2; do
  do_ backstay rtmnt -C $c --read-only --node rec
done
for at in /data /big; do do_ bash -c "! touch /var/lib/backstay/rec/mnt$at/file 2>/dev/null"; done
for c in 1 2 3; do
  do_ backstay rtumnt -C $c --node rec
  do_ backstay scrt_ra -q -C $c -W --node rec
  do_ backstay rtumnt -C $c --node prod
  do_ backstay verify -C $c --node prod
done
# rtumnt -f ends who sits there.
do_ backstay rtmnt -C 1 --node prod
(cd /data && exec sleep 600) &
sleep 1
do_ bash -c '! backstay rtumnt -C 1 --node prod'
do_ backstay rtumnt -q -f -C 1 --node prod
do_ systemctl stop backstay@prod backstay@rec
do_ bash -c '[ "$(cat /sys/block/nbd*/size | sort -u)" = 0 ]'

echo '== a user of their own, and helpers'
do_ mkdir -p /srv/backstay/prod /srv/backstay/rec
do_ chown -R backstay:backstay /var/lib/backstay /etc/backstay
for n in prod rec; do
  sed -i "/^method\|^dev_root/d; s|^\[attach\]|[attach]\nhelper = \"/run/backstay-attach/$n.sock\"\ndev_root = \"/dev/backstay/$n\"|" /etc/backstay/$n.toml
done
sed -i 's|^mount_root.*||; 1i mount_root = "/srv/backstay/rec"' /etc/backstay/rec.toml
do_ udevadm control --reload
do_ systemctl start backstay-attach@prod backstay-attach@rec backstay-exports@prod backstay-exports@rec
ready prod; ready rec
do_ bash -c '[ "$(stat -c %U /proc/$(systemctl show -p MainPID --value backstay-exports@prod))" = backstay ]'
do_ backstay protect -C 4 books=64M --fs ext4 --mount books=/srv/backstay/prod/books --node prod
mounted /dev/loop /srv/backstay/prod/books ext4
echo before > /srv/backstay/prod/books/file
do_ backstay rtmark -C 4 --name good --node prod
do_ backstay wait -C 4 --until drained --node prod
echo behind > /srv/backstay/prod/books/file
do_ systemctl restart backstay-exports@prod
do_ systemctl restart backstay-attach@prod
has /srv/backstay/prod/books/file behind
do_ sync -f /srv/backstay/prod/books
ready prod
do_ systemctl stop backstay-exports@prod
do_ systemctl is-active backstay-exports@rec
do_ systemctl restart backstay-exports@rec
ready rec
do_ systemctl start backstay-exports@prod
ready prod
do_ backstay scrt_ra -q -C 4 --mark good --node rec
do_ backstay rtmnt -C 4 --node rec
has /srv/backstay/rec/srv/backstay/prod/books/file before
# What is on these devices makes no link.
do_ bash -c "! ls -l /dev/disk/by-uuid | grep -q loop"
do_ backstay rtumnt -C 4 --node rec
do_ backstay scrt_ra -q -C 4 -W --node rec
do_ backstay rtumnt -F -C 4 --node prod
# Nothing else is mounted for anybody.
do_ bash -c "! backstay protect -C 5 more=16M --fs ext4 --mount more=/etc/more --node prod"
do_ systemctl stop backstay-exports@prod backstay-exports@rec backstay-attach@prod backstay-attach@rec
do_ bash -c "! grep -q loop /proc/mounts"
journalctl --no-pager -p warning -u 'backstay*' | grep -v 'remains running\|left-over\|unclean termination' | tail -40
echo "all $steps steps"
