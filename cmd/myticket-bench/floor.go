package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/gofiber/fiber/v2"
)

// serveFloor is the floor: the same HTTP server as MyTicket's, with the same limits and the same answer. Its handler reads the
// body and stores nothing. A body is read completely before its handler begins; a body that has not come is refused.
func serveFloor(addr string) error {
	const maxConnections, maxLeaving = 4096, 64 // as in internal/httpapi
	app := fiber.New(fiber.Config{
		BodyLimit: 1 << 20, CaseSensitive: true, Concurrency: maxConnections + 2*maxLeaving, DisablePreParseMultipartForm: true,
		DisableStartupMessage: true, IdleTimeout: 75 * time.Second, Network: fiber.NetworkTCP, ReadBufferSize: 8 << 10,
		ReadTimeout: 10 * time.Second, WriteBufferSize: 4 << 10, WriteTimeout: 10 * time.Second,
	})
	answer := []byte(`{"id":"01890a5d-ac96-774b-bcce-b302099a8057","status":"TREATED"}`)
	app.Post("/ticket", func(c *fiber.Ctx) error {
		if len(c.Request().Body()) == 0 {
			return fiber.ErrBadRequest
		}
		c.Response().Header.SetContentType("application/json")
		c.Response().SetBodyRaw(answer)
		return nil
	})
	app.Get("/ping", func(c *fiber.Ctx) error { return c.SendString("Pong") })
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		_ = app.Shutdown()
	}()
	return app.Listen(addr) // nil after Shutdown
}

// saveProfile writes a CPU profile of a running server to a file, and returns a function that waits until it is written.
func saveProfile(admin, file string, duration time.Duration) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		response, err := http.Get(fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", admin, int(duration.Seconds())))
		if err != nil {
			fmt.Fprintln(os.Stderr, "no profile:", err)
			return
		}
		defer response.Body.Close()
		content, err := io.ReadAll(response.Body)
		if err == nil {
			err = os.WriteFile(file, content, 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "no profile:", err)
		}
	}()
	return func() { <-done }
}
