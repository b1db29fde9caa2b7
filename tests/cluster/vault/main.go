// Command vault is Vault as `vault server -dev` runs it: in memory, unsealed,
// with a root token that whoever starts it chose.
//
// The tests of the CA's Vault upstream talk to it. It is Vault's own core, HTTP
// interface, PKI secrets engine and Kubernetes authentication, from Vault's own
// Go modules; what is left out are its command line, its web pages and some
// fifty plugins, which would take most of the time and disk to build.
//
//	vault -root-token TOKEN -certificate server.crt -key server.key
//
// It listens on a free port of loopback, prints the address when it answers
// requests, and ends when its standard input does: a closed pipe needs no
// signal handler and no luck.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"github.com/hashicorp/go-hclog"
	kubernetes "github.com/hashicorp/vault-plugin-auth-kubernetes"
	"github.com/hashicorp/vault/builtin/logical/pki"
	"github.com/hashicorp/vault/helper/namespace"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

var (
	rootToken   = flag.String("root-token", "", "the token that may do everything")
	certificate = flag.String("certificate", "", "the server's certificate, in PEM")
	key         = flag.String("key", "", "its private key, in PEM")
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "vault:", err)
		os.Exit(1)
	}
}

func run() error {
	core, err := start(*rootToken)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	handler := vaulthttp.Handler.Handler(&vault.HandlerProperties{
		Core:           core,
		ListenerConfig: &configutil.Listener{Type: "tcp", Address: listener.Addr().String()},
	})
	failed := make(chan error, 1)
	go func() {
		failed <- (&http.Server{Handler: handler}).ServeTLS(listener, *certificate, *key)
	}()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		failed <- nil
	}()
	fmt.Println(listener.Addr())
	return <-failed
}

// start makes a core and does with it what dev mode does.
func start(token string) (*vault.Core, error) {
	if token == "" {
		return nil, errors.New("-root-token is missing")
	}
	logger := hclog.New(&hclog.LoggerOptions{Name: "vault", Level: hclog.Warn})
	storage, err := inmem.NewInmem(nil, logger)
	if err != nil {
		return nil, err
	}
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical:           storage,
		DisableMlock:       true,
		Logger:             logger,
		LogicalBackends:    map[string]logical.Factory{"pki": pki.Factory},
		CredentialBackends: map[string]logical.Factory{"kubernetes": kubernetes.Factory},
		BuiltinRegistry:    plugins{},
	})
	if err != nil {
		return nil, err
	}
	ctx := namespace.RootContext(context.Background())
	once := &vault.SealConfig{SecretShares: 1, SecretThreshold: 1}
	made, err := core.Initialize(ctx, &vault.InitParams{BarrierConfig: once})
	if err != nil {
		return nil, fmt.Errorf("initializing: %w", err)
	}
	if _, err := core.Unseal(made.SecretShares[0]); err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	answer, err := core.HandleRequest(ctx, &logical.Request{
		ID:          "dev-gen-root",
		Operation:   logical.UpdateOperation,
		ClientToken: made.RootToken,
		Path:        "auth/token/create",
		Data: map[string]any{
			"id":                token,
			"policies":          []string{"root"},
			"no_parent":         true,
			"no_default_policy": true,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("making the root token: %w", err)
	}
	return core, answer.Error()
}

// plugins is the catalog of what is built in besides what the core was given:
// nothing.
type plugins struct{}

func (plugins) Contains(string, consts.PluginType) bool { return false }

func (plugins) Get(string, consts.PluginType) (func() (any, error), bool) { return nil, false }

func (plugins) Keys(consts.PluginType) []string { return nil }

func (plugins) DeprecationStatus(string, consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Unknown, false
}

func (plugins) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }
