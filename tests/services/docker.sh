#!/usr/bin/env bash
# A Docker engine for tests: the one that runs, or else one of our own.
#
#   eval "$(docker.sh up WORKDIR [--own] [--live-restore])"     sets DOCKER_HOST
#   docker.sh stop WORKDIR     ends our own engine, which ends its containers; keeps data
#   docker.sh crash WORKDIR    kills the daemon alone, at once; `up` starts it again
#   docker.sh down WORKDIR     ends it and removes all that it left
#
# `up` takes the engine of DOCKER_HOST, or of /var/run/docker.sock, if it answers;
# with --own it never does. With --live-restore, containers outlive the daemon (Docker's
# own default is that they don't). Our own engine is beside any other: with a containerd, a
# data folder and a cgroup of its own, no bridge, no rule in the packet filter.
# `down` and `stop` never touch an engine that was not started here.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"

names() {
	dir=$work/docker
	socket=$work/docker.sock
	# Two work folders must not end each other's containers.
	cgroup=v6-tests-$(printf %s "$work" | fingerprint)
}

up() {
	local option own='' settings='{}'
	names
	for option; do
		case $option in
			--own) own=1 ;;
			--live-restore) settings='{"live-restore": true}' ;;
			*) die "up: unknown option $option" ;;
		esac
	done
	need_packages "talking to Docker" curl
	if [ -z "$own" ] && ! alive dockerd && engine_answers; then
		say "using the engine at ${DOCKER_HOST:-unix:///var/run/docker.sock}"
		echo "export DOCKER_HOST=${DOCKER_HOST:-unix:///var/run/docker.sock}"
		return
	fi
	[ "$(id -u)" = 0 ] || die "no Docker engine answers, and only root can start one"
	if ! { command -v dockerd && command -v containerd && command -v runc; } >/dev/null; then need_packages "a Docker engine" docker.io; fi
	mkdir -p "$dir"
	echo "$settings" >"$dir/daemon.json"
	# dockerd would take the machine's containerd if there is one.
	cat >"$dir/containerd.toml" <<-END
		version = 2
		root = "$dir/containerd"
		state = "$dir/containerd-state"
		disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
		[grpc]
		  address = "$dir/containerd.sock"
	END
	start_program containerd containerd --config "$dir/containerd.toml"
	wait_for containerd "an answer from containerd" test -S "$dir/containerd.sock"
	alive dockerd || rm -f "$dir/dockerd.pid" # of a daemon that was killed
	start_program dockerd dockerd --config-file "$dir/daemon.json" --data-root "$dir/data" --exec-root "$dir/exec" \
		--containerd "$dir/containerd.sock" --host "unix://$socket" --pidfile "$dir/dockerd.pid" \
		--exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$cgroup" \
		--bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false
	export DOCKER_HOST=unix://$socket
	wait_for dockerd "an answer from dockerd" engine_answers
	echo "export DOCKER_HOST=$DOCKER_HOST"
}

crash() {
	local pid
	names
	alive dockerd || die "our own dockerd does not run"
	read -r pid _ <"$work/run/dockerd.pid"
	kill -KILL "$pid"
	while alive dockerd; do sleep 0.02; done
}

stop() {
	names
	stop_program dockerd
	stop_program containerd
}

down() {
	local pid
	stop
	# The shims and the containers outlive the daemon: by cgroup, then by folder.
	while read -r pid; do kill -KILL "$pid" 2>/dev/null || true; done \
		< <(find /sys/fs/cgroup -path "*/$cgroup/*" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u)
	remove_tree "$dir"
	rm -f "$socket"
	for _ in $(seq 100); do # the kernel takes a moment to take the processes away
		find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} + 2>/dev/null || true
		[ -n "$(find /sys/fs/cgroup -type d -name "$cgroup")" ] || break
		sleep 0.05
	done
}

service_main "$@"
