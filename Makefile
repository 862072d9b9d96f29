# Needs Go and, for what touches the database, Postgres's server binaries (as root on Debian they are installed on first
# use). Tools are built from source at the versions that .ci/tools/go.mod pins, once.

# All recipes are short enough to be read by `make -n`.
.DEFAULT_GOAL := help
SHELL := /bin/bash

GO ?= go
# Go takes the toolchain that go.mod pins, even if the machine's setting (go env) says to take the installed one.
export GOTOOLCHAIN ?= auto
TOOL := $(GO) tool -modfile=.ci/tools/go.mod
GOLANGCI_LINT := $(TOOL) golangci-lint

# The version that `myticket version` prints; a build without Git is "dev".
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# The image of `make image`, and what the deployment targets run.
IMAGE ?= myticket:$(VERSION)
KIND_CLUSTER ?= myticket
KIND_CONFIG ?= k8s/kind.yaml
CHART_TOOL := $(GO) -C .ci/charts

# How long `make fuzz` works on each target.
FUZZTIME ?= 1m

# The race detector needs cgo and a C compiler with its headers. Tests also run without it. Only `make test` uses this.
RACE = $(shell [ "$$($(GO) env CGO_ENABLED)" = 1 ] && \
	printf '\043include <pthread.h>\nint main(void) { return 0; }' | \
	$$($(GO) env CC) -x c -o /dev/null - >/dev/null 2>&1 && echo -race)

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/myticket, a static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/myticket ./cmd/myticket

.PHONY: run
run: build ## build, then serve with a throwaway Postgres, on this machine only; ARGS are flags of bin/myticket-dev and serve
	$(GO) build -o bin/myticket-dev ./cmd/myticket-dev
	bin/myticket-dev $(ARGS)

# One Postgres serves the tests of all packages. withpg is built and not started with `go run`, which would print the last line.
# What .ci/test-json says beside the results goes to file 3, because gotestsum takes what is on file 2 for errors.
GO_TEST_FLAGS = $(RACE) -shuffle=on -timeout=20m $(ARGS)
GOTESTSUM := $(TOOL) gotestsum --format pkgname-and-test-fails --format-hide-empty-pkg
.PHONY: test
test: bin/e2e/versitygw ## run all tests against a throwaway Postgres; ARGS='-run TestX' narrows them. The first time it builds two Helms meanwhile
	@$(GO) build -o bin/withpg ./internal/devdb/withpg
	@MAKE='$(MAKE_COMMAND)' GO='$(GO)' bin/withpg -- $(GOTESTSUM) --raw-command -- .ci/test-json $(GO_TEST_FLAGS) 3>&2

.PHONY: test-go
test-go: bin/e2e/versitygw ## run all tests but those of the chart, which need Helm and its generators
	@$(GO) build -o bin/withpg ./internal/devdb/withpg
	@bin/withpg -- $(GOTESTSUM) -- $(GO_TEST_FLAGS) $$($(GO) list ./... | grep -v '/charts$$')

# Apart from `make test`, because it is a module of its own, and needs a C compiler.
.PHONY: test-duckdb
test-duckdb: ## read files of the archive with DuckDB
	CGO_ENABLED=1 $(GO) -C internal/archive/duckdbtest test ./...

# With MYTICKET_BENCH_TICKETS=5000000 and ARGS='-bench=Archive/lines=2$$ -benchtime=1x' it takes seven minutes, 2 GB of memory for Postgres, and
# shows the most memory that a large partition takes.
.PHONY: bench-archive
bench-archive: ## measure how fast tickets are archived and verified, per core, and the codecs; ARGS are flags of go test
	$(GO) test -run '^$$' -bench . -benchtime 4x -timeout 30m ./internal/archive/archiver ./internal/archive/parquetfile $(ARGS)

