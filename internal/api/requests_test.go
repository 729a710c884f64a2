package api_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/internal/api"
)

// What holds for the requests of all operations alike: media types, bodies, query and path parameters, limits.

// twins are two requests that differ in one value: the good one is answered with okay, the bad one refused.
type twins struct {
	name      string
	good, bad string
	code      string // "" for invalid_request
	status    int    // 0 for 400
	pointers  []string
}

func (w twins) run(t *testing.T, okay int, send func(body string) answer) {
	t.Run(w.name, func(t *testing.T) {
		if w.good == w.bad {
			t.Fatal("the twins are the same")
		}
		status := w.status
		if status == 0 {
			status = http.StatusBadRequest
		}
		send(w.bad).refused(t, status, or(w.code, "invalid_request"), w.pointers...)
		if okay != 0 {
			send(w.good).wants(t, okay)
		}
	})
}

func at(pointers ...string) []string { return pointers }

// Bodies that are wrong for every operation, whatever it wants.
func TestBodiesAreJSONOfTheRightType(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for _, op := range operations(t) {
		if op.media == "" || op.streamed {
			continue
		}
		t.Run(op.id, func(t *testing.T) {
			s, ok := h.newFamily(t, h.admin).sampleOf(t, op)
			if !ok {
				return
			}
			before := h.tables(t)
			send := func(body string, headers ...string) answer {
				return h.do(t, s.method, s.path, body, append([]string{"Content-Type", s.media}, headers...)...)
			}
			member := s.body[1:strings.Index(s.body, ":")] // the first member's name, in quotes

			for _, media := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx", "json", "a/b/c", ""} {
				send(s.body, "Content-Type", media).refused(t, 415, "unsupported_media_type", "header:Content-Type")
			}
			h.raw(t, h.admin.head(s.method, s.path, fmt.Sprintf("\nContent-Length: %d", len(s.body))), s.body, false).
				refused(t, 415, "unsupported_media_type", "header:Content-Type")
			if s.media == "application/json" {
				send(s.body, "Content-Type", "application/merge-patch+json").refused(t, 415, "unsupported_media_type", "header:Content-Type")
			}

			for _, body := range []string{"null", "[]", `"text"`, "5", "true"} {
				send(body).refused(t, 400, "invalid_request", "")
			}
			for name, body := range map[string]string{
				"nothing":           "",
				"white space":       " \n",
				"garbage behind":    s.body + " x",
				"a value behind":    s.body + s.body,
				"a brace behind":    s.body + "}",
				"cut short":         s.body[:len(s.body)-1],
				"a comma too many":  s.body[:len(s.body)-1] + ",}",
				"a comment":         "/* */" + s.body,
				"a byte order mark": "\ufeff" + s.body,
				"single quotes":     strings.ReplaceAll(s.body, `"`, `'`),
				"UTF-16":            "\xff\xfe" + s.body,
				"no JSON":           "slug=a&name=b",
			} {
				if body == "" && op.optional {
					continue
				}
				if a := send(body); a.status != 400 {
					t.Errorf("%s: status %d: %s", name, a.status, a.body)
				} else if code := a.problem(t).Code; code != "invalid_json" && code != "invalid_request" {
					t.Errorf("%s: %s", name, a.body)
				}
			}
			// A name twice: the last would win here, the first elsewhere.
			for _, first := range []string{"5", "null", "{}", "[]", `"a"`} {
				a := send(`{` + member + `:` + first + `,` + s.body[1:])
				if a.status != 400 {
					t.Errorf("%s twice, first %s: status %d: %s", member, first, a.status, a.body)
				}
			}
			send(`{"nonsense":1,"a/b~c":{},`+s.body[1:]).refused(t, 400, "invalid_request", "/a~1b~0c", "/nonsense")
			h.unchanged(t, before, "refused bodies")

			// The twins: only white space, a charset, the case of the type differ.
			send(" \n\t"+s.body+"\r\n ", "Content-Type", strings.ToUpper(s.media)+"; charset=utf-8").wants(t, s.status)
		})
	}
}

// A merge patch may call itself plain JSON.
func TestPatchesMayBePlainJSON(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	for _, op := range operations(t) {
		if op.media != "application/merge-patch+json" {
			continue
		}
		if s, ok := f.sampleOf(t, op); ok {
			h.do(t, s.method, s.path, s.body, "Content-Type", "application/json").wants(t, s.status)
		}
	}
}

// The contract's parameters, and no others, each once.
func TestQueryParametersOfEveryOperation(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for _, op := range operations(t) {
		s, ok := h.newFamily(t, h.admin).sampleOf(t, op)
		if !ok {
			continue
		}
		t.Run(op.id, func(t *testing.T) {
			target := func(query string) sample {
				r := s
				r.path += map[bool]string{true: "&", false: "?"}[strings.Contains(s.path, "?")] + query
				return r
			}
			h.send(t, h.admin, target("nonsense=1")).refused(t, 400, "invalid_request", "query:nonsense")
			h.send(t, h.admin, target("Limit=1&projectid=1")).refused(t, 400, "invalid_request", "query:Limit", "query:projectid")
			h.send(t, h.admin, target("%00=1")).refused(t, 400, "invalid_request", "query:\x00")
			for _, query := range []string{"%zz=1", "a=%f", "a=1;b=2", "%"} {
				h.send(t, h.admin, target(query)).refused(t, 400, "invalid_request", "query:")
			}
			h.send(t, h.admin, s).wants(t, s.status)
		})
	}
}

