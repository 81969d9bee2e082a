// Command testcluster is every program of a single-node Kubernetes cluster in
// one binary: the first argument (or the name it was called by) says which.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	_ "time/tzdata" // time zones for CronJobs

	"github.com/spf13/cobra"
	helm "helm.sh/helm/v4/pkg/cmd"
	helmkube "helm.sh/helm/v4/pkg/kube"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // version metric
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

const usage = `usage: testcluster PROGRAM [ARGUMENTS]

Kubernetes' own programs, unchanged:
  kube-apiserver  kube-controller-manager  kube-scheduler  kubelet
  kube-proxy  kubectl
Helm's own, unchanged:
  helm
Made for the test cluster (each takes -h):
  etcd    one etcd member on loopback
  netpol  enforces NetworkPolicies on this node (kube-router's controller)
  pki     writes the certificates, keys and kubeconfigs of a cluster
  image   writes an image archive of the files given
  push    uploads an image archive to a registry
`

// upstream has the commands that Kubernetes itself builds.
var upstream = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"kube-proxy":              proxy.NewProxyCommand,
}

// own has the commands of this folder.
var own = map[string]func(args []string) error{
	"etcd":   runEtcd,
	"netpol": runNetpol,
	"pki":    runPKI,
	"image":  runImage,
	"push":   runPush,
}

func main() {
	name := filepath.Base(os.Args[0])
	if !known(name) {
		if len(os.Args) < 2 || !known(os.Args[1]) {
			fmt.Fprint(os.Stderr, usage)
			os.Exit(2)
		}
		name = os.Args[1]
		os.Args = append([]string{name}, os.Args[2:]...)
	}
	if run, ok := own[name]; ok {
		if err := run(os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "testcluster %s: %v\n", name, err)
			os.Exit(1)
		}
		return
	}
	if name == "kubectl" {
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
		return
	}
	if name == "helm" {
		runHelm()
		return
	}
	os.Exit(cli.Run(upstream[name]()))
}

// runHelm does what Helm's own main function does.
func runHelm() {
	helmkube.ManagedFieldsManager = "helm"
	command, err := helm.NewRootCmd(os.Stdout, os.Args[1:], helm.SetupLogging)
	if err != nil {
		slog.Warn("command failed", slog.Any("error", err))
		os.Exit(1)
	}
	if err := command.Execute(); err != nil {
		var failed helm.CommandError
		if errors.As(err, &failed) {
			os.Exit(failed.ExitCode)
		}
		os.Exit(1)
	}
}

func known(name string) bool {
	_, k := upstream[name]
	_, o := own[name]
	return k || o || name == "kubectl" || name == "helm"
}
