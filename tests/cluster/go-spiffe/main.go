// Programs that know nothing of Bulkhead: go-spiffe as its users use it, and
// Istio's own client of the CSR API.
//
//	go-spiffe watch AUDIENCE             says each SVID that it gets
//	go-spiffe token AUDIENCE             says a JWT-SVID
//	go-spiffe serve CLIENT               an HTTPS server for one SPIFFE ID
//	go-spiffe call SERVER                an HTTPS client of one SPIFFE ID
//	go-spiffe certify URL ROOTS TOKEN    asks a CA for certificates
//
// The first four find the Workload API by SPIFFE_ENDPOINT_SOCKET.
package main

import (
	"context"
	"fmt"
	"os"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	switch {
	case len(arguments) == 2 && arguments[0] == "watch":
		return watch(ctx, arguments[1])
	case len(arguments) == 2 && arguments[0] == "token":
		return token(ctx, arguments[1])
	case len(arguments) == 2 && arguments[0] == "serve":
		return serve(ctx, arguments[1])
	case len(arguments) == 2 && arguments[0] == "call":
		return call(ctx, arguments[1])
	case len(arguments) == 4 && arguments[0] == "certify":
		return certify(ctx, arguments[1], arguments[2], arguments[3])
	default:
		return fmt.Errorf("usage: go-spiffe watch AUDIENCE | token AUDIENCE | serve CLIENT | call SERVER | certify URL ROOTS TOKEN")
	}
}