func TestListParametersAreChecked(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	for list, path := range map[string]string{
		"projects": "/v1/projects", "sessions": "/v1/sessions", "messages": "/v1/sessions/" + f.session + "/messages", "accounts": "/v1/accounts", "organizations": "/v1/organizations", "members": "/v1/members",
		"keys": "/v1/api-keys", "entries": "/v1/audit-logs",
	} {
		for _, w := range []struct {
			good, bad string
			name      string
		}{
			{"limit=1", "limit=0", "limit"},
			{"limit=200", "limit=201", "limit"},
			{"limit=2", "limit=-2", "limit"},
			{"limit=2", "limit=2.5", "limit"},
			{"limit=2", "limit=2e0", "limit"},
			{"limit=2", "limit=0x2", "limit"},
			{"limit=2", "limit=2%20", "limit"},
			{"limit=2", "limit=", "limit"},
			{"limit=2", "limit", "limit"},
			{"limit=2", "limit=4294967298", "limit"},
			{"limit=2", "limit=99999999999999999999999999", "limit"},
			{"limit=2", "limit=2&limit=2", "limit"},
			{"limit=2", "limit=2&limit=3", "limit"},
			{"limit=2", "limit=%00", "limit"},
			{"limit=2", "cursor=" + strings.Repeat("a", 501), "cursor"},
		} {
			t.Run(list+" "+w.bad[:min(len(w.bad), 40)], func(t *testing.T) {
				h.do(t, "GET", path+"?"+w.bad, nil).refused(t, 400, "invalid_request", "query:"+w.name)
				h.do(t, "GET", path+"?"+w.good, nil).wants(t, 200)
			})
		}
		for _, cursor := range []string{"", "x", "0", "AAAAAAAAAAAAAAAA", "null", "%00", "%ff", "%20", "=", "....", strings.Repeat("a", 500), strings.Repeat("%61", 500), url.QueryEscape(`{"id":1}`)} {
			if a := h.do(t, "GET", path+"?cursor="+cursor, nil); a.status != 400 {
				t.Errorf("%s: cursor %q: status %d", list, cursor, a.status)
			} else if strings.Contains(string(a.body), "invalid_cursor") == strings.Contains(string(a.body), "invalid_request") {
				t.Errorf("%s: cursor %q: %s", list, cursor, a.body)
			}
		}
	}
	for _, w := range []struct{ path, good, bad, name string }{
		{"/v1/projects", "archived=true", "archived=maybe", "archived"},
		{"/v1/projects", "archived=false", "archived=", "archived"},
		{"/v1/projects", "archived=false", "archived=2", "archived"},
		{"/v1/projects", "slug=a", "slug=a&slug=a", "slug"},
		{"/v1/projects", "slug=" + strings.Repeat("a", 100), "slug=" + strings.Repeat("a", 101), "slug"},
		{"/v1/projects", "slug=a", "slug=a%00", "slug"},
		{"/v1/projects", "slug=%C3%A9", "slug=%C3", "slug"},
		{"/v1/projects", "slug=a", "slug=%ED%A0%80", "slug"},
		{"/v1/sessions", "projectId=" + f.project, "projectId=" + f.project[1:], "projectId"},
		{"/v1/sessions", "projectId=" + strings.ToUpper(f.project), "projectId=%7B" + f.project + "%7D", "projectId"},
		{"/v1/sessions", "projectId=" + f.project, "projectId=", "projectId"},
		{"/v1/sessions", "parentId=" + f.session, "parentId=null", "parentId"},
		{"/v1/sessions", "accountId=" + f.session, "accountId=" + f.session + "0", "accountId"},
		{"/v1/sessions", "accountId=" + f.session, "accountId=" + f.session + "%00", "accountId"},
		{"/v1/sessions", "roleName=" + strings.Repeat("r", 200), "roleName=" + strings.Repeat("r", 201), "roleName"},
		{"/v1/sessions", "roleName=r", "roleName=%00", "roleName"},
		{"/v1/sessions", "roleName=r", "roleName=%80", "roleName"},
		{"/v1/sessions", "sourceId=s", "sourceId=s%00", "sourceId"},
		{"/v1/sessions", "sourceId=" + strings.Repeat("s", 200), "sourceId=" + strings.Repeat("s", 201), "sourceId"},
		{"/v1/sessions", "runState=idle", "runState=Idle", "runState"},
		{"/v1/sessions", "runState=ended", "runState=", "runState"},
		{"/v1/sessions", "archived=true", "archived=TrUe", "archived"},
		{"/v1/sessions", "archived=true", "archived=true&archived=false", "archived"},
		{"/v1/accounts", "kind=human", "kind=Human", "kind"},
		{"/v1/accounts", "status=suspended", "status=", "status"},
		{"/v1/members", "membershipLevel=owner", "membershipLevel=owner&membershipLevel=owner", "membershipLevel"},
		{"/v1/api-keys", "accountId=" + f.account, "accountId=" + f.account[1:], "accountId"},
		{"/v1/api-keys", "tag=" + strings.Repeat("a", 50), "tag=" + strings.Repeat("a", 51), "tag"},
		{"/v1/api-keys", "tag=%C3%A9", "tag=%00", "tag"},
		{"/v1/audit-logs", "since=2026-01-01T00:00:00Z", "since=2026-01-01T00:00:00", "since"},
		{"/v1/audit-logs", "since=2026-02-28T00:00:00-23:59", "since=2026-02-31T00:00:00Z", "since"},
		{"/v1/audit-logs", "until=9999-12-31T23:59:59-12:00", "until=2026-01-01T00:00:00-25:00", "until"},
		{"/v1/audit-logs", "until=0000-01-01T00:00:00%2B12:00", "until=10000-01-01T00:00:00Z", "until"},
		{"/v1/audit-logs", "until=2026-01-01T00:00:00.123456789Z", "until=2026-01-01t00:00:00z", "until"},
		{"/v1/audit-logs", "action=key.create", "action=key.create%00", "action"},
		{"/v1/audit-logs", "platform=true", "platform=yes", "platform"},
		{"/v1/audit-logs/verification", "platform=true", "platform=", "platform"},
		{"/v1/audit-logs/export", "targetId=" + f.account, "targetId=all", "targetId"},
	} {
		t.Run(w.path+" "+w.bad[:min(len(w.bad), 40)], func(t *testing.T) {
			h.do(t, "GET", w.path+"?"+w.bad, nil).refused(t, 400, "invalid_request", "query:"+w.name)
			h.do(t, "GET", w.path+"?"+w.good, nil).wants(t, 200)
		})
	}
	// Several faults are told at once.
	h.do(t, "GET", "/v1/sessions?limit=0&projectId=x&runState=y&zz=1", nil).
		refused(t, 400, "invalid_request", "query:limit", "query:projectId", "query:runState", "query:zz")
}

