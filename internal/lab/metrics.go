package lab

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Metrics reads metrics without labels from a server's /metrics (host:port). A metric that the server does not have is not in the
// result.
func Metrics(ctx context.Context, addr string, names ...string) (map[string]float64, error) {
	response, err := Get(ctx, "http://"+addr+"/metrics")
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	found := make(map[string]float64, len(names))
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if slices.Contains(names, name) {
			if found[name], err = strconv.ParseFloat(value, 64); err != nil {
				return nil, fmt.Errorf("read the metric %s: %w", name, err)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the server's metrics: %w", err)
	}
	return found, nil
}
