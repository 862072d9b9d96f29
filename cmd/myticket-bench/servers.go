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

// serveFloor is the floor: the same HTTP server as MyTicket's, with the same limits and a handler that stores nothing.
func serveFloor(addr string) error {
	app := fiber.New(fiber.Config{
		BodyLimit: 1<<20 + 64<<10, CaseSensitive: true, Concurrency: 4096, DisablePreParseMultipartForm: true,
		DisableStartupMessage: true, IdleTimeout: 75 * time.Second, Network: fiber.NetworkTCP, ReadBufferSize: 8 << 10,
		ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
	})
	answer := []byte(`{"id":"01890a5d-ac96-774b-bcce-b302099a8057","status":"TREATED"}`)
	app.Post("/ticket", func(c *fiber.Ctx) error {
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
	return app.Listen(addr)
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