// Ids in paths that are none, on every operation that has one.
func TestPathParametersAreChecked(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	ids := map[string]string{
		"{projectId}": f.project, "{sessionId}": f.session, "{messageId}": f.message, "{partId}": f.part, "{roleId}": f.agentRole, "{accountId}": f.account, "{organizationId}": f.org, "{apiKeyId}": f.key,
		"{clientId}": f.client, "{rotationId}": f.rotation,
		"{workspaceId}": f.workspace, "{detectionId}": f.detection, "{anomalyTypeId}": f.anomalyType, "{taskId}": f.task, "{dependsOnTaskId}": f.task, "{mappingId}": f.delegation, "{spokeId}": f.spoke, "{callId}": f.call,
	}
	for _, op := range operations(t) {
		s, ok := f.sampleOf(t, op)
		if !ok {
			continue
		}
		fill := func(path string) string {
			for place, id := range ids {
				path = strings.ReplaceAll(path, place, id)
			}
			path = strings.NewReplacer("{secretName}", "token", "{keyVersion}", "1000000", "{operationName}", "fs."+f.spoke+".read").Replace(path) // no ids
			if strings.Contains(path, "{") {
				t.Errorf("%s: this test has no id for a parameter of %s", op.id, path)
			}
			return path
		}
		fill(op.path)
		for place, id := range ids {
			name := strings.Trim(place, "{}")
			if !strings.Contains(op.path, place) {
				continue
			}
			with := func(value string) sample {
				r := s
				r.path = strings.ReplaceAll(fill(strings.ReplaceAll(op.path, place, "PLACE")), "PLACE", value)
				if _, query, asked := strings.Cut(s.path, "?"); asked {
					r.path += "?" + query
				}
				return r
			}
			for _, bad := range []string{
				"x", "%00", id + "%00", "%ff", "%F0%9F%98%80", id[1:], id + "0", "{" + id + "}", "%7B" + id + "%7D", strings.ReplaceAll(id, "-", ""),
				"urn:uuid:" + id, "%20" + id, id + "%20", "-1", "null", "*", "..%2F" + id, id + "%2F", strings.Repeat("a", 3000), "%252D", "' OR 1=1 --",
			} {
				bad = strings.ReplaceAll(bad, " ", "%20")
				a := h.send(t, h.admin, with(bad))
				if a.status != 404 { // a route may not match at all
					a.refused(t, 400, "invalid_request", "path:"+name)
				}
			}
			h.send(t, h.admin, with(uuid.NewString())).wants(t, 404)
			// The twins: the same id in capitals, and with a character escaped that need not be (RFC 3986, 2.3).
			if op.method == "GET" {
				h.send(t, h.admin, with(strings.ToUpper(id))).wants(t, s.status)
				h.send(t, h.admin, with(strings.ReplaceAll(id, "-", "%2D"))).wants(t, s.status)
			}
		}
	}
	for _, target := range []string{"/v1/projects/%zz", "/v1/projects/%", "/v1/projects?%zz", "/v1/pro%00jects", "/%00", "//v1/projects", "/v1//projects", "/v1/projects/../projects", "/v1/projects/.", "*"} {
		if a := h.raw(t, h.admin.head("GET", target, ""), "", false); a.status < 400 || a.status >= 500 {
			t.Errorf("GET %s: status %d: %s", target, a.status, a.body)
		}
	}
}

