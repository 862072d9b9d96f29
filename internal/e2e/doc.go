// Package e2e installs the chart on a real cluster, puts load on it, breaks it, and checks the database for every ticket that was
// acknowledged. `make e2e` runs it on the context kind-myticket, with the build tag e2e.
package e2e
