package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"myticket/internal/lab"
)

// The peers are what a team would write in an afternoon. Each stores the body in a table of its own, and answers after the
// commit.
//
//go:embed peers
var peerSources embed.FS

const (
	// peersDir is where peers are installed.
	peersDir = "bin/peers"
	// peerConnections is how many connections to Postgres each peer has in all. With 16, all peers were slower.
	peerConnections = 40
	peerWorkers     = "2"
	// databaseVariable is the variable that names the database to a peer.
	databaseVariable = "BENCH_DATABASE_URL"
	// installLimit bounds the installation of one peer.
	installLimit = 5 * time.Minute
)

// peer is a server beside MyTicket that can be started.
type peer struct {
	name    string
	version string
	table   string
	command func(host, port string) *exec.Cmd
}

// start starts the peer on a database.
func (p peer) start(ctx context.Context, database string) (*process, error) {
	addr, err := lab.FreeAddr(ctx)
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	command := p.command(host, port)
	command.Env = append(os.Environ(), databaseVariable+"="+database, fmt.Sprintf("BENCH_CONNECTIONS=%d", peerConnections),
		"BENCH_WORKERS="+peerWorkers)
	return start(ctx, command, addr, "", "http://"+addr+"/ping")
}

func (p peer) createTable() string {
	return `CREATE TABLE ` + p.table + ` (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		received_at timestamptz NOT NULL DEFAULT now(), body bytea NOT NULL)`
}

// checkStored compares what the peer acknowledged with what it stored: the peers keep the same promise.
func (p peer) checkStored(ctx context.Context, db *database, acked int) error {
	stored, err := db.count(ctx, `SELECT count(*) FROM `+p.table+` WHERE length(body) > 0`)
	if err == nil && stored != acked {
		err = fmt.Errorf("%s acknowledged %d tickets and stored %d", p.name, acked, stored)
	}
	return err
}

// installPeers returns the peers that this machine can run, and installs them below dir. What is missing it prints, with how to
// get it.
func installPeers(ctx context.Context, dir string, out io.Writer) []peer {
	dir, err := filepath.Abs(dir)
	if err != nil {
		fmt.Fprintln(out, "no peers:", err)
		return nil
	}
	var peers []peer
	for _, install := range []func(context.Context, string) (peer, error){naivePeer, fastifyPeer, fastapiPeer} {
		limited, cancel := context.WithTimeout(ctx, installLimit)
		p, err := install(limited, dir)
		cancel()
		if err != nil {
			fmt.Fprintf(out, "%s is not measured: %v\n", p.name, err)
			continue
		}
		peers = append(peers, p)
	}
	return peers
}

func naivePeer(context.Context, string) (peer, error) {
	program, err := os.Executable()
	return peer{
		name: "Go + pgx", version: runtime.Version() + ", net/http", table: "bodies_go",
		command: func(host, port string) *exec.Cmd { return exec.Command(program, "naive", net.JoinHostPort(host, port)) },
	}, err
}

func fastifyPeer(ctx context.Context, dir string) (peer, error) {
	p := peer{name: "Fastify + pg", table: "bodies_fastify"}
	node, err := findAll("node", "npm")
	if err != nil {
		return p, fmt.Errorf("%w: install Node.js 20 or later with npm (https://nodejs.org, or `apt-get install nodejs npm` "+
			"where that is 20 or later)", err)
	}
	dir, err = unpack("peers/fastify", dir)
	if err != nil {
		return p, err
	}
	// Scripts of packages are not run. None of these needs one.
	if err := runIn(ctx, dir, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"); err != nil {
		return p, err
	}
	version, err := outputOf(ctx, dir, "node", "-p", `"Fastify " + require("fastify/package.json").version + ", pg " + `+
		`require("pg/package.json").version + ", Node.js " + process.version + ", 2 workers"`)
	p.version = version
	p.command = func(host, port string) *exec.Cmd {
		return exec.Command(node, filepath.Join(dir, "server.mjs"), host, port, fmt.Sprint(peerConnections))
	}
	return p, err
}

const pythonVersions = `import sys, fastapi, asyncpg, uvicorn, uvloop, httptools
print(f"FastAPI {fastapi.__version__}, asyncpg {asyncpg.__version__}, uvicorn {uvicorn.__version__}, "
      f"Python {sys.version.split()[0]}, 2 workers")`

