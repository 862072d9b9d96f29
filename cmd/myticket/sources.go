package main

import (
	"log/slog"

	"myticket/internal/httpapi"
	"myticket/internal/postgres"
)

// logSources says who may send without credentials.
func logSources(logger *slog.Logger, sources *httpapi.Sources, file string) {
	open := sources.Open()
	switch {
	case file == "":
		logger.Warn("no --sources-file: every source is open, so whoever reaches the webhook may send tickets")
	case sources.None():
		logger.Warn("the sources file names no source, so every ticket is refused with 403; name those that may send, or \"*\" for all",
			"file", file)
		return
	case len(open) > 0:
		logger.Warn("these sources ask for no credentials, so whoever reaches the webhook may send tickets as them; "+
			"\"*\" is every source without an entry", "open", open)
	case sources.Others():
		logger.Info("every source asks for credentials")
	default:
		logger.Info("the sources of the file ask for credentials")
	}
	if file != "" && !sources.Others() {
		logger.Info("other sources may not send: they are refused with 403, because the sources file does not name them and " +
			"has no \"*\"")
	}
}

// productPolicies is what the sources file says about the products that tickets name, and the settings where it says nothing.
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
	return postgres.Sources{Policies: policies, Entry: sources.Entry}
}
