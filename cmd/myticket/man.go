package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/alecthomas/kong"
)

// manCmd is `myticket man`, for `make man` and for packages.
type manCmd struct {
	Dir string `arg:"" type:"path" help:"Folder to write to. It is made if it is missing."`
}

// Run writes a page for the program and one for each command, made from what --help says.
func (c manCmd) Run(command *kong.Context) error {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil { //nolint:gosec // all may read it
		return err
	}
	root := command.Model.Node
	for _, node := range append([]*kong.Node{root}, root.Leaves(true)...) {
		file := filepath.Join(c.Dir, pageName(node)+".1")
		if err := os.WriteFile(file, []byte(manPage(node)), 0o644); err != nil { //nolint:gosec // all may read it
			return err
		}
	}
	return nil
}

// exitStatus is an exit code of a command, and what it means.
type exitStatus struct{ code, means string }

// exitStatuses is what commands have whose exit codes are not only those of all.
type exitStatuses interface{ exitStatuses() []exitStatus }

var commonExits = []exitStatus{
	{"0", "It is done. What runs until it is interrupted (serve, tickets follow, and all with --watch) was interrupted."},
	{"1", "It failed, or was interrupted before it was done. What it says on standard error tells what that means for tickets."},
	{"2", "The arguments or the environment are wrong. Nothing was done."},
}

// commonVariables are variables that no flag has.
var commonVariables = [][2]string{
	{"NO_COLOR, TERM", "If NO_COLOR is not empty, or TERM is dumb, a terminal gets no colours. Files and pipes never do."},
	{"COLUMNS", "The width of help texts. The default is that of the terminal. Tables always have the width of the terminal."},
	{"TZ", "The time zone of times, if --tz is not given."},
	{"PGSSLMODE, PGSSLROOTCERT and others", "What the URI of the database does not say (PostgreSQL's manual, chapter libpq)."},
}

func pageName(node *kong.Node) string { return strings.ReplaceAll(node.FullPath(), " ", "-") }

// manPage returns the page of a command in the macros of man(7).
func manPage(node *kong.Node) string {
	var p roff
	p.macro("TH", strings.ToUpper(pageName(node)), "1", "", "myticket "+version, "MyTicket")
	p.macro("nh") // a command that is broken by a hyphen is another one
	p.macro("ad l")
	p.macro("SH", "NAME")
	p.text(pageName(node) + " - " + strings.TrimSuffix(firstSentence(node.Help), "."))
	p.macro("SH", "SYNOPSIS")
	p.macro("B", node.FullPath())
	p.text(synopsis(node))
	p.macro("SH", "DESCRIPTION")
	p.text(node.Help)
	if node.Detail != "" {
		p.macro("PP")
		p.text(node.Detail)
	}
	if len(node.Positional) > 0 {
		p.macro("SH", "ARGUMENTS")
		for _, argument := range node.Positional {
			p.item(strings.ToUpper(argument.Name), argument.Help)
		}
	}
	if len(node.Children) > 0 {
		p.macro("SH", "COMMANDS")
		for _, leaf := range node.Leaves(true) {
			p.item(leaf.Path(), leaf.Help)
		}
	}
	p.options(node)
	p.macro("SH", "ENVIRONMENT")
	for _, flag := range flagsOf(node) {
		for _, name := range flag.Envs {
			p.item(name, "As --"+flag.Name+", which wins.")
		}
	}
	for _, variable := range commonVariables {
		p.item(variable[0], variable[1])
	}
	p.macro("SH", "EXIT STATUS")
	exits := commonExits
	if node.Type == kong.CommandNode {
		if own, ok := reflect.TypeAssert[exitStatuses](node.Target.Addr()); ok {
			exits = own.exitStatuses()
		}
	}
	for _, exit := range exits {
		p.item(exit.code, exit.means)
	}
	p.macro("SH", "SEE ALSO")
	var others []string
	for _, leaf := range node.Leaves(true) {
		others = append(others, pageName(leaf)+"(1)")
	}
	p.text(cmp.Or(strings.Join(others, ", "), "myticket(1)"))
	return p.String()
}

func synopsis(node *kong.Node) string {
	var words []string
	for _, flag := range flagsOf(node) {
		if flag.Required {
			words = append(words, flag.Summary())
		}
	}
	words = append(words, "[OPTION]...")
	if len(node.Children) > 0 {
		words = append(words, "COMMAND")
	}
	for _, argument := range node.Positional {
		word := strings.ToUpper(argument.Name)
		if argument.IsCumulative() {
			word += "..."
		}
		if !argument.Required {
			word = "[" + word + "]"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// flagsOf returns the flags of a command, as --help has them.
func flagsOf(node *kong.Node) (all []*kong.Flag) {
	for _, flags := range node.AllFlags(true) {
		all = append(all, flags...)
	}
	return all
}

// roff is a page of man(7) that grows.
type roff struct{ b strings.Builder }

func (p *roff) String() string { return p.b.String() }

func (p *roff) macro(name string, arguments ...string) {
	p.b.WriteString("." + name)
	for _, argument := range arguments {
		p.b.WriteString(` "` + strings.ReplaceAll(escapeRoff(argument), `"`, `\(dq`) + `"`)
	}
	p.b.WriteString("\n")
}

func (p *roff) text(text string) { p.b.WriteString(escapeRoff(text) + "\n") }

// item is a term with what it means.
func (p *roff) item(term, text string) {
	p.macro("TP")
	p.macro("B", term)
	p.text(text)
}

// options has the flags in their groups, those without a group first.
func (p *roff) options(node *kong.Node) {
	p.macro("SH", "OPTIONS")
	groups := []string{""}
	flags := map[string][]*kong.Flag{}
	for _, flag := range flagsOf(node) {
		group := ""
		if flag.Group != nil {
			group = flag.Group.Title
		}
		if group != "" && flags[group] == nil {
			groups = append(groups, group)
		}
		flags[group] = append(flags[group], flag)
	}
	for _, group := range groups {
		if group != "" {
			p.macro("SS", group)
		}
		for _, flag := range flags[group] {
			term := flag.String()
			if flag.Tag.Negatable != "" {
				term += ", --no-" + flag.Name
			}
			help := flag.Help
			if len(flag.Envs) > 0 {
				help += " Variable: " + strings.Join(flag.Envs, " or ") + "."
			}
			p.item(term, help)
		}
	}
}

// escapeRoff returns a text that troff shows as it is (groff_char(7)). A hyphen would otherwise become another character, which
// nobody can paste into a shell.
func escapeRoff(text string) string {
	var b strings.Builder
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		b.WriteString(`\&`)
	}
	for _, r := range text {
		switch {
		case r == '\\':
			b.WriteString(`\e`)
		case r == '-':
			b.WriteString(`\-`)
		case r == '\'':
			b.WriteString(`\(aq`)
		case r == '`':
			b.WriteString(`\(ga`)
		case r == '^':
			b.WriteString(`\(ha`)
		case r == '~':
			b.WriteString(`\(ti`)
		case r == '\n':
			b.WriteString("\n.br\n")
		case r > 0x7e:
			fmt.Fprintf(&b, `\[u%04X]`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