func TestRoutesThatAreNone(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for _, path := range []string{"/", "/v1", "/v1/", "/v2/projects", "/v1/project", "/v1/projects/", "/v1/sessions/import/x", "/v1/Projects", "/healthz/", "/favicon.ico"} {
		a := h.do(t, "GET", path, nil)
		a.refused(t, 404, "route_not_found")
		// The same to a stranger: what there is, is no secret.
		h.as(t, caller{}, "GET", path, nil).refused(t, 404, "route_not_found")
	}
	for _, op := range operations(t) {
		path, method := op.anyPath(), "PUT"
		if op.path == "/v1/clients/{clientId}/secrets/{secretName}" || op.path == "/v1/spokes/{spokeId}/operations" { // what can be put
			method = "PATCH"
		}
		a := h.do(t, method, path, nil)
		a.refused(t, 405, "method_not_allowed")
		if !strings.Contains(a.header.Get("Allow"), op.method) {
			t.Errorf("PUT %s: Allow is %q, and has no %s", path, a.header.Get("Allow"), op.method)
		}
	}
}

// Limits of size, declared or not, in both orders of finding out.
func TestBodiesOverTheLimit(t *testing.T) {
	t.Parallel()
	const limit = 2000
	h := newHub(t, func(c *api.Config, _ *pgxpool.Config) { c.MaxBody = limit })
	body := func(size int) string {
		text := `{"slug":"s-` + uuid.NewString() + `","name":"n","description":"`
		return text + strings.Repeat("x", size-len(text)-2) + `"}`
	}
	before := h.tables(t)
	for _, size := range []int{limit + 1, 2 * limit, 100 << 10, 1 << 20} {
		h.do(t, "POST", "/v1/projects", body(size)).refused(t, 413, "body_too_large", "")
		h.do(t, "POST", "/v1/projects", struct{ *strings.Reader }{strings.NewReader(body(size))}).refused(t, 413, "body_too_large", "") // chunked
		// A stranger learns nothing of the limit, and makes no work.
		for _, key := range []string{"", "hub_nonsense", unknownKey()} {
			h.as(t, caller{key: key}, "POST", "/v1/projects", body(size)).refused(t, 401, "unauthenticated")
		}
	}
	h.unchanged(t, before, "bodies over the limit")
	h.do(t, "POST", "/v1/projects", body(limit)).wants(t, 201)
	h.do(t, "POST", "/v1/projects", struct{ *strings.Reader }{strings.NewReader(body(limit))}).wants(t, 201)
}

// A client that goes away in the middle of its body, or declares more than it sends: its fault, not the server's.
func TestBodiesThatBreakOff(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure)
	project := h.newProject(t, "breaks-off")
	before := h.tables(t)
	file := export{id: "ses_broken"}.String()
	for _, r := range []struct{ name, target, body string }{
		{"a body", "/v1/projects", `{"slug":"a","name":"b"}`},
		{"a large body", "/v1/projects", `{"slug":"a","name":"b","data":{"x":"` + strings.Repeat("x", 100<<10)},
		{"an import", "/v1/sessions/import?projectId=" + project, file},
	} {
		t.Run(r.name, func(t *testing.T) {
			head := h.admin.head("POST", r.target, fmt.Sprintf("\nContent-Type: application/json\nContent-Length: %d", len(r.body)+1))
			h.raw(t, head, r.body, true).refused(t, 400, "body_incomplete", "")
			head = h.admin.head("POST", r.target, "\nContent-Type: application/json\nTransfer-Encoding: chunked")
			h.raw(t, head, fmt.Sprintf("%x\r\n%s\r\n", len(r.body), r.body), true).refused(t, 400, "body_incomplete", "")
			h.raw(t, head, "nonsense\r\n", false).refused(t, 400, "body_incomplete", "")
		})
	}
	h.unchanged(t, before, "bodies that broke off")
	if strings.Contains(log.String(), `"level":"ERROR"`) {
		t.Errorf("logged as the server's fault: %s", log)
	}
	h.importFile(t, h.admin, project, file).wants(t, 201)
}

