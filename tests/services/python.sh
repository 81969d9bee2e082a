#!/usr/bin/env bash
# The Python 3.13 of the tests, and virtual environments with it, in the cache.
#
#   python.sh python       prints the path of the interpreter
#   python.sh hq           prints the Python of an environment with vantage6-hq,
#                          vantage6-client and uWSGI
#   python.sh node         prints the Python of an environment with vantage6-node, the
#                          Python node that tests/bench/nodes.py compares with
#
# The interpreter is Debian trixie's with its libraries, unpacked and started
# through its own dynamic loader: nothing is installed, the system's Python does
# not matter. The Python image of tests/algorithms is made of the same files.
# Environment: V6_VERSION (5.0.3); DEBIAN_MIRROR (the one in the machine's apt
# sources, else http://deb.debian.org/debian).
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"
: "${V6_VERSION:=5.0.3}"
suite=trixie
triplet=$(uname -m)-linux-gnu

debian_mirror() {
	local found
	found=$(sed -n 's/^URIs: *\([^ ]*\/debian\)\/\?$/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -n 1)
	[ -n "$found" ] || found=$(awk '$1 == "deb" {for (i = 2; i <= NF; i++) if ($i ~ /^http.*\/debian\/?$/) {print $i; exit}}' /etc/apt/sources.list 2>/dev/null)
	echo "${DEBIAN_MIRROR:-${found:-http://deb.debian.org/debian}}"
}

# Unpack Debian packages with all that they depend on: unpack FOLDER LOOSE... -- PACKAGE...
# LOOSE ones come without their dependencies.
unpack() {
	local folder=$1 state=$1.apt loose=() deb options
	shift
	while [ "$1" != -- ]; do
		loose+=("$1")
		shift
	done
	shift
	# pip of Debian's packages reads the certificates that ca-certificates installs.
	need_packages "unpacking Debian packages" debian-archive-keyring ca-certificates
	mkdir -p "$folder" "$state"/{lists,archives}/partial
	: >"$state/status"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(debian_mirror) $suite main" >"$state/sources.list"
	options=(-q -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=/dev/null
		-o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
		-o "Dir::State::lists=$state/lists" -o "Dir::State::status=$state/status"
		-o "Dir::Cache=$state" -o "Dir::Cache::archives=$state/archives"
		-o APT::Install-Recommends=false -o Acquire::Languages=none -o APT::Sandbox::User=root)
	{
		apt-get "${options[@]}" update
		apt-get "${options[@]}" install -y --download-only "$@"
		[ ${#loose[@]} = 0 ] || (cd "$state/archives" && apt-get "${options[@]}" download "${loose[@]}")
	} >"$cache/apt-python.log" 2>&1 || die "apt-get failed: see $cache/apt-python.log"
	for deb in "$state"/archives/*.deb; do dpkg-deb -x "$deb" "$folder"; done
	rm -rf "$state"
}

build_python() {
	unpack "$1" libpython3.13-dev libssl-dev -- python3.13 python3.13-venv ca-certificates libstdc++6
	# --argv0 keeps the name that it was called by, which is how a virtual
	# environment is recognised.
	cat >"$1/usr/bin/python3.13-here" <<-END
		#!/bin/sh
		bin=\$(readlink -f "\$0") && lib=\${bin%/bin/*}/lib
		exec "\$lib/$triplet/$(basename "$1"/usr/lib/"$triplet"/ld-linux-*.so.*)" --argv0 "\$0" \\
			--library-path "\$lib/$triplet" "\${bin%-here}" "\$@"
	END
	chmod 755 "$1/usr/bin/python3.13-here"
	"$1/usr/bin/python3.13-here" -c 'import ssl, sqlite3, venv, ctypes' || die "the unpacked Python does not start"
}
python_tree() {
	cached "python-3.13-$(declare -f unpack build_python | fingerprint)" "Python 3.13 (Debian $suite)" build_python
}

# An environment with pip in it: make_venv FOLDER TREE
make_venv() {
	local wheel
	wheel=$(echo "$2"/usr/share/python-wheels/pip-*.whl)
	"$2/usr/bin/python3.13-here" -m venv --without-pip "$1"
	PYTHONPATH=$wheel "$1/bin/python" -m pip install -q --no-index "$wheel"
}

build_hq() {
	local tree=$2 py=$1/bin/python log=$cache/hq-build.log pip
	pip=("$py" -m pip --disable-pip-version-check --no-cache-dir install -q --prefer-binary)
	command -v cc >/dev/null || need_packages "building uWSGI" gcc libc6-dev
	make_venv "$1" "$tree"
	# uWSGI's wheel lacks OpenSSL and so refuses WebSocket upgrades: build it, as
	# vantage6's own image does; beside the downloads, since it takes as long.
	UWSGI_PROFILE_OVERRIDE=ssl=true CFLAGS="-I$tree/usr/include -I$tree/usr/include/$triplet" LDFLAGS="-L$tree/usr/lib/$triplet" \
		"${pip[@]}" --no-binary pyuwsgi --target "$1.uwsgi" pyuwsgi >"$log" 2>&1 &
	# vantage6-hq imports vantage6.backend.common without declaring it.
	"${pip[@]}" "vantage6-hq==$V6_VERSION" "vantage6-backend-common==$V6_VERSION" "vantage6-common==$V6_VERSION" \
		"vantage6-client==$V6_VERSION" websocket-client
	# Only for the data sets that it ships: without what it would need to run.
	"${pip[@]}" --no-deps lifelines
	wait $! || die "uWSGI was not built: see $log"
	cp -r "$1.uwsgi"/. "$("$py" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	rm -rf "$1.uwsgi"
	"$py" -c 'import pyuwsgi; pyuwsgi.run()' --help | grep -q -- --https || die "uWSGI was built without OpenSSL: see $log"
}

# An environment of its own: the node wants another python-socketio than HQ.
build_node() {
	make_venv "$1" "$2"
	"$1/bin/python" -m pip --disable-pip-version-check --no-cache-dir install -q --prefer-binary \
		"vantage6-node==$V6_VERSION" "vantage6-common==$V6_VERSION" "vantage6-client==$V6_VERSION" \
		"vantage6-algorithm-tools==$V6_VERSION"
	"$1/bin/python" -c 'from vantage6.node.cli.node import cli_node' || die "the Python node does not start"
}

case ${1:-} in
	tree) python_tree ;;
	python)
		tree=$(python_tree)
		echo "$tree/usr/bin/python3.13-here"
		;;
	hq)
		tree=$(python_tree)
		key=$({ declare -f make_venv build_hq && echo "$tree"; } | fingerprint)
		environment=$(cached "hq-$V6_VERSION-$key" "vantage6 HQ and client $V6_VERSION" build_hq "$tree")
		echo "$environment/bin/python"
		;;
	node)
		tree=$(python_tree)
		key=$({ declare -f make_venv build_node && echo "$tree"; } | fingerprint)
		environment=$(cached "node-$V6_VERSION-$key" "the Python node $V6_VERSION" build_node "$tree")
		echo "$environment/bin/python"
		;;
	*) die "usage: python.sh tree|python|hq|node" ;;
esac
