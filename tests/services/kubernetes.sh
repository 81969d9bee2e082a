#!/usr/bin/env bash
# A Kubernetes cluster for tests: one node with everything that makes a cluster, and others.
#
#   eval "$(kubernetes.sh up WORKDIR [--no-netpol])"   sets KUBECONFIG, V6_KUBERNETES_API
#                                                      (ADDRESS:PORT of the API without a login)
#                                                      V6_KUBERNETES_WORK (WORKDIR) and V6_HELM, a program
#   kubernetes.sh push WORKDIR ARCHIVE NAME:TAG        uploads an image archive to the two
#                                                      registries of registry.sh in WORKDIR
#   kubernetes/prepare WORKDIR PROBE.tar               what tests need in the cluster: a namespace,
#                                                      a node's account in it, images
#   kubernetes.sh forget WORKDIR   takes from the node every image of a repository v6-conformance/...
#   kubernetes.sh crash WORKDIR    kills the API server at once; `up` starts it again
#   kubernetes.sh machine WORKDIR NAME  adds a machine NAME, as node testnode-NAME, with a network
#                                  and a disk of its own. Its pods have to tolerate the taint
#                                  v6-tests/machine. Again, it brings back what does not run of it
#   kubernetes.sh fill WORKDIR NAME     fills its disk
#   kubernetes.sh lose WORKDIR NAME     kills its kubelet at once; its containers run on
#   kubernetes.sh remove WORKDIR NAME   takes it away again
#   kubernetes.sh compact WORKDIR  has etcd forget all versions but the newest
#   kubernetes.sh second-api WORKDIR [stop]
#                                  a second API server, that keeps nothing of what etcd forgets;
#                                  prints its ADDRESS:PORT without a login, or stops it again
#   kubernetes.sh oidc-api WORKDIR FILE|stop
#                                  an API server more, that also trusts the issuers of OpenID
#                                  Connect in FILE, an AuthenticationConfiguration; prints its
#                                  ADDRESS:PORT, with TLS, or stops it again
#   kubernetes.sh stop WORKDIR     ends the cluster and its pods; keeps its state
#   kubernetes.sh down WORKDIR     ends it and removes all that it left
#
# API server (RBAC on), controllers, scheduler, etcd, kubelet, kube-proxy and a controller
# that enforces NetworkPolicies, of Kubernetes' own source (kubernetes/go.mod has the
# versions), built as one program into the cache, with kubectl and helm in it; containerd and runc are Debian's, with
# state of our own. With --no-netpol policies are accepted and have no effect, as with many
# simple networks; `up` switches a running cluster. Claims of the class v6-tests get a folder of the
# machine each (kubernetes/volumes.py). One at a time on a machine: ports, the
# bridge and the cgroup have fixed names. Root is needed.
#
# A machine more is a network namespace, with containerd, kubelet, kube-proxy and the
# controller of NetworkPolicies of its own in it; kubernetes/machine.sh has it.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"
# shellcheck source=kubernetes/node.sh
. "$here/kubernetes/node.sh"
# shellcheck source=kubernetes/machine.sh
. "$here/kubernetes/machine.sh"

names() {
	dir=$work/kubernetes
	at=$dir suffix='' inside=() cgroup='' taints='' must_be_free=1%
	socket=$at/containerd/containerd.sock
	bridge=v6kube0
	node=testnode pods=10.244.0 services=10.96.0
	node_ip=$pods.1
	first_ip=$node_ip
	api_port=6443 etcd_port=23790
	kubernetes_version=v1.34.4 # as in kubernetes/go.mod

	mkdir -p "$dir"/{bin,etc/cni,containerd,images}
}

