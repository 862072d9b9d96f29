// Package charts tests the Helm chart by what the real Helm makes of it, version 3 and 4.
package charts
