package api_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

type syncReport struct {
	Applied                              bool
	Created, Unchanged, Removed, Skipped []string
	Updated, Ahead, Conflicts            []struct {
		Slug   string
		Fields []string
	}
	Errors, Warnings []struct {
		Path, Message string
		Line          int
	}
}

func (r syncReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "applied %v", r.Applied)
	put := func(name string, list []string) {
		if len(list) > 0 {
			fmt.Fprintf(&b, "; %s %s", name, strings.Join(list, " "))
		}
	}
	fields := func(lists []struct {
		Slug   string
		Fields []string
	}) (all []string) {
		for _, l := range lists {
			all = append(all, l.Slug+":"+strings.Join(l.Fields, ","))
		}
		return all
	}
	put("created", r.Created)
	put("updated", fields(r.Updated))
	put("unchanged", r.Unchanged)
	put("removed", r.Removed)
	put("ahead", fields(r.Ahead))
	put("conflicts", fields(r.Conflicts))
	put("skipped", r.Skipped)
	for _, e := range r.Errors {
		fmt.Fprintf(&b, "; %s:%d %s", e.Path, e.Line, e.Message)
	}
	return b.String()
}

// syncs sends files (path, text, ...) and compares the report. options are members of the body, each with a comma before it.
func (h *hub) syncs(t testing.TB, project, options, want string, files ...string) syncReport {
	t.Helper()
	list := []map[string]string{}
	for i := 0; i < len(files); i += 2 {
		list = append(list, map[string]string{"path": files[i], "text": files[i+1]})
	}
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	var report syncReport
	h.do(t, "POST", "/v1/projects/"+project+"/tasks/sync", `{"files":`+string(text)+options+`}`).wants(t, 200).into(t, &report)
	if want != "" && report.String() != want {
		t.Errorf("%s\nwant %s", report, want)
	}
	return report
}

func (h *hub) files(t testing.TB, project string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for cursor := ""; ; {
		var page struct {
			Items      []struct{ Path, Text string }
			NextCursor string
		}
		h.do(t, "GET", "/v1/projects/"+project+"/tasks/files?limit=200"+cursor, nil).wants(t, 200).into(t, &page)
		for _, item := range page.Items {
			found[item.Path] = item.Text
		}
		if page.NextCursor == "" {
			return found
		}
		cursor = "&cursor=" + page.NextCursor
	}
}

func file(slug, more string) string {
	return "---\nid: " + slug + "\nname: " + slug + "\n" + more + "---\nBody of " + slug + "\n"
}

func TestC07_SyncFromBeginningToEnd(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	a, b, c := file("g/a", "risk: low\n"), file("b", "depends_on: [g/a]\n"), file("c", "dependsOn:\n  - b\nstatus: completed\n")
	h.syncs(t, p, `,"dryRun":true`, "applied false; created b c g/a; skipped README.md", "a.md", a, "x/b.md", b, "c.md", c, "README.md", "# Hello")
	if got := h.tasksOf(t, p, ""); len(got) != 0 {
		t.Fatalf("a dry run made %v", got)
	}
	h.syncs(t, p, "", "applied true; created b c g/a; skipped README.md", "a.md", a, "x/b.md", b, "c.md", c, "README.md", "# Hello")
	tasks := h.tasksOf(t, p, "")
	if slugs(tasks) != "b c g/a" || tasks[0].Path != "x/b.md" || tasks[0].UnmetCount != 1 || tasks[1].Status != "completed" || tasks[2].DownstreamCount != 2 || *tasks[2].Risk != "low" {
		t.Errorf("%+v", tasks)
	}
	before := h.tables(t)
	h.syncs(t, p, "", "applied false; unchanged b c g/a", "a.md", a, "x/b.md", b, "c.md", c)
	h.unchanged(t, before, "the same files")

	// Fields change, files move, and a status in a file says nothing any more.
	a2 := strings.Replace(a, "risk: low", "risk: high", 1)
	c2 := strings.Replace(c, "status: completed", "status: pending", 1)
	h.syncs(t, p, "", "applied true; updated b:path c:frontmatter g/a:frontmatter,risk", "a.md", a2, "b.md", b, "c.md", c2)
	if got := h.tasksOf(t, p, "slug=c")[0]; got.Status != "completed" {
		t.Errorf("a sync moved a task: %+v", got)
	}
	// Dependencies change; a file that is not there changes nothing, unless pruned: then its task is archived, and not deleted.
	c3 := strings.Replace(c2, "  - b\n", "  - g/a\n", 1)
	h.syncs(t, p, "", "applied true; updated c:dependsOn,frontmatter; unchanged b", "b.md", b, "c.md", c3)
	h.syncs(t, p, `,"prune":true`, "applied true; unchanged c g/a; removed b", "a.md", a2, "c.md", c3)
	if got := h.tasksOf(t, p, "archived=true"); slugs(got) != "b" {
		t.Errorf("archived: %v", slugs(got))
	}
	h.syncs(t, p, "", "applied false; b.md:4 depends on \"gone\", which is no task", "a.md", a2, "b.md", strings.Replace(b, "[g/a]", "[gone]", 1))
	h.syncs(t, p, "", "applied true; updated b:archived,frontmatter; unchanged c g/a", "a.md", a2, "b.md", b, "c.md", c3)
	if got := h.files(t, p); got["a.md"] != a2 || got["b.md"] != b || !strings.Contains(got["c.md"], "status: completed") {
		t.Errorf("%q", got)
	}
	h.do(t, "POST", "/v1/projects/"+h.newSession(t)+"/tasks/sync", `{"files":[]}`).refused(t, 404, "project_not_found")
	h.do(t, "GET", "/v1/projects/"+h.newSession(t)+"/tasks/files", nil).refused(t, 404, "project_not_found")
}

