package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"time"
)

// strangers are callers that the plugin must refuse: they trust any server, but do not hold the host's key.
var strangers = map[string]func(*tls.Config) error{
	"no certificate": func(*tls.Config) error { return nil },
	"P-256":          func(c *tls.Config) error { return addCertificate(c, elliptic.P256()) },
	"P-521":          func(c *tls.Config) error { return addCertificate(c, elliptic.P521()) },
	"TLS 1.1": func(c *tls.Config) error {
		c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		return addCertificate(c, elliptic.P521())
	},
	"no TLS": nil,
}

// intrude begins HTTP/2 at the address, as that stranger. It returns nil if the plugin answers.
func intrude(stranger string, address net.Addr) error {
	prepare, ok := strangers[stranger]
	if !ok {
		return errors.New("no such stranger")
	}
	// Without grpc, which would only try again and be refused again.
	connection, err := net.DialTimeout(address.Network(), address.String(), 5*time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	_ = connection.SetDeadline(time.Now().Add(5 * time.Second))
	if prepare != nil {
		config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
		if err := prepare(config); err != nil {
			return err
		}
		connection = tls.Client(connection, config)
	}
	if _, err := connection.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		return err
	}
	frame := make([]byte, 9) // the header of a frame
	if _, err := io.ReadFull(connection, frame); err != nil {
		return err
	}
	if frame[3] != 4 {
		return errors.New("the answer is not SETTINGS: a TLS alert, for one who speaks no TLS")
	}
	return nil
}

func addCertificate(config *tls.Config, curve elliptic.Curve) error {
	pair, err := selfSigned(curve)
	config.Certificates = []tls.Certificate{pair}
	return err
}

// certificate makes a certificate as go-plugin's hosts do, in PEM.
func certificate() (response, error) {
	pair, err := selfSigned(elliptic.P521())
	if err != nil {
		return nil, err
	}
	block := &pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}
	return response{"text": string(pem.EncodeToMemory(block))}, nil
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
