package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"myticket/internal/httpapi"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// doctorCmd is `myticket doctor`. It changes nothing.
type doctorCmd struct {
	databaseFlags
	uncheckedFlags
	outputFlags

	Skip    []string `placeholder:"CHECK" help:"Checks to leave out, separated by commas, such as spool where the folder of the server is not mounted. A name also stands for those that begin with it: spool for spool_disk."`
	FailOn  string   `default:"warning" enum:"warning,problem" help:"What makes the exit code other than 0: warning (also what could not be checked), or problem alone. Default: ${default}."`
	Servers int      `default:"0" placeholder:"N" help:"Servers that share the database, to count their connections. Default: those that are connected now."`
}

// uncheckedFlags are the settings of a server. What is wrong with them is one finding of several, so kong does not validate them.
type uncheckedFlags serverFlags

// Validate is called by kong.
func (c *doctorCmd) Validate() error {
	if c.Servers < 0 {
		return errors.New("--servers must not be negative")
	}
	names := c.examination().names()
	for _, skip := range c.Skip {
		if !slices.ContainsFunc(names, func(name string) bool { return isOrBeginsWith(name, skip) }) {
			return fmt.Errorf("--skip: there is no check %q, only %s", skip, strings.Join(names, ", "))
		}
	}
	return nil
}

func isOrBeginsWith(name, beginning string) bool {
	return name == beginning || strings.HasPrefix(name, beginning+"_")
}

// verdict is what a check says in one word.
type verdict string

// The verdicts.
const (
	isOK      verdict = "ok"
	isSkipped verdict = "skipped" // it does not apply here, or needs what another check did not find
	isWarning verdict = "warning" // tickets are stored, and something is to be done before they are not
	isUnknown verdict = "unknown" // the check could not be made
	isProblem verdict = "problem" // tickets are not stored, not safe or not treated, or a server does not start
)

// verdicts are the verdicts, the worst last.
var verdicts = []verdict{isSkipped, isOK, isWarning, isUnknown, isProblem}

// exitCodes are the exit codes of a verdict. 1 and 2 mean the same as in all commands.
var exitCodes = map[verdict]int{isProblem: 1, isWarning: 3, isUnknown: 4}

// exitStatuses are for the manual page.
func (*doctorCmd) exitStatuses() []exitStatus {
	return []exitStatus{
		{"0", "All is well."},
		{"1", "There is a problem: tickets are not stored, not safe or not treated, or a server would not start."},
		{"2", "The arguments or the environment are not understood. Nothing was checked."},
		{"3", "There is a warning: tickets are stored, and something is to be done before they are not."},
		{"4", "A check could not be made, and there is no problem."},
	}
}

var verdictColours = map[verdict]string{isOK: green, isSkipped: dim, isWarning: yellow, isUnknown: yellow, isProblem: red}

// finding is the result of a check. Programs read it: docs/versioning.md.
type finding struct {
	Name    string  `json:"name"`
	Status  verdict `json:"status"`
	Found   string  `json:"found"`
	Means   string  `json:"means"` // for tickets; empty if all is well
	Do      string  `json:"do"`
	Runbook string  `json:"runbook"` // a page of docs/runbooks
}

// doctorReport is what a program reads.
type doctorReport struct {
	Status  verdict   `json:"status"` // the worst of the checks
	Version string    `json:"version"`
	At      time.Time `json:"at"`
	Checks  []finding `json:"checks"`
}

func well(format string, args ...any) finding {
	return finding{Status: isOK, Found: fmt.Sprintf(format, args...)}
}

func skipped(format string, args ...any) finding {
	return finding{Status: isSkipped, Found: fmt.Sprintf(format, args...)}
}

// see adds the page of a runbook.
func (f finding) see(runbook string) finding {
	f.Runbook = "docs/runbooks/" + runbook + ".md"
	return f
}

