package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

type projectBody struct {
	ID, Slug, Name, Description string
	ArchivedAt                  *string
	Data, Metadata              json.RawMessage
	Revision                    int
	CreatedAt, UpdatedAt        string
}

func (a answer) project(t testing.TB) (p projectBody) {
	t.Helper()
	a.into(t, &p)
	return p
}

func TestProjectFromCreationToDeletion(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	a := h.do(t, "POST", "/v1/projects", `{"slug":"shop-api","name":"Shop 😀","description":"Línea\n2","data":{"a":[1,null]},"metadata":{"_billing":{"plan":"x"}}}`).wants(t, 201)
	p := a.project(t)
	path := "/v1/projects/" + p.ID
	if p.Slug != "shop-api" || p.Name != "Shop 😀" || p.Description != "Línea\n2" || p.ArchivedAt != nil || p.Revision != 1 || p.CreatedAt != p.UpdatedAt {
		t.Errorf("created: %s", a.body)
	}
	wantJSON(t, "data", p.Data, []byte(`{"a":[1,null]}`))
	wantJSON(t, "metadata", p.Metadata, []byte(`{"_billing":{"plan":"x"}}`))
	if a.header.Get("Location") != path || a.header.Get("ETag") != `"1"` {
		t.Errorf("Location %q, ETag %q", a.header.Get("Location"), a.header.Get("ETag"))
	}
	got := h.do(t, "GET", path, nil).wants(t, 200)
	wantJSON(t, "got", got.body, a.body)
	if got.header.Get("ETag") != `"1"` {
		t.Errorf("ETag %q", got.header.Get("ETag"))
	}

	changed := h.do(t, "PATCH", path, `{"name":"Shop"}`).wants(t, 200)
	if c := changed.project(t); c.Name != "Shop" || c.Slug != p.Slug || c.Description != p.Description || c.Revision != 2 || c.UpdatedAt <= p.UpdatedAt || c.CreatedAt != p.CreatedAt {
		t.Errorf("changed: %s", changed.body)
	}
	if changed.header.Get("ETag") != `"2"` {
		t.Errorf("ETag %q", changed.header.Get("ETag"))
	}
	wantJSON(t, "got", h.do(t, "GET", path, nil).body, changed.body)

	if a := h.do(t, "DELETE", path, nil).wants(t, 204); len(a.body) != 0 {
		t.Errorf("deleted: %s", a.body)
	}
	h.do(t, "GET", path, nil).refused(t, 404, "project_not_found")
	h.do(t, "PATCH", path, `{"name":"x"}`).refused(t, 404, "project_not_found")
	h.do(t, "DELETE", path, nil).refused(t, 404, "project_not_found")
	h.do(t, "PATCH", path, `{"name":"x"}`, "If-Match", `"2"`).refused(t, 404, "project_not_found")
	h.do(t, "DELETE", path, nil, "If-Match", "*").refused(t, 404, "project_not_found")

	// The least that a project needs; and its slug is free again.
	least := h.do(t, "POST", "/v1/projects", `{"slug":"shop-api","name":"s"}`).wants(t, 201).project(t)
	if least.Description != "" || string(least.Data) != "{}" || string(least.Metadata) != "{}" {
		t.Errorf("defaults: %+v", least)
	}
}

