#!/usr/bin/env bash
# Two image registries on 127.0.0.1, plain HTTP: one open, one that asks for a
# password. Docker takes a registry on a loopback address without TLS.
#
#   eval "$(registry.sh up WORKDIR)"     sets V6_REGISTRY_OPEN and V6_REGISTRY_PRIVATE
#                                        (ADDRESS:PORT), V6_REGISTRY_USER and _PASSWORD,
#                                        and V6_REGISTRY_STALLED, where nobody listens: for
#                                        a test's way to the open one
#   registry.sh push WORKDIR IMAGE NAME  puts an image of the engine at DOCKER_HOST into
#                                        both registries, as NAME (e.g. probe:1)
#   registry.sh stop WORKDIR             ends both, keeps their images and ports: what
#                                        pulls from them finds them unreachable
#   registry.sh down WORKDIR             ends both and removes all that they left
#
# The program is that of Debian's package docker-registry, unpacked into the cache:
# it is not installed, so no service of it ever starts by itself.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"

build_registry() {
	mkdir -p "$1.deb"
	(
		cd "$1.deb" || exit 1
		options=(-q -o APT::Sandbox::User=root)
		apt-get "${options[@]}" download docker-registry ||
			{ apt-get "${options[@]}" update && apt-get "${options[@]}" download docker-registry; }
	) >"$cache/apt-registry.log" 2>&1 || die "apt-get failed: see $cache/apt-registry.log"
	dpkg-deb -x "$1.deb"/docker-registry_*.deb "$1"
	rm -rf "$1.deb"
	"$1/usr/bin/docker-registry" --version
}

start_registry() { # NAME PORT
	local auth=
	[ "$1" = open ] || auth="auth: {htpasswd: {realm: v6-node tests, path: $dir/htpasswd}}"
	cat >"$dir/$1.yaml" <<-END
		version: 0.1
		log: {level: info, accesslog: {disabled: false}}
		storage: {filesystem: {rootdirectory: $dir/$1}, delete: {enabled: true}}
		http: {addr: 127.0.0.1:$2}
		$auth
	END
	start_program "registry-$1" "$tree/usr/bin/docker-registry" serve "$dir/$1.yaml"
	wait_for "registry-$1" "an answer from the $1 registry" answers "$2"
}
answers() { # the private one answers 401
	local code
	code=$(curl -s --noproxy '*' -o /dev/null -w '%{http_code}' "http://127.0.0.1:$1/v2/") || return 1
	[ "$code" = 200 ] || [ "$code" = 401 ]
}

up() {
	local salt
	dir=$work/registry
	need_packages "talking to a registry" curl
	tree=$(cached "docker-registry-$(. /etc/os-release && echo "$VERSION_ID")" "the image registry (Debian's docker-registry)" build_registry)
	mkdir -p "$dir"
	if ! [ -e "$dir/env" ]; then
		V6_REGISTRY_PASSWORD=$(od -An -tx1 -N12 /dev/urandom | tr -d ' \n')
		salt=$(od -An -tx1 -N11 /dev/urandom | tr -d ' \n')
		# The C library knows bcrypt, which is the only form that the registry takes.
		printf 'tester:%s\n' "$(P=$V6_REGISTRY_PASSWORD S=$salt perl -e 'print crypt($ENV{P}, "\$2b\$05\$$ENV{S}")')" >"$dir/htpasswd"
		cat >"$dir/env.part" <<-END
			export V6_REGISTRY_OPEN=127.0.0.1:$(free_port) V6_REGISTRY_PRIVATE=127.0.0.1:$(free_port)
			export V6_REGISTRY_STALLED=127.0.0.1:$(free_port)
			export V6_REGISTRY_USER=tester V6_REGISTRY_PASSWORD=$V6_REGISTRY_PASSWORD
		END
		mv "$dir/env.part" "$dir/env"
	fi
	# shellcheck source=/dev/null
	. "$dir/env"
	start_registry open "${V6_REGISTRY_OPEN#*:}"
	start_registry private "${V6_REGISTRY_PRIVATE#*:}"
	cat "$dir/env"
}

push() {
	local image=$1 name=${2%:*} tag=${2##*:} registry auth answer
	# shellcheck source=/dev/null
	. "$work/registry/env"
	auth=$(printf '{"username":"%s","password":"%s"}' "$V6_REGISTRY_USER" "$V6_REGISTRY_PASSWORD" | base64 -w 0)
	for registry in "$V6_REGISTRY_OPEN" "$V6_REGISTRY_PRIVATE"; do
		engine POST "/images/$image/tag?repo=$registry/$name&tag=$tag" || die "cannot tag $image for $registry"
		answer=$(engine POST "/images/$registry/$name/push?tag=$tag" -H "X-Registry-Auth: $auth") || die "push to $registry: $answer"
		# The engine answers 200 and then tells an error in the stream.
		case $answer in *'"errorDetail"'*) die "push to $registry: $answer" ;; esac
		engine DELETE "/images/$registry/$name:$tag?noprune=1" >/dev/null
		say "pushed $registry/$name:$tag"
	done
}

stop() {
	stop_program registry-open
	stop_program registry-private
}

down() {
	stop
	remove_tree "$work/registry"
}

service_main "$@"
