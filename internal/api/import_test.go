package api_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/alkdev/hub/internal/pgjson/jsonequal"
)

// outline is what the tests want to know of an export.
type outline struct {
	Info struct {
		ID, Title string
		ParentID  *string
		Agent     *string
		Time      struct{ Created, Updated, Archived float64 }
	}
	Messages []struct {
		Info struct {
			ID, Role string
			Time     struct{ Created float64 }
		}
		Parts []struct{ ID, Type string }
	}
}

func outlineOf(t testing.TB, text []byte) (o outline) {
	t.Helper()
	if err := json.Unmarshal(text, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o outline) parts() (n int) {
	for _, m := range o.Messages {
		n += len(m.Parts)
	}
	return n
}

// All real exports come back equal in every value, and importing them again changes no row (C02, X07).
func TestImportOfRealExports(t *testing.T) {
	t.Parallel()
	files := realExports(t)
	for name, file := range files {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			project := h.newProject(t, "p")
			o := outlineOf(t, file)
			in := h.imports(t, project, file, "created")
			if in.Messages != (importCounts{Created: len(o.Messages)}) || in.Parts != (importCounts{Created: o.parts()}) {
				t.Errorf("imported %+v, the file has %d messages and %d parts", in, len(o.Messages), o.parts())
			}
			h.wantExport(t, in.ID, file)

			s := h.do(t, "GET", "/v1/sessions/"+in.ID, nil).wants(t, 200).session(t)
			if s.Title != o.Info.Title || value(s.Source) != "opencode" || value(s.SourceID) != o.Info.ID || value(s.RoleName) != value(o.Info.Agent) || s.ProjectID != project ||
				s.Version != "1" || s.RunState != "idle" || s.ParentID != nil || s.ArchivedAt != nil || value(s.AccountID) != h.admin.account.String() {
				t.Errorf("the session is %+v", s)
			}
			created, err := time.Parse(time.RFC3339, s.CreatedAt)
			if err != nil || created.UnixMilli() != int64(o.Info.Time.Created) {
				t.Errorf("created at %s, in the file %f", s.CreatedAt, o.Info.Time.Created)
			}
			// The list has the messages in their order, by id, each with its parts.
			var listed []messageBody
			for cursor := ""; ; {
				var body struct {
					Items      []messageBody
					NextCursor string
				}
				h.do(t, "GET", "/v1/sessions/"+in.ID+"/messages?limit=3"+cursor, nil).into(t, &body)
				listed = append(listed, body.Items...)
				if cursor = "&cursor=" + body.NextCursor; body.NextCursor == "" {
					break
				}
			}
			for i, m := range o.Messages {
				if value(listed[i].SourceID) != m.Info.ID || listed[i].Role != m.Info.Role || len(listed[i].Parts) != len(m.Parts) {
					t.Fatalf("message %d is %+v, in the file %+v", i, listed[i], m)
				}
				for j, p := range m.Parts {
					if value(listed[i].Parts[j].SourceID) != p.ID || listed[i].Parts[j].Type != p.Type {
						t.Fatalf("part %d of message %d is %+v, in the file %+v", j, i, listed[i].Parts[j], p)
					}
				}
			}

			before := h.tables(t)
			for range 2 {
				again := h.imports(t, project, file, "unchanged")
				if again.ID != in.ID || again.Messages != (importCounts{Unchanged: len(o.Messages)}) || again.Parts != (importCounts{Unchanged: o.parts()}) {
					t.Errorf("again: %+v", again)
				}
			}
			h.unchanged(t, before, "importing again")
			// Its own export is the same file too.
			h.imports(t, project, h.export(t, in.ID), "unchanged")
			h.unchanged(t, before, "importing its export")
		})
	}
}

func TestExportIsAFile(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	a := h.importFile(t, h.admin, project, export{id: "ses_1"}).wants(t, 201)
	if got := a.header.Get("Location"); got != "/v1/sessions/"+a.id(t) {
		t.Errorf("Location %q", got)
	}
	e := h.do(t, "GET", a.header.Get("Location")+"/export", nil).wants(t, 200)
	if got := e.header.Get("Content-Disposition"); got != `attachment; filename="ses_1.json"` {
		t.Errorf("Content-Disposition %q", got)
	}
	born := h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`","slug":"my-slug"}`).wants(t, 201).id(t)
	e = h.do(t, "GET", "/v1/sessions/"+born+"/export", nil).wants(t, 200)
	if got := e.header.Get("Content-Disposition"); got != `attachment; filename="my-slug.json"` {
		t.Errorf("Content-Disposition %q", got)
	}
	// A name that would break out of the header.
	a = h.importFile(t, h.admin, project, export{id: "ses_\x22; x=\\\x0d\x0aSet-Cookie: y"}.String())
	e = h.do(t, "GET", a.wants(t, 201).header.Get("Location")+"/export", nil).wants(t, 200)
	if e.header.Get("Set-Cookie") != "" {
		t.Errorf("the session's id became a header: %v", e.header)
	}
}

