#!/usr/bin/env bash
# Podman's service for tests, twice: root's, and an ordinary user's without any right.
#
#   eval "$(podman.sh up WORKDIR)"   sets V6_PODMAN_HOST and V6_PODMAN_ROOTLESS_HOST, and
#                                    V6_PODMAN_USER, who is the second one's user
#   podman.sh stop WORKDIR           ends both services and their containers; keeps data
#   podman.sh crash WORKDIR          kills both services at once; `up` starts them again
#   podman.sh down WORKDIR           ends them and removes all that they left
#
# Both are beside any other engine: with images, containers, settings and locks of their
# own below WORKDIR, without a network. Podman has no daemon: containers go on when a
# service is killed. Called by an ordinary user, there is only his own service; called by
# root, the user is V6_TEST_USER (default v6-node-tests), made if he is missing and then
# kept, as Debian's packages are.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"

names() {
	dir=$work/podman
	whose=(root user)
	[ "$(id -u)" = 0 ] || whose=(user)
}
host() { echo "unix://$dir/$1/run/podman.sock"; }

# Folders and settings of one Podman: settings root|user OWNER
settings() {
	local at=$dir/$1 limit
	install -d -o "$2" -g "$(id -gn "$2")" -m 700 "$at" "$at"/{run,storage,home,tmp,networks}
	# Root's Podman gives containers a million open files and processes, if anything is
	# limited (Debian's settings do) and these are not; it may be allowed fewer itself.
	limit=$(ulimit -Hn | sed s/unlimited/1048576/)
	# crun, the other runtime, fails where control groups are of both versions.
	cat >"$at/containers.conf" <<-END
		[containers]
		default_ulimits = ["nofile=$limit:$limit", "nproc=4096:4096"]
		[engine]
		runtime = "runc"
		cgroup_manager = "cgroupfs"
		events_logger = "file"
		lock_type = "file"
		tmp_dir = "$at/run/libpod"
		[network]
		network_config_dir = "$at/networks"
	END
	cat >"$at/storage.conf" <<-END
		[storage]
		driver = "overlay"
		graphroot = "$at/storage"
		runroot = "$at/run/storage"
	END
	: >"$at/registries.conf"
	# A file, so that a person can use it, too; not in the user's folder, since root runs it.
	cat >"$dir/podman-$1" <<-END
		#!/bin/sh
		cd "$at/home" || exit
		set -- env -i PATH="$PATH" USER="$2" HOME="$at/home" XDG_RUNTIME_DIR="$at/run" TMPDIR="$at/tmp" \\
			CONTAINERS_CONF="$at/containers.conf" CONTAINERS_STORAGE_CONF="$at/storage.conf" \\
			CONTAINERS_REGISTRIES_CONF="$at/registries.conf" "$(command -v podman)" --cgroup-manager cgroupfs "\$@"
		[ "\$(id -un)" != "$2" ] || exec "\$@"
		exec setpriv --reuid="$2" --regid="$(id -gn "$2")" --init-groups "\$@"
	END
	chmod 644 "$at"/*.conf
	chmod 755 "$dir/podman-$1"
}

up() {
	local name owner
	names
	[ $# = 0 ] || die "up: unknown option $1"
	need_packages "Podman" podman runc conmon uidmap curl
	need_user
	mkdir -p "$dir"
	# The user has to get to his own folder, and nowhere else.
	chmod a+x "$work" "$dir"
	for name in "${whose[@]}"; do
		owner=root
		[ "$name" = root ] || owner=$V6_TEST_USER
		settings "$name" "$owner"
		alive "podman-$name" || rm -f "$dir/$name/run/podman.sock" # of one that was killed
		start_program "podman-$name" "$dir/podman-$name" system service --time 0 "$(host "$name")"
		DOCKER_HOST=$(host "$name") wait_for "podman-$name" "an answer from $owner's Podman" engine_answers
	done
	[ "${#whose[@]}" = 1 ] || echo "export V6_PODMAN_HOST=$(host root)"
	echo "export V6_PODMAN_ROOTLESS_HOST=$(host user) V6_PODMAN_USER=$V6_TEST_USER"
}

crash() {
	local name pid
	names
	for name in "${whose[@]}"; do
		alive "podman-$name" || die "Podman's service ($name) does not run"
		read -r pid _ <"$work/run/podman-$name.pid"
		# With the one that it started itself as in the user's name space.
		kill -KILL -- "-$pid"
		while alive "podman-$name"; do sleep 0.02; done
	done
}

stop() {
	local name
	names
	for name in "${whose[@]}"; do
		if [ -x "$dir/podman-$name" ]; then
			"$dir/podman-$name" stop --all --time 1 >/dev/null 2>"$work/log/podman-$name-stop.log" 9>&- ||
				say "not all containers ended: see $work/log/podman-$name-stop.log"
		fi
		stop_program "podman-$name"
	done
}

down() {
	local name file pid
	names
	for name in "${whose[@]}"; do
		stop_program "podman-$name"
		if [ -x "$dir/podman-$name" ]; then
			"$dir/podman-$name" rm --all --force --time 0 >/dev/null 2>"$work/log/podman-$name-down.log" 9>&- || true
		fi
	done
	# What holds the user's name spaces has no path of ours in its command line.
	for file in /proc/[0-9]*/environ; do
		pid=${file%/environ} pid=${pid#/proc/}
		if tr '\0' '\n' 2>/dev/null <"$file" | grep -qF "XDG_RUNTIME_DIR=$dir/"; then kill -KILL "$pid" 2>/dev/null || true; fi
	done
	remove_tree "$dir"
	# The same for every Podman on the machine, so only if it is empty.
	find /sys/fs/cgroup -depth -type d -path '*/libpod_parent*' -exec rmdir {} + 2>/dev/null || true
}

service_main "$@"