// What the free-form objects hold comes back, to the letter of each value, at the limits too; what no column can hold is pointed at.
func TestX07_FreeFormJSON(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	nested := func(depth int) string { return strings.Repeat(`[`, depth) + strings.Repeat(`]`, depth) }
	long := strings.Repeat("k", 1500)

	// Each place is a way to give an object and to read it back.
	type place struct {
		name, pointer string
		send          func(object string) answer
		read          func(a answer) []byte
		code          string
	}
	member := func(names ...string) func(answer) []byte {
		return func(a answer) []byte {
			text := json.RawMessage(a.body)
			for _, name := range names {
				if name == "0" {
					var list []json.RawMessage
					if err := json.Unmarshal(text, &list); err != nil {
						t.Fatalf("%v: %s", err, text)
					}
					text = list[0]
					continue
				}
				var object map[string]json.RawMessage
				if err := json.Unmarshal(text, &object); err != nil {
					t.Fatalf("%v: %s", err, text)
				}
				text = object[name]
			}
			return text
		}
	}
	// within is member of what an answer wraps when it is made, and does not when it is read.
	within := func(wrapper string, names ...string) func(answer) []byte {
		return func(a answer) []byte {
			var wrapped map[string]json.RawMessage
			a.into(t, &wrapped)
			if inner := wrapped[wrapper]; inner != nil {
				a.body = inner
			}
			return member(names...)(a)
		}
	}
	post := func(path, before, after string) func(string) answer {
		return func(object string) answer {
			return h.do(t, "POST", path, strings.ReplaceAll(before, "SLUG", "s-"+uuid.NewString())+object+after)
		}
	}
	messages := "/v1/sessions/" + f.session + "/messages"
	places := []place{
		{"session", "/data", post("/v1/sessions", `{"projectId":"`+f.project+`","data":`, `}`), member("data"), ""},
		{"message", "/messages/0/data", post(messages, `{"messages":[{"role":"user","data":`, `}]}`), member("items", "0", "data"), ""},
		{"part", "/messages/0/parts/0/data", post(messages, `{"messages":[{"role":"user","parts":[{"type":"x","data":`, `}]}]}`), member("items", "0", "parts", "0", "data"), ""},
		{"session metadata", "/metadata/_x", post("/v1/sessions", `{"projectId":"`+f.project+`","metadata":{"_x":`, `}}`), member("metadata", "_x"), ""},
		{"message metadata", "/messages/0/metadata/_x", post(messages, `{"messages":[{"role":"user","metadata":{"_x":`, `}}]}`), member("items", "0", "metadata", "_x"), ""},
		{"project", "/data", post("/v1/projects", `{"slug":"SLUG","name":"n","data":`, `}`), member("data"), ""},
		{"project metadata", "/metadata/_x", post("/v1/projects", `{"slug":"SLUG","name":"n","metadata":{"_x":`, `}}`), member("metadata", "_x"), ""},
		{"account", "/data", post("/v1/accounts", `{"kind":"human","displayName":"n","data":`, `}`), member("data"), ""},
		{"account metadata", "/metadata/_x", post("/v1/accounts", `{"kind":"human","displayName":"n","metadata":{"_x":`, `}}`), member("metadata", "_x"), ""},
		{"organisation", "/data", post("/v1/organizations", `{"slug":"SLUG","name":"n","data":`, `}`), within("organization", "data"), ""},
		{"organisation metadata", "/metadata/_x", post("/v1/organizations", `{"slug":"SLUG","name":"n","metadata":{"_x":`, `}}`), within("organization", "metadata", "_x"), ""},
		{"key metadata", "/metadata/_x", post("/v1/api-keys", `{"name":"n","scopes":[],"metadata":{"_x":`, `}}`), within("apiKey", "metadata", "_x"), ""},
		{"member metadata", "/metadata/_x", func(object string) answer {
			a := post("/v1/accounts", `{"kind":"human","displayName":"n","data":`, `}`)(`{}`)
			h.do(t, "DELETE", "/v1/members/"+a.id(t), nil).wants(t, 204)
			return h.do(t, "POST", "/v1/members", `{"accountId":"`+a.id(t)+`","metadata":{"_x":`+object+`}}`)
		}, member("metadata", "_x"), ""},
	}
	for _, p := range places {
		t.Run(p.name, func(t *testing.T) {
			inMetadata := strings.Contains(p.pointer, "metadata")
			deepest := 255
			if inMetadata {
				deepest-- // the object under the subsystem's key is one further in
			}
			for _, object := range []string{
				`{}`, `{"a":{}}`, `{"":""}`, `{"a":[1,"x",null,true,false,[],{}]}`,
				`{"nul\u0000":"\u0000 \u0000"}`, `{"lone\ud83d":"\ud83d","\ude00":"\ude00\ud83d"}`, `{"pair":"\ud83d\ude00 😀"}`, `{"mark\u0010":"\u0010 \u00100 \u0010ud83d"}`,
				`{"a":"\"\\\/\b\f\n\r\t<>&\u2028"}`, `{"$ref":"#/x","__proto__":1,"constructor":null}`,
				`{"A":1,"a":2}`, `{"` + long + `":"\u0000","b` + long + `\ud83d":{"c":"\u0000"}}`,
				`{"deep":` + nested(deepest) + `}`, `{"n":` + strings.Repeat("9", 1000) + `}`, `{"n":0.` + strings.Repeat("1", 999) + `}`,
			} {
				a := p.send(object).wants(t, 201)
				wantJSON(t, object[:min(len(object), 60)], p.read(a), []byte(object))
				// And once more, from the database.
				if location := a.header.Get("Location"); location != "" {
					wantJSON(t, object[:min(len(object), 60)], p.read(h.do(t, "GET", location, nil).wants(t, 200)), []byte(object))
				}
			}
			for name, w := range map[string]struct{ object, pointer string }{
				"a name twice":             {`{"a":{"b":1,"b":1}}`, "/a/b"},
				"a name twice, escaped":    {`{"a":1,"\u0061":1}`, "/a"},
				"invalid UTF-8":            {"{\"a\":[\"\xff\"]}", "/a/0"},
				"a name of invalid UTF-8":  {"{\"a\":{\"\xc3\":1}}", "/a"},
				"a surrogate in UTF-8":     {"{\"a\":\"\xed\xa0\xbd\"}", "/a"},
				"too deep":                 {`{"deep":` + nested(300) + `}`, "*"},
				"too many digits":          {`{"n":[` + strings.Repeat("9", 1001) + `]}`, "/n/0"},
				"too large an exponent":    {`{"n":1e401}`, "/n"},
				"a huge exponent":          {`{"n":-1e-99999999999999999999}`, "/n"},
				"a control character":      {"{\"a\":\"\x01\"}", "*"},
				"a raw NUL":                {"{\"a\":\"\x00\"}", "*"},
				"not a number":             {`{"a":NaN}`, "*"},
				"a number with a zero":     {`{"a":012}`, "*"},
				"an escape that is none":   {`{"a":"\x"}`, "*"},
				"an escape cut short":      {`{"a":"\u12"}`, "*"},
				"very deep (20,000 level)": {`{"deep":` + nested(20000) + `}`, "*"},
			} {
				a := p.send(w.object)
				if a.status != 400 {
					t.Errorf("%s: status %d: %.200s", name, a.status, a.body)
					continue
				}
				problem := a.problem(t)
				if w.pointer != "*" && (len(problem.Errors) != 1 || problem.Errors[0].Pointer != p.pointer+w.pointer) {
					t.Errorf("%s: want a pointer to %s: %s", name, p.pointer+w.pointer, a.body)
				}
			}
		})
	}
}

