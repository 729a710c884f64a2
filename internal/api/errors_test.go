package api_test

import (
	"context"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/internal/api"
)

const marker = "zebra4711"

// PostgreSQL prints values and whole rows in DETAIL, HINT and WHERE: they reach neither the client nor the log.
func TestX02_DetailNeverLeavesTheServer(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure)
	f := h.newFamily(t, h.admin)
	h.newProject(t, marker)
	h.exec(t, `CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
			RAISE EXCEPTION 'a bug in a function' USING DETAIL = 'a row with `+marker+`', HINT = 'a hint with `+marker+`', ERRCODE = 'XX001';
		END $f$;
		CREATE TRIGGER broken BEFORE UPDATE OF title ON sessions FOR EACH ROW EXECUTE FUNCTION broken()`)
	// PostgreSQL leaves DETAIL out where row-level security is on; a rule that raises says what it likes.
	h.exec(t, `CREATE FUNCTION talkative() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
			RAISE EXCEPTION 'no slug' USING ERRCODE = '23514', CONSTRAINT = 'projects_slug_shape_check', DETAIL = 'a row with `+marker+`', HINT = 'a hint with `+marker+`';
		END $f$;
		CREATE TRIGGER talkative BEFORE INSERT ON projects FOR EACH ROW WHEN (NEW.slug = 'talkative') EXECUTE FUNCTION talkative()`)
	h.exec(t, "ALTER TABLE projects ADD CONSTRAINT no_rule_of_ours CHECK (description NOT LIKE 'unknown rule%')")
	metadata := `{"bad":{"` + marker + `":"` + marker + `"}}`
	for _, r := range []struct {
		name, method, path, body string
		status                   int
		code                     string
	}{
		{"a unique slug", "POST", "/v1/projects", `{"slug":"` + marker + `","name":"` + marker + `"}`, 409, "projects_slug_key"},
		{"a check of the row", "POST", "/v1/projects", `{"slug":"p-1","name":"` + marker + `","metadata":` + metadata + `}`, 422, "projects_metadata_check"},
		{"a check of a patched row", "PATCH", "/v1/projects/" + f.project, `{"name":"` + marker + `","metadata":` + metadata + `}`, 422, "projects_metadata_check"},
		{"a foreign key", "POST", "/v1/sessions", `{"projectId":"` + f.project + `","title":"` + marker + `","roleName":"` + marker + `"}`, 422, "sessions_role_name_fkey"},
		{"a check of a message", "POST", "/v1/sessions/" + f.session + "/messages", `{"messages":[{"role":"user","data":{"x":"` + marker + `"},"metadata":` + metadata + `}]}`, 422, "messages_metadata_check"},
		{"a check of a part", "POST", "/v1/sessions/" + f.session + "/messages", `{"messages":[{"role":"user","parts":[{"type":"` + marker + `","metadata":` + metadata + `}]}]}`, 422, "parts_metadata_check"},
		{"a rule that raises", "POST", "/v1/projects", `{"slug":"talkative","name":"` + marker + `"}`, 422, "projects_slug_shape_check"},
		{"a rule that the server does not know", "POST", "/v1/projects", `{"slug":"p-2","name":"` + marker + `","description":"unknown rule ` + marker + `"}`, 500, "internal"},
		{"a bug in a function", "PATCH", "/v1/sessions/" + f.session, `{"title":"` + marker + `"}`, 500, "internal"},
	} {
		a := h.do(t, r.method, r.path, r.body)
		if p := a.problem(t); a.status != r.status || p.Code != r.code {
			t.Errorf("%s: status %d, want %d %s: %s", r.name, a.status, r.status, r.code, a.body)
		}
		if strings.Contains(string(a.body), marker) || strings.Contains(string(a.body), "no_rule_of_ours") || strings.Contains(string(a.body), "a bug in a function") {
			t.Errorf("%s: the answer tells values or causes: %s", r.name, a.body)
		}
	}
	log.waitFor(t, "a bug in a function") // the message and the rule's name are logged, for whoever has to mend it
	log.waitFor(t, "no_rule_of_ours")
	log.waitFor(t, `"status":500,`)
	if strings.Contains(log.String(), marker) {
		t.Errorf("the log holds values: %s", log)
	}
}

