package api_test

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/internal/api"
)

// newTree makes a session with two children, of which the first has a child; each with one message. Their ids by name.
func (h *hub) newTree(t testing.TB) map[string]string {
	t.Helper()
	project := h.newProject(t, "t-"+uuid.NewString())
	tree := map[string]string{"project": project}
	for _, s := range [][2]string{{"root", ""}, {"a", "root"}, {"b", "root"}, {"a1", "a"}} {
		parent := ""
		if s[1] != "" {
			parent = `,"parentId":"` + tree[s[1]] + `"`
		}
		tree[s[0]] = h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`","title":"`+s[0]+`"`+parent+`}`).wants(t, 201).id(t)
		h.do(t, "POST", "/v1/sessions/"+tree[s[0]]+"/messages", `{"messages":[{"role":"assistant","data":{"cost":1.5,"tokens":{"input":10,"output":2,"reasoning":1,"cache":{"read":5,"write":4}},"modelID":"m","providerID":"p"}}]}`).wants(t, 201)
	}
	return tree
}

func TestArchiveSession(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	tree := h.newTree(t)
	archived := func() string {
		var names []string
		for _, name := range []string{"root", "a", "b", "a1"} {
			if h.do(t, "GET", "/v1/sessions/"+tree[name], nil).session(t).ArchivedAt != nil {
				names = append(names, name)
			}
		}
		return strings.Join(names, " ")
	}
	a := h.do(t, "POST", "/v1/sessions/"+tree["a"]+"/archive", nil).wants(t, 200)
	if a.session(t).ArchivedAt == nil || a.header.Get("ETag") != `"2"` || archived() != "a" {
		t.Errorf("%s: %s", archived(), a.body)
	}
	first := *a.session(t).ArchivedAt
	h.do(t, "POST", "/v1/sessions/"+tree["root"]+"/archive?descendants=true", nil).wants(t, 200)
	if archived() != "root a b a1" {
		t.Error(archived())
	}
	if again := h.do(t, "GET", "/v1/sessions/"+tree["a"], nil).session(t); *again.ArchivedAt != first || again.Revision != 2 {
		t.Errorf("archived anew: %+v", again)
	}
	h.do(t, "POST", "/v1/sessions/"+tree["a"]+"/unarchive?descendants=true", nil).wants(t, 200)
	if archived() != "root b" {
		t.Error(archived())
	}
	h.do(t, "POST", "/v1/sessions/"+tree["root"]+"/unarchive", nil).wants(t, 200)
	if archived() != "b" {
		t.Error(archived())
	}
	h.do(t, "POST", "/v1/sessions/"+tree["root"]+"/archive?descendants=perhaps", nil).refused(t, 400, "invalid_request", "query:descendants")
	h.do(t, "POST", "/v1/sessions/"+uuid.NewString()+"/archive", nil).refused(t, 404, "session_not_found")
}

func TestListChildSessions(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	tree := h.newTree(t)
	list := func(query string) string {
		var p struct {
			Items []struct {
				Depth   int
				Session struct{ ID, Title, ParentID string }
			}
			NextCursor string
		}
		h.do(t, "GET", "/v1/sessions/"+tree["root"]+"/children"+query, nil).wants(t, 200).into(t, &p)
		var all []string
		for _, item := range p.Items {
			all = append(all, fmt.Sprint(item.Session.Title, item.Depth))
		}
		return strings.Join(append(all, p.NextCursor), " ")
	}
	if got := list(""); got != "a1 b1 " {
		t.Error(got)
	}
	if got := list("?descendants=true"); got != "a1 b1 a12 " { // a and b at depth 1, a1 at depth 2
		t.Error(got)
	}
	first := list("?descendants=true&limit=2")
	names, cursor := first[:6], first[6:]
	if names != "a1 b1 " || cursor == "" {
		t.Error(first)
	}
	if got := list("?descendants=true&limit=2&cursor=" + cursor); got != "a12 " {
		t.Error(got)
	}
	h.do(t, "GET", "/v1/sessions/"+tree["root"]+"/children?cursor="+cursor, nil).refused(t, 400, "invalid_cursor", "query:cursor")
	h.do(t, "GET", "/v1/sessions/"+tree["a"]+"/children?descendants=true&cursor="+cursor, nil).refused(t, 400, "invalid_cursor", "query:cursor")
	h.do(t, "GET", "/v1/sessions/"+uuid.NewString()+"/children", nil).refused(t, 404, "session_not_found")
}

