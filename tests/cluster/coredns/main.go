// Command coredns is CoreDNS with the plugins that answer a cluster's names,
// and no others: a quarter of the size, and of the time to build, of the one
// that can also ask the name servers of every cloud.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	// Each plugin registers itself by being imported.
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
)

func init() {
	// A query passes the plugins in this order, which is CoreDNS's own.
	dnsserver.Directives = []string{
		"health", "ready", "prometheus", "errors", "log", "cache", "loadbalance", "kubernetes",
	}
}

func main() { coremain.Run() }
