// Package httpapi is the only package that knows Fiber: it turns HTTP requests into calls of a Webhook, and the answers into
// HTTP responses.
package httpapi

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttpadaptor"
	"go.opentelemetry.io/otel/trace"
)

// Config bounds what a client can make the server do. The zero value of a field means its default.
type Config struct {
	MaxBody        int           // bytes of a ticket. Defaults to 1 MiB.
	MaxHeader      int           // bytes of a request's headers; also the read buffer of each connection. Defaults to 8 KiB.
	BodyBytes      int           // bytes of all bodies that are being read or wait for their answer. Defaults to 128 MiB.
	MaxConnections int           // open connections. Defaults to 4096. Each costs ConnectionCost.
	MaxPerPeer     int           // connections of one peer: an IPv4 address, or the first 64 bits of IPv6. Defaults to 0: no limit.
	PeerHeader     string        // header in which a proxy in front names the peer, whose requests MaxPerPeer then bounds.
	ReadTimeout    time.Duration // for a whole request, headers and body. Defaults to 10 s.
	WriteTimeout   time.Duration // for a whole response. Defaults to 10 s.
	IdleTimeout    time.Duration // for a connection between requests; longer than that of a proxy in front. Defaults to 75 s.

	IgnoreParameters []string // parameters of the URL that are ignored, "*" for all; others are answered 400. Defaults to none.

	Logger   *slog.Logger         // Defaults to slog.Default.
	Tracer   trace.Tracer         // of the webhook's requests. Defaults to none, which means no traces.
	Registry *prometheus.Registry // Metrics are registered here and served on /metrics. Defaults to a new one.
}

// setDefaults fills in the defaults.
func (c *Config) setDefaults() {
	c.MaxBody = cmp.Or(c.MaxBody, 1<<20)
	c.MaxHeader = cmp.Or(c.MaxHeader, 8<<10)
	c.BodyBytes = cmp.Or(c.BodyBytes, 128<<20)
	c.MaxConnections = cmp.Or(c.MaxConnections, 4096)
	c.ReadTimeout = cmp.Or(c.ReadTimeout, 10*time.Second)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 10*time.Second)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 75*time.Second)
	c.Logger = cmp.Or(c.Logger, slog.Default())
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
}

// The routes of the webhook.
const (
	defaultRoute = "/ticket"
	sourceRoute  = "/ticket/:source"
)

// writeBuffer is the size of each connection's buffer for answers, in bytes. Only an answer with many problems is longer.
const writeBuffer = 4 << 10

// ConnectionCost returns the most memory that a connection takes, in bytes, without what its ticket becomes: its buffers, a
// small body, and the measured size of its goroutine, its stacks and the structures of a request
// (TestConnection_CostsWhatIsCounted).
func ConnectionCost(maxHeader int) int { return maxHeader + writeBuffer + SmallBody + connectionRest }

const connectionRest = 24 << 10

// Server is the public listener.
type Server struct {
	app         *fiber.App
	webhook     *Webhook
	metrics     *metrics
	tracer      trace.Tracer // nil for none
	logger      *slog.Logger
	bodies      *budget
	peers       *peers // nil unless a proxy in front names them
	refusals    refusals
	scraping    atomic.Int64                // answers of /metrics that are being made or written
	connections atomic.Pointer[connections] // nil until Serve
	config      Config
}

// New returns a server that hands tickets to accepter.
func New(config Config, accepter Accepter, sources *Sources) *Server {
	config.setDefaults()
	s := &Server{
		webhook: NewWebhook(accepter, sources, config.MaxBody, config.Logger),
		metrics: newMetrics(config.Registry, sources),
		tracer:  config.Tracer,
		logger:  config.Logger,
		bodies:  &budget{max: int64(config.BodyBytes)},
		config:  config,
	}
	if config.PeerHeader != "" && config.MaxPerPeer > 0 {
		s.peers = &peers{header: config.PeerHeader, max: config.MaxPerPeer, busy: map[netip.Addr]int{}}
	}
	s.app = fiber.New(fiber.Config{
		AppName: "MyTicket",
		// With a stream, the handler reads the body, after the head was checked. Before that, at most BodyLimit bytes are read,
		// which cannot be 0.
		StreamRequestBody: true,
		BodyLimit:         1,
		CaseSensitive:     true,
		// The listener bounds the connections. Connections that it has closed may not have ended yet.
		Concurrency: config.MaxConnections + 2*maxLeaving,
		// A multipart body would be parsed and written again, and so would not be the bytes that were sent.
		DisablePreParseMultipartForm: true,
		DisableStartupMessage:        true,
		ErrorHandler:                 s.fiberError,
		IdleTimeout:                  config.IdleTimeout,
		Network:                      fiber.NetworkTCP,
		ReadBufferSize:               config.MaxHeader,
		ReadTimeout:                  config.ReadTimeout,
		WriteBufferSize:              writeBuffer,
		WriteTimeout:                 config.WriteTimeout,
	})
	s.app.Server().HeaderReceived = s.headerReceived
	s.app.Server().ConnState = connState
	s.registerConnections(config)
	s.app.Post(defaultRoute, s.ticket)
	s.app.Post(sourceRoute, s.ticket)
	s.app.Get("/ping", func(c *fiber.Ctx) error { return c.SendString("Pong") })
	exposition := fasthttpadaptor.NewFastHTTPHandler(promhttp.HandlerFor(config.Registry, promhttp.HandlerOpts{}))
	s.app.Get("/metrics", func(c *fiber.Ctx) error { return s.scrape(c, exposition) })
	return s
}