type usage struct {
	Messages int
	Cost     float64
	Tokens   struct{ Input, Output, Reasoning, CacheRead, CacheWrite int }
}

type usageBody struct {
	Sessions int
	Total    usage
	ByModel  []struct {
		ProviderID, ModelID string
		Usage               usage
	}
	ByDay []struct {
		Day   string
		Usage usage
	}
}

func (h *hub) usage(t testing.TB, session, query string) (u usageBody) {
	t.Helper()
	h.do(t, "GET", "/v1/sessions/"+session+"/usage"+query, nil).wants(t, 200).into(t, &u)
	return u
}

func TestGetSessionUsage(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	tree := h.newTree(t)
	if u := h.usage(t, tree["root"], ""); u.Sessions != 1 || u.Total.Messages != 1 || u.Total.Cost != 1.5 || fmt.Sprint(u.Total.Tokens) != "{10 2 1 5 4}" {
		t.Errorf("%+v", u)
	}
	h.do(t, "POST", "/v1/sessions/"+tree["b"]+"/messages", `{"messages":[
		{"role":"assistant","data":{"cost":7e0,"tokens":{"input":1},"modelID":"dear\u0000","providerID":"q"}},
		{"role":"assistant","data":{"cost":-1,"tokens":{"input":"1","output":1e30,"reasoning":null,"cache":[]},"modelID":5}},
		{"role":"assistant","data":{"tokens":7,"cost":{},"model":{"providerID":"p","modelID":"m"}}},
		{"role":"user","data":{"cost":1000,"tokens":{"input":1000}}}]}`).wants(t, 201)
	u := h.usage(t, tree["root"], "?descendants=true")
	if u.Sessions != 4 || u.Total.Messages != 7 || u.Total.Cost != 13 || fmt.Sprint(u.Total.Tokens) != "{41 8 4 20 16}" || len(u.ByDay) != 1 || u.ByDay[0].Usage != u.Total {
		t.Errorf("%+v", u)
	}
	var models []string
	for _, m := range u.ByModel {
		models = append(models, fmt.Sprintf("%s/%s %v %v", m.ProviderID, m.ModelID, m.Usage.Messages, m.Usage.Cost))
	}
	if got := strings.Join(models, ", "); got != "q/dear\ufffd 1 7, p/m 5 6, / 1 0" {
		t.Error(got)
	}
	h.do(t, "GET", "/v1/sessions/"+uuid.NewString()+"/usage", nil).refused(t, 404, "session_not_found")
	if u := h.usage(t, h.newSession(t), ""); u.Sessions != 1 || u.Total != (usage{}) || u.ByModel == nil || u.ByDay == nil {
		t.Errorf("%+v", u)
	}

	// Of a real session, against its file; the days are those of the original.
	file := realExports(t)["04-subagents-parent.json"]
	in := h.imports(t, tree["project"], file, "created")
	u = h.usage(t, in.ID, "")
	var original struct {
		Messages []struct {
			Info struct {
				Role string
				Cost float64
				Time struct{ Created int64 }
			}
		}
	}
	answer{body: file}.into(t, &original)
	cost, messages := 0.0, 0
	for _, m := range original.Messages {
		if m.Info.Role == "assistant" {
			cost += m.Info.Cost
			messages++
		}
	}
	if u.Total.Messages != messages || fmt.Sprintf("%.9f", u.Total.Cost) != fmt.Sprintf("%.9f", cost) || cost == 0 || u.ByDay[0].Day != time2day(original.Messages[0].Info.Time.Created) {
		t.Errorf("%+v, want %d messages for %v", u, messages, cost)
	}
}

