package api_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

type sessionBody struct {
	ID, ProjectID, Slug, Title, Version, RunState string
	ParentID, ForkOfID, AccountID, RoleName       *string
	Source, SourceID, ArchivedAt                  *string
	Data, Metadata                                json.RawMessage
	Revision                                      int
	CreatedAt, UpdatedAt, LastActivityAt          string
}

func (a answer) session(t testing.TB) (s sessionBody) {
	t.Helper()
	a.into(t, &s)
	return s
}

func value(p *string) string {
	if p == nil {
		return "(null)"
	}
	return *p
}

func TestSessionFromCreationToDeletion(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	h.exec(t, "INSERT INTO roles (org_id, name) VALUES ($1, 'build')", h.admin.org)

	// The least: everything else has a default.
	a := h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`).wants(t, 201)
	parent := a.session(t)
	if parent.ProjectID != project || parent.ParentID != nil || value(parent.AccountID) != h.admin.account.String() || parent.RoleName != nil || parent.Title != "" ||
		parent.Version != "1" || parent.RunState != "idle" || parent.ArchivedAt != nil || parent.Source != nil || parent.SourceID != nil ||
		string(parent.Data) != "{}" || string(parent.Metadata) != "{}" || parent.Revision != 1 {
		t.Errorf("defaults: %s", a.body)
	}
	if !regexp.MustCompile(`^[a-z]+-[a-z]+-[0-9a-f]{6}$`).MatchString(parent.Slug) {
		t.Errorf("S09: the slug is %q", parent.Slug)
	}
	if a.header.Get("Location") != "/v1/sessions/"+parent.ID || a.header.Get("ETag") != `"1"` {
		t.Errorf("Location %q, ETag %q", a.header.Get("Location"), a.header.Get("ETag"))
	}

	a = h.do(t, "POST", "/v1/sessions", `{"projectId":"`+strings.ToUpper(project)+`","parentId":"`+parent.ID+`","roleName":"build","slug":"my-session","title":"T 😀",
		"version":"1","data":{"n":1e2},"metadata":{"_x":{"y":1}}}`).wants(t, 201)
	child := a.session(t)
	path := "/v1/sessions/" + child.ID
	if child.ProjectID != project || value(child.ParentID) != parent.ID || value(child.RoleName) != "build" || child.Slug != "my-session" || child.Title != "T 😀" || child.ID <= parent.ID {
		t.Errorf("created: %s", a.body)
	}
	wantJSON(t, "data", child.Data, []byte(`{"n":1e2}`))
	got := h.do(t, "GET", path, nil).wants(t, 200)
	wantJSON(t, "got", got.body, a.body)
	if got.header.Get("ETag") != `"1"` {
		t.Errorf("ETag %q", got.header.Get("ETag"))
	}

	changed := h.do(t, "PATCH", path, `{"title":"U","slug":"other","runState":"running","roleName":null,"data":{"m":-0.0},"metadata":{"_x":{"y":null},"_z":{}}}`).wants(t, 200)
	c := changed.session(t)
	if c.Title != "U" || c.Slug != "other" || c.RunState != "running" || c.RoleName != nil || value(c.ParentID) != parent.ID || c.Revision != 2 || changed.header.Get("ETag") != `"2"` {
		t.Errorf("changed: %s", changed.body)
	}
	wantJSON(t, "data", c.Data, []byte(`{"n":1e2,"m":-0.0}`))
	wantJSON(t, "metadata", c.Metadata, []byte(`{"_x":{},"_z":{}}`))
	wantJSON(t, "got", h.do(t, "GET", path, nil).body, changed.body)

	// Children outlive their parent.
	h.do(t, "DELETE", "/v1/sessions/"+parent.ID, nil).wants(t, 204)
	orphan := h.do(t, "GET", path, nil).wants(t, 200).session(t)
	if orphan.ParentID != nil || orphan.Revision != 3 {
		t.Errorf("the orphan: %+v", orphan)
	}
	h.do(t, "DELETE", path, nil).wants(t, 204)
	for _, method := range []string{"GET", "DELETE"} {
		h.do(t, method, path, nil).refused(t, 404, "session_not_found")
	}
	h.do(t, "PATCH", path, `{"title":"x"}`).refused(t, 404, "session_not_found")
	h.do(t, "PATCH", path, `{"data":{"x":1}}`).refused(t, 404, "session_not_found")
	h.do(t, "PATCH", path, `{"data":{"x":1}}`, "If-Match", `"3"`).refused(t, 404, "session_not_found")
	h.do(t, "GET", path+"/export", nil).refused(t, 404, "session_not_found")
	h.do(t, "GET", path+"/messages", nil).refused(t, 404, "session_not_found")
	h.do(t, "POST", path+"/messages", `{"messages":[{"role":"user"}]}`).refused(t, 404, "session_not_found")
	h.do(t, "GET", path+"/messages/"+project, nil).refused(t, 404, "message_not_found")
}

func TestSessionBodies(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	h.exec(t, "INSERT INTO roles (org_id, name) VALUES ($1, 'build'), ($1, 'rôle 😀')", h.admin.org)
	taken := h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`","slug":"taken"}`).wants(t, 201).id(t)
	body := func(more string) string { return `{"projectId":"` + project + `"` + more + `}` }
	long := func(n int, character string) string { return `"` + strings.Repeat(character, n) + `"` }
	nobody := `"` + uuid.NewString() + `"`
	for _, w := range []struct {
		name, good, bad, pointer string
		status                   int
		code                     string
	}{
		{"slug taken", `,"slug":"taken-not"`, `,"slug":"taken"`, "/slug", 409, "sessions_slug_key"},
		{"slug", `,"slug":"a-1"`, `,"slug":"a_1"`, "/slug", 0, ""},
		{"slug empty", ``, `,"slug":""`, "/slug", 0, ""},
		{"slug null", ``, `,"slug":null`, "/slug", 0, ""},
		{"slug length", `,"slug":` + long(100, "a"), `,"slug":` + long(101, "a"), "/slug", 0, ""},
		{"title length", `,"title":` + long(10000, "😀"), `,"title":` + long(10001, "😀"), "/title", 0, ""},
		{"title null", `,"title":""`, `,"title":null`, "/title", 0, ""},
		{"title number", `,"title":"5"`, `,"title":5`, "/title", 0, ""},
		{"title NUL", `,"title":"\u0001"`, `,"title":"\u0000"`, "/title", 0, ""},
		{"title lone surrogate", `,"title":"\ud83d\ude00"`, `,"title":"\ud83d\ud83d\ude00"`, "/title", 0, ""},
		{"parent nowhere", `,"parentId":"` + taken + `"`, `,"parentId":` + nobody, "/parentId", 422, "sessions_parent_id_fkey"},
		{"parent no id", `,"parentId":"` + taken + `"`, `,"parentId":"taken"`, "/parentId", 0, ""},
		{"parent null", ``, `,"parentId":null`, "/parentId", 0, ""},
		{"C05 role nowhere", `,"roleName":"build"`, `,"roleName":"Build"`, "/roleName", 422, "sessions_role_name_fkey"},
		{"role not ASCII", `,"roleName":"rôle 😀"`, `,"roleName":"role 😀"`, "/roleName", 422, "sessions_role_name_fkey"},
		{"role empty", `,"roleName":"build"`, `,"roleName":""`, "/roleName", 0, ""},
		{"role null", ``, `,"roleName":null`, "/roleName", 0, ""},
		{"role length", `,"roleName":"build"`, `,"roleName":` + long(201, "r"), "/roleName", 0, ""},
		{"role NUL", `,"roleName":"build"`, `,"roleName":"build\u0000"`, "/roleName", 0, ""},
		{"W10 version nowhere", `,"version":"1"`, `,"version":"2"`, "/version", 422, "sessions_version_fkey"},
		{"version empty", `,"version":"1"`, `,"version":""`, "/version", 422, "sessions_version_fkey"},
		{"version number", `,"version":"1"`, `,"version":1`, "/version", 0, ""},
		{"version length", `,"version":"1"`, `,"version":` + long(101, "1"), "/version", 0, ""},
		{"data null", `,"data":{}`, `,"data":null`, "/data", 0, ""},
		{"data array", `,"data":{}`, `,"data":[{}]`, "/data", 0, ""},
		{"metadata of no subsystem", `,"metadata":{"_a":{}}`, `,"metadata":{"a":{}}`, "/metadata", 422, "sessions_metadata_check"},
		{"metadata of a number", `,"metadata":{"_a":{}}`, `,"metadata":{"_a":1}`, "/metadata/_a", 0, ""},
		{"run state at creation", ``, `,"runState":"idle"`, "/runState", 0, ""},
		{"account", ``, `,"accountId":"` + h.admin.account.String() + `"`, "/accountId", 0, ""},
		{"source", ``, `,"source":"opencode","sourceId":"ses_1"`, "/source /sourceId", 0, ""},
	} {
		twins{w.name, body(w.good), body(w.bad), w.code, w.status, strings.Fields(w.pointer)}.
			run(t, 201, func(body string) answer { return h.do(t, "POST", "/v1/sessions", body) })
	}
	for _, w := range []twins{
		{"project nowhere", body(""), `{"projectId":` + nobody + `}`, "sessions_project_id_fkey", 422, at("/projectId")},
		{"project no id", body(""), `{"projectId":"p"}`, "", 0, at("/projectId")},
		{"project null", body(""), `{"projectId":null}`, "", 0, at("/projectId")},
		{"project missing", body(""), `{"title":"t"}`, "", 0, at("/projectId")},
		{"everything at once", body(`,"parentId":"` + taken + `","slug":"every-thing","title":"","version":"1","data":{},"metadata":{}`),
			`{"projectId":1,"parentId":2,"roleName":3,"slug":4,"title":5,"version":6,"data":7,"metadata":8,"more":9}`, "", 0,
			at("/data", "/metadata", "/more", "/parentId", "/projectId", "/roleName", "/slug", "/title", "/version")},
	} {
		w.run(t, 201, func(body string) answer { return h.do(t, "POST", "/v1/sessions", body) })
	}

	path := "/v1/sessions/" + h.do(t, "POST", "/v1/sessions", body("")).wants(t, 201).id(t)
	for _, w := range []twins{
		{"patch slug taken", `{"slug":"patched"}`, `{"slug":"taken"}`, "sessions_slug_key", 409, at("/slug")},
		{"patch slug", `{"slug":"pat-ched"}`, `{"slug":"pat--ched"}`, "", 0, at("/slug")},
		{"patch slug null", `{}`, `{"slug":null}`, "", 0, at("/slug")},
		{"patch title null", `{"title":""}`, `{"title":null}`, "", 0, at("/title")},
		{"patch title length", `{"title":` + long(10000, "x") + `}`, `{"title":` + long(10001, "x") + `}`, "", 0, at("/title")},
		{"patch title NUL", `{"title":"x"}`, `{"title":"x\u0000"}`, "", 0, at("/title")},
		{"patch title of invalid UTF-8", `{"title":"é"}`, "{\"title\":\"\xe9\"}", "invalid_json", 0, at("/title")},
		{"C05 patch role nowhere", `{"roleName":"build"}`, `{"roleName":"builder"}`, "sessions_role_name_fkey", 422, at("/roleName")},
		{"patch role empty", `{"roleName":null}`, `{"roleName":""}`, "", 0, at("/roleName")},
		{"patch role number", `{"roleName":null}`, `{"roleName":0}`, "", 0, at("/roleName")},
		{"patch run state", `{"runState":"waiting"}`, `{"runState":"Waiting"}`, "", 0, at("/runState")},
		{"patch run state null", `{"runState":"waiting"}`, `{"runState":null}`, "", 0, at("/runState")},
		{"patch data", `{"data":{}}`, `{"data":[]}`, "", 0, at("/data")},
		{"patch data null", `{"data":{"a":null}}`, `{"data":null}`, "", 0, at("/data")},
		{"patch data deep", `{"data":{"a":` + strings.Repeat("[", 255) + strings.Repeat("]", 255) + `}}`, `{"data":{"a":` + strings.Repeat("[", 256) + strings.Repeat("]", 256) + `}}`,
			"invalid_json", 0, at("/data/a" + strings.Repeat("/0", 255))},
		{"patch metadata of no subsystem", `{"metadata":{"_a":{"b":1}}}`, `{"metadata":{"a":{"b":1}}}`, "sessions_metadata_check", 422, at("/metadata")},
		{"patch metadata of a number", `{"metadata":{"_a":{}}}`, `{"metadata":{"_a":1}}`, "sessions_metadata_check", 422, at("/metadata")},
		{"patch of what stays", `{}`, `{"projectId":"` + project + `","parentId":null,"version":"1","accountId":null,"archivedAt":null}`, "", 0,
			at("/accountId", "/archivedAt", "/parentId", "/projectId", "/version")},
	} {
		before := h.tables(t)
		w.run(t, 0, func(body string) answer { return h.do(t, "PATCH", path, body) })
		h.unchanged(t, before, w.name)
		w.run(t, 200, func(body string) answer { return h.do(t, "PATCH", path, body) })
	}

	// A refused patch changes nothing of what it also asked for.
	before := h.tables(t)
	h.do(t, "PATCH", path, `{"title":"half","roleName":"nobody"}`).refused(t, 422, "sessions_role_name_fkey", "/roleName")
	h.do(t, "PATCH", path, `{"title":"half","data":{"half":true},"roleName":"nobody"}`).refused(t, 422, "sessions_role_name_fkey", "/roleName")
	h.do(t, "PATCH", path, `{"title":"half","data":{"half":true},"metadata":{"x":1}}`).refused(t, 422, "sessions_metadata_check", "/metadata")
	h.unchanged(t, before, "refused patches")
}

