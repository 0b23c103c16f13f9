#!/usr/bin/env bash
# Installs the Debian packages that building, testing, the demo and the bench need, if any is missing.
set -euo pipefail
declare -A package=(
  [c++]=g++ [clang]=clang [nbdkit]=nbdkit [nbdinfo]=libnbd-bin [nbdcopy]=libnbd-bin [nbdfuse]=libnbd-bin [nbdsh]=python3-libnbd [python3]=python3
  [qemu-img]=qemu-utils [qemu-io]=qemu-utils [fio]=fio [mkfs.ext4]=e2fsprogs [mkfs.xfs]=xfsprogs [losetup]=mount [sqlite3]=sqlite3
  [ip]=iproute2 [openssl]=openssl [nsenter]=util-linux [systemd-socket-activate]=systemd [mkfs.btrfs]=btrfs-progs
  [qemu-storage-daemon]=qemu-utils [perl]=perl [xxd]=xxd
  [nbd-server]=nbd-server [nbd-trplay]=nbd-server [zstd]=zstd [findmnt]=util-linux [faketime]=faketime
)
missing=()
for tool in "${!package[@]}"; do
  command -v "$tool" >/dev/null || PATH="$PATH:/usr/sbin:/sbin" command -v "$tool" >/dev/null || missing+=("${package[$tool]}")
done
# bindgen loads libclang when RocksDB's bindings are made.
find /usr/lib -name 'libclang*.so*' -print -quit 2>/dev/null | grep -q . || missing+=(libclang-dev)
# PostgreSQL's own programs are not in PATH on Debian.
compgen -G '/usr/lib/postgresql/*/bin/pgbench' >/dev/null || missing+=(postgresql)
[ ${#missing[@]} -eq 0 ] && exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
if [ "$(id -u)" -ne 0 ]; then
  echo "missing packages: ${missing[*]}" >&2
  echo "run as root, or first: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "== installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
undo=()
trap 'rm -f "${undo[@]}"' EXIT
# Tests run a cluster of their own: the package makes none now, and so starts none.
if [[ " ${missing[*]} " == *' postgresql '* ]]; then
  none=/etc/postgresql-common/createcluster.d/no-cluster-for-tests.conf
  mkdir -p "${none%/*}"
  echo 'create_main_cluster = false' >"$none"
  undo+=("$none")
fi
# The bench starts nbd-server itself; its package would start one now. (At a boot it finds no export in its file, and ends.)
if [[ " ${missing[*]} " == *' nbd-server '* && ! -e /usr/sbin/policy-rc.d ]]; then
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
  undo+=(/usr/sbin/policy-rc.d)
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
