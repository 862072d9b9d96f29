package httpapi_test

import (
	"cmp"
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"myticket/internal/httpapi"
)

func readSources(t *testing.T, content string) (*httpapi.Sources, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sources.json")
	require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	return httpapi.ReadSources(file)
}

func TestReadSources_SaysWhereTheMistakeIs(t *testing.T) {
	t.Parallel()
	entry := `{"bearer_tokens": ["` + token + `"]}`
	for content, place := range map[string]string{
		"":                                    "line 1, column 1: it is not valid JSON",
		"{\n  \"a\": {},\n  \"b\": {\n":       "line 3, column 9: it is not valid JSON",
		"{\n  \"a\": {},\n  \"b\" {}\n}":      "line 3, column 7: it is not valid JSON",
		"{\n\"a\": " + entry + ",\n}":         "line 3, column 1: it is not valid JSON",
		"{\n\"a\":\n  {\"rate\": \"x\"}\n}":   `line 3, column 14: source "a": "rate" cannot be a JSON string`,
		"{\n\"a\": {},\n\"b\": {\"rat\": 1}}": `line 3, column 4: source "b": json: unknown field "rat"`,
		"{\n\"a\": {},\n\"a\": {}}":           `line 3, column 4: source "a" is named twice`,
		"{\"a\": {}}\n{}":                     "line 2, column 1: it is not valid JSON",
	} {
		_, err := readSources(t, content)
		require.ErrorContains(t, err, place, content)
	}
}

