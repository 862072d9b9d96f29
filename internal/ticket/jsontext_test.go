package ticket_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

// standardTokens returns the tokens of a JSON text by another reader.
func standardTokens(text []byte) (tokens []string, err error) {
	d := jsontext.NewDecoder(bytes.NewReader(text), jsontext.AllowDuplicateNames(true))
	for {
		whole := tokens != nil && d.StackDepth() == 0
		token, err := d.ReadToken()
		switch {
		case whole && errors.Is(err, io.EOF):
			return tokens, nil
		case err != nil:
			return nil, err
		case whole:
			return nil, errors.New("a second value")
		}
		tokens = append(tokens, token.String())
	}
}

func FuzzJSONText(f *testing.F) {
	for _, text := range []string{
		``, ` `, `{}`, `[]`, `{"a":[1,-0.5e+3,true,false,null,"x"],"a":{}}`, `"\u00e9\ud83d\ude00\"\\\/\b\f\n\r\t"`, `"\ud83d"`, `"\ud83dx"`,
		`"\ude00"`, `"\ud83d\u0041"`, `"\x"`, `"\u12g4"`, `"\u12`, "\"\x01\"", "\"a\\n\x01\"", "\"\xff\"", "\"\\n\xff\"", "\xff", `01`, `1.`, `.5`, `-`, `1e`,
		`1e+`, `+1`, `tru`, `truex`, `[1,]`, `[,1]`, `[1 2]`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{a:1}`, `{"a":1 "b":2}`, `[}`, `{]`, `[1}`, `1 2`, `"a`, `"a\`,
		"\ufeff1", "\u00a01", "[\"\u2028\"]", strings.Repeat("[", 100) + strings.Repeat("]", 100),
	} {
		f.Add(text)
	}
	for _, text := range hostileTexts(50) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 9_000 { // the other reader may have another limit of depth
			return
		}
		wanted, wantedErr := standardTokens([]byte(text))
		tokens, err := ticket.JSONTokens(text)
		require.Equal(t, wantedErr == nil, err == nil, "%q: %v, and %v", text, wantedErr, err)
		require.Equal(t, wanted, tokens, "%q", text)
		skipErr := ticket.SkipJSON(text)
		if err == nil {
			require.NoError(t, skipErr, text)
		} else {
			require.EqualError(t, skipErr, err.Error(), text)
		}
	})
}
