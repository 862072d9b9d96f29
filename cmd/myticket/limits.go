package main

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"myticket/internal/httpapi"
	"myticket/internal/postgres"
)

// assumedMemory is the memory that a server is assumed to have if no limit is known, in bytes.
const assumedMemory = 1 << 30

// mostConnections is the highest derived limit of connections. More do not make a server faster. An operator can set more.
const mostConnections = 4096

// fewestPerPeer is the lowest derived limit of connections from one peer, because several tills may share an address.
const fewestPerPeer = 16

// reservedHeap is memory in bytes that is not used. Garbage is collected when the heap has grown to twice what is in use. In a
// server that is a few MiB, and each ticket makes garbage. Reserved memory counts as in use, so garbage is collected several
// times less often (docs/benchmarks.md). Memory that was never written to takes no room in the machine. GOMEMLIMIT counts it,
// though.
const reservedHeap = 24 << 20

// memoryLimit returns how many bytes this process may use, and where the limit comes from: GOMEMLIMIT, or the files of the
// container's cgroup (version 2, then 1) below root.
func memoryLimit(root string) (limit int64, from string) {
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		return limit, "GOMEMLIMIT"
	}
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		content, err := os.ReadFile(root + file)
		if err != nil {
			continue
		}
		// Without a limit it is "max", or in version 1 a number larger than the memory of any machine.
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64); err == nil && limit > 0 && limit < 1<<46 {
			return limit, file
		}
	}
	return assumedMemory, "no limit found: assumed"
}

// clientLimits bound what clients can make a server hold, as set or as derived.
type clientLimits struct {
	bodyBytes, connections, perPeer, waitingBytes int
}

// leastWaitingBytes is the lowest derived limit of the bytes of waiting tickets.
const leastWaitingBytes = 4 << 20

// deriveLimits derives the limits that are not set from the memory: an eighth for bodies that are being read or wait, a
// sixteenth for tickets that wait (and as much for those that are being read), and a fifth for connections. There are at most
// as many connections as small bodies fit into half of the memory for bodies. docs/server.md adds up what a server then uses.
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

// log logs the limits, and the memory that they are derived from.
func (l clientLimits) log(logger *slog.Logger, memory int64, from string) {
	logger.Info("limits of clients", "memory", humanize.IBytes(uint64(max(0, memory))), "memory_from", from,
		"body_bytes", l.bodyBytes,
		"waiting_bytes", l.waitingBytes, "max_connections", l.connections, "max_connections_per_peer", l.perPeer)
}

// What a server uses besides what is set, in bytes: while it idles, for a write to its spool, and for the key of a spooled
// ticket.
const (
	memoryAtRest  = 32 << 20
	memoryOfWrite = 8 << 20
	memoryOfKey   = 150
)

// memoryNeeded returns the most that a server uses, in bytes: the sum in docs/server.md.
func (f *serverFlags) memoryNeeded(l clientLimits) int64 {
	needed := memoryAtRest + postgres.KnownProductsBytes + int64(l.bodyBytes) +
		int64(l.connections)*int64(httpapi.ConnectionCost(int(f.MaxHeader))) + 2*int64(l.waitingBytes) +
		2*int64(f.BatchesInFlight)*int64(f.BatchBytes)
	if f.OrderLines {
		needed += postgres.OrderLinesBytes
	}
	if f.SpoolDir != "" {
		needed += 6*int64(f.BatchBytes) + memoryOfWrite + int64(f.BatchBytes) + memoryOfKey*int64(f.SpoolMaxTickets)
	}
	return needed
}

// limitWarning is what limits break of what docs/server.md promises of derived ones.
type limitWarning struct {
	found, means, do string
	figures          []any // for the log
}

// limitWarnings returns what the limits break, the worst first.
func (f *serverFlags) limitWarnings(l clientLimits, memory int64) (warnings []limitWarning) {
	if needed := f.memoryNeeded(l); needed > memory {
		warnings = append(warnings, limitWarning{
			means: "the limits let senders make this server use more memory than it has, so it may be killed: acknowledged tickets " +
				"are kept, tickets in progress get no answer",
			do:      "give it more memory, or lower the limits (docs/server.md, \"Limits to set\")",
			figures: []any{"needed", humanize.IBytes(uint64(needed)), "memory", humanize.IBytes(uint64(max(0, memory)))},
		})
	}
	if fit := l.bodyBytes / 2 / httpapi.SmallBody; l.connections > fit {
		warnings = append(warnings, limitWarning{
			found: fmt.Sprintf("--max-connections is %d, and %d small bodies fit into half of --body-bytes", l.connections, fit),
			means: "--max-connections is more than the small bodies that fit into half of --body-bytes: many slow senders can " +
				"cause the tickets of others to be refused with 503",
			do:      "raise --body-bytes, or lower --max-connections",
			figures: []any{"max_connections", l.connections, "fit", fit},
		})
	}
	return warnings
}

// warnOfLimits logs what the limits break.
func (f *serverFlags) warnOfLimits(logger *slog.Logger, l clientLimits, memory int64) {
	for _, w := range f.limitWarnings(l, memory) {
		logger.Warn(w.means+"; "+w.do, w.figures...)
	}
}
