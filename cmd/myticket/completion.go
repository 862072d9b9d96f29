package main

import (
	"bytes"
	"embed"
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
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

func (c completeCmd) Run(std streams, command *kong.Context) error {
	if len(c.Words) == 0 {
		c.Words = []string{""}
	}
	var out bytes.Buffer
	completionOf(command.Model.Node, c.Words).write(&out)
	_, err := std.stdout.Write(out.Bytes())
	return err
}

// completion is what may follow on a command line.
type completion struct {
	kind  string // "words", "files" or "dirs"
	words [][2]string
	begun string // what a word must begin with
}

func (c completion) write(w io.Writer) {
	fmt.Fprintf(w, ":%s\n", c.kind)
	for _, word := range c.words {
		if strings.HasPrefix(word[0], c.begun) {
			fmt.Fprintf(w, "%s\t%s\n", word[0], word[1])
		}
	}
}

// completionOf completes the last of the words.
func completionOf(node *kong.Node, words []string) completion {
	done, last := words[:len(words)-1], words[len(words)-1]
	var pending *kong.Flag // waits for its value
	arguments, noFlags := 0, false
	for _, word := range done {
		switch {
		case pending != nil:
			pending = nil
		case noFlags || !strings.HasPrefix(word, "-") || word == "-":
			if child := childOf(node, word); child != nil && arguments == 0 {
				node = child
			} else {
				arguments++
			}
		case word == "--":
			noFlags = true
		default:
			name, _, hasValue := strings.Cut(word, "=")
			if flag := flagOf(node, name); flag != nil && !hasValue && !flag.IsBool() {
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
	if n := len(node.Positional); n > 0 && (arguments < n || node.Positional[n-1].IsCumulative()) {
		argument := node.Positional[min(arguments, n-1)]
		return completeValue(argument, strings.ToUpper(argument.Name), "", last)
	}
	return completion{kind: "words"}
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