// The same session, exported while it ran and after it was aborted: the later one updates, the older one changes nothing.
func TestImportOfLaterAndOlderExports(t *testing.T) {
	t.Parallel()
	files := realExports(t)
	running, aborted := files["10-aborted-while-running.json"], files["10-aborted.json"]
	h := newHub(t)
	project := h.newProject(t, "p")

	first := h.imports(t, project, running, "created")
	h.wantExport(t, first.ID, running)
	second := h.imports(t, project, aborted, "updated")
	if second.ID != first.ID {
		t.Errorf("another session: %s, first %s", second.ID, first.ID)
	}
	h.wantExport(t, first.ID, aborted)
	o := outlineOf(t, aborted)
	if n := h.count(t, "SELECT count(*) FROM messages"); n != len(o.Messages) {
		t.Errorf("%d messages, want %d", n, len(o.Messages))
	}
	if n := h.count(t, "SELECT count(*) FROM parts"); n != o.parts() {
		t.Errorf("%d parts, want %d", n, o.parts())
	}
	before := h.tables(t)
	older := h.imports(t, project, running, "older")
	if older.ID != first.ID || older.Messages.Created+older.Messages.Updated+older.Messages.Deleted+older.Parts.Created+older.Parts.Updated+older.Parts.Deleted != 0 {
		t.Errorf("older: %+v", older)
	}
	h.unchanged(t, before, "an older export")
	h.wantExport(t, first.ID, aborted)

	// In the other order, in an organisation of its own.
	other := h.newCaller(t, uuid.Nil, "*")
	theirs := h.as(t, other, "POST", "/v1/projects", `{"slug":"p","name":"p"}`).wants(t, 201).id(t)
	id := h.importFile(t, other, theirs, aborted).wants(t, 201).id(t)
	if got := h.importFile(t, other, theirs, running).wants(t, 200); !strings.Contains(string(got.body), `"older"`) {
		t.Errorf("%s", got.body)
	}
	wantJSON(t, "the export", h.as(t, other, "GET", "/v1/sessions/"+id+"/export", nil).body, aborted)
}