// null clears the role, absent leaves it, and a deleted or renamed role is followed (C05).
func TestC05_SessionRole(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.exec(t, "INSERT INTO roles (org_id, name) VALUES ($1, 'build'), ($1, 'plan')", h.admin.org)
	project := h.newProject(t, "p")
	create := func() string {
		return "/v1/sessions/" + h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`","roleName":"build"}`).wants(t, 201).id(t)
	}
	role := func(a answer) string { t.Helper(); return value(a.wants(t, 200).session(t).RoleName) }
	for _, more := range []string{"", `,"data":{"x":1}`} { // one statement, and the transaction that merges data
		path := create()
		for _, step := range []struct{ body, want string }{
			{`{"title":"t"` + more + `}`, "build"},
			{`{"roleName":"plan"` + more + `}`, "plan"},
			{`{"slug":"s-` + uuid.NewString() + `"` + more + `}`, "plan"},
			{`{"roleName":null` + more + `}`, "(null)"},
			{`{"roleName":null` + more + `}`, "(null)"},
			{`{"roleName":"build"` + more + `}`, "build"},
		} {
			if got := role(h.do(t, "PATCH", path, step.body)); got != step.want {
				t.Errorf("%s: the role is %s, want %s", step.body, got, step.want)
			}
		}
	}
	path := create()
	h.exec(t, "UPDATE roles SET name = 'builder' WHERE name = 'build'")
	if got := role(h.do(t, "GET", path, nil)); got != "builder" {
		t.Errorf("after renaming: %s", got)
	}
	h.exec(t, "DELETE FROM roles WHERE name = 'builder'")
	if got := role(h.do(t, "GET", path, nil)); got != "(null)" {
		t.Errorf("after deleting: %s", got)
	}
}

