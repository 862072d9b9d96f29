package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	openapierrors "github.com/pb33f/libopenapi-validator/errors"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"myticket/internal/httpapi"
)

// contract is the OpenAPI document of the webhook.
type contract struct {
	validator.Validator

	seen map[int]bool // statuses of answers that were checked
}

func openContract(t *testing.T, content []byte) *contract {
	t.Helper()
	document, err := libopenapi.NewDocument(content)
	require.NoError(t, err)
	require.Equal(t, "3.1.0", document.GetVersion())
	v, errs := validator.NewValidator(document)
	require.Empty(t, errs)
	valid, found := v.ValidateDocument()
	require.True(t, valid, "%v", found)
	return &contract{v, map[int]bool{}}
}

// requireAllowed requires that the document has an answer to a request, with its status, headers and body.
func (c *contract) requireAllowed(t *testing.T, path string, a answer) {
	t.Helper()
	valid, found := c.validate(path, a)
	require.True(t, valid, "%s: %s: %v", path, a, found)
	c.seen[a.status] = true
}

func (c *contract) validate(path string, a answer) (bool, []*openapierrors.ValidationError) {
	method := http.MethodPost
	if path == "/ping" {
		method = http.MethodGet
	}
	request, err := http.NewRequest(method, "http://localhost:9098"+path, http.NoBody)
	if err != nil {
		panic(err)
	}
	return c.ValidateHttpResponse(request, &http.Response{
		StatusCode: a.status, Header: a.header, Body: io.NopCloser(bytes.NewReader(a.body)), Request: request,
	})
}

func TestOpenAPI_IsServedInside(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.get(t, b.internal+"/openapi.yaml")
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, "application/yaml", a.header.Get("Content-Type"))
	openContract(t, a.body)
	require.Equal(t, http.StatusNotFound, b.get(t, b.webhook+"/openapi.yaml").status, "the webhook serves no document")
}

// TestOpenAPI_HasEveryAnswer provokes each status of the document on real servers.
func TestOpenAPI_HasEveryAnswer(t *testing.T) {
	t.Parallel()
	c := openContract(t, httpapi.OpenAPI)
	sources := filepath.Join(t.TempDir(), "sources.json")
	require.NoError(t, os.WriteFile(sources, []byte(`{"default": {}, "shop-1": {"bearer_tokens": ["`+bearerToken+`"]},
		"shop-2": {"webhook_secrets": ["whsec_`+webhookSecret+`"]}, "slow": {"rate": 0.02, "burst": 1}, "held": {"hold": true}}`), 0o600))
	b := setup(t, "--sources-file", sources, "--read-timeout=1s", "--max-body=4KiB")
	post := func(status int, path, text string, headers ...string) {
		t.Helper()
		a := b.post(t, path, text, headers...)
		require.Equal(t, status, a.status, "%s", a)
		documented, _, _ := strings.Cut(path, "?")
		if status == http.StatusNotFound {
			documented = "/ticket"
		}
		c.requireAllowed(t, documented, a)
	}
	post(200, "/ticket", sample(t), "Idempotency-Key", "k")
	post(200, "/ticket", sample(t), "Idempotency-Key", "k")
	post(200, "/ticket", "x")
	post(200, "/ticket/shop-1", body("1", "Café,c,2"), "Authorization", "Bearer "+bearerToken)
	post(200, "/ticket/shop-1", body("1", "Café,c,2"), "Authorization", "Bearer "+bearerToken, "Ticket-Time", "2026-11-24T18:50:00+01:00")
	post(400, "/ticket/shop-1", sample(t), "Authorization", "Bearer "+bearerToken, "Ticket-Time", "yesterday")
	post(400, "/ticket", sample(t), "Ticket-Time", "2026-11-24T18:50:00+01:00")
	post(200, "/ticket/shop-2", sample(t), sign(t, webhookSecret, "msg_1", time.Now(), sample(t))...)
	post(400, "/ticket", "")
	post(400, "/ticket?dry_run=1", sample(t))
	post(401, "/ticket/shop-1", sample(t))
	post(401, "/ticket/shop-2", sample(t), sign(t, webhookSecret, "msg_2", time.Now(), "another")...)
	post(403, "/ticket/shop-9", sample(t))
	post(404, "/ticket/Shop", sample(t))
	post(404, "/tickets", sample(t))
	post(413, "/ticket", strings.Repeat("x", 5000))
	post(415, "/ticket", sample(t), "Content-Encoding", "gzip")
	post(422, "/ticket", "another", "Idempotency-Key", "k")
	post(431, "/ticket", sample(t), "X-Large", strings.Repeat("x", 9000))
	post(200, "/ticket/slow", sample(t))
	post(429, "/ticket/slow", sample(t))
	post(503, "/ticket/held", sample(t))
	wrong, err := b.do(http.MethodPut, b.webhook+"/ticket", strings.NewReader("x"))
	require.NoError(t, err)
	c.requireAllowed(t, "/ticket", wrong)
	c.requireAllowed(t, "/ping", b.get(t, b.webhook+"/ping"))
	c.requireAllowed(t, "/ticket", b.raw(t, "POST /ticket HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"))
	c.requireAllowed(t, "/ticket", b.raw(t, "POST /ticket HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nslow"))

	away := serve(t, unreachable, "--spool-dir", t.TempDir())
	a := away.post(t, "/ticket", sample(t))
	require.Equal(t, http.StatusAccepted, a.status, "%s", a)
	c.requireAllowed(t, "/ticket", a)
	c.requireAllowed(t, "/ticket/shop-1", serve(t, unreachable).post(t, "/ticket/shop-1", sample(t)))

	for _, status := range statusesOf(t) {
		require.True(t, c.seen[status], "the document has %d, and no server answered it", status)
	}

	receipt := answer{200, http.Header{"Content-Type": {"application/json"}}, []byte(`{"id":"01a20763-46ee-7c43-b4d2-48ea8de705fe","status":"SPOOLED"}`)}
	valid, _ := c.validate("/ticket", receipt)
	require.False(t, valid, "it would notice: a spooled ticket is not answered 200")
	delete(wrong.header, "Allow")
	valid, _ = c.validate("/ticket", wrong)
	require.False(t, valid, "it would notice: no header Allow")
	wrong.status = http.StatusTeapot
	valid, _ = c.validate("/ticket", wrong)
	require.False(t, valid, "it would notice: a status that is not in the document")
}

