#!/usr/bin/env bash
# A Slurm cluster for tests, of our own, on this machine.
#
#   eval "$(slurm.sh up WORKDIR)"   sets V6_SLURM_CONF
#   slurm.sh crash WORKDIR          kills its controller, once it has written down which jobs run;
#                                   they go on, and `up` brings it back
#   slurm.sh stop WORKDIR           ends its jobs and its daemons; keeps what the controller knows
#   slurm.sh down WORKDIR           ends them and removes all that is left
#
# Debian's slurmctld, two slurmds and munge, with a key, ports and node names of their own, beside any
# other cluster. Each node says that it has V6_SLURM_CPUS processors (default 16), whatever the machine
# has, so that many small jobs run at once. Memory is limited where the machine has cgroups of version 1.
# There is no accounting: what slurmctld has forgotten, nobody knows. Partitions: main, the default; low,
# whose jobs are preempted by those of urgent; and short, where a job may take one minute.
# Root only: slurmd starts jobs as the users who submit them. These have to be somebody else than root.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"
: "${V6_SLURM_CPUS:=16}"

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
	[ -s "$dir/ports" ] || for _ in 1 2 3 4; do free_port; done >"$dir/ports"
	if [ -d /sys/fs/cgroup/memory ] && [ -d /sys/fs/cgroup/freezer ]; then
		tracking=cgroup task=cgroup over=NoOverMemoryKill
		cat >"$dir/cgroup.conf" <<-END
			CgroupPlugin=cgroup/v1
			CgroupMountpoint=/sys/fs/cgroup
			CgroupAutomount=no
			ConstrainRAMSpace=yes
		END
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
	chmod 644 "$dir"/*.conf
}

up() {
	local node
	names
	[ $# = 0 ] || die "up: unknown option $1"
	[ "$(id -u)" = 0 ] || die "only root can start a Slurm cluster: its daemons start jobs as other users"
	need_packages "Slurm" slurmctld slurmd slurm-client munge
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

stop() {
	local node
	names
	for node in "${nodes[@]}"; do
		stop_program "slurmd-$node"
		end_jobs "$node"
	done
	for node in slurmctld munged; do stop_program "$node"; done
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
