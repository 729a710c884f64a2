package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	genapi "github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/internal/api"
	"github.com/alkdev/hub/internal/apikey"
	"github.com/alkdev/hub/internal/migrate"
	"github.com/alkdev/hub/internal/postgres/pgtest"
	"github.com/alkdev/hub/internal/store"
)

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, migrate.Fresh, "hub_app"))
}

// hub is a running server on a database of its own, with one organisation whose admin is the default caller.
type hub struct {
	url   string // of the server
	admin caller
	owner *pgx.Conn // a superuser's connection to the same database: for what the API does not offer, and to look behind it
	log   *bytes.Buffer
	db    *store.DB
	*api.Server

	database string // its URL, for the login that requests run as
}

// caller is one key, and whom it belongs to.
type caller struct {
	key              string
	id, org, account uuid.UUID // the key's, its organisation's, its account's
}

// newHub starts a server. configure may change its configuration, or its pool's.
func newHub(t testing.TB, configure ...func(*api.Config, *pgxpool.Config)) *hub {
	t.Helper()
	ctx := t.Context()
	h := &hub{log: &bytes.Buffer{}}
	h.serve(t, pgtest.Database(t), configure...)
	h.prepare(t)
	var err error
	h.owner, err = pgx.Connect(ctx, pgtest.URL(t, "hub"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.owner.Close(context.Background()) })

	h.admin.key = apikey.New()
	hash, err := apikey.Hash(h.admin.key)
	if err != nil {
		t.Fatal(err)
	}
	err = h.owner.QueryRow(ctx, "SELECT org_id, account_id FROM bootstrap_hub('default', 'Default', 'admin', $1)", hash).Scan(&h.admin.org, &h.admin.account)
	if err != nil {
		t.Fatal(err)
	}
	h.scan(t, &h.admin.id, "SELECT id FROM api_keys")
	return h
}

// serve starts the server on a database.
func (h *hub) serve(t testing.TB, url string, configure ...func(*api.Config, *pgxpool.Config)) {
	t.Helper()
	log := slog.New(slog.NewJSONHandler(&syncWriter{w: h.log}, nil))
	ended := make(chan struct{})
	close(ended) // event streams end as they begin, and nobody waits, unless a test says otherwise
	config := api.Config{Log: log, Version: "test", Stopping: ended, Keys: testKeys}
	h.database = url
	database, err := store.Open(t.Context(), store.Config{URL: url, Log: log, Configure: func(c *pgxpool.Config) {
		for _, change := range configure {
			change(&config, c)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	config.DB = database
	handler, err := api.New(config)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(func() { server.CloseClientConnections(); server.Close(); database.Close() })
	h.url, h.db, h.Server = server.URL, database, handler
}

// replica is another server on the same database.
func (h *hub) replica(t testing.TB, configure ...func(*api.Config, *pgxpool.Config)) *hub {
	t.Helper()
	other := &hub{admin: h.admin, owner: h.owner, log: &bytes.Buffer{}}
	other.serve(t, pgtest.URL(t, "hub_app"), configure...)
	return other
}

// newCaller makes a key with these scopes for a new account in org, at level member; a nil org is a new organisation, and the account its
// owner. Who has platform:* is a platform admin.
func (h *hub) newCaller(t testing.TB, org uuid.UUID, scopes ...string) caller {
	t.Helper()
	level := "member"
	if org == uuid.Nil {
		level = "owner"
	}
	return h.newMember(t, org, level, scopes...)
}

// newMember is newCaller for another level.
func (h *hub) newMember(t testing.TB, org uuid.UUID, level string, scopes ...string) caller {
	t.Helper()
	c := caller{org: org}
	access := "member"
	if slices.Contains(scopes, "platform:*") {
		access = "admin"
	}
	h.exec(t, "BEGIN; SET CONSTRAINTS ALL DEFERRED")
	if org == uuid.Nil {
		h.scan(t, &c.account, "INSERT INTO accounts (kind, access_level, display_name) VALUES ('llm', $1, 'somebody') RETURNING id", access)
		h.scan(t, &c.org, "INSERT INTO organizations (slug, name, owner_id) VALUES ($1, 'Other', $2) RETURNING id", "other-"+uuid.NewString(), c.account)
	} else {
		h.scan(t, &c.account, "INSERT INTO accounts (kind, access_level, display_name, home_org_id) VALUES ('llm', $1, 'somebody', $2) RETURNING id", access, org)
	}
	h.exec(t, "INSERT INTO organization_members (org_id, account_id, membership_level) VALUES ($1, $2, $3)", c.org, c.account, level)
	c = h.newKey(t, c, scopes...)
	h.exec(t, "COMMIT")
	return c
}

// newKey makes another key of a caller's.
func (h *hub) newKey(t testing.TB, c caller, scopes ...string) caller {
	t.Helper()
	c.key = apikey.New()
	if scopes == nil {
		scopes = []string{}
	}
	h.scan(t, &c.id, "INSERT INTO api_keys (org_id, account_id, name, key_hash, scopes) VALUES ($1, $2, 'test', $3, $4) RETURNING id", c.org, c.account, mustHash(t, c.key), scopes)
	return c
}

func (h *hub) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	if _, err := h.owner.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func (h *hub) scan(t testing.TB, into any, sql string, args ...any) {
	t.Helper()
	if err := h.owner.QueryRow(t.Context(), sql, args...).Scan(into); err != nil {
		t.Fatal(err)
	}
}

// answer is what came back for a request.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// do sends a request as the admin: body is JSON text, a reader, or nil; headers are name, value, ....
func (h *hub) do(t testing.TB, method, path string, body any, headers ...string) answer {
	t.Helper()
	return h.as(t, h.admin, method, path, body, headers...)
}

func (h *hub) as(t testing.TB, c caller, method, path string, body any, headers ...string) answer {
	t.Helper()
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(b)
	case []byte:
		reader = bytes.NewReader(b)
	case io.Reader:
		reader = b
	default:
		text, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		reader = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, h.url+path, reader)
	if err != nil {
		t.Fatal(err)
	}
	if c.key != "" {
		r.Header.Set("Authorization", "Bearer "+c.key)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	checkAgainstContract(t, r, response, text)
	return answer{response.StatusCode, response.Header, text}
}

// checkAgainstContract fails the test where an answer is not what the contract says: every test also tests that.
func checkAgainstContract(t testing.TB, r *http.Request, response *http.Response, body []byte) {
	t.Helper()
	route, params, err := contractRouter().FindRoute(r)
	if err != nil {
		if response.StatusCode < 400 {
			t.Errorf("%s %s is no operation of the contract: %v", r.Method, r.URL.Path, err)
		}
		return
	}
	err = openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route},
		Status:                 response.StatusCode,
		Header:                 response.Header,
		Body:                   io.NopCloser(bytes.NewReader(body)),
		Options:                &openapi3filter.Options{IncludeResponseStatus: true},
	})
	if err != nil {
		t.Errorf("%s %s: the answer is not what the contract says: %v", r.Method, r.URL.Path, err)
	}
}

var contractRouter = sync.OnceValue(func() routers.Router {
	doc, err := openapi3.NewLoader().LoadFromData(genapi.Contract)
	if err != nil {
		panic(err)
	}
	openapi3filter.RegisterBodyDecoder("application/problem+json", openapi3filter.JSONBodyDecoder)
	openapi3filter.RegisterBodyDecoder("text/event-stream", openapi3filter.FileBodyDecoder)
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		panic(err)
	}
	return router
})