// A 500 says nothing of its cause; the request id leads to it in the log.
func TestInternalErrorsSayNothing(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure)
	h.exec(t, `CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION '`+marker+`'; END $f$;
		CREATE TRIGGER broken BEFORE INSERT ON projects FOR EACH ROW EXECUTE FUNCTION broken()`)
	a := h.do(t, "POST", "/v1/projects", `{"slug":"a","name":"b"}`, "X-Request-Id", "find-me-1")
	a.refused(t, 500, "internal")
	want := `{"code":"internal","detail":"Something is wrong on the server. The request id names what was logged.","instance":"/v1/projects","requestId":"find-me-1","status":500,"title":"Internal Server Error","type":"urn:hub:problem:internal"}`
	if string(a.body) != want {
		t.Errorf("%s, want %s", a.body, want)
	}
	log.waitFor(t, marker)
	if !regexp.MustCompile(`"level":"ERROR"[^\n]*"requestId":"find-me-1"[^\n]*` + marker).MatchString(log.String()) {
		t.Errorf("the log does not lead from the request id to the cause: %s", log)
	}
}

// A privilege that is missing is our mistake: told as little, and logged.
func TestAMissingPrivilegeIsLogged(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure)
	project := h.newProject(t, "p")
	// What a limited key may not is not.
	limited := h.limited(t, h.admin, project, "*")
	h.as(t, limited, "POST", "/v1/projects", `{"slug":"q","name":"q"}`).refused(t, 403, "not_permitted")
	log.waitFor(t, `"status":403,`)
	if strings.Contains(log.String(), `"level":"ERROR"`) {
		t.Errorf("a client's fault is logged as ours: %s", log)
	}
	h.exec(t, "REVOKE DELETE ON projects FROM hub_app")
	h.do(t, "DELETE", "/v1/projects/"+project, nil, "X-Request-Id", "missing-1").refused(t, 403, "not_permitted")
	log.waitFor(t, `"requestId":"missing-1","code":"not_permitted"`)
	h.exec(t, "GRANT DELETE ON projects TO hub_app")
	h.do(t, "DELETE", "/v1/projects/"+project, nil).wants(t, 204)
}

// brokenTracer panics where pgx asks it, in the goroutine of the request.
type brokenTracer struct{ broken atomic.Bool }

func (b *brokenTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (b *brokenTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData)     {}
func (b *brokenTracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (b *brokenTracer) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}
func (b *brokenTracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	if b.broken.Load() {
		panic("it broke")
	}
	return ctx
}

// A panic is a 500, and the server lives.
func TestPanicsBecome500(t *testing.T) {
	t.Parallel()
	log, tracer := &logBuffer{}, &brokenTracer{}
	h := newHub(t, log.configure, func(_ *api.Config, p *pgxpool.Config) { p.ConnConfig.Tracer = tracer })
	f := h.newFamily(t, h.admin)
	tracer.broken.Store(true)
	for range 20 { // more often than there are connections, and turns for exports
		for _, r := range []sample{
			{"DELETE", "/v1/projects/" + f.emptyProject, "", "", 500},
			{"PATCH", "/v1/sessions/" + f.session, "application/json", `{"data":{"x":1}}`, 500},
			{"GET", "/v1/sessions/" + f.session + "/export", "", "", 500},
		} {
			a := h.send(t, h.admin, r)
			a.refused(t, 500, "internal")
			if strings.Contains(string(a.body), "panic") || strings.Contains(string(a.body), "it broke") || strings.Contains(string(a.body), ".go") {
				t.Errorf("%s", a.body)
			}
		}
		h.do(t, "GET", "/healthz", nil).wants(t, 200)
		h.as(t, caller{}, "GET", "/v1/projects", nil).refused(t, 401, "unauthenticated")
	}
	log.waitFor(t, "panic: it broke")
	if !strings.Contains(log.String(), "store.go") {
		t.Error("the log has no stack")
	}
	tracer.broken.Store(false)
	h.do(t, "GET", "/v1/sessions/"+f.session+"/export", nil).wants(t, 200)
	h.do(t, "DELETE", "/v1/projects/"+f.emptyProject, nil).wants(t, 204)
}

// Request ids: the caller's where it is harmless, else one of the server's.
func TestRequestIDs(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure)
	uuidV7 := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	for _, path := range []string{"/v1/projects", "/v1/projects?nonsense=1", "/v1/nothing", "/healthz"} {
		for _, id := range []string{"abc", "A.b_c-9", strings.Repeat("x", 100)} {
			a := h.do(t, "GET", path, nil, "X-Request-Id", id)
			if got := a.header.Get("X-Request-Id"); got != id {
				t.Errorf("%s: %q became %q", path, id, got)
			}
			if a.status >= 400 && a.problem(t).RequestID != id {
				t.Errorf("%s: the problem has another id: %s", path, a.body)
			}
		}
		seen := map[string]bool{}
		for _, id := range []string{"", " ", "a b", strings.Repeat("x", 101), "a\tb", "a\"b", "a,b", "<script>", "é", "a/b", "a:b", "\xff"} {
			a := h.do(t, "GET", path, nil, "X-Request-Id", id)
			got := a.header.Get("X-Request-Id")
			if !uuidV7.MatchString(got) || seen[got] {
				t.Errorf("%s: %q became %q", path, id, got)
			}
			seen[got] = true
			if a.status >= 400 && a.problem(t).RequestID != got {
				t.Errorf("%s: the problem has another id: %s", path, a.body)
			}
		}
	}
	if strings.Contains(log.String(), "script") {
		t.Error("a harmful id was logged")
	}
	a := h.do(t, "GET", "/v1/projects", nil, "X-Request-Id", "the-last")
	if a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Error("browsers may guess the type")
	}
	log.waitFor(t, `"requestId":"the-last"`)
}

