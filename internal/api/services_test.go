package api_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/internal/api"
	"github.com/alkdev/hub/internal/keyring"
	"github.com/alkdev/hub/internal/postgres/pgtest"
)

// keys are the texts of encryption keys, by version.
type keys map[int32]string

func newKeys(versions ...int32) keys {
	k := keys{}
	for _, version := range versions {
		k[version] = keyring.Generate(version)
	}
	return k
}

// ring holds the keys of these versions; the first encrypts.
func (k keys) ring(versions ...int32) *keyring.Ring {
	var text string
	for _, version := range versions {
		text += k[version] + "\n"
	}
	ring, err := keyring.Parse(text)
	if err != nil {
		panic(err)
	}
	return ring
}

// testKeys encrypt secrets where a test says nothing else.
var testKeys = newKeys(1).ring(1)

func withKeys(ring *keyring.Ring) func(*api.Config, *pgxpool.Config) {
	return func(c *api.Config, _ *pgxpool.Config) { c.Keys, c.RotationRate = ring, 1_000_000 }
}

// beside is a replica with these keys, which it has not registered yet.
func (h *hub) beside(t testing.TB, log *logBuffer, ring *keyring.Ring, configure ...func(*api.Config, *pgxpool.Config)) *hub {
	t.Helper()
	return h.replica(t, append([]func(*api.Config, *pgxpool.Config){withKeys(ring), log.configure}, configure...)...)
}

func (h *hub) prepare(t testing.TB) *hub {
	t.Helper()
	if err := h.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h
}

