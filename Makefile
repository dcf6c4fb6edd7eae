# `make` alone lists the targets. ARGS is passed on: make run ARGS="--http 127.0.0.1:9000"

export GOTOOLCHAIN := auto

VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS   := -s -w -X main.version=$(VERSION)
TESTFLAGS ?=

LINT_VERSION := v2.15.0
LINT         := .tools/golangci-lint-$(LINT_VERSION)

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: build ## Build and serve on http://127.0.0.1:8090
	./satchel serve $(ARGS)

# Only the server that this loop started is stopped. Folders that the program itself writes are not watched.
.PHONY: dev
dev: ## Serve; rebuild and restart when a source file changes
	@stamp=$$(mktemp); child=; \
	stop() { if [ -n "$$child" ]; then kill "$$child" 2>/dev/null; wait "$$child" 2>/dev/null; child=; fi; }; \
	changed() { find . \( -name .git -o -name .tools -o -name node_modules -o -name testdata \
		-o -name pb_data -o -name pb_hooks -o -name pb_migrations \) -prune -o -type f -newer "$$stamp" \
		\( -name '*.go' -o -name go.mod -o -name .env -o -name '*.sql' -o -name '*.html' -o -name '*.css' -o -name '*.js' \) -print; }; \
	trap 'stop; rm -f "$$stamp"; exit 0' INT TERM; \
	while :; do \
		touch "$$stamp"; \
		if $(MAKE) --no-print-directory build; then stop; ./satchel serve $(ARGS) & child=$$!; fi; \
		while [ -z "$$(changed)" ]; do sleep 1; done; \
		echo "changed: $$(changed | head -n 3 | tr '\n' ' ')"; \
	done

.PHONY: build
build: ## Build ./satchel, one static binary
	CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS)" -o satchel .

# The race detector watches all code but SQLite's machine, the cipher of password hashes and the codecs of images: they
# share no memory with ours, and watching them made the tests two to four times slower.
RACE := -race $(foreach module,golang.org/x/crypto/blowfish modernc.org/libc/... modernc.org/sqlite/lib image/...,-gcflags=$(module)=-race=false)

# The race detector needs a C compiler. Two packages at a time keep timing tests honest on small machines. With it, the
# differential test and the convergence test run a part of their cases.
.PHONY: test
test: ## Run all tests with the race detector
	CGO_ENABLED=1 go test $(RACE) -timeout 25m -p 2 $(TESTFLAGS) ./...
	$(MAKE) -j2 differential convergence

.PHONY: differential
differential: # Compare reads with PocketBase's in all cases
	go test -timeout 10m -run Differential $(TESTFLAGS) ./extensions/records

.PHONY: convergence
convergence: # Play all histories of syncing devices, and all mutations
	go test -timeout 10m $(TESTFLAGS) ./extensions/sync/view

.PHONY: lint
lint: $(LINT) ## Check style, and the rules of who may import whom
	$(LINT) run ./...

.PHONY: fmt
fmt: $(LINT) ## Format the code
	$(LINT) fmt ./...

# golangci-lint must be built with the Go version of the module that it reads.
$(LINT):
	GOTOOLCHAIN=$$(go env GOVERSION) GOBIN=$(CURDIR)/.tools \
		go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv .tools/golangci-lint $@

.PHONY: generate
generate: ## Write .env.example, docs/reference.md and the golden files anew
	go test . ./extensions/contract ./extensions/deploy -update

.PHONY: clean
clean: ## Remove what the build made; data stays
	rm -rf satchel .tools
	go clean -testcache

.PHONY: bench
bench: ## Measure against stock PocketBase and others; ARGS="-quick -rows 2,3" for a part
	go run ./bench $(ARGS)
