// Alerts writes the rules of Prometheus into the chart, as YAML: `make chart`.
//
// The rules are those of one release: ${servers} and the other names in braces are filled in by the chart (templates/_alerts.tpl).
// charts/testdata/alerts.yaml says what each alert is silent on, and what it fires on.
package main

import (
	"bytes"
	"fmt"
	"os"

	"go.yaml.in/yaml/v3"
)

const header = `# Made from charts/alerts by ` + "`make chart`" + `: do not edit. templates/_alerts.tpl replaces each ${name} with a value of the release,
# and leaves out a rule if its "when" does not hold.
`

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: alerts FILE")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "alerts:", err)
		os.Exit(1)
	}
}

func write(file string) error {
	text := bytes.NewBufferString(header)
	encoder := yaml.NewEncoder(text)
	encoder.SetIndent(2)
	if err := encoder.Encode(map[string][]group{"groups": groups()}); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if err := os.WriteFile(file, text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// groups lists every rule. Prometheus evaluates the rules of a group in this order, and knows the groups by these names.
func groups() []group {
	return []group{
		{"${fullname}.recorded", recorded()},
		{"${fullname}.webhook", alerts(
			availabilityCritical(), availabilityWarning(), latencyCritical(), latencyWarning(),
			down(), serverDown(), connectionsRefused(), sourceSilent(),
		)},
		{"${fullname}.spool", alerts(
			databaseAway(), spoolFillingWarning(), spoolFillingCritical(), spoolAgeing(), spoolDrainStuck(), spoolFailing(),
			spoolLeftBehind(), spoolFilesAside(),
		)},
		{"${fullname}.reading", alerts(
			errorJump(), newProductsLimited(), dialectsNotUnderstood(), backlog(), maintenanceFailing(), orderLinesBehind(),
		)},
		{"${fullname}.events", alerts(
			eventsDown(), eventsBehind(), subscriptionFailing(), subscriptionPaused(), deadLetters(), eventsHeldBack(), outboxHeld(),
			archiveBehind(), archiveNotRun(), archiveFailing(),
		)},
		{"${fullname}.database", alerts(
			poolSaturated(), schemaBehind(), synchronousMissing(required), synchronousMissing(preferred), standbyMissing(),
			volumeFilling(), archivingFailed(), backupFailed(),
		)},
	}
}