// data is merged on its text: numbers keep their spelling, also those that the patch does not name.
func TestX07_SessionPatchMerges(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	path := "/v1/sessions/" + h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`","title":"t","data":`+unpatched+`,"metadata":`+unpatched+`}`).wants(t, 201).id(t)
	for _, step := range patches {
		for _, field := range []string{"data", "metadata"} {
			a := h.do(t, "PATCH", path, `{"`+field+`":`+step.patch+`}`).wants(t, 200).session(t)
			got := a.Data
			if field == "metadata" {
				got = a.Metadata
			}
			wantJSON(t, field+" after "+step.patch, got, []byte(step.want))
			if a.Title != "t" {
				t.Fatalf("%s changed the title", step.patch)
			}
		}
	}

	path = "/v1/sessions/" + h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`","data":{"a":1e2,"b":{"c":-0.0,"d":1.50}}}`).wants(t, 201).id(t)
	revision := 1
	for _, step := range []struct {
		patch, want string
		revision    bool
	}{
		{`{}`, `{"a":1e2,"b":{"c":-0.0,"d":1.50}}`, false},
		{`{"b":{}}`, `{"a":1e2,"b":{"c":-0.0,"d":1.50}}`, false},
		{`{"a":1e2}`, `{"a":1e2,"b":{"c":-0.0,"d":1.50}}`, false},
		{`{"a":1E2}`, `{"a":1E2,"b":{"c":-0.0,"d":1.50}}`, true}, // another spelling is another value
		{`{"a":100}`, `{"a":100,"b":{"c":-0.0,"d":1.50}}`, true},
		{`{"b":{"c":null,"e":[1e2,-0,{"f":null}]}}`, `{"a":100,"b":{"d":1.50,"e":[1e2,-0,{"f":null}]}}`, true},
		{`{"b":{"e":null}}`, `{"a":100,"b":{"d":1.50}}`, true}, // now jsonb alone holds it again
		{`{"b":null,"a":null}`, `{}`, true},
	} {
		a := h.do(t, "PATCH", path, `{"data":`+step.patch+`}`).wants(t, 200)
		wantJSON(t, "after "+step.patch, a.session(t).Data, []byte(step.want))
		wantJSON(t, "stored after "+step.patch, h.do(t, "GET", path, nil).session(t).Data, []byte(step.want))
		if step.revision {
			revision++
		}
		if got := a.session(t).Revision; got != revision {
			t.Errorf("%s: revision %d, want %d", step.patch, got, revision)
		}
	}
}

