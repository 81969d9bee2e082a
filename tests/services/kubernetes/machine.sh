# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154
# One machine more for the test cluster: a network namespace, joined to this machine by a
# pair of links, in which a containerd, a kubelet and what goes with them have folders,
# a cgroup and certificates of their own. Read by ../kubernetes.sh.
#
# Its pods have a subnet of their own, behind it; both machines' pods reach each other, as
# in any cluster. The registries of the tests, on this machine's loopback, are where they
# are for it, too: a rule of the kernel takes such connections across.

# The names of machine NAME, for the functions of node.sh: machine_names NAME
machine_names() {
	case $1 in '' | *[!a-z0-9-]*) die "a machine's name has only a-z, 0-9 and -: $1" ;; esac
	names
	# Not deeper: the kubelet has sockets below it, whose paths have room for 107 bytes.
	at=$work/m/$1
	suffix=-$1
	node=testnode-$1
	cgroup=v6kube-$1
	namespace=v6kube-$1
	# Not `ip netns exec`, which hides the control groups.
	inside=(nsenter "--net=/run/netns/$namespace" --)
	socket=$at/containerd.sock
	must_be_free=20%
	taints="{key: v6-tests/machine, value: $1, effect: NoSchedule}"
	number=$(cat "$at.number" 2>/dev/null) || number=''
	machine_addresses
}
machine_addresses() {
	[ -n "$number" ] || return 0
	pods=10.244.$number
	node_ip=$pods.1
	# Its link on this machine, and both ends' addresses.
	link=v6kube$number
	here_ip=10.244.250.$((4 * number + 1)) there_ip=10.244.250.$((4 * number + 2))
}

machine() { # NAME
	local other
	machine_names "$1"
	alive kube-apiserver || die "the cluster does not run"
	programs
	mkdir -p "$at"
	# A small disk, in memory.
	mountpoint -q "$at" || mount -t tmpfs -o size=512m,mode=700 "machine-$1" "$at" || die "$at cannot be mounted"
	mkdir -p "$at"/{etc/cni,containerd,images}
	if [ -z "$number" ]; then
		number=1
		for other in "$work"/m/*.number; do
			if [ -s "$other" ] && [ "$(cat "$other")" -ge "$number" ]; then number=$(($(cat "$other") + 1)); fi
		done
		[ $number -lt 60 ] || die "there are too many machines"
		echo "$number" >"$at.number"
		machine_addresses
	fi
	machine_network
	machine_cgroup
	if ! [ -s "$at/pki/kubelet.kubeconfig" ]; then
		"$dir/bin/testcluster" pki -dir "$at/pki" -join "$dir/pki" -node "$node" -node-ip "$node_ip" \
			-server "https://$first_ip:$api_port"
	fi
	node_containerd
	node_kubelet
	node_netpol
	echo "$node"
}

machine_network() {
	if ! [ -e "/run/netns/$namespace" ]; then
		ip netns add "$namespace"
		ip link add "$link" type veth peer name uplink netns "$namespace"
		ip addr add "$here_ip/30" dev "$link"
		ip link set "$link" up
		"${inside[@]}" sh -ec "
			ip link set lo up
			ip addr add $there_ip/30 dev uplink
			ip link set uplink up
			ip route add default via $here_ip
			echo 1 >/proc/sys/net/ipv4/ip_forward
			echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
			echo 1 >/proc/sys/net/ipv4/conf/uplink/route_localnet" || die "the network of $namespace cannot be set up"
		ip route add "$pods.0/24" via "$there_ip" dev "$link"
		echo 1 >"/proc/sys/net/ipv4/conf/$link/route_localnet"
	fi
	let_through "$link"
	pod_network
	# Ports as free_port gives them.
	"${inside[@]}" nft -f - <<-END
		table ip v6kube-registries
		delete table ip v6kube-registries
		table ip v6kube-registries {
			chain out {
				type nat hook output priority -100;
				ip daddr 127.0.0.1 tcp dport 20000-31999 dnat to $here_ip
			}
			chain last {
				type nat hook postrouting priority 100;
				oifname "uplink" ip saddr 127.0.0.1 masquerade
			}
		}
	END
	nft -f - <<-END
		table ip $link
		delete table ip $link
		table ip $link {
			chain in {
				type nat hook prerouting priority -100;
				iifname "$link" ip saddr $there_ip ip daddr $here_ip tcp dport 20000-31999 dnat to 127.0.0.1
			}
		}
	END
}

machine_cgroup() {
	local root controller
	if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
		mkdir -p "/sys/fs/cgroup/$cgroup"
		for controller in $(cat /sys/fs/cgroup/cgroup.subtree_control); do
			echo "+$controller" >"/sys/fs/cgroup/$cgroup/cgroup.subtree_control" || true
		done
		return 0
	fi
	for root in /sys/fs/cgroup/*/; do
		[ -e "$root/cgroup.procs" ] || continue
		mkdir -p "$root/$cgroup"
		if [ -e "$root/cpuset.cpus" ]; then
			# Empty in a new one; nothing could run there.
			cat "$root/cpuset.cpus" >"$root/$cgroup/cpuset.cpus"
			cat "$root/cpuset.mems" >"$root/$cgroup/cpuset.mems"
		fi
	done
}

# All that is free, but for a tenth of what has to be.
fill() { # NAME
	local free size
	machine_names "$1"
	[ -n "$number" ] || die "there is no machine $1"
	read -r free size < <(df --output=avail,size -B 1024 "$at" | tail -n 1)
	fallocate -l $(((free - size / 50) * 1024)) "$at/fill" || die "the disk of $1 cannot be filled"
}

lose() { # NAME
	local pid
	machine_names "$1"
	alive "kubelet$suffix" || die "the kubelet of $1 does not run"
	read -r pid _ <"$work/run/kubelet$suffix.pid"
	kill -KILL "$pid"
	while alive "kubelet$suffix"; do sleep 0.02; done
}

remove() { # NAME
	local name
	machine_names "$1"
	[ -n "$number" ] || die "there is no machine $1"
	for name in netpol kube-proxy kubelet; do stop_program "$name$suffix"; done
	if alive kube-apiserver; then
		kubectl delete node "$node" --ignore-not-found >&2 || say "the cluster still has the node $node"
	fi
	end_pods
	stop_program "kube-containerd$suffix"
	forget_containers
	let_through_no_more "$link"
	nft delete table ip "$link" 2>/dev/null || true
	# Its end there, and all that is in the namespace, go with it.
	ip link delete "$link" 2>/dev/null || true
	[ ! -e "/run/netns/$namespace" ] || ip netns delete "$namespace" || say "cannot remove the network of $1"
	if mountpoint -q "$at"; then umount "$at" || umount -l "$at" || say "cannot unmount $at"; fi
	remove_tree "$at"
	rm -f "$at.number"
}
