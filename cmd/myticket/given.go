package main

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"

	"github.com/alecthomas/kong"
)

// checkGiven returns an error for flags that would be ignored without a word. Of a flag that is given twice kong takes the last
// value, unless the flag takes a list. A filter without a value, as a script gives it whose variable is empty, would select
// everything.
func checkGiven(command *kong.Context) error {
	given := map[*kong.Flag]bool{}
	for _, path := range command.Path {
		flag := path.Flag
		if flag == nil {
			continue
		}
		name := "--" + flag.Name
		switch {
		case given[flag] && !flag.IsCumulative():
			return fmt.Errorf("%s is given more than once, and takes one value", name)
		case flag.Group != nil && flag.Group.Key == "Filter" && isEmpty(flag.Target):
			return fmt.Errorf("%s has no value: leave it out to select all", name)
		}
		given[flag] = true
	}
	return nil
}

// isEmpty reports whether a flag that takes a value has none.
func isEmpty(value reflect.Value) bool {
	switch value.Kind() {
	case reflect.Bool:
		return false
	case reflect.Slice:
		return value.Len() == 0
	default:
		return value.IsZero()
	}
}

// problem is the code of a problem. A code that this version does not know may be one of another version.
type problem string

var problemPattern = regexp.MustCompile(`^[a-z0-9_]{1,64}$`)

// UnmarshalText checks the code.
func (p *problem) UnmarshalText(text []byte) error {
	if !problemPattern.Match(text) {
		return errors.New("write the code of a problem, such as fields_count (docs/server.md)")
	}
	*p = problem(text)
	return nil
}

// texts returns the values of a flag that takes a list.
func texts[T ~string](values []T) (all []string) {
	for _, value := range values {
		all = append(all, string(value))
	}
	return all
}

// commas returns the values of a flag that takes a list, as a command line has them. No value has a comma.
func commas[T ~string](values []T) string { return strings.Join(texts(values), ",") }