// maxScrapes bounds the answers of /metrics that are being made or written. They grow with the number of sources, and each
// takes memory until its client has read it.
const maxScrapes = 16

func (s *Server) scrape(c *fiber.Ctx, exposition fasthttp.RequestHandler) error {
	if s.scraping.Add(1) > maxScrapes {
		s.scraping.Add(-1)
		write(c, retryLater(http.StatusServiceUnavailable, "overloaded", retryOverloaded,
			"Too many requests read the metrics at the same time. Send the request again later."))
		return nil
	}
	if conn, ok := c.Context().Conn().(*conn); ok {
		conn.scraping = &s.scraping // until the answer is written
	} else {
		defer s.scraping.Add(-1)
	}
	exposition(c.Context())
	body := bytes.Clone(c.Response().Body())
	c.Response().ReleaseBody(0) // otherwise the connection keeps that memory until it is closed
	c.Response().SetBodyRaw(body)
	return nil
}

// registerConnections adds the metrics of connections, and of the bodies on them.
func (s *Server) registerConnections(config Config) {
	auto := promauto.With(config.Registry)
	of := func(value func(*connections) int64) func() float64 {
		return func() float64 {
			if l := s.connections.Load(); l != nil {
				return float64(value(l))
			}
			return 0
		}
	}
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "myticket_http_connections",
		Help: "Open connections to the webhook.",
	}, of(func(l *connections) int64 { return int64(l.count()) }))
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "myticket_http_connections_idle",
		Help: "Open connections to the webhook without a request in progress; the one that has idled longest is closed first.",
	}, of(func(l *connections) int64 { return int64(l.idling()) }))
	auto.NewGauge(prometheus.GaugeOpts{
		Name: "myticket_http_max_connections",
		Help: "Maximum number of open connections to the webhook.",
	}).Set(float64(config.MaxConnections))
	auto.NewCounterFunc(prometheus.CounterOpts{
		Name: "myticket_http_connections_refused_total",
		Help: "Connections that were answered 503 because the maximum was open, each with a request in progress.",
	}, of(func(l *connections) int64 {
		return l.refused.Load() + int64(s.app.Server().GetRejectedConnectionsCount())
	}))
	auto.NewCounterFunc(prometheus.CounterOpts{
		Name: "myticket_http_connections_closed_idle_total",
		Help: "Idle connections that were closed for a new one, because the maximum was open.",
	}, of(func(l *connections) int64 { return l.closedIdle.Load() }))
	auto.NewCounterFunc(prometheus.CounterOpts{
		Name: "myticket_http_connections_closed_slow_total",
		Help: "Connections that were closed for a new one while their request had been arriving for over a second, because the " +
			"maximum was open and none idled.",
	}, of(func(l *connections) int64 { return l.closedSlow.Load() }))
	auto.NewCounterFunc(prometheus.CounterOpts{
		Name: "myticket_http_peer_refused_total",
		Help: "Connections, or with --peer-header requests, that were answered 429 because their peer had its maximum.",
	}, of(func(l *connections) int64 {
		refused := l.peerFull.Load()
		if s.peers != nil {
			refused += s.peers.refused.Load()
		}
		return refused
	}))
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "myticket_http_body_bytes",
		Help: "Memory of the bodies that are being read or wait for their answer.",
	}, func() float64 { return float64(s.bodies.held.Load()) })
	auto.NewGauge(prometheus.GaugeOpts{
		Name: "myticket_http_max_body_bytes",
		Help: "Maximum memory of all bodies; those of more than 8 KiB may take half of it.",
	}).Set(float64(config.BodyBytes))
}

