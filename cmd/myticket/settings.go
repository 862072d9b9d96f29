package main

import (
	"fmt"
	"log/slog"
	"net/url"
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
		return fmt.Errorf("%q is not a size in bytes: write 1048576, 64KiB or 1MiB", text)
	}
	*s = byteSize(n)
	return nil
}

// logSettings logs the settings in force, without secrets.
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

// warnSecretsInArgs warns of a password in the arguments. Everyone who may list processes or sees a crash report can read it.
func warnSecretsInArgs(logger *slog.Logger, args []string) {
	const flag = "--database-url"
	for i, arg := range args {
		value, ok := strings.CutPrefix(arg, flag+"=")
		if arg == flag && i+1 < len(args) {
			value, ok = args[i+1], true
		}
		if ok && hasPassword(value) {
			logger.Warn(fmt.Sprintf("%s contains a password: everyone who may list this machine's processes can read it; "+
				"use DATABASE_URL, --database-url-file or --database-dir", flag))
			return
		}
	}
}

// hasPassword reports whether a connection string of Postgres seems to have a password.
func hasPassword(connection string) bool {
	if strings.Contains(strings.ToLower(connection), "password") { // a parameter of a URI, or a keyword of the other syntax
		return true
	}
	u, err := url.Parse(connection)
	if err != nil { // perhaps because of a character in the password
		return strings.Contains(connection, "@")
	}
	_, set := u.User.Password()
	return set
}

// serviceLink matches the variables that Kubernetes and Docker set in a container for a Service named myticket
// (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
var serviceLink = regexp.MustCompile(`_(SERVICE_(HOST|PORT)(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// checkEnvironment returns an error for a setting that no command knows. Otherwise a misspelled one would be ignored.
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
		return fmt.Errorf("the environment variable %s is not a setting of MyTicket: see \"myticket serve --help\"", name)
	}
	return nil
}
