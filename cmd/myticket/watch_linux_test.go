package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mattn/go-runewidth"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/ticket"
)

// resize gives a terminal a size.
func resize(t *testing.T, terminal *os.File, columns, lines uint16) {
	t.Helper()
	require.NoError(t, unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: lines, Col: columns}))
}

// watching is a command with --watch on a terminal.
type watching struct {
	screen *logText
	cancel func()
	exited chan int
}

func startWatching(t *testing.T, url string, lines uint16, args ...string) *watching {
	t.Helper()
	person, program := newTerminal(t)
	resize(t, program, 150, lines)
	ctx, cancel := context.WithCancel(t.Context())
	w := &watching{screen: &logText{}, cancel: cancel, exited: make(chan int, 1)}
	read := make(chan struct{})
	go func() { defer close(read); _, _ = io.Copy(w.screen, person) }()
	go func() {
		code := run(ctx, append(args, "--database-url", url), nil, streams{program, program, program})
		_ = program.Close()
		<-read
		w.exited <- code
	}()
	t.Cleanup(cancel)
	return w
}

// last returns what the screen shows now.
func (w *watching) last() string {
	pages := strings.Split(w.screen.String(), toTheTop)
	return strings.NewReplacer(clearLine, "", clearBelow, "", "\r\r\n", "\n", "\r\n", "\n").Replace(pages[len(pages)-1])
}

func TestWatch_RepaintsUntilItIsInterrupted(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	for _, args := range [][]string{
		{"tickets", "list", "--since=1h", "--watch=1s"}, {"tickets", "stats", "--by=source", "--watch=1s"}, {"problems", "--watch=1s"},
	} {
		source := "shop-of-" + args[0] + args[len(args)-2][2:4]
		w := startWatching(t, b.url, 50, args...)
		await(t, "the first page", func() bool { return strings.Contains(w.last(), "every 1s. Ctrl-C ends it.") })
		assert.NotContains(t, w.last(), source)
		b.insert(t, ticket.Error, source, "1", "x")
		await(t, "a later page", func() bool { return strings.Contains(w.last(), source) })
		w.cancel()
		assert.Zero(t, <-w.exited, args)
		all := w.screen.String()
		assert.True(t, strings.HasPrefix(all, alternateScreen), "%q", all)
		_, after, found := strings.Cut(all, normalScreen)
		assert.True(t, found)
		assert.Contains(t, after, source, "the last page stays")
		assert.NotContains(t, all, "Next page")
	}
}

func TestWatch_OutlivesADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.exec(t, `INSERT INTO products (product_id, name, price, first_seen_at, last_seen_at, changed_at, ticket_id)
		VALUES ('IZ8z', 'Café', 2, now(), now(), now(), gen_random_uuid())`)
	w := startWatching(t, b.url, 50, "products", "list", "--watch=1s")
	await(t, "the first page", func() bool { return strings.Contains(w.last(), "IZ8z") })
	b.exec(t, `ALTER TABLE products RENAME TO products_away`)
	await(t, "an error, above what was seen last", func() bool {
		return strings.Contains(w.last(), "trying again") && strings.Contains(w.last(), "IZ8z")
	})
	b.exec(t, `ALTER TABLE products_away RENAME TO products`)
	await(t, "it goes on", func() bool { return !strings.Contains(w.last(), "trying again") && strings.Contains(w.last(), "IZ8z") })
	w.cancel()
	assert.Zero(t, <-w.exited)

	b.exec(t, `ALTER TABLE products RENAME TO products_away`)
	code, _, stderr := b.myticket(t, "products", "list", "--watch")
	assert.Equal(t, 1, code, "a command that never works does not wait for ever")
	assert.Contains(t, stderr, "myticket migrate up")
}

func TestWatch_OutlivesAServerThatEnds(t *testing.T) {
	t.Parallel()
	server, url := pgtest.NewServer(t)
	w := startWatching(t, url, 50, "tickets", "list", "--watch=1s")
	await(t, "the first page", func() bool { return strings.Contains(w.last(), "RECEIVED") })
	require.NoError(t, server.Kill())
	await(t, "an error", func() bool { return strings.Contains(w.last(), "trying again") })
	require.NoError(t, server.Restart(t.Context()))
	await(t, "it goes on", func() bool { return !strings.Contains(w.last(), "trying again") })
	w.cancel()
	assert.Zero(t, <-w.exited)
}

