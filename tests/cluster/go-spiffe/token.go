package main

import (
	"context"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// token says a JWT-SVID for an audience, as an application sends it.
func token(ctx context.Context, audience string) error {
	svid, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return fmt.Errorf("fetching a JWT-SVID: %w", err)
	}
	fmt.Println(svid.Marshal())
	return nil
}