func fastapiPeer(ctx context.Context, dir string) (peer, error) {
	p := peer{name: "FastAPI + asyncpg", table: "bodies_fastapi"}
	if _, err := findAll("python3"); err != nil {
		return p, fmt.Errorf("%w: install Python 3.10 or later with venv (`apt-get install python3-venv`)", err)
	}
	dir, err := unpack("peers/fastapi", dir)
	if err != nil {
		return p, err
	}
	python := filepath.Join(dir, "venv", "bin", "python")
	// Without retries, so that a machine that does not reach the registry finds out at once.
	err = runIn(ctx, dir, "python3", "-m", "venv", "venv")
	if err == nil {
		err = runIn(ctx, dir, python, "-m", "pip", "install", "--quiet", "--retries", "0", "--disable-pip-version-check",
			"--requirement", "requirements.txt")
	}
	candidates := []string{python}
	if err != nil {
		candidates = []string{"python3", "/usr/bin/python3"} // with the packages of the system, if they are there
	}
	for _, candidate := range candidates {
		version, versionErr := outputOf(ctx, dir, candidate, "-c", pythonVersions)
		if versionErr != nil {
			err = errors.Join(err, versionErr)
			continue
		}
		p.version = version
		p.command = func(host, port string) *exec.Cmd {
			command := exec.Command(candidate, "-m", "uvicorn", "main:app", "--host", host, "--port", port, "--workers", peerWorkers,
				"--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning", "--timeout-keep-alive", "75")
			command.Dir = dir
			return command
		}
		return p, nil
	}
	return p, fmt.Errorf("%w\ninstall its packages from PyPI's mirror of your choice, or those of the system "+
		"(`apt-get install python3-fastapi python3-asyncpg python3-uvicorn python3-uvloop python3-httptools`)", err)
}

// findAll returns the path of the first program. All must be there.
func findAll(programs ...string) (first string, err error) {
	for i, program := range programs {
		path, err := exec.LookPath(program)
		if err != nil {
			return "", fmt.Errorf("%s is missing here", program)
		}
		if i == 0 {
			first = path
		}
	}
	return first, nil
}

// unpack writes the sources of a peer into a folder of its own, and returns it.
func unpack(source, dir string) (string, error) {
	into := filepath.Join(dir, filepath.Base(source))
	if err := os.MkdirAll(into, 0o755); err != nil {
		return "", err
	}
	files, err := fs.ReadDir(peerSources, source)
	if err != nil {
		return "", err
	}
	for _, file := range files {
		content, err := peerSources.ReadFile(source + "/" + file.Name())
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(into, file.Name()), content, 0o644); err != nil {
			return "", err
		}
	}
	return into, nil
}

func runIn(ctx context.Context, dir, program string, args ...string) error {
	_, err := outputOf(ctx, dir, program, args...)
	return err
}

// outputOf runs a program in a folder and returns what it printed. Its error has the end of what it said.
func outputOf(ctx context.Context, dir, program string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, program, args...)
	var out bytes.Buffer
	said := &lab.Tail{}
	command.Dir, command.Stdout, command.Stderr = dir, io.MultiWriter(&out, said), said
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w; it said:\n%s", filepath.Base(program), strings.Join(args[:min(len(args), 2)], " "), err, said)
	}
	return strings.TrimSpace(out.String()), nil
}

// peersHeader says what the peers are, and begins their table.
func (b *bench) peersHeader() string {
	var text, head, line strings.Builder
	text.WriteString("Each peer inserts the body alone, one INSERT a request, and answers after the commit, with ")
	fmt.Fprintf(&text, "%d connections to Postgres. ", peerConnections)
	head.WriteString("| tickets of | concurrency | MyTicket/s (p99) |")
	line.WriteString("|---|--:|--:|")
	for i, p := range b.peers {
		fmt.Fprintf(&text, "%s: %s%s", p.name, p.version, map[bool]string{true: ".\n\n", false: "; "}[i == len(b.peers)-1])
		fmt.Fprintf(&head, " %s/s (p99) |", p.name)
		line.WriteString("--:|")
	}
	return text.String() + head.String() + " MyTicket over the best | least and most |\n" + line.String() + "--:|--:|"
}

// besidePeers is a line of the peers' table. The best peer is the one with the highest median.
func besidePeers(r row, server *contender, peers []*contender) string {
	var line strings.Builder
	cell := func(c *contender) {
		fmt.Fprintf(&line, " %.0f (%s) |", median(c.rates), median(c.p99s).Round(100*time.Microsecond))
	}
	fmt.Fprintf(&line, "| %s | %d |", r.label(), r.concurrency)
	cell(server)
	best := peers[0]
	for _, p := range peers {
		cell(p)
		if median(p.rates) > median(best.rates) {
			best = p
		}
	}
	all := pairs(server.rates, best.rates)
	fmt.Fprintf(&line, " **%.2f** | %.2f–%.2f |\n", median(all), slices.Min(all), slices.Max(all))
	return line.String()
}
