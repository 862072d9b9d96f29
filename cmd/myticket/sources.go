package main

import (
	"fmt"
	"log/slog"

	"myticket/internal/httpapi"
	"myticket/internal/postgres"
)

// testSourcesFlag is a setting of the server, and of each command that itself learns products from tickets or forgets them.
type testSourcesFlag struct {
	TestSources []source `env:"MYTICKET_TEST_SOURCES" placeholder:"NAME" group:"Products" help:"Sources whose tickets teach no products, separated by commas: tests of the installation, tills in training. Their tickets are stored and read as all others. There are no events about them, unless a subscription names them. All servers, \"events\", \"spool drain\" and \"products prune\" need the same value. Default: none."`
}

func (f testSourcesFlag) testSources() map[string]bool {
	tests := map[string]bool{}
	for _, name := range f.TestSources {
		tests[string(name)] = true
	}
	return tests
}

// source is the name of a source.
type source string

// UnmarshalText checks the name.
func (n *source) UnmarshalText(text []byte) error {
	if !httpapi.ValidSource(string(text)) {
		return fmt.Errorf("%q cannot be a source: a name has 1 to 63 of the characters a-z, 0-9 and -", text)
	}
	*n = source(text)
	return nil
}

// readSources reads the sources file, if there is one.
func (f *serverFlags) readSources() (*httpapi.Sources, error) {
	if f.SourcesFile == "" {
		return httpapi.OpenSources(), nil
	}
	return httpapi.ReadSources(f.SourcesFile)
}

// checkKeyTTL returns an error if keys are forgotten too early for sources that sign their tickets.
func (f *serverFlags) checkKeyTTL(sources *httpapi.Sources) error {
	if least := 2 * httpapi.SignatureTolerance; sources.Signed() && f.KeyTTL < least {
		return fmt.Errorf("--key-ttl must be at least %s, because a source signs its tickets: "+
			"a captured request could be sent again as a new ticket after its key is forgotten", least)
	}
	return nil
}

// logSources logs which sources are on hold, and which may send without credentials.
func logSources(logger *slog.Logger, sources *httpapi.Sources, file string) {
	if held := sources.OnHold(); len(held) > 0 {
		logger.Warn("these sources are on hold: their tickets are not stored, but answered 503, so that they are sent again; "+
			"\"*\" stands for every source without an entry", "on_hold", held)
	}
	open := sources.Open()
	switch {
	case file == "":
		logger.Warn("no --sources-file: no source needs credentials, so everyone who reaches the webhook may send tickets")
	case sources.None():
		logger.Warn("the sources file names no source, so every ticket is refused with 403; "+
			"name the sources that may send, or \"*\" for all",
			"file", file)
		return
	case len(open) > 0:
		logger.Warn("these sources need no credentials, so everyone who reaches the webhook may send tickets as them; "+
			"\"*\" stands for every source without an entry", "open", open)
	case sources.Others():
		logger.Info("every source asks for credentials, or is on hold")
	default:
		logger.Info("the sources of the file ask for credentials, or are on hold")
	}
	if file != "" && !sources.Others() {
		logger.Info("other sources may not send: they are refused with 403, because the sources file does not name them and " +
			"has no \"*\"")
	}
}

// productPolicies returns what the sources file says about the products that tickets name. The settings fill in the rest.
func (f *serverFlags) productPolicies(sources *httpapi.Sources) postgres.Sources {
	policies := map[string]postgres.SourcePolicy{}
	for name, entry := range sources.ProductPolicies() {
		policy := postgres.SourcePolicy{
			Label: httpapi.EntryLabel(name), Authenticated: entry.Authenticated,
			NewProductsRate: f.NewProductsRate, NewProductsBurst: f.NewProductsBurst,
		}
		if entry.NewProductsRate != nil {
			policy.NewProductsRate = *entry.NewProductsRate
		}
		if entry.NewProductsBurst != nil {
			policy.NewProductsBurst = *entry.NewProductsBurst
		}
		policies[name] = policy
	}
	return postgres.Sources{Policies: policies, Entry: sources.Entry, Tests: f.testSources()}
}
