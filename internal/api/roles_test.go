package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
)

type roleBody struct {
	ID, Name, Description, Prompt, Origin string
	FileSet                               *string
	Data                                  map[string]any
	Revision                              int
}

func (h *hub) roleNamed(t testing.TB, name string) (r roleBody) {
	t.Helper()
	var list struct{ Items []roleBody }
	h.do(t, "GET", "/v1/roles?name="+strings.ReplaceAll(name, "/", "%2F"), nil).wants(t, 200).into(t, &list)
	if len(list.Items) != 1 {
		t.Fatalf("%d roles %s", len(list.Items), name)
	}
	return list.Items[0]
}

func TestRoles(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	a := h.do(t, "POST", "/v1/roles", `{"name":"review/security","description":"Looks for holes","prompt":"You review.\n","data":{"mode":"subagent","x":[1,null]},"metadata":{"_a":{"b":1}}}`).wants(t, 201)
	var r roleBody
	a.into(t, &r)
	if r.Origin != "api" || r.FileSet != nil || r.Prompt != "You review.\n" || r.Data["mode"] != "subagent" || a.header.Get("ETag") != `"1"` || a.header.Get("Location") != "/v1/roles/"+r.ID {
		t.Errorf("%+v %v", r, a.header)
	}
	path := a.header.Get("Location")
	wantJSON(t, "the role", h.do(t, "GET", path, nil).wants(t, 200).body, a.body)
	h.do(t, "POST", "/v1/roles", `{"name":"review/security"}`).refused(t, 409, "roles_name_key", "/name")
	h.do(t, "POST", "/v1/roles", `{"name":"other"}`).wants(t, 201)

	r.Data = nil
	// PATCH: absent is untouched, null is cleared.
	h.do(t, "PATCH", path, `{"prompt":"p","data":{"x":null,"y":2}}`, "If-Match", `"1"`).wants(t, 200).into(t, &r)
	if _, has := r.Data["x"]; has || r.Data["y"] != 2.0 || r.Data["mode"] != "subagent" || r.Description != "Looks for holes" || r.Revision != 2 {
		t.Errorf("%+v", r)
	}
	h.do(t, "PATCH", path, `{"prompt":"q"}`, "If-Match", `"1"`).refused(t, 412, "precondition_failed")
	h.do(t, "PATCH", path, `{"name":"other"}`).refused(t, 409, "roles_name_key", "/name")
	h.do(t, "POST", "/v1/roles", `{"name":"","prompt":"a\u0000"}`).refused(t, 400, "invalid_request", "/name")
	h.do(t, "POST", "/v1/roles", `{"name":"x","prompt":"a\u0000"}`).refused(t, 400, "invalid_request", "/prompt")
	h.do(t, "POST", "/v1/roles", `{"name":"`+strings.Repeat("ä", 101)+`"}`).refused(t, 422, "roles_name_length_check", "/name")
	h.do(t, "DELETE", path, nil, "If-Match", `"1"`).refused(t, 412, "precondition_failed")
	h.do(t, "DELETE", "/v1/roles/"+uuid.NewString(), nil).refused(t, 404, "role_not_found")

	if got := h.page(t, h.admin, "/v1/roles?origin=api", "name").values; strings.Join(got, " ") != "other review/security" {
		t.Errorf("in the order of names: %v", got)
	}
}

func TestC05_SessionsFollowTheirRole(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`","roleName":"builder"}`).refused(t, 422, "sessions_role_name_fkey", "/roleName")
	path := h.do(t, "POST", "/v1/roles", `{"name":"builder"}`).wants(t, 201).header.Get("Location")
	session := h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`","roleName":"builder"}`).wants(t, 201).header.Get("Location")
	h.do(t, "PATCH", path, `{"name":"maker"}`).wants(t, 200)
	if s := h.do(t, "GET", session, nil).session(t); value(s.RoleName) != "maker" {
		t.Errorf("the role is %s", value(s.RoleName))
	}
	h.do(t, "DELETE", path, nil).wants(t, 204)
	if s := h.do(t, "GET", session, nil).session(t); s.RoleName != nil {
		t.Errorf("the role is %s", *s.RoleName)
	}

	// What an import has named is nobody's definition yet: the first who defines it has it.
	h.imports(t, project, numbered("ses_a", "5000", "a", 1, 1), "created")
	if r := h.roleNamed(t, "build"); r.Origin != "import" {
		t.Errorf("%+v", r)
	}
	h.do(t, "POST", "/v1/roles", `{"name":"build","prompt":"You build."}`).wants(t, 201)
	h.do(t, "POST", "/v1/roles", `{"name":"build","prompt":"Mine."}`).refused(t, 409, "roles_name_key", "/name")
	if r := h.roleNamed(t, "build"); r.Origin != "api" || r.Prompt != "You build." || r.Revision != 2 {
		t.Errorf("%+v", r)
	}
	if n := len(h.page(t, h.admin, "/v1/sessions?roleName=build", "id").values); n != 1 {
		t.Errorf("%d sessions of the role", n)
	}
}

