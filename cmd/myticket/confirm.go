package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/mattn/go-isatty"
)

// confirmFlags are for commands that change much.
type confirmFlags struct {
	Yes bool `short:"y" help:"Do not ask. Needed where there is no terminal to ask on, such as in a script."`
}

// confirm returns nil if the change may be made. On a terminal it asks; elsewhere --yes must be given.
func (f confirmFlags) confirm(ctx context.Context, std streams, question string) error {
	if f.Yes {
		return nil
	}
	if !isTerminal(std.stdin) || !isTerminal(std.stderr) {
		return errors.New("nothing was changed: there is no terminal to ask on; use --yes to make this change without being asked")
	}
	fmt.Fprintf(std.stderr, "%s [y/N] ", question)
	answers := make(chan string, 1)
	go func() { // a read of a terminal cannot be canceled; it ends with the process
		answer, _ := bufio.NewReader(std.stdin).ReadString('\n')
		answers <- strings.ToLower(strings.TrimSpace(answer))
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(std.stderr)
	case answer := <-answers:
		if answer == "y" || answer == "yes" {
			return nil
		}
	}
	return errors.New("nothing was changed")
}

// isTerminal reports whether a stream is a terminal, where a person reads or writes.
func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && isatty.IsTerminal(file.Fd())
}

// progress is a line on a terminal that is written over and over. On anything else it says nothing.
type progress struct{ w io.Writer }

func newProgress(w io.Writer) progress {
	if !isTerminal(w) {
		w = io.Discard
	}
	return progress{w}
}

// show replaces the line.
func (p progress) show(text string) { fmt.Fprint(p.w, "\r\x1b[K"+text) }

// end removes the line.
func (p progress) end() { p.show("") }