// What is wrong is said with file, line and reason, and nothing is applied, or all but that.
func TestC07_SyncRefusals(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	files := []string{
		"done.md", file("done", "status: done\n"), "good.md", file("good", ""), "one.md", file("twice", ""), "two.md", file("twice", ""), "x.md", file("x", "depends_on: [z]\n"), "y.md", file("y", "depends_on: [x]\n"),
		"z.md", file("z", "depends_on: [y, good]\n"), "lost.md", file("lost", "depends_on: [good, nothing]\n"), "self.md", file("self", "dependsOn: [self]\n"),
	}
	const faults = `; done.md:4 status "done" is none of pending, in-progress, completed, failed, blocked; lost.md:4 depends on "nothing", which is no task; self.md:4 waits for itself: self -> self` +
		`; two.md:1 the id "twice" is that of one.md already; x.md:4 waits for itself: x -> z -> y -> x; y.md:4 waits for itself: x -> z -> y -> x; z.md:4 waits for itself: x -> z -> y -> x`
	before := h.tables(t)
	h.syncs(t, p, "", "applied false"+faults, files...)
	h.unchanged(t, before, "errors")
	h.syncs(t, p, `,"keepGoing":true,"prune":true`, "applied true; created good lost"+faults, files...)
	if got := h.tasksOf(t, p, "slug=lost")[0]; !slices.Equal(got.DependsOn, []string{"good"}) {
		t.Errorf("%+v", got)
	}
	// What a file with an error stands for is not pruned.
	h.syncs(t, p, `,"keepGoing":true,"prune":true`, "applied true; updated lost:frontmatter; good.md:4 risk \"x\" is none of trivial, low, medium, high, critical", "good.md", file("good", "risk: x\n"), "lost.md", file("lost", "depends_on: [good]\n"))
	if got := h.tasksOf(t, p, "archived=false"); slugs(got) != "good lost" {
		t.Errorf("in use: %s", slugs(got))
	}
}

// Both sides are seen: what was changed here stays, what was changed in the file is taken, and a field that both changed is a conflict.
func TestC07_SyncConflicts(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	text := file("a", "risk: low\n")
	h.syncs(t, p, "", "applied true; created a", "a.md", text)
	id := h.tasksOf(t, p, "")[0].ID
	h.do(t, "PATCH", "/v1/tasks/"+id, `{"risk":"high","tags":["here"]}`).wants(t, 200)
	h.syncs(t, p, "", "applied false; unchanged a; ahead a:risk,tags", "a.md", text)
	// Another field of the file.
	scoped := strings.Replace(text, "risk: low\n", "risk: low\nscope: broad\n", 1)
	h.syncs(t, p, "", "applied true; updated a:frontmatter,scope; ahead a:risk,tags", "a.md", scoped)
	if got := h.tasksOf(t, p, "")[0]; *got.Risk != "high" || *got.Scope != "broad" || !slices.Equal(got.Tags, []string{"here"}) {
		t.Errorf("%+v", got)
	}
	// The same field: nothing of the task is touched, and nothing is forgotten.
	both := strings.Replace(scoped, "risk: low", "risk: critical", 1)
	before := h.tables(t)
	h.syncs(t, p, "", "applied false; conflicts a:risk", "a.md", both)
	h.syncs(t, p, "", "applied false; conflicts a:risk", "a.md", strings.Replace(both, "broad", "system", 1))
	h.unchanged(t, before, "a conflict")
	// The file of the task as it is here ends it, or the word of the file.
	h.syncs(t, p, "", "applied true; updated a:frontmatter", "a.md", h.files(t, p)["a.md"])
	h.do(t, "PATCH", "/v1/tasks/"+id, `{"risk":"medium"}`).wants(t, 200)
	h.syncs(t, p, `,"onConflict":"file"`, "applied true; updated a:frontmatter,risk,tags", "a.md", both)
	if got := h.tasksOf(t, p, "")[0]; *got.Risk != "critical" || len(got.Tags) != 0 {
		t.Errorf("%+v", got)
	}
}

