// Command kubernetes is every program of a Kubernetes cluster in one binary:
// it runs as the one whose name it was started under.
//
// The tests talk to a real API server, and a cluster's programs are not to be
// had as packages of an operating system. Their Go modules are. Built as one
// binary they share what they have in common, so that one link takes the place
// of seven; the name picks the program, as busybox does it:
//
//	ln -s kubernetes kube-apiserver && ./kube-apiserver --version
//	./kubernetes kube-apiserver --version
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	// Each component registers its logging formats and metrics by being
	// imported, as its own main does.
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
)

// programs maps the name of each program to what runs it.
var programs = map[string]func(){
	"etcd":                    func() { etcdmain.Main(os.Args) },
	"kube-apiserver":          command(apiserver.NewAPIServerCommand),
	"kube-controller-manager": command(controllermanager.NewControllerManagerCommand),
	"kube-scheduler":          command(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
	// The kubelet sets up its own handling of signals. Given a context that
	// does so as well, it panics: one channel, closed twice.
	"kubelet":    command(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
	"kube-proxy": command(proxy.NewProxyCommand),
	"kubectl":    command(kubectl.NewDefaultKubectlCommand),
}

func command(build func() *cobra.Command) func() {
	return func() { os.Exit(cli.Run(build())) }
}

func main() {
	run, known := programs[filepath.Base(os.Args[0])]
	if !known && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		run, known = programs[os.Args[0]]
	}
	if !known {
		names := slices.Sorted(maps.Keys(programs))
		fmt.Fprintf(os.Stderr, "kubernetes: say which program to run, by the name of the link or the first argument: %s\n",
			strings.Join(names, ", "))
		os.Exit(2)
	}
	run()
}
