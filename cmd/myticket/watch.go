package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/mattn/go-runewidth"
)

// watchFlags are for commands that show something which changes.
type watchFlags struct {
	Watch watch `placeholder:"2s" help:"Show it again and again until it is interrupted: every 2 seconds after the last time, or as often as --watch=10s says, which is 1s to 1h."`
}

// watch is a flag that may have a value: how long to wait. 0 is not to watch.
type watch time.Duration

// IsBool makes the value optional for kong.
func (*watch) IsBool() bool { return true }

// Decode reads the flag.
func (w *watch) Decode(ctx *kong.DecodeContext) error {
	*w = watch(2 * time.Second)
	if ctx.Scan.Peek().Type != kong.FlagValueToken {
		return nil
	}
	d, err := time.ParseDuration(ctx.Scan.Pop().String())
	if err != nil || d < time.Second || d > time.Hour {
		return errors.New("write 1s to 1h, such as --watch=10s")
	}
	*w = watch(d)
	return nil
}

// How a terminal is told to show another page. The last page takes the place of the one before, line by line, so nothing
// flickers. On the alternate screen what was there before comes back at the end, and without wrapping a line is a line
// (https://invisible-island.net/xterm/ctlseqs/ctlseqs.html).
const (
	alternateScreen = "\x1b[?1049h\x1b[?7l\x1b[H"
	normalScreen    = "\x1b[?7h\x1b[?1049l"
	toTheTop        = "\x1b[H"
	clearLine       = "\x1b[K"
	clearBelow      = "\x1b[J"
)

// watchPatience is how long a turn may take before a person is told that there is no answer.
const watchPatience = 5 * time.Second

// page is what one turn writes, before it is shown.
type page struct {
	bytes.Buffer

	on io.Writer // where it will be shown
}

// repeat runs a turn of a command, once or until it is interrupted, which is no failure then. A turn begins only when the one
// before has ended. If the first fails, so does the command. If a later one fails, it says so, and tries again.
func (f watchFlags) repeat(ctx context.Context, std streams, turn func(std streams) error) error {
	if f.Watch == 0 {
		return turn(std)
	}
	screen := isTerminal(std.stdout)
	if screen {
		fmt.Fprint(std.stdout, alternateScreen)
	}
	good, err := f.turns(ctx, std, screen, turn)
	if screen { // the last page stays
		_, _ = fmt.Fprint(std.stdout, normalScreen, good)
	}
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the interrupt is how it ends
	}
	return err
}

// turns runs turns until one fails for good, or the context ends. It returns the last page that is whole.
func (f watchFlags) turns(ctx context.Context, std streams, screen bool, turn func(std streams) error) (good string, err error) {
	for n := 0; ; n++ {
		out, errs := &page{on: std.stdout}, &page{on: std.stderr}
		err := f.wait(std, screen, good, func() error { return turn(streams{std.stdin, out, errs}) })
		switch {
		case ctx.Err() != nil, err != nil && n == 0:
			return good, err
		case err != nil:
			fmt.Fprintf(errs, "myticket: %v; trying again\n", err)
		}
		if screen {
			if err == nil {
				good = out.String()
			}
			_, err = io.WriteString(std.stdout, f.screenful(std.stdout, good, errs.String()))
		} else {
			err = show(std, n, out, errs)
		}
		if err != nil {
			return good, err
		}
		select {
		case <-ctx.Done():
			return good, nil
		case <-time.After(time.Duration(f.Watch)):
		}
	}
}

// wait runs a turn. A database that is cut off, or is held up, gives no error for minutes. So while there is no answer it says
// so, or the page would look like one of now: on a terminal above the last page, elsewhere once.
func (f watchFlags) wait(std streams, screen bool, good string, turn func() error) error {
	begun, ended := time.Now(), make(chan error, 1)
	go func() { ended <- turn() }()
	for said := false; ; {
		select {
		case err := <-ended:
			return err
		case <-time.After(watchPatience):
		}
		note := fmt.Sprintf("myticket: no answer from the database for %s; waiting\n", time.Since(begun).Round(time.Second))
		if screen {
			_, _ = io.WriteString(std.stdout, f.screenful(std.stdout, good, note))
		} else if !said {
			_, _ = io.WriteString(std.stderr, note)
		}
		said = true
	}
}

// show writes a page where there is no terminal: below the one before, with an empty line between.
func show(std streams, n int, out, errs *page) error {
	if n > 0 && out.Len() > 0 {
		out = &page{Buffer: *bytes.NewBufferString("\n" + out.String())}
	}
	_, err := std.stdout.Write(out.Bytes())
	_, errsErr := std.stderr.Write(errs.Bytes())
	return errors.Join(err, errsErr)
}

// screenful returns what makes a terminal show a page, below the time and what a person should know. What does not fit is left
// out, and the last line says so.
func (f watchFlags) screenful(w io.Writer, out, errs string) string {
	title := fmt.Sprintf("%s, every %s. Ctrl-C ends it.", time.Now().Format(time.TimeOnly), time.Duration(f.Watch))
	lines := []string{look(w).bold(title), ""}
	if errs = strings.TrimRight(errs, "\n"); errs != "" {
		if width := look(w).width; width > 0 {
			errs = runewidth.Wrap(errs, width)
		}
		lines = append(append(lines, strings.Split(errs, "\n")...), "")
	}
	lines = append(lines, strings.Split(strings.TrimRight(out, "\n"), "\n")...)
	if height := look(w).height; height > 0 && len(lines) > height {
		more := len(lines) - height + 1
		lines = append(lines[:height-1], fmt.Sprintf("(%d more lines do not fit)", more))
	}
	return toTheTop + strings.Join(lines, clearLine+"\r\n") + clearLine + clearBelow
}