// jsonb takes 1.50 and 1.5 for equal; what is answered changes, so revision, ETag and updated_at do.
func TestW22_AnotherSpellingIsARevision(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for _, path := range []string{"/v1/sessions/" + h.newSession(t), "/v1/projects/" + h.newProject(t, "p")} {
		h.do(t, "PATCH", path, `{"data":{"n":1.50}}`).wants(t, 200)
		before := h.do(t, "GET", path, nil).session(t)
		after := h.do(t, "PATCH", path, `{"data":{"n":1.5}}`).wants(t, 200).session(t)
		if string(before.Data) == string(after.Data) {
			t.Fatalf("still %s", after.Data)
		}
		if after.Revision != before.Revision+1 || after.UpdatedAt <= before.UpdatedAt {
			t.Errorf("%s: %s became %s: revision %d, before %d", path, before.Data, after.Data, after.Revision, before.Revision)
		}
	}
}

// merged is RFC 7396's own pseudo-code, on values that encoding/json can hold.
func merged(target, patch any) any {
	changes, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	members, ok := target.(map[string]any)
	if !ok {
		members = map[string]any{}
	}
	for name, change := range changes {
		if change == nil {
			delete(members, name)
		} else {
			members[name] = merged(members[name], change)
		}
	}
	return members
}

