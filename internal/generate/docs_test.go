package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// W15: one page per decision, each with one status, each in the index; so none is both open and settled.
func TestW15_EveryDecisionHasOneStatus(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob(filepath.Join(root, "docs/decisions/[0-9]*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("no decisions: %v", err)
	}
	index, err := os.ReadFile(filepath.Join(root, "docs/decisions/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	status := regexp.MustCompile(`(?m)^Status: (.*)$`)
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		found := status.FindAllStringSubmatch(string(text), -1)
		if len(found) != 1 || !regexp.MustCompile(`^(accepted|proposed|superseded by \d{4})$`).MatchString(found[0][1]) {
			t.Errorf("%s: statuses %q, want one of accepted, proposed, superseded by NNNN", page, found)
		}
		if !strings.Contains(string(index), "("+filepath.Base(page)+")") {
			t.Errorf("%s is not in the index", page)
		}
	}
}

func TestLinksInDocumentsLeadSomewhere(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	var pages []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	links := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			links++
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			}
		}
	}
	if links < 10 {
		t.Errorf("only %d links found: the pattern is wrong", links)
	}
}

// A fragment of the contract that repeats another's, or says nothing of its scopes, is refused when it is merged.
func TestMergeRefusesAmbiguousFragments(t *testing.T) {
	t.Parallel()
	const frame = "openapi: 3.0.3\ninfo: {title: t, version: '1'}\npaths: {}\n"
	const good = "paths:\n  /a:\n    get: {operationId: getA, security: [], responses: {'200': {description: ok}}}\n"
	for name, c := range map[string]struct{ second, want string }{
		"passing twin":     {"paths:\n  /b:\n    get: {operationId: getB, x-scopes: ['b:read'], responses: {'200': {description: ok}}}\n", ""},
		"same path":        {"paths:\n  /a:\n    post: {operationId: postA, security: [], responses: {'200': {description: ok}}}\n", "/a stands in two files"},
		"no scopes":        {"paths:\n  /b:\n    get: {operationId: getB, responses: {'200': {description: ok}}}\n", "either x-scopes or security"},
		"foreign section":  {"servers: []\n", `not "servers"`},
		"dangling":         {"paths:\n  /b:\n    get: {operationId: getB, security: [], responses: {'200': {$ref: '#/components/responses/None'}}}\n", "None"},
		"broken":           {"paths: [", "second.yaml"},
		"duplicate schema": {"components: {schemas: {S: {type: string}, S: {type: string}}}\n", "already defined"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for file, text := range map[string]string{"openapi.yaml": frame, "first.yaml": good, "second.yaml": c.second} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := mergeContract(dir, filepath.Join(dir, "out.json"))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
