package taskfiles_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alkdev/hub/internal/taskfiles"
)

const full = "---\n# kept\nid: shop/discount   # its id\nname: 'Fix: the discount'\nstatus: blocked\ndepends_on:\n  - shop/prices\n  - \"a b\"\n\n# how large\nscope: narrow\nrisk: ~\nimpact: phase\nlevel: review\n" +
	"priority: high\ntags: [x, y]\nassignee: ada\ndue: 2026-02-03\ncreated: 2026-01-02T03:04:05.123456789Z\nmodified: 2026-01-02T04:04:05+01:00\nunknown: {a: 1}\n---\n\nBody\n---\nmore"

func TestParse(t *testing.T) {
	t.Parallel()
	task, err := taskfiles.Parse(full)
	if err != nil {
		t.Fatal(err)
	}
	fields := task.Fields("p.md")
	for key, want := range map[string]string{
		"name": "Fix: the discount", "path": "p.md", "scope": "narrow", "risk": "", "impact": "phase", "level": "review", "priority": "high", "tags": `["x","y"]`, "dependsOn": `["a b","shop/prices"]`,
		"assignee": "ada", "due": "2026-02-03", "created": "2026-01-02T03:04:05.123456Z", "modified": "2026-01-02T03:04:05Z",
	} {
		if fields[key] != want {
			t.Errorf("%s: %q, want %q", key, fields[key], want)
		}
	}
	if task.Slug != "shop/discount" || task.Status != "blocked" || task.Body != "\nBody\n---\nmore" || task.DependsOnLine != 6 {
		t.Errorf("%+v", task)
	}
	for text, same := range map[string]string{
		"dependsOn: [a, b, a]": `["a","b"]`, "depends_on: [b]\ndependsOn: [a]": `["a","b"]`, "depends_on:": "", "depends_on: []": "", "dependsOn: null": "", "depends_on: [1]": `["1"]`,
	} {
		task, err := taskfiles.Parse("---\nid: x\nname: x\n" + text + "\n---\n")
		if err != nil || task.Fields("")["dependsOn"] != same {
			t.Errorf("%s: %v %v", text, task.DependsOn, err)
		}
	}
	if task, err := taskfiles.Parse("---\nid: x\nname: x\npriority: P1\n---\n"); err != nil || task.Priority != "" || len(task.Warnings) != 1 || task.Warnings[0].Line != 4 {
		t.Errorf("%+v %v", task, err)
	}
}

func TestParse_Refusals(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "no frontmatter: not a task", "# Title\n": "no frontmatter: not a task", "---": "no frontmatter: not a task", "text\n---\nid: a\n---\n": "no frontmatter: not a task",
		"---\nid: a\n":                                "line 1: the frontmatter is not closed by a line of ---",
		"---\n---\n":                                  "line 2: the frontmatter is not a list of keys and values",
		"---\n- a\n---\n":                             "line 2: the frontmatter is not a list of keys and values",
		"---\nid: a\n---\n":                           "line 1: name is missing",
		"---\nname: a\n---\n":                         "line 1: id is missing",
		"---\nid: ''\nname:\n---\n":                   "line 2: id is empty; line 3: name is empty",
		"---\nid: a\nname: b\nstatus: done\n---\n":    `line 4: status "done" is none of pending, in-progress, completed, failed, blocked`,
		"---\nid: a\nname: b\nrisk: huge\n---\n":      `line 4: risk "huge" is none of trivial, low, medium, high, critical`,
		"---\nid: a\nname: b\nid: c\n---\n":           "line 4: id stands in line 2 already",
		"---\nid: a\nname: b\ndepends_on: c\n---\n":   "line 4: depends_on must be a list",
		"---\nid: a\nname: b\ntags: [{a: 1}]\n---\n":  "line 4: tags must be a text",
		"---\nid: a\nname: b\ncreated: monday\n---\n": `line 4: created "monday" is no time such as 2026-01-31T12:00:00Z`,
		"---\nid: a\nname: [\n---\n":                  "line 3: the frontmatter is not YAML: did not find expected node content",
		"---\nid: a\nname: \xff\n---\n":               "line 3: is not UTF-8",
		"---\nid: a\nname: b\n---\n\nx\x00\n":         "line 6: holds a NUL character",
	} {
		if _, err := taskfiles.Parse(text); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	if _, err := taskfiles.Parse("x"); !errors.Is(err, taskfiles.ErrNoTask) {
		t.Error(err)
	}
}

func TestWrite(t *testing.T) {
	t.Parallel()
	for _, text := range []string{full, strings.ReplaceAll(full, "\n", "\r\n"), "\ufeff" + full, strings.TrimSuffix(full, "\n\nBody\n---\nmore")} {
		task, err := taskfiles.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := task.Write(); got != text {
			t.Errorf("unchanged, but written as\n%q, was\n%q", got, text)
		}
		task.Risk, task.Scope, task.Due, task.Tags, task.DependsOn, task.Name, task.Body = "low", "", "", nil, []string{"other"}, "Line: 1", "x"
		written := task.Write()
		again, err := taskfiles.Parse(written)
		if err != nil {
			t.Fatalf("%v\n%s", err, written)
		}
		got, want := again.Fields(""), task.Fields("")
		for key := range want {
			if got[key] != want[key] {
				t.Errorf("%s: %q, want %q in\n%s", key, got[key], want[key], written)
			}
		}
		for _, kept := range []string{"# kept", "# how large", "# its id", "unknown: {a: 1}", "assignee: ada", "created: 2026-01-02T03:04:05.123456789Z"} {
			if !strings.Contains(written, kept) {
				t.Errorf("%q is lost:\n%s", kept, written)
			}
		}
	}
	fresh := taskfiles.Task{Slug: "a/b", Name: "x: y", Status: "pending", Tags: []string{"t"}, DependsOn: []string{"c"}, Risk: "low", Body: "B\n"}
	if got := fresh.Write(); got != "---\nid: a/b\nname: 'x: y'\nstatus: pending\ndepends_on:\n  - c\nrisk: low\ntags:\n  - t\n---\nB\n" {
		t.Error(got)
	}
}

// Real files, where they are.
func TestRealFiles(t *testing.T) {
	t.Parallel()
	const root = "/work/shared/data/taskgraph"
	if _, err := os.Stat(root); err != nil {
		t.Skip("no files of others here")
	}
	tasks, refused := 0, 0
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".md" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		task, err := taskfiles.Parse(string(text))
		switch {
		case errors.Is(err, taskfiles.ErrNoTask):
		case err != nil:
			refused++
			if !strings.Contains(err.Error(), `status "done"`) {
				t.Errorf("%s: %v", path, err)
			}
		default:
			tasks++
			if task.Write() != string(text) {
				t.Errorf("%s is not written as it was", path)
			}
		}
		return nil
	})
	if err != nil || tasks < 50 || refused != 1 {
		t.Errorf("%d tasks, %d refused: %v", tasks, refused, err)
	}
}