// In metadata and in a project's data numbers keep their value, and may be spelled differently (docs/decisions/0007): there is no
// column beside jsonb that would keep it.
func TestX07_NumbersOfMetadataKeepTheirValue(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	const object, kept = `{"a":1e2,"b":-0.0,"c":1.50}`, `{"a":100,"b":0.0,"c":1.50}`
	for name, r := range map[string]struct{ path, body, field string }{
		"project data":     {"/v1/projects", `{"slug":"a","name":"n","data":` + object + `}`, "data"},
		"project metadata": {"/v1/projects", `{"slug":"b","name":"n","metadata":{"_x":` + object + `}}`, "metadata"},
		"session metadata": {"/v1/sessions", `{"projectId":"` + f.project + `","metadata":{"_x":` + object + `}}`, "metadata"},
	} {
		var got map[string]json.RawMessage
		h.do(t, "GET", h.do(t, "POST", r.path, r.body).wants(t, 201).header.Get("Location"), nil).into(t, &got)
		want := kept
		if r.field == "metadata" {
			want = `{"_x":` + kept + `}`
		}
		t.Run(name, func(t *testing.T) { wantJSON(t, name, got[r.field], []byte(want)) })
	}
	messages := "/v1/sessions/" + f.session + "/messages"
	a := h.do(t, "POST", messages, `{"messages":[{"role":"user","metadata":{"_x":`+object+`},"parts":[{"type":"x","metadata":{"_x":`+object+`}}]}]}`).wants(t, 201)
	var list struct {
		Items []struct {
			ID       string
			Metadata json.RawMessage
			Parts    []struct{ Metadata json.RawMessage }
		}
	}
	a.into(t, &list)
	h.do(t, "GET", messages+"/"+list.Items[0].ID, nil).wants(t, 200).into(t, &list.Items[0])
	t.Run("message metadata", func(t *testing.T) {
		wantJSON(t, "message metadata", list.Items[0].Metadata, []byte(`{"_x":`+kept+`}`))
	})
	t.Run("part metadata", func(t *testing.T) {
		wantJSON(t, "part metadata", list.Items[0].Parts[0].Metadata, []byte(`{"_x":`+kept+`}`))
	})
}