// works runs the background of a server until the test, or what is returned, ends it.
func (h *hub) works(t testing.TB) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); h.Work(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

func (h *hub) newClient(t testing.TB) string {
	t.Helper()
	return h.do(t, "POST", "/v1/clients", `{"name":"c-`+uuid.NewString()+`","type":"http-api","config":{"baseUrl":"https://example.com/"}}`).wants(t, 201).id(t)
}

func secretPath(client, name string) string { return "/v1/clients/" + client + "/secrets/" + name }

func (h *hub) put(t testing.TB, client, name, value string) answer {
	t.Helper()
	return h.do(t, "PUT", secretPath(client, name), map[string]string{"value": value})
}

// reveals fails the test unless the secret has this value.
func (h *hub) reveals(t testing.TB, client, name, want string) {
	t.Helper()
	var got struct{ Value string }
	h.do(t, "POST", secretPath(client, name)+"/reveal", nil).wants(t, 200).into(t, &got)
	if got.Value != want {
		t.Errorf("%s is %q, want %q", name, got.Value, want)
	}
}

type serviceClient struct {
	ID, Name, Type, Description string
	SchemaVersion, Revision     int
	Enabled, Valid              bool
	ValidatedAt                 *time.Time
	Config, Metadata            json.RawMessage
}

func (a answer) client(t testing.TB) (c serviceClient) {
	t.Helper()
	a.into(t, &c)
	return c
}

func (h *hub) clientNames(t testing.TB, query string) string {
	t.Helper()
	var list struct{ Items []struct{ Name string } }
	h.do(t, "GET", "/v1/clients"+query, nil).wants(t, 200).into(t, &list)
	names := make([]string, len(list.Items))
	for i, item := range list.Items {
		names[i] = item.Name
	}
	return strings.Join(names, " ")
}

// Clients (C12) -------------------------------------------------------------------------------------------------------

func TestC12_ClientTypesAreListedWithTheirSchemas(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	var list struct {
		Items []struct {
			Type, Title, Description string
			SchemaVersion            int
			Schema                   struct {
				Type       string
				Properties map[string]any
			}
		}
	}
	h.do(t, "GET", "/v1/client-types", nil).wants(t, 200).into(t, &list)
	var names []string
	for _, item := range list.Items {
		names = append(names, item.Type)
		if item.SchemaVersion != 1 || item.Title == "" || item.Description == "" || item.Schema.Type != "object" || len(item.Schema.Properties) == 0 {
			t.Errorf("%+v", item)
		}
		if got := h.count(t, "SELECT count(*) FROM client_types WHERE (type, schema_version) = ($1, $2)", item.Type, item.SchemaVersion); got != 1 {
			t.Errorf("%s is not registered", item.Type)
		}
	}
	if got := strings.Join(names, " "); got != "git-forge http-api llm-provider mcp-server object-store webhook" {
		t.Error(got)
	}
}

func TestC12_ConfigsAreJudgedWhenTheyAreWritten(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	create := func(name, typ, config string) answer {
		return h.do(t, "POST", "/v1/clients", fmt.Sprintf(`{"name":%q,"type":%q,"config":%s}`, name, typ, config))
	}
	c := create("claude", "llm-provider", `{"provider":"anthropic","models":[{"id":"a","contextTokens":200000}]}`).wants(t, 201).client(t)
	if c.Type != "llm-provider" || c.SchemaVersion != 1 || !c.Enabled || !c.Valid || c.ValidatedAt == nil || c.Revision != 1 {
		t.Errorf("%+v", c)
	}
	path := "/v1/clients/" + c.ID
	for _, bad := range []struct{ config, pointers string }{
		{`{}`, "/config/provider"},
		{`{"provider":5,"nonsense":1}`, "/config/nonsense /config/provider"},
		{`{"provider":"x","models":[{"id":"a"},{"contextTokens":"many"}]}`, "/config/models/1/contextTokens /config/models/1/id"},
		{`{"provider":"x","apiKey":"sk-canary"}`, "/config/apiKey"},
		{`{"provider":"x","a/b~c":1}`, "/config/a~1b~0c"},
	} {
		a := create("bad", "llm-provider", bad.config).refused(t, 422, "client_config_invalid", strings.Fields(bad.pointers)...)
		if strings.Contains(string(a.body), "sk-canary") {
			t.Errorf("the answer quotes the value: %s", a.body)
		}
	}
	create("bad", "telepathy", `{}`).refused(t, 422, "clients_type_fkey", "/type")
	create("claude", "webhook", `{"url":"https://x/"}`).refused(t, 409, "clients_name_key", "/name")
	create("Claude", "webhook", `{"url":"https://x/"}`).refused(t, 400, "invalid_request", "/name")
	h.do(t, "POST", "/v1/clients", `{"name":"x","type":"webhook"}`).refused(t, 400, "invalid_request", "/config")
	h.do(t, "POST", "/v1/clients", `{"name":"x","type":"webhook","config":[]}`).refused(t, 400, "invalid_request", "/config")
	if got := h.clientNames(t, ""); got != "claude" {
		t.Errorf("what was refused is there: %s", got)
	}

	// A patch is merged, and the result is judged.
	patch := func(body string, headers ...string) answer { return h.do(t, "PATCH", path, body, headers...) }
	c = patch(`{"config":{"defaultModel":"a"}}`).wants(t, 200).client(t)
	wantJSON(t, "the config", c.Config, []byte(`{"provider":"anthropic","models":[{"id":"a","contextTokens":200000}],"defaultModel":"a"}`))
	c = patch(`{"config":{"models":null},"description":"d"}`).wants(t, 200).client(t)
	wantJSON(t, "the config", c.Config, []byte(`{"provider":"anthropic","defaultModel":"a"}`))
	patch(`{"config":{"provider":null}}`).refused(t, 422, "client_config_invalid", "/config/provider")
	patch(`{"config":{"nonsense":1},"name":"other"}`).refused(t, 422, "client_config_invalid", "/config/nonsense")
	patch(`{"type":"webhook"}`).refused(t, 400, "invalid_request", "/type")
	if got := h.do(t, "GET", path, nil).wants(t, 200).client(t); got.Revision != 3 || got.Name != "claude" || got.Description != "d" || !got.Valid {
		t.Errorf("what was refused is half there: %+v", got)
	}
	// Without a config nothing is judged.
	if got := patch(`{"enabled":false,"metadata":{"_a":{"b":1}}}`).wants(t, 200).client(t); got.Enabled || got.Revision != 4 {
		t.Errorf("%+v", got)
	}

	// If-Match, with a config and without.
	for _, body := range []string{`{"config":{"defaultModel":"b"}}`, `{"description":"e"}`} {
		patch(body, "If-Match", `"3"`).refused(t, 412, "precondition_failed")
	}
	patch(`{"config":{"defaultModel":"b"}}`, "If-Match", `"4"`).wants(t, 200)
	nowhere := "/v1/clients/" + uuid.NewString()
	for _, body := range []string{`{"config":{"a":1}}`, `{"description":"e"}`} {
		h.do(t, "PATCH", nowhere, body).refused(t, 404, "client_not_found")
	}
	h.do(t, "DELETE", path, nil, "If-Match", `"4"`).refused(t, 412, "precondition_failed")
	h.do(t, "DELETE", path, nil, "If-Match", `"5"`).wants(t, 204)
	h.do(t, "DELETE", path, nil).refused(t, 404, "client_not_found")
}

func TestC12_ConfigsComeBackAsTheyWereGiven(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	config := `{"transport":"stdio","command":"x\u0000y","args":["\ud83d","\u0010"],"env":{"A":"\u0000"}}`
	c := h.do(t, "POST", "/v1/clients", `{"name":"x","type":"mcp-server","config":`+config+`}`).wants(t, 201).client(t)
	wantJSON(t, "the config", c.Config, []byte(config))
	wantJSON(t, "the config", h.do(t, "GET", "/v1/clients/"+c.ID, nil).client(t).Config, []byte(config))
}

// Nobody's change is lost, and no config is written that was not judged as it is.
func TestC12_PatchesOfOneConfigRace(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	path := "/v1/clients/" + h.newClient(t)
	var group sync.WaitGroup
	var done atomic.Int32
	for i := range 4 {
		group.Go(func() {
			for range 20 { // a 503 try_again is allowed; doing it again must help in the end
				a := h.do(t, "PATCH", path, fmt.Sprintf(`{"config":{"headers":{"X-%d":"v"}}}`, i))
				if a.status == 200 {
					done.Add(1)
					return
				}
				a.refused(t, 503, "try_again")
			}
		})
	}
	group.Wait()
	c := h.do(t, "GET", path, nil).client(t)
	if done.Load() != 4 || strings.Count(string(c.Config), `"X-`) != 4 || c.Revision != 5 {
		t.Errorf("%d done: %s, revision %d", done.Load(), c.Config, c.Revision)
	}
}

func TestC12_ListsOfClients(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for i := range 5 {
		h.do(t, "POST", "/v1/clients", fmt.Sprintf(`{"name":"c-%d","type":"webhook","config":{"url":"https://x/"},"enabled":%t}`, i, i%2 == 0)).wants(t, 201)
	}
	h.do(t, "POST", "/v1/clients", `{"name":"forge","type":"git-forge","config":{"kind":"gitea"}}`).wants(t, 201)
	h.exec(t, `UPDATE clients SET config = '{}' WHERE name = 'c-3'`)
	for query, want := range map[string]string{
		"":                           "c-0 c-1 c-2 c-3 c-4 forge",
		"?type=git-forge":            "forge",
		"?name=c-2":                  "c-2",
		"?enabled=false":             "c-1 c-3",
		"?valid=false":               "c-3",
		"?valid=true&enabled=false":  "c-1",
		"?type=nonsense":             "",
		"?type=webhook&valid=false":  "c-3",
		"?limit=200&type=mcp-server": "",
	} {
		if got := h.clientNames(t, query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	var names []string
	for path := "/v1/clients?limit=2&type=webhook"; path != ""; {
		var page struct {
			Items      []struct{ Name string }
			NextCursor string
		}
		h.do(t, "GET", path, nil).wants(t, 200).into(t, &page)
		for _, item := range page.Items {
			names = append(names, item.Name)
		}
		if path = ""; page.NextCursor != "" {
			path = "/v1/clients?limit=2&type=webhook&cursor=" + page.NextCursor
			h.do(t, "GET", strings.Replace(path, "webhook", "http-api", 1), nil).refused(t, 400, "invalid_cursor", "query:cursor")
		}
	}
	if got := strings.Join(names, " "); got != "c-0 c-1 c-2 c-3 c-4" {
		t.Error(got)
	}
}

// The pass at the start judges what was written past the API, of all organisations, and stops nobody.
func TestC12_ThePassAtTheStart(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure)
	other := h.newCaller(t, uuid.Nil, "*")
	broken := h.newClient(t)
	mended := h.newClient(t)
	theirs := h.as(t, other, "POST", "/v1/clients", `{"name":"theirs","type":"webhook","config":{"url":"https://x/"}}`).wants(t, 201).id(t)
	fine := h.newClient(t)
	h.exec(t, `UPDATE clients SET config = '{"baseUrl":"sk-canary"}' WHERE id IN ($1, $2)`, broken, theirs)
	h.exec(t, `UPDATE clients SET config = '{"baseUrl":"https://other/"}' WHERE id = $1`, mended)
	before := h.do(t, "GET", "/v1/clients/"+fine, nil).client(t)

	h.works(t)
	log.waitFor(t, "judged the clients' configs")
	for _, want := range []string{broken, theirs, `"/config/baseUrl"`, `"/config/url"`, `"clients":4,"invalid":2`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not name %s: %s", want, log)
		}
	}
	if strings.Contains(log.String(), "sk-canary") {
		t.Error("the log quotes a value")
	}
	for id, want := range map[string]bool{broken: false, mended: true, fine: true} {
		if got := h.do(t, "GET", "/v1/clients/"+id, nil).wants(t, 200).client(t); got.Valid != want {
			t.Errorf("%s is valid: %v", id, got.Valid)
		}
	}
	if got := h.do(t, "GET", "/v1/clients/"+fine, nil).client(t); got.Revision != before.Revision {
		t.Error("a verdict that stays is a new revision")
	}
	if metrics := string(h.do(t, "GET", "/metrics", nil).wants(t, 200).body); !strings.Contains(metrics, "\nhub_clients_invalid 2\n") {
		t.Error(metrics)
	}

	// By hand, in one organisation.
	var verdict struct {
		Checked, Invalid int
		Items            []struct {
			ClientID, Name, Type string
			Errors               []struct{ Pointer, Message string }
		}
	}
	h.exec(t, `UPDATE clients SET config = '{"baseUrl":"https://mended/"}' WHERE id = $1`, broken)
	h.exec(t, `UPDATE clients SET config = '{"nonsense":1}' WHERE id = $1`, mended)
	h.do(t, "POST", "/v1/clients/validate", nil).wants(t, 200).into(t, &verdict)
	if verdict.Checked != 3 || verdict.Invalid != 1 || verdict.Items[0].ClientID != mended || len(verdict.Items[0].Errors) != 2 || verdict.Items[0].Errors[0].Pointer != "/config/baseUrl" {
		t.Errorf("%+v", verdict)
	}
	if got := h.do(t, "GET", "/v1/clients/"+broken, nil).client(t); !got.Valid {
		t.Error("it is mended")
	}
	// What is mended through the API is valid at once.
	h.do(t, "PATCH", "/v1/clients/"+mended, `{"config":{"nonsense":null,"baseUrl":"https://x/"}}`).wants(t, 200)
	if got := h.clientNames(t, "?valid=false"); got != "" {
		t.Error(got)
	}
}

// A pass reads thousands in pages, and tells the first of many faults.
func TestC12_ThePassReadsPages(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.exec(t, `INSERT INTO clients (org_id, type, schema_version, name, config) SELECT $1, 'webhook', 1, 'w-' || n, CASE WHEN n <= 250 THEN '{}' ELSE '{"url":"https://x/"}' END::jsonb FROM generate_series(1, 700) n`, h.admin.org)
	var verdict struct {
		Checked, Invalid int
		Items            []any
	}
	h.do(t, "POST", "/v1/clients/validate", nil).wants(t, 200).into(t, &verdict)
	if verdict.Checked != 700 || verdict.Invalid != 250 || len(verdict.Items) != 200 {
		t.Errorf("%d %d %d", verdict.Checked, verdict.Invalid, len(verdict.Items))
	}
	if got := h.count(t, "SELECT count(*) FROM clients WHERE valid"); got != 450 {
		t.Errorf("%d are valid", got)
	}
}

// A type that only a newer hub knows is none of this one's business.
func TestC12_ATypeOfANewerHub(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.exec(t, `INSERT INTO client_types (type, schema_version, schema) VALUES ('telepathy', 1, '{}')`)
	var id string
	h.scan(t, &id, `INSERT INTO clients (org_id, type, schema_version, name, valid, validated_at) VALUES ($1, 'telepathy', 1, 'new', true, now()) RETURNING id::text`, h.admin.org)
	h.do(t, "POST", "/v1/clients/validate", nil).wants(t, 200)
	if got := h.do(t, "GET", "/v1/clients/"+id, nil).wants(t, 200).client(t); !got.Valid {
		t.Error("an older hub has judged it")
	}
	h.do(t, "PATCH", "/v1/clients/"+id, `{"description":"x"}`).wants(t, 200)
	h.do(t, "PATCH", "/v1/clients/"+id, `{"config":{"x":1}}`).refused(t, 422, "clients_type_fkey", "/type")
}

// A schema that differs from what is registered under its version stops the start.
func TestC12_AChangedSchemaStopsTheStart(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.exec(t, `UPDATE client_types SET schema = schema || '{"title": "changed"}' WHERE type = 'webhook'`)
	if err := h.Prepare(t.Context()); err == nil || !strings.Contains(err.Error(), "webhook/1") {
		t.Error(err)
	}
}

// Secrets (C11) -------------------------------------------------------------------------------------------------------

func TestC11_SecretsAreWrittenAndRevealed(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	client := h.newClient(t)
	created := h.do(t, "PUT", secretPath(client, "api_key"), `{"value":"first","metadata":{"_a":{"b":1}}}`).wants(t, 201)
	if got := created.header.Get("Location"); got != secretPath(client, "api_key") {
		t.Error(got)
	}
	h.reveals(t, client, "api_key", "first")
	if a := h.do(t, "POST", secretPath(client, "api_key")+"/reveal", nil); a.header.Get("Cache-Control") != "no-store" {
		t.Error(a.header)
	}
	replaced := h.put(t, client, "api_key", "second").wants(t, 200)
	type secret struct {
		ID, ClientID, Name        string
		KeyVersion, Revision      int
		ValueChangedAt, CreatedAt time.Time
		Metadata                  json.RawMessage
	}
	var a, b secret
	created.into(t, &a)
	replaced.into(t, &b)
	if a.ID != b.ID || b.Revision != 2 || !b.ValueChangedAt.After(a.ValueChangedAt) || !b.CreatedAt.Equal(a.CreatedAt) || b.KeyVersion != 1 {
		t.Errorf("%+v, then %+v", a, b)
	}
	wantJSON(t, "metadata that is not given", b.Metadata, []byte(`{"_a":{"b":1}}`))
	h.reveals(t, client, "api_key", "second")

	for _, value := range []string{"x", strings.Repeat("ä", 32768), " spaces\nand lines ", `{"json":"\\"}`, "日本"} {
		h.put(t, client, "odd", value)
		h.reveals(t, client, "odd", value)
	}
	// What does not fit, and where nothing is.
	h.put(t, client, "bad", "").refused(t, 400, "invalid_request", "/value")
	h.put(t, client, "bad", strings.Repeat("x", 65537)).refused(t, 400, "invalid_request", "/value")
	h.put(t, client, "bad", strings.Repeat("ä", 32769)).refused(t, 422, "client_secrets_ciphertext_length_check", "/value")
	h.do(t, "PUT", secretPath(client, "bad"), `{"value":"a\u0000b"}`).refused(t, 400, "invalid_request", "/value")
	h.do(t, "PUT", secretPath(client, "bad"), `{"value":"x","metadata":{"a":{}}}`).refused(t, 422, "client_secrets_metadata_check", "/metadata")
	h.do(t, "PUT", secretPath(client, "bad%20name"), `{"value":"x"}`).refused(t, 400, "invalid_request", "path:secretName")
	h.put(t, uuid.NewString(), "bad", "x").refused(t, 404, "client_not_found")
	for _, method := range []string{"GET", "DELETE"} {
		h.do(t, method, secretPath(client, "bad"), nil).refused(t, 404, "secret_not_found")
	}
	h.do(t, "POST", secretPath(client, "bad")+"/reveal", nil).refused(t, 404, "secret_not_found")
	h.do(t, "GET", "/v1/clients/"+uuid.NewString()+"/secrets", nil).refused(t, 404, "client_not_found")

	var list struct {
		Items      []secret
		NextCursor string
	}
	h.do(t, "GET", "/v1/clients/"+client+"/secrets?limit=1", nil).wants(t, 200).into(t, &list)
	if len(list.Items) != 1 || list.Items[0].Name != "api_key" || list.NextCursor == "" {
		t.Errorf("%+v", list)
	}
	list.Items = nil
	h.do(t, "GET", "/v1/clients/"+client+"/secrets?limit=1&cursor="+list.NextCursor, nil).wants(t, 200).into(t, &list)
	if len(list.Items) != 1 || list.Items[0].Name != "odd" {
		t.Errorf("%+v", list)
	}
	h.do(t, "GET", "/v1/clients/"+h.newClient(t)+"/secrets?cursor="+list.NextCursor, nil).refused(t, 400, "invalid_cursor", "query:cursor")

	h.do(t, "DELETE", secretPath(client, "api_key"), nil, "If-Match", `"1"`).refused(t, 412, "precondition_failed")
	h.do(t, "DELETE", secretPath(client, "api_key"), nil, "If-Match", `"2"`).wants(t, 204)
	h.do(t, "DELETE", "/v1/clients/"+client, nil).wants(t, 204)
	if got := h.count(t, "SELECT count(*) FROM client_secrets"); got != 0 {
		t.Errorf("%d secrets outlive their client", got)
	}
}

// Who may write and read all else may not reveal, and the other way round.
func TestC11_RevealingIsItsOwnScope(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	client := h.newClient(t)
	h.put(t, client, "s", "hush").wants(t, 201)
	writer := h.newCaller(t, h.admin.org, "clients:read", "clients:write", "clients:admin", "secrets:read", "secrets:write")
	h.as(t, writer, "PUT", secretPath(client, "s"), `{"value":"quiet"}`).wants(t, 200)
	h.as(t, writer, "POST", secretPath(client, "s")+"/reveal", nil).refused(t, 403, "insufficient_scope")
	revealer := h.newCaller(t, h.admin.org, "secrets:admin")
	h.as(t, revealer, "POST", secretPath(client, "s")+"/reveal", nil).wants(t, 200)
	h.as(t, revealer, "GET", secretPath(client, "s"), nil).refused(t, 403, "insufficient_scope")
	h.as(t, revealer, "PUT", secretPath(client, "s"), `{"value":"x"}`).refused(t, 403, "insufficient_scope")
}

// wiretap keeps what goes to PostgreSQL.
type wiretap struct {
	mu   sync.Mutex
	sent bytes.Buffer
}

func (w *wiretap) configure(_ *api.Config, c *pgxpool.Config) {
	dial := c.ConnConfig.DialFunc
	c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return &tappedConn{conn, w}, err
	}
}