// Serve answers requests on a listener until Shutdown.
func (s *Server) Serve(listener net.Listener) error {
	perPeer := s.config.MaxPerPeer
	if s.peers != nil {
		perPeer = 0 // all connections come from the proxy
	}
	accepting := newConnections(listener, s.config.MaxConnections, perPeer,
		deadlineSlack(s.config.ReadTimeout, s.config.WriteTimeout, s.config.IdleTimeout))
	s.connections.Store(accepting)
	if err := s.app.Listener(accepting); err != nil {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

// Shutdown closes the listener and idle connections. It returns when all requests in progress are answered, or with an error
// when ctx ends before that.
func (s *Server) Shutdown(ctx context.Context) error { return s.app.ShutdownWithContext(ctx) }

// ticket is the handler of the webhook. It copies everything out of Fiber's buffers, because the connection's next request
// overwrites them.
func (s *Server) ticket(c *fiber.Ctx) (err error) {
	whole := false // the body has been read
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack()) // fiberError answers and counts it
			if !whole {
				c.Response().SetConnectionClose()
			}
		}
	}()
	h := &c.Request().Header
	name, ok := sourceOf(h)
	if !ok { // the router sees another path than headerReceived did: nothing was admitted
		return fiber.ErrNotFound
	}
	r := Request{Source: s.webhook.sources.name(name)}
	if refused, ok := s.refusals.take(h); ok {
		s.refuse(c, r, refused)
		return nil
	}
	if s.peers != nil {
		peer := s.peers.of(c.Context())
		if !s.peers.enter(peer) {
			s.refuse(c, r, peerBusy())
			return nil
		}
		defer s.peers.leave(peer)
	}
	held := share{budget: s.bodies}
	defer held.release()
	if stream := c.Context().RequestBodyStream(); stream != nil {
		conn, _ := c.Context().Conn().(*conn)
		r.Body, err = body{from: stream, conn: conn, declared: h.ContentLength(), max: s.config.MaxBody}.read(&held)
		if err == nil && conn != nil && !conn.arrived() {
			err = net.ErrClosed
		}
		if err != nil {
			s.refuse(c, r, s.webhook.bodyFailed(err, conn))
			return nil
		}
	} else { // only if the handler is called without the server, so that headerReceived was not called
		r.Body = bytes.Clone(c.BodyRaw())
		if refused, ok := s.webhook.Admit(r.Source, s.headersBefore(h), len(r.Body)); !ok {
			s.refuse(c, r, refused)
			return nil
		}
	}
	whole = true
	s.answer(c, r)
	return nil
}

// answer answers a request whose body has been read.
func (s *Server) answer(c *fiber.Ctx, r Request) {
	start := time.Now()
	r.Headers = headersBehind(&c.Request().Header)
	sent := r.Headers.Traceparent
	r, trusted, response, ok := s.webhook.verify(r)
	span := s.startSpan(c, sent, trusted != unauthenticated)
	defer span.End()
	r.Headers.Traceparent = s.traceparentOf(span, sent, trusted != unauthenticated)
	if ok {
		response = s.webhook.store(r)
	}
	response = s.webhook.answered(r, response)
	write(c, response)
	describe(span, response)
	s.metrics.request(response, time.Since(start), span.SpanContext())
}

// refuse answers a request whose body was not completely read. The rest of it is not taken for a new request.
func (s *Server) refuse(c *fiber.Ctx, r Request, refused Response) {
	span := s.startSpan(c, "", false)
	defer span.End()
	refused = s.webhook.answered(r, refused)
	write(c, refused)
	if h := &c.Request().Header; h.ConnectionClose() || c.Context().RequestBodyStream() != nil && h.ContentLength() != 0 {
		c.Response().SetConnectionClose()
		lingers(c)
	}
	describe(span, refused)
	s.metrics.request(refused, 0, span.SpanContext())
}

// lingers makes a connection that is about to close give its sender time to read the answer.
func lingers(c *fiber.Ctx) {
	if conn, ok := c.Context().Conn().(*conn); ok {
		conn.lingers.Store(true)
	}
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

// fiberError answers a request that Fiber refused itself, or whose handler failed.
func (s *Server) fiberError(c *fiber.Ctx, err error) error {
	var fiberErr *fiber.Error
	if !errors.As(err, &fiberErr) {
		r := s.webhook.failed(Request{Source: strings.Clone(c.Params("source"))}, err)
		s.metrics.request(r, 0, trace.SpanContext{})
		write(c, r)
		return nil
	}
	r := problem(fiberErr.Code, "bad_request", "The request is not valid HTTP. Nothing was stored.")
	switch fiberErr.Code {
	case http.StatusNotFound:
		r = problem(fiberErr.Code, "not_found",
			"There is no such path. Nothing was stored; send tickets by POST /ticket or POST /ticket/{source}.")
	case http.StatusMethodNotAllowed:
		r = problem(fiberErr.Code, "method_not_allowed",
			"This path does not take the request's method. Nothing was stored; send tickets by POST.")
	case http.StatusRequestHeaderFieldsTooLarge:
		r = headerTooLarge()
	case http.StatusRequestTimeout:
		r = requestTimeout()
	}
	if fiberErr.Code != http.StatusNotFound && fiberErr.Code != http.StatusMethodNotAllowed || c.Request().Header.ConnectionClose() {
		lingers(c)
	}
	if fiberErr.Code == http.StatusBadRequest || fiberErr.Code == http.StatusRequestHeaderFieldsTooLarge {
		forget(&c.Request().Header) // a part of it may have been read
	}
	s.metrics.request(r, 0, trace.SpanContext{})
	write(c, r)
	return nil
}
