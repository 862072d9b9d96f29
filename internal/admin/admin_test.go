package admin_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"myticket/internal/admin"
)

// The arguments of a process may hold a password.
func TestProfiles_AreAllThere_AndNoneShowsTheCommandLine(t *testing.T) {
	t.Parallel()
	handler := admin.NewServer(prometheus.NewRegistry(), func() (bool, []admin.Check) { return true, nil }, []byte("openapi: 3.1.0\n")).Handler
	get := func(method, path string) *httptest.ResponseRecorder {
		r := httptest.NewRecorder()
		handler.ServeHTTP(r, httptest.NewRequestWithContext(t.Context(), method, path, nil))
		return r
	}
	index := get(http.MethodGet, "/debug/pprof/")
	require.Equal(t, http.StatusOK, index.Code)
	require.NotContains(t, index.Body.String(), "cmdline")
	links := regexp.MustCompile(`href="([^"]+)"`).FindAllStringSubmatch(index.Body.String(), -1)
	require.Greater(t, len(links), 5)
	for _, link := range links {
		if strings.HasPrefix(link[1], "profile") || strings.HasPrefix(link[1], "trace") {
			continue // they take a while
		}
		r := get(http.MethodGet, "/debug/pprof/"+link[1])
		require.Equal(t, http.StatusOK, r.Code, link[1])
		require.NotContains(t, r.Body.String(), os.Args[0]+"\x00")
	}
	require.Equal(t, http.StatusOK, get(http.MethodGet, "/debug/pprof/heap").Code)
	require.Equal(t, http.StatusOK, get(http.MethodGet, "/debug/pprof/symbol").Code)
	for _, path := range []string{"/debug/pprof/cmdline", "/debug/pprof/cmdline/", "/debug/pprof//cmdline", "/debug/pprof/x/../cmdline"} {
		r := get(http.MethodGet, path)
		require.NotContains(t, r.Body.String(), "-test.", path)
		require.NotEqual(t, http.StatusOK, r.Code, path)
	}
}
