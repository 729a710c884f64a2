package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/internal/api"
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

// A number that the source spells differently now (a cost of 0, then 0.0) is taken for the same by jsonb: the later export is
// not stored as it is.
func TestBUG_X07_ReimportTakesTheNewSpelling(t *testing.T) {
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

// The contract says that an imported session comes back equal "but for what was changed here since": a changed role is not shown.
func TestBUG_ExportShowsTheChangedRole(t *testing.T) {
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
// born here comes a second time, and the next export holds the same ids twice, so that nobody can import it.
func TestBUG_C02_ReimportOfTheHubsOwnExportDuplicatesNothing(t *testing.T) {
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

// Broken files leave nothing: no session, no message, no role.
func TestImportRefusesBrokenFiles(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	h.imports(t, project, numbered("ses_there", "5000", "a", 2, 2), "created")
	before := h.tables(t)
	good := `{"info":{"id":"ses_x","slug":"s","title":"t","version":"1","parentID":"ses_y","agent":"fresh","time":{"created":1,"updated":2,"archived":3}},
		"messages":[{"info":{"id":"m0","sessionID":"ses_x","role":"user","agent":"fresh","time":{"created":4}},"parts":[]},
		{"info":{"id":"m1","sessionID":"ses_x","role":"assistant","time":{"created":5}},"parts":[{"id":"p0","sessionID":"ses_x","messageID":"m1","type":"text","text":"hello"},
		{"id":"p1","sessionID":"ses_x","messageID":"m1","type":"x"}]}]}`
	long := `"` + strings.Repeat("é", 101) + `"`
	for _, w := range []struct{ old, new, pointer string }{
		{`"id":"ses_x"`, `"id":5`, "/info/id"},
		{`"id":"ses_x"`, `"id":null`, "/info/id"},
		{`"id":"ses_x"`, `"id":""`, "/info/id"},
		{`"id":"ses_x"`, `"id":["ses_x"]`, "/info/id"},
		{`"id":"ses_x"`, `"id":` + long, "/info/id"},
		{`"id":"ses_x"`, `"id":"ses_x\u0000"`, "/info/id"},
		{`"id":"ses_x"`, `"id":"ses_x\ud83d"`, "/info/id"},
		{`"id":"ses_x",`, ``, "/info/id"},
		{`"id":"ses_x"`, `"id":"ses_z"`, "/messages/0/info/sessionID"},
		{`"title":"t"`, `"title":5`, "/info/title"},
		{`"title":"t"`, `"title":null`, "/info/title"},
		{`"title":"t",`, ``, "/info/title"},
		{`"version":"1"`, `"version":1`, "/info/version"},
		{`"version":"1",`, ``, "/info/version"},
		{`"parentID":"ses_y"`, `"parentID":5`, "/info/parentID"},
		{`"parentID":"ses_y"`, `"parentID":""`, "/info/parentID"},
		{`"parentID":"ses_y"`, `"parentID":"ses_x"`, "/info/parentID"},
		{`"agent":"fresh","time":{"created":1`, `"agent":5,"time":{"created":1`, "/info/agent"},
		{`"agent":"fresh","time":{"created":1`, `"agent":"\u0000","time":{"created":1`, "/info/agent"},
		{`"agent":"fresh","time":{"created":4`, `"agent":` + long + `,"time":{"created":4`, "/messages/0/info/agent"},
		{`"time":{"created":1,"updated":2,"archived":3}`, `"time":5`, "/info/time"},
		{`,"time":{"created":1,"updated":2,"archived":3}`, ``, "/info/time"},
		{`"created":1,`, ``, "/info/time/created"},
		{`"created":1,`, `"created":"1",`, "/info/time/created"},
		{`"created":1,`, `"created":-1,`, "/info/time/created"},
		{`"created":1,`, `"created":1e15,`, "/info/time/created"},
		{`"updated":2,`, ``, "/info/time/updated"},
		{`"updated":2,`, `"updated":null,`, "/info/time/updated"},
		{`"archived":3`, `"archived":true`, "/info/time/archived"},
		{`"messages":[`, `"other":[`, "/messages"},
		{`"messages":[`, `"messages":5,"other":[`, "/messages"},
		{`"messages":[`, `"messages":null,"other":[`, "/messages"},
		{`"messages":[`, `"messages":{},"other":[`, "/messages"},
		{`"messages":[`, `"messages":[5,`, "/messages/0"},
		{`"messages":[`, `"messages":[null,`, "/messages/0"},
		{`"messages":[`, `"messages":[{"parts":[]},`, "/messages/0/info"},
		{`"messages":[`, `"messages":[{"info":[],"parts":[]},`, "/messages/0/info"},
		{`"info":{"id":"ses_x"`, `"other":{"id":"ses_x"`, "/info"},
		{`"id":"m0"`, `"id":0`, "/messages/0/info/id"},
		{`"id":"m0",`, ``, "/messages/0/info/id"},
		{`"id":"m1"`, `"id":"m0"`, "/messages/1/info/id"},
		{`"sessionID":"ses_x","role":"user"`, `"sessionID":"ses_there","role":"user"`, "/messages/0/info/sessionID"},
		{`"sessionID":"ses_x","role":"user"`, `"role":"user"`, "/messages/0/info/sessionID"},
		{`"role":"user"`, `"role":"User"`, "/messages/0/info/role"},
		{`"role":"user"`, `"role":5`, "/messages/0/info/role"},
		{`"role":"user",`, ``, "/messages/0/info/role"},
		{`"time":{"created":4}`, `"time":{}`, "/messages/0/info/time/created"},
		{`"time":{"created":4}`, `"time":[]`, "/messages/0/info/time"},
		{`,"time":{"created":4}`, ``, "/messages/0/info/time"},
		{`"parts":[]`, `"parts":{}`, "/messages/0/parts"},
		{`"parts":[]`, `"parts":null`, "/messages/0/parts"},
		{`,"parts":[]`, ``, "/messages/0/parts"},
		{`"parts":[]`, `"parts":[5]`, "/messages/0/parts/0"},
		{`"id":"p0"`, `"id":0`, "/messages/1/parts/0/id"},
		{`"id":"p0",`, ``, "/messages/1/parts/0/id"},
		{`"id":"p1"`, `"id":"p0"`, "/messages/1/parts/1/id"},
		{`"sessionID":"ses_x","messageID":"m1","type":"text"`, `"sessionID":"ses_there","messageID":"m1","type":"text"`, "/messages/1/parts/0/sessionID"},
		{`"messageID":"m1","type":"text"`, `"messageID":"m0","type":"text"`, "/messages/1/parts/0/messageID"},
		{`"messageID":"m1","type":"text"`, `"type":"text"`, "/messages/1/parts/0/messageID"},
		{`"type":"text"`, `"type":5`, "/messages/1/parts/0/type"},
		{`"type":"text"`, `"type":""`, "/messages/1/parts/0/type"},
		{`"type":"text"`, `"type":"\u0000"`, "/messages/1/parts/0/type"},
		{`"type":"text",`, ``, "/messages/1/parts/0/type"},
		{`"text":"hello"`, `"text":"hello","text":"twice"`, "/messages/1/parts/0/text"},
		{`"text":"hello"`, "\"text\":\"\xff\"", "/messages/1/parts/0/text"},
		{`"text":"hello"`, `"text":` + strings.Repeat("[", 256) + strings.Repeat("]", 256), "/messages/1/parts/0/text" + strings.Repeat("/0", 255)},
		{`"text":"hello"`, `"text":1e401`, "/messages/1/parts/0/text"},
		{`"text":"hello"`, `"text":` + strings.Repeat("1", 1001), "/messages/1/parts/0/text"},
		{`"type":"x"}]}]}`, `"type":"x"}]}]} {}`, ""},
		{`"type":"x"}]}]}`, `"type":"x"}]}],"info":{}}`, "/info"},
		{`"type":"x"}]}]}`, `"type":"x"}]}],"messages":[]}`, "/messages"},
	} {
		broken := strings.Replace(good, w.old, w.new, 1)
		if broken == good {
			t.Fatalf("%s does not occur", w.old)
		}
		a := h.importFile(t, h.admin, project, broken)
		if a.status != 400 {
			t.Errorf("%.60s for %.60s: status %d: %s", w.new, w.old, a.status, a.body)
			continue
		}
		if p := a.problem(t); p.Code != "invalid_json" || len(p.Errors) != 1 || p.Errors[0].Pointer != w.pointer {
			t.Errorf("%.60s for %.60s: want a pointer to %s: %s", w.new, w.old, w.pointer, a.body)
		}
	}
	for name, body := range map[string]string{"nothing": "", "white space": "\n", "an array": "[]", "null": "null", "text": "nonsense", "NULs": strings.Repeat("\x00", 100), "HTML": "<html>", "two files": good + good} {
		if a := h.importFile(t, h.admin, project, body); a.status != 400 || a.problem(t).Code != "invalid_json" {
			t.Errorf("%s: status %d: %s", name, a.status, a.body)
		}
	}
	for _, media := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/gzip", ""} {
		h.do(t, "POST", "/v1/sessions/import?projectId="+project, good, "Content-Type", media).refused(t, 415, "unsupported_media_type", "header:Content-Type")
	}
	h.unchanged(t, before, "broken files")

	// Cut short at many places.
	for _, name := range []string{"03-tool-and-provider-errors.json", "15-tree-root.json"} {
		file := bytes.TrimSpace(realExports(t)[name])
		for i := 0; i < len(file); i += 1 + len(file)/150 {
			if a := h.importFile(t, h.admin, project, file[:i]); a.status != 400 || a.problem(t).Code != "invalid_json" {
				t.Fatalf("%s cut at byte %d: status %d: %s", name, i, a.status, a.body)
			}
		}
		h.importFile(t, h.admin, project, file[:len(file)-1]).refused(t, 400, "invalid_json", "")
	}
	h.unchanged(t, before, "files that were cut short")

	// The twins.
	h.imports(t, project, good, "created")
	h.imports(t, project, realExports(t)["03-tool-and-provider-errors.json"], "created")
}

// A message or part that another session has: refused as a whole, with pointers to all of them in the batch.
func TestC04_ImportRefusesMessagesOfAnotherSession(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	h.imports(t, project, numbered("ses_a", "5000", "a", 3, 2), "created")
	before := h.tables(t)

	thief := numbered("ses_b", "5000", "b", 4, 2)
	thief.info = `,"agent":"a-new-role"`
	thief.messages[1].id = "ses_a_m0"
	thief.messages[3].id = "ses_a_m2"
	h.importFile(t, h.admin, project, thief).refused(t, 409, "messages_session_immutable", "/messages/1/info/id", "/messages/3/info/id")

	parts := numbered("ses_b", "5000", "b", 4, 3)
	parts.messages[0].parts[2].id = "ses_a_m1_p0"
	parts.messages[2].parts[0].id = "ses_a_m0_p1"
	h.importFile(t, h.admin, project, parts).refused(t, 409, "parts_session_immutable", "/messages/0/parts/2/id", "/messages/2/parts/0/id")

	// Beyond the first batch.
	large := numbered("ses_b", "5000", "b", 450, 1)
	large.messages[433].id = "ses_a_m1"
	h.importFile(t, h.admin, project, large).refused(t, 409, "messages_session_immutable", "/messages/433/info/id")
	large = numbered("ses_b", "5000", "b", 450, 1)
	large.messages[433].parts[0].id = "ses_a_m1_p1"
	h.importFile(t, h.admin, project, large).refused(t, 409, "parts_session_immutable", "/messages/433/parts/0/id")
	h.unchanged(t, before, "stolen messages")

	// A part that moves between messages of its own session.
	moved := numbered("ses_a", "6000", "a", 3, 2)
	moved.messages[0].parts, moved.messages[1].parts = moved.messages[0].parts[:1], append(moved.messages[1].parts, moved.messages[0].parts[1])
	h.importFile(t, h.admin, project, moved).refused(t, 409, "parts_session_immutable", "/messages/1/parts/2/id")
	h.unchanged(t, before, "a part that moved")

	// The twin, which differs in the ids.
	h.imports(t, project, numbered("ses_b", "5000", "b", 4, 2), "created")
	// Another organisation may have the same ids.
	stranger := h.newCaller(t, uuid.Nil, "*")
	theirs := h.as(t, stranger, "POST", "/v1/projects", `{"slug":"p","name":"p"}`).wants(t, 201).id(t)
	h.importFile(t, stranger, theirs, thief).wants(t, 201)
}

// counter counts what is read of an endless text.
type counter struct {
	read   atomic.Int64
	prefix string
	text   []byte
	limit  int64
}

func (c *counter) Read(p []byte) (int, error) {
	at := c.read.Load()
	if at >= c.limit {
		return 0, io.EOF
	}
	n := 0
	if at < int64(len(c.prefix)) {
		n = copy(p, c.prefix[at:])
	} else {
		for n < len(p) {
			n += copy(p[n:], c.text[int(at+int64(n))%len(c.text):])
		}
	}
	c.read.Add(int64(n))
	return n, nil
}

// Nonsense is refused as soon as it is seen: what follows is not read, let alone kept.
func TestImportRefusesNonsenseEarly(t *testing.T) {
	t.Parallel()
	const size, enough = 300 << 20, 24 << 20 // what lies in the buffers of two sockets is not read, but sent
	h := newHub(t)
	project := h.newProject(t, "p")
	before := h.tables(t)
	good := export{id: "ses_n", messages: []exportMessage{{id: "m"}}}.String()
	for name, c := range map[string]*counter{
		"nonsense":                {text: []byte("nonsense ")},
		"zeros":                   {text: []byte("\x00\x00\x00")},
		"brackets":                {text: []byte("[")},
		"objects in each other":   {text: []byte(`{"info":`)},
		"nonsense behind a file":  {prefix: good, text: []byte("nonsense ")},
		"nonsense among messages": {prefix: strings.TrimSuffix(good, "]}"), text: []byte(`,{"info":{}}`)},
		"the same message":        {prefix: strings.TrimSuffix(good, "]}"), text: []byte(`,{"info":{"id":"m","sessionID":"ses_n","role":"user","time":{"created":1}},"parts":[]}`)},
		"many digits":             {prefix: `{"x":`, text: []byte("123456789")},
	} {
		c.limit = size
		a := h.importFile(t, h.admin, project, struct{ io.Reader }{c})
		if a.status != 400 || a.problem(t).Code != "invalid_json" {
			t.Errorf("%s: status %d: %.300s", name, a.status, a.body)
		}
		if c.read.Load() > enough {
			t.Errorf("%s: %d MB were read", name, c.read.Load()>>20)
		}
	}
	// The same for those who may not import: nothing is read at all, but what the sockets hold.
	reader := h.newCaller(t, h.admin.org, "sessions:read")
	for _, c := range []caller{{}, {key: unknownKey()}, reader} {
		text := &counter{prefix: good[:len(good)-1], text: []byte(" "), limit: size}
		if a := h.importFile(t, c, project, struct{ io.Reader }{text}); a.status != 401 && a.status != 403 || text.read.Load() > enough {
			t.Errorf("status %d after %d MB", a.status, text.read.Load()>>20)
		}
	}
	h.exec(t, "DELETE FROM api_keys WHERE account_id = $1", reader.account)
	h.exec(t, "DELETE FROM organization_members WHERE account_id = $1", reader.account)
	h.exec(t, "DELETE FROM accounts WHERE id = $1", reader.account)
	h.unchanged(t, before, "nonsense")
}

func TestImportOverTheLimit(t *testing.T) {
	t.Parallel()
	const limit = 3 << 20
	dir := t.TempDir()
	h := newHub(t, func(c *api.Config, _ *pgxpool.Config) { c.MaxImport, c.MaxBody, c.TempDir = limit, 1000, dir })
	project := h.newProject(t, "p")
	file := func(size int) string {
		e := numbered("ses_l", "5000", "a", 2, 1).String()
		return strings.Replace(e, `"a 1 0"`, `"`+strings.Repeat("x", size-len(e)+5)+`"`, 1)
	}
	before := h.tables(t)
	for _, size := range []int{limit + 1, limit + 1000} {
		text := file(size)
		if len(text) != size {
			t.Fatal(len(text))
		}
		h.importFile(t, h.admin, project, text).refused(t, 413, "body_too_large", "")
		h.importFile(t, h.admin, project, struct{ io.Reader }{strings.NewReader(text)}).refused(t, 413, "body_too_large", "") // chunked
	}
	h.unchanged(t, before, "imports over the limit")
	h.importFile(t, h.admin, project, struct{ io.Reader }{strings.NewReader(file(limit))}).wants(t, 201)
	// Nothing is left where files are put aside.
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// Where a file cannot be put aside, a small one does not need to.
func TestImportWithoutRoomForFiles(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure, func(c *api.Config, _ *pgxpool.Config) { c.TempDir = "/nowhere/at/all" })
	project := h.newProject(t, "p")
	large := numbered("ses_large", "5000", strings.Repeat("x", 3000), 400, 1)
	before := h.tables(t)
	a := h.importFile(t, h.admin, project, large)
	a.refused(t, 503, "storage_unavailable")
	if strings.Contains(string(a.body), "nowhere") {
		t.Errorf("the answer tells where: %s", a.body)
	}
	log.waitFor(t, "/nowhere/at/all")
	h.unchanged(t, before, "an import without room")
	h.imports(t, project, export{id: "ses_small"}, "created")
}

// Two different exports of one session, by eight at once: whichever comes first, the later one stands at the end, whole.
func TestImportOfTwoVersionsAtOnce(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	for round := range 5 {
		id := fmt.Sprintf("ses_%d", round)
		old, later := numbered(id, "5000", "old", 30, 2), numbered(id, "6000", "later", 25, 3)
		later.messages = later.messages[5:]
		same := numbered(id, "6000", "same time", 22, 1)
		files := []export{old, later}
		if round%2 == 1 {
			files = []export{same, later}
		}
		counts := h.race(t, 8, func(i int) int { return h.importFile(t, h.admin, project, files[i%2]).status })
		if counts[201] != 1 || counts[200] != 7 {
			t.Fatalf("%v", counts)
		}
		var list struct{ Items []sessionBody }
		h.do(t, "GET", "/v1/sessions?sourceId="+id, nil).into(t, &list)
		got := h.export(t, list.Items[0].ID)
		if d := jsonequal.Diff([]byte(later.String()), got); d != nil && (round%2 == 0 || jsonequal.Diff([]byte(same.String()), got) != nil) {
			t.Errorf("round %d: neither one nor the other: %v", round, d)
		}
	}
}

// The answer to an import that changed nothing, because somebody else was faster with the same file, says "updated": it takes
// the session's updated_at for its own doing.
func TestBUG_ImportOfTheSameFileAtOnceIsUnchanged(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	for round := range 10 {
		e := numbered(fmt.Sprintf("ses_%d", round), "5000", "a", 20, 5)
		var mu sync.Mutex
		results := map[string]int{}
		h.race(t, 8, func(int) int {
			a := h.importFile(t, h.admin, project, e)
			var in imported
			a.into(t, &in)
			mu.Lock()
			defer mu.Unlock()
			results[in.Result]++
			return a.status
		})
		if results["created"] != 1 || results["unchanged"] != 7 {
			t.Fatalf("round %d: %v", round, results)
		}
	}
}

// A client that gives up in the middle leaves nothing, neither in the database nor among the files, and nothing hangs.
func TestImportThatIsCancelled(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	dir := t.TempDir()
	h := newHub(t, log.configure, func(c *api.Config, p *pgxpool.Config) { c.TempDir, p.MaxConns = dir, 3 })
	project := h.newProject(t, "p")
	file := numbered("ses_cancel", "5000", strings.Repeat("x", 200), 2000, 3).String()
	before := h.tables(t)
	send := func(body io.Reader, cancelled func(cancel func())) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, "POST", h.url+"/v1/sessions/import?projectId="+project, body)
		if err != nil {
			t.Fatal(err)
		}
		id := uuid.NewString()
		r.Header.Set("Authorization", "Bearer "+h.admin.key)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("X-Request-Id", id)
		go cancelled(cancel)
		if response, err := http.DefaultClient.Do(r); err == nil {
			response.Body.Close()
			t.Errorf("there was an answer: %s", response.Status)
		}
		log.waitFor(t, `"msg":"request","requestId":"`+id+`"`)
	}
	for _, part := range []int{10, len(file) / 3, len(file) - 1} {
		pipe, w := io.Pipe()
		send(pipe, func(cancel func()) {
			_, _ = io.WriteString(w, file[:part])
			time.Sleep(20 * time.Millisecond)
			cancel()
			w.Close() // the client waits for its reader
		})
	}
	h.unchanged(t, before, "imports that broke off")

	// All of the body was sent; the rows are being written, behind somebody who holds the project.
	locked := h.begin(t)
	locked("SELECT FROM projects WHERE id = $1 FOR UPDATE", project)
	send(strings.NewReader(file), func(cancel func()) {
		for h.waiting() == 0 {
			time.Sleep(5 * time.Millisecond)
		}
		cancel()
	})
	locked("ROLLBACK")
	h.unchanged(t, before, "an import that was cancelled in its transaction")
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	// All connections still serve.
	if counts := h.race(t, 6, func(int) int { return h.do(t, "GET", "/v1/projects", nil).status }); counts[200] != 6 {
		t.Errorf("%v", counts)
	}
	h.imports(t, project, file, "created")
}

// Numbers as they were spelled, unknown members everywhere, strings that no text column holds, members in any order.
func TestX07_ImportKeepsEveryValue(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	digits := strings.Repeat("9", 1000)
	for i, file := range []string{
		export{id: "s"}.String(),
		export{id: "s", messages: []exportMessage{{id: "m"}}}.String(),
		export{id: "s", title: `""`}.String(),
		export{id: "s", title: `"a \u0000 \ud83d \ude00 \u0010 b"`}.String(),
		export{id: "s", title: `"` + strings.Repeat(`\u0000`, 10001) + `"`}.String(),
		export{id: "s", title: `"` + strings.Repeat(`é`, 30000) + `"`}.String(),
		export{id: "s", times: `{"created":1.0e3,"updated":2000.5,"archived":null,"compacting":-0.0}`}.String(),
		export{id: "s", times: `{"created":0,"updated":0}`}.String(),
		export{id: "s", times: `{"created":253402300799999,"updated":253402300799999.9,"archived":253402300799999}`}.String(),
		export{id: "s", times: `{"created":9000,"updated":10,"archived":0}`}.String(),
		export{id: "s", info: `,"cost":0.0,"tokens":{"input":1E5,"output":-0,"n":[1e-400,1e400,` + digits + `,0.` + digits[1:] + `]}`}.String(),
		export{id: "s", info: `,"parentID":null,"agent":null,"revert":{"messageID":null}`}.String(),
		export{id: "s", info: `,"":{"":""},"\u0000":"\u0000","\ud83d":1,"\ud83e":2,"\u0010":3,"a/b~c":4,"__proto__":5`}.String(),
		export{id: "s", more: `,"todos":[1.50,-0.0,"\u0000\ud83d"],"children":[{"a":{"b":1e2}}],"\u0000":null`}.String(),
		export{id: "s", messages: []exportMessage{{id: "m", more: `,"x":[1.50,"\u0000"],"":{}`, parts: []exportPart{{id: "p", kind: "a kind of its own 😀", more: `,"n":-0.0,"o":{"\ud83d":"\u0010"}`}}}}}.String(),
		export{id: "s", messages: []exportMessage{{id: "b", created: "5"}, {id: "a", created: "5"}, {id: "c", created: "4"}, {id: "d", created: "0"}}}.String(),
		`{"messages":[{"parts":[{"type":"t","messageID":"m","sessionID":"s","id":"p"}],"info":{"time":{"x":1,"created":1.5},"role":"system","sessionID":"s","id":"m"}}],"x":1,"info":{"time":{"updated":2,"created":1},"version":"","title":"","id":"s"}}`,
		" \n\t{ \"info\" : { \"id\" : \"s\" , \"title\" : \"\" , \"version\" : \"\" , \"time\" : { \"created\" : 1 , \"updated\" : 1 } } , \"messages\" : [ ] } \r\n ",
		`{"\u0069nfo":{"\u0069d":"\u0073","title":"","version":"\u0000","time":{"created":1,"updated":1}},"messages":[]}`,
		export{id: "s", info: `,"deep":` + strings.Repeat("[", 254) + strings.Repeat("]", 254)}.String(),
		export{id: strings.Repeat("é", 100), messages: []exportMessage{{id: strings.Repeat("m", 200), parts: []exportPart{{id: strings.Repeat("p", 200), kind: strings.Repeat("k", 200)}}}}}.String(),
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			in := h.imports(t, project, file, "created")
			h.wantExport(t, in.ID, []byte(file))
			before := h.tables(t)
			h.imports(t, project, file, "unchanged")
			h.unchanged(t, before, "importing again")
			h.do(t, "DELETE", "/v1/sessions/"+in.ID, nil).wants(t, 204)
		})
	}
}

// A large export: 3,000 messages and 12,000 parts.
func TestImportOfALargeExport(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	file := []byte(numbered("ses_large", "5000", "large "+strings.Repeat("x", 300), 3000, 4).String())
	start := time.Now()
	in := h.imports(t, project, file, "created")
	if in.Messages.Created != 3000 || in.Parts.Created != 12000 {
		t.Errorf("%+v", in)
	}
	created := time.Since(start)
	before := h.tables(t)
	start = time.Now()
	if again := h.imports(t, project, file, "unchanged"); again.Messages.Unchanged != 3000 || again.Parts.Unchanged != 12000 {
		t.Errorf("again: %+v", again)
	}
	unchanged := time.Since(start)
	h.unchanged(t, before, "importing again")
	start = time.Now()
	h.wantExport(t, in.ID, file)
	t.Logf("%d MB: imported in %s, again in %s, exported in %s", len(file)>>20, created, unchanged, time.Since(start))
	if limit := 60 * time.Second; created > limit || unchanged > limit {
		t.Errorf("it took longer than %s", limit)
	}
	later := []byte(numbered("ses_large", "6000", "later", 2900, 3).String())
	if in := h.imports(t, project, later, "updated"); in.Messages != (importCounts{0, 2900, 100, 0}) || in.Parts != (importCounts{0, 8700, 3300, 0}) {
		t.Errorf("later: %+v", in)
	}
	h.wantExport(t, in.ID, later)
}

// An export that is read while others write: one moment of the session, each message with all its parts.
func TestExportIsOneMoment(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	session := h.newSession(t)
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				h.do(t, "POST", "/v1/sessions/"+session+"/messages", `{"messages":[{"role":"user","parts":[{"type":"a"},{"type":"b"}]},{"role":"assistant","parts":[{"type":"c"},{"type":"d"}]}]}`).wants(t, 201)
			}
		})
	}
	var last outline
	for range 40 {
		o := outlineOf(t, h.export(t, session))
		if len(o.Messages)%2 != 0 || o.parts() != 2*len(o.Messages) || len(o.Messages) < len(last.Messages) {
			t.Errorf("%d messages with %d parts, before %d", len(o.Messages), o.parts(), len(last.Messages))
		}
		for i, m := range last.Messages {
			if o.Messages[i].Info.ID != m.Info.ID {
				t.Errorf("message %d is another one now", i)
			}
		}
		last = o
	}
	close(stop)
	group.Wait()
	if len(last.Messages) == 0 {
		t.Error("nothing was written meanwhile")
	}
}

// Random exports, of unknown members, nested values and texts of all kinds: in and out, and in again.
func TestX07_RandomExportsComeBack(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	for seed := range uint64(120) {
		g := &generator{rand.New(rand.NewPCG(seed, 20261123))}
		id := fmt.Sprintf("ses_%d", seed)
		file := []byte(g.export(id, 2000))
		a := h.importFile(t, h.admin, project, file)
		if a.status != 201 {
			t.Fatalf("seed %d: status %d: %s\n%s", seed, a.status, a.body, file)
		}
		if d := jsonequal.Diff(file, h.export(t, a.id(t))); d != nil {
			t.Fatalf("seed %d: %v\n%s", seed, d, file)
		}
		if again := h.importFile(t, h.admin, project, file).wants(t, 200); !strings.Contains(string(again.body), `"unchanged"`) {
			t.Errorf("seed %d: again: %s\n%s", seed, again.body, file)
		}
		// Another random export of the same session, later: that one, exactly.
		later := []byte(g.export(id, 3000))
		h.importFile(t, h.admin, project, later).wants(t, 200)
		if d := jsonequal.Diff(later, h.export(t, a.id(t))); d != nil {
			t.Fatalf("seed %d, later: %v\n%s\n%s", seed, d, file, later)
		}
	}
}

// generator makes random JSON.
type generator struct{ *rand.Rand }

func (g *generator) pick(list ...string) string { return list[g.IntN(len(list))] }

func (g *generator) text() string {
	var b strings.Builder
	b.WriteByte('"')
	for range g.IntN(6) {
		b.WriteString(g.pick("a", "Z", " ", "é", "😀", "\u2028", `\u2029`, `\"`, `\\`, `\/`, `\n`, `\b`, `\u0000`, `\u0001`, `\u0010`, `\u00100`, `\u0010ud83d`, `\ud83d`, `\ude00`, `\uD83D\uDE00`,
			`\ude00\ud83d`, `\ud83d\ud83d\ude00`, "<", "&", "'", "%", "$1", `\u007f`, "\u007f", "\u0085", "שלום", "e\u0301", `\uffff`))
	}
	b.WriteByte('"')
	return b.String()
}

func (g *generator) number() string {
	return g.pick("0", "-0", "0.0", "-0.0", "1", "-1", "1.0", "1.50", "1e2", "1E2", "1e+2", "1e-2", "100", "0.1e1", "-12.340e-05", "12345678901234567890", "0.1234567890123456789012345678901234567890",
		"1e400", "1e-400", "3.141592653589793", "9007199254740993", "0e0", "-0e-0", fmt.Sprint(g.Int64()))
}

func (g *generator) value(depth int) string {
	switch n := g.IntN(9); {
	case n < 2 && depth > 0:
		return "{" + strings.TrimPrefix(g.members(depth-1, ""), ",") + "}"
	case n == 2 && depth > 0:
		var elements []string
		for range g.IntN(4) {
			elements = append(elements, g.value(depth-1))
		}
		return "[" + strings.Join(elements, g.pick(",", " , ", ",\n")) + "]"
	case n < 5:
		return g.number()
	case n == 5:
		return g.pick("true", "false", "null")
	default:
		return g.text()
	}
}

// members returns random members, each with a comma before it; the names differ, also from the known ones.
func (g *generator) members(depth int, prefix string) string {
	var b strings.Builder
	for i := range g.IntN(5) {
		name := g.text()
		fmt.Fprintf(&b, `,"%s%d%s:%s`, prefix, i, name[1:], g.value(depth))
	}
	return b.String()
}

func (g *generator) maybe(text string) string {
	if g.IntN(2) == 0 {
		return ""
	}
	return text
}

func (g *generator) export(id string, updated int) string {
	e := export{
		id: id, title: g.text(), more: g.members(3, "x"),
		times: fmt.Sprintf(`{"created":%s,"updated":%d%s%s}`, g.pick("1000", "1e3", "1000.0", "999.9"), updated, g.maybe(`,"archived":`+g.pick("null", "1", "1795441960748", "2.5")), g.members(1, "t")),
		info: g.maybe(`,"agent":`+g.pick("null", `""`, `"build"`, `"é😀"`)) + g.maybe(`,"parentID":`+g.pick("null", `"ses_nowhere"`)) + g.maybe(`,"slug":`+g.value(1)) +
			g.maybe(`,"cost":`+g.number()) + g.members(4, "i"),
	}
	for m := range g.IntN(6) {
		message := exportMessage{
			id: fmt.Sprintf("%s_m%d", id, m), role: g.pick("user", "assistant", "system"), created: g.pick("1000", "1000", "1001", "999", "1e3", "0"),
			info: g.maybe(`,"agent":`+g.pick("null", `""`, `"build"`, `"plan"`)) + g.members(3, "i"), more: g.maybe(g.members(2, "x")),
		}
		for p := range g.IntN(5) {
			message.parts = append(message.parts, exportPart{id: fmt.Sprintf("%s_m%d_p%d", id, m, p), kind: g.pick("text", "tool", "x y", "é"), more: g.members(4, "p")})
		}
		g.Shuffle(len(message.parts), func(i, j int) { message.parts[i], message.parts[j] = message.parts[j], message.parts[i] })
		e.messages = append(e.messages, message)
	}
	g.Shuffle(len(e.messages), func(i, j int) { e.messages[i], e.messages[j] = e.messages[j], e.messages[i] })
	return e.String()
}

// The messages of an import sort by their time and then by their place in the file, whatever their ids are (C02).
func TestC02_ImportedMessagesSortByTimeAndPlace(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	e := export{id: "ses_o"}
	for i, created := range []string{"1795441960748", "1795441960748", "1795441960747", "5", "1795441960748", "253402300799999", "1795441960749"} {
		e.messages = append(e.messages, exportMessage{id: fmt.Sprintf("msg_%d", (i*3)%7), created: created, parts: []exportPart{{id: fmt.Sprintf("z%d", i)}, {id: fmt.Sprintf("a%d", i)}, {id: fmt.Sprintf("m%d", i)}}})
	}
	in := h.imports(t, project, e, "created")
	h.wantExport(t, in.ID, []byte(e.String()))
	sorted := slices.Clone(e.messages)
	slices.SortStableFunc(sorted, func(a, b exportMessage) int {
		if len(a.created) != len(b.created) {
			return len(a.created) - len(b.created)
		}
		return strings.Compare(a.created, b.created)
	})
	listed := h.do(t, "GET", "/v1/sessions/"+in.ID+"/messages", nil).messages(t)
	var got, want, gotParts, wantParts []string
	for i, m := range listed {
		got, want = append(got, value(m.SourceID)), append(want, sorted[i].id)
		for j, p := range m.Parts {
			gotParts, wantParts = append(gotParts, value(p.SourceID)), append(wantParts, sorted[i].parts[j].id)
		}
	}
	if !slices.Equal(got, want) || !slices.Equal(gotParts, wantParts) {
		t.Errorf("%v, want %v\n%v, want %v", got, want, gotParts, wantParts)
	}
	// The ids depend on the file alone: in another organisation they are the same.
	other := h.newCaller(t, uuid.Nil, "*")
	theirs := h.as(t, other, "POST", "/v1/projects", `{"slug":"p","name":"p"}`).wants(t, 201).id(t)
	if id := h.importFile(t, other, theirs, e).wants(t, 201).id(t); id != in.ID {
		t.Errorf("the session is %s there, here %s", id, in.ID)
	}
	if !regexp.MustCompile(`^[0-9a-f-]{14}7`).MatchString(in.ID) {
		t.Errorf("%s is no UUIDv7", in.ID)
	}
	// What is written here comes behind all of them, also behind the one from the year 9999.
	last := h.do(t, "POST", "/v1/sessions/"+in.ID+"/messages", `{"messages":[{"role":"user"}]}`).wants(t, 201).messages(t)[0].ID
	if all := h.pages(t, h.admin, "/v1/sessions/"+in.ID+"/messages", "id", 200); all[len(all)-1] != last {
		t.Errorf("the message that was appended is not the last: %v", all)
	}
}