// In a session's, a message's and a part's data they keep it.
func TestX07_NumbersKeepTheirSpelling(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	const object = `{"a":1e2,"b":-0.0,"c":1.50,"d":[1E+5,0.0,-0,1e-400],"e":12345678901234567890.123456789012345678901234567890}`
	var session struct{ Data json.RawMessage }
	a := h.do(t, "POST", "/v1/sessions", `{"projectId":"`+f.project+`","data":`+object+`}`).wants(t, 201)
	h.do(t, "GET", a.header.Get("Location"), nil).into(t, &session)
	wantJSON(t, "session data", session.Data, []byte(object))

	messages := "/v1/sessions/" + f.session + "/messages"
	var list struct {
		Items []struct {
			ID    string
			Data  json.RawMessage
			Parts []struct{ Data json.RawMessage }
		}
	}
	h.do(t, "POST", messages, `{"messages":[{"role":"user","data":`+object+`,"parts":[{"type":"x","data":`+object+`}]}]}`).wants(t, 201).into(t, &list)
	h.do(t, "GET", messages+"/"+list.Items[0].ID, nil).wants(t, 200).into(t, &list.Items[0])
	wantJSON(t, "message data", list.Items[0].Data, []byte(object))
	wantJSON(t, "part data", list.Items[0].Parts[0].Data, []byte(object))
}

// If-Match in all its forms, on every operation that takes it.
func TestIfMatchOfEveryOperation(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for _, op := range operations(t) {
		if !slices.Contains(op.headers, "If-Match") || op.id == "deleteEncryptionKey" { // a key cannot be got
			continue
		}
		t.Run(op.id, func(t *testing.T) {
			f := h.newFamily(t, h.admin)
			s, ok := f.sampleOf(t, op)
			if !ok {
				return
			}
			send := func(s sample, tag string) answer {
				if s.media == "" {
					return h.do(t, s.method, s.path, nil, "If-Match", tag)
				}
				return h.do(t, s.method, s.path, s.body, "If-Match", tag)
			}
			tag := h.do(t, "GET", s.path, nil).wants(t, 200).header.Get("ETag")
			if !regexp.MustCompile(`^"[1-9][0-9]*"$`).MatchString(tag) {
				t.Fatalf("the ETag is %s", tag)
			}
			before := h.tables(t)
			for _, bad := range []string{"1", "x", `"`, `"1`, `1"`, `"1" "2"`, `"1","2"`, `W/1`, `w/"1"`, "'1'", strings.Repeat(`"`, 3)} {
				send(s, bad).refused(t, 400, "invalid_request", "header:If-Match")
			}
			send(s, `"`+strings.Repeat("1", 200)+`"`).refused(t, 400, "invalid_request", "header:If-Match")
			for _, other := range []string{`"0"`, `"99"`, `""`, `"x"`, "W/" + tag, `"01"`, `"-1"`, `"+1"`, `"1.0"`, `"1e0"`, `"99999999999999999999"`, `"2147483648"`, `"é"`, strings.ReplaceAll(tag, `"`, `" `)[2:] + `"`} {
				if a := send(s, other); a.status != 412 && a.status != 400 {
					t.Errorf("%q: status %d: %s", other, a.status, a.body)
				}
			}
			send(s, `"0"`).refused(t, 412, "precondition_failed")
			send(s, "W/"+tag).refused(t, 412, "precondition_failed")
			if !strings.HasSuffix(op.path, "-policy") { // of which each organisation has one
				nowhere := s
				nowhere.path = op.anyPath()
				send(nowhere, tag).wants(t, 404) // not 412: there is nothing that could have changed
			}
			h.unchanged(t, before, "refused by If-Match")
			send(s, " "+tag+" ").wants(t, s.status)
			if op.method == "PATCH" {
				send(s, "*").wants(t, s.status)
			}
		})
	}
}

// Random mutations of valid requests: whatever a client sends, the fault is its own.
func TestMutatedRequestsNeverBreakTheServer(t *testing.T) {
	t.Parallel()
	const each = 150
	h := newHub(t)
	for i, op := range operations(t) {
		t.Run(op.id, func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(i), 20261123))
			c := h.newCaller(t, uuid.Nil, "*", "platform:*") // with a short audit log
			f := h.newFamily(t, c)
			statuses := map[int]int{}
			for n := range each {
				s, ok := f.sampleOf(t, op)
				if !ok {
					return
				}
				m := mutate(r, s)
				target, err := url.Parse(h.url + m.path)
				if err != nil || target.Path == "" || strings.ContainsAny(m.path, " \x7f") {
					continue // http.Client would not send it: see TestPathParametersAreChecked
				}
				a := h.as(t, c, m.method, m.path, m.body, m.headers...)
				statuses[a.status]++
				if a.status >= 500 {
					t.Fatalf("mutation %d: status %d: %s\n%s %s\n%q\n%.2000q", n, a.status, a.body, m.method, m.path, m.headers, m.body)
				}
				if op.method == "DELETE" && a.status == 204 {
					f = h.newFamily(t, c)
				}
			}
			if len(statuses) < 2 {
				t.Errorf("the mutations changed nothing: %v", statuses)
			}
		})
	}
	h.do(t, "GET", "/v1/projects", nil).wants(t, 200)
}

