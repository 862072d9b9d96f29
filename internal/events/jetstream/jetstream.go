// Package jetstream sends events to a stream of NATS JetStream.
//
// An event is a message in the structured mode of CloudEvents' binding for NATS
// (https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/nats-protocol-binding.md): its data are the event as
// JSON, and the header content-type says so. It is delivered once the stream acknowledged it
// (https://docs.nats.io/nats-concepts/jetstream/streams). The header Nats-Msg-Id has the event's id, so the stream drops a
// repeat within its window of duplicates, two minutes by default
// (https://docs.nats.io/using-nats/developer/develop_jetstream/model_deep_dive#message-deduplication).
//
// The subject is PREFIX.TYPE.SOURCE, such as tickets.ticket.treated.shop-7: the path of the address, the event's type, which
// has one dot, and the event's key. A source has only a-z, 0-9 and -, so it is one token of the subject. The stream must exist:
// this package never makes or changes one.
package jetstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"myticket/internal/events"
)

const (
	// defaultPatience is how long a Send waits for the next acknowledgement, and how long connecting to a server may take.
	defaultPatience = 10 * time.Second
	// defaultWindow is how many events wait for their acknowledgement. A server takes 10,000 for a stream before it refuses some.
	defaultWindow = 512

	// tooLarge is the code of JetStream's error for a message above the stream's limit.
	tooLarge jetstream.ErrorCode = 10054
)

// target is a stream. Only one goroutine uses it at a time.
type target struct {
	address  events.Address
	servers  string // URLs, separated by commas
	prefix   string // of subjects, with a dot at the end
	patience time.Duration
	window   int
	strict   bool
	options  []nats.Option
	logger   *slog.Logger

	connection *connection // nil if there is none
}

// Open returns the target of an address such as nats://user@host:4222,host2:4222/tickets or tls://…. It does not connect: Send
// does.
//
// The secret is the text of a credentials file (.creds), or the password of the user that the address names. Options are
// "timeout" (how long to wait for an acknowledgement, 10s by default), "window" (how many events wait for theirs, 512 by
// default), "order" ("strict": one of each source at a time) and "inbox" (the prefix of the subjects of acknowledgements,
// _INBOX by default).
func Open(_ context.Context, address events.Address, logger *slog.Logger) (events.Target, error) {
	settings, err := address.Settings("timeout", "window", "order", "inbox")
	if err != nil {
		return nil, err
	}
	t := &target{address: address, logger: logger}
	if t.patience, err = events.Patience(settings, defaultPatience); err != nil {
		return nil, err
	}
	if t.window, err = events.Window(settings, defaultWindow); err != nil {
		return nil, err
	}
	if t.strict, err = events.Strict(settings); err != nil {
		return nil, err
	}
	if t.prefix, err = prefixOf(address.URL.Path); err != nil {
		return nil, err
	}
	if t.servers, err = serversOf(address); err != nil {
		return nil, err
	}
	if err := t.connectOptions(settings["inbox"]); err != nil {
		return nil, err
	}
	return t, nil
}

// prefixOf returns what subjects begin with. Wildcards, spaces and empty tokens are no subject
// (https://docs.nats.io/nats-concepts/subjects), and what begins with $ is the server's own.
func prefixOf(path string) (string, error) {
	prefix := strings.Trim(path, "/")
	if prefix == "" {
		return "", errors.New("the address of the target has no prefix for subjects: add one, such as nats://host:4222/tickets")
	}
	for token := range strings.SplitSeq(prefix, ".") {
		if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || strings.ContainsRune("*>/$\x7f", r) }) {
			return "", fmt.Errorf("the path of the target, %q, is no prefix of a subject: it is names with dots between them, such "+
				"as tickets.eu", path)
		}
	}
	return prefix + ".", nil
}

