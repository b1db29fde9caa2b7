package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// watch says what it got and verified, a line each: its X.509-SVID, its JWT-SVID,
// and then each X.509-SVID that it is told of, until it is ended.
func watch(ctx context.Context, audience string) error {
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()

	x509, err := client.FetchX509Context(ctx)
	if err != nil {
		return err
	}
	svid := x509.DefaultSVID()
	id, _, err := x509svid.Verify(svid.Certificates, x509.Bundles)
	if err != nil {
		return fmt.Errorf("verifying the X.509-SVID: %w", err)
	}
	fmt.Println("x509", id)

	token, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return fmt.Errorf("fetching a JWT-SVID: %w", err)
	}
	keys, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return fmt.Errorf("fetching the keys: %w", err)
	}
	parsed, err := jwtsvid.ParseAndValidate(token.Marshal(), keys, []string{audience})
	if err != nil {
		return fmt.Errorf("validating the JWT-SVID here: %w", err)
	}
	asked, err := client.ValidateJWTSVID(ctx, token.Marshal(), audience)
	if err != nil {
		return fmt.Errorf("validating the JWT-SVID there: %w", err)
	}
	if parsed.ID != asked.ID {
		return fmt.Errorf("%s here is %s there", parsed.ID, asked.ID)
	}
	fmt.Println("jwt", parsed.ID)
	return client.WatchX509Context(ctx, watcher{})
}

type watcher struct{}

func (watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	leaf := update.DefaultSVID().Certificates[0]
	fmt.Printf("update %x\n", leaf.SerialNumber.Bytes())
}

func (watcher) OnX509ContextWatchError(err error) {
	fmt.Fprintln(os.Stderr, err)
}
