#!/usr/bin/env bash
# The units of packaging/ as systemd runs them, on a kernel that has nbd: a Debian of its own in a machine without acceleration, without
# network. Needs root, some 4 GiB of disk and five minutes. What happened inside is printed; ends with 1 unless all of it went well.
set -euo pipefail
: "${BACKSTAY:?the program to try}"
cd "$(dirname "$0")/.."
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
[ "$(id -u)" -eq 0 ] || { echo 'test-vm: it makes a file system with a Debian in it, and needs root' >&2; exit 1; }
need() { command -v "$1" >/dev/null || packages+=("$2"); }
packages=()
need debootstrap debootstrap
need qemu-system-x86_64 qemu-system-x86
[ ${#packages[@]} -eq 0 ] || apt-get install -y -q --no-install-recommends --no-remove "${packages[@]}" >/dev/null

top=$(mktemp -d "${TMPDIR:-/tmp}/backstay-vm.XXXXXX")
trap 'rm -rf --one-file-system "$top"' EXIT
root="$top/root"
echo '== a Debian'
debootstrap --variant=minbase --include=systemd,systemd-sysv,udev,dbus,linux-image-amd64,nbd-client,libnbd-bin,e2fsprogs,xfsprogs,btrfs-progs,kmod,iproute2,procps,fuse3,libstdc++6 \
  bookworm "$root" > "$top/debootstrap.log" 2>&1 || { tail -20 "$top/debootstrap.log" >&2; exit 1; }
strip -o "$root/usr/local/bin/backstay" "$BACKSTAY"
cp packaging/*.service packaging/*.socket "$root/etc/systemd/system/"
cp packaging/*.rules "$root/etc/udev/rules.d/"
install -m 755 testdata/vm/inside.sh "$root/root/inside.sh"
cat > "$root/etc/systemd/system/inside.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/root/inside.sh
TimeoutStartSec=infinity
[Install]
WantedBy=multi-user.target
UNIT
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../inside.service "$root/etc/systemd/system/multi-user.target.wants/"
echo '/dev/vda / ext4 rw 0 1' > "$root/etc/fstab"
echo 'vm' > "$root/etc/hostname"
echo '127.0.0.1 localhost vm' > "$root/etc/hosts"
rm -rf "$root/var/cache/apt" "$root/usr/share/doc" "$root/usr/share/locale"
cp "$root"/boot/vmlinuz-* "$top/kernel"
cp "$root"/boot/initrd.img-* "$top/initrd"
mkfs.ext4 -q -F -d "$root" "$top/disk" 4G
rm -rf "$root"

echo '== its machine'
timeout 1200 qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu max -smp 2 -m 3072 -net none -nographic -no-reboot \
  -kernel "$top/kernel" -initrd "$top/initrd" -append 'root=/dev/vda rw console=ttyS0 quiet' \
  -drive "file=$top/disk,format=raw,if=virtio,cache=unsafe" > "$top/console" 2>&1 < /dev/null || true
debugfs -R "cat /root/log" "$top/disk" 2>/dev/null | tee "$top/log"
tail -1 "$top/log" | grep -q '^all [0-9]* steps$' || { tail -20 "$top/console" >&2; echo 'test-vm: it did not come to its end' >&2; exit 1; }