// serversOf returns the URLs of the servers. The user is an option of the connection.
func serversOf(address events.Address) (string, error) {
	var servers []string
	for host := range strings.SplitSeq(address.URL.Host, ",") {
		if host == "" || strings.HasPrefix(host, ":") {
			return "", errors.New("a server in the address of the target has no name: it is nats://host:4222/tickets, with commas " +
				"between several hosts")
		}
		servers = append(servers, address.URL.Scheme+"://"+host)
	}
	return strings.Join(servers, ","), nil
}

func (t *target) connectOptions(inbox string) error {
	t.options = []nats.Option{
		nats.Name("myticket events"),
		nats.Timeout(t.patience),
		nats.FlusherTimeout(t.patience),
		nats.PingInterval(t.patience),
		nats.MaxPingsOutstanding(2),
		// A Send connects. The client's own reconnecting keeps what was not sent yet, and sends it after what was lost.
		nats.NoReconnect(),
	}
	config, err := t.address.TLS()
	if err != nil {
		return err
	}
	t.options = append(t.options, func(o *nats.Options) error {
		o.TLSConfig = config
		o.Secure = t.address.URL.Scheme == "tls" || len(t.address.Authorities) > 0
		return nil
	})
	if inbox != "" {
		t.options = append(t.options, nats.CustomInboxPrefix(inbox))
	}
	switch user := t.address.URL.User.Username(); {
	case user != "":
		t.options = append(t.options, nats.UserInfo(user, string(t.address.Secret)))
	case len(t.address.Secret) > 0:
		if !bytes.Contains(t.address.Secret, []byte("-----BEGIN NATS USER JWT-----")) {
			return errors.New("the secret of the target is no credentials file of NATS (.creds), and its address names no user whose " +
				"password it could be: write nats://user@host:4222/…")
		}
		t.options = append(t.options, nats.UserCredentialBytes(t.address.Secret))
	}
	return nil
}

// Close ends the connection. What is on its way is not waited for.
func (t *target) Close() {
	if t.connection != nil {
		t.connection.close()
		t.connection = nil
	}
}

// Send implements events.Target. It waits at most the option "timeout" for the next acknowledgement. After an error of the
// connection it sends nothing more: the next Send connects.
func (t *target) Send(ctx context.Context, batch []events.Event) []error {
	flight := events.NewFlight(batch, t.window, t.strict)
	if err := t.connect(ctx); err != nil {
		return flight.Errors(err)
	}
	c := t.connection
	defer context.AfterFunc(ctx, c.line.abort)()
	c.sends++
	err := t.send(ctx, c, flight, batch)
	if err != nil {
		// What arrives on this connection later belongs to no Send.
		t.Close()
	}
	return flight.Errors(err)
}

