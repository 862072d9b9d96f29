package main

import (
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"myticket/internal/httpapi"
)

// assumedMemory is what a server is taken to have when nobody says, in bytes.
const assumedMemory = 1 << 30

// mostConnections is the most that is derived. More do not make a server faster, and are there for who asks for them.
const mostConnections = 4096

// fewestPerPeer is the least limit of a peer that is derived: several tills may share an address.
const fewestPerPeer = 16

// memoryLimit returns how many bytes this process may take, and who says so: GOMEMLIMIT, or the container, by the files of
// its cgroup (version 2, then 1) below root.
func memoryLimit(root string) (limit int64, from string) {
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		return limit, "GOMEMLIMIT"
	}
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		content, err := os.ReadFile(root + file)
		if err != nil {
			continue
		}
		// Without a limit it is "max", or in version 1 a number beyond all machines.
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64); err == nil && limit > 0 && limit < 1<<46 {
			return limit, file
		}
	}
	return assumedMemory, "nobody: assumed"
}

// clientLimits are what clients may make a server hold, as set or as derived.
type clientLimits struct {
	bodyBytes, connections, perPeer, waitingBytes int
}

// leastWaitingBytes is the least that is derived for what waits.
const leastWaitingBytes = 4 << 20

// deriveLimits fills in what is not set, from the memory that there is: an eighth for bodies on their way, a sixteenth for
// tickets that wait (and as much for those that are being read), and a fifth for what connections cost, as long as small
// bodies of all of them fit into the half of the first that is theirs. docs/server.md adds up what a server takes by that.
func (f *serverFlags) deriveLimits(memory int64) clientLimits {
	l := clientLimits{int(f.BodyBytes), f.MaxConnections, f.MaxConnectionsPerPeer, int(f.WaitingBytes)}
	if l.waitingBytes == 0 {
		l.waitingBytes = max(int(min(memory/16, math.MaxInt)), leastWaitingBytes)
	}
	if l.bodyBytes == 0 {
		l.bodyBytes = max(int(min(memory/8, math.MaxInt)), 4*int(f.MaxBody))
	}
	if l.connections == 0 {
		each := httpapi.ConnectionCost(int(f.MaxHeader))
		l.connections = max(1, min(mostConnections, int(memory/5)/each, l.bodyBytes/2/httpapi.SmallBody))
	}
	if l.perPeer < 0 {
		if l.perPeer = max(fewestPerPeer, l.connections/4); l.perPeer >= l.connections {
			l.perPeer = 0
		}
	}
	return l
}

// log says what was derived, and from what.
func (l clientLimits) log(logger *slog.Logger, memory int64, from string) {
	logger.Info("limits of clients", "memory", humanize.IBytes(uint64(max(0, memory))), "memory_from", from,
		"body_bytes", l.bodyBytes,
		"waiting_bytes", l.waitingBytes, "max_connections", l.connections, "max_connections_per_peer", l.perPeer)
}

// What a server takes besides what is set, in bytes: doing nothing, a write to its spool, and the key of a spooled ticket.
const (
	memoryAtRest  = 32 << 20
	memoryOfWrite = 8 << 20
	memoryOfKey   = 150
)

// memoryNeeded is what a server takes at most, in bytes: the sum in docs/server.md.
func (f *serverFlags) memoryNeeded(l clientLimits) int64 {
	needed := memoryAtRest + int64(l.connections)*int64(httpapi.ConnectionCost(int(f.MaxHeader))) + int64(l.bodyBytes) +
		2*int64(l.waitingBytes) + 2*int64(f.BatchesInFlight)*int64(f.BatchBytes)
	if f.SpoolDir != "" {
		needed += 4*int64(f.BatchBytes) + memoryOfWrite + int64(f.BatchBytes) + memoryOfKey*int64(f.SpoolMaxTickets)
	}
	return needed
}

// warnOfLimits warns of limits that do not hold what docs/server.md says of those that are derived.
func (f *serverFlags) warnOfLimits(logger *slog.Logger, l clientLimits, memory int64) {
	if needed := f.memoryNeeded(l); needed > memory {
		logger.Warn("the limits let senders make this server take more memory than it has, so it may be killed: what was acknowledged "+
			"is kept, what was under way is not answered; give it more memory, or lower the limits (docs/server.md, \"Limits to set\")",
			"needed", humanize.IBytes(uint64(needed)), "memory", humanize.IBytes(uint64(max(0, memory))))
	}
	if fit := l.bodyBytes / 2 / httpapi.SmallBody; l.connections > fit {
		logger.Warn("--max-connections is more than have a small body each in half of --body-bytes: many slow senders may have the "+
			"tickets of others refused with 503; raise --body-bytes, or lower --max-connections",
			"max_connections", l.connections, "fit", fit)
	}
}

// warnSecretsInArgs warns of a password in the arguments: whoever may list processes, and whoever sees a crash report, reads
// them.
func warnSecretsInArgs(logger *slog.Logger, args []string) {
	const flag = "--database-url"
	for i, arg := range args {
		value, ok := strings.CutPrefix(arg, flag+"=")
		if arg == flag && i+1 < len(args) {
			value, ok = args[i+1], true
		}
		if ok && hasPassword(value) {
			logger.Warn(fmt.Sprintf("%s has a password in it: everybody who may list this machine's processes can read it; "+
				"use DATABASE_URL or --database-url-file", flag))
			return
		}
	}
}

// hasPassword reports whether a connection string of Postgres has a password, as far as that can be seen.
func hasPassword(connection string) bool {
	if strings.Contains(strings.ToLower(connection), "password") { // a parameter, or a word of the other syntax
		return true
	}
	u, err := url.Parse(connection)
	if err != nil { // perhaps because of what is in the password
		return strings.Contains(connection, "@")
	}
	_, set := u.User.Password()
	return set
}

// logSources says who may send without credentials.
func logSources(logger *slog.Logger, sources *httpapi.Sources, file string) {
	open := sources.Open()
	switch {
	case file == "":
		logger.Warn("no --sources-file: every source is open, so whoever reaches the webhook may send tickets")
	case sources.None():
		logger.Warn("the sources file names no source, so every ticket is refused with 403; name those that may send, or \"*\" for all",
			"file", file)
		return
	case len(open) > 0:
		logger.Warn("these sources ask for no credentials, so whoever reaches the webhook may send tickets as them; "+
			"\"*\" is every source without an entry", "open", open)
	case sources.Others():
		logger.Info("every source asks for credentials")
	default:
		logger.Info("the sources of the file ask for credentials")
	}
	if file != "" && !sources.Others() {
		logger.Info("other sources may not send: they are refused with 403, because the sources file does not name them and " +
			"has no \"*\"")
	}
}