func TestProjectBodies(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.newProject(t, "taken")
	// slug, name and more are the members' JSON.
	body := func(slug, name, more string) string { return `{"slug":` + slug + `,"name":` + name + more + `}` }
	free := func() string { return `"s-` + uuid.NewString() + `"` }
	long := func(n int, character string) string { return `"` + strings.Repeat(character, n) + `"` }
	var all []twins
	for _, w := range []struct {
		name, good, bad string
		status          int
		code            string
	}{
		{"taken", `"taken-not"`, `"taken"`, 409, "projects_slug_key"},
		{"empty", `"0"`, `""`, 0, ""},
		{"capitals", `"ab"`, `"aB"`, 0, ""},
		{"leading dash", `"a-b"`, `"-a-b"`, 0, ""},
		{"trailing dash", `"a-c"`, `"a-c-"`, 0, ""},
		{"two dashes", `"a-d"`, `"a--d"`, 0, ""},
		{"underscore", `"a-e"`, `"a_e"`, 0, ""},
		{"not ASCII", `"e"`, `"é"`, 0, ""},
		{"line end", `"f"`, `"f\n"`, 0, ""},
		{"NUL", `"g"`, `"g\u0000"`, 0, ""},
		{"length", long(100, "a"), long(101, "a"), 0, ""},
		{"number", `"5"`, `5`, 0, ""},
		{"null", `"null"`, `null`, 0, ""},
		{"array", `"h"`, `["h"]`, 0, ""},
	} {
		all = append(all, twins{"slug " + w.name, body(w.good, `"n"`, ""), body(w.bad, `"n"`, ""), w.code, w.status, at("/slug")})
	}
	for _, w := range []struct{ name, good, bad string }{
		{"empty", `" "`, `""`},
		{"length", long(200, "é"), long(201, "é")},
		{"length in characters", long(200, "😀"), long(201, "😀")},
		{"number", `"1"`, `1`},
		{"null", `"null"`, `null`},
		{"object", `"{}"`, `{}`},
		{"NUL", `"\u0001"`, `"\u0000"`},
		{"lone high surrogate", `"\ud83d\ude00"`, `"\ud83d"`},
		{"lone low surrogate", `"\ud83d\ude00"`, `"\ude00\ud83d"`},
		{"NUL among others", `"a\\u0000b"`, `"a\\\u0000b"`},
	} {
		all = append(all, twins{"name " + w.name, body(free(), w.good, ""), body(free(), w.bad, ""), "", 0, at("/name")})
	}
	for _, w := range []struct {
		name, good, bad, pointer string
		status                   int
		code                     string
	}{
		{"description length", `,"description":` + long(10000, "é"), `,"description":` + long(10001, "é"), "/description", 0, ""},
		{"description null", `,"description":""`, `,"description":null`, "/description", 0, ""},
		{"description NUL", `,"description":"\n"`, `,"description":"\u0000"`, "/description", 0, ""},
		{"data array", `,"data":{}`, `,"data":[]`, "/data", 0, ""},
		{"data string", `,"data":{}`, `,"data":"{}"`, "/data", 0, ""},
		{"data null", `,"data":{"a":null}`, `,"data":null`, "/data", 0, ""},
		{"metadata array", `,"metadata":{}`, `,"metadata":[]`, "/metadata", 0, ""},
		{"metadata of a number", `,"metadata":{"_a":{}}`, `,"metadata":{"_a":1}`, "/metadata/_a", 0, ""},
		{"metadata of null", `,"metadata":{"_a":{}}`, `,"metadata":{"_a":null}`, "/metadata/_a", 0, ""},
		{"metadata of no subsystem", `,"metadata":{"_a":{}}`, `,"metadata":{"a":{}}`, "/metadata", 422, "projects_metadata_check"},
		{"metadata of a subsystem in capitals", `,"metadata":{"_a1_b":{}}`, `,"metadata":{"_A1_b":{}}`, "/metadata", 422, "projects_metadata_check"},
		{"metadata with a NUL in the subsystem", `,"metadata":{"_a":{"\u0000":1}}`, `,"metadata":{"_a\u0000":{"a":1}}`, "/metadata", 422, "projects_metadata_check"},
		{"archived is not for creation", `,"data":{"archived":true}`, `,"archived":true`, "/archived", 0, ""},
		{"a field in other letters", `,"description":"x"`, `,"Description":"x"`, "/Description", 0, ""},
		{"revision is not given", "", `,"revision":7`, "/revision", 0, ""},
		{"id is not given", "", `,"id":"01a20700-0000-7000-8000-000000000001"`, "/id", 0, ""},
	} {
		all = append(all, twins{w.name, body(free(), `"n"`, w.good), body(free(), `"n"`, w.bad), w.code, w.status, at(w.pointer)})
	}
	all = append(all,
		twins{"slug missing", body(free(), `"n"`, ""), `{"name":"n"}`, "", 0, at("/slug")},
		twins{"name missing", body(free(), `"n"`, ""), `{"slug":` + free() + `}`, "", 0, at("/name")},
		twins{"all missing", body(free(), `"n"`, ""), `{}`, "", 0, at("/name", "/slug")},
		twins{"name of invalid UTF-8", body(free(), "\"\xc3\xa9\"", ""), body(free(), "\"\xc3\"", ""), "invalid_json", 0, at("/name")},
		twins{"name twice", body(free(), `"n"`, ""), body(free(), `"n"`, `,"name":"m"`), "invalid_json", 0, at("/name")},
		twins{"everything at once", body(free(), `"n"`, `,"description":"","data":{},"metadata":{}`),
			body(`"A"`, `""`, `,"description":5,"data":[],"metadata":{"_a":1},"more":1`), "", 0,
			at("/data", "/description", "/metadata/_a", "/more", "/name", "/slug")},
	)
	for _, w := range all {
		w.run(t, 201, func(body string) answer { return h.do(t, "POST", "/v1/projects", body) })
	}

	// The same fields in a patch.
	project := h.newProject(t, "patched")
	for _, w := range []twins{
		{"patch slug taken", `{"slug":"patched"}`, `{"slug":"taken"}`, "projects_slug_key", 409, at("/slug")},
		{"patch slug", `{"slug":"a-b-c"}`, `{"slug":"a_b-c"}`, "", 0, at("/slug")},
		{"patch slug null", `{}`, `{"slug":null}`, "", 0, at("/slug")},
		{"patch name empty", `{"name":"x"}`, `{"name":""}`, "", 0, at("/name")},
		{"patch name null", `{"name":"null"}`, `{"name":null}`, "", 0, at("/name")},
		{"patch name NUL", `{"name":"y"}`, `{"name":"y\u0000"}`, "", 0, at("/name")},
		{"patch description length", `{"description":` + long(10000, "x") + `}`, `{"description":` + long(10001, "x") + `}`, "", 0, at("/description")},
		{"patch archived", `{"archived":true}`, `{"archived":"true"}`, "", 0, at("/archived")},
		{"patch archived null", `{"archived":false}`, `{"archived":null}`, "", 0, at("/archived")},
		{"patch archivedAt", `{"archived":false}`, `{"archivedAt":null}`, "", 0, at("/archivedAt")},
		{"patch data", `{"data":{"a":null}}`, `{"data":null}`, "", 0, at("/data")},
		{"patch metadata", `{"metadata":{"_a":null}}`, `{"metadata":[]}`, "", 0, at("/metadata")},
		{"patch metadata of a number", `{"metadata":{"_a":{}}}`, `{"metadata":{"_a":1}}`, "projects_metadata_check", 422, at("/metadata")},
		{"patch metadata of no subsystem", `{"metadata":{"a":null}}`, `{"metadata":{"a":{}}}`, "projects_metadata_check", 422, at("/metadata")},
		{"patch more", `{}`, `{"createdAt":"2026-01-01T00:00:00Z","id":"x"}`, "", 0, at("/createdAt", "/id")},
	} {
		before := h.tables(t)
		w.run(t, 0, func(body string) answer { return h.do(t, "PATCH", "/v1/projects/"+project, body) })
		h.unchanged(t, before, w.name)
		w.run(t, 200, func(body string) answer { return h.do(t, "PATCH", "/v1/projects/"+project, body) })
	}
}