// Messages of a session by their texts, roles and parts.
func (h *hub) outline(t testing.TB, session string) []string {
	t.Helper()
	var list struct {
		Items []struct {
			ID, Role string
			Parts    []struct {
				ID, Type string
				Data     struct{ Text string }
			}
		}
		NextCursor string
	}
	h.do(t, "GET", "/v1/sessions/"+session+"/messages?limit=200", nil).wants(t, 200).into(t, &list)
	var all []string
	for _, m := range list.Items {
		line := m.Role
		for _, p := range m.Parts {
			line += " " + p.Type + ":" + p.Data.Text
		}
		all = append(all, line)
	}
	return all
}

func TestForkSession(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	h.do(t, "POST", "/v1/roles", `{"name":"builder"}`).wants(t, 201)
	session := h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`","title":"Original","roleName":"builder","data":{"time":{"created":1},"n":1.50e-3}}`).wants(t, 201).id(t)
	var appended struct{ Items []struct{ ID string } }
	h.do(t, "POST", "/v1/sessions/"+session+"/messages", `{"messages":[
		{"role":"user","parts":[{"type":"text","data":{"text":"one"}},{"type":"text","data":{"text":"two","n":-0.0}}]},
		{"role":"assistant","data":{"cost":1},"parts":[{"type":"text","data":{"text":"three"}}]},
		{"role":"user","parts":[{"type":"text","data":{"text":"four"}}]}]}`).wants(t, 201).into(t, &appended)
	all := []string{"user text:one text:two", "assistant text:three", "user text:four"}
	fork := func(body string) (string, sessionBody) {
		t.Helper()
		a := h.do(t, "POST", "/v1/sessions/"+session+"/fork", body).wants(t, 201)
		s := a.session(t)
		if a.header.Get("Location") != "/v1/sessions/"+s.ID {
			t.Error(a.header)
		}
		return s.ID, s
	}
	id, s := fork(`{}`)
	if got := h.outline(t, id); !slices.Equal(got, all) || id == session {
		t.Errorf("%q", got)
	}
	if value(s.ForkOfID) != session || s.Title != "Original (fork)" || value(s.RoleName) != "builder" || s.ParentID != nil || s.RunState != "idle" || s.ProjectID != project {
		t.Errorf("%+v", s)
	}
	wantJSON(t, "the fork's data", s.Data, []byte(`{"n":1.50e-3}`))
	if id, _ := fork(`{"messageId":"` + appended.Items[1].ID + `","title":"T"}`); !slices.Equal(h.outline(t, id), all[:2]) {
		t.Errorf("%q", h.outline(t, id))
	}
	if id, _ := fork(`{"messageId":"` + appended.Items[1].ID + `","before":true}`); !slices.Equal(h.outline(t, id), all[:1]) {
		t.Errorf("%q", h.outline(t, id))
	}
	if u := h.usage(t, id, ""); u.Total.Messages != 0 {
		t.Errorf("the original's usage is the fork's as well: %+v", u)
	}
	// They live apart, and the original may go.
	h.do(t, "POST", "/v1/sessions/"+id+"/messages", `{"messages":[{"role":"user","parts":[{"type":"text","data":{"text":"five"}}]}]}`).wants(t, 201)
	if got := h.outline(t, session); !slices.Equal(got, all) {
		t.Errorf("%q", got)
	}
	h.do(t, "DELETE", "/v1/sessions/"+session, nil).wants(t, 204)
	if got := h.outline(t, id); !slices.Equal(got, append(all, "user text:five")) {
		t.Errorf("%q", got)
	}
	if s := h.do(t, "GET", "/v1/sessions/"+id, nil).session(t); s.ForkOfID != nil {
		t.Errorf("forked from what is gone: %s", *s.ForkOfID)
	}

	before := h.tables(t)
	path := "/v1/sessions/" + id + "/fork"
	h.do(t, "POST", path, `{"messageId":"`+appended.Items[0].ID+`"}`).refused(t, 422, "fork_message_not_found", "/messageId") // of another session
	h.do(t, "POST", path, `{"before":true}`).refused(t, 400, "invalid_request", "/before")
	h.do(t, "POST", path, `{"slug":"`+h.do(t, "GET", "/v1/sessions/"+id, nil).session(t).Slug+`"}`).refused(t, 409, "sessions_slug_key", "/slug")
	h.unchanged(t, before, "refused forks")
}