// A later export adds, changes, removes and reorders messages and parts; the counts say so, and what did not change keeps its
// revision.
func TestImportOfChangedExports(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	base := func() export { return numbered("ses_c", "5000", "a", 6, 3) }
	next := 5000
	later := func(e export) export {
		next++
		e.times = fmt.Sprintf(`{"created":1000,"updated":%d}`, next)
		return e
	}
	id := h.imports(t, project, base(), "created").ID
	for _, step := range []struct {
		name            string
		change          func(e *export)
		messages, parts importCounts
	}{
		{"nothing but the time", func(*export) {}, importCounts{0, 0, 0, 6}, importCounts{0, 0, 0, 18}},
		{"a message added at the end", func(e *export) {
			e.messages = append(e.messages, exportMessage{id: "new", created: "1900", parts: []exportPart{{id: "new_p"}}})
		}, importCounts{1, 0, 0, 6}, importCounts{1, 0, 0, 18}},
		{"it goes again", func(*export) {}, importCounts{0, 0, 1, 6}, importCounts{0, 0, 1, 18}},
		{"a part added in the middle", func(e *export) {
			m := &e.messages[2]
			m.parts = slices.Insert(m.parts, 1, exportPart{id: "mid", more: `,"text":"x"`})
		}, importCounts{0, 0, 0, 6}, importCounts{1, 2, 0, 16}},
		{"it goes again", func(*export) {}, importCounts{0, 0, 0, 6}, importCounts{0, 2, 1, 16}},
		{"one message's data", func(e *export) { e.messages[1].info = `,"mark":"b"` }, importCounts{0, 1, 0, 5}, importCounts{0, 0, 0, 18}},
		{"one message's role", func(e *export) { e.messages[1].role = "assistant" }, importCounts{0, 1, 0, 5}, importCounts{0, 0, 0, 18}},
		{"one part's data", func(e *export) { e.messages[1].parts[0].more = `,"text":"b"`; e.messages[1].role = "assistant" }, importCounts{0, 0, 0, 6}, importCounts{0, 1, 0, 17}},
		{"one part's type", func(e *export) { e.messages[0].parts[2].kind = "tool" }, importCounts{0, 1, 0, 5}, importCounts{0, 2, 0, 16}},
		{"back", func(*export) {}, importCounts{0, 0, 0, 6}, importCounts{0, 1, 0, 17}},
		{"messages in another order", func(e *export) { slices.Reverse(e.messages) }, importCounts{0, 6, 0, 0}, importCounts{0, 0, 0, 18}},
		{"back", func(*export) {}, importCounts{0, 6, 0, 0}, importCounts{0, 0, 0, 18}},
		{"parts in another order", func(e *export) { slices.Reverse(e.messages[3].parts) }, importCounts{0, 0, 0, 6}, importCounts{0, 2, 0, 16}},
		{"back", func(*export) {}, importCounts{0, 0, 0, 6}, importCounts{0, 2, 0, 16}},
		{"one message's time", func(e *export) { e.messages[3].created = "1.0035e3" }, importCounts{0, 1, 0, 5}, importCounts{0, 0, 0, 18}},
		{"back", func(*export) {}, importCounts{0, 1, 0, 5}, importCounts{0, 0, 0, 18}},
		{"the last part of one message", func(e *export) { e.messages[5].parts = nil }, importCounts{0, 0, 0, 6}, importCounts{0, 0, 3, 15}},
		{"back", func(*export) {}, importCounts{0, 0, 0, 6}, importCounts{3, 0, 0, 15}},
		{"the first messages", func(e *export) { e.messages = e.messages[2:] }, importCounts{0, 4, 2, 0}, importCounts{0, 0, 6, 12}},
		{"back", func(*export) {}, importCounts{2, 4, 0, 0}, importCounts{6, 0, 0, 12}},
		{"all parts of all messages", func(e *export) {
			for i := range e.messages {
				e.messages[i].parts = nil
			}
		}, importCounts{0, 0, 0, 6}, importCounts{0, 0, 18, 0}},
		{"back", func(*export) {}, importCounts{0, 0, 0, 6}, importCounts{18, 0, 0, 0}},
		{"all messages", func(e *export) { e.messages = nil }, importCounts{0, 0, 6, 0}, importCounts{0, 0, 18, 0}},
		{"back", func(*export) {}, importCounts{6, 0, 0, 0}, importCounts{18, 0, 0, 0}},
		{"unknown members of a message", func(e *export) { e.messages[4].more = `,"extra":{"n":1e2}` }, importCounts{0, 1, 0, 5}, importCounts{0, 0, 0, 18}},
		{"back", func(*export) {}, importCounts{0, 1, 0, 5}, importCounts{0, 0, 0, 18}},
		{"unknown members at the top", func(e *export) { e.more = `,"todos":[1.0,"\u0000"]` }, importCounts{0, 0, 0, 6}, importCounts{0, 0, 0, 18}},
		{"back", func(*export) {}, importCounts{0, 0, 0, 6}, importCounts{0, 0, 0, 18}},
		{"another message of the same ids' instant", func(e *export) {
			e.messages = slices.Insert(e.messages, 0, exportMessage{id: "twin", created: "1000", parts: []exportPart{{id: "twin_p"}}})
		}, importCounts{1, 6, 0, 0}, importCounts{1, 0, 0, 18}},
		{"back", func(*export) {}, importCounts{0, 6, 1, 0}, importCounts{0, 0, 1, 18}},
	} {
		e := base()
		step.change(&e)
		e = later(e)
		in := h.imports(t, project, e, "updated")
		if in.ID != id || in.Messages != step.messages || in.Parts != step.parts {
			t.Errorf("%s: messages %+v, parts %+v, want %+v and %+v", step.name, in.Messages, in.Parts, step.messages, step.parts)
		}
		h.wantExport(t, id, []byte(e.String()))
		if in := h.imports(t, project, e, "unchanged"); in.Messages != (importCounts{Unchanged: len(e.messages)}) {
			t.Errorf("%s, again: %+v", step.name, in)
		}
	}
	// The same time with other content is no older export.
	e := later(base())
	h.imports(t, project, e, "updated")
	e.messages[0].info = `,"mark":"at the same time"`
	h.imports(t, project, e, "updated")
	h.wantExport(t, id, []byte(e.String()))
}