// send returns an error if the connection cannot be used any more.
func (t *target) send(ctx context.Context, c *connection, flight *events.Flight, batch []events.Event) error {
	patience := time.NewTimer(t.patience)
	defer patience.Stop()
	for {
		for {
			i, ok := flight.Next()
			if !ok {
				break
			}
			switch err := c.publish(t.subject(&batch[i]), i, &batch[i]); {
			case errors.Is(err, nats.ErrMaxPayload):
				flight.Failed(i, fmt.Errorf("%w: it has %d bytes, and the server takes %d in a message (max_payload)",
					events.ErrRejected, len(batch[i].JSON), c.nats.MaxPayload()))
			case errors.Is(err, nats.ErrBadSubject):
				flight.Failed(i, fmt.Errorf("%w: %q is no subject", events.ErrRejected, t.subject(&batch[i])))
			case err != nil:
				return c.reason(err)
			}
		}
		if flight.Waiting() == 0 {
			return nil
		}
		select {
		case answer := <-c.answers:
			if t.take(c, flight, batch, answer) {
				patience.Reset(t.patience)
			}
		case err := <-c.refusals:
			if !t.refuse(flight, batch, err) {
				return fmt.Errorf("the server does not permit acknowledgements: %w", err)
			}
		case <-c.closed:
			for { // what came before the connection ended
				select {
				case answer := <-c.answers:
					t.take(c, flight, batch, answer)
					continue
				default:
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return c.reason(c.nats.LastError())
			}
		case <-patience.C:
			return fmt.Errorf("%s acknowledged nothing for %s", c.server, t.patience)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (t *target) subject(e *events.Event) string { return t.prefix + e.Type + "." + e.Key }

// take takes an answer of the server, and reports whether it was one for an event on its way.
func (t *target) take(c *connection, flight *events.Flight, batch []events.Event, answer *nats.Msg) bool {
	i, ok := c.event(answer.Subject)
	if !ok || !flight.IsWaiting(i) {
		return false
	}
	if err := t.outcome(&batch[i], answer); err != nil {
		flight.Failed(i, err)
	} else {
		flight.Delivered(i)
	}
	return true
}

// outcome returns what the server says of an event: nil if the stream has it.
func (t *target) outcome(e *events.Event, answer *nats.Msg) error {
	if len(answer.Data) == 0 && answer.Header.Get("Status") == "503" {
		return fmt.Errorf("no stream takes the subject %s, so the event is not stored: create one (nats stream add NAME "+
			"--subjects '%s>'), "+
			"or wait until the stream's servers have a leader", t.subject(e), t.prefix)
	}
	if bytes.HasPrefix(answer.Data, []byte(`{"stream":"`)) && !bytes.Contains(answer.Data, []byte(`"error"`)) {
		return nil
	}
	var ack struct {
		Error  *jetstream.APIError `json:"error"`
		Stream string              `json:"stream"`
	}
	if err := json.Unmarshal(answer.Data, &ack); err != nil {
		return fmt.Errorf("the answer to an event on %s is none of JetStream, so something else took it there, too: "+
			"%w", t.subject(e), err)
	}
	switch {
	case ack.Error != nil && ack.Error.ErrorCode == tooLarge:
		return fmt.Errorf("%w: it has %d bytes, more than its stream takes in a message (max_msg_size): %s",
			events.ErrRejected, len(e.JSON), ack.Error.Description)
	case ack.Error != nil:
		return fmt.Errorf("the stream of %s did not store the event: %w", t.subject(e), ack.Error)
	case ack.Stream == "":
		return fmt.Errorf("the answer to an event on %s is none of JetStream, so something else took it there, too", t.subject(e))
	}
	return nil
}

// refuse fails the events that the server does not let this user publish. It returns false if the refusal was not about
// publishing.
func (t *target) refuse(flight *events.Flight, batch []events.Event, refusal error) bool {
	_, subject, ok := strings.Cut(strings.ToLower(refusal.Error()), `publish to "`)
	if !ok {
		return false
	}
	subject, _, _ = strings.Cut(subject, `"`)
	for i := range batch {
		if flight.IsWaiting(i) && strings.ToLower(t.subject(&batch[i])) == subject {
			flight.Failed(i, fmt.Errorf("the server does not let this user publish there: %w", refusal))
		}
	}
	return true
}

// message is reused for each event, because the client copies it into its buffer.
func newMessage() *nats.Msg {
	return &nats.Msg{Header: nats.Header{
		jetstream.MsgIDHeader: {""},
		"content-type":        {events.ContentType},
	}}
}

// publish writes an event into the client's buffer.
func (c *connection) publish(subject string, i int, e *events.Event) error {
	c.message.Subject = subject
	c.message.Reply = c.inbox + "." + strconv.Itoa(c.sends) + "." + strconv.Itoa(i)
	c.message.Header[jetstream.MsgIDHeader][0] = e.ID
	c.message.Data = e.JSON
	return c.nats.PublishMsg(c.message)
}

// event returns the index of the event that an answer belongs to. ok is false if it is none of the present Send.
func (c *connection) event(reply string) (i int, ok bool) {
	rest, ok := strings.CutPrefix(reply, c.inbox+".")
	if !ok {
		return 0, false
	}
	sends, index, ok := strings.Cut(rest, ".")
	if !ok || sends != strconv.Itoa(c.sends) {
		return 0, false
	}
	i, err := strconv.Atoi(index)
	return i, err == nil
}
