// Dashboards writes Grafana's dashboards into the chart, as JSON that can be imported: `make chart`.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: dashboards FOLDER")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "dashboards:", err)
		os.Exit(1)
	}
}

func write(folder string) error {
	for _, build := range []func() *dashboard.DashboardBuilder{tickets, service, events, postgres} {
		board, err := build().Build()
		if err != nil {
			return fmt.Errorf("build: %w", err)
		}
		text, err := json.MarshalIndent(board, "", "  ")
		if err != nil {
			return fmt.Errorf("encode %s: %w", *board.Uid, err)
		}
		if err := os.WriteFile(filepath.Join(folder, *board.Uid+".json"), append(text, '\n'), 0o644); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}