// wants fails the test unless the answer has this status.
func (a answer) wants(t testing.TB, status int) answer {
	t.Helper()
	if a.status != status {
		t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	return a
}

// refused fails the test unless the answer is this problem, at these pointers.
func (a answer) refused(t testing.TB, status int, code string, pointers ...string) answer {
	t.Helper()
	if got := a.header.Get("Content-Type"); got != "application/problem+json" {
		t.Fatalf("status %d of type %q, want the problem %s: %s", a.status, got, code, a.body)
	}
	var p struct {
		Type, Title, Detail, Instance, Code, RequestID string
		Status                                         int
		Errors                                         []struct{ Pointer, Message string }
	}
	a.into(t, &p)
	if a.status != status || p.Status != status || p.Code != code || p.Type != "urn:hub:problem:"+code || p.Title == "" || p.Detail == "" || p.RequestID == "" {
		t.Fatalf("status %d, want %d %s: %s", a.status, status, code, a.body)
	}
	var got []string
	for _, e := range p.Errors {
		if e.Message == "" {
			t.Errorf("no message at %q", e.Pointer)
		}
		got = append(got, e.Pointer)
	}
	if strings.Join(got, " ") != strings.Join(pointers, " ") {
		t.Fatalf("points at %q, want %q: %s", got, pointers, a.body)
	}
	return a
}

func (a answer) into(t testing.TB, value any) {
	t.Helper()
	if err := json.Unmarshal(a.body, value); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
}

// id is the answer's own id.
func (a answer) id(t testing.TB) string {
	t.Helper()
	var r struct{ ID string }
	a.into(t, &r)
	return r.ID
}

// newProject and newSession are what most tests need first.
func (h *hub) newProject(t testing.TB, slug string) string {
	t.Helper()
	return h.do(t, "POST", "/v1/projects", map[string]string{"slug": slug, "name": slug}).wants(t, http.StatusCreated).id(t)
}

func (h *hub) newSession(t testing.TB) string {
	t.Helper()
	project := h.newProject(t, "p-"+uuid.NewString())
	return h.do(t, "POST", "/v1/sessions", map[string]string{"projectId": project}).wants(t, http.StatusCreated).id(t)
}