// Random patches, on all three ways that merge: a project's data and metadata in SQL, a session's data in Go.
func TestRandomMergePatches(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	session := "/v1/sessions/" + h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`).wants(t, 201).id(t)
	r := rand.New(rand.NewPCG(7396, 1))
	var random func(depth int) any
	random = func(depth int) any {
		switch n := r.IntN(10); {
		case n < 5 && depth > 0:
			object := map[string]any{}
			for range r.IntN(4) {
				object["_"+string(rune('a'+r.IntN(4)))] = random(depth - 1)
			}
			return object
		case n == 5 && depth > 0:
			return []any{random(depth - 1), nil, random(depth - 1)}
		case n == 6 || n == 7:
			return nil
		case n == 8:
			return []any{"text", "", "\x00", "\x10", "<é😀>", true, false}[r.IntN(7)]
		default:
			return r.IntN(3)
		}
	}
	object := func(depth int) map[string]any {
		for {
			if o, ok := random(depth).(map[string]any); ok {
				return o
			}
		}
	}
	for _, at := range []struct{ path, field string }{{"/v1/projects/" + project, "data"}, {"/v1/projects/" + project, "metadata"}, {session, "data"}, {session, "metadata"}} {
		want, changed := map[string]any{}, 0
		for range 120 {
			patch := object(4)
			if at.field == "metadata" { // which holds objects
				for name, value := range patch {
					if _, ok := value.(map[string]any); !ok {
						patch[name] = nil
					}
				}
			}
			text, _ := json.Marshal(patch)
			before, _ := json.Marshal(want)
			want = merged(want, patch).(map[string]any)
			after, _ := json.Marshal(want)
			if string(before) != string(after) {
				changed++
			}
			var got map[string]json.RawMessage
			h.do(t, "PATCH", at.path, `{"`+at.field+`":`+string(text)+`}`).wants(t, 200).into(t, &got)
			wantJSON(t, fmt.Sprintf("%s of %s\nbefore %s\npatch  %s\n", at.field, at.path, before, text), got[at.field], after)
		}
		if changed < 50 {
			t.Errorf("only %d patches changed anything", changed)
		}
	}
}

// The run states: every step that the table allows, and no other; the same state again is no step (X06, X10).
func TestX10_RunStates(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	states := []string{"idle", "running", "waiting", "errored", "ended"}
	way := map[string][]string{"idle": {}, "running": {"running"}, "waiting": {"waiting"}, "errored": {"errored"}, "ended": {"ended"}} // from a new session
	allowed := map[string]bool{}
	for _, step := range strings.Fields(`idle-running idle-waiting idle-errored idle-ended running-idle running-waiting running-errored running-ended
		waiting-idle waiting-running waiting-errored waiting-ended errored-idle errored-running errored-ended`) {
		allowed[step] = true
	}
	for _, from := range states {
		for _, to := range states {
			for _, more := range []string{"", `,"data":{"x":1}`, `,"title":"t"`} {
				path := "/v1/sessions/" + h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`).wants(t, 201).id(t)
				for _, state := range way[from] {
					h.do(t, "PATCH", path, `{"runState":"`+state+`"}`).wants(t, 200)
				}
				before := h.do(t, "GET", path, nil)
				a := h.do(t, "PATCH", path, `{"runState":"`+to+`"`+more+`}`)
				switch {
				case from == to && more == "":
					wantJSON(t, from+" again", a.wants(t, 200).body, before.body)
				case from == to || allowed[from+"-"+to]:
					if s := a.wants(t, 200).session(t); s.RunState != to || s.Revision != before.session(t).Revision+1 {
						t.Errorf("%s to %s: %s", from, to, a.body)
					}
				default:
					a.refused(t, 409, "sessions_run_state_transition", "/runState")
					wantJSON(t, "after a refused step", h.do(t, "GET", path, nil).body, before.body)
				}
			}
		}
	}
}

