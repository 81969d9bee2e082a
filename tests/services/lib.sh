# shellcheck shell=bash
# What the service scripts share; read with `.`, not run.
#
# A service script defines up, stop and down and calls `service_main "$@"`. All
# state of a service is in the WORKDIR that its caller names; what is slow to
# build and always the same is in the cache, which any number of them share.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/v6-node-tests
program=$(basename "$0")
: "${START_TIMEOUT:=60}"

say() { echo "$program: $*" >&2; }
die() { say "$@"; exit 1; }
now_ms() { echo $(($(date +%s%N) / 1000000)); }

# Whether the caller allowed us to install and download: V6_TESTS_INSTALL=1.
may_install() { [ "${V6_TESTS_INSTALL:-0}" = 1 ]; }

# Run one verb of a service: service_main VERB WORKDIR [OPTION...]
service_main() {
	local verb=${1:-} usage="usage: $program up|stop|down WORKDIR [OPTION...] (see the head of the file)"
	if [ $# -lt 2 ] || [ -z "$2" ]; then die "$usage"; fi
	mkdir -p "$2" || die "cannot make the folder $2"
	work=$(cd "$2" && pwd)
	shift 2
	case $work in *[!A-Za-z0-9/._-]*) die "WORKDIR may only have letters, digits and / . _ - in its name: $work" ;; esac
	# The path of a unix socket has room for 107 bytes.
	[ ${#work} -le 60 ] || die "WORKDIR is too long for unix sockets (60 characters at most): $work"
	mkdir -p "$work"/{run,log}
	case $verb in up | stop | down | crash | push | forget | machine | fill | lose | remove | compact | second-api | oidc-api) ;; *) die "$usage" ;; esac
	exec 9>"$work/run/lock"
	# What is to be lost is so at once, whatever else is being done.
	[ "$verb" = lose ] || flock -w 300 9 || die "another script has been at work on $work for 300 s"
	"$verb" "$@"
}