// Sync and those who work at the same time lose nothing of each other.
func TestC07_SyncBesideWork(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	const n = 24
	set := func(round int) (files []string) {
		for i := range n {
			files = append(files, fmt.Sprintf("t%d.md", i), file(fmt.Sprintf("t%d", i), fmt.Sprintf("due: round %d\n", round)))
		}
		return files
	}
	h.syncs(t, p, "", "", set(0)...)
	ids := map[string]string{}
	for _, task := range h.tasksOf(t, p, "") {
		ids[task.Slug] = task.ID
	}
	stop := make(chan struct{})
	var wait sync.WaitGroup
	wait.Add(3)
	rounds := 0
	go func() { // files change
		defer wait.Done()
		for {
			select {
			case <-stop:
				return
			default:
				rounds++
				h.syncs(t, p, "", "", set(rounds)...)
			}
		}
	}()
	completed, noted := map[string]int{}, map[string]int{}
	go func() { // agents work
		defer wait.Done()
		session := h.newSessionIn(t, p)
		for {
			select {
			case <-stop:
				return
			default:
			}
			a := h.do(t, "POST", "/v1/projects/"+p+"/tasks/claim", `{"sessionId":"`+session+`"}`)
			if a.status == 204 {
				for _, id := range ids {
					h.do(t, "POST", "/v1/tasks/"+id+"/reopen", `{}`)
				}
				continue
			}
			task := a.wants(t, 200).task(t)
			h.do(t, "POST", "/v1/tasks/"+task.ID+"/complete", `{"mappingId":"`+task.Claim.MappingID+`"}`).wants(t, 200)
			completed[task.Slug]++
			h.do(t, "POST", "/v1/tasks/"+task.ID+"/notes", `{"body":"done"}`).wants(t, 201)
			noted[task.Slug]++
		}
	}()
	tagged := 0
	go func() { // people edit other fields
		defer wait.Done()
		for {
			select {
			case <-stop:
				return
			default:
				tagged++
				h.do(t, "PATCH", "/v1/tasks/"+ids[fmt.Sprintf("t%d", tagged%n)], fmt.Sprintf(`{"tags":["edit %d"]}`, tagged)).wants(t, 200)
			}
		}
	}()
	time.Sleep(during())
	close(stop)
	wait.Wait()
	h.syncs(t, p, "", "", set(rounds)...)
	total := 0
	for _, slug := range slices.Sorted(maps.Keys(ids)) {
		task := h.do(t, "GET", "/v1/tasks/"+ids[slug], nil).wants(t, 200).task(t)
		var i int
		fmt.Sscanf(task.Slug, "t%d", &i)
		last := tagged - (tagged-i)%n
		if *task.Due != fmt.Sprintf("round %d", rounds) || last > 0 && !slices.Equal(task.Tags, []string{fmt.Sprintf("edit %d", last)}) || task.Body != "Body of "+task.Slug+"\n" {
			t.Errorf("%s: due %s (round %d), tags %v (edit %d)", task.Slug, *task.Due, rounds, task.Tags, last)
		}
		moves := h.count(t, "SELECT count(*) FROM task_status_changes WHERE task_id = $1 AND to_status = 'completed'", task.ID)
		notes := h.count(t, "SELECT count(*) FROM task_notes WHERE task_id = $1", task.ID)
		if moves != completed[task.Slug] || notes != noted[task.Slug] {
			t.Errorf("%s: completed %d times, on record %d; noted %d, on record %d", task.Slug, completed[task.Slug], moves, noted[task.Slug], notes)
		}
		total += moves
	}
	t.Logf("%d syncs, %d edits, %d completions", rounds, tagged, total)
	if rounds < 2 || tagged < 2 || total < 2 {
		t.Error("nothing was raced")
	}
}

// during is how long the race lasts: HUB_TEST_RACE=30s for a long one.
func during() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("HUB_TEST_RACE")); err == nil {
		return d
	}
	return 3 * time.Second
}

// Real folders, where they are (HUB_TEST_TASKFILES): in, unchanged, and out as they were.
func TestSyncOfRealFiles(t *testing.T) {
	t.Parallel()
	root := cmp.Or(os.Getenv("HUB_TEST_TASKFILES"), "../../../shared/data/taskgraph")
	if _, err := os.Stat(root); err != nil {
		t.Skip("no files of others here")
	}
	h := newHub(t)
	p := h.newProject(t, "p")
	var files []string
	texts := map[string]string{}
	err := filepath.WalkDir(filepath.Join(root, "taskgraph_ts-tasks"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".md" {
			return err
		}
		text, err := os.ReadFile(path)
		name, _ := filepath.Rel(root, path)
		files = append(files, name, string(text))
		texts[name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	first := h.syncs(t, p, `,"keepGoing":true`, "", files...)
	if len(first.Created) < 40 || len(first.Errors) > 3 {
		t.Errorf("%s", first)
	}
	again := h.syncs(t, p, `,"keepGoing":true,"prune":true`, "", files...)
	if again.Applied || len(again.Unchanged) != len(first.Created) {
		t.Errorf("%s", again)
	}
	for path, text := range h.files(t, p) {
		if text != texts[path] && !strings.Contains(texts[path], "status: in-progress") {
			t.Errorf("%s comes back as\n%s", path, text)
		}
	}
}