// patches is a series of merge patches, each with what the object holds afterwards.
var patches = []struct{ patch, want string }{
	{`{}`, `{"_a":{"x":1,"y":{"z":[1,2]}},"_b":{}}`},
	{`{"_a":{}}`, `{"_a":{"x":1,"y":{"z":[1,2]}},"_b":{}}`},
	{`{"_a":{"x":2}}`, `{"_a":{"x":2,"y":{"z":[1,2]}},"_b":{}}`},
	{`{"_a":{"x":null}}`, `{"_a":{"y":{"z":[1,2]}},"_b":{}}`},
	{`{"_a":{"none":null},"_none":null}`, `{"_a":{"y":{"z":[1,2]}},"_b":{}}`},
	{`{"_a":{"y":{"z":[null,{"n":null}]}}}`, `{"_a":{"y":{"z":[null,{"n":null}]}},"_b":{}}`}, // arrays are replaced whole
	{`{"_a":{"y":"text"}}`, `{"_a":{"y":"text"},"_b":{}}`},
	{`{"_a":{"y":{"o":{"n":null,"m":0}}}}`, `{"_a":{"y":{"o":{"m":0}}},"_b":{}}`},
	{`{"_b":{"nul\u0000":"\u0000","lone\ud83d":"\ude00","\u0010":"\u00100"}}`, `{"_a":{"y":{"o":{"m":0}}},"_b":{"nul\u0000":"\u0000","lone\ud83d":"\ude00","\u0010":"\u00100"}}`},
	{`{"_b":{"nul\u0000":null,"lone\ud83d":{"\ud83d":1}}}`, `{"_a":{"y":{"o":{"m":0}}},"_b":{"lone\ud83d":{"\ud83d":1},"\u0010":"\u00100"}}`},
	{`{"_b":{"lone\ud83e":2,"lone\ud83d":{"\ud83d":null}}}`, `{"_a":{"y":{"o":{"m":0}}},"_b":{"lone\ud83e":2,"lone\ud83d":{},"\u0010":"\u00100"}}`},
	{`{"_b":{"":{"":""},"a/b":1,"a~b":2,"<&>":"<&>\u2028"}}`, `{"_a":{"y":{"o":{"m":0}}},"_b":{"lone\ud83e":2,"lone\ud83d":{},"\u0010":"\u00100","":{"":""},"a/b":1,"a~b":2,"<&>":"<&>\u2028"}}`},
	{`{"_b":null}`, `{"_a":{"y":{"o":{"m":0}}}}`},
	{`{"_c":{"null":{"a":null}},"_a":null}`, `{"_c":{"null":{}}}`},
}

const unpatched = `{"_a":{"x":1,"y":{"z":[1,2]}},"_b":{}}`

