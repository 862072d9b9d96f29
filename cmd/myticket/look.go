package main

import (
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"myticket/internal/ticket"
)

// looks are what a terminal can show. The zero value is for what is no terminal: files, pipes, programs.
type looks struct {
	width, height int // in columns and lines; 0 if it is not known
	colour        bool
}

// look returns what a stream can show. NO_COLOR (https://no-color.org) and TERM=dumb ask for no colour.
func look(w io.Writer) looks {
	if p, ok := w.(*page); ok {
		w = p.on
	}
	file, ok := w.(*os.File)
	if !ok || !isTerminal(w) {
		return looks{}
	}
	l := looks{colour: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
	if width, height, err := term.GetSize(int(file.Fd())); err == nil {
		l.width, l.height = width, height
	}
	return l
}

// Attributes of text (ECMA-48, 8.3.117): so few need no library.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

// paint gives a text an attribute. The text must be safe for a terminal already.
func (l looks) paint(attribute, text string) string {
	if !l.colour || text == "" || attribute == "" {
		return text
	}
	return "\x1b[" + attribute + "m" + text + "\x1b[0m"
}

func (l looks) bold(text string) string { return l.paint(bold, text) }

var statusColours = map[ticket.Status]string{
	ticket.ToTreat: yellow, ticket.Treated: green, ticket.Error: red, ticket.Dismissed: dim,
}

// status paints a status, which may be padded.
func (l looks) status(text string) string {
	return l.paint(statusColours[ticket.Status(strings.TrimSpace(text))], text)
}

// diff paints a unified diff.
func (l looks) diff(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		end := ""
		if without, ok := strings.CutSuffix(line, "\n"); ok {
			line, end = without, "\n"
		}
		attribute := ""
		switch {
		case strings.HasPrefix(line, "---"), strings.HasPrefix(line, "+++"):
			attribute = bold
		case strings.HasPrefix(line, "@@"):
			attribute = cyan
		case strings.HasPrefix(line, "-"):
			attribute = red
		case strings.HasPrefix(line, "+"):
			attribute = green
		}
		b.WriteString(l.paint(attribute, line) + end)
	}
	return b.String()
}