// Every real session, forked, has the same messages in the same order, and goes out as an export that comes in again.
func TestForksOfRealSessions(t *testing.T) {
	t.Parallel()
	h, other := newHub(t), newHub(t)
	project, elsewhere := h.newProject(t, "p"), other.newProject(t, "p")
	for name, file := range realExports(t) {
		var in imported
		h.importFile(t, h.admin, project, file).into(t, &in) // two are of one session
		fork := h.do(t, "POST", "/v1/sessions/"+in.ID+"/fork", `{}`).wants(t, 201).id(t)
		if a, b := h.outline(t, in.ID), h.outline(t, fork); !slices.Equal(a, b) || len(a) == 0 {
			t.Errorf("%s: %d messages, of %d", name, len(b), len(a))
		}
		// What a message says that it answers is in the fork.
		var e struct {
			Messages []struct{ Info struct{ ID, ParentID string } }
		}
		answer{body: h.export(t, fork)}.into(t, &e)
		ids := map[string]bool{}
		for _, m := range e.Messages {
			ids[m.Info.ID] = true
			if m.Info.ParentID != "" && !ids[m.Info.ParentID] {
				t.Errorf("%s: %s answers %s, which is not there", name, m.Info.ID, m.Info.ParentID)
			}
		}
		other.imports(t, elsewhere, h.export(t, fork), "created")
	}
}

func TestListPartsAndDeleteMessage(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	session := h.newSession(t)
	path := "/v1/sessions/" + session
	var appended struct{ Items []struct{ ID string } }
	h.do(t, "POST", path+"/messages", `{"messages":[
		{"role":"assistant","parts":[{"type":"tool","data":{"callID":"c","tool":"bash","state":{"status":"pending","input":{},"raw":""},"n":1.10}},{"type":"text","data":{"text":""}},{"type":"tool","data":{"callID":"c","tool":"bash","state":{"status":"pending","input":{},"raw":""}}}]},
		{"role":"assistant","parts":[{"type":"tool","data":{"callID":"c","tool":"bash","state":{"status":"pending","input":{},"raw":""}}},{"type":"x/y"}]}]}`).wants(t, 201).into(t, &appended)
	tools := h.page(t, h.admin, path+"/parts?type=tool", "id").values
	if len(tools) != 3 || !slices.IsSorted(tools) {
		t.Errorf("%v", tools)
	}
	if got := h.pages(t, h.admin, path+"/parts?type=tool", "id", 1); !slices.Equal(got, tools) {
		t.Errorf("%v, want %v", got, tools)
	}
	if body := string(h.do(t, "GET", path+"/parts?type=tool&limit=1", nil).body); !strings.Contains(strings.ReplaceAll(body, " ", ""), `"n":1.10`) {
		t.Errorf("the data is not as it was given: %s", body)
	}
	if got := h.page(t, h.admin, path+"/parts?type=x/y", "type").values; len(got) != 1 {
		t.Errorf("%v", got)
	}
	if got := h.page(t, h.admin, path+"/parts?type=none", "id").values; len(got) != 0 {
		t.Errorf("%v", got)
	}
	if got := h.page(t, h.admin, path+"/parts", "id").values; len(got) != 5 {
		t.Errorf("of all types: %v", got)
	}
	h.do(t, "GET", "/v1/sessions/"+uuid.NewString()+"/parts?type=tool", nil).refused(t, 404, "session_not_found")

	message := path + "/messages/" + appended.Items[0].ID
	h.do(t, "DELETE", message, nil, "If-Match", `"7"`).refused(t, 412, "precondition_failed")
	h.do(t, "DELETE", message, nil, "If-Match", `"1"`).wants(t, 204)
	h.do(t, "DELETE", message, nil).refused(t, 404, "message_not_found")
	if got := h.page(t, h.admin, path+"/parts?type=tool", "id").values; !slices.Equal(got, tools[2:]) {
		t.Errorf("%v are left", got)
	}
	h.do(t, "DELETE", "/v1/sessions/"+h.newSession(t)+"/messages/"+appended.Items[1].ID, nil).refused(t, 404, "message_not_found")
}