// A patch is a merge patch (RFC 7396), at every depth, and touches nothing else.
func TestProjectPatchMerges(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	created := h.do(t, "POST", "/v1/projects", `{"slug":"p","name":"n","description":"d","data":`+unpatched+`,"metadata":`+unpatched+`}`).wants(t, 201).project(t)
	path := "/v1/projects/" + created.ID
	revision := 1
	for _, step := range patches {
		for _, field := range []string{"data", "metadata"} {
			before := h.do(t, "GET", path, nil).project(t)
			after := h.do(t, "PATCH", path, `{"`+field+`":`+step.patch+`}`).wants(t, 200).project(t)
			got, same, otherBefore := after.Data, after.Metadata, before.Metadata
			if field == "metadata" {
				got, same, otherBefore = after.Metadata, after.Data, before.Data
			}
			wantJSON(t, field+" after "+step.patch, got, []byte(step.want))
			wantJSON(t, "the other after "+step.patch, same, otherBefore)
			if after.Name != "n" || after.Description != "d" || after.Slug != "p" || after.ArchivedAt != nil {
				t.Fatalf("%s changed something else: %+v", step.patch, after)
			}
			// A patch that changes nothing is no revision.
			if string(got) != string(before.Data) && field == "data" || string(got) != string(before.Metadata) && field == "metadata" {
				revision++
			}
			if after.Revision != revision || (after.UpdatedAt > before.UpdatedAt) != (after.Revision > before.Revision) {
				t.Fatalf("%s of %s: revision %d, want %d; updated %s, before %s", step.patch, field, after.Revision, revision, after.UpdatedAt, before.UpdatedAt)
			}
		}
	}
	if revision < 10 {
		t.Errorf("only %d revisions", revision)
	}
	// Absent is untouched, also for what could be cleared.
	h.do(t, "PATCH", path, `{"description":""}`).wants(t, 200)
	if p := h.do(t, "PATCH", path, `{"slug":"q"}`).wants(t, 200).project(t); p.Slug != "q" || p.Name != "n" || p.Description != "" {
		t.Errorf("%+v", p)
	}
}

func TestProjectIsArchivedAndTakenUpAgain(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	path := "/v1/projects/" + h.newProject(t, "p")
	first := h.do(t, "PATCH", path, `{"archived":true}`).wants(t, 200).project(t)
	if first.ArchivedAt == nil || first.Revision != 2 {
		t.Fatalf("%+v", first)
	}
	again := h.do(t, "PATCH", path, `{"archived":true}`).wants(t, 200).project(t)
	if again.ArchivedAt == nil || *again.ArchivedAt != *first.ArchivedAt || again.Revision != 2 {
		t.Errorf("archived twice: %+v, first %+v", again, first)
	}
	if p := h.do(t, "PATCH", path, `{"name":"x"}`).wants(t, 200).project(t); p.ArchivedAt == nil {
		t.Errorf("taken up by a change of the name: %+v", p)
	}
	if p := h.do(t, "PATCH", path, `{"archived":false}`).wants(t, 200).project(t); p.ArchivedAt != nil || p.Revision != 4 {
		t.Errorf("%+v", p)
	}
}

