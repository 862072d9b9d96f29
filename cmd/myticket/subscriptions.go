package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"myticket/internal/events"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// subscriptionsCmd is `myticket subscriptions`.
type subscriptionsCmd struct {
	Create subscriptionsCreateCmd `cmd:"" help:"Send events to a target from now on."`
	List   subscriptionsListCmd   `cmd:"" help:"List subscriptions, with how far behind each is, and whether its target takes events."`
	Show   subscriptionsShowCmd   `cmd:"" help:"Show all about a subscription."`
	Pause  subscriptionsPauseCmd  `cmd:"" help:"Send nothing for now. What is to be sent is kept, and takes space in the database."`
	Resume subscriptionsResumeCmd `cmd:"" help:"Go on where a paused subscription was."`
	Replay subscriptionsReplayCmd `cmd:"" help:"Send the events about all tickets again that were received in a time. Each says what the ticket is now."`
	Delete subscriptionsDeleteCmd `cmd:"" help:"Delete a subscription, with its place and its dead letters."`

	DeadLetters       deadLettersCmd       `cmd:"" help:"List events that a target refused."`
	ReplayDeadLetters replayDeadLettersCmd `cmd:"" help:"Send dead letters again, all or some."`
	DeleteDeadLetters deleteDeadLettersCmd `cmd:"" help:"Delete dead letters, all or some. The tickets stay."`
}

// subscriptionName is the name of a subscription.
type subscriptionName string

// Validate is called by kong.
func (n subscriptionName) Validate() error { return events.CheckName(string(n)) }

// eventType is the type of events.
type eventType string

// UnmarshalText checks the type.
func (k *eventType) UnmarshalText(text []byte) error {
	if !slices.Contains(events.Types(), string(text)) {
		return fmt.Errorf("%q is no type of event: use %s", text, strings.Join(events.Types(), ", "))
	}
	*k = eventType(text)
	return nil
}

// secretReference says where a secret is, where the process that sends runs.
type secretReference string

// Validate is called by kong. The value is not shown, because it may be the secret itself.
func (r secretReference) Validate() error {
	kind, name, _ := strings.Cut(string(r), ":")
	if r != "" && (kind != "file" && kind != "env" || name == "") {
		return errors.New("write file:PATH or env:NAME: where the process \"myticket events\" finds it. What was given is not " +
			"shown, because it may be the secret itself")
	}
	return nil
}

type subscriptionsCreateCmd struct {
	databaseFlags
	personFlags
	Name        subscriptionName  `arg:"" help:"At most 63 of a-z, 0-9 and -."`
	Target      string            `arg:"" help:"URL of the target, without a password: https://HOST/PATH, nats://HOST/PREFIX, kafka://HOST/TOPIC or amqps://HOST/EXCHANGE (docs/events.md)."`
	Type        []eventType       `group:"Filter" placeholder:"TYPE" help:"Only events of this type: ticket.to_treat, ticket.treated, ticket.error, ticket.dismissed or product.changed. Separate several with commas, or repeat the flag. Default: all."`
	Source      []source          `group:"Filter" placeholder:"NAME" help:"Only events about tickets of this source, and products that such tickets named. Separate several with commas, or repeat the flag. Default: all but those of --test-sources."`
	Status      []ticket.Status   `group:"Filter" enum:"TO_TREAT,TREATED,ERROR,DISMISSED" help:"Only events about tickets with this status: ${enum}. Separate several with commas, or repeat the flag. It selects no events about products. Default: all."`
	WithBody    bool              `help:"Events about tickets have the body, exactly as it was sent."`
	Secret      secretReference   `placeholder:"REFERENCE" help:"Where \"myticket events\" finds the target's secret: file:PATH, or env:NAME. The database has only this reference."`
	Authorities secretReference   `placeholder:"REFERENCE" help:"Where \"myticket events\" finds certificates (PEM) to trust instead of those of the system, as in --secret."`
	Option      map[string]string `mapsep:"none" placeholder:"NAME=VALUE" help:"A setting of the target, such as timeout=5s (docs/events.md). Repeat the flag for more."`
}

// Validate is called by kong.
func (c subscriptionsCreateCmd) Validate() error {
	sub := c.subscription()
	return errors.Join(sub.Validate(), c.check())
}

func (c subscriptionsCreateCmd) subscription() events.Subscription {
	return events.Subscription{
		Name: string(c.Name), Target: c.Target, Body: c.WithBody,
		Settings: events.Settings{Secret: string(c.Secret), Authorities: string(c.Authorities), Options: c.Option},
		Filter:   events.Filter{Types: texts(c.Type), Sources: texts(c.Source), Statuses: texts(c.Status)},
	}
}