// Each filter alone and all together, against a list that the test keeps itself.
func TestListSessionsFilters(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	other := h.newCaller(t, h.admin.org, "*")
	h.exec(t, "INSERT INTO roles (org_id, name) VALUES ($1, 'build'), ($1, 'plan & <more>')", h.admin.org)
	projects := []string{h.newProject(t, "a"), h.newProject(t, "b")}
	r := rand.New(rand.NewPCG(1, 2))
	var all []sessionBody // newest first
	for i := range 40 {
		body := map[string]any{"projectId": projects[r.IntN(2)]}
		if len(all) > 0 && r.IntN(2) == 0 {
			body["parentId"] = all[r.IntN(min(len(all), 3))].ID
		}
		if n := r.IntN(3); n > 0 {
			body["roleName"] = []string{"build", "plan & <more>"}[n-1]
		}
		who := []caller{h.admin, other}[r.IntN(2)]
		var id string
		if i%8 == 7 {
			a := h.importFile(t, who, body["projectId"].(string), export{id: fmt.Sprintf("ses_%d", i), times: `{"created":1795441960748,"updated":1795441960867}`}).wants(t, 201)
			id = a.id(t)
		} else {
			id = h.as(t, who, "POST", "/v1/sessions", body).wants(t, 201).id(t)
		}
		if r.IntN(3) == 0 {
			h.do(t, "PATCH", "/v1/sessions/"+id, `{"runState":"running"}`).wants(t, 200)
		}
		if r.IntN(3) == 0 {
			h.exec(t, "UPDATE sessions SET archived_at = now() WHERE id = $1", id)
		}
		all = append(all, h.do(t, "GET", "/v1/sessions/"+id, nil).wants(t, 200).session(t))
		slices.SortFunc(all, func(a, b sessionBody) int { return strings.Compare(b.ID, a.ID) })
	}
	filters := []struct {
		name   string
		values []string
		of     func(sessionBody) string
	}{
		{"projectId", projects, func(s sessionBody) string { return s.ProjectID }},
		{"parentId", []string{all[len(all)-1].ID, all[len(all)-2].ID, projects[0]}, func(s sessionBody) string { return value(s.ParentID) }},
		{"roleName", []string{"build", "plan & <more>", "nothing"}, func(s sessionBody) string { return value(s.RoleName) }},
		{"accountId", []string{h.admin.account.String(), other.account.String(), h.admin.org.String()}, func(s sessionBody) string { return value(s.AccountID) }},
		{"runState", []string{"idle", "running", "ended"}, func(s sessionBody) string { return s.RunState }},
		{"archived", []string{"true", "false"}, func(s sessionBody) string { return fmt.Sprint(s.ArchivedAt != nil) }},
		{"sourceId", []string{"ses_7", "ses_15", "ses_"}, func(s sessionBody) string { return value(s.SourceID) }},
	}
	found := 0
	check := func(chosen map[string]string) {
		t.Helper()
		var want []string
		query := url.Values{}
		for name, v := range chosen {
			query.Set(name, v)
		}
		for _, s := range all {
			fits := true
			for _, f := range filters {
				if v, ok := chosen[f.name]; ok && f.of(s) != v {
					fits = false
				}
			}
			if fits {
				want = append(want, s.ID)
			}
		}
		path := "/v1/sessions?" + query.Encode()
		if got := h.pages(t, h.admin, path, "id", 7); !slices.Equal(got, want) {
			t.Errorf("%v: %d sessions, want %d\n%v\n%v", chosen, len(got), len(want), got, want)
		}
		if len(chosen) > 1 && len(want) > 0 {
			found++
		}
	}
	check(nil)
	for _, f := range filters {
		for _, v := range f.values {
			check(map[string]string{f.name: v})
		}
	}
	for range 150 {
		chosen := map[string]string{}
		for _, i := range r.Perm(len(filters))[:2+r.IntN(3)] {
			chosen[filters[i].name] = filters[i].values[r.IntN(len(filters[i].values))]
		}
		check(chosen)
	}
	if found < 20 {
		t.Errorf("only %d combinations found anything", found)
	}
}

// The pages join up whatever their size, newest first.
func TestListSessionsPages(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	var want []string
	for range 11 {
		want = append([]string{h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`).wants(t, 201).id(t)}, want...)
	}
	for limit := 1; limit <= 12; limit++ {
		if got := h.pages(t, h.admin, "/v1/sessions", "id", limit); !slices.Equal(got, want) {
			t.Errorf("in pages of %d: %v, want %v", limit, got, want)
		}
	}
}