func TestProjectWithSessionsStays(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	session := h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`).wants(t, 201).id(t)
	before := h.tables(t)
	h.do(t, "DELETE", "/v1/projects/"+project, nil).refused(t, 409, "sessions_project_id_fkey_in_use")
	h.unchanged(t, before, "a refused deletion")
	h.do(t, "DELETE", "/v1/sessions/"+session, nil).wants(t, 204)
	h.do(t, "DELETE", "/v1/projects/"+project, nil).wants(t, 204)
}

// If-Match on PATCH and DELETE of every resource that has them.
func TestIfMatch(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "holds-sessions")
	for name, r := range map[string]struct {
		create func() string // its path; at revision 2
		patch  func(n int) string
	}{
		"project": {
			func() string {
				path := "/v1/projects/" + h.newProject(t, "p-"+uuid.NewString())
				h.do(t, "PATCH", path, `{"name":"second"}`).wants(t, 200)
				return path
			},
			func(n int) string { return fmt.Sprintf(`{"name":"n%d"}`, n) },
		},
		"session": {
			func() string {
				path := "/v1/sessions/" + h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`).wants(t, 201).id(t)
				h.do(t, "PATCH", path, `{"title":"second"}`).wants(t, 200)
				return path
			},
			func(n int) string { return fmt.Sprintf(`{"title":"n%d"}`, n) },
		},
		"session's data": {
			func() string {
				path := "/v1/sessions/" + h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`).wants(t, 201).id(t)
				h.do(t, "PATCH", path, `{"data":{"second":2}}`).wants(t, 200)
				return path
			},
			func(n int) string { return fmt.Sprintf(`{"data":{"n":%d}}`, n) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := r.create()
			before := h.tables(t)
			for i, method := range []string{"PATCH", "DELETE"} {
				send := func(tag string) answer {
					if method == "PATCH" {
						return h.do(t, method, path, r.patch(i), "If-Match", tag)
					}
					return h.do(t, method, path, nil, "If-Match", tag)
				}
				for _, stale := range []string{`"1"`, `"3"`, `"0"`, `"-2"`, `""`, `"x"`, `"02"`, `"+2"`, `"20"`, `"0x2"`, `"2.0"`, `"2147483648"`, `"-2147483649"`, `"99999999999999999999"`, `W/"2"`, `W/"1"`} {
					send(stale).refused(t, 412, "precondition_failed")
				}
				for _, garbage := range []string{`2`, `x`, `"`, `"2`, `2"`, `'2'`, "`2`", `"2"x`, `w/"2"`, `W/2`, `"2" "3"`, `"2", "3"`, `"a b"`, `**`, `"*`, strings.Repeat("a", 201)} {
					send(garbage).refused(t, 400, "invalid_request", "header:If-Match")
				}
				h.unchanged(t, before, method+" with other ETags")
			}
			a := h.do(t, "PATCH", path, r.patch(10), "If-Match", `"2"`).wants(t, 200)
			if a.header.Get("ETag") != `"3"` {
				t.Errorf("ETag %q", a.header.Get("ETag"))
			}
			h.do(t, "PATCH", path, r.patch(11), "If-Match", `"2"`).refused(t, 412, "precondition_failed")
			h.do(t, "PATCH", path, r.patch(12), "If-Match", "*").wants(t, 200)
			h.do(t, "PATCH", path, r.patch(13), "If-Match", ` "4" `).wants(t, 200)
			h.do(t, "DELETE", path, nil, "If-Match", `"4"`).refused(t, 412, "precondition_failed")
			h.do(t, "DELETE", path, nil, "If-Match", `"5"`).wants(t, 204)
			h.do(t, "DELETE", r.create(), nil, "If-Match", "*").wants(t, 204)

			// What is not there has no ETag to differ.
			for _, tag := range []string{`"5"`, "*", `"x"`} {
				h.do(t, "DELETE", path, nil, "If-Match", tag)
			}
			h.do(t, "DELETE", path, nil, "If-Match", `"5"`).wants(t, 404)
			h.do(t, "PATCH", path, r.patch(14), "If-Match", `"5"`).wants(t, 404)
		})
	}
}

// pages reads a list to its end and returns the values of a field, in order.
func (h *hub) pages(t testing.TB, c caller, path, field string, limit int) []string {
	t.Helper()
	var all []string
	query := fmt.Sprintf("limit=%d", limit)
	if strings.Contains(path, "?") {
		query = "&" + query
	} else {
		query = "?" + query
	}
	for cursor, n := "", 0; ; n++ {
		if n > 1000 {
			t.Fatal("the list has no end")
		}
		p := h.page(t, c, path+query+cursor, field)
		if len(p.values) > limit || len(p.values) < limit && p.cursor != "" || len(p.values) == 0 && n > 0 {
			t.Fatalf("page %d has %d items of %d, and the cursor %q", n, len(p.values), limit, p.cursor)
		}
		all = append(all, p.values...)
		if p.cursor == "" {
			return all
		}
		cursor = "&cursor=" + p.cursor
	}
}

type page struct {
	values []string
	cursor string
}

func (h *hub) page(t testing.TB, c caller, path, field string) page {
	t.Helper()
	var body struct {
		Items      []map[string]json.RawMessage
		NextCursor string
	}
	h.as(t, c, "GET", path, nil).wants(t, http.StatusOK).into(t, &body)
	p := page{cursor: body.NextCursor}
	for _, item := range body.Items {
		p.values = append(p.values, strings.Trim(string(item[field]), `"`))
	}
	return p
}

