#!/usr/bin/env bash
# A Docker engine for tests that an ordinary user runs, without any right: dockerd in
# user and mount namespaces that RootlessKit makes.
#
#   eval "$(docker-rootless.sh up WORKDIR)"   sets V6_DOCKER_ROOTLESS_HOST, and
#                                             V6_DOCKER_ROOTLESS_USER, whose it is
#   docker-rootless.sh stop WORKDIR           ends it, which ends its containers; keeps data
#   docker-rootless.sh crash WORKDIR          kills the daemon and all that runs in its
#                                             namespaces at once; `up` starts it again
#   docker-rootless.sh down WORKDIR           ends it and removes all that it left
#
# It is beside any other engine, as docker.sh's own is, and has a network of its own, with
# the registries of registry.sh in the same folder at the ports that they have outside. In
# the machine's network it must not be: an ordinary user's thread that has entered a
# container's network may not go back to that one, and pulls made by it reach nothing.
# A crash takes the containers with it, as that of a machine does: what is left in the
# namespaces of a daemon that was killed alone cannot be found from those of the next.
# Called by root, the user is V6_TEST_USER, as of podman.sh.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"

dir='' socket=''
names() {
	dir=$work/docker-rootless
	socket=$dir/run/docker.sock
}

# The ports of the registries of registry.sh in the same folder.
registry_ports() {
	[ -e "$work/registry/env" ] || return 0
	(
		# shellcheck source=/dev/null
		. "$work/registry/env"
		echo "${V6_REGISTRY_OPEN#*:}" "${V6_REGISTRY_PRIVATE#*:}" "${V6_REGISTRY_STALLED#*:}"
	)
}

up() {
	local port known ports
	names
	[ $# = 0 ] || die "up: unknown option $1"
	need_packages "Docker without rights" rootlesskit uidmap iproute2 socat curl
	if ! { command -v dockerd && command -v containerd && command -v runc; } >/dev/null; then need_packages "a Docker engine" docker.io; fi
	need_user
	mkdir -p "$dir"
	# The user has to get to his own folder, and nowhere else.
	chmod a+x "$work" "$dir"
	install -d -o "$V6_TEST_USER" -g "$(id -gn "$V6_TEST_USER")" -m 700 "$dir"/{run,home,data,exec,tmp}
	ports=$(registry_ports)
	known=$(cat "$dir/ports" 2>/dev/null) || true
	[ "$known" = "$ports" ] || stop_program docker-rootless
	echo "$ports" >"$dir/ports"
	for port in $ports; do
		start_program "docker-rootless-$port" socat "UNIX-LISTEN:$dir/run/port-$port,fork,unlink-early,mode=600,user=$V6_TEST_USER" "TCP:127.0.0.1:$port"
	done
	# Not in the user's folder, since root runs it.
	cat >"$dir/dockerd-rootless" <<-END
		#!/bin/sh
		cd "$dir/home" || exit
		set -- env -i PATH="$PATH" USER="$V6_TEST_USER" HOME="$dir/home" XDG_RUNTIME_DIR="$dir/run" TMPDIR="$dir/tmp" \\
			rootlesskit --net=host --copy-up=/etc --copy-up=/run --propagation=rslave --state-dir="$dir/run/rootlesskit" \\
			unshare --net sh -c '
				rm -f /run/docker /run/containerd /run/xtables.lock
				ip link set lo up || exit
				for port in $ports; do
					socat "TCP-LISTEN:\$port,bind=127.0.0.1,reuseaddr,fork" "UNIX-CONNECT:$dir/run/port-\$port" &
				done
				exec "\$@"' sh \\
			dockerd --rootless --data-root "$dir/data" --exec-root "$dir/exec" --host "unix://$socket" \\
			--pidfile "$dir/run/dockerd.pid" \\
			--bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false
		[ "\$(id -un)" != "$V6_TEST_USER" ] || exec "\$@"
		exec setpriv --reuid="$V6_TEST_USER" --regid="$(id -gn "$V6_TEST_USER")" --init-groups "\$@"
	END
	chmod 755 "$dir/dockerd-rootless"
	# Of a daemon that was killed.
	alive docker-rootless || rm -rf "$dir"/run/{dockerd.pid,docker.sock,rootlesskit} "$dir"/exec/containerd/containerd.pid
	start_program docker-rootless "$dir/dockerd-rootless"
	DOCKER_HOST=unix://$socket wait_for docker-rootless "an answer from $V6_TEST_USER's dockerd" engine_answers
	echo "export V6_DOCKER_ROOTLESS_HOST=unix://$socket V6_DOCKER_ROOTLESS_USER=$V6_TEST_USER"
}

# Everything in the daemon's user namespace, which only its own children share, and then
# RootlessKit, which waits outside.
kill_all() {
	local pid space file
	pid=$(cat "$dir/run/rootlesskit/child_pid" 2>/dev/null) || true
	space=$(readlink "/proc/${pid:-none}/ns/user") || true
	if [ -n "$space" ] && [ "$space" != "$(readlink /proc/self/ns/user)" ]; then
		for file in /proc/[0-9]*; do
			[ "$(readlink "$file/ns/user" 2>/dev/null)" != "$space" ] || kill -KILL "${file#/proc/}" 2>/dev/null || true
		done
	fi
	stop_program docker-rootless
}

crash() {
	names
	alive docker-rootless || die "$V6_TEST_USER's dockerd does not run"
	kill_all
}

stop() {
	local file
	names
	stop_program docker-rootless
	for file in "$work/run"/docker-rootless-*.pid; do
		[ ! -e "$file" ] || stop_program "$(basename "$file" .pid)"
	done
}

down() {
	names
	stop
	kill_all
	remove_tree "$dir"
}

service_main "$@"
