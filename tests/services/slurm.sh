#!/usr/bin/env bash
# A Slurm cluster for tests, of our own, on this machine.
#
#   eval "$(slurm.sh up WORKDIR)"   sets V6_SLURM_CONF
#   slurm.sh crash WORKDIR          kills its controller, once it has written down which jobs run;
#                                   they go on, and `up` brings it back
#   slurm.sh forget WORKDIR         has its controller forget all jobs that are over, as it does by itself
#                                   after some minutes: only the accounting knows them then
#   slurm.sh stop WORKDIR           ends its jobs and its daemons; keeps what the controller knows
#   slurm.sh down WORKDIR           ends them and removes all that is left
#
# Debian's slurmctld, two slurmds, slurmdbd with MariaDB, and munge, with a key, ports and node names of their own, beside any
# other cluster. Each node says that it has V6_SLURM_CPUS processors (default 16), whatever the machine
# has, so that many small jobs run at once. Memory is limited where the machine has cgroups of version 1.
# Partitions: main, the default; low, whose jobs are preempted by those of urgent; and short, where a job
# may take one minute. Accounts of the tests' user, whose limits are kept: tests, the default, without any;
# few, with one job at once in Slurm's hands; and spent, which has used up its processor time.
# Root only: slurmd starts jobs as the users who submit them. These have to be somebody else than root.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"
: "${V6_SLURM_CPUS:=16}"
# Seconds for which the controller keeps a job that is over.
MIN_JOB_AGE=300

names() {
	local mark
	dir=$work/slurm
	mark=$(printf %s "$work" | fingerprint)
	nodes=("v6a$mark" "v6b$mark")
	export SLURM_CONF=$dir/slurm.conf
}

port() { sed -n "$1p" "$dir/ports"; }

configure() {
	local memory tracking=linuxproc task=none over=OverMemoryKill n=2 node
	[ -s "$dir/ports" ] || for _ in 1 2 3 4 5; do free_port; done >"$dir/ports"
	if [ -d /sys/fs/cgroup/memory ] && [ -d /sys/fs/cgroup/freezer ]; then
		tracking=cgroup task=cgroup over=NoOverMemoryKill
		cat >"$dir/cgroup.conf" <<-END
			CgroupPlugin=cgroup/v1
			CgroupMountpoint=/sys/fs/cgroup
			CgroupAutomount=no
			ConstrainRAMSpace=yes
		END
	else
		# Version 2: without systemd's help, which not every machine has.
		echo IgnoreSystemd=yes >"$dir/cgroup.conf"
	fi
	memory=$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
	cat >"$dir/slurm.conf" <<-END
		ClusterName=v6tests
		SlurmctldHost=$(hostname -s)(127.0.0.1)
		SlurmctldPort=$(port 1)
		SlurmUser=slurm
		AuthType=auth/munge
		AuthInfo=socket=$dir/munge/socket
		StateSaveLocation=$dir/state
		SlurmdSpoolDir=$dir/spool/%n
		SlurmctldPidFile=$dir/log/slurmctld.pid
		SlurmdPidFile=$dir/log/slurmd-%n.pid
		SlurmctldLogFile=$work/log/slurmctld.log
		SlurmdLogFile=$work/log/slurmd-%n.log
		ProctrackType=proctrack/$tracking
		TaskPlugin=task/$task
		JobAcctGatherType=jobacct_gather/linux
		JobAcctGatherFrequency=1
		JobAcctGatherParams=$over
		AccountingStorageType=accounting_storage/slurmdbd
		AccountingStorageHost=127.0.0.1
		AccountingStoragePort=$(port 5)
		AccountingStoragePass=$dir/munge/socket
		AccountingStorageEnforce=associations,limits,qos
		MinJobAge=$MIN_JOB_AGE
		SwitchType=switch/none
		MpiDefault=none
		ReturnToService=2
		SlurmdTimeout=10
		SlurmdParameters=config_overrides
		SelectType=select/cons_tres
		SelectTypeParameters=CR_Core_Memory
		PreemptType=preempt/partition_prio
		PreemptMode=REQUEUE
		SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
		KillWait=5
	END
	install -o slurm -m 600 /dev/stdin "$dir/slurmdbd.conf" <<-END
		AuthType=auth/munge
		AuthInfo=socket=$dir/munge/socket
		DbdHost=localhost
		DbdAddr=127.0.0.1
		DbdPort=$(port 5)
		SlurmUser=slurm
		LogFile=$work/log/slurmdbd.log
		PidFile=$dir/log/slurmdbd.pid
		StorageType=accounting_storage/mysql
		StorageHost=localhost
		StorageLoc=slurm
		StorageUser=slurm
	END
	for node in "${nodes[@]}"; do
		n=$((n + 1))
		echo "NodeName=$node NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$(port $n) CPUs=$V6_SLURM_CPUS RealMemory=$memory"
	done >>"$dir/slurm.conf"
	cat >>"$dir/slurm.conf" <<-END
		PartitionName=DEFAULT Nodes=$(IFS=,; echo "${nodes[*]}") MaxTime=INFINITE DefMemPerCPU=256 OverSubscribe=NO
		PartitionName=main Default=YES PriorityTier=10
		PartitionName=low PriorityTier=1 PreemptMode=REQUEUE
		PartitionName=urgent PriorityTier=100 PreemptMode=OFF
		PartitionName=short PriorityTier=10 MaxTime=1
	END
	chmod 644 "$SLURM_CONF"
	chmod 644 "$dir/cgroup.conf"
}

