// Command cert-manager is the part of cert-manager's controller that signs
// CertificateRequests: its own controllers, from its own Go module.
//
// The tests of the CA's cert-manager upstream run it beside a real API server.
// What is left out are the controllers of Certificates, ACME and the other
// issuers, and the webhook.
//
//	cert-manager -kubeconfig FILE [-approve=false]
//
// It prints a line when its controllers are there, and ends when its standard
// input does: a closed pipe needs no signal handler and no luck.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cert-manager/cert-manager/pkg/controller"
	"github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	requestsca "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	requestsselfsigned "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	"github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	"github.com/cert-manager/cert-manager/pkg/controller/issuers"

	// The kinds of issuer register themselves by being imported.
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
)

var (
	kubeconfig = flag.String("kubeconfig", "", "how to reach the API server")
	approve    = flag.Bool("approve", true, "whether every request is approved, as by default")
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "cert-manager:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	factory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
		Kubeconfig:         *kubeconfig,
		KubernetesAPIQPS:   1000,
		KubernetesAPIBurst: 1000,
		IssuerOptions:      controller.IssuerOptions{ClusterResourceNamespace: "cert-manager"},
	})
	if err != nil {
		return err
	}
	names := []string{
		requestsca.CRControllerName,
		requestsselfsigned.CRControllerName,
		issuers.ControllerName,
		clusterissuers.ControllerName,
	}
	if *approve {
		names = append(names, approver.ControllerName)
	}
	failed := make(chan error, len(names)+1)
	for _, name := range names {
		made, err := controller.Known()[name](factory)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		go func() { failed <- made.Run(2, ctx) }()
	}
	shared, err := factory.Build()
	if err != nil {
		return err
	}
	shared.SharedInformerFactory.Start(ctx.Done())
	shared.KubeSharedInformerFactory.Start(ctx.Done())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		failed <- nil
	}()
	fmt.Println("running", time.Now().Format(time.RFC3339))
	return <-failed
}
