// Package httpapi is everything that knows Fiber: it turns HTTP requests into calls of a Webhook, and its answers into
// HTTP responses.
package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/valyala/fasthttp/fasthttpadaptor"
	"go.opentelemetry.io/otel/trace"
)

// Config bounds what a client can make the server do. The zero value of a field means its default.
type Config struct {
	MaxBody        int           // bytes of a ticket. Defaults to 1 MiB.
	MaxHeader      int           // bytes of a request's headers; also the read buffer of each connection. Defaults to 8 KiB.
	MaxConnections int           // open connections at once. Defaults to 4096. MaxConnections × MaxBody bounds the memory.
	ReadTimeout    time.Duration // for a whole request, headers and body. Defaults to 10 s.
	WriteTimeout   time.Duration // for a whole response. Defaults to 10 s.
	IdleTimeout    time.Duration // for a connection between requests; longer than a proxy's in front. Defaults to 75 s.

	Logger   *slog.Logger         // Defaults to slog.Default.
	Tracer   trace.Tracer         // of the webhook's requests. Defaults to none: there are no traces.
	Registry *prometheus.Registry // Metrics are registered here and served on /metrics. Defaults to a new one.
}

// SetDefaults fills in the defaults.
func (c *Config) SetDefaults() {
	setDefault(&c.MaxBody, 1<<20)
	setDefault(&c.MaxHeader, 8<<10)
	setDefault(&c.MaxConnections, 4096)
	setDefault(&c.ReadTimeout, 10*time.Second)
	setDefault(&c.WriteTimeout, 10*time.Second)
	setDefault(&c.IdleTimeout, 75*time.Second)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
}

func setDefault[T int | time.Duration](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// The routes of the webhook.
const (
	defaultRoute = "/ticket"
	sourceRoute  = "/ticket/:source"
)

// overLimit is how far beyond the limit a body is read all the same, so that its sender gets an answer. A sender whose
// body is longer is cut off in the middle of sending it, and may see a reset connection instead of the 413.
const overLimit = 64 << 10

// Server is the public listener.
type Server struct {
	app     *fiber.App
	webhook *Webhook
	metrics *metrics
	tracer  trace.Tracer // nil for none
	logger  *slog.Logger
}

// New returns a server that hands tickets to accepter.
func New(config Config, accepter Accepter, sources *Sources) *Server {
	config.SetDefaults()
	s := &Server{
		webhook: NewWebhook(accepter, sources, config.MaxBody, config.Logger),
		metrics: newMetrics(config.Registry, sources),
		tracer:  config.Tracer,
		logger:  config.Logger,
	}
	s.app = fiber.New(fiber.Config{
		AppName:       "MyTicket",
		BodyLimit:     config.MaxBody + overLimit,
		CaseSensitive: true,
		Concurrency:   config.MaxConnections,
		// A multipart body would be taken apart and put together again, and not be the bytes that came.
		DisablePreParseMultipartForm: true,
		DisableStartupMessage:        true,
		ErrorHandler:                 s.fiberError,
		IdleTimeout:                  config.IdleTimeout,
		Network:                      fiber.NetworkTCP,
		ReadBufferSize:               config.MaxHeader,
		ReadTimeout:                  config.ReadTimeout,
		WriteTimeout:                 config.WriteTimeout,
	})
	s.registerConnections(config)
	s.app.Post(defaultRoute, s.ticket)
	s.app.Post(sourceRoute, s.ticket)
	s.app.Get("/ping", func(c *fiber.Ctx) error { return c.SendString("Pong") })
	exposition := fasthttpadaptor.NewFastHTTPHandler(promhttp.HandlerFor(config.Registry, promhttp.HandlerOpts{}))
	s.app.Get("/metrics", func(c *fiber.Ctx) error { exposition(c.Context()); return nil })
	return s
}

// registerConnections adds the metrics of connections.
func (s *Server) registerConnections(config Config) {
	auto := promauto.With(config.Registry)
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "myticket_http_connections",
		Help: "Open connections to the webhook.",
	}, func() float64 { return float64(s.app.Server().GetOpenConnectionsCount()) })
	auto.NewGauge(prometheus.GaugeOpts{
		Name: "myticket_http_max_connections",
		Help: "Connections to the webhook that may be open at once.",
	}).Set(float64(config.MaxConnections))
	auto.NewCounterFunc(prometheus.CounterOpts{
		Name: "myticket_http_connections_refused_total",
		Help: "Connections that were answered 503 because as many as may be were open.",
	}, func() float64 { return float64(s.app.Server().GetRejectedConnectionsCount()) })
}

