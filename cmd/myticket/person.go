package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"unicode/utf8"

	"myticket/internal/postgres"
)

// personFlags say who changes something, and why. Both go into the audit.
type personFlags struct {
	By     string `env:"MYTICKET_BY" group:"Audit" placeholder:"WHO" help:"Who makes the change, at most 200 bytes. Default: the user and the host, as user@host."`
	Reason string `group:"Audit" placeholder:"TEXT" help:"Why the change is made, at most 1000 bytes."`
}

// check is for the Validate of commands.
func (f personFlags) check() error {
	for _, flag := range []struct {
		name, value string
		most        int
	}{{"--by", f.By, postgres.MaxWho}, {"--reason", f.Reason, postgres.MaxReason}} {
		switch {
		case len(flag.value) > flag.most:
			return fmt.Errorf("%s has %d bytes, which is more than the limit of %d", flag.name, len(flag.value), flag.most)
		case !utf8.ValidString(flag.value):
			return fmt.Errorf("%s is not valid UTF-8", flag.name)
		case flag.value != "" && strings.TrimSpace(flag.value) == "":
			return fmt.Errorf("%s must not be empty", flag.name)
		}
	}
	return nil
}

// person returns who makes the change.
func (f personFlags) person() (postgres.Person, error) {
	if f.By != "" {
		return postgres.Person{Who: f.By, Why: f.Reason}, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return postgres.Person{}, errors.New("the host has no name, so it is not known who makes the change, and nothing was " +
			"changed: use --by")
	}
	name := "uid " + strconv.Itoa(os.Getuid()) // in the image no user has a name
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	return postgres.Person{Who: name + "@" + host, Why: f.Reason}, nil
}
