package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRolesCommand(t *testing.T) {
	t.Parallel()
	p := startHub(t, dataDir(t))
	dir := filepath.Join(t.TempDir(), "shop-api")
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	run := func(args ...string) (string, error) {
		out, err := hubCommand(t, nil, append([]string{"roles", "sync", "--url", p.url, "--data-dir", p.dir}, args...)...).CombinedOutput()
		return string(out), err
	}
	write(".opencode/agents/build.md", "---\ndescription: Builds\n---\nYou build.")
	write(".opencode/agents/review/security.md", "You review.")
	write("README.md", "no role")
	out, err := run(dir)
	if err != nil || out != "created  build\ncreated  review/security\nshop-api: 2 created, 0 updated, 0 removed, 0 unchanged\n" {
		t.Errorf("%v:\n%s", err, out)
	}
	if err := os.Remove(filepath.Join(dir, ".opencode/agents/build.md")); err != nil {
		t.Fatal(err)
	}
	if out, err = run(dir); err != nil || out != "removed  build\nshop-api: 0 created, 0 updated, 1 removed, 1 unchanged\n" {
		t.Errorf("%v:\n%s", err, out)
	}
	broken := write(".opencode/agents/a/broken.md", "---\na: [\n---\n")
	if out, err = run("--set", "shop-api", dir); err == nil || !strings.Contains(out, "role_file_invalid") || !strings.Contains(out, broken+":") {
		t.Errorf("%v:\n%s", err, out)
	}
	if out, err = run("--set", "other", filepath.Join(dir, ".opencode", "agents", "review")); err != nil || !strings.HasPrefix(out, "created  security\n") {
		t.Errorf("%v:\n%s", err, out)
	}
	if out, err = run(t.TempDir()); err == nil || !strings.Contains(out, "no role files") {
		t.Errorf("%v:\n%s", err, out)
	}
	if out, err = run(broken); err == nil || !strings.Contains(out, "no directory") {
		t.Errorf("%v:\n%s", err, out)
	}
}