as_slurm() { setpriv --reuid=slurm --regid=slurm --clear-groups "$@"; }

# MariaDB behind a socket, and slurmdbd.
account() {
	local at=$dir/mariadb tmp=$dir/tmp
	# The caller's may be closed to it.
	install -d -o slurm -m 700 "$tmp"
	if ! [ -e "$at/done" ]; then
		rm -rf "$at"
		mariadb-install-db --no-defaults --datadir="$at" --tmpdir="$tmp" --user=slurm --skip-test-db \
			--auth-root-authentication-method=socket --auth-root-socket-user=slurm \
			>"$work/log/mariadb-install.log" 2>&1 || die "no database: see $work/log/mariadb-install.log"
		touch "$at/done"
	fi
	start_program mariadb mariadbd --no-defaults --datadir="$at" --tmpdir="$tmp" --user=slurm --skip-networking \
		--socket="$at/socket" --pid-file="$at/pid" --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=2
	wait_for mariadb "an answer from MariaDB" as_slurm mariadb --no-defaults --socket="$at/socket" -e 'SELECT 1'
	touch "$work/log/slurmdbd.log"
	chown slurm "$work/log/slurmdbd.log"
	start_program slurmdbd setpriv --reuid=slurm --regid=slurm --clear-groups \
		env SLURM_CONF="$dir/slurmdbd.conf" MYSQL_UNIX_PORT="$at/socket" slurmdbd -D
	wait_for slurmdbd "an answer from slurmdbd" sacctmgr --noheader list cluster
}

# Who may submit jobs, and how many.
admit() {
	if [ -n "$(sacctmgr --noheader list user "$V6_TEST_USER")" ]; then return 0; fi
	[ -n "$(sacctmgr --noheader list cluster v6tests)" ] || sacctmgr -i add cluster v6tests
	sacctmgr -i add account tests
	sacctmgr -i add account few parent=tests
	sacctmgr -i add account spent parent=tests GrpTRESMins=cpu=0
	sacctmgr -i add user root account=tests
	sacctmgr -i add user "$V6_TEST_USER" account=few MaxSubmitJobs=1
	sacctmgr -i add user "$V6_TEST_USER" account=spent
	sacctmgr -i add user "$V6_TEST_USER" account=tests DefaultAccount=tests
}

