// Package eventstest has what the tests of targets share: events to send, what became of them, and certificates.
package eventstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/events"
)

// Batch returns n events with JSON of about the size, whose keys take turns.
func Batch(n, size int, keys ...string) []events.Event {
	batch := make([]events.Event, n)
	for i := range batch {
		ticket := uuid.Must(uuid.NewV7())
		id := ticket.String() + ".1"
		batch[i] = events.Event{
			ID: id, Type: events.TicketTreated, Key: keys[i%len(keys)], Ticket: ticket,
			JSON: fmt.Appendf(nil, `{"specversion":"1.0","id":%q,"n":%d,"data":%q}`, id, i, strings.Repeat("x", max(0, size-100))),
		}
	}
	return batch
}

// Address returns an address without credentials.
func Address(t testing.TB, address string) events.Address {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	return events.Address{URL: u}
}

// RequireAll fails the test unless all events were delivered.
func RequireAll(t testing.TB, outcomes []error) {
	t.Helper()
	for i, err := range outcomes {
		require.NoErrorf(t, err, "event %d of %d", i, len(outcomes))
	}
}

// RequireOrder fails the test unless the bodies that a target has are those of the events, those of each key in their order. A
// body that comes again does not count.
func RequireOrder(t testing.TB, batch []events.Event, bodies []string) {
	t.Helper()
	key := make(map[string]string, len(batch))
	want := make(map[string][]string)
	for _, e := range batch {
		key[string(e.JSON)] = e.Key
		want[e.Key] = append(want[e.Key], string(e.JSON))
	}
	got := make(map[string][]string)
	seen := make(map[string]bool)
	for _, body := range bodies {
		if _, ok := key[body]; !ok { // require.Contains looks through the whole map
			require.Failf(t, "a body that was not sent", "%.300s", body)
		}
		if !seen[body] {
			seen[body] = true
			got[key[body]] = append(got[key[body]], body)
		}
	}
	for k := range want {
		require.Equalf(t, len(want[k]), len(got[k]), "events of %s", k)
		for i := range want[k] {
			require.Equalf(t, want[k][i], got[k][i], "event %d of %s", i, k)
		}
	}
}

// Certificate is a server's certificate, and the authority that signed it.
type Certificate struct {
	Authority           []byte // PEM
	File, Key, RootFile string // paths
}

// NewCertificate returns a certificate for 127.0.0.1 in a folder of the test.
func NewCertificate(t testing.TB) Certificate {
	t.Helper()
	c, err := WriteCertificate(t.TempDir())
	require.NoError(t, err)
	return c
}

// WriteCertificate returns a certificate for 127.0.0.1 in a folder.
func WriteCertificate(dir string) (Certificate, error) {
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the test's authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "the test's server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Certificate{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Certificate{}, err
	}
	rootDER, rootErr := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	leafDER, leafErr := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), rootKey)
	keyDER, keyErr := x509.MarshalPKCS8PrivateKey(key)
	if err := errors.Join(rootErr, leafErr, keyErr); err != nil {
		return Certificate{}, err
	}
	c := Certificate{
		Authority: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER}),
		RootFile:  filepath.Join(dir, "root.pem"), File: filepath.Join(dir, "server.pem"), Key: filepath.Join(dir, "server.key"),
	}
	return c, errors.Join(
		os.WriteFile(c.RootFile, c.Authority, 0o600),
		os.WriteFile(c.File, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leafDER}), 0o600),
		os.WriteFile(c.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
}
