package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"time"

	"github.com/hashicorp/go-plugin/examples/grpc/proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// strangers calls Get as callers who hold no key of the host's, and says who was answered, or how each was refused.
func strangers(address net.Addr) (answer, error) {
	result := answer{}
	for name, curve := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-521": elliptic.P521()} {
		pair, err := selfSigned(curve)
		if err != nil {
			return nil, err
		}
		config := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}
		result[name] = intrude(address, credentials.NewTLS(config))
	}
	result["no certificate"] = intrude(address, credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}))
	result["no TLS"] = intrude(address, insecure.NewCredentials())
	return result, nil
}

// intrude returns how the call was refused, or "" if it was answered.
func intrude(address net.Addr, credentials credentials.TransportCredentials) string {
	conn, err := grpc.Dial(
		"passthrough:///stranger",
		grpc.WithTransportCredentials(credentials),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, address.Network(), address.String())
		}),
	)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if _, err := proto.NewKVClient(conn).Get(ctx, &proto.GetRequest{Key: "100"}); err != nil {
		return err.Error()
	}
	return ""
}

// certificate makes one as go-plugin's hosts do, in PEM.
func certificate() (answer, error) {
	pair, err := selfSigned(elliptic.P521())
	if err != nil {
		return nil, err
	}
	block := &pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}
	return answer{"pem": string(pem.EncodeToMemory(block))}, nil
}

// selfSigned makes a certificate with the same names as go-plugin's.
func selfSigned(curve elliptic.Curve) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "localhost", Organization: []string{"HashiCorp"}},
		DNSNames:              []string{"localhost"},
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		SerialNumber:          big.NewInt(1),
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