up() {
	local node
	names
	[ $# = 0 ] || die "up: unknown option $1"
	[ "$(id -u)" = 0 ] || die "only root can start a Slurm cluster: its daemons start jobs as other users"
	need_packages "Slurm" slurmctld slurmd slurm-client slurmdbd munge mariadb-server-core mariadb-client-core
	need_user
	mkdir -p "$dir"/{state,spool,log}
	chmod a+x "$work" "$dir"
	chown slurm "$dir/state" "$dir/log"
	install -d -o munge -m 755 "$dir/munge"
	[ -s "$dir/munge/key" ] || {
		head -c 1024 /dev/urandom >"$dir/munge/key"
		chown munge "$dir/munge/key"
		chmod 400 "$dir/munge/key"
	}
	start_program munged setpriv --reuid=munge --regid=munge --init-groups munged --foreground --force \
		--socket="$dir/munge/socket" --key-file="$dir/munge/key" --pid-file="$dir/munge/pid" \
		--seed-file="$dir/munge/seed" --log-file="$dir/munge/log"
	wait_for munged "an answer from munged" bash -c "munge -S '$dir/munge/socket' -n | unmunge -S '$dir/munge/socket'"
	[ -s "$dir/slurm.conf" ] || configure
	account
	admit >>"$work/log/sacctmgr.log" 2>&1 || die "the accounts could not be made: see $work/log/sacctmgr.log"
	touch "$work/log/slurmctld.log"
	chown slurm "$work/log/slurmctld.log"
	start_program slurmctld setpriv --reuid=slurm --regid=slurm --clear-groups slurmctld -D
	for node in "${nodes[@]}"; do start_program "slurmd-$node" slurmd -D -N "$node"; done
	wait_for slurmctld "an answer from slurmctld" scontrol ping
	for node in "${nodes[@]}"; do
		# Whatever was wrong with it before.
		if sinfo --noheader --nodes="$node" --format=%T | grep -q -e drain -e down; then
			scontrol update "NodeName=$node" State=RESUME || true
		fi
	done
	wait_for slurmctld "two nodes that work" bash -c "[ \"\$(sinfo -h -N -p main -t idle,mixed,allocated,completing -o %N | wc -l)\" = 2 ]"
	echo "export V6_SLURM_CONF=$SLURM_CONF"
}

# slurmctld writes down what it knows within some seconds. Killed before, it forgets that a job has
# started, lets the job's node kill it, and starts it again: that is no crash that a job survives.
saved() {
	local started
	started=$(squeue --noheader --states=RUNNING --format=%S | sort | tail -n 1)
	[ -z "$started" ] || [[ $(date -r "$dir/state/job_state" +%FT%T) > $started ]]
}

crash() {
	local pid
	names
	alive slurmctld || die "there is no slurmctld to be killed"
	for _ in $(seq 300); do
		if saved; then break; fi
		sleep 0.05
	done
	read -r pid _ <"$work/run/slurmctld.pid"
	kill -KILL "$pid"
	while alive slurmctld; do sleep 0.02; done
}

# How often it looks depends on the age, too.
forget() {
	names
	age 10
	for _ in $(seq 600); do
		if [ -z "$(squeue --noheader --states=BF,CA,CD,DL,F,NF,OOM,PR,TO)" ]; then break; fi
		sleep 0.1
	done
	age "$MIN_JOB_AGE"
	[ -z "$(squeue --noheader --states=BF,CA,CD,DL,F,NF,OOM,PR,TO)" ] || die "some jobs are not forgotten"
}

# For how many seconds it keeps jobs that are over: age SECONDS
age() {
	sed -i "s/^MinJobAge=.*/MinJobAge=$1/" "$dir/slurm.conf"
	scontrol reconfigure
}

stop() {
	local node
	names
	for node in "${nodes[@]}"; do
		stop_program "slurmd-$node"
		end_jobs "$node"
	done
	for node in slurmctld slurmdbd mariadb munged; do stop_program "$node"; done
}

# What a node has started does not end with it: end_jobs NODE
end_jobs() {
	local proc
	for proc in /proc/[0-9]*; do
		if { tr '\0' '\n' <"$proc/environ" | grep -qxF "SLURMD_NODENAME=$1"; } 2>/dev/null ||
			{ readlink "$proc/cwd" | grep -qF "$dir/"; } 2>/dev/null; then
			kill -KILL "${proc#/proc/}" 2>/dev/null || true
		fi
	done
	find /sys/fs/cgroup -path "*/slurm_$1*" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u |
		while read -r proc; do kill -KILL "$proc" 2>/dev/null || true; done
	for _ in $(seq 100); do
		find /sys/fs/cgroup -depth -type d -path "*/slurm_$1*" -exec rmdir {} + 2>/dev/null || true
		[ -n "$(find /sys/fs/cgroup -type d -path "*/slurm_$1*" 2>/dev/null)" ] || return 0
		sleep 0.05
	done
	say "cgroups of $1 are left"
}

down() {
	stop
	remove_tree "$dir"
}

service_main "$@"