func TestReadSources_RefusesWhatCannotBeMeant(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ content, why string }{
		"empty":                   {``, "unexpected end of JSON input"},
		"half an object":          {`{"s": {}`, "unexpected end of JSON input"},
		"half an entry":           {`{"s": {"rate": 1`, "unexpected end of JSON input"},
		"not JSON":                {`s: {}`, "invalid character"},
		"not an object":           {`["s"]`, "sources file"},
		"unknown key":             {`{"s": {"bearer_token": ["t"]}}`, `unknown field "bearer_token"`},
		"unknown key of a user":   {`{"s": {"basic_users": [{"name": "u"}]}}`, `unknown field "name"`},
		"text behind the end":     {`{"s": {}} {"shop-2": {}}`, "sources file"},
		"a name in upper case":    {`{"Shop": {}}`, `"Shop" cannot be a source`},
		"an empty name":           {`{"": {}}`, `"" cannot be a source`},
		"a name of 64 characters": {`{"` + strings.Repeat("a", 64) + `": {}}`, "cannot be a source"},
		"an empty token":          {`{"s": {"bearer_tokens": ["t", ""]}}`, `source "s": a bearer token is empty`},
		"no username":             {`{"s": {"basic_users": [{"password": "p"}]}}`, `source "s": a basic user`},
		"no password":             {`{"s": {"basic_users": [{"username": "u"}]}}`, `source "s": a basic user`},
		"a username with a colon": {`{"s": {"basic_users": [{"username": "u:", "password": "p"}]}}`, "without a colon"},
		"no base64": {
			`{"s": {"webhook_secrets": ["whsec_????????????????????????"]}}`, `source "s": a webhook secret`,
		},
		"a secret that is too short": {`{"s": {"webhook_secrets": ["whsec_c2VjcmV0"]}}`, `source "s": a webhook secret`},
		"an empty secret":            {`{"s": {"webhook_secrets": [""]}}`, `source "s": a webhook secret`},
		"a token that is too short":  {`{"s": {"bearer_tokens": ["` + token[1:] + `"]}}`, `source "s": a bearer token is too short`},
		"a password that is too short": {
			`{"s": {"basic_users": [{"username": "u", "password": "` + token[1:] + `"}]}}`, `source "s": the password of a basic user is too short`,
		},
		"signatures of any source": {
			`{"*": {"webhook_secrets": ["` + secret + `"]}}`, `source "*": it cannot have webhook secrets`,
		},
		"a secret of two sources": {
			`{"s": {"webhook_secrets": ["` + secret + `"]}, "t": {"webhook_secrets": ["` + secret[6:] + `"]}}`, `the same webhook secret`,
		},
		"a negative rate":               {`{"*": {"rate": -1}}`, `source "*": rate and burst must`},
		"a negative burst":              {`{"*": {"rate": 1, "burst": -1}}`, `source "*": rate and burst must`},
		"a rate that is no number":      {`{"*": {"rate": "fast"}}`, `source "*": "rate" cannot be a JSON string`},
		"a rate beyond all numbers":     {`{"*": {"rate": 1e999}}`, "sources file"},
		"a rate that no burst can hold": {`{"*": {"rate": 1e300}}`, `source "*": rate`},
		"nothing":                       {`null`, "sources file"},
		"a source that is nothing":      {`{"s": null}`, `"s"`},
		"a source twice":                {`{"s": {"bearer_tokens": ["t"]}, "s": {}}`, `"s"`},
		"a burst without a rate":        {`{"s": {"burst": 5}}`, `source "s": a burst needs a rate`},
		"a negative rate of products":   {`{"s": {"new_products_rate": -1}}`, `source "s": new_products_rate`},
		"no burst of products":          {`{"s": {"new_products_burst": 0}}`, `source "s": new_products_burst`},
		"half a burst":                  {`{"*": {"rate": 1, "burst": 1.5}}`, `source "*": "burst" cannot be a JSON number 1.5`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := readSources(t, test.content)
			require.ErrorContains(t, err, test.why)
			require.ErrorContains(t, err, "sources.json", "a person must see which file it is")
		})
	}
	_, err := httpapi.ReadSources(filepath.Join(t.TempDir(), "not-there"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestReadSources_NeverShowsASecret(t *testing.T) {
	t.Parallel()
	for _, content := range []string{
		`{"shop-1": {"webhook_secrets": ["hunter2"]}}`,
		`{"shop-1": {"bearer_tokens": "hunter2"}}`,
		`{"shop-1": {"basic_users": [{"username": "hunter2:", "password": "hunter2"}]}}`,
	} {
		_, err := readSources(t, content)
		require.Error(t, err)
		require.NotContains(t, err.Error(), "hunter2")
	}
}

const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// token has the minimum length.
const token = "0123456789abcdef"

// status returns the status of a ticket's answer.
func status(webhook *httpapi.Webhook, source string, headers httpapi.Headers) int {
	return webhook.Ticket(httpapi.Request{Source: source, Headers: headers, Body: []byte("x")}).Status
}

func TestRate_IsSharedByAllSourcesWithoutAnEntry(t *testing.T) {
	t.Parallel()
	sources, err := readSources(t, `{"named": {"rate": 0.001, "burst": 2}, "free": {}, "*": {"rate": 0.001, "burst": 3}}`)
	require.NoError(t, err)
	accepter := &keeper{}
	webhook := newWebhook(accepter, sources)
	for _, want := range []struct {
		source string
		status int
	}{
		{"stranger-1", http.StatusOK}, {"stranger-2", http.StatusOK}, {"", http.StatusOK},
		{"stranger-1", http.StatusTooManyRequests}, {"stranger-3", http.StatusTooManyRequests},
		{"", http.StatusTooManyRequests}, {"default", http.StatusTooManyRequests},
		{"named", http.StatusOK}, {"named", http.StatusOK}, {"named", http.StatusTooManyRequests},
		{"free", http.StatusOK}, {"free", http.StatusOK}, {"free", http.StatusOK}, {"free", http.StatusOK},
	} {
		require.Equal(t, want.status, status(webhook, want.source, httpapi.Headers{}), want.source)
	}
	require.Len(t, accepter.deliveries, 9, "what is refused is not handed on")

	r := webhook.Ticket(httpapi.Request{Source: "named", Body: []byte("x")})
	requireProblem(t, r, http.StatusTooManyRequests, "rate_limited")
	require.Positive(t, r.RetryAfter)
	require.LessOrEqual(t, r.RetryAfter, 1000, "a place every 1000 s, and asking takes none")
}

func TestBurst_DefaultsToTheRate_RoundedUp(t *testing.T) {
	t.Parallel()
	sources, err := readSources(t, `{"fast": {"rate": 2.0001}, "slow": {"rate": 0.0001}}`)
	require.NoError(t, err)
	webhook := newWebhook(&keeper{}, sources)
	for range 3 {
		require.Equal(t, http.StatusOK, status(webhook, "fast", httpapi.Headers{}))
	}
	require.Equal(t, http.StatusOK, status(webhook, "slow", httpapi.Headers{}))
	require.Equal(t, http.StatusTooManyRequests, status(webhook, "slow", httpapi.Headers{}))
}

func TestCredentials_OfOtherSources_AreAskedOfSourcesWithoutAnEntry(t *testing.T) {
	t.Parallel()
	sources, err := readSources(t, `{"open": {}, "*": {"bearer_tokens": ["`+token+`"], "rate": 0.001, "burst": 1}}`)
	require.NoError(t, err)
	webhook := newWebhook(&keeper{}, sources)
	require.Equal(t, http.StatusOK, status(webhook, "open", httpapi.Headers{}))
	for range 3 {
		refused := webhook.Ticket(httpapi.Request{Source: "stranger", Body: []byte("x")})
		requireProblem(t, refused, http.StatusUnauthorized, "unauthorized")
		require.Equal(t, `Bearer realm="myticket"`, refused.Challenge)
	}
	require.Equal(t, http.StatusOK, status(webhook, "stranger", httpapi.Headers{Authorization: "Bearer " + token}),
		"those without credentials do not use up the rate")
	require.Equal(t, http.StatusTooManyRequests, status(webhook, "stranger", httpapi.Headers{Authorization: "Bearer " + token}))
}

func TestAuthorization_IsReadLiberally_AndComparedExactly(t *testing.T) {
	t.Parallel()
	sources, err := readSources(t,
		`{"*": {"bearer_tokens": ["To ken 0123456789"], "basic_users": [{"username": "u", "password": "p:q 0123456789ab"}]}}`)
	require.NoError(t, err)
	webhook := newWebhook(&keeper{}, sources)
	pair := base64.StdEncoding.EncodeToString([]byte("u:p:q 0123456789ab"))
	for authorization, ok := range map[string]bool{
		"Bearer To ken 0123456789": true, "bearer To ken 0123456789": true, "BEARER  To ken 0123456789 ": true, "Basic " + pair: true, "basic  " + pair: true,
		"": false, "Bearer": false, "Bearer to ken 0123456789": false, "Bearer To": false, "To ken 0123456789": false, "Bearer " + pair: false,
		"Basic": false, "Basic u:p:q 0123456789ab": false, "Basic " + pair[:6]: false, "Basic To ken 0123456789": false, "Digest To ken 0123456789": false,
		"BearerTo ken 0123456789": false,
	} {
		want := http.StatusUnauthorized
		if ok {
			want = http.StatusOK
		}
		require.Equal(t, want, status(webhook, "", httpapi.Headers{Authorization: authorization}), "%q", authorization)
	}
}

func TestWebhook_SourcesInMetrics_AreThoseOfTheFile(t *testing.T) {
	t.Parallel()
	sources, err := readSources(t, `{"shop-1": {}, "*": {}}`)
	require.NoError(t, err)
	webhook := newWebhook(&keeper{}, sources)
	for source, want := range map[string]string{
		"": "default", "default": "default", "shop-1": "shop-1", "shop-2": "other", "*": "other", "x\ny": "other", "other": "other",
	} {
		response := webhook.Ticket(httpapi.Request{Source: source, Body: []byte("x")})
		require.Equal(t, want, response.Source, source)
	}
}

// A file without "*" once was open to every sender that used a name that is not in it.
func TestSource_ThatIsNotInTheFile_MayNotSend(t *testing.T) {
	t.Parallel()
	accepter := &keeper{}
	closed, err := readSources(t, `{"shop-1": {}}`)
	require.NoError(t, err)
	webhook := newWebhook(accepter, closed)
	for _, source := range []string{"shop-2", "", "default", "other"} {
		r := webhook.Ticket(httpapi.Request{Source: source, Headers: httpapi.Headers{Authorization: "Bearer " + token}, Body: []byte("x")})
		requireProblem(t, r, http.StatusForbidden, "source_unknown")
	}
	require.Empty(t, accepter.deliveries)
	require.Equal(t, http.StatusOK, status(webhook, "shop-1", httpapi.Headers{}))

	named, err := readSources(t, `{"default": {}}`)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status(newWebhook(accepter, named), "", httpapi.Headers{}))
	empty, err := readSources(t, `{}`)
	require.NoError(t, err)
	require.Equal(t, http.StatusForbidden, status(newWebhook(accepter, empty), "", httpapi.Headers{}))
}

func TestSources_SayWhichAreOpen(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"*"}, httpapi.OpenSources().Open())
	for content, want := range map[string][]string{
		`{}`:                          nil,
		`{"b": {"rate": 1}, "a": {}}`: {"a", "b"},
		`{"*": {}, "a": {"bearer_tokens": ["` + token + `"]}}`: {"*"},
		`{"*": {"bearer_tokens": ["` + token + `"]}}`:          nil,
	} {
		sources, err := readSources(t, content)
		require.NoError(t, err)
		require.Equal(t, want, sources.Open(), content)
	}
}