type tappedConn struct {
	net.Conn
	tap *wiretap
}

func (c *tappedConn) Write(p []byte) (int, error) {
	c.tap.mu.Lock()
	c.tap.sent.Write(p)
	c.tap.mu.Unlock()
	return c.Conn.Write(p)
}

// A value is in no statement that PostgreSQL gets, so in none of its logs, plans, statistics and rows; in no log of hub's, whatever
// goes wrong; and in no answer but that of reveal.
func TestC11_ValuesAreNowhereElse(t *testing.T) {
	t.Parallel()
	log, tap := &logBuffer{}, &wiretap{}
	h := newHub(t, log.configure, tap.configure, func(c *api.Config, _ *pgxpool.Config) { c.MaxBody = 200 << 10 })
	client := h.newClient(t)
	const canary = "canary-7f3a"
	path := secretPath(client, "s")
	var answers []answer
	send := func(method, path string, body any, headers ...string) {
		answers = append(answers, h.do(t, method, path, body, headers...))
	}
	valueOf := func(value string) string { return `{"value":"` + value + `"}` }
	send("PUT", path, valueOf(canary))
	send("PUT", path, valueOf(canary+"-2"))
	send("GET", path, nil)
	send("GET", "/v1/clients/"+client+"/secrets", nil)
	send("GET", "/v1/clients/"+client, nil)
	// Refused in every way there is.
	send("PUT", path, `{"value":["`+canary+`"]}`)
	send("PUT", path, `{"value":"`+canary+`","nonsense":"`+canary+`"}`)
	send("PUT", path, `{"value":"`+canary)
	send("PUT", path, `{"value":"`+canary+`"}x`)
	send("PUT", path, `{"value":"`+canary+`\u0000"}`)
	send("PUT", path, `{"value":"`+canary+`","value":"`+canary+`"}`)
	send("PUT", path, valueOf(canary+strings.Repeat("x", 65536)))
	send("PUT", path, valueOf(canary+strings.Repeat("ä", 65000)))
	send("PUT", path, valueOf(canary+strings.Repeat("x", 300<<10)))
	send("PUT", path, valueOf(canary), "Content-Type", "text/plain")
	send("PUT", secretPath(uuid.NewString(), "s"), valueOf(canary))
	send("PUT", path, `{"value":"`+canary+`","metadata":{"x":1}}`)
	send("POST", "/v1/clients", `{"name":"x","type":"webhook","config":{"url":"`+canary+`"}}`)
	h.exec(t, `CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $e$it broke: %$e$, NEW; END'; CREATE TRIGGER broken BEFORE INSERT OR UPDATE ON client_secrets FOR EACH ROW EXECUTE FUNCTION broken()`)
	send("PUT", path, valueOf(canary))
	send("PUT", secretPath(client, "t"), valueOf(canary))
	h.exec(t, `DROP TRIGGER broken ON client_secrets`)
	statuses := map[int]int{}
	for i, a := range answers {
		statuses[a.status]++
		if strings.Contains(string(a.body), canary) || strings.Contains(fmt.Sprint(a.header), canary) {
			t.Errorf("answer %d holds the value: %v %s", i, a.header, a.body)
		}
	}
	for _, status := range []int{200, 201, 400, 404, 413, 415, 422, 500} {
		if statuses[status] == 0 {
			t.Errorf("there was no %d: %v", status, statuses)
		}
	}
	h.reveals(t, client, "s", canary+"-2")
	log.waitFor(t, "it broke")
	encodings := map[string]string{"as it is": canary, "in base64": base64.StdEncoding.EncodeToString([]byte(canary))[:12], "in hex": hex.EncodeToString([]byte(canary))}
	for what, text := range encodings {
		if strings.Contains(log.String(), text) {
			t.Errorf("the log holds the value %s: %s", what, log)
		}
		tap.mu.Lock()
		if bytes.Contains(tap.sent.Bytes(), []byte(text)) {
			t.Errorf("PostgreSQL was sent the value %s", what)
		}
		tap.mu.Unlock()
	}
	if !bytes.Contains(tap.sent.Bytes(), []byte("https://example.com/")) {
		t.Error("the tap hears nothing")
	}
}