func (c subscriptionsCreateCmd) Run(ctx context.Context, std streams) error {
	sub := c.subscription()
	by, err := c.person()
	if err != nil {
		return err
	}
	if err := tryTarget(ctx, std, sub); err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	store, err := c.open(ctx, std, "subscriptions")
	if err != nil {
		return err
	}
	defer store.Close()
	if err := store.CreateSubscription(ctx, by, sub); err != nil {
		return interrupted(ctx, err)
	}
	_, err = fmt.Fprintf(std.stdout, "Events are sent to %s from now on, where \"myticket events\" runs. "+
		"For those about tickets before: myticket subscriptions replay %s --from TIME\n", withoutQuery(sub.Target), sub.Name)
	return err
}

// tryTarget opens a target, without connecting, so that a wrong option is an error now. If it has a secret, that is not here.
func tryTarget(ctx context.Context, std streams, sub events.Subscription) error {
	if sub.Settings.Secret != "" || sub.Settings.Authorities != "" {
		return nil
	}
	at, err := address(sub)
	if err != nil {
		return err
	}
	target, err := openTarget(ctx, at, slog.New(slog.NewTextHandler(std.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	target.Close()
	return nil
}

// withoutQuery returns a URL without its parameters, of which one may be a token.
func withoutQuery(target string) string {
	parsed, err := url.Parse(target)
	if err != nil || parsed.RawQuery == "" {
		return target
	}
	parsed.RawQuery = "…"
	return parsed.String()
}

type subscriptionsListCmd struct {
	databaseFlags
	outputFlags
	zoneFlags
	watchFlags
}

func (c subscriptionsListCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "subscriptions")
	if err != nil {
		return err
	}
	defer store.Close()
	return c.repeat(ctx, std, func(std streams) error {
		subs, err := store.Subscriptions(ctx)
		if err != nil {
			return err
		}
		if c.Output == "json" {
			return printJSON(std.stdout, append([]events.SubscriptionState{}, subs...))
		}
		rows := make([][]string, 0, len(subs))
		for i := range subs {
			s := &subs[i]
			rows = append(rows, []string{
				s.Name, stateOf(s), behind(s), strconv.Itoa(s.Waiting), strconv.FormatInt(s.Delivered, 10), c.at(s.DeliveredAt),
				strconv.Itoa(s.DeadLetters), withoutQuery(s.Target), whyOf(s),
			})
		}
		header := []string{"NAME", "STATE", "BEHIND", "WAITING", "DELIVERED", "LAST", "DEAD", "TARGET", "REASON"}
		return printTable(std.stdout, header, rows)
	})
}

// at returns a time that may not be there.
func (f zoneFlags) at(t *time.Time) string {
	if t == nil {
		return ""
	}
	return f.stamp(*t)
}

// stateOf says in a word what becomes of a subscription's events.
func stateOf(s *events.SubscriptionState) string {
	switch {
	case s.Paused != nil:
		return "paused"
	case s.FailingSince != nil:
		return "failing"
	case s.Replay != nil:
		return "replaying"
	}
	return "sending"
}

func whyOf(s *events.SubscriptionState) string {
	if s.Paused != nil {
		return s.PausedWhy
	}
	return s.Failure
}

func behind(s *events.SubscriptionState) string {
	if s.Behind < time.Second {
		return s.Behind.Round(time.Millisecond).String()
	}
	return s.Behind.Round(time.Second).String()
}

type subscriptionsShowCmd struct {
	databaseFlags
	outputFlags
	zoneFlags
	Name subscriptionName `arg:"" help:"The subscription."`
}

func (c subscriptionsShowCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "subscriptions")
	if err != nil {
		return err
	}
	defer store.Close()
	subs, err := store.Subscriptions(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(subs, func(s events.SubscriptionState) bool { return s.Name == string(c.Name) })
	if i < 0 {
		return fmt.Errorf("there is no subscription %s: see \"myticket subscriptions list\"", c.Name)
	}
	if c.Output == "json" {
		return printJSON(std.stdout, subs[i])
	}
	return printFields(std.stdout, []string{"NAME", string(c.Name)}, c.fields(&subs[i]))
}

// fields are the rows of the table, without those that say nothing.
func (c subscriptionsShowCmd) fields(s *events.SubscriptionState) (rows [][]string) {
	from := "a person"
	if s.Declared {
		from = "the subscriptions file"
	}
	options := make([]string, 0, len(s.Settings.Options))
	for name, value := range s.Settings.Options {
		options = append(options, name+"="+value)
	}
	slices.Sort(options)
	replay := ""
	if r := s.Replay; r != nil {
		replay = fmt.Sprintf("from %s until %s", c.stamp(r.From), c.stamp(r.Until))
		if r.At != nil {
			replay += ", done up to " + c.stamp(*r.At)
		}
	}
	body := ""
	if s.Body {
		body = "with the body"
	}
	for _, row := range [][]string{
		{"target", s.Target}, {"made by", from}, {"secret", s.Settings.Secret}, {"authorities", s.Settings.Authorities},
		{"options", strings.Join(options, " ")}, {"types", strings.Join(s.Filter.Types, ", ")},
		{"sources", strings.Join(s.Filter.Sources, ", ")}, {"statuses", strings.Join(s.Filter.Statuses, ", ")}, {"events", body},
		{"state", stateOf(s)}, {"paused since", c.at(s.Paused)}, {"paused because", s.PausedWhy},
		{"failing since", c.at(s.FailingSince)}, {"failure", s.Failure}, {"behind", behind(s)},
		{"tickets that wait", strconv.Itoa(s.Waiting)}, {"events delivered", strconv.FormatInt(s.Delivered, 10)},
		{"last delivered", c.at(s.DeliveredAt)}, {"dead letters", strconv.Itoa(s.DeadLetters)}, {"replay", replay},
	} {
		if row[1] != "" {
			rows = append(rows, row)
		}
	}
	return rows
}

// changeSubscriptionFlags are for the commands that change one subscription.
type changeSubscriptionFlags struct {
	databaseFlags
	personFlags
	Name subscriptionName `arg:"" help:"The subscription."`
}

// Validate is called by kong.
func (f changeSubscriptionFlags) Validate() error { return f.check() }

// change makes a change, and says what was done.
func (f changeSubscriptionFlags) change(
	ctx context.Context, std streams, do func(*postgres.Store, postgres.Person) (done string, err error),
) error {
	by, err := f.person()
	if err != nil {
		return err
	}
	store, err := f.open(ctx, std, "subscriptions")
	if err != nil {
		return err
	}
	defer store.Close()
	done, err := do(store, by)
	if err != nil {
		return interrupted(ctx, err)
	}
	_, err = fmt.Fprintln(std.stdout, done)
	return err
}

type subscriptionsPauseCmd struct{ changeSubscriptionFlags }

func (c subscriptionsPauseCmd) Run(ctx context.Context, std streams) error {
	return c.change(ctx, std, func(store *postgres.Store, by postgres.Person) (string, error) {
		return fmt.Sprintf("%s is paused. What is to be sent is kept in the database, and takes space there, until it is resumed "+
			"or deleted.", c.Name), store.PauseSubscription(ctx, by, string(c.Name))
	})
}

type subscriptionsResumeCmd struct{ changeSubscriptionFlags }

func (c subscriptionsResumeCmd) Run(ctx context.Context, std streams) error {
	return c.change(ctx, std, func(store *postgres.Store, by postgres.Person) (string, error) {
		return fmt.Sprintf("%s goes on where it was, within seconds.", c.Name), store.ResumeSubscription(ctx, by, string(c.Name))
	})
}

type subscriptionsReplayCmd struct {
	changeSubscriptionFlags
	zoneFlags
	From moment `required:"" placeholder:"TIME" help:"Tickets that were received at this time or later: 2026-11-24T18:50:00Z; 2026-11-24, '2026-11-24 18:50', today, yesterday, 'monday 18:00' or 18:50 in the zone of --tz; or 2h, 1d or 1w before now."`
	To   moment `placeholder:"TIME" help:"Tickets that were received before this time, written as in --from. Default: now."`
}

func (c subscriptionsReplayCmd) Run(ctx context.Context, std streams) error {
	from, to := c.From.in(c.zone()), c.To.in(c.zone())
	if c.To.isZero() {
		to = time.Now()
	}
	if !from.Before(to) {
		return fmt.Errorf("nothing was changed: --from (%s) must be before --to (%s)", c.stamp(from), c.stamp(to))
	}
	return c.change(ctx, std, func(store *postgres.Store, by postgres.Person) (string, error) {
		return fmt.Sprintf("Tickets received from %s until %s are sent to %s again, beside new ones. How far it is: "+
				"myticket subscriptions show %[3]s", c.stamp(from), c.stamp(to), c.Name),
			store.ReplaySubscription(ctx, by, string(c.Name), from, to)
	})
}

type subscriptionsDeleteCmd struct {
	changeSubscriptionFlags
	confirmFlags
}

func (c subscriptionsDeleteCmd) Run(ctx context.Context, std streams) error {
	question := fmt.Sprintf("Delete %s? What was not sent yet is not sent, and its dead letters are deleted.", c.Name)
	return c.change(ctx, std, func(store *postgres.Store, by postgres.Person) (string, error) {
		if err := c.confirm(ctx, std, question); err != nil {
			return "", err
		}
		return fmt.Sprintf("%s is deleted.", c.Name), store.DeleteSubscription(ctx, by, string(c.Name))
	})
}

type deadLettersCmd struct {
	databaseFlags
	outputFlags
	zoneFlags
	Name  subscriptionName `arg:"" help:"The subscription."`
	Limit int              `default:"50" help:"Maximum number of dead letters. Default: ${default}."`
	After int64            `placeholder:"ID" help:"Id of the last dead letter of the previous page."`
}

// Validate is called by kong.
func (c deadLettersCmd) Validate() error {
	if c.Limit < 1 || c.Limit > events.MaxDeadLetters {
		return fmt.Errorf("--limit must be 1 to %d", events.MaxDeadLetters)
	}
	return nil
}

func (c deadLettersCmd) Run(ctx context.Context, std streams) error {
	store, err := c.open(ctx, std, "subscriptions")
	if err != nil {
		return err
	}
	defer store.Close()
	letters, err := store.DeadLetters(ctx, string(c.Name), c.After, c.Limit+1) // if there is one more, there is a next page
	if err != nil {
		return err
	}
	if len(letters) > c.Limit {
		letters = letters[:c.Limit]
		defer fmt.Fprintln(std.stderr, "Next page:", c.command(letters[c.Limit-1].ID))
	}
	if c.Output == "json" {
		return printJSON(std.stdout, append([]events.DeadLetter{}, letters...))
	}
	rows := make([][]string, 0, len(letters))
	for _, d := range letters {
		attempts := strconv.Itoa(d.Attempts)
		if d.Attempts == 0 {
			attempts = "again"
		}
		rows = append(rows, []string{
			strconv.FormatInt(d.ID, 10), c.stamp(d.At), d.Type, d.Ticket.String(), d.Product, attempts, d.Reason,
		})
	}
	return printTable(std.stdout, []string{"ID", "TIME", "TYPE", "TICKET", "PRODUCT", "ATTEMPTS", "REASON"}, rows)
}

// command returns the command line for the page after a dead letter. See ticketsListCmd.command.
func (c deadLettersCmd) command(after int64) string {
	command := "myticket subscriptions dead-letters " + string(c.Name) + c.tzFlag()
	if c.Output != "table" {
		command += " --output " + c.Output
	}
	return command + fmt.Sprintf(" --limit %d --after %d", c.Limit, after)
}

type replayDeadLettersCmd struct {
	changeSubscriptionFlags
	IDs []int64 `arg:"" name:"id" optional:"" help:"Ids of dead letters. Default: all."`
}

func (c replayDeadLettersCmd) Run(ctx context.Context, std streams) error {
	return c.change(ctx, std, func(store *postgres.Store, by postgres.Person) (string, error) {
		n, err := store.ReplayDeadLetters(ctx, by, string(c.Name), c.IDs)
		return fmt.Sprintf("%d dead letters of %s are sent again; one that is refused again stays.", n, c.Name), err
	})
}

type deleteDeadLettersCmd struct {
	changeSubscriptionFlags
	confirmFlags
	IDs []int64 `arg:"" name:"id" optional:"" help:"Ids of dead letters. Default: all."`
}

func (c deleteDeadLettersCmd) Run(ctx context.Context, std streams) error {
	what := "all dead letters"
	if len(c.IDs) > 0 {
		what = fmt.Sprintf("%d dead letters", len(c.IDs))
	}
	question := fmt.Sprintf("Delete %s of %s? These events are not sent any more, unless by a replay.", what, c.Name)
	return c.change(ctx, std, func(store *postgres.Store, by postgres.Person) (string, error) {
		if err := c.confirm(ctx, std, question); err != nil {
			return "", err
		}
		n, err := store.DeleteDeadLetters(ctx, by, string(c.Name), c.IDs)
		return fmt.Sprintf("%d dead letters of %s are deleted.", n, c.Name), err
	})
}
