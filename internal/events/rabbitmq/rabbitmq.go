// Package rabbitmq sends events to an exchange of RabbitMQ, by AMQP 0-9-1.
//
// An event is a persistent message in the structured mode of CloudEvents: its body is the event as JSON, and its content_type
// says so. CloudEvents has a binding for AMQP 1.0 only
// (https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/amqp-protocol-binding.md), whose content-type is the
// property that RabbitMQ maps to content_type. The event's id is the message_id, its type the type.
//
// An event is delivered once RabbitMQ confirmed it, which for a persistent message in a durable queue is after it is on disk,
// and in a quorum queue on most of its members (https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed). Messages
// are mandatory: one that no queue takes comes back, and is an error (https://www.rabbitmq.com/docs/publishers#unroutable).
// Otherwise it would be confirmed, and be nowhere. The exchange and its queues must exist: this package never makes one.
package rabbitmq

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"myticket/internal/events"
)

const (
	// defaultPatience is how long a Send waits for the next confirmation, and how long connecting to a server may take.
	defaultPatience = 10 * time.Second
	// defaultWindow is how many events wait for their confirmation.
	defaultWindow = 256
	// maxText is how long AMQP lets names, routing keys and message ids be, in bytes.
	maxText = 255
)

// target is an exchange. Only one goroutine uses it at a time.
type target struct {
	address    events.Address
	vhost      string
	exchange   string
	routingKey string // empty: the event's type and source
	patience   time.Duration
	window     int
	strict     bool
	logger     *slog.Logger

	connection *connection // nil if there is none
	maxBody    int         // of a message, in bytes; 0 as long as the server did not say
}

// Open returns the target of an address such as amqps://user@host:5671/vhost?exchange=tickets. It does not connect: Send does.
// Without a path, the virtual host is "/". Several hosts, each with its port, have commas between them.
//
// The secret is the user's password. Options are "exchange", "routing-key" (for all events; otherwise it is TYPE.SOURCE, such
// as ticket.treated.shop-7), "timeout" (how long to wait for a confirmation, 10s by default), "window" (how many events wait
// for theirs, 256 by default) and "order" ("strict": one of each source at a time). Only with a routing key there may be no
// exchange: it is the name of a queue then.
func Open(_ context.Context, address events.Address, logger *slog.Logger) (events.Target, error) {
	settings, err := address.Settings("exchange", "routing-key", "timeout", "window", "order")
	if err != nil {
		return nil, err
	}
	t := &target{address: address, exchange: settings["exchange"], routingKey: settings["routing-key"], logger: logger}
	if t.exchange == "" && t.routingKey == "" {
		return nil, fmt.Errorf("the address of the target has no exchange: add one, such as "+
			"%s://host/vhost?exchange=tickets", address.URL.Scheme)
	}
	if len(t.exchange) > maxText || len(t.routingKey) > maxText {
		return nil, fmt.Errorf("the exchange or the routing key of the target is too long: AMQP takes %d bytes", maxText)
	}
	if t.patience, err = events.Patience(settings, defaultPatience); err != nil {
		return nil, err
	}
	if t.window, err = events.Window(settings, defaultWindow); err != nil {
		return nil, err
	}
	if t.strict, err = events.Strict(settings); err != nil {
		return nil, err
	}
	if t.vhost, err = vhostOf(address.URL); err != nil {
		return nil, err
	}
	for host := range strings.SplitSeq(address.URL.Host, ",") {
		if host == "" || strings.HasPrefix(host, ":") {
			return nil, errors.New("a server in the address of the target has no name: it is amqps://host:5671/vhost, with commas " +
				"between several hosts")
		}
	}
	if address.URL.Scheme == "amqp" && len(address.Authorities) > 0 {
		return nil, errors.New("the target has authorities and does not use TLS: its address is amqps://…")
	}
	if len(address.Secret) > 0 && address.URL.User.Username() == "" {
		return nil, fmt.Errorf("the target has a password and its address names no user: write %s://user@host/…", address.URL.Scheme)
	}
	_, err = address.TLS()
	return t, err
}

// vhostOf returns the virtual host that a path names (https://www.rabbitmq.com/docs/uri-spec#the-amqp-uri-scheme).
func vhostOf(address *url.URL) (string, error) {
	path := strings.TrimPrefix(address.EscapedPath(), "/")
	if path == "" {
		return "/", nil
	}
	if strings.Contains(path, "/") {
		return "", fmt.Errorf("the path of the target, %q, is no virtual host: write a / in its name as %%2F", address.EscapedPath())
	}
	return url.PathUnescape(path)
}

// Close ends the connection. What is on its way is not waited for.
func (t *target) Close() { t.close(true) }

func (t *target) close(inOrder bool) {
	if t.connection != nil {
		t.connection.close(inOrder)
		t.connection = nil
	}
}