func TestProductPolicies_AreByEntry(t *testing.T) {
	t.Parallel()
	sources, err := readSources(t, `{"shop": {"bearer_tokens": ["a-long-random-token-of-a-shop"], "new_products_rate": 0},
		"open": {"new_products_burst": 5}, "*": {"new_products_rate": 2.5}}`)
	require.NoError(t, err)
	rate := func(r float64) *float64 { return &r }
	burst := 5
	require.Equal(t, map[string]httpapi.ProductPolicy{
		"shop": {NewProductsRate: rate(0), Authenticated: true},
		"open": {NewProductsBurst: &burst},
		"*":    {NewProductsRate: rate(2.5)},
	}, sources.ProductPolicies())
	for source, entry := range map[string]string{"shop": "shop", "default": "*", "anything": "*", "other": "*"} {
		require.Equal(t, entry, sources.Entry(source))
	}
}

func TestProductPolicies_SourceThatIsCalledOther_DoesNotSpeakForAllOthers(t *testing.T) {
	t.Parallel()
	sources, err := readSources(t, `{"other": {"bearer_tokens": ["a-long-random-token-of-a-shop"]}}`)
	require.NoError(t, err)
	policies := sources.ProductPolicies()
	require.True(t, policies[sources.Entry("other")].Authenticated)
	require.False(t, policies[sources.Entry("shop")].Authenticated)
}