// Deleting ---------------------------------------------------------------------------------------------------------------

func TestDeleteSessionWithItsChildrenAsChosen(t *testing.T) {
	t.Parallel()
	for _, long := range []bool{false, true} {
		t.Run(fmt.Sprintf("long=%v", long), func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			tree := h.newTree(t)
			if long {
				h.manyParts(t, tree["root"], 1001)
				h.manyParts(t, tree["a"], 1001)
			}
			h.do(t, "DELETE", "/v1/sessions/"+tree["root"], nil, "If-Match", `"7"`).refused(t, 412, "precondition_failed")
			h.do(t, "DELETE", "/v1/sessions/"+tree["root"], nil, "If-Match", `"1"`).wants(t, 204)
			h.do(t, "GET", "/v1/sessions/"+tree["root"], nil).refused(t, 404, "session_not_found")
			for _, name := range []string{"a", "b"} {
				if s := h.do(t, "GET", "/v1/sessions/"+tree[name], nil).wants(t, 200).session(t); s.ParentID != nil {
					t.Errorf("%s has the parent %s", name, *s.ParentID)
				}
			}
			if s := h.do(t, "GET", "/v1/sessions/"+tree["a1"], nil).wants(t, 200).session(t); value(s.ParentID) != tree["a"] {
				t.Error("a1 lost its parent")
			}
			h.do(t, "DELETE", "/v1/sessions/"+tree["a"]+"?descendants=true", nil).wants(t, 204)
			h.do(t, "GET", "/v1/sessions/"+tree["a1"], nil).refused(t, 404, "session_not_found")
			if got := h.page(t, h.admin, "/v1/sessions", "id").values; len(got) != 1 || got[0] != tree["b"] {
				t.Errorf("left are %v", got)
			}
			h.purge(t, 400)
			if n := h.count(t, "SELECT count(*) FROM sessions"); n != 1 {
				t.Errorf("%d sessions", n)
			}
			if n := h.count(t, "SELECT count(*) FROM messages"); n != 1 {
				t.Errorf("%d messages", n)
			}
			if n := h.count(t, "SELECT count(*) FROM parts"); n != 0 {
				t.Errorf("%d parts", n)
			}
		})
	}
}

func (h *hub) manyParts(t testing.TB, session string, parts int) {
	t.Helper()
	h.exec(t, `WITH m AS (INSERT INTO messages (org_id, session_id, role) SELECT org_id, id, 'user' FROM sessions WHERE id = $1 RETURNING org_id, session_id, id)
		INSERT INTO parts (org_id, session_id, message_id, type, data) SELECT m.org_id, m.session_id, m.id, 'text', '{"text": "many"}' FROM m, generate_series(1, $2::integer)`, session, parts)
}

// purge does what the worker does, and returns in how many steps.
func (h *hub) purge(t testing.TB, limit int) (steps int) {
	t.Helper()
	for h.count(t, "SELECT purge_deleted_sessions($1)", limit) > 0 {
		steps++
	}
	return steps
}