// cannotSay is the result of a check that could not be made.
func cannotSay(err error) finding {
	return finding{
		Status: isUnknown, Found: "cannot be checked: " + oneLine(err), Means: "It is not known whether this is well.",
		Do: "Remove the reason, and run the command again.",
	}
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// check is one of the checks.
type check struct {
	name string
	do   func(context.Context) finding
}

// Time limits of the checks. One of the database ends at its limit by itself. One of a disk that hangs does not, and is left
// behind.
const (
	checkTimeout   = 5 * time.Second
	connectTimeout = databasePatience + checkTimeout
	doctorTimeout  = 30 * time.Second
)

// examination are the checks of one run.
type examination struct {
	*serverFlags

	url     func() (string, error)
	servers int
	skip    []string
	now     func() time.Time
	waiting func(why error)                  // for the database
	sources func() (*httpapi.Sources, error) // reads them once: a file may hang

	// What the checks of the database found for those after them, which run one after the other.
	database *postgres.CheckUp      // nil if there is no connection
	schema   *postgres.SchemaStatus // nil if it is not known
}

func (c *doctorCmd) examination() *examination {
	server := (*serverFlags)(&c.uncheckedFlags)
	return &examination{
		serverFlags: server, url: c.url, servers: c.Servers, skip: c.Skip, now: ticket.Now, waiting: func(error) {},
		sources: sync.OnceValues(server.readSources),
	}
}

// lanes are the checks in the order of the output. The checks of a lane run one after the other, and lanes beside each other: a
// database that hangs does not hide what is wrong with the disk.
func (e *examination) lanes() [][]check {
	return [][]check{
		{{"settings", e.checkSettings}, {"sources", e.checkSources}, {"memory", e.checkMemory}, {"open_files", e.checkOpenFiles}},
		e.ofDatabase(),
		{{"spool", e.checkSpool}, {"spool_disk", e.checkSpoolDisk}, {"spool_tickets", e.checkSpoolTickets}},
		{{"server", e.checkServer}},
	}
}

func (e *examination) names() (names []string) {
	for _, lane := range e.lanes() {
		for _, c := range lane {
			names = append(names, c.name)
		}
	}
	return names
}

// run makes all checks.
func (e *examination) run(ctx context.Context) []finding {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	lanes := e.lanes()
	found := make([][]finding, len(lanes))
	var running sync.WaitGroup
	for i, lane := range lanes {
		running.Go(func() {
			for _, c := range lane {
				found[i] = append(found[i], e.make(ctx, c))
			}
		})
	}
	running.Wait()
	if e.database != nil {
		e.database.Close()
	}
	return slices.Concat(found...)
}

// make makes a check, within its time.
func (e *examination) make(ctx context.Context, c check) (f finding) {
	defer func() { f.Name = c.name }()
	if slices.ContainsFunc(e.skip, func(skip string) bool { return isOrBeginsWith(c.name, skip) }) {
		return skipped("left out by --skip")
	}
	if ctx.Err() != nil {
		return cannotSay(fmt.Errorf("the checks before took %s", doctorTimeout))
	}
	limit := checkTimeout
	if c.name == "database" {
		limit = connectTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan finding, 1)
	go func() { done <- c.do(ctx) }()
	select {
	case f = <-done:
	case <-time.After(limit + time.Second):
		f = cannotSay(fmt.Errorf("no end after %s", limit))
	}
	return f
}

// Run examines everything, and fails if not all is well.
func (c *doctorCmd) Run(ctx context.Context, std streams) error {
	e := c.examination()
	e.waiting = func(why error) {
		fmt.Fprintf(std.stderr, "The database cannot be reached; trying for up to %s: %s\n", databasePatience, oneLine(why))
	}
	report := doctorReport{Version: version, At: time.Now().UTC().Truncate(time.Second), Checks: e.run(ctx)}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	report.Status = worst(report.Checks)
	write := report.print
	if c.Output == "json" {
		write = func(w io.Writer) error { return printJSON(w, report) }
	}
	if err := write(std.stdout); err != nil {
		return err
	}
	code := exitCodes[report.Status]
	if code == 0 || c.FailOn == "problem" && report.Status != isProblem {
		return nil
	}
	return &exitError{code, report.summary() + `: see above, and "The first command" in docs/server.md`}
}

func worst(checks []finding) verdict {
	worst := isOK
	for _, f := range checks {
		if slices.Index(verdicts, f.Status) > slices.Index(verdicts, worst) {
			worst = f.Status
		}
	}
	return worst
}

// summary counts the checks by their verdicts, the worst first.
func (r doctorReport) summary() string {
	var words []string
	for _, v := range slices.Backward(verdicts) {
		n := 0
		for _, f := range r.Checks {
			if f.Status == v {
				n++
			}
		}
		switch {
		case n == 0:
		case n > 1 && (v == isProblem || v == isWarning):
			words = append(words, fmt.Sprintf("%d %ss", n, v))
		default:
			words = append(words, fmt.Sprintf("%d %s", n, v))
		}
	}
	return strings.Join(words, ", ")
}

// print writes a line for each check, and a second one if there is something to do.
func (r doctorReport) print(w io.Writer) error {
	var b strings.Builder
	l := look(w)
	for _, f := range r.Checks {
		status := l.paint(verdictColours[f.Status], fmt.Sprintf("%-8s", f.Status))
		fmt.Fprintf(&b, "%s %-14s %s\n", status, f.Name, printable(f.Found))
		if more := strings.TrimSpace(f.Means + " " + f.Do); more != "" {
			if f.Runbook != "" {
				more += " (" + f.Runbook + ")"
			}
			fmt.Fprintf(&b, "%-8s %-14s %s\n", "", "", printable(more))
		}
	}
	if r.Status == isOK {
		fmt.Fprintln(&b, "All is well: "+r.summary())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// silent is the logger of what a check calls: the check itself says what is wrong.
func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }
