package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	genapi "github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/internal/api"
	"github.com/alkdev/hub/internal/apikey"
	"github.com/alkdev/hub/internal/pgjson/jsonequal"
)

// What several files of these tests need beside the harness.

// The contract, as the tests read it ------------------------------------------------------------------------------------

// contractOp is an operation of the generated document.
type contractOp struct {
	id, method, path string
	scopes           []string
	public           bool
	media            string // of its body; "" for none
	streamed         bool
}

// operations reads all of them from the document that is served, sorted by id. It shares no code with the server.
func operations(t testing.TB) []contractOp {
	t.Helper()
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal(genapi.Contract, &doc); err != nil {
		t.Fatal(err)
	}
	var ops []contractOp
	for path, item := range doc.Paths {
		for method, text := range item {
			if !slices.Contains([]string{"get", "put", "post", "patch", "delete"}, method) {
				continue
			}
			var spec struct {
				OperationID string
				Scopes      []string `json:"x-scopes"`
				Body        string   `json:"x-body"`
				Security    *[]any
				RequestBody struct{ Content map[string]any }
			}
			if err := json.Unmarshal(text, &spec); err != nil {
				t.Fatal(err)
			}
			op := contractOp{
				id: spec.OperationID, method: strings.ToUpper(method), path: path, scopes: spec.Scopes,
				public: spec.Security != nil && len(*spec.Security) == 0, streamed: spec.Body == "stream",
			}
			for media := range spec.RequestBody.Content {
				op.media = media
			}
			ops = append(ops, op)
		}
	}
	if len(ops) < 10 {
		t.Fatalf("only %d operations found in the document", len(ops))
	}
	slices.SortFunc(ops, func(a, b contractOp) int { return strings.Compare(a.id, b.id) })
	return ops
}