// A number that the source spells differently now (a cost of 0, then 0.0) is the same for jsonb; the later export is stored as
// it is all the same.
func TestX07_ReimportTakesTheNewSpelling(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	e := numbered("ses_s", "5000", "a", 1, 1)
	e.messages[0].info, e.messages[0].parts[0].more = `,"cost":0`, `,"cost":1.5`
	id := h.imports(t, project, e, "created").ID
	e.messages[0].info, e.messages[0].parts[0].more = `,"cost":0.0`, `,"cost":1.50`
	h.importFile(t, h.admin, project, e).wants(t, 200)
	h.wantExport(t, id, []byte(e.String()))
}

// The project that the query names: a session that is here already must be in it, whatever the file would change.
func TestImportIntoAnotherProject(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project, other := h.newProject(t, "p"), h.newProject(t, "q")
	stranger := h.newCaller(t, uuid.Nil, "*")
	foreign := h.as(t, stranger, "POST", "/v1/projects", `{"slug":"p","name":"p"}`).wants(t, 201).id(t)
	file := numbered("ses_p", "5000", "a", 2, 2)
	before := h.tables(t)
	for _, target := range []string{uuid.NewString(), foreign} {
		h.importFile(t, h.admin, target, file).refused(t, 422, "sessions_project_id_fkey", "query:projectId")
	}
	for _, target := range []string{"", "x", "%00", project[1:], project + "0", project + "&projectId=" + project} {
		h.importFile(t, h.admin, target, file).refused(t, 400, "invalid_request", "query:projectId")
	}
	h.do(t, "POST", "/v1/sessions/import", file.String()).refused(t, 400, "invalid_request", "query:projectId")
	h.unchanged(t, before, "refused imports") // no role is left either
	h.imports(t, project, file, "created")

	before = h.tables(t)
	newer, older := numbered("ses_p", "6000", "b", 3, 1), numbered("ses_p", "4000", "c", 1, 1)
	for name, f := range map[string]export{"the same": file, "a newer one": newer, "an older one": older} {
		for _, target := range []string{other, foreign, uuid.NewString()} {
			a := h.importFile(t, h.admin, target, f)
			if a.status != 409 {
				t.Errorf("%s: status %d: %s", name, a.status, a.body)
				continue
			}
			a.refused(t, 409, "sessions_project_immutable", "query:projectId")
		}
	}
	h.unchanged(t, before, "imports into another project")
	h.imports(t, project, newer, "updated")
}

// linked fails the test unless each session of the files has the parent that its file names, if that is among them.
func (h *hub) linked(t testing.TB, files map[string][]byte, what string) {
	t.Helper()
	ids, parents := map[string]string{}, map[string]string{}
	var body struct{ Items []sessionBody }
	h.do(t, "GET", "/v1/sessions?limit=200", nil).wants(t, 200).into(t, &body)
	for _, s := range body.Items {
		ids[value(s.SourceID)], parents[value(s.SourceID)] = s.ID, value(s.ParentID)
	}
	if len(ids) != len(files) || len(body.Items) != len(files) {
		t.Fatalf("%s: %d sessions of %d files", what, len(body.Items), len(files))
	}
	for name, file := range files {
		o := outlineOf(t, file)
		want := "(null)"
		if o.Info.ParentID != nil && ids[*o.Info.ParentID] != "" {
			want = ids[*o.Info.ParentID]
		}
		if parents[o.Info.ID] != want {
			t.Fatalf("%s: %s has the parent %s, want %s", what, name, parents[o.Info.ID], want)
		}
	}
}

func someFiles(t testing.TB, prefix string) map[string][]byte {
	t.Helper()
	files := realExports(t)
	maps.DeleteFunc(files, func(name string, _ []byte) bool { return !strings.HasPrefix(name, prefix) })
	return files
}

func permutations(names []string) [][]string {
	if len(names) <= 1 {
		return [][]string{slices.Clone(names)}
	}
	var all [][]string
	for i, name := range names {
		for _, rest := range permutations(slices.Concat(names[:i], names[i+1:])) {
			all = append(all, append([]string{name}, rest...))
		}
	}
	return all
}

// Children and parents find each other in whatever order they come.
func TestImportLinksFamiliesInEveryOrder(t *testing.T) {
	t.Parallel()
	for prefix, links := range map[string]int{"15-tree": 3, "04-subagents": 4} {
		t.Run(prefix, func(t *testing.T) {
			t.Parallel()
			files := someFiles(t, prefix)
			h := newHub(t)
			project := h.newProject(t, "p")
			orders := permutations(slices.Sorted(maps.Keys(files)))
			if len(orders) < 24 {
				t.Fatal(len(orders))
			}
			for i, order := range orders {
				for _, name := range order {
					h.imports(t, project, files[name], "created")
				}
				h.linked(t, files, strings.Join(order, ", "))
				if n := h.count(t, "SELECT count(*) FROM sessions WHERE parent_id IS NOT NULL"); n != links {
					t.Fatalf("%d links, want %d", n, links)
				}
				if i%8 == 0 { // again, in the other order: nothing changes
					before := h.tables(t)
					for _, name := range slices.Backward(order) {
						h.imports(t, project, files[name], "unchanged")
					}
					h.unchanged(t, before, "importing the family again")
				}
				h.exec(t, "DELETE FROM sessions")
			}
		})
	}
}

// The same at once by many, each file twice.
func TestImportLinksFamiliesConcurrently(t *testing.T) {
	t.Parallel()
	files := someFiles(t, "15-tree")
	maps.Copy(files, someFiles(t, "04-subagents"))
	maps.Copy(files, someFiles(t, "05-attachments"))
	h := newHub(t)
	project := h.newProject(t, "p")
	for round := range 6 {
		r := rand.New(rand.NewPCG(uint64(round), 15))
		queue := make(chan string, 2*len(files))
		for range 2 {
			names := slices.Sorted(maps.Keys(files))
			r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
			for _, name := range names {
				queue <- name
			}
		}
		close(queue)
		var created atomic.Int32
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				for name := range queue {
					a := h.importFile(t, h.admin, project, files[name])
					if a.status != 200 && a.status != 201 {
						t.Errorf("%s: status %d: %s", name, a.status, a.body)
					}
					if a.status == 201 {
						created.Add(1)
					}
				}
			})
		}
		group.Wait()
		if int(created.Load()) != len(files) {
			t.Errorf("%d files were created, want %d", created.Load(), len(files))
		}
		h.linked(t, files, fmt.Sprintf("round %d", round))
		for name, file := range files {
			var list struct{ Items []sessionBody }
			h.do(t, "GET", "/v1/sessions?sourceId="+outlineOf(t, file).Info.ID, nil).into(t, &list)
			if d := jsonequal.Diff(file, h.export(t, list.Items[0].ID)); d != nil {
				t.Errorf("%s: %v", name, d)
			}
		}
		h.exec(t, "DELETE FROM sessions")
	}
}

// Files that name each other as parent are refused, whichever comes last, and leave nothing.
func TestImportRefusesCycles(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	file := func(id, parent string) export { return export{id: id, info: `,"parentID":"` + parent + `"`} }
	h.imports(t, project, file("a", "b"), "created")
	h.imports(t, project, file("b", "c"), "created")
	before := h.tables(t)
	h.importFile(t, h.admin, project, file("c", "a")).refused(t, 422, "sessions_parent_acyclic", "/info/parentID")
	h.importFile(t, h.admin, project, file("c", "b")).refused(t, 422, "sessions_parent_acyclic", "/info/parentID")
	h.importFile(t, h.admin, project, file("c", "c")).refused(t, 400, "invalid_json", "/info/parentID")
	h.unchanged(t, before, "cycles")
	h.imports(t, project, file("c", "d"), "created")
	if s := h.do(t, "GET", "/v1/sessions?sourceId=b", nil); !strings.Contains(string(s.body), `"parentId":"`) {
		t.Errorf("b has no parent: %s", s.body)
	}
	// At once: one of the two is refused, and they are never each other's parents.
	for i := range 6 {
		x, y := fmt.Sprintf("x%d", i), fmt.Sprintf("y%d", i)
		counts := h.race(t, 2, func(i int) int {
			if i == 0 {
				return h.importFile(t, h.admin, project, file(x, y)).status
			}
			return h.importFile(t, h.admin, project, file(y, x)).status
		})
		if counts[201] != 1 || counts[422] != 1 {
			t.Errorf("%v", counts)
		}
	}
}

// A deleted parent's children keep their parent's name, and are adopted when it comes again.
func TestImportAdoptsOrphansAgain(t *testing.T) {
	t.Parallel()
	files := someFiles(t, "15-tree")
	h := newHub(t)
	project := h.newProject(t, "p")
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h.imports(t, project, files[name], "created")
	}
	var list struct{ Items []sessionBody }
	h.do(t, "GET", "/v1/sessions?sourceId="+outlineOf(t, files["15-tree-depth-1.json"]).Info.ID, nil).into(t, &list)
	h.do(t, "DELETE", "/v1/sessions/"+list.Items[0].ID, nil).wants(t, 204)
	h.do(t, "GET", "/v1/sessions?sourceId="+outlineOf(t, files["15-tree-depth-2.json"]).Info.ID, nil).into(t, &list)
	if list.Items[0].ParentID != nil {
		t.Errorf("the parent is gone, the child has %s", *list.Items[0].ParentID)
	}
	h.wantExport(t, list.Items[0].ID, files["15-tree-depth-2.json"])
	h.imports(t, project, files["15-tree-depth-1.json"], "created")
	h.linked(t, files, "after the parent came again")
}

// What was changed in the hub stays when the same file comes again, and shows in the export; what the source changed since wins.
func TestImportKeepsWhatTheHubChanged(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	h.exec(t, "INSERT INTO roles (org_id, name, origin, prompt) VALUES ($1, 'mine', 'api', 'be good'), ($1, 'build', 'api', 'build it')", h.admin.org)
	e := numbered("ses_k", "5000", "a", 2, 1)
	in := h.imports(t, project, e, "created")
	path := "/v1/sessions/" + in.ID
	h.do(t, "PATCH", path, `{"title":"Changed here","roleName":"mine","slug":"here","runState":"waiting","metadata":{"_mine":{"x":1}}}`).wants(t, 200)
	h.exec(t, "UPDATE sessions SET archived_at = '2026-11-23T12:00:00.123Z' WHERE id = $1", in.ID)
	before := h.tables(t)
	h.imports(t, project, e, "unchanged")
	h.unchanged(t, before, "importing again")

	check := func(a answer, title, role, archived string) {
		t.Helper()
		s := a.wants(t, 200).session(t)
		if s.Title != title || value(s.RoleName) != role || value(s.ArchivedAt) != archived || s.Slug != "here" || s.RunState != "waiting" || !strings.Contains(string(s.Metadata), `"_mine"`) {
			t.Errorf("%s", a.body)
		}
	}
	check(h.do(t, "GET", path, nil), "Changed here", "mine", "2026-11-23T12:00:00.123Z")
	o := outlineOf(t, h.export(t, in.ID))
	if o.Info.Title != "Changed here" || o.Info.Time.Archived != 1795435200123 {
		t.Errorf("the export has the title %q and was archived at %f", o.Info.Title, o.Info.Time.Archived)
	}

	// A later export that did not touch these: they stay.
	e2 := numbered("ses_k", "6000", "b", 3, 1)
	h.imports(t, project, e2, "updated")
	check(h.do(t, "GET", path, nil), "Changed here", "mine", "2026-11-23T12:00:00.123Z")
	// One that changed title, agent and archiving: the source's word is the later one.
	e3 := numbered("ses_k", "7000", "b", 3, 1)
	e3.title, e3.info, e3.times = `"Changed there"`, `,"agent":"there"`, `{"created":1000,"updated":7000,"archived":1795435200000}`
	h.imports(t, project, e3, "updated")
	check(h.do(t, "GET", path, nil), "Changed there", "there", "2026-11-23T12:00:00Z")
	h.wantExport(t, in.ID, []byte(e3.String()))
	// And one that takes the archiving back.
	e4 := numbered("ses_k", "8000", "b", 3, 1)
	e4.title, e4.info = e3.title, ""
	h.imports(t, project, e4, "updated")
	check(h.do(t, "GET", path, nil), "Changed there", "(null)", "(null)")
	h.wantExport(t, in.ID, []byte(e4.String()))

	// Roles: only the unknown one was added; those that somebody had defined stay as they are.
	var roles string
	h.scan(t, &roles, "SELECT string_agg(name || ' ' || origin || ' ' || prompt, ', ' ORDER BY name) FROM roles")
	if roles != "build api build it, mine api be good, there import " {
		t.Errorf("the roles are %q", roles)
	}
}

