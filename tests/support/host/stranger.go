package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"time"
)

// strangers are callers that the plugin must refuse: they trust anybody, and hold no key of the host's.
var strangers = map[string]func(*tls.Config) error{
	"no certificate": func(*tls.Config) error { return nil },
	"P-256":          func(c *tls.Config) error { return addCertificate(c, elliptic.P256()) },
	"P-521":          func(c *tls.Config) error { return addCertificate(c, elliptic.P521()) },
	"TLS 1.1": func(c *tls.Config) error {
		c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		return addCertificate(c, elliptic.P521())
	},
}

// intrude begins HTTP/2 at the address, as that stranger; nil means that it was answered.
func intrude(stranger, address string) error {
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	prepare, ok := strangers[stranger]
	if !ok {
		return errors.New("no such stranger")
	}
	if err := prepare(config); err != nil {
		return err
	}
	// By hand, since grpc would try again, and be refused again.
	connection, err := tls.Dial("tcp", address, config)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	if _, err := connection.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		return err
	}
	_ = connection.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err = connection.Read(make([]byte, 1))
	return err
}

// addCertificate adds one with the same names as go-plugin's.
func addCertificate(config *tls.Config, curve elliptic.Curve) error {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return err
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
	if err != nil {
		return err
	}
	config.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	return nil
}
