package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// serve says the address that it listens on, and answers each request of the one
// client that it lets in with that client's SPIFFE ID.
func serve(ctx context.Context, client string) error {
	authorized, err := spiffeid.FromString(client)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{
		TLSConfig: tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(authorized)),
		Handler: http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
			id, err := x509svid.IDFromCert(request.TLS.PeerCertificates[0])
			if err != nil {
				http.Error(response, err.Error(), http.StatusInternalServerError)
				return
			}
			fmt.Fprint(response, id)
		}),
	}
	fmt.Println("listening", listener.Addr())
	return server.ServeTLS(listener, "", "")
}

// call reads lines from its standard input and answers each with one:
//
//	new ALPN URL    a GET over a connection of its own, whose ClientHello offers
//	                these protocols, separated by commas; none where it is "-"
//	kept URL        a GET over a connection that is kept, if it still is there
//	roots           no call: the fingerprints of the roots that it trusts
//
// The answer to a call is `STATUS SERIAL PROTOCOL BODY`, with the serial number of
// the server's certificate and the version of HTTP, or `failed`, with the reason.
func call(ctx context.Context, server string) error {
	authorized, err := spiffeid.FromString(server)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	transport := func(protocols []string) *http.Transport {
		config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(authorized))
		config.NextProtos = protocols
		transport := &http.Transport{TLSClientConfig: config}
		if slices.Contains(protocols, "h2") {
			// Else Go speaks HTTP/1.1 over whatever was agreed on.
			transport.Protocols = new(http.Protocols)
			transport.Protocols.SetHTTP2(true)
			transport.Protocols.SetHTTP1(slices.Contains(protocols, "http/1.1"))
		}
		return transport
	}
	kept := &http.Client{Transport: transport(nil)}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var answer string
		switch words := strings.Fields(lines.Text()); {
		case len(words) == 3 && words[0] == "new":
			var protocols []string
			if words[1] != "-" {
				protocols = strings.Split(words[1], ",")
			}
			once := transport(protocols)
			answer, err = get(ctx, &http.Client{Transport: once}, words[2])
			once.CloseIdleConnections()
		case len(words) == 2 && words[0] == "kept":
			answer, err = get(ctx, kept, words[1])
		case len(words) == 1 && words[0] == "roots":
			answer, err = roots(source, authorized.TrustDomain())
		default:
			return fmt.Errorf("no such call: %q", lines.Text())
		}
		if err != nil {
			answer = "failed " + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		fmt.Println(answer)
	}
	return lines.Err()
}

func roots(source x509bundle.Source, domain spiffeid.TrustDomain) (string, error) {
	bundle, err := source.GetX509BundleForTrustDomain(domain)
	if err != nil {
		return "", err
	}
	var fingerprints []string
	for _, root := range bundle.X509Authorities() {
		fingerprints = append(fingerprints, fmt.Sprintf("%x", sha256.Sum256(root.Raw)))
	}
	return strings.Join(fingerprints, " "), nil
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	serial := response.TLS.PeerCertificates[0].SerialNumber.Bytes()
	return fmt.Sprintf("%d %x %s %s", response.StatusCode, serial, response.Proto, bytes.TrimSpace(body)), nil
}