type mutant struct {
	method, path, body string
	headers            []string
}

var weird = []string{
	`null`, `true`, `0`, `-1`, `1e400`, `1e-400`, `99999999999999999999`, `0.1`, `""`, `"\u0000"`, `"\ud83d"`, `"\ude00\ud83d"`, `"😀"`, "\"\xff\"", `[]`, `{}`, `[[]]`, `{"":{}}`,
	`{"_x":{}}`, `{"_x":null}`, `{"x":1}`, `"a-b"`, `"00000000-0000-0000-0000-000000000000"`, `"FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF"`, `"ended"`, `"user"`, `NaN`, `'a'`, ``, ` `,
	`{"a":1,"a":2}`, `"' OR 1=1 --"`, `"$1"`, `"\\"`, `{"a":[null,{"b":null}]}`, `[1,2,3]`, `"2026-01-01T00:00:00Z"`,
	`"2099-01-01T00:00:00Z"`, `"0000-01-01T00:00:00+23:59"`, `"9999-12-31T23:59:59.9999999Z"`, `"9999-12-31T23:59:59-23:59"`, `"platform:*"`, `["*","platform:*"]`, `["project:x"]`, `["keys:write",null]`,
	`["a b"]`, `"a@alk.dev"`, `"@"`, `"00000000-0000-7000-8000-000000000001"`, `2147483648`, `2592001`,
}

// mutate changes a request in one to four places.
func mutate(r *rand.Rand, s sample) mutant {
	m := mutant{method: s.method, path: s.path, body: s.body}
	if s.media != "" {
		m.headers = []string{"Content-Type", s.media}
	}
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	for range 1 + r.IntN(4) {
		switch kind := r.IntN(10); {
		case kind < 4 && m.body != "": // a byte, or a stretch
			i := r.IntN(len(m.body))
			j := min(i+r.IntN(8), len(m.body))
			m.body = m.body[:i] + pick("", "x", "\x00", "\xff", "\"", "{", "}", "[", ",", ":", `\u0000`, `\ud83d`, m.body[i:j]+m.body[i:j], pick(weird...)) + m.body[j:]
		case kind < 7 && m.body != "": // a value, where a colon begins one
			var colons []int
			for i, c := range m.body {
				if c == ':' {
					colons = append(colons, i)
				}
			}
			if len(colons) > 0 {
				i := colons[r.IntN(len(colons))] + 1
				end := i + strings.IndexAny(m.body[i:]+",", ",}]")
				m.body = m.body[:i] + pick(weird...) + m.body[min(end, len(m.body)):]
			}
		case kind == 7 && m.body != "": // another member
			m.body = strings.Replace(m.body, "{", `{"`+pick("data", "metadata", "title", "slug", "name", "parentId", "roleName", "version", "runState", "parts", "messages", "info", "x", "archived", "description",
				"kind", "displayName", "email", "membershipLevel", "accessLevel", "accountId", "ownerId", "scopes", "resources", "tags", "expiresAt", "graceSeconds", "auditDays")+`":`+pick(weird...)+",", 1+r.IntN(2))
		case kind == 8: // the query
			join := "?"
			if strings.Contains(m.path, "?") {
				join = "&"
			}
			m.path += join + pick("limit", "cursor", "slug", "archived", "projectId", "parentId", "roleName", "accountId", "runState", "sourceId", "x", "%00", "",
				"q", "kind", "status", "membershipLevel", "tag", "ownerId", "apiKeyId", "sessionId", "targetId", "targetType", "action", "since", "until", "platform") + "=" +
				pick("", "0", "1", "200", "-1", "true", "%00", "%ff", "x", "%27", "ended", "00000000-0000-0000-0000-000000000000", "AAAAAAAAAAAAAAAA", "1e9", "%F0%9F%98%80")
		case kind == 9 && r.IntN(2) == 0: // the path
			segments := strings.Split(m.path, "/")
			i := 1 + r.IntN(len(segments)-1)
			segments[i] = pick("", "x", "%00", "%ff", "..", "00000000-0000-0000-0000-000000000000", uuid.NewString(), "%2F", "import", "messages", "export")
			m.path = strings.Join(segments, "/")
		default: // a header
			m.headers = append(m.headers, pick("If-Match", "Content-Type", "Accept", "X-Request-Id", "Idempotency-Key", "Range", "Content-Encoding", "X-HTTP-Method-Override", "Hub-Session", "Idempotency-Key", "Hub-Session"),
				pick("*", `"1"`, `W/"1"`, `"`, "x", "application/json", "application/json; charset=", "text/plain", "\xff", strings.Repeat("a", 300), "gzip", "DELETE", "bytes=0-1", "00000000-0000-0000-0000-000000000000", uuid.NewString()))
		}
	}
	return m
}