# Apart from `make test`, because it needs Prometheus, which many machines do not have.
.PHONY: observe
observe: bin/helm ## let a Prometheus evaluate every expression of dashboards and alerts, on a server under load
	@command -v prometheus >/dev/null && command -v promtool >/dev/null || { echo "Prometheus and promtool are missing: apt-get install prometheus, or\
 https://prometheus.io/download/" >&2; exit 1; }
	@$(GO) build -o bin/withpg ./internal/devdb/withpg
	@bin/withpg -- $(TOOL) gotestsum --format standard-verbose -- -tags observe -count=1 -timeout=10m \
		-run '^TestAlerts_FireAndStaySilent$$|^TestExpressions_AllHaveAnAnswer$$' $(ARGS) ./charts

.PHONY: pictures
pictures: bin/helm ## draw the dashboards of a server under load into docs/images, by their own definitions; takes four minutes
	@mkdir -p docs/images
	@$(GO) build -o bin/withpg ./internal/devdb/withpg
	@bin/withpg -- $(GO) test -tags observe -count=1 -timeout=10m -run '^TestPictures$$' ./charts -pictures ../docs/images

# The linter has a cache of its own. The common one reports what it found in another clone, and ignores `nolint` if that is gone.
.PHONY: lint
lint: ## check format, go vet, golangci-lint (.golangci.yaml), the forge's workflows and the go.mod files
	@unformatted=$$(gofmt -l $$($(GO) list -f '{{.Dir}}' ./...)); if [ -n "$$unformatted" ]; then \
		printf 'Not formatted (run make fmt):\n%s\n' "$$unformatted"; exit 1; fi
	$(GO) vet -tags e2e,observe ./...
	GOLANGCI_LINT_CACHE=$(CURDIR)/bin/lint-cache $(GOLANGCI_LINT) run --allow-parallel-runners ./...
	$(TOOL) actionlint .github/workflows/*.yaml
	$(GO) mod tidy -diff
	$(GO) -C .ci/tools mod tidy -diff
	$(GO) -C .ci/charts mod tidy -diff
	$(GO) -C .ci/e2e mod tidy -diff
	$(GO) -C internal/archive/duckdbtest mod tidy -diff

.PHONY: fmt
fmt: ## format the code and sort its imports
	$(GOLANGCI_LINT) fmt ./...

# Go fuzzes one target at a time.
.PHONY: fuzz
fuzz: ## look for inputs that break the fuzz targets, FUZZTIME=1m each; FUZZ=FuzzParse narrows them
	@set -e; for package in $$(grep -rl --include='*_test.go' '^func Fuzz' cmd internal | xargs -n1 dirname | sort -u); do \
		for target in $$($(GO) test -list '^Fuzz' ./$$package | grep '^$(or $(FUZZ),Fuzz)'); do \
			echo "$$target ($$package)"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s ./$$package; \
		done; done

.PHONY: vuln
vuln: ## look up known vulnerabilities of our code and its modules; ARGS are flags of govulncheck
	$(TOOL) govulncheck $(ARGS) ./...

.PHONY: bench
bench: build ## measure throughput beside the most that this machine can do; ARGS are its flags (-peers, -sustain 10m, -only ROW)
	$(GO) run ./cmd/myticket-bench $(ARGS)

.PHONY: chaos
chaos: ## inject faults, count lost tickets (takes minutes; ARGS='-steady 10m', -only NAME, -short)
	$(GO) run ./cmd/myticket-chaos $(ARGS)
	$(GO) run ./cmd/myticket-chaos -short -self-check

# The version before: the last one that knows no dialects. It is built from the sources in Git.
BEFORE ?= $(shell git log --diff-filter=A --format=%H -- migrations/0007_mending.up.sql | tail -n 1)^
.PHONY: chaos-upgrade
chaos-upgrade: ## upgrade from the version BEFORE=REF under load, back and forward again, count lost tickets
	rm -rf bin/before && mkdir -p bin/before
	git archive $(BEFORE) | tar -x -C bin/before
	CGO_ENABLED=0 $(GO) -C bin/before build -trimpath -buildvcs=false -ldflags '-X main.version=before' -o myticket-before ./cmd/myticket
	$(GO) run ./cmd/myticket-chaos -only upgrade -before bin/before/myticket-before $(ARGS)

# Built once and kept in bin/, where the tests of the chart find them.
.PHONY: chart-tools
chart-tools: bin/helm bin/helm3 bin/crane bin/cyclonedx-gomod bin/helm-docs bin/helm-values-schema-json
bin/helm: .ci/charts/go.mod
	@echo "Building $@ (Helm 4), which renders, packages and installs the chart"
	@CGO_ENABLED=0 $(CHART_TOOL) build -o ../../bin/helm helm.sh/helm/v4/cmd/helm
bin/helm3: .ci/charts/go.mod
	@echo "Building $@ (Helm 3), because the chart must do with it, too"
	@CGO_ENABLED=0 $(CHART_TOOL) build -o ../../bin/helm3 helm.sh/helm/v3/cmd/helm
bin/crane: .ci/charts/go.mod
	@echo "Building $@, which publishes images, and is the registry of the release's tests"
	@CGO_ENABLED=0 $(CHART_TOOL) build -o ../../bin/crane github.com/google/go-containerregistry/cmd/crane
# -trimpath, because an SBOM has the checksum of the tool that made it, and is to be the same on every machine.
bin/cyclonedx-gomod: .ci/charts/go.mod
	@echo "Building $@, which lists what is in a release's binaries"
	@CGO_ENABLED=0 $(CHART_TOOL) build -trimpath -buildvcs=false -o ../../bin/cyclonedx-gomod github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod
bin/helm-docs bin/helm-values-schema-json &: .ci/charts/go.mod
	@echo "Building bin/helm-docs and bin/helm-values-schema-json, which make the chart's README and schema"
	@$(CHART_TOOL) build -o ../../bin/ github.com/norwoodj/helm-docs/cmd/helm-docs github.com/losisin/helm-values-schema-json

.PHONY: chart
chart: bin/helm-docs bin/helm-values-schema-json ## generate the chart's README, schema, dashboards, alerts and list of settings
	cd charts/myticket && ../../bin/helm-values-schema-json -input values.yaml -draft 7 -indent 2 -noAdditionalProperties=true
	bin/helm-docs --chart-search-root charts --sort-values-order file --log-level warning
	$(GO) test ./cmd/myticket -run Chart -update
	$(GO) run ./charts/dashboards charts/myticket/dashboards
	$(GO) run ./charts/alerts charts/myticket/alerts.yaml

.PHONY: docs
docs: ## generate docs/settings.md and docs/metrics.md
	@$(GO) build -o bin/withpg ./internal/devdb/withpg
	bin/withpg -- $(GO) test ./cmd/myticket -run 'SettingsPage|MetricsPage' -update

.PHONY: man
man: build ## write the manual pages to bin/man/man1, one for each command
	bin/myticket man bin/man/man1

.PHONY: image
image: ## build the container image IMAGE=myticket:VERSION, from nothing but the binary
	CGO_ENABLED=0 GOOS=linux $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/image/myticket ./cmd/myticket
	docker build --quiet --build-arg VERSION=$(VERSION) --tag $(IMAGE) .

.PHONY: release
release: bin/helm bin/crane bin/cyclonedx-gomod ## publish VERSION=1.2.3 to REGISTRY=…: images for amd64 and arm64, and the chart, signed with KEY=… of KEYRING=… (.ci/release)
	VERSION='$(VERSION)' REGISTRY='$(REGISTRY)' KEY='$(KEY)' KEYRING='$(KEYRING)' HELM_FLAGS='$(HELM_FLAGS)' \
	RELEASE_HOME='$(RELEASE_HOME)' RELEASE_MAINTAINER='$(RELEASE_MAINTAINER)' .ci/release

.PHONY: binaries
binaries: bin/cyclonedx-gomod ## build VERSION=1.2.3 for amd64 and arm64 into bin/release, with SBOMs and checksums, signed with KEY=… of KEYRING=… (or none)
	VERSION='$(VERSION)' KEY='$(or $(KEY),none)' KEYRING='$(KEYRING)' .ci/binaries

.PHONY: cluster
cluster: ## make the kind cluster that is developed on: operator, ingress, monitoring (k8s/README.md)
	$(GO) tool kind get clusters | grep -qx $(KIND_CLUSTER) || $(GO) tool kind create cluster --name $(KIND_CLUSTER) --config $(KIND_CONFIG) --wait 3m
	kubectl --context kind-$(KIND_CLUSTER) apply --server-side -k k8s/operator
	kubectl --context kind-$(KIND_CLUSTER) apply --server-side -k k8s/ingress
	kubectl --context kind-$(KIND_CLUSTER) apply --server-side -k k8s/monitoring
	kubectl --context kind-$(KIND_CLUSTER) -n cnpg-system rollout status deployment/cnpg-controller-manager --timeout=5m
	kubectl --context kind-$(KIND_CLUSTER) -n traefik rollout status deployment/traefik --timeout=5m
	@echo "Now: make deploy, or tilt up. The ingress controller is http://127.0.0.1:8080"

.PHONY: cluster-down
cluster-down: ## delete the kind cluster, with everything in it
	$(GO) tool kind delete cluster --name $(KIND_CLUSTER)

# By default only on kind: the image is loaded into the node, and the values are small.
CONTEXT ?= $(shell kubectl config current-context 2>/dev/null)
NAMESPACE ?= myticket
.PHONY: deploy
deploy: bin/helm ## install or upgrade the chart with IMAGE on the current context, if that is a kind cluster
	@case "$(CONTEXT)" in kind-*) ;; *) echo "The context \"$(CONTEXT)\" is not a kind cluster. Choose one (kubectl config use-context),\
	 or install the chart by hand: docs/operations.md." >&2; exit 1 ;; esac
	$(MAKE) --no-print-directory image
	$(GO) tool kind load docker-image --name $(patsubst kind-%,%,$(CONTEXT)) $(IMAGE)
	bin/helm upgrade --install myticket charts/myticket --kube-context $(CONTEXT) --namespace $(NAMESPACE) --create-namespace \
		--values charts/myticket/values-small.yaml --set ingress.className=traefik,networkPolicy.ingressNamespace=traefik --wait --timeout 10m \
		--set image.repository=$(firstword $(subst :, ,$(IMAGE))),image.tag=$(lastword $(subst :, ,$(IMAGE)))

# CI runs this instead of `tilt up`. TILT_FLAGS='--base-image=…' is for machines that cannot pull images.
.PHONY: tilt-ci
tilt-ci: ## bring everything up with Tilt once, on the context kind-myticket, and take it down again
	tilt ci --context kind-$(KIND_CLUSTER) -- $(TILT_FLAGS)
	tilt down --delete-namespaces --context kind-$(KIND_CLUSTER) -- $(TILT_FLAGS)

# What events and archives are sent to. They are the only things in their images, so they are static.
bin/e2e/nats-server bin/e2e/versitygw &: .ci/e2e/go.mod
	@echo "Building bin/e2e/nats-server and bin/e2e/versitygw, which tests send events and archives to, once"
	@mkdir -p bin/e2e
	@CGO_ENABLED=0 $(GO) -C .ci/e2e build -trimpath -ldflags '-s -w' -o ../../bin/e2e/ github.com/nats-io/nats-server/v2 github.com/versity/versitygw/cmd/versitygw

# Two tests at a time: they mostly wait, and two cores serve the whole cluster. Their output is shown because it has measurements.
.PHONY: e2e
e2e: bin/helm bin/helm3 bin/e2e/nats-server bin/e2e/versitygw ## end-to-end tests: install, upgrade and break it on kind-myticket, which has three nodes; ARGS='-run TestX'
	@$(TOOL) gotestsum --format standard-verbose -- -tags e2e -count=1 -parallel=2 -timeout=60m ./internal/e2e $(ARGS)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
