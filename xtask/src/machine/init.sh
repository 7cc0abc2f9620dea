#!/bin/busybox sh
# The machine's first process: mounts what programs need, runs them, and says how each ended.
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin HOME=/root TERM=dumb
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
chmod 1777 /tmp
ln -sf /proc/self/fd /dev/fd
mkdir -p /dev/shm /dev/pts && mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
ip link set lo up
ulimit -n 65536
uname -a

# run NAME SECONDS COMMAND…
run() {
	name=$1 limit=$2
	shift 2
	echo "klp-guest: begin $name"
	timeout -s KILL "$limit" "$@" < /dev/null
	status=$?
	# The kernel says where a program has crashed.
	[ $status = 0 ] || dmesg | tail -n 5
	echo "klp-guest: ended $name $status"
}
. /programs
poweroff -f
