# `make help` shows the targets.
.DEFAULT_GOAL := help
SHELL := /bin/sh

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo development)
TOOL    := go tool -modfile=internal/tools/go.mod
ARGS    ?=

.PHONY: help run build test bench generate check-generated lint postgres clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: build ## Build and run the hub (ARGS="--listen 127.0.0.1:9000" for flags)
	@if [ -z "$$DATABASE_URL$$HUB_DATABASE_URL" ]; then sh internal/postgres/install.sh; fi
	@exec bin/hub serve $(ARGS)

build: ## Build bin/hub
	go build -ldflags "-X main.version=$(VERSION)" -o bin/hub ./cmd/hub

test: postgres ## Run all tests, against a real PostgreSQL that they start themselves
	go test -timeout 14m ./...

bench: postgres ## Run the benchmarks
	go test -run '^$$' -bench . -benchmem ./...

generate: postgres ## Regenerate everything under gen/, sql/schema.sql and docs/reference/
	$(TOOL) sqlc generate
	go run ./internal/generate contract
	$(TOOL) oapi-codegen -config internal/tools/oapi-server.yaml gen/api/openapi.json
	$(TOOL) oapi-codegen -config internal/tools/oapi-client.yaml gen/api/openapi.json
	go run ./internal/generate schema
	go run ./internal/generate/errors

check-generated: generate ## Fail if the generated files are not what the sources make
	@git diff --exit-code -- gen sql/schema.sql docs/reference || { echo 'Generated files are stale: run "make generate" and commit.' >&2; exit 1; }
	@test -z "$$(git status --porcelain -- gen sql/schema.sql docs/reference)" || { git status --short -- gen sql/schema.sql docs/reference; echo 'Generated files are not committed.' >&2; exit 1; }

lint: ## Run golangci-lint (.golangci.yml)
	go tool -modfile=internal/tools/lint/go.mod golangci-lint run

postgres: ## Find PostgreSQL, or install it (no system-wide server is started)
	@sh internal/postgres/install.sh

clean: ## Remove what was built; data stays
	rm -rf bin
