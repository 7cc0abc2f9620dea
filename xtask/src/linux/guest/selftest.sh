# Runs the kernel's livepatch selftests; each script ends at its first failure, the others still
# run.
export KDIR=/job
failed=0
for script in test-*.sh; do
	echo "script: $script"
	"./$script" || { echo "script: $script failed with status $?"; failed=1; }
done
exit $failed
