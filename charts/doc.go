// Package charts tests the Helm chart: it renders the chart with the real Helm, versions 3 and 4.
package charts
