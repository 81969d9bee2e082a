#!/usr/bin/env bash
# Apptainer for tests, of our own, without installing it.
#
#   eval "$(apptainer.sh up WORKDIR [--singularity-ce])"   sets V6_APPTAINER, the command, and
#                                       V6_APPTAINER_USER, who has to call it; and
#                                       V6_APPTAINER_CGROUP, a control group that is the user's,
#                                       where root and version 2 are there. Whoever uses it
#                                       has to be in its group `suite`
#   apptainer.sh stop WORKDIR           ends its containers; keeps the program
#   apptainer.sh down WORKDIR           ends them and removes all that is left
#
# There is no daemon: `up` only puts the program there. Not every release of Debian has
# Apptainer, so the package is the one of V6_APPTAINER_SUITE (default sid), with the C
# library that it needs, unpacked below WORKDIR and pointed at that library. SingularityCE
# in its place is compiled from its Go module (V6_SINGULARITY_CE, default v4.3.3), which
# needs Go and, once, some minutes. Nothing of either is set-uid: containers are made with
# user namespaces. Called by root, the user is V6_TEST_USER (default v6-node-tests), made
# if he is missing and then kept, and /dev/fuse, which most machines let everybody open,
# is opened to all until `down`.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"
: "${V6_APPTAINER_SUITE:=sid}" "${V6_SINGULARITY_CE:=v4.3.3}"

names() {
	dir=$work/apptainer
	root=$dir/root
	fuse=$work/run/fuse.mode
	group=v6-tests-apptainer-$(printf %s "$work" | fingerprint)
}

# Download packages of another release, with lists and settings of our own, from where
# this machine gets its own: download FOLDER
download() {
	local to=$1 apt=$1/apt site options
	mkdir -p "$apt"/{lists/partial,cache/archives/partial,empty}
	# shellcheck disable=SC1091,SC2016
	site=$(. /etc/os-release && apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(ORIGIN) $(COMPONENT)' 'Created-By: Packages' |
		awk -v c="$VERSION_CODENAME" '$2 == c && $3 == "Debian" && $4 == "main" {print $1; exit}')
	[ -n "$site" ] || die "this machine has no source of Debian's packages (apt-get indextargets)"
	cat >"$apt/debian.sources" <<-END
		Types: deb
		URIs: $site
		Suites: $V6_APPTAINER_SUITE
		Components: main
		Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
	END
	options=(-o Dir::Etc::sourcelist="$apt/debian.sources" -o Dir::Etc::sourceparts="$apt/empty"
		-o Dir::Etc::preferencesparts="$apt/empty" -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache"
		-o APT::Sandbox::User=root -o Acquire::Languages=none)
	cd "$to"
	{ apt-get "${options[@]}" update && apt-get "${options[@]}" download apptainer libc6 libseccomp2 libsqlite3-0; } \
		>"$cache/apptainer-apt.log" 2>&1 || die "no download: see $cache/apptainer-apt.log"
	rm -rf "$apt"
}