build_programs() {
	local version=k8s.io/component-base/version helm=helm.sh/helm/v4/pkg/chart minor
	minor=$(echo "$kubernetes_version" | cut -d. -f2)
	need_command go "building the cluster's programs (1.24 or newer)"
	mkdir -p "$1"
	(
		cd "$here/kubernetes" || exit 1
		export CGO_ENABLED=0 GOFLAGS="-mod=readonly -buildvcs=false"
		nice go build -trimpath -o "$1/pause" -ldflags '-s -w' ./pause
		nice go build -trimpath -o "$1/testcluster" -ldflags "-s -w \
			-X $version.gitVersion=$kubernetes_version -X $version.gitMajor=1 \
			-X $version.gitMinor=$minor \
			-X $helm/common.k8sVersionMajor=1 -X $helm/common.k8sVersionMinor=$minor \
			-X $helm/v2/lint/rules.k8sVersionMajor=1 -X $helm/v2/lint/rules.k8sVersionMinor=$minor" .
	)
}
need_command() { command -v "$1" >/dev/null || die "$1 is needed for $2"; }

programs() {
	local key name
	key=$(cat "$here"/kubernetes/go.{mod,sum} "$here"/kubernetes/*.go "$here"/kubernetes/pause/*.go | fingerprint)
	built=$(cached "kubernetes-$key" "Kubernetes $kubernetes_version, built from source (some minutes)" build_programs)
	for name in testcluster kubectl helm; do ln -sfn "$built/testcluster" "$dir/bin/$name"; done
}

kubectl() { "$dir/bin/kubectl" --kubeconfig "$dir/kubeconfig" "$@"; }
ctr() { command ctr --address "$socket" --namespace k8s.io "$@"; }

up() {
	local option enforce=1 pair
	names
	for option; do
		case $option in
			--no-netpol) enforce= ;;
			*) die "up: unknown option $option" ;;
		esac
	done
	[ "$(id -u)" = 0 ] || die "only root can start a cluster"
	[ -r /dev/kmsg ] || die "the kubelet needs /dev/kmsg, which cannot be read here"
	need_packages "a Kubernetes cluster" containerd runc containernetworking-plugins iproute2 iptables ipset nftables kmod
	programs
	for pair in etcd:$etcd_port kube-apiserver:$api_port kube-controller-manager:10257 kube-scheduler:10259 \
		kubelet:10248 kubelet:10250 kube-proxy:10249 kube-proxy:10256; do
		if ! alive "${pair%:*}" && (exec 3<>"/dev/tcp/127.0.0.1/${pair#*:}") 2>/dev/null; then
			die "port ${pair#*:}, which ${pair%:*} needs, is in use"
		fi
	done
	node_network
	node_containerd
	control_plane
	node_kubelet
	if [ -n "$enforce" ]; then
		node_netpol
	else
		stop_program netpol
		flush_netpol
	fi
	plain_api
	start_program volumes python3 "$here/kubernetes/volumes.py" "127.0.0.1:$(cat "$dir/api.port")" "$dir/volumes"
	wait_for volumes "a class of storage" kubectl get storageclass v6-tests
	echo "export KUBECONFIG=$dir/kubeconfig V6_KUBERNETES_API=127.0.0.1:$(cat "$dir/api.port") V6_KUBERNETES_WORK=$work V6_HELM=$dir/bin/helm"
}

node_netpol() {
	start_program "netpol$suffix" "${inside[@]}" "$dir/bin/testcluster" netpol -kubeconfig "$at/pki/admin.kubeconfig" \
		-node "$node" -service-cidr "$services.0/24"
	wait_for "netpol$suffix" "rules for network policies" "${inside[@]}" iptables -L KUBE-NWPLCY-DEFAULT -n
}

# The API on loopback without encryption or a login: tests put faults between.
plain_api() {
	[ -s "$dir/api.port" ] || free_port >"$dir/api.port"
	start_program kubectl-proxy "$dir/bin/kubectl" --kubeconfig "$dir/kubeconfig" proxy \
		--port "$(cat "$dir/api.port")" --reject-paths '^$'
	wait_for kubectl-proxy "the plain API" plain_answers
}
plain_answers() { (exec 3<>"/dev/tcp/127.0.0.1/$(cat "$dir/api.port")") 2>/dev/null; }

control_plane() {
	if ! [ -s "$dir/pki/sa.pub" ]; then
		"$dir/bin/testcluster" pki -dir "$dir/pki" -node "$node" -node-ip "$node_ip" \
			-service-ip "$services.1" -server "https://127.0.0.1:$api_port"
	fi
	ln -sfn pki/admin.kubeconfig "$dir/kubeconfig"
	start_program etcd "$dir/bin/testcluster" etcd -data-dir "$dir/etcd" \
		-client-url "http://127.0.0.1:$etcd_port" -peer-url "http://127.0.0.1:$((etcd_port + 1))"
	api_server kube-apiserver --secure-port="$api_port"
	wait_for kube-apiserver "an answer from the API server" kubectl get --raw /readyz
	start_program kube-controller-manager "$dir/bin/testcluster" kube-controller-manager \
		--kubeconfig="$dir/pki/kube-controller-manager.kubeconfig" \
		--authentication-kubeconfig="$dir/pki/kube-controller-manager.kubeconfig" \
		--authorization-kubeconfig="$dir/pki/kube-controller-manager.kubeconfig" \
		--bind-address=127.0.0.1 --leader-elect=false --use-service-account-credentials=true \
		--root-ca-file="$dir/pki/ca.crt" --service-account-private-key-file="$dir/pki/sa.key" \
		--cluster-signing-cert-file="$dir/pki/ca.crt" --cluster-signing-key-file="$dir/pki/ca.key" \
		--node-monitor-period=1s --node-monitor-grace-period=15s \
		--kube-api-qps=200 --kube-api-burst=400
	start_program kube-scheduler "$dir/bin/testcluster" kube-scheduler \
		--kubeconfig="$dir/pki/kube-scheduler.kubeconfig" \
		--authentication-kubeconfig="$dir/pki/kube-scheduler.kubeconfig" \
		--authorization-kubeconfig="$dir/pki/kube-scheduler.kubeconfig" \
		--bind-address=127.0.0.1 --leader-elect=false
}

api_server() { # NAME OPTION...
	local name=$1
	shift
	start_program "$name" "$dir/bin/testcluster" kube-apiserver "$@" \
		--etcd-servers="http://127.0.0.1:$etcd_port" --advertise-address="$node_ip" \
		--tls-cert-file="$dir/pki/apiserver.crt" --tls-private-key-file="$dir/pki/apiserver.key" \
		--client-ca-file="$dir/pki/ca.crt" \
		--kubelet-certificate-authority="$dir/pki/ca.crt" \
		--kubelet-client-certificate="$dir/pki/apiserver-kubelet-client.crt" \
		--kubelet-client-key="$dir/pki/apiserver-kubelet-client.key" \
		--kubelet-preferred-address-types=InternalIP \
		--service-account-issuer=https://kubernetes.default.svc.cluster.local \
		--service-account-key-file="$dir/pki/sa.pub" --service-account-signing-key-file="$dir/pki/sa.key" \
		--service-cluster-ip-range="$services.0/24" \
		--authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
		--allow-privileged=true
}

# What the first API server has in memory of versions that etcd has forgotten, it still tells.
second-api() {
	names
	case ${1:-} in
		'') ;;
		stop) stop_second_api && return 0 ;;
		*) die "second-api: unknown option $1" ;;
	esac
	alive kube-apiserver || die "our own API server does not run"
	[ -s "$dir/second-api.ports" ] || echo "$(free_port) $(free_port)" >"$dir/second-api.ports"
	read -r secure plain <"$dir/second-api.ports"
	# It leaves the address of the service `kubernetes` to the first.
	api_server second-apiserver --secure-port="$secure" --bind-address=127.0.0.1 --watch-cache=false \
		--endpoint-reconciler-type=none
	wait_for second-apiserver "an answer from the second API server" \
		kubectl --server "https://127.0.0.1:$secure" get --raw /readyz
	start_program second-proxy "$dir/bin/kubectl" --kubeconfig "$dir/kubeconfig" \
		--server "https://127.0.0.1:$secure" proxy --port "$plain" --reject-paths '^$'
	wait_for second-proxy "its plain API" bash -c "exec 3<>/dev/tcp/127.0.0.1/$plain"
	echo "127.0.0.1:$plain"
}

stop_second_api() {
	stop_program second-proxy
	stop_api_server second-apiserver
}

stop_api_server() {
	# It waits for its watches to end, and has nothing to write down.
	if alive "$1"; then kill -KILL "$(cut -d' ' -f1 "$work/run/$1.pid")"; fi
	stop_program "$1"
}

oidc-api() {
	local port
	names
	case ${1:-} in
		stop) stop_api_server oidc-apiserver && return 0 ;;
		/*) [ -r "$1" ] || die "oidc-api: $1 cannot be read" ;;
		*) die "oidc-api: the path of a file is needed, or stop" ;;
	esac
	alive kube-apiserver || die "our own API server does not run"
	# One that a test has left trusts the issuers of that.
	stop_api_server oidc-apiserver
	port=$(free_port)
	api_server oidc-apiserver --secure-port="$port" --bind-address=127.0.0.1 --endpoint-reconciler-type=none \
		--authentication-config="$1"
	wait_for oidc-apiserver "an answer from the API server that trusts other issuers" \
		kubectl --server "https://127.0.0.1:$port" get --raw /readyz
	echo "127.0.0.1:$port"
}

compact() {
	local at_version
	names
	need_packages "talking to etcd" curl
	at_version=$(etcd_call range '{"key":"AA=="}' | sed -n 's/.*"revision":"\([0-9]*\)".*/\1/p')
	[ -n "$at_version" ] || die "etcd does not tell its version"
	etcd_call compaction "{\"revision\":\"$at_version\",\"physical\":true}" >/dev/null || die "etcd was not compacted"
	say "etcd has forgotten what was before $at_version"
}
etcd_call() { # WHAT JSON
	curl -sS --fail-with-body --noproxy '*' --max-time 30 "http://127.0.0.1:$etcd_port/v3/kv/$1" -d "$2"
}

push() {
	local archive=$1 name=$2
	names
	[ -e "$work/registry/env" ] || die "push: there is no registry in $work: registry.sh up $work"
	# shellcheck source=/dev/null
	. "$work/registry/env"
	programs
	"$dir/bin/testcluster" push -archive "$archive" "$V6_REGISTRY_OPEN/$name"
	PUSH_PASSWORD=$V6_REGISTRY_PASSWORD "$dir/bin/testcluster" push -archive "$archive" \
		-user "$V6_REGISTRY_USER" "$V6_REGISTRY_PRIVATE/$name"
}

# An image has several names: each time by tag, by digest, and by that of its configuration.
forget() {
	local images digests
	names
	ctr version >/dev/null || die "our own containerd does not run"
	digests=$(ctr images list | awk '$1 ~ /\/v6-conformance\// {print $3}' | sort -u)
	[ -n "$digests" ] || return 0
	mapfile -t images < <(ctr images list | grep -F "$digests" | awk '{print $1}')
	# What has no name any more is gone when this returns.
	ctr images remove --sync "${images[@]}" >/dev/null || die "containerd keeps some of ${images[*]}"
}

crash() {
	local pid
	names
	alive kube-apiserver || die "our own API server does not run"
	read -r pid _ <"$work/run/kube-apiserver.pid"
	kill -KILL "$pid"
	while alive kube-apiserver; do sleep 0.02; done
}

stop() {
	local other
	names
	for other in "$work"/m/*.number; do
		[ ! -s "$other" ] || remove "$(basename "$other" .number)"
	done
	names
	stop_second_api
	stop_api_server oidc-apiserver
	# Nothing may start pods any more, before their processes are ended.
	for name in volumes kubectl-proxy netpol kube-proxy kube-scheduler kube-controller-manager kubelet; do stop_program $name; done
	end_pods
	for name in kube-containerd kube-apiserver etcd; do stop_program $name; done
	forget_containers
	restore_network
}

down() {
	stop
	rm -rf "$work/m"
	remove_tree "$dir"
}

service_main "$@"