// independently decrypts as docs/secrets.md says, and shares no code with hub.
func independently(t testing.TB, key string, org, client uuid.UUID, name string, version uint32, ciphertext []byte) (string, error) {
	t.Helper()
	prefix := fmt.Sprintf("v%d:", version)
	if !strings.HasPrefix(key, prefix) {
		t.Fatalf("the key is of another version than %d", version)
	}
	secret, err := base64.StdEncoding.DecodeString(key[len(prefix):])
	if err != nil || len(secret) != 32 {
		t.Fatal(err, len(secret))
	}
	if ciphertext[0] != 1 {
		t.Fatalf("format %d", ciphertext[0])
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	additional := []byte("hub/client-secret\x00")
	for _, id := range []uuid.UUID{org, client} {
		bytes, err := hex.DecodeString(strings.ReplaceAll(id.String(), "-", ""))
		if err != nil {
			t.Fatal(err)
		}
		additional = append(additional, bytes...)
	}
	additional = append(additional, name...)
	additional = binary.BigEndian.AppendUint32(additional, version)
	value, err := gcm.Open(nil, ciphertext[1:13], ciphertext[13:], additional)
	return string(value), err
}

func TestC11_AnIndependentDecryptor(t *testing.T) {
	t.Parallel()
	// The page's own example, in both directions.
	page, err := os.ReadFile("../../docs/secrets.md")
	if err != nil {
		t.Fatal(err)
	}
	example := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| ([a-z_ ]+) \\| `([^`]+)` \\|$").FindAllStringSubmatch(string(page), -1) {
		example[row[1]] = row[2]
	}
	org, client := uuid.MustParse(example["org_id"]), uuid.MustParse(example["client_id"])
	ciphertext, err := hex.DecodeString(example["ciphertext"])
	if err != nil {
		t.Fatal(err)
	}
	if got, err := independently(t, example["key"], org, client, example["name"], 7, ciphertext); err != nil || got != example["value"] {
		t.Errorf("%q %v", got, err)
	}
	exampleRing, err := keyring.Parse(example["key"])
	if err != nil {
		t.Fatal(err)
	}
	if got := exampleRing.Keys()[0].Fingerprint; hex.EncodeToString(got[:]) != example["its fingerprint"] {
		t.Errorf("the fingerprint is %x", got)
	}

	k := newKeys(7, 12)
	k[7] = example["key"]
	h := newHub(t, withKeys(k.ring(12, 7)))
	mine := h.newClient(t)
	values := map[string]string{"a": "x", "API_KEY.2-b": "sk-ant-ä日本", "long": strings.Repeat("v", 65536)}
	for name, value := range values {
		h.put(t, mine, name, value).wants(t, 201)
	}
	// hub reads what somebody else has written by the page.
	h.exec(t, "INSERT INTO clients (org_id, id, type, schema_version, name) VALUES ($1, $2, 'http-api', 1, 'example')", h.admin.org, client)
	h.exec(t, "INSERT INTO client_secrets (org_id, client_id, name, key_version, ciphertext) VALUES ($1, $2, $3, 7, $4)", h.admin.org, client, example["name"], ciphertext)
	h.do(t, "POST", secretPath(client.String(), example["name"])+"/reveal", nil).refused(t, 424, "secret_damaged") // of another organisation

	rows, err := h.owner.Query(t.Context(), "SELECT org_id, client_id, name, key_version, ciphertext FROM client_secrets WHERE client_id = $1", mine)
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		Org, Client uuid.UUID
		Name        string
		Version     int32
		Ciphertext  []byte
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil || len(found) != len(values) {
		t.Fatal(err, len(found))
	}
	for _, r := range found {
		if got, err := independently(t, k[12], r.Org, r.Client, r.Name, uint32(r.Version), r.Ciphertext); err != nil || got != values[r.Name] {
			t.Errorf("%s: %v", r.Name, err)
		}
		if _, err := independently(t, k[12], r.Org, r.Client, r.Name+"x", uint32(r.Version), r.Ciphertext); err == nil {
			t.Errorf("%s decrypts under another name", r.Name)
		}
	}
	// The fingerprints in the database are the page's, too.
	raw, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(k[12], "v12:"))
	sum := sha256.Sum256(append([]byte("hub/encryption-key\x00"), raw...))
	if got := h.count(t, "SELECT count(*) FROM encryption_keys WHERE version = 12 AND fingerprint = $1", sum[:]); got != 1 {
		t.Error("the fingerprint is another one")
	}
}

// What was altered or moved does not decrypt, and says so by name.
func TestC11_AlteredAndMovedCiphertexts(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	k := newKeys(1, 2)
	h := newHub(t, log.configure, withKeys(k.ring(1, 2)))
	other := h.newCaller(t, uuid.Nil, "*")
	one, two := h.newClient(t), h.newClient(t)
	h.put(t, one, "a", "value a").wants(t, 201)
	h.put(t, one, "b", "value b").wants(t, 201)
	h.put(t, two, "a", "value a").wants(t, 201)
	// The same client id in another organisation, with a secret of the same name: only the organisation differs.
	h.exec(t, "INSERT INTO clients (org_id, id, type, schema_version, name) VALUES ($1, $2, 'http-api', 1, 'twin')", other.org, one)
	h.as(t, other, "PUT", secretPath(one, "a"), `{"value":"theirs"}`).wants(t, 201)

	type target struct {
		who          caller
		client, name string
	}
	const copyTo = "UPDATE client_secrets SET ciphertext = (SELECT ciphertext FROM client_secrets WHERE org_id = '%s' AND client_id = '%s' AND name = 'a') WHERE org_id = '%s' AND client_id = '%s' AND name = '%s'"
	h.exec(t, "CREATE TABLE kept AS SELECT * FROM client_secrets")
	for what, c := range map[string]struct {
		sql string
		target
	}{
		"to another secret":       {fmt.Sprintf(copyTo, h.admin.org, one, h.admin.org, one, "b"), target{h.admin, one, "b"}},
		"to another client":       {fmt.Sprintf(copyTo, h.admin.org, one, h.admin.org, two, "a"), target{h.admin, two, "a"}},
		"to another organisation": {fmt.Sprintf(copyTo, h.admin.org, one, other.org, one, "a"), target{other, one, "a"}},
		"said to be of v2":        {"UPDATE client_secrets SET key_version = 2 WHERE client_id = '" + two + "'", target{h.admin, two, "a"}},
		"the first bit":           {"UPDATE client_secrets SET ciphertext = set_bit(ciphertext, 0, 1 - get_bit(ciphertext, 0)) WHERE client_id = '" + two + "'", target{h.admin, two, "a"}},
		"a bit of the nonce":      {"UPDATE client_secrets SET ciphertext = set_bit(ciphertext, 20, 1 - get_bit(ciphertext, 20)) WHERE client_id = '" + two + "'", target{h.admin, two, "a"}},
		"a bit of the value":      {"UPDATE client_secrets SET ciphertext = set_bit(ciphertext, 110, 1 - get_bit(ciphertext, 110)) WHERE client_id = '" + two + "'", target{h.admin, two, "a"}},
		"the last bit":            {"UPDATE client_secrets SET ciphertext = set_bit(ciphertext, 8 * octet_length(ciphertext) - 1, 1 - get_bit(ciphertext, 8 * octet_length(ciphertext) - 1)) WHERE client_id = '" + two + "'", target{h.admin, two, "a"}},
		"cut short":               {"UPDATE client_secrets SET ciphertext = substring(ciphertext FOR octet_length(ciphertext) - 1) WHERE client_id = '" + two + "'", target{h.admin, two, "a"}},
	} {
		h.as(t, c.who, "POST", secretPath(c.client, c.name)+"/reveal", nil).wants(t, 200) // the passing twin
		h.exec(t, c.sql)
		a := h.as(t, c.who, "POST", secretPath(c.client, c.name)+"/reveal", nil)
		a.refused(t, 424, "secret_damaged")
		if a.header.Get("Cache-Control") == "" && strings.Contains(string(a.body), "value a") {
			t.Errorf("%s: %s", what, a.body)
		}
		h.exec(t, "UPDATE client_secrets s SET ciphertext = k.ciphertext, key_version = k.key_version FROM kept k WHERE k.org_id = s.org_id AND k.id = s.id")
	}
	log.waitFor(t, "a stored secret is not what was put")
	// Put anew, it is whole again.
	h.exec(t, fmt.Sprintf(copyTo, h.admin.org, one, h.admin.org, two, "a"))
	h.put(t, two, "a", "new").wants(t, 200)
	h.reveals(t, two, "a", "new")
}

// Keys (C11) ----------------------------------------------------------------------------------------------------------

func (h *hub) keyVersions(t testing.TB) (counts string) {
	t.Helper()
	h.scan(t, &counts, "SELECT coalesce(string_agg(format('v%s:%s', key_version, n), ' ' ORDER BY key_version), '') FROM (SELECT key_version, count(*) AS n FROM client_secrets GROUP BY 1) c")
	return counts
}

func (h *hub) encryptionCheck(t testing.TB) string {
	t.Helper()
	var health struct {
		Status string
		Checks map[string]string
	}
	h.as(t, caller{}, "GET", "/readyz", nil).wants(t, 200).into(t, &health)
	if health.Status != "ok" {
		t.Error(health.Status)
	}
	return health.Checks["encryption"]
}

func TestC11_AMissingKeyHurtsItsSecretsAlone(t *testing.T) {
	t.Parallel()
	k := newKeys(1, 2)
	h := newHub(t, withKeys(k.ring(1)))
	client := h.newClient(t)
	for i := range 3 {
		h.put(t, client, fmt.Sprintf("old%d", i), "old").wants(t, 201)
	}
	if got := h.encryptionCheck(t); got != "ok" {
		t.Error(got)
	}
	log := &logBuffer{}
	r := h.beside(t, log, k.ring(2)).prepare(t)
	fingerprint := k.ring(1).Keys()[0].Fingerprint.String()
	for what, text := range map[string]string{"/readyz": r.encryptionCheck(t), "the log": log.String()} {
		if !strings.Contains(text, "3 under v1 ("+fingerprint+")") {
			t.Errorf("%s: %s", what, text)
		}
	}
	if metrics := string(r.do(t, "GET", "/metrics", nil).body); !strings.Contains(metrics, "\nhub_secrets_without_key 3\n") {
		t.Error(metrics)
	}
	r.do(t, "POST", secretPath(client, "old0")+"/reveal", nil).refused(t, 424, "secret_key_unavailable")
	r.do(t, "GET", secretPath(client, "old0"), nil).wants(t, 200)
	r.put(t, client, "new", "new").wants(t, 201)
	r.reveals(t, client, "new", "new")
	r.put(t, client, "old0", "again").wants(t, 200)
	r.reveals(t, client, "old0", "again")
	if got := h.keyVersions(t); got != "v1:2 v2:2" {
		t.Errorf("a row is gone: %s", got)
	}
	// The key comes back, and its secrets with it.
	if err := r.SetKeys(t.Context(), k.ring(2, 1)); err != nil {
		t.Fatal(err)
	}
	r.reveals(t, client, "old1", "old")
	if got := r.encryptionCheck(t); got != "ok" {
		t.Error(got)
	}

	// No key at all.
	none := h.beside(t, log, nil).prepare(t)
	none.put(t, client, "x", "x").refused(t, 424, "encryption_not_configured")
	none.do(t, "POST", "/v1/secret-rotations", nil).refused(t, 424, "encryption_not_configured")
	none.do(t, "POST", secretPath(client, "new")+"/reveal", nil).refused(t, 424, "secret_key_unavailable")
	none.do(t, "GET", "/v1/clients/"+client+"/secrets", nil).wants(t, 200)
	if got := none.encryptionCheck(t); !strings.Contains(got, "under v1") || !strings.Contains(got, "under v2") {
		t.Error(got)
	}
	// Who may not put is not told.
	none.as(t, h.newCaller(t, h.admin.org, "clients:read"), "PUT", secretPath(client, "x"), `{"value":"x"}`).refused(t, 403, "insufficient_scope")
}

func TestC11_AWrongKeyStopsTheStart(t *testing.T) {
	t.Parallel()
	k := newKeys(1, 2)
	h := newHub(t, withKeys(k.ring(1)))
	client := h.newClient(t)
	h.put(t, client, "s", "hush").wants(t, 201)
	log := &logBuffer{}
	wrong := newKeys(1, 3)
	for what, c := range map[string]struct {
		ring *keyring.Ring
		want []string
	}{
		"another key under v1":  {wrong.ring(1), []string{wrong.ring(1).Keys()[0].Fingerprint.String(), k.ring(1).Keys()[0].Fingerprint.String(), "v1"}},
		"another key behind v2": {keys{1: wrong[1], 2: k[2]}.ring(2, 1), []string{wrong.ring(1).Keys()[0].Fingerprint.String(), "v1"}},
		"v1's key as v3":        {keys{3: strings.Replace(k[1], "v1:", "v3:", 1)}.ring(3), []string{"encryption_keys_fingerprint_key"}},
	} {
		r := h.beside(t, log, c.ring)
		err := r.Prepare(t.Context())
		if err == nil {
			t.Errorf("%s: it starts", what)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v does not say %s", what, err, want)
			}
		}
	}
	if got := h.count(t, "SELECT count(*) FROM encryption_keys"); got != 1 {
		t.Errorf("%d keys are registered", got)
	}
	// While it runs, the ring before stays in use.
	if err := h.SetKeys(t.Context(), wrong.ring(1)); err == nil {
		t.Error("a wrong key was taken")
	}
	h.reveals(t, client, "s", "hush")
	h.put(t, client, "t", "hush").wants(t, 201)
	if err := h.SetKeys(t.Context(), k.ring(2, 1)); err != nil {
		t.Error(err)
	}
	h.reveals(t, client, "t", "hush")
}

type encryptionKeys struct {
	Items []struct {
		Version, Secrets int
		Fingerprint      string
		Held, Primary    bool
	}
}

func TestC11_TheLifeOfAKey(t *testing.T) {
	t.Parallel()
	k := newKeys(1, 2)
	h := newHub(t, withKeys(k.ring(1)))
	client := h.newClient(t)
	for i := range 3 {
		h.put(t, client, fmt.Sprintf("s%d", i), "hush").wants(t, 201)
	}
	status := func() string {
		var list encryptionKeys
		h.do(t, "GET", "/v1/encryption-keys", nil).wants(t, 200).into(t, &list)
		var parts []string
		for _, key := range list.Items {
			parts = append(parts, fmt.Sprintf("v%d:%d:%t:%t", key.Version, key.Secrets, key.Held, key.Primary))
		}
		return strings.Join(parts, " ")
	}
	use := func(versions ...int32) {
		t.Helper()
		if err := h.SetKeys(t.Context(), k.ring(versions...)); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want string) {
		t.Helper()
		if got := status(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	remove := func(version int) answer {
		return h.do(t, "DELETE", fmt.Sprintf("/v1/encryption-keys/%d", version), nil)
	}
	expect("v1:3:true:true")
	use(1, 2) // added
	h.put(t, client, "s3", "hush").wants(t, 201)
	expect("v1:4:true:true v2:0:true:false")
	use(2, 1) // promoted
	h.put(t, client, "s4", "hush").wants(t, 201)
	expect("v1:4:true:false v2:1:true:true")
	remove(1).refused(t, 409, "encryption_key_held")
	use(2) // taken away too early
	expect("v1:4:false:false v2:1:true:true")
	remove(1).refused(t, 409, "client_secrets_key_version_fkey_in_use")
	use(2, 1)
	h.works(t)
	id := h.do(t, "POST", "/v1/secret-rotations", nil).wants(t, 202).id(t)
	h.rotated(t, id)
	expect("v1:0:true:false v2:5:true:true")
	use(2) // retired
	remove(1).wants(t, 204)
	remove(1).refused(t, 404, "encryption_key_not_found")
	remove(0).refused(t, 400, "invalid_request", "path:keyVersion")
	expect("v2:5:true:true")
	for i := range 5 {
		h.reveals(t, client, fmt.Sprintf("s%d", i), "hush")
	}
	if got := string(h.do(t, "GET", "/v1/encryption-keys", nil).body); strings.Contains(got, k[2][3:20]) {
		t.Error("the key is shown")
	}
}

// Rotation (C11) ------------------------------------------------------------------------------------------------------

type rotation struct {
	ID, Status                                       string
	TargetVersion, Total, Rotated, Remaining, Failed int
	EndedAt                                          *time.Time
}

// rotated waits for the rotation's end.
func (h *hub) rotated(t testing.TB, id string) (r rotation) {
	t.Helper()
	eventually(t, "the rotation ends", func() bool {
		h.do(t, "GET", "/v1/secret-rotations/"+id, nil).wants(t, 200).into(t, &r)
		return r.Status != "running"
	})
	return r
}

func TestC11_RevealingRotates(t *testing.T) {
	t.Parallel()
	k := newKeys(1, 2)
	h := newHub(t, withKeys(k.ring(1, 2)))
	client := h.newClient(t)
	h.put(t, client, "s", "hush").wants(t, 201)
	before := h.do(t, "GET", secretPath(client, "s"), nil)
	h.reveals(t, client, "s", "hush")
	if got := h.keyVersions(t); got != "v1:1" {
		t.Error(got)
	}
	log := &logBuffer{}
	promoted := h.beside(t, log, k.ring(2, 1)).prepare(t)
	promoted.reveals(t, client, "s", "hush")
	if got := h.keyVersions(t); got != "v2:1" {
		t.Error(got)
	}
	after := h.do(t, "GET", secretPath(client, "s"), nil)
	if before.header.Get("ETag") != after.header.Get("ETag") {
		t.Error("another key is a new revision")
	}
	if metrics := string(promoted.do(t, "GET", "/metrics", nil).body); !strings.Contains(metrics, `hub_secrets_reencrypted_total{by="reveal"} 1`) {
		t.Error(metrics)
	}
	// A replica that still has the old list reads it, and does not take it back.
	h.reveals(t, client, "s", "hush")
	if got := h.keyVersions(t); got != "v2:1" {
		t.Error(got)
	}
	// Where the row is locked, as by the sweep, a reader does not wait; and what cannot be written does not fail it.
	h.put(t, client, "s", "hush").wants(t, 200)
	h.exec(t, "BEGIN")
	h.exec(t, "SELECT FROM client_secrets FOR UPDATE")
	promoted.reveals(t, client, "s", "hush")
	h.exec(t, "COMMIT")
	h.exec(t, `CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $e$it broke$e$; END'; CREATE TRIGGER broken BEFORE UPDATE ON client_secrets FOR EACH ROW EXECUTE FUNCTION broken()`)
	promoted.reveals(t, client, "s", "hush")
	log.waitFor(t, "a revealed secret stays under its old key")
	h.exec(t, "DROP TRIGGER broken ON client_secrets")
	if got := h.keyVersions(t); got != "v1:1" {
		t.Error(got)
	}
	promoted.reveals(t, client, "s", "hush")
	if got := h.keyVersions(t); got != "v2:1" {
		t.Error(got)
	}
}

