package main

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/uuid"

	"myticket/internal/events"
	"myticket/internal/postgres"
)

// completionCmd is `myticket completion`.
type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Help is shown by --help.
func (completionCmd) Help() string {
	return "For this session: source <(myticket completion bash), the same with zsh after compinit, or " +
		"myticket completion fish | source. For all sessions write it to a file: " +
		"/etc/bash_completion.d/myticket or ~/.local/share/bash-completion/completions/myticket, " +
		"_myticket in a folder of zsh's $fpath, or ~/.config/fish/completions/myticket.fish."
}

// The scripts ask the program that is completed for words: see completeCmd. So they are small, and never lag.
//
//go:embed completion
var completionScripts embed.FS

func (c completionCmd) Run(std streams) error {
	script, err := completionScripts.ReadFile("completion/myticket." + c.Shell)
	if err != nil {
		return err
	}
	_, err = std.stdout.Write(script)
	return err
}

// completeCmd is what the scripts of completionCmd run. It writes what may follow: a line that is ":files", ":dirs" or ":words",
// then a line for each word, with its description after a tab.
type completeCmd struct {
	Words []string `arg:"" optional:"" help:"The words after the program's name. The last one is to be completed."`
}

func (c completeCmd) Run(ctx context.Context, std streams, command *kong.Context) error {
	if len(c.Words) == 0 {
		c.Words = []string{""}
	}
	var out bytes.Buffer
	found := completionOf(command.Model.Node, c.Words)
	found.words = append(found.words, found.ask.answer(ctx)...)
	found.write(&out)
	_, err := std.stdout.Write(out.Bytes())
	return err
}

// completion is what may follow on a command line.
type completion struct {
	kind  string // "words", "files" or "dirs"
	words [][2]string
	begun string // what a word must begin with
	ask   *completionQuestion
}

// completionQuestion is what only the database knows: the names of subscriptions, or the dead letters of one.
type completionQuestion struct {
	database databaseFlags
	letters  string // of which subscription; empty for the names
}

// Limits of the answer. A person waits for it.
const (
	completionTimeout = 2 * time.Second
	completionLetters = 100
)