func TestListProjects(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	if p := h.page(t, h.admin, "/v1/projects", "slug"); len(p.values) != 0 || p.cursor != "" {
		t.Errorf("an empty hub lists %v", p)
	}
	var want []string
	for _, slug := range []string{"b", "a-1", "a", "a1", "9", "b-b", "a-10", "a-9", "z"} {
		want = append(want, slug)
		h.newProject(t, slug)
	}
	slices.Sort(want) // by code point
	for limit := range 11 {
		if limit > 0 {
			if got := h.pages(t, h.admin, "/v1/projects", "slug", limit); !slices.Equal(got, want) {
				t.Errorf("in pages of %d: %v, want %v", limit, got, want)
			}
		}
	}
	// Filters.
	h.do(t, "PATCH", "/v1/projects/"+h.projectID(t, "a1"), `{"archived":true}`).wants(t, 200)
	h.do(t, "PATCH", "/v1/projects/"+h.projectID(t, "z"), `{"archived":true}`).wants(t, 200)
	for query, want := range map[string][]string{
		"archived=true":              {"a1", "z"},
		"archived=false":             {"9", "a", "a-1", "a-10", "a-9", "b", "b-b"},
		"slug=a1":                    {"a1"},
		"slug=a1&archived=true":      {"a1"},
		"slug=a1&archived=false":     nil,
		"slug=A1":                    nil,
		"slug=":                      nil,
		"slug=nothing":               nil,
		"slug=%27%20OR%201%3D1%20--": nil,
	} {
		if got := h.pages(t, h.admin, "/v1/projects?"+query, "slug", 1); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", query, got, want)
		}
	}
}

func (h *hub) projectID(t testing.TB, slug string) (id string) {
	t.Helper()
	h.scan(t, &id, "SELECT id::text FROM projects WHERE slug = $1 AND org_id = $2", slug, h.admin.org)
	return id
}

// A page is 50 items unless the client says otherwise, and 200 at most.
func TestListLimits(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newWork(t, h.admin)
	h.exec(t, "DELETE FROM projects WHERE id = $1", f.emptyProject)
	h.exec(t, "INSERT INTO projects (org_id, slug, name) SELECT $1, 'p-' || n, 'n' FROM generate_series(1, 200) n", h.admin.org)
	h.exec(t, "INSERT INTO sessions (org_id, project_id) SELECT $1, $2 FROM generate_series(1, 200)", h.admin.org, f.project)
	h.exec(t, "INSERT INTO messages (org_id, session_id, role) SELECT $1, $2, 'user' FROM generate_series(1, 200)", h.admin.org, f.session)
	for _, path := range []string{"/v1/projects", "/v1/sessions", "/v1/sessions/" + f.session + "/messages"} {
		for query, want := range map[string]int{"": 50, "?limit=1": 1, "?limit=50": 50, "?limit=200": 200} {
			if p := h.page(t, h.admin, path+query, "id"); len(p.values) != want || p.cursor == "" {
				t.Errorf("%s%s: %d items, want %d, and a cursor: %q", path, query, len(p.values), want, p.cursor)
			}
		}
		all := h.pages(t, h.admin, path, "id", 200)
		if len(all) != 201 {
			t.Errorf("%s: %d items", path, len(all))
		}
		// The last page may be full: then nothing follows.
		first := h.page(t, h.admin, path+"?limit=1", "id")
		rest := h.page(t, h.admin, path+"?limit=200&cursor="+first.cursor, "id")
		if len(rest.values) != 200 || rest.cursor != "" {
			t.Errorf("%s: the last page has %d items and the cursor %q", path, len(rest.values), rest.cursor)
		}
		if !slices.Equal(append(first.values, rest.values...), all) {
			t.Errorf("%s: other pages, other items", path)
		}
		// A page of another size goes on at the same place.
		if p := h.page(t, h.admin, path+"?limit=3&cursor="+first.cursor, "id"); !slices.Equal(p.values, all[1:4]) {
			t.Errorf("%s: %v, want %v", path, p.values, all[1:4])
		}
	}
}