// Two replicas sweep while others read and put: each secret is encrypted anew once, no reader fails, no value is lost or comes back.
func TestC11_TheSweepUnderLoad(t *testing.T) {
	t.Parallel()
	k := newKeys(1, 2)
	h := newHub(t, withKeys(k.ring(1, 2)))
	other := h.newCaller(t, uuid.Nil, "*")
	const perClient = 100
	type owned struct {
		who    caller
		client string
	}
	clients := []owned{{h.admin, h.newClient(t)}, {h.admin, h.newClient(t)}, {h.admin, h.newClient(t)}}
	clients = append(clients, owned{other, h.as(t, other, "POST", "/v1/clients", `{"name":"theirs","type":"webhook","config":{"url":"https://x/"}}`).wants(t, 201).id(t)})
	path := func(c owned, i int) string { return secretPath(c.client, fmt.Sprintf("s%d", i)) }
	for _, c := range clients {
		for i := range perClient {
			h.as(t, c.who, "PUT", path(c, i), fmt.Sprintf(`{"value":"%s %d 0"}`, c.client, i)).wants(t, 201)
		}
	}
	// How often each secret goes from one key to another.
	h.exec(t, `CREATE TABLE moves (id uuid, value_changed boolean);
		CREATE FUNCTION count_moves() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN INSERT INTO moves VALUES (NEW.id, OLD.value_changed_at <> NEW.value_changed_at); RETURN NULL; END';
		CREATE TRIGGER moves AFTER UPDATE ON client_secrets FOR EACH ROW EXECUTE FUNCTION count_moves()`)
	log := &logBuffer{}
	slow := func(c *api.Config, _ *pgxpool.Config) { c.RotationRate = 400 } // so that both have a share
	a, b := h.beside(t, log, k.ring(2, 1), slow).prepare(t), h.beside(t, log, k.ring(1, 2), slow).prepare(t)
	var started rotation
	a.do(t, "POST", "/v1/secret-rotations", nil).wants(t, 202).into(t, &started)
	if started.Status != "running" || started.Total != 4*perClient || started.Remaining != 4*perClient || started.TargetVersion != 2 {
		t.Fatalf("%+v", started)
	}

	// The last client's secrets are put again and again, at both ends; all others are read. The old list puts under v1: those may move again.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var group sync.WaitGroup
	var reads, puts atomic.Int64
	latest := make([]atomic.Int64, perClient)
	for n := range 3 {
		replica := []*hub{h, a, b}[n]
		group.Go(func() {
			for i := n; ctx.Err() == nil; i += 7 {
				c := clients[i%3]
				if i%5 == 0 { // through the replica with the new list, which would do it lazily
					continue
				}
				var got struct{ Value string }
				replica.as(t, c.who, "POST", path(c, i%perClient)+"/reveal", nil).wants(t, 200).into(t, &got)
				if want := fmt.Sprintf("%s %d 0", c.client, i%perClient); got.Value != want {
					t.Errorf("%q, want %q", got.Value, want)
					return
				}
				reads.Add(1)
			}
		})
	}
	group.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			n := int64(i + 1)
			a.as(t, clients[3].who, "PUT", path(clients[3], i%perClient), fmt.Sprintf(`{"value":"%s %d %d"}`, clients[3].client, i%perClient, n)).wants(t, 200)
			latest[i%perClient].Store(n)
			puts.Add(1)
		}
	})
	a.works(t)
	b.works(t)
	ended := h.rotated(t, started.ID)
	cancel()
	group.Wait()
	if ended.Status != "completed" || ended.Failed != 0 || ended.Remaining != 0 || ended.EndedAt == nil {
		t.Errorf("%+v", ended)
	}
	if got := h.keyVersions(t); got != fmt.Sprintf("v2:%d", 4*perClient) {
		t.Error(got)
	}
	if twice := h.count(t, "SELECT count(*) FROM (SELECT id FROM moves WHERE NOT value_changed GROUP BY id HAVING count(*) > 1) m"); twice != 0 {
		t.Errorf("%d secrets were encrypted anew more than once", twice)
	}
	if got := h.count(t, "SELECT count(*) FROM moves WHERE NOT value_changed"); got < ended.Rotated || ended.Rotated == 0 {
		t.Errorf("%d moves, %d counted", got, ended.Rotated)
	}
	for _, c := range clients {
		for i := range perClient {
			var got struct{ Value string }
			h.as(t, c.who, "POST", path(c, i)+"/reveal", nil).wants(t, 200).into(t, &got)
			n := int64(0)
			if c == clients[3] {
				n = latest[i].Load()
			}
			if want := fmt.Sprintf("%s %d %d", c.client, i, n); got.Value != want {
				t.Fatalf("%q, want %q: an old value came back", got.Value, want)
			}
		}
	}
	if reads.Load() == 0 || puts.Load() == 0 {
		t.Errorf("%d reads, %d puts meanwhile", reads.Load(), puts.Load())
	}
	t.Logf("%d reads and %d puts during the sweep; rotated %d of %d", reads.Load(), puts.Load(), ended.Rotated, ended.Total)
	for name, r := range map[string]*hub{"one": a, "the other": b} {
		metrics := string(r.do(t, "GET", "/metrics", nil).wants(t, 200).body)
		if regexp.MustCompile(`hub_secrets_reencrypted_total\{by="sweep"\} 0\n`).MatchString(metrics) || !strings.Contains(metrics, fmt.Sprintf(`hub_secret_rotation_secrets{state="total"} %d`, 4*perClient)) {
			t.Errorf("%s replica had no share: %s", name, metrics)
		}
	}
}