// A session of 100,000 parts is deleted at once: invisible, refused for writes, its names free again; nobody waits while its
// rows are taken away.
func TestDeletingAHugeSession(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	in := h.imports(t, project, numbered("ses_huge", "5000", "x", 2, 2), "created")
	path := "/v1/sessions/" + in.ID
	h.do(t, "PATCH", path, `{"slug":"huge"}`).wants(t, 200)
	h.manyParts(t, in.ID, 100_000)
	small := h.newSession(t)
	message := h.page(t, h.admin, path+"/messages?limit=1", "id").values[0]

	h.do(t, "DELETE", path, nil).wants(t, 204)
	if n := h.count(t, "SELECT count(*) FROM parts WHERE session_id = $1", in.ID); n < 100_000 {
		t.Errorf("only %d parts are left: the deletion did it all", n)
	}
	for _, request := range [][3]string{
		{"GET", "", ""}, {"PATCH", "", `{"title":"x"}`}, {"DELETE", "", ""}, {"GET", "/messages", ""}, {"POST", "/messages", `{"messages":[{"role":"user"}]}`},
		{"GET", "/export", ""}, {"GET", "/export/tree", ""}, {"GET", "/children", ""}, {"GET", "/usage", ""}, {"GET", "/parts?type=text", ""},
		{"POST", "/fork", `{}`}, {"POST", "/archive", ""},
	} {
		var body any
		if request[2] != "" {
			body = request[2]
		}
		h.do(t, request[0], path+request[1], body).refused(t, 404, "session_not_found")
	}
	h.do(t, "GET", path+"/messages/"+message, nil).refused(t, 404, "message_not_found")
	h.do(t, "DELETE", path+"/messages/"+message, nil).refused(t, 404, "message_not_found")
	h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`","parentId":"`+in.ID+`"}`).refused(t, 422, "sessions_parent_id_fkey", "/parentId")
	if got := h.page(t, h.admin, "/v1/sessions", "id").values; !slices.Equal(got, []string{small}) {
		t.Errorf("listed are %v", got)
	}
	h.do(t, "PATCH", "/v1/sessions/"+small, `{"slug":"huge"}`).wants(t, 200)

	// A purge is under way and stands still: nobody waits for it, and a second worker passes it by.
	run := h.begin(t)
	run("SELECT purge_deleted_sessions(1000)")
	if n := h.count(t, "SELECT purge_deleted_sessions(1000)"); n != 0 {
		t.Errorf("a second worker took %d rows", n)
	}
	h.do(t, "POST", "/v1/sessions/"+small+"/messages", `{"messages":[{"role":"user","parts":[{"type":"text","data":{"text":"x"}}]}]}`).wants(t, 201)
	h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`).wants(t, 201)
	run("COMMIT")
	if n := h.count(t, "SELECT count(*) FROM parts WHERE session_id = $1", in.ID); n != 99_004 {
		t.Errorf("%d parts are left after one batch", n)
	}

	// Imported again before the rest is gone.
	h.imports(t, project, numbered("ses_huge", "5000", "x", 2, 2), "created")
	if steps := h.purge(t, 1000); steps != 0 {
		t.Errorf("%d more steps", steps)
	}
	if n := h.count(t, "SELECT count(*) FROM parts"); n != 5 {
		t.Errorf("%d parts", n)
	}
}

// Who appends while the session is deleted either comes first, or finds it gone.
func TestDeletingWhileOthersWrite(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	session := h.newSession(t)
	h.manyParts(t, session, 1001)
	path := "/v1/sessions/" + session
	run := h.begin(t)
	run("SELECT FROM sessions WHERE id = $1 FOR NO KEY UPDATE", session)
	answers := make(chan answer, 2)
	go func() { answers <- h.do(t, "DELETE", path, nil) }()
	eventually(t, "the deletion waits", func() bool { return h.waiting() == 1 })
	go func() { answers <- h.do(t, "POST", path+"/messages", `{"messages":[{"role":"user"}]}`) }()
	eventually(t, "the writer waits as well", func() bool { return h.waiting() == 2 })
	run("COMMIT")
	got := []int{(<-answers).status, (<-answers).status}
	slices.Sort(got)
	if !slices.Equal(got, []int{201, 204}) && !slices.Equal(got, []int{204, 404}) {
		t.Errorf("%v", got)
	}
	h.do(t, "GET", path, nil).refused(t, 404, "session_not_found")
	h.purge(t, 100)
	if n := h.count(t, "SELECT (SELECT count(*) FROM messages) + (SELECT count(*) FROM parts) + (SELECT count(*) FROM sessions)"); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

// Trees ------------------------------------------------------------------------------------------------------------------

func unzipped(t testing.TB, archive []byte) (names []string, files map[string][]byte) {
	t.Helper()
	r, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		t.Fatal(err)
	}
	files = map[string][]byte{}
	for _, f := range r.File {
		text, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if files[f.Name], err = io.ReadAll(text); err != nil {
			t.Fatal(err)
		}
		names = append(names, f.Name)
	}
	return names, files
}

func (h *hub) importTree(t testing.TB, project, archive string) answer {
	t.Helper()
	return h.do(t, "POST", "/v1/sessions/import/tree?projectId="+project, archive, "Content-Type", "application/zip")
}

func TestExportAndImportTrees(t *testing.T) {
	t.Parallel()
	h, other := newHub(t), newHub(t)
	project, elsewhere := h.newProject(t, "p"), other.newProject(t, "p")
	real := realExports(t)
	tree := []string{"15-tree-root.json", "15-tree-depth-1.json", "15-tree-depth-2.json", "15-tree-depth-3.json"}
	root := ""
	for _, name := range slices.Backward(tree) { // the children first
		root = h.imports(t, project, real[name], "created").ID
	}
	a := h.do(t, "GET", "/v1/sessions/"+root+"/export/tree", nil).wants(t, 200)
	if a.header.Get("Content-Type") != "application/zip" || !strings.HasSuffix(a.header.Get("Content-Disposition"), `.zip"`) {
		t.Error(a.header)
	}
	names, files := unzipped(t, a.body)
	if len(names) != len(tree) {
		t.Fatalf("%v", names)
	}
	for i, name := range names { // parents before their children
		wantJSON(t, name, files[name], real[tree[i]])
	}

	var result struct {
		Items []struct {
			File    string
			Session imported
		}
	}
	other.importTree(t, elsewhere, string(a.body)).wants(t, 200).into(t, &result)
	for i, item := range result.Items {
		if item.File != names[i] || item.Session.Result != "created" {
			t.Errorf("%+v", item)
		}
	}
	again := other.do(t, "GET", "/v1/sessions/"+result.Items[0].Session.ID+"/export/tree", nil).wants(t, 200)
	_, copied := unzipped(t, again.body)
	for name, text := range files {
		wantJSON(t, name, copied[name], text)
	}

	// In any order, in folders, with other files beside them; and again, which changes nothing.
	third := newHub(t)
	project = third.newProject(t, "p")
	backwards := []string{"README.txt", "no session", "__MACOSX/._a.json", "x", "folder/", ""}
	for _, name := range slices.Backward(names) {
		backwards = append(backwards, "folder/"+name, string(files[name]))
	}
	third.importTree(t, project, zipped(backwards...)).wants(t, 200).into(t, &result)
	if len(result.Items) != len(tree) || result.Items[0].File != "folder/"+names[3] {
		t.Errorf("%+v", result)
	}
	if got := third.page(t, third.admin, "/v1/sessions/"+result.Items[3].Session.ID+"/children?descendants=true", "depth").values; !slices.Equal(got, []string{"1", "2", "3"}) {
		t.Errorf("the tree is %v", got)
	}
	before := third.tables(t)
	third.importTree(t, project, string(a.body)).wants(t, 200).into(t, &result)
	for _, item := range result.Items {
		if item.Session.Result != "unchanged" {
			t.Errorf("%+v", item)
		}
	}
	third.unchanged(t, before, "the same archive again")

	// A tree that was born here, in another hub.
	born := h.newTree(t)
	archive := string(h.do(t, "GET", "/v1/sessions/"+born["root"]+"/export/tree", nil).wants(t, 200).body)
	third.importTree(t, project, archive).wants(t, 200).into(t, &result)
	if got := third.page(t, third.admin, "/v1/sessions/"+result.Items[0].Session.ID+"/children?descendants=true", "depth").values; !slices.Equal(got, []string{"1", "1", "2"}) {
		t.Errorf("the tree is %v", got)
	}
	h.importTree(t, born["project"], archive).wants(t, 409)
	h.do(t, "GET", "/v1/sessions/"+uuid.NewString()+"/export/tree", nil).refused(t, 404, "session_not_found")
}