// A cursor goes on behind its item, whatever was inserted or deleted since, the item itself too.
func TestCursorsContinueWhileRowsChange(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for _, slug := range []string{"b", "d", "f", "h", "j"} {
		h.newProject(t, slug)
	}
	first := h.page(t, h.admin, "/v1/projects?limit=2", "slug")
	if !slices.Equal(first.values, []string{"b", "d"}) {
		t.Fatal(first)
	}
	h.do(t, "DELETE", "/v1/projects/"+h.projectID(t, "d"), nil).wants(t, 204) // the cursor's item
	h.do(t, "DELETE", "/v1/projects/"+h.projectID(t, "f"), nil).wants(t, 204) // the next one
	h.newProject(t, "a")                                                      // before it
	h.newProject(t, "c")
	h.newProject(t, "e") // behind it
	h.do(t, "PATCH", "/v1/projects/"+h.projectID(t, "b"), `{"slug":"k"}`).wants(t, 200)
	second := h.page(t, h.admin, "/v1/projects?limit=2&cursor="+first.cursor, "slug")
	if !slices.Equal(second.values, []string{"e", "h"}) {
		t.Errorf("%v", second)
	}
	third := h.page(t, h.admin, "/v1/projects?limit=2&cursor="+second.cursor, "slug")
	if !slices.Equal(third.values, []string{"j", "k"}) || third.cursor != "" {
		t.Errorf("%v", third)
	}

	// Sessions, newest first: a new one is before the first page, and shows on none that follows.
	project := h.projectID(t, "a")
	create := func() string {
		return h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`).wants(t, 201).id(t)
	}
	s1, s2, s3, s4 := create(), create(), create(), create()
	newest := h.page(t, h.admin, "/v1/sessions?limit=2", "id")
	if !slices.Equal(newest.values, []string{s4, s3}) {
		t.Fatalf("%v, want %v", newest, []string{s4, s3})
	}
	create()
	h.do(t, "DELETE", "/v1/sessions/"+s3, nil).wants(t, 204)
	older := h.page(t, h.admin, "/v1/sessions?limit=2&cursor="+newest.cursor, "id")
	if !slices.Equal(older.values, []string{s2, s1}) || older.cursor != "" {
		t.Errorf("%v, want %v", older, []string{s2, s1})
	}
	// A cursor stays good when its list has lost all that followed.
	h.do(t, "DELETE", "/v1/sessions/"+s2, nil).wants(t, 204)
	h.do(t, "DELETE", "/v1/sessions/"+s1, nil).wants(t, 204)
	if p := h.page(t, h.admin, "/v1/sessions?limit=2&cursor="+newest.cursor, "id"); len(p.values) != 0 || p.cursor != "" {
		t.Errorf("%v", p)
	}

	// Messages, oldest first: a reader sees every message that is appended while it reads.
	messages := "/v1/sessions/" + s4 + "/messages"
	appendOne := func() string {
		var list struct{ Items []struct{ ID string } }
		h.do(t, "POST", messages, `{"messages":[{"role":"user"}]}`).wants(t, 201).into(t, &list)
		return list.Items[0].ID
	}
	want := []string{appendOne(), appendOne(), appendOne()}
	got := h.page(t, h.admin, messages+"?limit=2", "id")
	seen := got.values
	want = append(want, appendOne(), appendOne())
	for got.cursor != "" {
		got = h.page(t, h.admin, messages+"?limit=2&cursor="+got.cursor, "id")
		seen = append(seen, got.values...)
	}
	if !slices.Equal(seen, want) {
		t.Errorf("%v, want %v", seen, want)
	}
}

// A cursor belongs to its list and its filters. Any other use would skip items, so it is refused.
func TestCursorsBelongToTheirFilters(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f, other := h.newFamily(t, h.admin), h.newFamily(t, h.admin)
	for range 3 {
		h.do(t, "POST", "/v1/sessions", `{"projectId":"`+f.project+`"}`).wants(t, 201)
		h.do(t, "POST", "/v1/sessions/"+f.session+"/messages", `{"messages":[{"role":"user"}]}`).wants(t, 201)
		h.do(t, "POST", "/v1/sessions/"+other.session+"/messages", `{"messages":[{"role":"user"}]}`).wants(t, 201)
	}
	lists := []string{
		"/v1/projects?", "/v1/projects?archived=false&",
		"/v1/sessions?", "/v1/sessions?archived=false&", "/v1/sessions?runState=idle&", "/v1/sessions?projectId=" + f.project + "&",
		"/v1/sessions?accountId=" + h.admin.account.String() + "&", "/v1/sessions?archived=false&runState=idle&",
		"/v1/sessions/" + f.session + "/messages?", "/v1/sessions/" + other.session + "/messages?",
	}
	more := []string{
		"/v1/projects?archived=true&", "/v1/projects?slug=a&", "/v1/sessions?archived=true&", "/v1/sessions?runState=running&", "/v1/sessions?roleName=idle&",
		"/v1/sessions?sourceId=idle&", "/v1/sessions?parentId=" + f.project + "&", "/v1/sessions?projectId=" + other.project + "&", "/v1/sessions?accountId=" + f.project + "&",
	}
	for i, from := range lists {
		cursor := h.page(t, h.admin, from+"limit=1", "id").cursor
		if cursor == "" {
			t.Fatalf("%s has one page", from)
		}
		for j, to := range slices.Concat(lists, more) {
			a := h.do(t, "GET", to+"limit=2&cursor="+cursor, nil)
			if i == j {
				a.wants(t, 200)
			} else {
				a.refused(t, 400, "invalid_cursor", "query:cursor")
			}
		}
		// The cursor with any character changed is another key or none, never a failure; each prefix is refused.
		for k := range len(cursor) {
			if a := h.do(t, "GET", from+"cursor="+cursor[:k], nil); k < len(cursor)-3 {
				a.refused(t, 400, "invalid_cursor", "query:cursor")
			} else if a.status >= 500 {
				t.Errorf("%s: %s", cursor[:k], a.body)
			}
			for _, c := range []string{"A", "_", "9"} {
				if a := h.do(t, "GET", from+"cursor="+cursor[:k]+c+cursor[k+1:], nil); a.status != 200 && a.status != 400 {
					t.Errorf("%s: status %d: %s", from, a.status, a.body)
				}
			}
		}
	}
	// Another caller's cursor is the same place in the caller's own list.
	stranger := h.newCaller(t, uuid.Nil, "*")
	cursor := h.page(t, h.admin, "/v1/sessions?limit=1", "id").cursor
	if p := h.page(t, stranger, "/v1/sessions?limit=1&cursor="+cursor, "id"); len(p.values) != 0 {
		t.Errorf("a stranger sees %v", p)
	}
}

func TestWorkspacesFromBeginningToEnd(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	list := "/v1/projects/" + p + "/workspaces"
	a := h.do(t, "POST", list, `{"name":"main","path":"/srv/main","branch":"main","metadata":{"_x":{"a":1}}}`).wants(t, 201)
	path := a.header.Get("Location")
	if path != "/v1/workspaces/"+a.id(t) || a.header.Get("ETag") != `"1"` {
		t.Errorf("%v", a.header)
	}
	wantJSON(t, "got", h.do(t, "GET", path, nil).wants(t, 200).body, a.body)
	h.do(t, "POST", list, `{"name":"main","path":"/srv/other"}`).refused(t, 409, "workspaces_name_key", "/name")
	h.do(t, "POST", "/v1/projects/"+h.newProject(t, "q")+"/workspaces", `{"name":"main","path":"https://host/x"}`).wants(t, 201)
	for body, pointer := range map[string]string{
		`{"path":"/x"}`: "/name", `{"name":"x"}`: "/path", `{"name":"","path":"/x"}`: "/name", `{"name":"x","path":"/x","branch":""}`: "/branch", `{"name":"x","path":"/x","spokeId":"y"}`: "/spokeId", `{"name":"x\u0000","path":"/x"}`: "/name",
	} {
		h.do(t, "POST", list, body).refused(t, 400, "invalid_request", pointer)
	}
	h.do(t, "POST", list, `{"name":"x","path":"srv"}`).refused(t, 422, "workspaces_path_shape_check", "/path")
	h.do(t, "POST", list, `{"name":"x","path":"/srv","branch":"a b"}`).refused(t, 422, "workspaces_branch_shape_check", "/branch")
	h.do(t, "POST", list, `{"name":"x","path":"/srv","metadata":{"x":{}}}`).refused(t, 422, "workspaces_metadata_check", "/metadata")
	h.do(t, "POST", "/v1/projects/"+a.id(t)+"/workspaces", `{"name":"x","path":"/srv"}`).refused(t, 404, "project_not_found")
	h.do(t, "GET", "/v1/projects/"+a.id(t)+"/workspaces", nil).refused(t, 404, "project_not_found")

	h.do(t, "PATCH", path, `{"name":"x"}`, "If-Match", `"7"`).refused(t, 412, "precondition_failed")
	var w struct {
		Name, Path string
		Branch     *string
		Revision   int
	}
	h.do(t, "PATCH", path, `{"path":"/srv/moved"}`, "If-Match", `"1"`).wants(t, 200).into(t, &w)
	if w.Name != "main" || w.Path != "/srv/moved" || value(w.Branch) != "main" || w.Revision != 2 {
		t.Errorf("%+v", w)
	}
	h.do(t, "PATCH", path, `{"branch":null,"name":"renamed"}`).wants(t, 200).into(t, &w)
	if w.Name != "renamed" || w.Branch != nil || w.Revision != 3 {
		t.Errorf("%+v", w)
	}
	for _, name := range []string{"b", "a", "c"} {
		h.do(t, "POST", list, `{"name":"`+name+`","path":"/srv/`+name+`"}`).wants(t, 201)
	}
	if got := h.page(t, h.admin, list+"?limit=2", "name"); !slices.Equal(got.values, []string{"a", "b"}) {
		t.Errorf("%v", got.values)
	}
	if got := h.page(t, h.admin, list+"?name=renamed", "name"); !slices.Equal(got.values, []string{"renamed"}) {
		t.Errorf("%v", got.values)
	}
	h.do(t, "DELETE", path, nil, "If-Match", `"1"`).refused(t, 412, "precondition_failed")
	h.do(t, "DELETE", path, nil, "If-Match", `"3"`).wants(t, 204)
	h.do(t, "DELETE", path, nil).refused(t, 404, "workspace_not_found")
	h.do(t, "PATCH", path, `{"name":"x"}`).refused(t, 404, "workspace_not_found")
	// They go with their project.
	h.do(t, "DELETE", "/v1/projects/"+p, nil).wants(t, 204)
	if n := h.count(t, "SELECT count(*) FROM workspaces"); n != 1 {
		t.Errorf("%d workspaces are left", n)
	}
}