// An imported session comes back equal "but for what was changed here since": so it shows a changed role.
func TestExportShowsTheChangedRole(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	h.exec(t, "INSERT INTO roles (org_id, name) VALUES ($1, 'mine')", h.admin.org)
	in := h.imports(t, project, numbered("ses_k", "5000", "a", 1, 1), "created")
	h.do(t, "PATCH", "/v1/sessions/"+in.ID, `{"roleName":"mine"}`).wants(t, 200)
	if o := outlineOf(t, h.export(t, in.ID)); value(o.Info.Agent) != "mine" {
		t.Errorf("the export's agent is %s", value(o.Info.Agent))
	}
}

// The agents' names in session and messages become roles, in each organisation its own.
func TestImportRegistersRoles(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	e := numbered("ses_r", "5000", "a", 3, 1)
	e.info = `,"agent":"general"`
	e.messages[0].info, e.messages[1].info, e.messages[2].info = `,"agent":"build"`, `,"agent":"Rôle 😀"`, `,"agent":null`
	in := h.imports(t, project, e, "created")
	var roles string
	h.scan(t, &roles, "SELECT string_agg(name || ' ' || origin, ', ' ORDER BY name) FROM roles")
	if roles != "Rôle 😀 import, build import, general import" {
		t.Errorf("the roles are %q", roles)
	}
	if s := h.do(t, "GET", "/v1/sessions/"+in.ID, nil).session(t); value(s.RoleName) != "general" {
		t.Errorf("the session's role is %s", value(s.RoleName))
	}
	for _, agent := range []string{`,"agent":null`, `,"agent":""`, ``} {
		e := export{id: "ses_" + uuid.NewString(), info: agent}
		in := h.imports(t, project, e, "created")
		if s := h.do(t, "GET", "/v1/sessions/"+in.ID, nil).session(t); s.RoleName != nil {
			t.Errorf("%s: the role is %s", agent, *s.RoleName)
		}
		h.wantExport(t, in.ID, []byte(e.String()))
	}
	if n := h.count(t, "SELECT count(*) FROM roles"); n != 3 {
		t.Errorf("%d roles", n)
	}
}

// Messages that were born here stay when the session comes again, stand behind the imported ones, and are exported.
func TestImportKeepsMessagesBornHere(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	in := h.imports(t, project, numbered("ses_b", "5000", "a", 3, 2), "created")
	path := "/v1/sessions/" + in.ID + "/messages"
	born := h.do(t, "POST", path, `{"messages":[{"role":"user","data":{"agent":"build","n":1e2},"parts":[{"type":"text","data":{"text":"\u0000"}},{"type":"text","data":{"text":"two"}}]},{"role":"assistant"}]}`).
		wants(t, 201).messages(t)
	before := h.tables(t)
	h.imports(t, project, numbered("ses_b", "5000", "a", 3, 2), "unchanged")
	h.unchanged(t, before, "importing again")
	// A later export with more, and one with nothing at all.
	for _, e := range []export{numbered("ses_b", "6000", "b", 5, 1), numbered("ses_b", "7000", "c", 0, 0), numbered("ses_b", "8000", "d", 2, 2)} {
		h.imports(t, project, e, "updated")
		o := outlineOf(t, h.export(t, in.ID))
		if len(o.Messages) != len(e.messages)+2 {
			t.Fatalf("%d messages in the export, want %d", len(o.Messages), len(e.messages)+2)
		}
		for i, m := range e.messages {
			if o.Messages[i].Info.ID != m.id {
				t.Errorf("message %d is %s, want %s", i, o.Messages[i].Info.ID, m.id)
			}
		}
		for i, m := range born {
			got := o.Messages[len(e.messages)+i]
			if got.Info.ID != "msg_"+strings.ReplaceAll(m.ID, "-", "") || got.Info.Role != m.Role || len(got.Parts) != len(m.Parts) {
				t.Errorf("the message born here is %+v, want %s", got, m.ID)
			}
			for j, p := range m.Parts {
				if got.Parts[j].ID != "prt_"+strings.ReplaceAll(p.ID, "-", "") || got.Parts[j].Type != p.Type {
					t.Errorf("its part is %+v, want %s", got.Parts[j], p.ID)
				}
			}
		}
		for _, m := range born {
			h.do(t, "GET", path+"/"+m.ID, nil).wants(t, 200)
		}
	}
	// And the next one that is born here is again the last.
	last := h.do(t, "POST", path, `{"messages":[{"role":"user"}]}`).wants(t, 201).messages(t)[0]
	all := h.pages(t, h.admin, path, "id", 200)
	if all[len(all)-1] != last.ID {
		t.Errorf("C02: the last message is %s, want %s", all[len(all)-1], last.ID)
	}
}

