// Package admin is the internal listener: health, metrics, profiling, and what describes the webhook. It must never be reachable
// from outside.
package admin

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	runtimepprof "runtime/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Check is one condition of readiness.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"` // for a person: what is wrong and what to do
}

// NewServer returns the internal server. The function checks reports whether the server is ready, and the state of each check.
// It must not block. openAPI describes the webhook to those who write senders; nil for a process without it.
func NewServer(registry *prometheus.Registry, checks func() (ready bool, checks []Check), openAPI []byte) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		// The process answers, so it lives. The database is not checked, because a restart would not bring it back.
		writeJSON(w, http.StatusOK, map[string]bool{"alive": true})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		isReady, list := checks()
		ready(w, isReady, list)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	if openAPI != nil {
		mux.HandleFunc("GET /openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/yaml") // RFC 9512
			_, _ = w.Write(openAPI)
		})
	}
	// Without pprof.Cmdline, which would show a password that was given as a flag, and pprof.Index, which links to it.
	mux.HandleFunc("/debug/pprof/{$}", profiles)
	mux.HandleFunc("/debug/pprof/{name}", func(w http.ResponseWriter, r *http.Request) {
		pprof.Handler(r.PathValue("name")).ServeHTTP(w, r)
	})
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
	}
}

// profiles lists the profiles.
func profiles(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = io.WriteString(w, "<!DOCTYPE html><title>Profiles</title><ul>\n")
	for _, p := range runtimepprof.Profiles() {
		_, _ = fmt.Fprintf(w, "<li><a href=\"%[1]s?debug=1\">%[1]s</a>: %[2]d\n", p.Name(), p.Count())
	}
	_, _ = io.WriteString(w, "<li><a href=\"profile\">profile</a>: CPU use, for ?seconds=30\n"+
		"<li><a href=\"trace\">trace</a>: an execution trace, for ?seconds=1\n</ul>\n")
}

func ready(w http.ResponseWriter, isReady bool, checks []Check) {
	status := http.StatusOK
	if !isReady {
		status = http.StatusServiceUnavailable
	}
	writeJSON(w, status, struct {
		Ready  bool    `json:"ready"`
		Checks []Check `json:"checks"`
	}{isReady, checks})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) //nolint:errchkjson // only writing can fail, if the client is gone
}
