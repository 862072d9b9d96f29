package main

import (
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"

	"myticket/internal/postgres"
)

// byteSize is a number of bytes, written as 1048576, 64KiB or 1MiB.
type byteSize int

// UnmarshalText reads a size.
func (s *byteSize) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	if err != nil || n > 1<<40 {
		return fmt.Errorf("%q is no size in bytes: write 1048576, 64KiB or 1MiB", text)
	}
	*s = byteSize(n)
	return nil
}

// logSettings logs once what is in force, without secrets.
func logSettings(logger *slog.Logger, command *kong.Context, databaseURL string) {
	var settings []any
	for _, flag := range command.Flags() {
		if flag.Name == "help" || strings.HasPrefix(flag.Name, "database-url") {
			continue
		}
		settings = append(settings, slog.String(flag.Name, fmt.Sprint(flag.Target.Interface())))
	}
	settings = append(settings, slog.String("database", postgres.Describe(databaseURL)))
	logger.Info("settings", settings...)
}

// serviceLink matches the variables that Kubernetes and Docker put into a container for a Service named myticket
// (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
var serviceLink = regexp.MustCompile(`_(SERVICE_(HOST|PORT)(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// checkEnvironment finds settings that no command knows: a typing error would be ignored otherwise.
func checkEnvironment(model *kong.Application, environ []string) error {
	var known []string
	_ = kong.Visit(model, func(node kong.Visitable, next kong.Next) error {
		if flag, ok := node.(*kong.Flag); ok {
			known = append(known, flag.Envs...)
		}
		return next(nil)
	})
	for _, variable := range environ {
		name, _, _ := strings.Cut(variable, "=")
		if !strings.HasPrefix(name, "MYTICKET_") || strings.HasPrefix(name, "MYTICKET_TEST_") ||
			strings.HasPrefix(name, "MYTICKET_DEV_") || // of cmd/myticket-dev
			slices.Contains(known, name) || serviceLink.MatchString(name) {
			continue
		}
		return fmt.Errorf("the environment variable %s is no setting of MyTicket: see \"myticket serve --help\"", name)
	}
	return nil
}
