# Targets print what they do; `make help` lists them.
# What is not installed is installed from the distribution's packages, as root.

BIN      := bin/ds01-proxy
VERSION  := $(shell git describe --always --dirty 2>/dev/null || echo dev)
GO       ?= go
PACKAGES := docker.io docker-compose iptables iproute2 busybox-static curl gcc libc6-dev ca-certificates passwd mount e2fsprogs util-linux systemd

.DEFAULT_GOAL := help
.PHONY: help build run demo test unit integration lint bench fuzz deps clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: $(BIN) ## build bin/ds01-proxy

$(BIN): FORCE
	@mkdir -p bin
	CGO_ENABLED=1 $(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o $@ ./cmd/ds01-proxy

FORCE:

deps: ## install what a run needs and the machine lacks (root)
	@set -e; missing=; \
	for t in dockerd docker docker-compose iptables ip busybox curl gcc useradd losetup mkfs.ext4 unshare nsenter; do command -v $$t >/dev/null || missing="$$missing $$t"; done; \
	[ -x /lib/systemd/systemd ] || missing="$$missing systemd"; \
	[ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$$missing ca-certificates"; \
	if [ -n "$$missing" ]; then \
	  echo "installing what is missing:$$missing"; \
	  [ "$$(id -u)" = 0 ] || { echo "this needs root: sudo make deps" >&2; exit 1; }; \
	  apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES) >/dev/null; \
	fi

run: deps build ## serve every login user of this machine; starts a private Engine if none answers (root)
	@$(GO) build -o bin/run ./integration/run && exec bin/run -binary $(BIN)

demo: deps build ## two users, one Engine, in under a minute (root)
	@$(GO) build -o bin/demo ./integration/demo && exec bin/demo -binary $(BIN)

test: deps unit integration ## everything, with an Engine of its own (root)

unit: ## tests that need no Engine (root)
	$(GO) test -race ./cgroupstat/... ./cmd/... ./policy/... ./proxy/... ./units/...

integration: deps ## real clients before a real Engine (root)
	# The tests build the daemon themselves, which Go's test cache does not see.
	$(GO) test -count=1 -timeout 75m ./integration/...

lint: ## gofmt, vet and staticcheck
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

bench: deps build ## speed as ratios to the raw socket, in one interleaved run (root)
	@$(GO) build -o bin/bench ./integration/bench && bin/bench -binary $(BIN)
	@echo; echo "one reading of a slice, and one decision about memory:"
	@$(GO) test -run '^$$' -bench 'Read|Reserve' -benchtime 2000x ./cgroupstat ./proxy/quota | grep ^Benchmark

fuzz: ## half a minute on each fuzz target
	@set -e; for p in ./proxy ./proxy/limits; do \
	  for t in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
	    echo "== $$t"; $(GO) test -run '^$$' -fuzz "^$$t\$$" -fuzztime 30s $$p; done; done

clean: ## remove what was built
	rm -rf bin