func TestHold_StoresNothing_AndTellsOnlyTheSourceItself(t *testing.T) {
	t.Parallel()
	sources, err := readSources(t, `{
		"held": {"hold": true, "bearer_tokens": ["`+token+`"], "rate": 0.001, "burst": 1},
		"open": {"hold": true}, "signed": {"hold": true, "webhook_secrets": ["`+secret+`"]},
		"free": {"hold": false}, "*": {"hold": true}}`)
	require.NoError(t, err)
	require.Equal(t, []string{"*", "held", "open", "signed"}, sources.OnHold())
	require.Equal(t, []string{"free"}, sources.Open(), "a source on hold may not send")
	accepter := &keeper{}
	webhook := newWebhook(accepter, sources)
	post := func(source string, h httpapi.Headers) httpapi.Response {
		return webhook.Ticket(httpapi.Request{Source: source, Headers: h, Body: []byte("x")})
	}
	for range 3 { // it uses up no rate
		for source, h := range map[string]httpapi.Headers{"held": {Authorization: "Bearer " + token}, "open": {}, "": {}, "stranger": {}} {
			r := post(source, h)
			requireProblem(t, r, http.StatusServiceUnavailable, "source_on_hold")
			require.Equal(t, 5, r.RetryAfter)
			require.Equal(t, "source_on_hold", r.Outcome, "the metrics count it by its code")
			refused, ok := webhook.Admit(cmp.Or(source, "default"), h, -1)
			require.False(t, ok, "the body is not read")
			require.Equal(t, http.StatusServiceUnavailable, refused.Status)
		}
	}
	requireProblem(t, post("held", httpapi.Headers{}), http.StatusUnauthorized, "unauthorized")
	requireProblem(t, post("held", httpapi.Headers{Authorization: "Bearer wrong"}), http.StatusUnauthorized, "unauthorized")
	requireProblem(t, post("signed", httpapi.Headers{}), http.StatusUnauthorized, "unauthorized")
	require.Empty(t, accepter.deliveries)
	require.Equal(t, http.StatusOK, post("free", httpapi.Headers{}).Status)
	_, err = readSources(t, `{"s": {"hold": "yes"}}`)
	require.ErrorContains(t, err, "sources.json")
}