// answer returns what the database says; nothing if it does not answer soon.
func (q *completionQuestion) answer(ctx context.Context) (words [][2]string) {
	if q == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	url, err := q.database.orFromEnvironment().url()
	if err != nil {
		return nil
	}
	store, err := postgres.Open(ctx, postgres.Config{
		URL: url, MaxConns: 1, ApplicationName: "myticket complete", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil
	}
	defer store.Close()
	if q.letters != "" {
		letters, err := store.DeadLetters(ctx, q.letters, 0, completionLetters)
		if err != nil {
			return nil
		}
		for i := range letters {
			what := letters[i].Type + " " + letters[i].Event + ": " + letters[i].Reason
			words = append(words, [2]string{strconv.FormatInt(letters[i].ID, 10), cut(what, 100)})
		}
		return words
	}
	subs, err := store.Subscribed(ctx, uuid.Nil)
	if err != nil {
		return nil
	}
	for i := range subs {
		words = append(words, [2]string{subs[i].Name, withoutQuery(subs[i].Target)})
	}
	return words
}

func (c completion) write(w io.Writer) {
	fmt.Fprintf(w, ":%s\n", c.kind)
	for _, word := range c.words {
		if strings.HasPrefix(word[0], c.begun) {
			fmt.Fprintf(w, "%s\t%s\n", word[0], strings.Join(strings.Fields(word[1]), " "))
		}
	}
}

// completionOf completes the last of the words.
func completionOf(node *kong.Node, words []string) completion {
	done, last := words[:len(words)-1], words[len(words)-1]
	var pending *kong.Flag // waits for its value
	var arguments []string
	var database databaseFlags
	noFlags := false
	for _, word := range done {
		switch {
		case pending != nil:
			database = database.with(pending.Name, word)
			pending = nil
		case noFlags || !strings.HasPrefix(word, "-") || word == "-":
			if child := childOf(node, word); child != nil && len(arguments) == 0 {
				node = child
			} else {
				arguments = append(arguments, word)
			}
		case word == "--":
			noFlags = true
		default:
			name, value, hasValue := strings.Cut(word, "=")
			if flag := flagOf(node, name); flag != nil && hasValue {
				database = database.with(flag.Name, value)
			} else if flag != nil && !flag.IsBool() {
				pending = flag
			}
		}
	}
	if pending != nil {
		return completeValue(pending.Value, pending.PlaceHolder, "", last)
	}
	if !noFlags && strings.HasPrefix(last, "-") {
		if name, value, ok := strings.Cut(last, "="); ok {
			if flag := flagOf(node, name); flag != nil {
				return completeValue(flag.Value, flag.PlaceHolder, name+"=", value)
			}
			return completion{kind: "words"}
		}
		return completeFlags(node, last)
	}
	if len(node.Children) > 0 {
		found := completion{kind: "words", begun: last}
		for _, child := range node.Children {
			if !child.Hidden {
				found.words = append(found.words, [2]string{child.Name, firstSentence(child.Help)})
			}
		}
		return found
	}
	if n := len(node.Positional); n > 0 && (len(arguments) < n || node.Positional[n-1].IsCumulative()) {
		argument := node.Positional[min(len(arguments), n-1)]
		found := completeValue(argument, strings.ToUpper(argument.Name), "", last)
		switch ofSubscription := isSubscription(node.Positional[0]) && node.Name != "create"; {
		case ofSubscription && len(arguments) == 0:
			found.ask = &completionQuestion{database: database}
		case ofSubscription && argument.IsCumulative(): // the ids of dead letters
			found.ask = &completionQuestion{database: database, letters: arguments[0]}
		}
		return found
	}
	return completion{kind: "words"}
}

// isSubscription reports whether a value is the name of a subscription.
func isSubscription(value *kong.Value) bool {
	return value.Target.Type() == reflect.TypeFor[subscriptionName]()
}

func childOf(node *kong.Node, name string) *kong.Node {
	for _, child := range node.Children {
		if child.Name == name {
			return child
		}
	}
	return nil
}

// flagOf returns the flag of a command that is written as --name, --no-name or -n; nil if there is none.
func flagOf(node *kong.Node, written string) *kong.Flag {
	for _, flags := range node.AllFlags(true) {
		for _, flag := range flags {
			if written == "--"+flag.Name || flag.Short != 0 && written == "-"+string(flag.Short) {
				return flag
			}
		}
	}
	return nil
}

func completeFlags(node *kong.Node, begun string) completion {
	found := completion{kind: "words", begun: begun}
	for _, flags := range node.AllFlags(true) {
		for _, flag := range flags {
			help := firstSentence(flag.Help)
			found.words = append(found.words, [2]string{"--" + flag.Name, help})
			if flag.Tag.Negatable != "" {
				found.words = append(found.words, [2]string{"--no-" + flag.Name, "Not: " + help})
			}
		}
	}
	return found
}

// completeValue completes the value of a flag or an argument, which has a prefix on the command line. In a list each value is
// completed by itself.
func completeValue(value *kong.Value, placeholder, prefix, begun string) completion {
	found := completion{kind: "words", begun: prefix + begun}
	switch {
	case value.Enum != "":
		if i := strings.LastIndexByte(begun, ','); value.IsCumulative() && i >= 0 {
			prefix += begun[:i+1]
		}
		for _, word := range value.EnumSlice() {
			found.words = append(found.words, [2]string{prefix + word, ""})
		}
	case value.IsCumulative() && value.Target.Type() == reflect.TypeFor[[]eventType]():
		prefix += begun[:strings.LastIndexByte(begun, ',')+1]
		for _, word := range events.Types() {
			found.words = append(found.words, [2]string{prefix + word, ""})
		}
	case placeholder == "FILE":
		found.kind = "files"
	case placeholder == "DIR":
		found.kind = "dirs"
	}
	return found
}

// firstSentence returns the beginning of a help text, which fits on a line.
func firstSentence(help string) string {
	if i := strings.Index(help, ". "); i >= 0 {
		help = help[:i]
	}
	return strings.TrimSuffix(cut(help, 100), ".")
}