// The hub's own export of a session that was continued here, brought back (or by way of an opencode that imported it): what was
// born here is recognised, and not there twice.
func TestC02_ReimportOfTheHubsOwnExportDuplicatesNothing(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	in := h.imports(t, project, numbered("ses_d", "5000", "a", 2, 1), "created")
	h.do(t, "POST", "/v1/sessions/"+in.ID+"/messages", `{"messages":[{"role":"user","parts":[{"type":"text","data":{"text":"x"}}]}]}`).wants(t, 201)
	file := h.export(t, in.ID)
	h.importFile(t, h.admin, project, file).wants(t, 200)
	again := h.export(t, in.ID)
	if n := len(outlineOf(t, again).Messages); n != 3 {
		t.Errorf("%d messages, before 3", n)
	}
	h.importFile(t, h.admin, project, again).wants(t, 200)
}

// A session that was born here, exported, brought into another organisation, and exported there: the same file.
func TestExportOfASessionBornHere(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.exec(t, "INSERT INTO roles (org_id, name) VALUES ($1, 'Rôle 😀')", h.admin.org)
	project := h.newProject(t, "p")
	parent := h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`).wants(t, 201).id(t)
	importedParent := h.imports(t, project, export{id: "ses_parent"}, "created").ID
	other := h.newCaller(t, uuid.Nil, "*")
	theirs := h.as(t, other, "POST", "/v1/projects", `{"slug":"p","name":"p"}`).wants(t, 201).id(t)
	for name, body := range map[string]string{
		"least":       ``,
		"full":        `,"parentId":"` + parent + `","roleName":"Rôle 😀","slug":"my-slug","title":"Títle","data":{"directory":"/x","model":{"id":"m","providerID":"p"},"n":1e2,"z":"\u0000\ud83d"}`,
		"of imported": `,"parentId":"` + importedParent + `"`,
		"traps":       `,"data":{"id":5,"title":7,"time":"x","parentID":8,"version":9,"agent":10,"slug":null,"messages":[],"info":{}}`,
		"more traps":  `,"data":{"id":"other","title":"other","time":{"created":"x","updated":-1,"archived":true},"parentID":"other","version":"other","agent":"` + strings.Repeat("a", 300) + `"}`,
		"null traps":  `,"data":{"id":null,"title":null,"time":null,"parentID":null,"version":null,"agent":null}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"`+body+`}`).wants(t, 201).session(t)
			h.do(t, "POST", "/v1/sessions/"+s.ID+"/messages", `{"messages":[
				{"role":"user","data":{"id":1,"sessionID":2,"role":3,"time":4,"agent":5},"parts":[{"type":"text","data":{"id":1,"sessionID":2,"messageID":3,"type":4,"text":"\u0010"}}]},
				{"role":"system","data":{"time":{"created":"x"},"agent":"build","cost":0.0}},
				{"role":"assistant","data":{"time":{"created":1795441960748,"completed":1e13}},"metadata":{"_opencode":{"extra":"{\"info\":1,\"more\":[1.0]}","version":7}},"parts":[{"type":"x"},{"type":"y"}]}]}`).wants(t, 201)
			if name == "full" {
				h.exec(t, "UPDATE sessions SET archived_at = now() WHERE id = $1", s.ID)
			}
			file := h.export(t, s.ID)
			o := outlineOf(t, file)
			if o.Info.ID != "ses_"+strings.ReplaceAll(s.ID, "-", "") || o.Info.Title != s.Title || len(o.Messages) != 3 || o.parts() != 3 {
				t.Errorf("the export is %s", file)
			}
			if want := map[string]string{"full": "ses_" + strings.ReplaceAll(parent, "-", ""), "of imported": "ses_parent"}[name]; want != "" && value(o.Info.ParentID) != want {
				t.Errorf("the parent is %s, want %s", value(o.Info.ParentID), want)
			}
			if name == "full" && (value(o.Info.Agent) != "Rôle 😀" || o.Info.Time.Archived == 0) {
				t.Errorf("the export is %s", file)
			}
			a := h.importFile(t, other, theirs, file).wants(t, 201)
			wantJSON(t, "exported again", h.as(t, other, "GET", a.header.Get("Location")+"/export", nil).wants(t, 200).body, file)
			// And once more: nothing changes.
			if got := h.importFile(t, other, theirs, file).wants(t, 200); !strings.Contains(string(got.body), `"unchanged"`) {
				t.Errorf("again: %s", got.body)
			}
		})
	}
}