// raw sends bytes, and returns the answer.
func (s *server) raw(t *testing.T, sent string) answer {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.webhook, "http://"))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(conn, sent)
	require.NoError(t, err)
	content, err := io.ReadAll(conn)
	require.NoError(t, err)
	head, text, ok := strings.Cut(string(content), "\r\n\r\n")
	require.True(t, ok, "%s", content)
	a := answer{header: http.Header{}, body: []byte(text)}
	lines := strings.Split(head, "\r\n")
	_, err = fmt.Sscanf(lines[0], "HTTP/1.1 %d", &a.status)
	require.NoError(t, err, lines[0])
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ": ")
		a.header.Set(name, value)
	}
	return a
}

// openAPIAnswers is the part of the document that has the codes.
type openAPIAnswers struct {
	Paths map[string]struct {
		Post struct{ Responses map[string]any }
	}
	Components struct {
		Responses map[string]struct {
			Content map[string]struct {
				Schema struct {
					AllOf []struct {
						Properties struct {
							Status struct{ Const int }
							Code   struct{ Enum []string }
						}
					} `yaml:"allOf"` //nolint:tagliatelle // OpenAPI's name
				}
			}
		}
	}
}

func readAnswers(t *testing.T) openAPIAnswers {
	t.Helper()
	var answers openAPIAnswers
	require.NoError(t, yaml.Unmarshal(httpapi.OpenAPI, &answers))
	return answers
}

func statusesOf(t *testing.T) (statuses []int) {
	t.Helper()
	for text := range readAnswers(t).Paths["/ticket"].Post.Responses {
		status, err := strconv.Atoi(text)
		require.NoError(t, err)
		statuses = append(statuses, status)
	}
	require.NotEmpty(t, statuses)
	return statuses
}

// The codes of errors are in the program, in the document and in docs/webhook.md.
func TestOpenAPI_HasEveryCode(t *testing.T) {
	t.Parallel()
	var documented []string // "400 body_empty"
	for _, response := range readAnswers(t).Components.Responses {
		for _, part := range response.Content["application/problem+json"].Schema.AllOf {
			for _, code := range part.Properties.Code.Enum {
				documented = append(documented, fmt.Sprint(part.Properties.Status.Const, " ", code))
			}
		}
	}
	slices.Sort(documented)

	page, err := os.ReadFile("../../docs/webhook.md")
	require.NoError(t, err)
	var onPage []string
	for _, row := range regexp.MustCompile(`(?m)^\| (\d{3}) \| ([^|]*) \|`).FindAllStringSubmatch(string(page), -1) {
		for _, code := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(row[2], -1) {
			onPage = append(onPage, row[1]+" "+code[1])
		}
	}
	slices.Sort(onPage)
	require.Equal(t, onPage, documented)

	files, err := filepath.Glob("../../internal/httpapi/*.go")
	require.NoError(t, err)
	inProgram, inDocument := map[string]bool{}, map[string]bool{}
	for _, file := range files {
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, code := range regexp.MustCompile(`\b(?:problem|retryLater)\([\w.]+, "(\w+)"`).FindAllSubmatch(source, -1) {
			inProgram[string(code[1])] = true
		}
	}
	for _, one := range documented {
		inDocument[one[4:]] = true
	}
	require.Equal(t, inProgram, inDocument)
}
