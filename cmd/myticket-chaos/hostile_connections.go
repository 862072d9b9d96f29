package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"myticket/internal/lab"
)

// hold opens a number of connections and keeps them open for d. A connection that is refused or closed is not opened again.
func (g *siege) hold(ctx context.Context, connections int, d time.Duration, start func(i int, conn net.Conn)) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	for i := range connections {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp4", g.server.http)
		if err != nil {
			lab.Pause(ctx, time.Millisecond)
			continue
		}
		group.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
			start(i, conn)
			<-ctx.Done()
		})
	}
	<-ctx.Done()
}

// stalledConnections announces tickets of 1 MiB and sends 100 bytes of each: without credentials, with wrong ones, and to a
// source that needs none.
func stalledConnections(ctx context.Context, g *siege) error {
	const connections = 700
	heads := []string{
		"POST /ticket/" + honestSource + " HTTP/1.1\r\n",
		"POST /ticket/" + honestSource + " HTTP/1.1\r\nAuthorization: Bearer wrong-but-long-enough-to-be-one\r\n",
		"POST /ticket/mallory HTTP/1.1\r\n",
	}
	rest := fmt.Sprintf("Host: test\r\nContent-Length: %d\r\n\r\n%s", hostileSize, strings.Repeat("x", 100))
	for _, head := range heads {
		g.hold(ctx, connections, g.span(2*time.Second, time.Second), func(_ int, conn net.Conn) {
			_, _ = io.WriteString(conn, head+rest)
		})
	}
	// Then all but the last byte, for which the server must really use the memory.
	almost := fmt.Appendf(nil, "POST /ticket/mallory HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n", hostileSize)
	almost = append(almost, make([]byte, hostileSize-1)...)
	g.hold(ctx, connections, g.span(3*time.Second, 2*time.Second), func(_ int, conn net.Conn) { _, _ = conn.Write(almost) })
	return nil
}

// idleConnections opens as many connections as a server takes by default, and sends nothing, or half of a line.
func idleConnections(ctx context.Context, g *siege) error {
	const connections = 4096
	g.hold(ctx, connections, g.span(4*time.Second, 2*time.Second), func(i int, conn net.Conn) {
		if i%2 == 0 {
			_, _ = io.WriteString(conn, "POST /tick")
		}
	})
	return nil
}

// A server may understand or refuse the requests of oddSource as it likes. It sees those of smuggledSource only if it takes the
// body of a request for another request: none of these may be stored.
const (
	oddSource      = "odd"
	smuggledSource = "smuggled"
)

// oddFraming sends requests that can be read in two ways, and chunks with more framing than content.
func oddFraming(ctx context.Context, g *siege) error {
	const hidden = "POST /ticket/" + smuggledSource + " HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nsmuggled!"
	post := func(headers, body string) string {
		return "POST /ticket/" + oddSource + " HTTP/1.1\r\nHost: test\r\n" + headers + "\r\n" + body
	}
	requests := []string{
		post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+hidden),
		post("Content-Length: 0\r\nContent-Length: "+fmt.Sprint(len(hidden))+"\r\n", hidden),
		post("Content-Length: +5\r\n", "hello"),
		post("Content-Length: -1\r\n", "hello"),
		post("Content-Length: 99999999999999999999\r\n", "hello"),
		post("Content-Length: 5\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
		post("Transfer-Encoding: chunked, identity\r\n", "5\r\nhello\r\n0\r\n\r\n"),
		post("Transfer-Encoding: chunked\r\n", "-5\r\nhello\r\n0\r\n\r\n"),
		post("Transfer-Encoding: chunked\r\n", "ffffffffffffffff\r\nhello"),
		post("Transfer-Encoding: chunked\r\n", "7fffffff\r\nhello"),
		// An extension of a chunk that does not end, many of them, and many trailers.
		post("Transfer-Encoding: chunked\r\n", "1;"+strings.Repeat("x", 4<<20)),
		post("Transfer-Encoding: chunked\r\n", strings.Repeat("1;"+strings.Repeat("x", 4096)+"\r\na\r\n", 2000)),
		post("Transfer-Encoding: chunked\r\n", "0\r\n"+strings.Repeat("X-Trailer: "+strings.Repeat("x", 4096)+"\r\n", 2000)),
		post(strings.Repeat("X-Header: x\r\n", 100_000), ""),
		"POST /ticket/" + oddSource + " HTTP/1.1\nHost: test\nContent-Length: 3\n\n" + "odd",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		strings.Repeat("\r\n", 1<<20),
		strings.Repeat("x", 4<<20),
	}
	var group sync.WaitGroup
	for _, request := range requests {
		for range 4 {
			group.Go(func() {
				short, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				withConn(short, g.server.http, func(conn net.Conn) {
					_, _ = io.WriteString(conn, request)
					_, _ = io.Copy(io.Discard, conn)
				})
			})
		}
	}
	group.Wait()
	g.storm(ctx, 4, g.maker.odd())
	return nil
}