func TestC05_RolesAreSyncedFromFiles(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	const (
		build    = `{"path":".opencode/agents/build.md","content":"---\ndescription: Builds\nmode: primary\nx-own: {deep: [1, 2]}\n---\nYou build.\n"}`
		changed  = `{"path":".opencode/agents/build.md","content":"---\ndescription: Builds\nmode: primary\nx-own: {deep: [1, 2]}\n---\nYou build better.\n"}`
		security = `{"path":".opencode/agents/review/security.md","content":"You review."}`
	)
	sync := func(set string, files ...string) answer {
		return h.do(t, "POST", "/v1/roles/sync", `{"fileSet":"`+set+`","files":[`+strings.Join(files, ",")+`]}`)
	}
	wants := func(a answer, created, updated, unchanged, removed string) {
		t.Helper()
		wantJSON(t, "the diff", a.wants(t, 200).body, []byte(`{"created":[`+created+`],"updated":[`+updated+`],"unchanged":[`+unchanged+`],"removed":[`+removed+`]}`))
	}
	h.imports(t, project, numbered("ses_a", "5000", "a", 1, 1), "created") // names build
	h.do(t, "POST", "/v1/roles", `{"name":"review/security","prompt":"Old."}`).wants(t, 201)

	wants(sync("shop", build, security, `{"path":"agents/new.md","content":""}`), `"new"`, `"build","review/security"`, ``, ``)
	r := h.roleNamed(t, "build")
	if r.Origin != "file" || value(r.FileSet) != "shop" || r.Prompt != "You build." || r.Description != "Builds" || r.Data["mode"] != "primary" || r.Data["x-own"] == nil {
		t.Errorf("%+v", r)
	}
	wants(sync("shop", security, build, `{"path":"agents/new.md","content":""}`), ``, ``, `"build","new","review/security"`, ``)
	if again := h.roleNamed(t, "build"); again.Revision != r.Revision {
		t.Errorf("what is equal was written: %+v", again)
	}
	wants(sync("shop", changed, security), ``, `"build"`, `"review/security"`, `"new"`)
	if n := len(h.page(t, h.admin, "/v1/sessions?roleName=build", "id").values); n != 1 {
		t.Errorf("%d sessions of the role", n)
	}

	// Another set is another set's business.
	wants(sync("other", `{"path":"agents/theirs.md","content":""}`), `"theirs"`, ``, ``, ``)
	h.do(t, "POST", "/v1/roles", `{"name":"by-hand"}`).wants(t, 201)
	before := h.tables(t)
	sync("other", `{"path":"agents/theirs.md","content":"changed"}`, build, `{"path":"agents/more.md","content":""}`).refused(t, 409, "role_in_other_set", "/files/1/path")

	// Nothing is half-applied.
	sync("shop", build, `{"path":"agents/a.md","content":"---\na: [\n---\n"}`, `{"path":"agents/b.txt","content":""}`, `{"path":"agent/build.md","content":""}`,
		`{"path":"agents/c.md","content":"---\ndescription: \"a\\0\"\n---\n"}`).
		refused(t, 422, "role_file_invalid", "/files/1/content", "/files/2/path", "/files/3/path", "/files/4/content")
	sync("", build).refused(t, 400, "invalid_request", "/fileSet")
	sync("shop", `{"path":"agents/a.md","content":"a\u0000"}`).refused(t, 400, "invalid_request", "/files/0/content")
	h.unchanged(t, before, "refused syncs")

	wants(sync("shop"), ``, ``, ``, `"build","review/security"`)
	if got := h.page(t, h.admin, "/v1/roles", "name").values; strings.Join(got, " ") != "by-hand theirs" {
		t.Errorf("left are %v", got)
	}
	if got := h.page(t, h.admin, "/v1/roles?fileSet=other", "name").values; strings.Join(got, " ") != "theirs" {
		t.Errorf("of the other set: %v", got)
	}
	h.as(t, h.newCaller(t, h.admin.org, "roles:read"), "POST", "/v1/roles/sync", `{"fileSet":"x","files":[]}`).refused(t, http.StatusForbidden, "insufficient_scope")
}