# --- Packages ------------------------------------------------------------------
installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Install Debian packages that are missing, without starting their services:
# need_packages WHAT-FOR PACKAGE...
need_packages() {
	local what=$1 missing=() name policy=/usr/sbin/policy-rc.d made='' ok=''
	shift
	for name; do installed "$name" || missing+=("$name"); done
	[ ${#missing[@]} -gt 0 ] || return 0
	may_install || die "$what needs the packages ${missing[*]}: run again with --install (V6_TESTS_INSTALL=1), or: apt-get install ${missing[*]}"
	[ "$(id -u)" = 0 ] || die "$what needs the packages ${missing[*]}, and only root can install them"
	say "installing ${missing[*]}"
	if ! [ -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 755 $policy
		made=1
	fi
	mkdir -p "$cache"
	if { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } \
		>"$cache/apt.log" 2>&1 </dev/null 9>&-; then ok=1; fi
	[ -z "$made" ] || rm -f $policy
	[ -n "$ok" ] || die "apt-get failed: see $cache/apt.log"
}

# --- The cache -----------------------------------------------------------------
# The first 12 digits of the SHA-256 of the input, to name what is built from it.
fingerprint() { sha256sum | cut -c1-12; }

# Print the path of a cache entry, building it first where it is missing: built
# under another name and renamed, so that it is whole or absent, and once for all
# who ask at the same time. cached NAME WHAT BUILDER [ARGUMENT...]; the builder is
# called with the path to fill and the arguments.
cached() {
	local name=$1 what=$2 builder=$3 path=$cache/$1 part lock began code
	shift 3
	if ! [ -e "$path" ]; then
		may_install || die "$what is not there yet: run again with --install (V6_TESTS_INSTALL=1), which downloads it into $cache"
		mkdir -p "$cache"
		exec {lock}>"$cache/.$name.lock"
		flock "$lock"
		if ! [ -e "$path" ]; then
			began=$(now_ms)
			say "preparing $what (once; kept in $cache)"
			part=$cache/.$name.part
			rm -rf "$part"
			# Not `(...) || die`: after that, `set -e` would not hold in the builder.
			set +e
			(set -e && "$builder" "$part" "$@") >&2 </dev/null 9>&- {lock}>&-
			code=$?
			set -e
			[ $code = 0 ] || die "$what could not be prepared"
			mv -T "$part" "$path"
			say "$what: $(du -sm "$path" | cut -f1) MB in $(($(now_ms) - began)) ms"
		fi
		exec {lock}>&-
	fi
	echo "$path"
}

# --- Programs in the background ------------------------------------------------
# When a process started, in ticks since the machine's start: tells whether a
# process id still belongs to the process that it was written down for.
start_time() {
	local stat
	stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
	# shellcheck disable=SC2086
	set -- ${stat##*) }
	[ "$1" != Z ] || return 1
	echo "${20}"
}

# Whether the program that was started under this name runs: alive NAME
alive() {
	local pid started found
	read -r pid started 2>/dev/null <"$work/run/$1.pid" || return 1
	found=$(start_time "$pid") && [ "$found" = "$started" ]
}

# Start a program in the background, in a session of its own, unless it runs
# already: start_program NAME COMMAND...
start_program() {
	local name=$1
	shift
	if alive "$name"; then return 0; fi
	setsid "$@" >>"$work/log/$name.log" 2>&1 </dev/null 9>&- &
	# One that has ended already gets no time, and so counts as not alive.
	echo "$! $(start_time $! || true)" >"$work/run/$name.pid"
}

# Wait for a command to succeed while a program runs: wait_for NAME WHAT COMMAND...
wait_for() {
	local name=$1 what=$2 began until=$((SECONDS + START_TIMEOUT))
	shift 2
	began=$(now_ms)
	until "$@" >/dev/null 2>&1; do
		if ! alive "$name"; then
			tail -n 5 "$work/log/$name.log" >&2
			die "$name ended while we waited for $what: see $work/log/$name.log"
		fi
		[ $SECONDS -lt $until ] || die "waited $START_TIMEOUT s in vain for $what: see $work/log/$name.log"
		sleep 0.05
	done
	say "$what after $(($(now_ms) - began)) ms"
}

# Stop a program that was started here and all of its group, by force after 10 s.
stop_program() {
	local pid until=$((SECONDS + 10))
	if alive "$1"; then
		read -r pid _ <"$work/run/$1.pid"
		kill "$pid" 2>/dev/null || true
		while alive "$1" && [ $SECONDS -lt $until ]; do sleep 0.05; done
		kill -KILL -- "-$pid" 2>/dev/null || true
		while alive "$1"; do sleep 0.05; done
	fi
	rm -f "$work/run/$1.pid"
}

# A TCP port of 127.0.0.1 that nobody listens on, below the range that the kernel
# hands out by itself.
free_port() {
	local port
	for _ in $(seq 100); do
		port=$((20000 + (RANDOM << 15 | RANDOM) % 12000))
		(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return 0; }
	done
	die "no free port found"
}

# Remove a folder, with what is mounted in it and the processes that run from it.
remove_tree() {
	local file pid path
	for file in /proc/[0-9]*/cmdline; do
		pid=${file%/cmdline} pid=${pid#/proc/}
		if [ "$pid" = $$ ] || [ "$pid" = "$BASHPID" ]; then continue; fi
		if tr '\0' ' ' 2>/dev/null <"$file" | grep -qF -- "$1/"; then kill -KILL "$pid" 2>/dev/null || true; fi
	done
	while read -r path; do umount -l "$path" || true; done < <(awk -v d="$1/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | sort -r)
	rm -rf --one-file-system "$1" || die "cannot remove $1"
}

# --- An ordinary user ------------------------------------------------------------
# Who runs an engine without any right: V6_TEST_USER if we are root, or else we ourselves.
: "${V6_TEST_USER:=v6-node-tests}"
[ "$(id -u)" = 0 ] || V6_TEST_USER=$(id -un)

# Somebody without rights who may have user ids of his own in containers.
need_user() {
	local from
	if [ "$(id -u)" = 0 ] && ! id "$V6_TEST_USER" >/dev/null 2>&1; then
		useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$V6_TEST_USER" ||
			die "cannot make the user $V6_TEST_USER"
		say "made the user $V6_TEST_USER, who is kept"
	fi
	if grep -q "^$V6_TEST_USER:" /etc/subuid && grep -q "^$V6_TEST_USER:" /etc/subgid; then return 0; fi
	[ "$(id -u)" = 0 ] || die "the user $V6_TEST_USER has no subordinate ids in /etc/subuid and /etc/subgid, and only root can give him some"
	# Behind all that are given away already.
	from=$(cat /etc/subuid /etc/subgid 2>/dev/null | awk -F: '$2 + $3 > top {top = $2 + $3} END {printf "%d", (top > 1000000 ? top : 1000000)}')
	usermod --add-subuids "$from-$((from + 65535))" --add-subgids "$from-$((from + 65535))" "$V6_TEST_USER" ||
		die "cannot give subordinate ids to $V6_TEST_USER"
}

# --- The Docker engine ----------------------------------------------------------
# A request to the engine's API: engine METHOD PATH [CURL-OPTION...]
engine() {
	local method=$1 path=$2 host=${DOCKER_HOST:-unix:///var/run/docker.sock} where
	shift 2
	case $host in
		unix://*) where=(--unix-socket "${host#unix://}" "http://docker$path") ;;
		tcp://*) where=("http://${host#tcp://}$path") ;;
		*) die "DOCKER_HOST is neither unix:// nor tcp://: $host" ;;
	esac
	curl -sS --fail-with-body --noproxy '*' --request "$method" "$@" "${where[@]}"
}
engine_answers() { [ "$(engine GET /_ping --max-time 5 2>/dev/null)" = OK ]; }
