package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"go.yaml.in/yaml/v3"

	"myticket/internal/events"
)

// Bounds of a subscriptions file.
const (
	maxSubscriptionsFile = 1 << 20 // bytes
	maxSubscriptions     = 1000
)

// subscriptionsFile is a file that says who gets events, as YAML or JSON.
type subscriptionsFile struct {
	Subscriptions []declaredSubscription `yaml:"subscriptions"`
}

// declaredSubscription is one entry. All but name and target may be left out.
type declaredSubscription struct {
	Name        string            `yaml:"name"`
	Target      string            `yaml:"target"`
	Secret      string            `yaml:"secret"`      // file:PATH or env:NAME
	Authorities string            `yaml:"authorities"` // file:PATH or env:NAME
	Options     map[string]string `yaml:"options"`
	Types       []string          `yaml:"types"`
	Sources     []string          `yaml:"sources"`
	Statuses    []string          `yaml:"statuses"`
	Body        bool              `yaml:"body"`
}

func (d *declaredSubscription) subscription() events.Subscription {
	return events.Subscription{
		Name: d.Name, Target: d.Target, Body: d.Body,
		Settings: events.Settings{Secret: d.Secret, Authorities: d.Authorities, Options: d.Options},
		Filter:   events.Filter{Types: d.Types, Sources: d.Sources, Statuses: d.Statuses},
	}
}

// readSubscriptionsFile reads a file. An unknown field is an error, and so is a name that is there twice.
func readSubscriptionsFile(name string) ([]events.Subscription, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("--subscriptions-file: %w", err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxSubscriptionsFile+1))
	if err == nil && len(content) > maxSubscriptionsFile {
		err = fmt.Errorf("it has more than %d bytes", maxSubscriptionsFile)
	}
	if err == nil {
		var subs []events.Subscription
		if subs, err = parseSubscriptions(content); err == nil {
			return subs, nil
		}
	}
	return nil, fmt.Errorf("--subscriptions-file %s: %w", name, err)
}

func parseSubscriptions(content []byte) ([]events.Subscription, error) {
	var file subscriptionsFile
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		if errors.Is(err, io.EOF) { // to take it for a list of none would pause all
			return nil, errors.New("it is empty: write \"subscriptions: []\" for none")
		}
		return nil, err
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("it has more than one document")
	}
	if len(file.Subscriptions) > maxSubscriptions {
		return nil, fmt.Errorf("it has %d subscriptions, and at most %d are allowed", len(file.Subscriptions), maxSubscriptions)
	}
	subs, names := []events.Subscription{}, map[string]bool{}
	for i := range file.Subscriptions {
		sub := file.Subscriptions[i].subscription()
		if err := sub.Validate(); err != nil {
			return nil, err
		}
		if names[sub.Name] {
			return nil, fmt.Errorf("the subscription %s is there twice", sub.Name)
		}
		names[sub.Name] = true
		subs = append(subs, sub)
	}
	return subs, nil
}
