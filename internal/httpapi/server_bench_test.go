package httpapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/valyala/fasthttp/fasthttputil"
)

// BenchmarkRequest measures a whole request on a connection in memory, without storing its ticket. Its allocations matter: the
// body once, and the answer.
func BenchmarkRequest(b *testing.B) {
	const ticket = "Order: 1\nVAT: 1\nTotal: 10\n\nproduct,product_id,price\nTea,t,10\n"
	large := ticket + strings.Repeat("Tea,t,10\n", 100_000)
	for _, c := range []struct{ name, path, headers, body string }{
		{"small", "/ticket", "", ticket},
		{"of a source", "/ticket/shop-1", "", ticket},
		{"bearer", "/ticket/shop-2", "Authorization: Bearer a-long-random-token\r\n", ticket},
		{"key", "/ticket", "Idempotency-Key: 8e03978e-40d5-43dd-bc93-6894a57f9324\r\n", ticket},
		{"large", "/ticket", "", large},
	} {
		b.Run(c.name, func(b *testing.B) {
			file := filepath.Join(b.TempDir(), "sources.json")
			if err := os.WriteFile(file, []byte(`{"shop-1": {}, "shop-2": {"bearer_tokens": ["a-long-random-token"]}, "*": {}}`), 0o600); err != nil {
				b.Fatal(err)
			}
			sources, err := ReadSources(file)
			if err != nil {
				b.Fatal(err)
			}
			s := New(Config{Logger: slog.New(slog.DiscardHandler)}, acceptsAll{}, sources)
			listener := fasthttputil.NewInmemoryListener()
			served := make(chan error, 1)
			go func() { served <- s.Serve(listener) }()
			conn, err := listener.Dial()
			if err != nil {
				b.Fatal(err)
			}
			request := []byte(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: till/1\r\nContent-Type: text/plain\r\n%sContent-Length: %d\r\n\r\n%s",
				c.path, c.headers, len(c.body), c.body))
			reader := bufio.NewReader(conn)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := conn.Write(request); err != nil {
					b.Fatal(err)
				}
				length := 0
				for {
					line, err := reader.ReadSlice('\n')
					if err != nil {
						b.Fatal(err)
					}
					if len(line) == 2 {
						break
					}
					if text, ok := strings.CutPrefix(string(line), "Content-Length: "); ok {
						_, _ = fmt.Sscan(text, &length)
					}
				}
				if _, err := reader.Discard(length); err != nil {
					b.Fatal(err)
				}
			}
			_ = conn.Close()
			_ = s.Shutdown(context.Background())
			if err := <-served; err != nil {
				b.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, conn)
		})
	}
}