// Send implements events.Target. It waits at most the option "timeout" for the next confirmation. After an error of the
// connection it sends nothing more: the next Send connects.
func (t *target) Send(ctx context.Context, batch []events.Event) []error {
	flight := events.NewFlight(batch, t.window, t.strict)
	if err := t.connect(ctx); err != nil {
		return flight.Errors(err)
	}
	c := t.connection
	defer context.AfterFunc(ctx, c.line.abort)()
	err := t.send(ctx, c, flight, batch)
	if err != nil {
		t.close(false)
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
			if t.maxBody > 0 && len(batch[i].JSON) > t.maxBody {
				flight.Failed(i, t.tooLarge(&batch[i]))
				continue
			}
			if err := t.publish(ctx, c, i, &batch[i]); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return t.ended(c, flight, batch, err)
			}
		}
		if flight.Waiting() == 0 {
			return nil
		}
		select {
		case confirmation, ok := <-c.confirmations:
			if !ok {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return t.ended(c, flight, batch, nil)
			}
			t.confirm(c, flight, batch, confirmation)
			patience.Reset(t.patience)
		case <-patience.C:
			if reason := c.blockedBy(); reason != "" {
				return fmt.Errorf("%s takes no messages at present, because of an alarm: %s", c.server, reason)
			}
			return fmt.Errorf("%s confirmed nothing for %s", c.server, t.patience)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// publish writes an event to the server.
func (t *target) publish(ctx context.Context, c *connection, i int, e *events.Event) error {
	err := c.channel.PublishWithContext(ctx, t.exchange, t.key(e), true, false, amqp.Publishing{
		ContentType:  events.ContentType,
		DeliveryMode: amqp.Persistent,
		MessageId:    messageID(e),
		Type:         e.Type,
		AppId:        "myticket",
		Timestamp:    e.Time,
		Body:         e.JSON,
	})
	if err == nil {
		c.underway = append(c.underway, i)
	}
	return err
}

// messageID returns the event's id, or its hash if AMQP takes no text of this length. The body has the id in any case.
func messageID(e *events.Event) string {
	if len(e.ID) <= maxText {
		return e.ID
	}
	hash := sha256.Sum256([]byte(e.ID))
	return hex.EncodeToString(hash[:])
}

func (t *target) key(e *events.Event) string {
	if t.routingKey != "" {
		return t.routingKey
	}
	return e.Type + "." + e.Key
}

// confirm takes the confirmation of the oldest event on its way: the client gives them in the order of the events.
func (t *target) confirm(c *connection, flight *events.Flight, batch []events.Event, confirmation amqp.Confirmation) {
	i := c.underway[0]
	c.underway = c.underway[1:]
	for { // the server returns a message before it confirms it
		select {
		case returned, ok := <-c.returns:
			if ok {
				c.returned[returned.MessageId] = fmt.Errorf("no queue takes a message of the exchange %q with the routing key %q, so "+
					"the event is in "+
					"none: bind one (%d %s)", returned.Exchange, returned.RoutingKey, returned.ReplyCode, returned.ReplyText)
				continue
			}
		default:
		}
		break
	}
	returned := c.returned[messageID(&batch[i])]
	delete(c.returned, messageID(&batch[i]))
	switch {
	case returned != nil:
		flight.Failed(i, returned)
	case !confirmation.Ack:
		flight.Failed(i, fmt.Errorf("%s did not take the event: a queue is full and rejects (x-overflow), or its server is "+
			"away", c.server))
	default:
		flight.Delivered(i)
	}
}

// configuredMax finds the server's limit in the reason for which it closes a channel.
var configuredMax = regexp.MustCompile(`larger than (?:configured )?max size (\d+)`)

// ended returns why the channel or the connection was closed. It fails the events that are too large, if that was the reason.
func (t *target) ended(c *connection, flight *events.Flight, batch []events.Event, err error) error {
	if err != nil {
		c.line.abort() // so that the confirmations end
	}
	for confirmation := range c.confirmations { // what came before
		t.confirm(c, flight, batch, confirmation)
	}
	if reason := c.reason(); reason != nil {
		err = reason
		if found := configuredMax.FindStringSubmatch(reason.Reason); found != nil {
			if limit, parseErr := strconv.Atoi(found[1]); parseErr == nil {
				t.maxBody = limit
			}
			for i := range batch {
				if flight.IsWaiting(i) && t.maxBody > 0 && len(batch[i].JSON) > t.maxBody {
					flight.Failed(i, t.tooLarge(&batch[i]))
				}
			}
			return fmt.Errorf("%s closed the channel because of an event that is too large", c.server)
		}
	}
	if err == nil {
		err = amqp.ErrClosed
	}
	return fmt.Errorf("the connection to %s ended: %w", c.server, err)
}

func (t *target) tooLarge(e *events.Event) error {
	return fmt.Errorf("%w: it has %d bytes, and the server takes %d in a message "+
		"(max_message_size)", events.ErrRejected, len(e.JSON), t.maxBody)
}
