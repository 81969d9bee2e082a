# shellcheck shell=bash
# shellcheck disable=SC2154
# A node of the test cluster: its network, containerd and kubelet, and how all that
# they leave in the kernel is taken back. Read by ../kubernetes.sh, which sets the names:
#
#   at        the folder of the node's own state
#   node      its name in the cluster
#   suffix    what the names of its programs end in
#   inside    the words before a command that has to run in the node's network
#   pods      the first three bytes of its pods' addresses; node_ip is its own
#   taints    what keeps pods away that do not tolerate it

# Write the input to a file unless it holds that already: a program may end when its
# configuration changes, as kube-proxy does.
write() {
	local text
	text=$(cat)
	[ "$text" = "$(cat "$1" 2>/dev/null)" ] || echo "$text" >"$1"
}

# Set a kernel setting, keeping the old value for `stop`: set_sysctl NAME [VALUE]
set_sysctl() {
	local file=/proc/sys/${1//.//}
	[ -e "$file" ] || return 0
	grep -q "^$1=" "$dir/sysctl" 2>/dev/null || echo "$1=$(cat "$file")" >>"$dir/sysctl"
	if [ $# -lt 2 ]; then return 0; fi
	echo "$2" >"$file" || die "cannot set $1=$2"
}

node_network() {
	local name
	modprobe -a br_netfilter overlay nf_tables 2>/dev/null || true # may be built in
	[ -e /proc/sys/net/bridge/bridge-nf-call-iptables ] ||
		die "the kernel has no br_netfilter: NetworkPolicies between pods could not be enforced"
	set_sysctl net.ipv4.ip_forward 1
	set_sysctl net.bridge.bridge-nf-call-iptables 1
	set_sysctl fs.inotify.max_user_instances 8192
	# The kubelet sets these itself.
	for name in vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops \
		kernel.keys.root_maxkeys kernel.keys.root_maxbytes; do
		set_sysctl "$name"
	done
	if ! ip link show "$bridge" >/dev/null 2>&1; then
		[ -z "$(ip -4 route show "$pods.0/24")" ] || die "this machine has a route to $pods.0/24 already"
	fi
	pod_network
	let_through "$bridge"
}

# Where a firewall drops what it doesn't know (as Docker's does), let pods talk.
let_through() { # LINK
	local direction
	for direction in -i -o; do
		iptables -C FORWARD $direction "$1" -m comment --comment "$1" -j ACCEPT 2>/dev/null ||
			iptables -A FORWARD $direction "$1" -m comment --comment "$1" -j ACCEPT
	done
}
let_through_no_more() { # LINK
	local direction
	for direction in -i -o; do
		while iptables -D FORWARD $direction "$1" -m comment --comment "$1" -j ACCEPT 2>/dev/null; do :; done
	done
}

# The bridge of a node's pods, and how they are joined to it.
pod_network() {
	if ! "${inside[@]}" ip link show "$bridge" >/dev/null 2>&1; then
		"${inside[@]}" ip link add "$bridge" type bridge
		"${inside[@]}" ip addr add "$node_ip/24" dev "$bridge"
		"${inside[@]}" ip link set "$bridge" up
	fi
	write "$at/etc/cni/10-tests.conflist" <<-END
		{
		  "cniVersion": "0.4.0", "name": "v6-tests",
		  "plugins": [
		    {"type": "bridge", "bridge": "$bridge", "isGateway": true, "hairpinMode": true,
		     "ipam": {"type": "host-local", "dataDir": "$at/ipam",
		              "ranges": [[{"subnet": "$pods.0/24", "gateway": "$node_ip"}]],
		              "routes": [{"dst": "0.0.0.0/0"}]}},
		    {"type": "portmap", "capabilities": {"portMappings": true}}
		  ]
		}
	END
}

# containerd with root, state and socket of its own.
node_containerd() {
	local pause=localhost/v6-tests-pause:1 tree=$at/images/pause
	write "$at/etc/containerd.toml" <<-END
		version = 2
		root = "$at/containerd/root"
		state = "$at/containerd/state"
		disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
		  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.zfs",
		  "io.containerd.snapshotter.v1.devmapper"]
		[grpc]
		  address = "$socket"
		[plugins."io.containerd.grpc.v1.cri"]
		  sandbox_image = "$pause"
		  # A forwarded port that is silent for so long is closed: four hours by default.
		  stream_idle_timeout = "45s"
		  # Lowering a process's OOM score needs a right that not every machine gives.
		  restrict_oom_score_adj = true
		  netns_mounts_under_state_dir = true
		  [plugins."io.containerd.grpc.v1.cri".cni]
		    bin_dir = "/usr/lib/cni"
		    conf_dir = "$at/etc/cni"
		  [plugins."io.containerd.grpc.v1.cri".containerd]
		    snapshotter = "overlayfs"
		    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
		      runtime_type = "io.containerd.runc.v2"
		      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
		        SystemdCgroup = false
		        Root = "$at/runc"
	END
	start_program "kube-containerd$suffix" "${inside[@]}" containerd --config "$at/etc/containerd.toml"
	wait_for "kube-containerd$suffix" "an answer from containerd" ctr version
	if [ -z "$(ctr images list -q "name==$pause")" ]; then
		mkdir -p "$tree"
		cp "$built/pause" "$tree/pause"
		"$dir/bin/testcluster" image -name "$pause" -rootfs "$tree" -out "$tree.tar" /pause >/dev/null
		ctr images import "$tree.tar" >/dev/null || die "containerd did not take the image of pause"
	fi
}

node_kubelet() {
	write "$at/etc/kubelet.yaml" <<-END
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		address: $node_ip
		healthzBindAddress: 127.0.0.1
		readOnlyPort: 0
		authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $at/pki/ca.crt}}
		authorization: {mode: Webhook}
		tlsCertFile: $at/pki/kubelet.crt
		tlsPrivateKeyFile: $at/pki/kubelet.key
		containerRuntimeEndpoint: unix://$socket
		cgroupDriver: cgroupfs
		failCgroupV1: false
		failSwapOn: false
		cgroupRoot: /${cgroup:-}
		registerWithTaints: [${taints:-}]
		# A machine that says nothing is noticed soon: see the controllers' grace period.
		nodeLeaseDurationSeconds: 4
		# The defaults of these two need rights that not every machine gives.
		oomScoreAdj: 0
		maxOpenFiles: $(ulimit -Hn | sed s/unlimited/1000000/)
		makeIPTablesUtilChains: false
		podLogsDir: $at/pod-logs
		# What a machine keeps of a container's log: 10Mi unless its owner says otherwise.
		containerLogMaxSize: 256Mi
		volumePluginDir: $at/volume-plugins
		clusterDomain: cluster.local
		maxPods: 200
		serializeImagePulls: false
		registryPullQPS: 0
		eventRecordQPS: 0
		kubeAPIQPS: 200
		kubeAPIBurst: 400
		imageGCHighThresholdPercent: 100
		imageGCLowThresholdPercent: 99
		evictionHard: {memory.available: 200Mi, nodefs.available: $must_be_free, imagefs.available: $must_be_free}
		evictionPressureTransitionPeriod: 1s
	END
	start_program "kubelet$suffix" "${inside[@]}" "$dir/bin/testcluster" kubelet --config="$at/etc/kubelet.yaml" \
		--kubeconfig="$at/pki/kubelet.kubeconfig" --root-dir="$at/kubelet" \
		--hostname-override="$node" --node-ip="$node_ip" --node-labels="v6-tests/machine=$node"
	write "$at/etc/kube-proxy.yaml" <<-END
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		clientConnection: {kubeconfig: $at/pki/kube-proxy.kubeconfig}
		hostnameOverride: $node
		mode: nftables
		clusterCIDR: $pods.0/24
		healthzBindAddress: 127.0.0.1:10256
		metricsBindAddress: 127.0.0.1:10249
		oomScoreAdj: 0
		conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
	END
	start_program "kube-proxy$suffix" "${inside[@]}" "$dir/bin/testcluster" kube-proxy --config="$at/etc/kube-proxy.yaml"
	wait_for "kubelet$suffix" "a ready node" node_ready
	# Services are served once the first, the API server's own, is.
	wait_for "kube-proxy$suffix" "rules for services" "${inside[@]}" nft get element ip kube-proxy cluster-ips "{ $services.1 }"
}
node_ready() { # the kubelet answers now, and has said that the node is ready
	[ "$(kubectl get --raw "/api/v1/nodes/$node/proxy/healthz")" = ok ] &&
		[ "$(kubectl get node "$node" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ] &&
		kubectl -n default get serviceaccount default
}

# --- Taking it back ----------------------------------------------------------------
# The shims of this containerd name its socket; each pod has one.
shims() {
	local file argument pid previous
	for file in /proc/[0-9]*/cmdline; do
		pid=${file#/proc/} pid=${pid%/cmdline} previous=
		[ "$(cat "/proc/$pid/comm" 2>/dev/null)" = containerd-shim ] || continue
		while IFS= read -r -d '' argument; do
			if [ "$previous" = -address ] && [ "$argument" = "$socket" ]; then echo "$pid"; fi
			previous=$argument
		done 2>/dev/null <"$file"
	done
}
in_pods() {
	local pid
	for pid in $(shims); do cat "/proc/$pid/task/$pid/children" 2>/dev/null || true; done
}
end_pods() {
	local left pid tried
	for tried in $(seq 50); do
		left=$(in_pods)
		[ -n "${left// /}" ] || break
		# The first process of a container takes all others in it along.
		# shellcheck disable=SC2086
		kill -KILL $left 2>/dev/null || true
		sleep 0.1
	done
	left=$(in_pods)
	[ -z "${left// /}" ] || say "after $tried tries these processes of pods did not end: $left"
	for pid in $(shims); do kill -KILL "$pid" 2>/dev/null || true; done
}

# What containers have left: mounts, the last first, and state; images and volumes stay.
forget_containers() {
	local mount root roots=(/sys/fs/cgroup/*/kubepods /sys/fs/cgroup/kubepods)
	[ -z "${cgroup:-}" ] || roots=(/sys/fs/cgroup/*/"$cgroup" "/sys/fs/cgroup/$cgroup")
	while read -r mount; do umount "$mount" 2>/dev/null || umount -l "$mount" || say "cannot unmount $mount"; done \
		< <(awk -v d="$at/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | tac)
	rm -rf "$at/containerd/state" "$at/runc" "$at/ipam" "$socket" "$socket.ttrpc"
	# The links that the kubelet keeps to the logs of containers.
	find /var/log/containers -type l -lname "$at/pod-logs/*" -delete 2>/dev/null || true
	for root in "${roots[@]}"; do
		[ -d "$root" ] || continue
		find "$root" -depth -type d -exec rmdir {} + 2>/dev/null || true
		[ ! -d "$root" ] || say "cannot remove the cgroup $root"
	done
}

# Remove what the controller of network policies left in the kernel.
flush_netpol() {
	local rules kept set
	rules=$(iptables-save -c -t filter 2>/dev/null) || rules=
	kept=$(grep -vE 'KUBE-(ROUTER|POD-FW|NWPLCY)' <<<"$rules") || true
	if [ "$rules" != "$kept" ]; then iptables-restore -c <<<"$kept"; fi
	for set in $(ipset list -n 2>/dev/null | grep -E '^(inet6:)?KUBE-(SRC|DST)-'); do
		ipset destroy "$set" || true
	done
}

restore_network() {
	local link name value
	command -v iptables >/dev/null || return 0
	flush_netpol
	nft delete table ip kube-proxy 2>/dev/null || true
	nft delete table ip6 kube-proxy 2>/dev/null || true
	let_through_no_more "$bridge"
	if ip link show "$bridge" >/dev/null 2>&1; then
		# A pod's end of a pair goes with its namespace; the other end may linger.
		for link in $(ip -o link show master "$bridge" | sed 's/^[0-9]*: \([^@:]*\).*/\1/'); do
			ip link delete "$link" 2>/dev/null || true
		done
		ip link delete "$bridge" || say "cannot remove the bridge $bridge"
	fi
	if [ -e "$dir/sysctl" ]; then
		while IFS='=' read -r name value; do
			echo "$value" >"/proc/sys/${name//.//}" || say "cannot set $name back to $value"
		done 2>/dev/null <"$dir/sysctl"
		rm -f "$dir/sysctl"
	fi
}
