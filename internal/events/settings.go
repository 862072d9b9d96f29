package events

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of how long a target may take to acknowledge an event, and how many events wait for that at the same time.
const (
	minPatience, maxPatience = 100 * time.Millisecond, 5 * time.Minute
	maxWindow                = 4096
)

// Settings returns the options of an address together with the parameters of its URL, which are the same by another way. It
// returns an error if one is not among those that are known, is given twice, or is empty.
func (a Address) Settings(known ...string) (map[string]string, error) {
	settings := maps.Clone(a.Options)
	if settings == nil {
		settings = make(map[string]string)
	}
	for name, values := range a.URL.Query() {
		if _, twice := settings[name]; twice || len(values) > 1 {
			return nil, fmt.Errorf("the option %q of the target is given twice: leave one out", name)
		}
		settings[name] = values[0]
	}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("the target has no option %q: those of %s are %s", name, a.URL.Scheme, strings.Join(known, ", "))
		}
		if settings[name] == "" {
			return nil, fmt.Errorf("the option %q of the target is empty: give it a value, or leave it out", name)
		}
	}
	return settings, nil
}

// Patience returns the option "timeout", a time from 100ms to 5m, or the default if it is not given.
func Patience(settings map[string]string, otherwise time.Duration) (time.Duration, error) {
	text, ok := settings["timeout"]
	if !ok {
		return otherwise, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < minPatience || d > maxPatience {
		return 0, fmt.Errorf("the option \"timeout\" of the target is %q: it is a time from %s to %s, such as "+
			"10s", text, minPatience, maxPatience)
	}
	return d, nil
}

// Window returns the option "window", a number from 1 to 4096, or the default if it is not given.
func Window(settings map[string]string, otherwise int) (int, error) {
	text, ok := settings["window"]
	if !ok {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxWindow {
		return 0, fmt.Errorf("the option \"window\" of the target is %q: it is a number of events, from 1 to %d", text, maxWindow)
	}
	return n, nil
}

// TLS returns what a connection with TLS to the target trusts. The server's name is for the caller to set.
func (a Address) TLS() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(a.Authorities) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(a.Authorities) {
			return nil, errors.New("the authorities of the target are no certificates: they are PEM, and begin with -----BEGIN " +
				"CERTIFICATE-----")
		}
	}
	return config, nil
}

// Strict returns the option "order": whether only one event of each key is on its way at a time.
func Strict(settings map[string]string) (bool, error) {
	switch order, ok := settings["order"]; {
	case !ok:
		return false, nil
	case order == "strict":
		return true, nil
	default:
		return false, fmt.Errorf("the option \"order\" of the target is %q: it is \"strict\", or left out", order)
	}
}