// A serialization failure or a deadlock is tried again, a few times; what the client gets is the last attempt's answer.
func TestTransactionsAreTriedAgain(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	file := export{id: "ses_again", messages: []exportMessage{{id: "m"}}}
	for _, code := range []string{"40001", "40P01"} {
		for _, failures := range []int{0, 1, 2, 3, 4} {
			h.exec(t, `CREATE SEQUENCE attempts; GRANT USAGE ON SEQUENCE attempts TO PUBLIC`)
			h.exec(t, `CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
				IF nextval('attempts') <= `+string(rune('0'+failures))+` THEN RAISE EXCEPTION 'again' USING ERRCODE = '`+code+`'; END IF; RETURN NEW; END $f$;
				CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION fail()`)
			for name, send := range map[string]func() answer{
				"create": func() answer { return h.do(t, "POST", "/v1/sessions", `{"projectId":"`+f.project+`"}`) },
				"update": func() answer {
					return h.do(t, "PATCH", "/v1/sessions/"+f.session, `{"title":"`+uuid.NewString()+`"}`)
				},
				"update in a transaction": func() answer {
					return h.do(t, "PATCH", "/v1/sessions/"+f.session, `{"data":{"x":"`+uuid.NewString()+`"}}`)
				},
				"import": func() answer {
					file.id = "ses_" + uuid.NewString()
					file.messages[0].id = "msg_" + uuid.NewString()
					return h.importFile(t, h.admin, f.project, file)
				},
			} {
				h.exec(t, "SELECT setval('attempts', 1, false)")
				a := send()
				if failures < 4 {
					if a.status >= 300 {
						t.Errorf("%s, %d failures with %s: status %d: %s", name, failures, code, a.status, a.body)
					}
				} else {
					a.refused(t, 503, "try_again")
					if a.header.Get("Retry-After") == "" {
						t.Errorf("%s: no Retry-After", name)
					}
				}
			}
			h.exec(t, "DROP TRIGGER fail ON sessions; DROP FUNCTION fail; DROP SEQUENCE attempts")
		}
	}
}

// A request that takes too long ends with a 503, and leaves its connection usable.
func TestRequestsThatTakeTooLong(t *testing.T) {
	t.Parallel()
	h := newHub(t, func(c *api.Config, p *pgxpool.Config) { c.RequestTimeout, p.MaxConns = 300*time.Millisecond, 1 })
	project := h.newProject(t, "p")
	session := h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`).wants(t, 201).id(t)
	locked := h.begin(t)
	locked("SELECT FROM projects, sessions FOR UPDATE")
	for _, r := range []sample{
		{"PATCH", "/v1/projects/" + project, "application/json", `{"name":"x"}`, 503},
		{"PATCH", "/v1/sessions/" + session, "application/json", `{"data":{"x":1}}`, 503},
		{"POST", "/v1/sessions/" + session + "/messages", "application/json", `{"messages":[{"role":"user"}]}`, 503},
		{"DELETE", "/v1/sessions/" + session, "", "", 503},
	} {
		start := time.Now()
		a := h.send(t, h.admin, r)
		a.refused(t, 503, "timeout")
		if a.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		if took := time.Since(start); took < 250*time.Millisecond || took > 20*time.Second {
			t.Errorf("%s %s took %s", r.method, r.path, took)
		}
		h.do(t, "GET", "/v1/projects/"+project, nil).wants(t, 200)
	}
	locked("ROLLBACK")
	if p := h.do(t, "GET", "/v1/projects/"+project, nil).project(t); p.Revision != 1 {
		t.Errorf("a change came through after all: %+v", p)
	}
	if n := h.count(t, "SELECT count(*) FROM messages"); n != 0 {
		t.Errorf("%d messages came through after all", n)
	}
	h.do(t, "PATCH", "/v1/projects/"+project, `{"name":"x"}`).wants(t, 200)
}

// A client that goes away while the server works: its statement is cancelled, its connection is free again.
func TestClientsThatGoAway(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure, func(_ *api.Config, p *pgxpool.Config) { p.MaxConns = 1 })
	project := h.newProject(t, "p")
	locked := h.begin(t)
	locked("SELECT FROM projects FOR UPDATE")
	for range 3 {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, h.url+"/v1/projects/"+project, strings.NewReader(`{"name":"x"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+h.admin.key)
		r.Header.Set("Content-Type", "application/json")
		client.Timeout = 200 * time.Millisecond
		if response, err := client.Do(r); err == nil {
			response.Body.Close()
			t.Fatalf("there was an answer: %s", response.Status)
		}
		eventually(t, "no statement waits any more", func() bool { return h.waiting() == 0 })
		h.do(t, "GET", "/v1/projects/"+project, nil).wants(t, 200)
	}
	locked("ROLLBACK")
	if p := h.do(t, "GET", "/v1/projects/"+project, nil).project(t); p.Revision != 1 {
		t.Errorf("a change came through after all: %+v", p)
	}
}

