package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTasksCommand(t *testing.T) {
	hub := startHub(t, dataDir(t))
	defer hub.stop(t)
	dir := t.TempDir()
	run := func(ok bool, args ...string) string {
		t.Helper()
		out, err := hubCommand(t, []string{"HUB_URL=" + hub.url, "HUB_API_KEY=" + hub.key}, append([]string{"tasks"}, args...)...).CombinedOutput()
		if (err == nil) != ok {
			t.Fatalf("hub tasks %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	const a, b = "---\nid: g/a   # kept\nname: A\nrisk: low\n---\nBody\r\n", "---\nid: b\nname: B\ndepends_on: [g/a]\n---\n"
	write("x/a.md", a)
	write("b.md", b)
	write("README.md", "# Tasks\n")
	if err := os.Symlink(filepath.Join(dir, "b.md"), filepath.Join(dir, "link.md")); err != nil {
		t.Fatal(err)
	}

	if out := run(false, "sync", dir, "--project", "p", "--dry-run"); !strings.Contains(out, "there is no project p") {
		t.Error(out)
	}
	if out := run(true, "sync", dir, "--project", "p"); !strings.Contains(out, "2 created, 0 updated, 0 unchanged, 0 removed, 0 conflicts\n") || !strings.Contains(out, "skipped    README.md: no frontmatter") {
		t.Error(out)
	}
	if out := run(true, "sync", dir, "--project", "p", "--dry-run", "--prune"); !strings.Contains(out, "0 created, 0 updated, 2 unchanged, 0 removed, 0 conflicts (dry run: nothing was written)") {
		t.Error(out)
	}
	if out := run(true, "pull", dir, "--project", "p"); !strings.Contains(out, "0 written, 2 unchanged, 0 left alone") {
		t.Error(out)
	}
	var list struct{ Items []struct{ ID string } }
	get := func(path string) string {
		t.Helper()
		if err := json.Unmarshal(hub.must(t, 200, "GET", path, ""), &list); err != nil || len(list.Items) != 1 {
			t.Fatal(err, list)
		}
		return list.Items[0].ID
	}
	get("/v1/projects/" + get("/v1/projects?slug=p") + "/tasks?slug=g/a")
	// Changed in the hub: pulled, and nothing else of the file is touched.
	patch := func(body string) {
		t.Helper()
		if status, answer := hub.send("PATCH", "/v1/tasks/"+list.Items[0].ID, strings.NewReader(body)); status != 200 {
			t.Fatalf("%d %s", status, answer)
		}
	}
	patch(`{"risk":"high"}`)
	if out := run(true, "pull", dir, "--project", "p"); !strings.Contains(out, "written    x/a.md") || read("x/a.md") != strings.Replace(a, "risk: low", "risk: high", 1) || read("b.md") != b {
		t.Errorf("%s%q", out, read("x/a.md"))
	}
	run(true, "sync", dir, "--project", "p")
	// Changed on both sides.
	patch(`{"risk":"critical"}`)
	write("x/a.md", strings.Replace(a, "risk: low", "risk: trivial", 1))
	if out := run(false, "sync", dir, "--project", "p"); !strings.Contains(out, "conflict   g/a: risk") {
		t.Error(out)
	}
	if out := run(false, "pull", dir, "--project", "p"); !strings.Contains(out, "left       x/a.md: changed since the last sync") || !strings.Contains(read("x/a.md"), "trivial") {
		t.Error(out)
	}
	run(true, "pull", dir, "--project", "p", "--force")
	if !strings.Contains(read("x/a.md"), "risk: critical") {
		t.Error(read("x/a.md"))
	}
	// Errors.
	write("c.md", "---\nid: c\nname: C\nstatus: done\n---\n")
	if out := run(false, "sync", dir, "--project", "p"); !strings.Contains(out, `error      c.md:4: status "done" is none of`) || !strings.Contains(out, "nothing was applied: 1 errors") {
		t.Error(out)
	}
	if err := os.Remove(filepath.Join(dir, "b.md")); err != nil {
		t.Fatal(err)
	}
	if out := run(false, "sync", dir, "--project", "p", "--prune", "--keep-going"); !strings.Contains(out, "removed    b") {
		t.Error(out)
	}
	if out := run(false, "sync", filepath.Join(dir, "nowhere")); !strings.Contains(out, "no such file") {
		t.Error(out)
	}
}
