package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"myticket/internal/events"
	"myticket/internal/events/jetstream"
	"myticket/internal/events/kafka"
	"myticket/internal/events/rabbitmq"
	"myticket/internal/events/webhook"
)

// openTarget opens the target of a URL. It does not wait for the target.
func openTarget(ctx context.Context, address events.Address, logger *slog.Logger) (events.Target, error) {
	switch scheme := address.URL.Scheme; scheme {
	case "http", "https":
		return webhook.Open(ctx, address, logger)
	case "nats", "tls":
		return jetstream.Open(ctx, address, logger)
	case "kafka":
		return kafka.Open(ctx, address, logger)
	case "amqp", "amqps":
		return rabbitmq.Open(ctx, address, logger)
	default:
		return nil, fmt.Errorf("the URL of the target begins with %q: no events can be sent there, only to %s",
			scheme+":", strings.Join(events.Schemes(), ", "))
	}
}

// targets opens targets with the secrets that are in files and in the environment of this process.
type targets struct {
	logger *slog.Logger
	open   func(context.Context, events.Address, *slog.Logger) (events.Target, error)
}

// forSubscription opens the target of a subscription.
func (t targets) forSubscription(ctx context.Context, sub events.Subscription) (events.Target, error) {
	target := &freshTarget{from: t, sub: sub}
	if err := target.reopen(ctx); err != nil {
		return nil, err
	}
	return target, nil
}

// address returns the address of a subscription's target, with the present secrets.
func address(sub events.Subscription) (events.Address, error) {
	parsed, err := url.Parse(sub.Target)
	if err != nil {
		return events.Address{}, errors.New("the target is no URL") // the error would show it, and it may have a token
	}
	at := events.Address{URL: parsed, Options: sub.Settings.Options}
	if at.Secret, err = dereference(sub.Settings.Secret); err != nil {
		return events.Address{}, fmt.Errorf("the secret: %w", err)
	}
	if at.Authorities, err = dereference(sub.Settings.Authorities); err != nil {
		return events.Address{}, fmt.Errorf("the authorities: %w", err)
	}
	return at, nil
}

// maxReferenced is how large what a reference names may be, in bytes.
const maxReferenced = 1 << 20

// dereference returns what file:PATH or env:NAME names, without white space around; nil for no reference.
func dereference(reference string) ([]byte, error) {
	kind, name, _ := strings.Cut(reference, ":")
	var content []byte
	switch {
	case reference == "":
		return nil, nil
	case kind == "env":
		content = []byte(os.Getenv(name)) // a person named the variable in the subscription
	case kind == "file":
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		if content, err = io.ReadAll(io.LimitReader(file, maxReferenced+1)); err != nil {
			return nil, err
		}
	default:
		return nil, errors.New("it must be file:PATH or env:NAME")
	}
	if len(content) > maxReferenced {
		return nil, fmt.Errorf("%s has more than %d bytes", reference, maxReferenced)
	}
	if content = bytes.TrimSpace(content); len(content) == 0 {
		return nil, fmt.Errorf("%s is not set or empty, where \"myticket events\" runs", reference)
	}
	return content, nil
}

// secretsInterval is how often it is looked whether a secret has changed.
const secretsInterval = 10 * time.Second

// freshTarget is a target that is opened again when its secret or its authorities have changed, as a mounted Secret of Kubernetes
// does without a restart.
type freshTarget struct {
	events.Target

	from   targets
	sub    events.Subscription
	opened events.Address
	looked time.Time
}

// Send sends with the present secrets. If they cannot be read, those before are used, because the target may still take them.
func (f *freshTarget) Send(ctx context.Context, all []events.Event) []error {
	if time.Since(f.looked) >= secretsInterval {
		if err := f.reopen(ctx); err != nil {
			f.from.logger.Warn("the secrets of a subscription changed, and its target cannot be opened with them; those before are used, "+
				"and it is tried again", "subscription", f.sub.Name, "error", err)
		}
	}
	return f.Target.Send(ctx, all)
}

func (f *freshTarget) reopen(ctx context.Context) error {
	f.looked = time.Now()
	at, err := address(f.sub)
	if err != nil {
		return err
	}
	if f.Target != nil && bytes.Equal(at.Secret, f.opened.Secret) && bytes.Equal(at.Authorities, f.opened.Authorities) {
		return nil
	}
	target, err := f.from.open(ctx, at, f.from.logger.With("subscription", f.sub.Name))
	if err != nil {
		return err
	}
	if f.Target != nil {
		f.Close()
	}
	f.Target, f.opened = target, at
	return nil
}