func TestWatch_SaysThatThereIsNoAnswer(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	w := startWatching(t, b.url, 50, "products", "list", "--watch=1s")
	await(t, "the first page", func() bool { return strings.Contains(w.last(), "PRODUCT_ID") })
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `LOCK TABLE products`)
	require.NoError(t, err)
	await(t, "a note, above what was seen last", func() bool {
		return strings.Contains(w.last(), "no answer from the database for 5s; waiting") && strings.Contains(w.last(), "PRODUCT_ID")
	})
	require.NoError(t, tx.Rollback(t.Context()))
	await(t, "it goes on", func() bool {
		return !strings.Contains(w.last(), "no answer") && strings.Contains(w.last(), "PRODUCT_ID")
	})
	w.cancel()
	assert.Zero(t, <-w.exited)
}

func TestWatch_FillsNoMoreThanTheScreen(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	for range 30 {
		b.insert(t, ticket.Treated, "s", "1", "x")
	}
	w := startWatching(t, b.url, 10, "tickets", "list", "--watch=1s")
	await(t, "the first page", func() bool { return strings.Contains(w.last(), "more lines do not fit") })
	w.cancel()
	<-w.exited
	page, _, _ := strings.Cut(strings.Split(w.screen.String(), toTheTop)[2], clearBelow)
	assert.Equal(t, 10, strings.Count(page, "\n")+1, page)
	assert.Contains(t, page, "(24 more lines do not fit)")
}

func TestWatch_WithoutATerminal_PrintsBelow_AndCtrlCIsNoFailure(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	p := b.start(t, "tickets", "stats", "--watch=1s", "--by=status", "-o", "json")
	time.AfterFunc(2500*time.Millisecond, func() { _ = p.Process.Signal(syscall.SIGINT) })
	require.NoError(t, p.Wait(), "%s", &p.err)
	assert.NotContains(t, p.out.String(), "\x1b")
	assert.GreaterOrEqual(t, strings.Count(p.out.String(), "}\n\n{"), 1, "an empty line between: %s", &p.out)
	for _, wrong := range []string{"--watch=100ms", "--watch=2h", "--watch=often"} {
		o := runCommand(t, nil, "problems", wrong, "--database-url", unreachable)
		assert.Equal(t, 2, o.code, wrong)
		assert.Contains(t, o.stderr, "write 1s to 1h")
	}
}

func TestTerminal_HasColoursAndFits_AndPipesHaveNeither(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	id := b.insert(t, ticket.Error, "shop-1", "\x1b[2J", "a\x1b[2J").String()
	shown := func(env string, args ...string) string {
		person, program := newTerminal(t)
		resize(t, program, 100, 40)
		self, err := os.Executable()
		require.NoError(t, err)
		p := exec.CommandContext(t.Context(), self, args...)
		p.Env = append(os.Environ(), runMain+"=1", "DATABASE_URL="+b.url, "NO_COLOR=", "TERM=xterm")
		if env != "" {
			p.Env = append(p.Env, env)
		}
		p.Stdin, p.Stdout, p.Stderr = program, program, program
		require.NoError(t, p.Start())
		require.NoError(t, program.Close())
		text, _ := io.ReadAll(person) // ends with an error when the last one closes the terminal
		require.NoError(t, p.Wait(), "%s", text)
		return strings.ReplaceAll(string(text), "\r\n", "\n")
	}
	list := shown("", "tickets", "list")
	assert.Contains(t, list, "\x1b[31mERROR\x1b[0m")
	assert.Contains(t, list, "\x1b[1mSTATUS\x1b[0m")
	assert.Contains(t, list, `\x1b[2J`)
	assert.NotContains(t, list, "\x1b[2J")
	assert.Contains(t, list, id)
	for _, env := range []string{"NO_COLOR=1", "TERM=dumb"} {
		plain := shown(env, "tickets", "list")
		assert.NotContains(t, plain, "\x1b", env)
		for line := range strings.Lines(plain) {
			assert.LessOrEqual(t, runewidth.StringWidth(strings.TrimSuffix(line, "\n")), 100, line)
		}
	}
	show := shown("", "tickets", "show", id)
	assert.Contains(t, show, "Status        \x1b[31mERROR\x1b[0m")
	assert.Contains(t, show, "\x1b[1mProblems:\x1b[0m")
	assert.Contains(t, show, `a\x1b[2J`)
	assert.NotContains(t, shown("", "tickets", "list", "-o", "json")+shown("", "tickets", "list", "-o", "csv"), "\x1b")
	assert.NotContains(t, b.ok(t, "tickets", "list")+b.ok(t, "tickets", "show", id), "\x1b")
	// The help has the width of the terminal, too (kong).
	for line := range strings.Lines(shown("", "tickets", "stats", "--help")) {
		assert.LessOrEqual(t, len(strings.TrimSuffix(line, "\n")), 100, line)
	}
}