// A database that goes away and comes back: 503 meanwhile, and nothing to restart.
func TestDatabaseThatGoesAway(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	name := h.owner.Config().Database
	h.do(t, "GET", "/readyz", nil).wants(t, 200)

	// Nobody but a superuser may connect, and who is connected is thrown out.
	h.exec(t, "ALTER DATABASE "+pgx.Identifier{name}.Sanitize()+" CONNECTION LIMIT 0")
	h.exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	for range 3 { // more often than there were connections that do not know yet
		for _, r := range []sample{
			{"GET", "/v1/projects", "", "", 503},
			{"PATCH", "/v1/sessions/" + f.session, "application/json", `{"data":{"x":1}}`, 503},
			{"POST", "/v1/projects", "application/json", `nonsense`, 503},
			{"POST", "/v1/sessions/import?projectId=" + f.project, "application/json", `{}`, 503},
			{"GET", "/v1/sessions/" + f.session + "/export", "", "", 503},
		} {
			a := h.send(t, h.admin, r)
			a.refused(t, 503, "database_unavailable")
			if a.header.Get("Retry-After") == "" || strings.Contains(string(a.body), name) {
				t.Errorf("%v %s", a.header, a.body)
			}
		}
	}
	a := h.do(t, "GET", "/readyz", nil).wants(t, 503)
	var health struct {
		Status string
		Checks map[string]string
	}
	a.into(t, &health)
	if health.Status != "unavailable" || health.Checks["database"] == "ok" || health.Checks["database"] == "" || strings.Contains(string(a.body), name) {
		t.Errorf("%s", a.body)
	}
	h.do(t, "GET", "/healthz", nil).wants(t, 200)
	h.do(t, "GET", "/v1/version", nil).wants(t, 200)
	h.as(t, caller{}, "GET", "/v1/projects", nil).refused(t, 401, "unauthenticated")

	h.exec(t, "ALTER DATABASE "+pgx.Identifier{name}.Sanitize()+" CONNECTION LIMIT -1")
	h.do(t, "GET", "/v1/projects", nil).wants(t, 200)
	h.do(t, "GET", "/readyz", nil).wants(t, 200)
}

// Rows that are not as the hub writes them: an export says so before its first byte, and as the server's fault.
func TestExportOfBrokenRows(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure)
	project := h.newProject(t, "p")
	in := h.imports(t, project, numbered("ses_x", "5000", strings.Repeat("x", 1000), 600, 2), "created")
	good := h.export(t, in.ID)
	h.exec(t, `ALTER TABLE parts DISABLE TRIGGER USER; UPDATE parts SET raw = '{"a":' WHERE source_id = 'ses_x_m500_p1'; ALTER TABLE parts ENABLE TRIGGER USER`)
	a := h.do(t, "GET", "/v1/sessions/"+in.ID+"/export", nil)
	a.refused(t, 500, "internal")
	if got := a.header.Get("Content-Disposition"); got != "" {
		t.Errorf("a browser would save the problem as %q", got)
	}
	log.waitFor(t, "a stored row")
	h.exec(t, `ALTER TABLE parts DISABLE TRIGGER USER; UPDATE parts SET raw = NULL WHERE source_id = 'ses_x_m500_p1'; ALTER TABLE parts ENABLE TRIGGER USER`)
	wantJSON(t, "the export", h.export(t, in.ID), good)
}