// What cannot be decrypted is left as it is, told, and does not keep the rotation from its end.
func TestC11_TheSweepPassesByWhatItCannotDecrypt(t *testing.T) {
	t.Parallel()
	k := newKeys(1, 2, 3)
	h := newHub(t, withKeys(k.ring(1)))
	client := h.newClient(t)
	for i := range 5 {
		h.put(t, client, fmt.Sprintf("s%d", i), "hush").wants(t, 201)
	}
	h.exec(t, "UPDATE client_secrets SET ciphertext = set_bit(ciphertext, 110, 1 - get_bit(ciphertext, 110)) WHERE name = 's1'")
	if err := h.SetKeys(t.Context(), k.ring(2)); err != nil {
		t.Fatal(err)
	}
	h.put(t, client, "s5", "hush").wants(t, 201)
	log := &logBuffer{}
	r := h.beside(t, log, k.ring(3, 1)).prepare(t) // v2 is missing
	r.works(t)
	ended := r.rotated(t, r.do(t, "POST", "/v1/secret-rotations", nil).wants(t, 202).id(t))
	if ended.Status != "completed" || ended.Total != 6 || ended.Rotated != 4 || ended.Failed != 2 || ended.Remaining != 2 {
		t.Errorf("%+v", ended)
	}
	if got := h.keyVersions(t); got != "v1:1 v2:1 v3:4" {
		t.Error(got)
	}
	for _, want := range []string{`"secret":"s1","cause":"the ciphertext is not authentic"`, `"secret":"s5","cause":"v2: the key ring does not hold this key"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %s: %s", want, log)
		}
	}
	if strings.Contains(log.String(), "hush") {
		t.Error("the log holds a value")
	}
	// The key comes back: another rotation finds the rest.
	if err := r.SetKeys(t.Context(), k.ring(3, 2, 1)); err != nil {
		t.Fatal(err)
	}
	ended = r.rotated(t, r.do(t, "POST", "/v1/secret-rotations", nil).wants(t, 202).id(t))
	if ended.Rotated != 1 || ended.Failed != 1 {
		t.Errorf("%+v", ended)
	}
	r.reveals(t, client, "s5", "hush")
}

// A rotation is not over while somebody else is at work on a secret; a replica without its key leaves it to others; another key ends it.
func TestC11_RotationsWaitAndAreSuperseded(t *testing.T) {
	t.Parallel()
	k := newKeys(1, 2, 3)
	log := &logBuffer{}
	h := newHub(t, log.configure, withKeys(k.ring(1)))
	client := h.newClient(t)
	for i := range 3 {
		h.put(t, client, fmt.Sprintf("s%d", i), "hush").wants(t, 201)
	}
	h.works(t) // holds v1 alone
	other := &logBuffer{}
	r := h.beside(t, other, k.ring(2, 1)).prepare(t)
	id := r.do(t, "POST", "/v1/secret-rotations", nil).wants(t, 202).id(t)
	log.waitFor(t, "a rotation is left to other replicas")
	if again := r.do(t, "POST", "/v1/secret-rotations", nil).wants(t, 202).id(t); again != id {
		t.Error("started twice")
	}
	h.exec(t, "BEGIN")
	h.exec(t, "SELECT FROM client_secrets WHERE name = 's1' FOR UPDATE")
	stop := r.works(t)
	eventually(t, "the others are rotated", func() bool {
		var got rotation
		r.do(t, "GET", "/v1/secret-rotations/"+id, nil).wants(t, 200).into(t, &got)
		return got.Rotated == 2 && got.Status == "running" && got.Remaining == 1
	})
	h.exec(t, "COMMIT")
	if ended := r.rotated(t, id); ended.Status != "completed" || ended.Rotated != 3 {
		t.Errorf("%+v", ended)
	}
	stop()
	if err := h.SetKeys(t.Context(), k.ring(1, 2)); err != nil {
		t.Fatal(err)
	}
	// Nobody works now, but for h: which holds v1 and v2.
	third := h.beside(t, other, k.ring(3, 2, 1)).prepare(t)
	first := third.do(t, "POST", "/v1/secret-rotations", nil).wants(t, 202).id(t)
	second := h.do(t, "POST", "/v1/secret-rotations", nil).wants(t, 202).id(t) // to v1, by the old list: an operator goes back
	if got := h.rotated(t, first); got.Status != "superseded" || got.EndedAt == nil {
		t.Errorf("%+v", got)
	}
	if got := h.rotated(t, second); got.Status != "completed" || got.Rotated != 3 || got.TargetVersion != 1 {
		t.Errorf("%+v", got)
	}
	h.do(t, "GET", "/v1/secret-rotations/"+uuid.NewString(), nil).refused(t, 404, "secret_rotation_not_found")
}

// The sweep takes its time.
func TestC11_TheSweepIsThrottled(t *testing.T) {
	t.Parallel()
	k := newKeys(1, 2)
	h := newHub(t, withKeys(k.ring(1)))
	client := h.newClient(t)
	h.exec(t, "SELECT 1")
	for i := range 40 {
		h.put(t, client, fmt.Sprintf("s%d", i), "hush").wants(t, 201)
	}
	took := func(versions []int32, rate int) time.Duration {
		r := h.beside(t, &logBuffer{}, k.ring(versions...), func(c *api.Config, _ *pgxpool.Config) { c.RotationRate = rate }).prepare(t)
		id := r.do(t, "POST", "/v1/secret-rotations", nil).wants(t, 202).id(t)
		start := time.Now()
		stop := r.works(t)
		defer stop()
		r.rotated(t, id)
		return time.Since(start)
	}
	fast, slow := took([]int32{2, 1}, 100_000), took([]int32{1, 2}, 20)
	if slow < 2*fast || slow < time.Second { // 40 at 20 per second are two seconds; a second at least is no matter of the machine
		t.Errorf("%v unthrottled, %v throttled", fast, slow)
	}
}

// Metrics -------------------------------------------------------------------------------------------------------------

func TestMetricsAreForThisMachine(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	a := h.as(t, caller{}, "GET", "/metrics", nil).wants(t, 200)
	if got := a.header.Get("Content-Type"); !strings.HasPrefix(got, "text/plain; version=0.0.4") {
		t.Error(got)
	}
	for _, name := range []string{"hub_clients_invalid", "hub_secrets_without_key", "hub_secrets_reencrypted_total", "hub_secret_rotation_running"} {
		if !strings.Contains(string(a.body), "\n"+name) || !strings.Contains(string(a.body), "# HELP "+name+" ") {
			t.Errorf("no %s: %s", name, a.body)
		}
	}
	for _, header := range []string{"X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"} {
		h.as(t, caller{}, "GET", "/metrics", nil, header, "10.0.0.1").refused(t, 403, "loopback_only")
	}
	open := newHub(t, func(c *api.Config, _ *pgxpool.Config) { c.MetricsOpen = true })
	open.as(t, caller{}, "GET", "/metrics", nil, "X-Forwarded-For", "10.0.0.1").wants(t, 200)
	from := httptest.NewRequest("GET", "/metrics", nil)
	from.RemoteAddr = "192.0.2.1:1234"
	for server, want := range map[*hub]int{h: 403, open: 200} {
		recorder := httptest.NewRecorder()
		server.ServeHTTP(recorder, from)
		if recorder.Code != want {
			t.Errorf("from elsewhere: %d, want %d", recorder.Code, want)
		}
	}
	if !slices.ContainsFunc(operations(t), func(op contractOp) bool { return op.id == "getMetrics" && op.public }) {
		t.Error("not in the contract")
	}
}

// What is on record --------------------------------------------------------------------------------------------------

// onRecord are the audit log's actions of a chain, the oldest first, with what they say of a change.
func (h *hub) onRecord(t testing.TB, where string) []string {
	t.Helper()
	rows, err := h.owner.Query(t.Context(), "SELECT format('%s by %s: %s', action, actor_source, changes) FROM audit_logs WHERE "+where+" ORDER BY chain_id, position")
	if err != nil {
		t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Putting, revealing and deleting a secret are on record, each time; its value is not, in no form. That keys rotate is on record once,
// not for each secret.
func TestW12_SecretsAreOnRecord(t *testing.T) {
	t.Parallel()
	k := newKeys(1, 2)
	h := newHub(t, withKeys(k.ring(1)))
	client := h.newClient(t)
	const where = "action LIKE 'secret.%'"
	expect := func(what string, want ...string) {
		t.Helper()
		got := h.onRecord(t, where)
		if len(got) != len(want) {
			t.Fatalf("%s: %d entries, want %d: %s", what, len(got), len(want), strings.Join(got, "\n"))
		}
		for i := range want {
			if !strings.HasPrefix(got[i], want[i]+" by api: ") {
				t.Errorf("%s: entry %d is %s, want %s", what, i, got[i], want[i])
			}
		}
	}
	h.put(t, client, "s", "canary one").wants(t, 201)
	expect("put", "secret.create")
	h.put(t, client, "s", "canary two").wants(t, 200)
	expect("put again", "secret.create", "secret.update")
	h.reveals(t, client, "s", "canary two")
	h.reveals(t, client, "s", "canary two")
	expect("revealed twice", "secret.create", "secret.update", "secret.reveal", "secret.reveal")
	h.do(t, "POST", secretPath(client, "nothing")+"/reveal", nil).refused(t, 404, "secret_not_found")
	h.do(t, "GET", secretPath(client, "s"), nil).wants(t, 200)
	expect("read", "secret.create", "secret.update", "secret.reveal", "secret.reveal")
	if got := h.onRecord(t, "action = 'secret.reveal'")[0]; !strings.Contains(got, `"name": "s"`) || !strings.Contains(got, client) {
		t.Error(got)
	}

	// Another key: lazily, and by the sweep.
	if err := h.SetKeys(t.Context(), k.ring(2, 1)); err != nil {
		t.Fatal(err)
	}
	h.put(t, client, "t", "canary three").wants(t, 201)
	h.reveals(t, client, "s", "canary two")
	expect("revealed under another key", "secret.create", "secret.update", "secret.reveal", "secret.reveal", "secret.create", "secret.reveal")
	if got := h.keyVersions(t); got != "v2:2" {
		t.Error(got)
	}
	if err := h.SetKeys(t.Context(), k.ring(1, 2)); err != nil {
		t.Fatal(err)
	}
	h.works(t)
	h.rotated(t, h.do(t, "POST", "/v1/secret-rotations", nil).wants(t, 202).id(t))
	if got := h.keyVersions(t); got != "v1:2" {
		t.Error(got)
	}
	expect("rotated", "secret.create", "secret.update", "secret.reveal", "secret.reveal", "secret.create", "secret.reveal")
	got := strings.Join(h.onRecord(t, "action LIKE 'secret_rotation.%' OR action LIKE 'encryption_key.%'"), "\n")
	for _, want := range []string{"encryption_key.create by worker", "secret_rotation.create by api", "secret_rotation.update by worker"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s: %s", want, got)
		}
	}

	// What psql does to a ciphertext is on record as well.
	h.exec(t, "UPDATE client_secrets SET ciphertext = set_bit(ciphertext, 110, 1 - get_bit(ciphertext, 110)) WHERE name = 't'")
	if got := h.onRecord(t, where+" AND actor_source = 'psql'"); len(got) != 1 || !strings.HasPrefix(got[0], `secret.update by psql: {"value_changed_at": {`) {
		t.Error(got)
	}
	h.do(t, "POST", secretPath(client, "t")+"/reveal", nil).refused(t, 424, "secret_damaged")
	h.do(t, "DELETE", secretPath(client, "s"), nil).wants(t, 204)
	h.do(t, "DELETE", "/v1/clients/"+client, nil).wants(t, 204)
	if got := h.onRecord(t, "action IN ('secret.delete', 'client.delete')"); len(got) != 3 {
		t.Error(got)
	}
	var dump string
	h.scan(t, &dump, "SELECT string_agg((to_jsonb(l) - 'hash' - 'previous_hash')::text, ' ') FROM audit_logs l") // a hash may begin like a ciphertext
	for _, text := range []string{"canary", hex.EncodeToString([]byte("canary")), `\\x01`} {
		if strings.Contains(dump, text) {
			t.Errorf("the audit log holds %s", text)
		}
	}
}

// An answer that showed a value is not kept for a retry.
func TestX09_ARevealedValueIsNotKept(t *testing.T) {
	t.Parallel()
	k := newKeys(1, 2)
	h := newHub(t, withKeys(k.ring(1)))
	client := h.newClient(t)
	h.put(t, client, "s", "canary").wants(t, 201)
	if err := h.SetKeys(t.Context(), k.ring(2, 1)); err != nil {
		t.Fatal(err)
	}
	h.do(t, "POST", secretPath(client, "s")+"/reveal", nil, "Idempotency-Key", "one").wants(t, 200)
	h.do(t, "POST", secretPath(client, "s")+"/reveal", nil, "Idempotency-Key", "one").refused(t, 409, "idempotency_secret_already_shown")
	var kept string
	h.scan(t, &kept, "SELECT string_agg(convert_from(coalesce(body, ''), 'UTF8') || headers::text, ' ') FROM idempotency_keys")
	if strings.Contains(kept, "canary") {
		t.Error(kept)
	}
	// A retry of a rotation's start is answered as before.
	a := h.do(t, "POST", "/v1/secret-rotations", nil, "Idempotency-Key", "two").wants(t, 202)
	b := h.do(t, "POST", "/v1/secret-rotations", nil, "Idempotency-Key", "two").wants(t, 202)
	if a.id(t) != b.id(t) || b.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%s %s", a.body, b.body)
	}
	body := `{"name":"once","type":"webhook","config":{"url":"https://x/"}}`
	if a, b := h.do(t, "POST", "/v1/clients", body, "Idempotency-Key", "three"), h.do(t, "POST", "/v1/clients", body, "Idempotency-Key", "three"); a.wants(t, 201).id(t) != b.wants(t, 201).id(t) {
		t.Errorf("%s %s", a.body, b.body)
	}
}

// A deleted organisation's clients and secrets go with it, and keep no key in use.
func TestW12_SecretsGoWithTheirOrganisation(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	other := h.newCaller(t, uuid.Nil, "*")
	for _, c := range []caller{h.admin, other} {
		id := h.as(t, c, "POST", "/v1/clients", `{"name":"c","type":"webhook","config":{"url":"https://x/"}}`).wants(t, 201).id(t)
		h.as(t, c, "PUT", secretPath(id, "s"), `{"value":"hush"}`).wants(t, 201)
	}
	h.exec(t, "UPDATE organizations SET deleted_at = now() WHERE id = $1", other.org)
	app, err := pgx.Connect(t.Context(), pgtest.URL(t, "hub_app"))
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close(context.Background())
	for rows := int64(1); rows > 0; {
		if err := app.QueryRow(t.Context(), "SELECT purge_organizations(1000)").Scan(&rows); err != nil {
			t.Fatal(err)
		}
	}
	if got := h.count(t, "SELECT count(*) FROM clients WHERE org_id = $1", other.org) + h.count(t, "SELECT count(*) FROM client_secrets WHERE org_id = $1", other.org); got != 0 {
		t.Errorf("%d rows are left", got)
	}
	if got := h.count(t, "SELECT count(*) FROM organizations WHERE id = $1", other.org); got != 0 {
		t.Error("the organisation is left")
	}
	if got := h.count(t, "SELECT count(*) FROM client_secrets WHERE org_id = $1", h.admin.org); got != 1 {
		t.Error("another one's secret is gone")
	}
}
