package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	istio "istio.io/api/security/v1alpha1"
)

// retries is what gRPC does by itself with a call that was refused for load.
const retries = `{"methodConfig": [{
	"name": [{"service": "istio.v1.auth.IstioCertificateService"}],
	"retryPolicy": {
		"maxAttempts": 5, "initialBackoff": "0.01s", "maxBackoff": "0.01s",
		"backoffMultiplier": 1, "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]
	}
}]}`

// A wish is one line of the standard input.
type wish struct {
	// Of the key: rsa-1024, rsa-2048, p-256, p-384 or p-521.
	Key string `json:"key"`
	// What the request asks for.
	URIs         []string `json:"uris"`
	DNSNames     []string `json:"dns_names"`
	CommonName   string   `json:"common_name"`
	Organization []string `json:"organization"`
	Seconds      int64    `json:"seconds"`
	// The message's field of this name.
	Metadata map[string]any `json:"metadata"`
	// Without the token.
	Anonymous bool `json:"anonymous"`
}

// An answer is one line of the standard output.
type answer struct {
	// As gRPC numbers it; 0 for a certificate.
	Code     int    `json:"code"`
	Message  string `json:"message"`
	Identity string `json:"identity"`
	// For how long the certificate is valid from now on.
	Seconds int64 `json:"seconds"`
	// How long the call took, with all its attempts.
	Milliseconds int64 `json:"milliseconds"`
	// How many certificates are above the leaf, and how many roots there are.
	Intermediates int `json:"intermediates"`
	Roots         int `json:"roots"`
}

// certify asks the CA at a URL for a certificate for each line of its standard
// input, and says how that went: the call, and whether Go and go-spiffe take what
// came for what it should be.
func certify(ctx context.Context, address, rootsFile, tokenFile string) error {
	roots, err := os.ReadFile(rootsFile)
	if err != nil {
		return err
	}
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return err
	}
	channel, err := connect(address, roots)
	if err != nil {
		return err
	}
	defer channel.Close()
	client := istio.NewIstioCertificateServiceClient(channel)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var wish wish
		if err := json.Unmarshal(lines.Bytes(), &wish); err != nil {
			return err
		}
		began := time.Now()
		answer, err := ask(ctx, client, wish, string(token))
		if err != nil {
			return err
		}
		answer.Milliseconds = time.Since(began).Milliseconds()
		line, err := json.Marshal(answer)
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", line)
	}
	return lines.Err()
}

func connect(address string, roots []byte) (*grpc.ClientConn, error) {
	target, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	transport := insecure.NewCredentials()
	if target.Scheme == "https" {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(roots) {
			return nil, errors.New("no roots in the file")
		}
		transport = credentials.NewTLS(&tls.Config{RootCAs: pool})
	}
	return grpc.NewClient(target.Host, grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(retries))
}

// ask makes one call. An error of its own means that the answer is not what Istio's
// API promises; a refusal is an answer.
func ask(ctx context.Context, client istio.IstioCertificateServiceClient, wish wish, token string) (*answer, error) {
	key, err := generate(wish.Key)
	if err != nil {
		return nil, err
	}
	csr, err := request(key, wish)
	if err != nil {
		return nil, err
	}
	fields, err := structpb.NewStruct(wish.Metadata)
	if err != nil {
		return nil, err
	}
	// As istio-agent names them.
	ctx = metadata.AppendToOutgoingContext(ctx, "ClusterID", "Kubernetes")
	if !wish.Anonymous {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	response, err := client.CreateCertificate(ctx, &istio.IstioCertificateRequest{
		Csr:              string(csr),
		ValidityDuration: wish.Seconds,
		Metadata:         fields,
	})
	if err != nil {
		refusal := status.Convert(err)
		return &answer{Code: int(refusal.Code()), Message: refusal.Message()}, nil
	}
	return verify(response.CertChain, key)
}

// verify takes the answer apart as istio-agent does: the leaf, the certificates
// above it one by one, and all roots in the last element.
func verify(elements []string, key crypto.Signer) (*answer, error) {
	if len(elements) < 2 {
		return nil, fmt.Errorf("an answer of %d elements", len(elements))
	}
	var chain []*x509.Certificate
	for _, element := range elements[:len(elements)-1] {
		certificates, err := parse(element)
		if err != nil {
			return nil, err
		}
		if len(certificates) != 1 {
			return nil, fmt.Errorf("an element of the chain has %d certificates", len(certificates))
		}
		chain = append(chain, certificates[0])
	}
	roots, err := parse(elements[len(elements)-1])
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	if public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return nil, errors.New("the certificate is for another key")
	}
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool()}
	for _, root := range roots {
		options.Roots.AddCert(root)
	}
	for _, intermediate := range chain[1:] {
		options.Intermediates.AddCert(intermediate)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		options.KeyUsages = []x509.ExtKeyUsage{usage}
		if _, err := leaf.Verify(options); err != nil {
			return nil, fmt.Errorf("Go does not take the chain: %w", err)
		}
	}
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return nil, err
	}
	bundle := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(id.TrustDomain().Name()), roots)
	if _, _, err := x509svid.Verify(chain, bundle); err != nil {
		return nil, fmt.Errorf("go-spiffe does not take the chain: %w", err)
	}
	return &answer{
		Identity:      id.String(),
		Seconds:       int64(time.Until(leaf.NotAfter).Seconds()),
		Intermediates: len(chain) - 1,
		Roots:         len(roots),
	}, nil
}

func parse(text string) ([]*x509.Certificate, error) {
	var der bytes.Buffer
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		der.Write(block.Bytes)
	}
	return x509.ParseCertificates(der.Bytes())
}

func generate(kind string) (crypto.Signer, error) {
	switch kind {
	case "rsa-1024":
		return rsa.GenerateKey(rand.Reader, 1024)
	case "rsa-2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "p-256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p-384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "p-521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	default:
		return nil, fmt.Errorf("no such kind of key: %q", kind)
	}
}

func request(key crypto.Signer, wish wish) ([]byte, error) {
	template := &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: wish.CommonName, Organization: wish.Organization},
		DNSNames: wish.DNSNames,
	}
	for _, text := range wish.URIs {
		uri, err := url.Parse(text)
		if err != nil {
			return nil, err
		}
		template.URIs = append(template.URIs, uri)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}