func TestRefusedTrees(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	good := export{id: "ses_good"}.String()
	before := h.tables(t)
	broken := []byte(zipped("a.json", good))
	broken[40] ^= 0xff // within the file's compressed bytes
	for name, c := range map[string]struct {
		archive, code string
		pointers      []string
	}{
		"nothing":             {"", "invalid_archive", at("")},
		"no archive":          {"{}", "invalid_archive", at("")},
		"cut short":           {zipped("a.json", good)[:50], "invalid_archive", at("")},
		"no session":          {zipped("a.txt", good), "invalid_archive", at("")},
		"a file that is none": {zipped("a.json", good, "d/b.json", "{}"), "invalid_json", nil},
		"broken":              {string(broken), "invalid_archive", at("/a.json")},
	} {
		a := h.importTree(t, project, c.archive)
		if c.pointers != nil {
			a.refused(t, 400, c.code, c.pointers...)
		} else if p := a.wants(t, 400).problem(t); p.Code != c.code || !strings.HasPrefix(p.Errors[0].Pointer, "/d~1b.json") {
			t.Errorf("%s: %s", name, a.body)
		}
	}
	h.unchanged(t, before, "refused archives")
	h.importTree(t, uuid.NewString(), zipped("a.json", good)).refused(t, 422, "sessions_project_id_fkey", "query:projectId")

	// All or nothing: the second file's message is another session's.
	h.imports(t, project, export{id: "ses_here", messages: []exportMessage{{id: "msg_here"}}}, "created")
	before = h.tables(t)
	h.importTree(t, project, zipped("a.json", good, "b.json", export{id: "ses_there", messages: []exportMessage{{id: "msg_here"}}}.String())).
		refused(t, 409, "messages_session_immutable", "/b.json/messages/0/info/id")
	h.unchanged(t, before, "a refused archive")
	h.importTree(t, project, zipped("a.json", good)).wants(t, 200)
}

// An archive may not be larger unpacked than an import may be.
func TestArchivesThatGrow(t *testing.T) {
	t.Parallel()
	h := newHub(t, func(c *api.Config, _ *pgxpool.Config) { c.MaxImport = 100_000 })
	project := h.newProject(t, "p")
	file := func(n int) string {
		return export{id: fmt.Sprintf("ses_%d", n), title: `"` + strings.Repeat("a", 9000) + `"`}.String()
	}
	var files []string
	for n := range 12 {
		files = append(files, fmt.Sprintf("%d.json", n), file(n))
	}
	h.importTree(t, project, zipped(files...)).refused(t, 413, "body_too_large", "")
	h.importTree(t, project, zipped(files[:10]...)).wants(t, 200)
}

func time2day(millis int64) string { return time.UnixMilli(millis).UTC().Format(time.DateOnly) }
