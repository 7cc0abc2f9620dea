#!/bin/bash
# The guest's first process: mounts what the jobs need, runs the job and reports its exit status on
# the job's serial line.
export PATH=/usr/bin HOME=/root TERM=dumb
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t debugfs debugfs /sys/kernel/debug
mount -t tmpfs tmpfs /tmp
ln -sf /proc/self/fd /dev/fd

exec < /dev/ttyS1 > /dev/ttyS1 2>&1
stty -opost 2> /dev/null

cd /job
bash job.sh
echo "klp-guest: exit $?"
# With its first process the machine ends; else whoever started it ends it.
[[ -e /tmp/leave ]] && exit
while :; do sleep 1000; done