// allScopes are the scopes that any operation names.
func allScopes(t testing.TB) []string {
	t.Helper()
	found := map[string]bool{}
	for _, op := range operations(t) {
		for _, scope := range op.scopes {
			found[scope] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// A request that each operation answers well ----------------------------------------------------------------------------

// family is what most operations are about: a project, a session in it and a message in that.
type family struct {
	project, emptyProject, session, message  string
	spoke                                    string // its epoch is 1; it offers fs.read, and holds runningCall and heldCall
	call, heldCall, runningCall, failingCall string
	leavingSpoke                             string
	client, rotation                         string
}

// ids are those of an organisation.
func (f family) ids() []string {
	return []string{f.project, f.emptyProject, f.session, f.message, f.client, f.spoke, f.leavingSpoke, f.call, f.heldCall, f.runningCall, f.failingCall}
}

// newFamily makes one as this caller, whose key needs *.
func (h *hub) newFamily(t testing.TB, c caller) family {
	t.Helper()
	var f family
	create := func(path, body string) answer { return h.as(t, c, "POST", path, body).wants(t, http.StatusCreated) }
	f.project = create("/v1/projects", `{"slug":"f-`+uuid.NewString()+`","name":"family"}`).id(t)
	f.emptyProject = create("/v1/projects", `{"slug":"e-`+uuid.NewString()+`","name":"empty"}`).id(t)
	f.session = create("/v1/sessions", `{"projectId":"`+f.project+`","title":"family"}`).id(t)
	var list struct{ Items []struct{ ID string } }
	create("/v1/sessions/"+f.session+"/messages", `{"messages":[{"role":"user","parts":[{"type":"text","data":{"text":"hello"}}]}]}`).into(t, &list)
	f.message = list.Items[0].ID

	f.client = create("/v1/clients", `{"name":"c-`+uuid.NewString()+`","type":"webhook","config":{"url":"https://example.com/"}}`).id(t)
	h.as(t, c, "PUT", "/v1/clients/"+f.client+"/secrets/token", `{"value":"hush"}`).wants(t, http.StatusCreated)
	h.exec(t, "INSERT INTO encryption_keys (version, fingerprint) VALUES (1000000, sha256('retired')) ON CONFLICT DO NOTHING")
	f.rotation = h.do(t, "POST", "/v1/secret-rotations", nil).wants(t, http.StatusAccepted).id(t)
	f.spoke = h.as(t, c, "POST", "/v1/spokes", `{"name":"f-`+uuid.NewString()+`"}`).wants(t, http.StatusOK).id(t)
	h.as(t, c, "PUT", "/v1/spokes/"+f.spoke+"/operations", `{"epoch":1,"operations":[{"namespace":"fs","name":"read","kind":"query"}]}`).wants(t, http.StatusOK)
	f.leavingSpoke = h.as(t, c, "POST", "/v1/spokes", `{"name":"l-`+uuid.NewString()+`"}`).wants(t, http.StatusOK).id(t)
	for _, into := range []*string{&f.runningCall, &f.failingCall, &f.heldCall, &f.call} {
		var made struct{ Call struct{ ID string } }
		h.as(t, c, "POST", "/v1/operations/fs."+f.spoke+".read/call", `{"waitSeconds":0}`).wants(t, http.StatusAccepted).into(t, &made)
		*into = made.Call.ID
	}
	h.as(t, c, "POST", "/v1/spokes/"+f.spoke+"/take", `{"epoch":1,"maxCalls":3,"waitSeconds":0}`).wants(t, http.StatusOK)
	for _, call := range []string{f.runningCall, f.failingCall} {
		h.as(t, c, "POST", "/v1/calls/"+call+"/start", `{"epoch":1,"spokeId":"`+f.spoke+`"}`).wants(t, http.StatusOK)
	}
	return f
}

// sample is a request, and the status of its answer.
type sample struct {
	method, path, media, body string
	status                    int
}

func (h *hub) send(t testing.TB, c caller, s sample) answer {
	t.Helper()
	if s.media == "" {
		return h.as(t, c, s.method, s.path, nil)
	}
	return h.as(t, c, s.method, s.path, s.body, "Content-Type", s.media)
}

// samples holds one request for each operation of the contract: a new operation needs one too. Where a body or query names
// other rows, they are the family's as well.
func (f family) samples() map[string]sample {
	const (
		plain = "application/json"
		merge = "application/merge-patch+json"
	)
	session := "/v1/sessions/" + f.session
	spoke := "/v1/spokes/" + f.spoke
	client := "/v1/clients/" + f.client
	return map[string]sample{
		"getHealth":    {"GET", "/healthz", "", "", 200},
		"getReadiness": {"GET", "/readyz", "", "", 200},
		"getVersion":   {"GET", "/v1/version", "", "", 200},
		"getMetrics":   {"GET", "/metrics", "", "", 200},

		"listClientTypes":     {"GET", "/v1/client-types", "", "", 200},
		"createClient":        {"POST", "/v1/clients", plain, `{"name":"s-` + uuid.NewString() + `","type":"llm-provider","config":{"provider":"openai"}}`, 201},
		"listClients":         {"GET", "/v1/clients", "", "", 200},
		"validateClients":     {"POST", "/v1/clients/validate", "", "", 200},
		"getClient":           {"GET", client, "", "", 200},
		"updateClient":        {"PATCH", client, merge, `{"config":{"timeoutSeconds":5}}`, 200},
		"deleteClient":        {"DELETE", client, "", "", 204},
		"listClientSecrets":   {"GET", client + "/secrets", "", "", 200},
		"putClientSecret":     {"PUT", client + "/secrets/token", plain, `{"value":"another"}`, 200},
		"getClientSecret":     {"GET", client + "/secrets/token", "", "", 200},
		"deleteClientSecret":  {"DELETE", client + "/secrets/token", "", "", 204},
		"revealClientSecret":  {"POST", client + "/secrets/token/reveal", "", "", 200},
		"listEncryptionKeys":  {"GET", "/v1/encryption-keys", "", "", 200},
		"deleteEncryptionKey": {"DELETE", "/v1/encryption-keys/1000000", "", "", 204},
		"startSecretRotation": {"POST", "/v1/secret-rotations", "", "", 202},
		"getSecretRotation":   {"GET", "/v1/secret-rotations/" + f.rotation, "", "", 200},

		"createProject": {"POST", "/v1/projects", plain, `{"slug":"s-` + uuid.NewString() + `","name":"sample"}`, 201},
		"listProjects":  {"GET", "/v1/projects", "", "", 200},
		"getProject":    {"GET", "/v1/projects/" + f.project, "", "", 200},
		"updateProject": {"PATCH", "/v1/projects/" + f.project, merge, `{"name":"changed"}`, 200},
		"deleteProject": {"DELETE", "/v1/projects/" + f.emptyProject, "", "", 204},

		"registerSpoke":   {"POST", "/v1/spokes", plain, `{"name":"s-` + uuid.NewString() + `"}`, 200},
		"listSpokes":      {"GET", "/v1/spokes", "", "", 200},
		"getSpoke":        {"GET", spoke, "", "", 200},
		"heartbeatSpoke":  {"POST", spoke + "/heartbeat", plain, `{"epoch":1}`, 200},
		"disconnectSpoke": {"POST", "/v1/spokes/" + f.leavingSpoke + "/disconnect", plain, `{"epoch":1}`, 200},
		"putOperations":   {"PUT", spoke + "/operations", plain, `{"epoch":1,"operations":[{"namespace":"fs","name":"read","kind":"query"}]}`, 200},
		"callOperation":   {"POST", "/v1/operations/fs.read/call", plain, `{"waitSeconds":0}`, 202},
		"takeCalls":       {"POST", spoke + "/take", plain, `{"epoch":1,"waitSeconds":0}`, 200},
		"startCall":       {"POST", "/v1/calls/" + f.heldCall + "/start", plain, `{"epoch":1,"spokeId":"` + f.spoke + `"}`, 200},
		"completeCall":    {"POST", "/v1/calls/" + f.runningCall + "/complete", plain, `{"epoch":1,"spokeId":"` + f.spoke + `","output":{}}`, 200},
		"failCall":        {"POST", "/v1/calls/" + f.failingCall + "/fail", plain, `{"epoch":1,"spokeId":"` + f.spoke + `","code":"x"}`, 200},
		"abortCall":       {"POST", "/v1/calls/" + f.call + "/abort", plain, `{"reason":"enough"}`, 200},
		"recordCall":      {"POST", "/v1/calls", plain, `{"requestId":"s-` + uuid.NewString() + `","operation":"x.y","status":"running","parentId":"` + f.call + `"}`, 201},
		"listCalls":       {"GET", "/v1/calls", "", "", 200},
		"getCall":         {"GET", "/v1/calls/" + f.call, "", "", 200},
		"getCallTree":     {"GET", "/v1/calls/" + f.call + "/tree", "", "", 200},
		"getCallStats":    {"GET", "/v1/calls/stats?since=2026-01-01T00:00:00Z&until=2036-01-01T00:00:00Z", "", "", 200},
		"addCallEdges":    {"POST", "/v1/calls/" + f.call + "/edges", plain, `{"edges":[{"targetCallId":"` + f.heldCall + `","type":"depends_on"}]}`, 200},
		"listCallEdges":   {"GET", "/v1/calls/" + f.call + "/edges", "", "", 200},
		"listOperations":  {"GET", "/v1/operations", "", "", 200},
		"getOperation":    {"GET", "/v1/operations/fs.read", "", "", 200},

		"createSession": {"POST", "/v1/sessions", plain, `{"projectId":"` + f.project + `","parentId":"` + f.session + `"}`, 201},
		"listSessions":  {"GET", "/v1/sessions", "", "", 200},
		"getSession":    {"GET", session, "", "", 200},
		"updateSession": {"PATCH", session, merge, `{"title":"changed"}`, 200},
		"deleteSession": {"DELETE", session, "", "", 204},
		"importSession": {"POST", "/v1/sessions/import?projectId=" + f.project, plain, export{id: "ses_" + uuid.NewString()}.String(), 201},
		"exportSession": {"GET", session + "/export", "", "", 200},
		"appendMessage": {"POST", session + "/messages", plain, `{"messages":[{"role":"user"}]}`, 201},
		"listMessages":  {"GET", session + "/messages", "", "", 200},
		"getMessage":    {"GET", session + "/messages/" + f.message, "", "", 200},
	}
}

// sampleOf is an operation's sample; an operation without one fails the test.
func (f family) sampleOf(t testing.TB, op contractOp) (s sample, ok bool) {
	t.Helper()
	if s, ok = f.samples()[op.id]; !ok {
		t.Errorf("%s has no sample: add one to family.samples in helpers_test.go", op.id)
	}
	return s, ok
}

// Exports ------------------------------------------------------------------------------------------------------------

// export is an opencode export in the making. Its texts are JSON, so that tests decide how a value is spelled.
type export struct {
	id       string
	title    string // JSON; "" for a plain one
	times    string // JSON; "" for 1000 and 2000
	info     string // more members of info, each with a comma before it
	more     string // more members at the top, each with a comma before it
	messages []exportMessage
}

type exportMessage struct {
	id      string
	session string // the mention of the session's id; "" for the right one
	role    string // "" for user
	created string // JSON; "" for 1500
	info    string // more members of info, each with a comma before it
	more    string // more members beside info and parts, each with a comma before it
	parts   []exportPart
}

type exportPart struct {
	id, session, message string // session and message: "" for the right ones
	kind                 string // "" for text
	more                 string // more members, each with a comma before it
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func (e export) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"info":{"id":%q,"title":%s,"version":"1.18.33","time":%s%s},"messages":[`,
		e.id, or(e.title, `"an export"`), or(e.times, `{"created":1000,"updated":2000}`), e.info)
	for i, m := range e.messages {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"info":{"id":%q,"sessionID":%q,"role":%q,"time":{"created":%s}%s},"parts":[`, m.id, or(m.session, e.id), or(m.role, "user"), or(m.created, "1500"), m.info)
		for j, p := range m.parts {
			if j > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `{"id":%q,"sessionID":%q,"messageID":%q,"type":%q%s}`, p.id, or(p.session, e.id), or(p.message, m.id), or(p.kind, "text"), p.more)
		}
		b.WriteString(`]` + m.more + `}`)
	}
	b.WriteString(`]` + e.more + `}`)
	return b.String()
}

// numbered is an export with so many messages of so many parts each, whose texts hold the mark.
func numbered(id, updated, mark string, messages, parts int) export {
	e := export{id: id, times: `{"created":1000,"updated":` + updated + `}`, info: `,"agent":"build"`}
	for i := range messages {
		m := exportMessage{id: fmt.Sprintf("%s_m%d", id, i), created: fmt.Sprint(1000 + i), info: fmt.Sprintf(`,"mark":%q,"cost":1.50e-3`, mark)}
		for j := range parts {
			m.parts = append(m.parts, exportPart{id: fmt.Sprintf("%s_m%d_p%d", id, i, j), more: fmt.Sprintf(`,"text":"%s %d %d"`, mark, i, j)})
		}
		e.messages = append(e.messages, m)
	}
	return e
}

const testdata = "../opencode/testdata"

// realExports are the files of the real opencode, by name.
func realExports(t testing.TB) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(testdata, "*.json"))
	if err != nil || len(names) < 19 {
		t.Fatalf("%d exports in %s: %v", len(names), testdata, err)
	}
	files := map[string][]byte{}
	for _, name := range names {
		if files[filepath.Base(name)], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// imported is the answer to an import.
type imported struct {
	ID, Result      string
	Messages, Parts importCounts
}

type importCounts struct{ Created, Updated, Deleted, Unchanged int }

func (h *hub) importFile(t testing.TB, c caller, project string, file any) answer {
	t.Helper()
	if e, ok := file.(export); ok {
		file = e.String()
	}
	return h.as(t, c, "POST", "/v1/sessions/import?projectId="+project, file)
}

// imports a file as the admin, with this result.
func (h *hub) imports(t testing.TB, project string, file any, result string) imported {
	t.Helper()
	a := h.importFile(t, h.admin, project, file)
	status := http.StatusOK
	if result == "created" {
		status = http.StatusCreated
	}
	var in imported
	a.wants(t, status).into(t, &in)
	if in.Result != result {
		t.Fatalf("the result is %s, want %s: %s", in.Result, result, a.body)
	}
	return in
}

func (h *hub) export(t testing.TB, session string) []byte {
	t.Helper()
	return h.do(t, "GET", "/v1/sessions/"+session+"/export", nil).wants(t, http.StatusOK).body
}

// wantExport fails the test unless the session's export has exactly these values.
func (h *hub) wantExport(t testing.TB, session string, want []byte) {
	t.Helper()
	wantJSON(t, "the export", h.export(t, session), want)
}

func wantJSON(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if d := jsonequal.Diff(want, got); d != nil {
		t.Fatalf("%s: %v (wanted != got)", what, d)
	}
}

// Looking behind the server -------------------------------------------------------------------------------------------

// tables are all rows of all tables: each table's number of rows and a checksum.
type tables map[string]string

func (h *hub) tables(t testing.TB) tables {
	t.Helper()
	rows, err := h.owner.Query(t.Context(), "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	if rows.Err() != nil || len(names) < 10 {
		t.Fatalf("%d tables: %v", len(names), rows.Err())
	}
	all := tables{}
	for _, name := range names {
		var sum string
		h.scan(t, &sum, `SELECT count(*) || ' rows ' || coalesce(md5(string_agg(md5(r::text), '' ORDER BY md5(r::text))), '') FROM public."`+name+`" r`)
		all[name] = sum
	}
	return all
}

// unchanged fails the test if any row was added, removed or altered since.
func (h *hub) unchanged(t testing.TB, since tables, what string) {
	t.Helper()
	for name, now := range h.tables(t) {
		if since[name] != now {
			t.Errorf("%s: the table %s changed: %s, before %s", what, name, now, since[name])
		}
	}
}

// count is the number that a query gives.
func (h *hub) count(t testing.TB, sql string, args ...any) (n int) {
	t.Helper()
	h.scan(t, &n, sql, args...)
	return n
}

// logBuffer is a log that can be read while the server writes it.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logBuffer) configure(c *api.Config, _ *pgxpool.Config) {
	c.Log = slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// waitFor waits until the log holds the text: the server writes a request's line after its answer.
func (l *logBuffer) waitFor(t testing.TB, text string) {
	t.Helper()
	eventually(t, "the log holds "+text, func() bool { return strings.Contains(l.String(), text) })
}

// eventually waits until a condition holds, for a long time on a busy machine.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// Requests that http.Client does not send ------------------------------------------------------------------------------

// raw sends these bytes, closes its side of the connection if told so, and reads one answer. Line ends are \n in the text.
func (h *hub) raw(t testing.TB, head, body string, halfClose bool) answer {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	head = strings.ReplaceAll(head, "\n", "\r\n") + "\r\n\r\n"
	if _, err := io.WriteString(conn, head+body); err != nil {
		t.Fatal(err)
	}
	if halfClose {
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	method, _, _ := strings.Cut(head, " ")
	response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("no answer to %q: %v", head, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, text}
}

// head is a request's head with the caller's key and more lines, each with a line end before it.
func (c caller) head(method, target, more string) string {
	return method + " " + target + " HTTP/1.1\nHost: hub\nAuthorization: Bearer " + c.key + more
}

// problemBody is what a refusal says.
type problemBody struct {
	Type, Title, Detail, Instance, Code, RequestID string
	Status                                         int
	Errors                                         []struct{ Pointer, Message string }
}

func (a answer) problem(t testing.TB) (p problemBody) {
	t.Helper()
	if a.header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("status %d of type %q is no problem: %s", a.status, a.header.Get("Content-Type"), a.body)
	}
	a.into(t, &p)
	return p
}

// unknownKey is in form, and nobody's.
func unknownKey() string { return apikey.New() }

// begin starts a transaction on a connection of its own, and returns what runs statements in it; it ends with the test.
func (h *hub) begin(t testing.TB) func(sql string, args ...any) {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), h.owner.Config().Copy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	run := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	run("BEGIN")
	return run
}

// waiting is how many of the server's statements wait for a lock.
func (h *hub) waiting() (n int) {
	conn, err := pgx.ConnectConfig(context.Background(), h.owner.Config().Copy())
	if err != nil {
		return 0
	}
	defer conn.Close(context.Background())
	_ = conn.QueryRow(context.Background(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&n)
	return n
}