// Serve answers requests on a listener until Shutdown.
func (s *Server) Serve(listener net.Listener) error {
	if err := s.app.Listener(listener); err != nil {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

// Shutdown closes the listener and idle connections, and returns when the requests under way are answered, or with an
// error when ctx ends before that.
func (s *Server) Shutdown(ctx context.Context) error { return s.app.ShutdownWithContext(ctx) }

// ticket is the webhook. Everything is copied out of Fiber's buffers, which the connection's next request overwrites.
func (s *Server) ticket(c *fiber.Ctx) (err error) {
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack()) // fiberError answers and counts it
		}
	}()
	h := &c.Request().Header
	sent := string(h.Peek("Traceparent"))
	span := s.startSpan(c, sent)
	defer span.End()
	r := s.webhook.Ticket(Request{
		Source: strings.Clone(c.Params("source")),
		Headers: Headers{
			Authorization:    string(h.Peek(fiber.HeaderAuthorization)),
			ContentEncoding:  string(h.Peek(fiber.HeaderContentEncoding)),
			ContentType:      string(h.ContentType()),
			IdempotencyKey:   string(h.Peek("Idempotency-Key")),
			Traceparent:      traceparentOf(span, sent),
			WebhookID:        string(h.Peek("Webhook-Id")),
			WebhookSignature: string(h.Peek("Webhook-Signature")),
			WebhookTimestamp: string(h.Peek("Webhook-Timestamp")),
		},
		Body: bytes.Clone(c.BodyRaw()),
	})
	write(c, r)
	describe(span, r)
	s.metrics.request(r, time.Since(start), span.SpanContext())
	return nil
}

func write(c *fiber.Ctx, r Response) {
	response := c.Response()
	response.SetStatusCode(r.Status)
	response.Header.SetContentType(r.ContentType)
	if r.RetryAfter > 0 {
		response.Header.Set(fiber.HeaderRetryAfter, strconv.Itoa(r.RetryAfter))
	}
	if r.Challenge != "" {
		response.Header.Set(fiber.HeaderWWWAuthenticate, r.Challenge)
	}
	response.SetBodyRaw(r.Body)
}

// fiberError answers what Fiber itself found wrong, before a handler ran or instead of one.
func (s *Server) fiberError(c *fiber.Ctx, err error) error {
	var fiberErr *fiber.Error
	if !errors.As(err, &fiberErr) {
		r := s.webhook.failed(Request{Source: strings.Clone(c.Params("source"))}, err)
		s.metrics.request(r, 0, trace.SpanContext{})
		write(c, r)
		return nil
	}
	r := problem(fiberErr.Code, "bad_request", "The request cannot be read as HTTP. Nothing was stored.")
	switch fiberErr.Code {
	case http.StatusNotFound:
		r = problem(fiberErr.Code, "not_found", "Tickets are taken by POST /ticket and POST /ticket/{source}. Nothing was stored.")
	case http.StatusMethodNotAllowed:
		r = problem(fiberErr.Code, "method_not_allowed", "Tickets are taken by POST. Nothing was stored.")
	case http.StatusRequestEntityTooLarge:
		r = s.webhook.tooLarge()
	case http.StatusRequestHeaderFieldsTooLarge:
		r = problem(fiberErr.Code, "header_too_large", "The request's headers are too large. Nothing was stored.")
	case http.StatusRequestTimeout:
		r = problem(fiberErr.Code, "request_timeout", "The request did not arrive in time. Nothing was stored; send it again.")
	}
	s.metrics.request(r, 0, trace.SpanContext{})
	write(c, r)
	return nil
}