# The program as if it were installed, but for the places: unpack DEBS FOLDER
unpack() {
	local file lib loader
	rm -rf "$2"
	mkdir -p "$2"
	for file in "$1"/*.deb; do dpkg-deb -x "$file" "$2"; done
	lib=$(dirname "$(find "$2/usr" -name libseccomp.so.2 | head -n 1)")
	loader=$(find "$lib" -name 'ld-linux*' | head -n 1)
	for file in "$2/usr/bin/apptainer" "$lib/apptainer/bin/starter"; do
		patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$lib" "$file"
	done
	patchelf --force-rpath --set-rpath "$lib" "$lib/libsqlite3.so.0"
	# Where the command looks, being elsewhere than in /usr, and where its starter does.
	mkdir -p "$2"/usr/{etc,var/lib/apptainer/mnt/session}
	mv "$2/etc/apptainer" "$2/usr/etc/"
	ln -s ../etc ../var "$2/usr/lib/"
}

# SingularityCE, installed into a folder: compile FOLDER
compile() {
	local source=$1.source module=github.com/sylabs/singularity/v4@$V6_SINGULARITY_CE at log=$cache/singularity-ce.log
	command -v go >/dev/null || die "SingularityCE is compiled with Go, which is not in PATH"
	at=$(go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
	[ -n "$at" ] || die "no download of $module"
	rm -rf "$source"
	cp -r --no-preserve=mode "$at" "$source"
	cd "$source"
	echo "${V6_SINGULARITY_CE#v}" >VERSION
	{
		chmod +x makeit/* mlocal/scripts/* scripts/* &&
			bash mconfig --without-suid --without-libsubid --without-network --without-squashfuse --prefix=/usr &&
			make -C builddir && make -C builddir install DESTDIR="$1"
	} >"$log" 2>&1 || die "it could not be compiled: see $log"
	cd / && rm -rf "$source"
}

as_user() {
	if [ "$(id -un)" = "$V6_TEST_USER" ]; then "$@"; return; fi
	setpriv --reuid="$V6_TEST_USER" --regid="$(id -gn "$V6_TEST_USER")" --init-groups "$@"
}

open_fuse() {
	[ -e /dev/fuse ] || die "the machine has no /dev/fuse, with which images are mounted"
	if as_user test -w /dev/fuse; then return 0; fi
	[ "$(id -u)" = 0 ] || die "/dev/fuse is not open to $V6_TEST_USER, and only root can open it"
	stat -c %a /dev/fuse >"$fuse"
	chmod 666 /dev/fuse
	say "opened /dev/fuse to all, until down"
}

delegate() {
	local at controllers
	at=$(awk '$3 == "cgroup2" {print $2; exit}' /proc/mounts)
	if [ "$(id -u)" != 0 ] || [ -z "$at" ]; then return 0; fi
	controllers=" $(cat "$at/cgroup.controllers") "
	case $controllers in *' cpu '*) ;; *) return 0 ;; esac
	case $controllers in *' memory '*) ;; *) return 0 ;; esac
	echo '+cpu +memory' >"$at/cgroup.subtree_control"
	mkdir -p "$at/$group/suite"
	chown -R "$V6_TEST_USER" "$at/$group"
	echo "export V6_APPTAINER_CGROUP=$at/$group"
}

up() {
	local debs command=apptainer
	names
	case ${1:-} in '') ;; --singularity-ce) command=singularity ;; *) die "up: unknown option $1" ;; esac
	need_packages "Apptainer" patchelf squashfuse squashfs-tools fuse3 uidmap debian-archive-keyring
	[ $command = apptainer ] || need_packages "SingularityCE" libseccomp-dev pkgconf gcc make
	need_user
	open_fuse
	mkdir -p "$dir"
	chmod a+x "$work" "$dir"
	if ! [ -e "$dir/done" ] && [ $command = singularity ]; then
		cp -r "$(cached "singularity-ce-$V6_SINGULARITY_CE" "SingularityCE $V6_SINGULARITY_CE" compile)" "$root"
		touch "$dir/done"
	elif ! [ -e "$dir/done" ]; then
		debs=$(cached "apptainer-$V6_APPTAINER_SUITE" "Apptainer of Debian $V6_APPTAINER_SUITE" fetch)
		unpack "$debs" "$root"
		touch "$dir/done"
	fi
	say "$(as_user "$root/usr/bin/$command" --version) for $V6_TEST_USER"
	echo "export V6_APPTAINER=$root/usr/bin/$command V6_APPTAINER_USER=$V6_TEST_USER"
	delegate
}
fetch() { mkdir -p "$1" && download "$1"; }

# What runs from the program, or in a container that it made: no command line says so.
stop() {
	local proc exe
	names
	for proc in /proc/[0-9]*; do
		exe=$(readlink "$proc/exe" 2>/dev/null) || continue
		case $exe in "$dir"/*) ;; *) grep -qF "$dir/" "$proc/mountinfo" 2>/dev/null || continue ;; esac
		kill -KILL "${proc#/proc/}" 2>/dev/null || true
	done
}

down() {
	stop
	find /sys/fs/cgroup -depth -type d -path "*/$group*" -exec rmdir {} + 2>/dev/null || true
	remove_tree "$dir"
	if [ -e "$fuse" ]; then
		chmod "$(cat "$fuse")" /dev/fuse
		rm -f "$fuse"
	fi
}

service_main "$@"
