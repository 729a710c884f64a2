package api_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/internal/api"
	"github.com/alkdev/hub/internal/migrate"
)

func TestHealthAndVersion(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	var health struct {
		Status string
		Checks map[string]string
	}
	h.as(t, caller{}, "GET", "/healthz", nil).wants(t, 200).into(t, &health)
	if health.Status != "ok" {
		t.Errorf("%+v", health)
	}
	h.as(t, caller{}, "GET", "/readyz", nil).wants(t, 200).into(t, &health)
	if health.Status != "ok" || health.Checks["database"] != "ok" {
		t.Errorf("%+v", health)
	}
	var version struct {
		Version, Contract, Go string
		Schema                int64
	}
	h.as(t, caller{}, "GET", "/v1/version", nil).wants(t, 200).into(t, &version)
	if version.Version != "test" || version.Contract == "" || version.Go != runtime.Version() || version.Schema != migrate.Latest() {
		t.Errorf("%+v", version)
	}
}

func checksum(t testing.TB, version int64) []byte {
	t.Helper()
	files, err := migrate.Files()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if file.Version == version {
			return file.SHA256[:]
		}
	}
	t.Fatalf("there is no migration %d", version)
	return nil
}

// A schema of another version, or one that other migrations made, is not one to serve on.
func TestReadinessComparesTheSchema(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure)
	wants := func(status int) {
		t.Helper()
		a := h.as(t, caller{}, "GET", "/readyz", nil).wants(t, status)
		var health struct {
			Status string
			Checks map[string]string
		}
		a.into(t, &health)
		if (health.Status == "ok") != (status == 200) || (health.Checks["database"] == "ok") != (status == 200) {
			t.Errorf("%s", a.body)
		}
	}
	wants(200)
	const newest = "WHERE version = (SELECT max(version) FROM schema_migration_checksums)"
	for _, spoilt := range []struct{ spoil, mend string }{
		{"UPDATE schema_migration_checksums SET version = version + 100 " + newest, "UPDATE schema_migration_checksums SET version = version - 100 " + newest},
		{"UPDATE schema_migration_checksums SET version = -version " + newest, "UPDATE schema_migration_checksums SET version = -version WHERE version < 0"},
		{"UPDATE schema_migration_checksums SET sha256 = sha256(sha256) WHERE version = 2", fmt.Sprintf("UPDATE schema_migration_checksums SET sha256 = '\\x%x' WHERE version = 2", checksum(t, 2))},
		{"ALTER TABLE schema_migration_checksums RENAME TO hidden", "ALTER TABLE hidden RENAME TO schema_migration_checksums"},
	} {
		h.exec(t, spoilt.spoil)
		wants(503)
		h.exec(t, spoilt.mend)
		wants(200)
	}
	log.waitFor(t, "not ready")
}

// get asks without the harness, which knows operations only.
func (h *hub) get(t testing.TB, path string) answer {
	t.Helper()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Get(h.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, text}
}

func TestTheContractIsServed(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	want, err := os.ReadFile("../../gen/api/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	a := h.get(t, "/openapi.json").wants(t, 200)
	if string(a.body) != string(want) || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("%d bytes of type %s, the file has %d", len(a.body), a.header.Get("Content-Type"), len(want))
	}
	var doc struct{ OpenAPI string }
	if err := json.Unmarshal(a.body, &doc); err != nil || doc.OpenAPI != "3.0.3" {
		t.Errorf("%q, %v", doc.OpenAPI, err)
	}
}

// The documentation works without the internet: whatever the page loads comes from this server.
func TestTheDocumentationIsServed(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	if a := h.get(t, "/docs"); a.status != http.StatusMovedPermanently || a.header.Get("Location") != "/docs/" {
		t.Errorf("status %d to %q", a.status, a.header.Get("Location"))
	}
	page := h.get(t, "/docs/").wants(t, 200)
	if !strings.HasPrefix(page.header.Get("Content-Type"), "text/html") || !strings.Contains(string(page.body), "/openapi.json") {
		t.Fatalf("type %s: %s", page.header.Get("Content-Type"), page.body)
	}
	base, err := url.Parse(h.url + "/docs/")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, found := range regexp.MustCompile(`(?i)(?:src|href)\s*=\s*["']([^"']+)["']`).FindAllStringSubmatch(string(page.body), -1) {
		at, err := base.Parse(found[1])
		if err != nil {
			t.Fatal(err)
		}
		if at.Host != base.Host {
			t.Errorf("the page loads %s", found[1])
			continue
		}
		asset := h.get(t, at.RequestURI())
		if asset.status != 200 || len(asset.body) == 0 {
			t.Errorf("%s: status %d, %d bytes", found[1], asset.status, len(asset.body))
		}
		kinds[strings.Split(asset.header.Get("Content-Type"), ";")[0]]++
		if strings.HasSuffix(at.Path, ".css") {
			if external := regexp.MustCompile(`(?i)(@import|url\()\s*["']?https?:`).Find(asset.body); external != nil {
				t.Errorf("%s loads something from elsewhere: %s", found[1], external)
			}
		}
	}
	if kinds["text/css"] == 0 || kinds["text/javascript"]+kinds["application/javascript"] == 0 {
		t.Errorf("the page loads %v", kinds)
	}
	if external := regexp.MustCompile(`(?i)(import|fetch|url)\s*\(?\s*["']https?:[^"']*`).Find(page.body); external != nil {
		t.Errorf("the page loads something from elsewhere: %s", external)
	}
	h.get(t, "/docs/nothing.js").wants(t, 404)
	if a := h.get(t, "/docs/../../etc/passwd"); strings.Contains(string(a.body), "root:") {
		t.Error("the documents lead out of their directory")
	}
}

// The deadlines of connections, all waited for at once: they take five seconds more than a request may take, and ten.
func TestDeadlinesOfConnections(t *testing.T) {
	t.Parallel()
	const short = time.Second // on a busy machine a key is not looked up in less
	fast := newHub(t, func(c *api.Config, _ *pgxpool.Config) { c.RequestTimeout, c.ImportTimeout = short, short })

	var group sync.WaitGroup
	// A connection lives on after a request; the deadlines of one request must not hit the next, whatever that asks for.
	for _, path := range []string{"/openapi.json", "/healthz", "/v1/nothing", "/docs/"} {
		group.Go(func() {
			conn, err := net.Dial("tcp", strings.TrimPrefix(fast.url, "http://"))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			for _, target := range []string{"/healthz", path} {
				if target == path {
					time.Sleep(short + 10500*time.Millisecond)
				}
				if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: hub\r\n\r\n", target); err != nil {
					t.Errorf("%s on a connection that had served before: %v", target, err)
					return
				}
				response, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Errorf("%s on a connection that had served before: %v", target, err)
					return
				}
				if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode >= 500 {
					t.Errorf("%s: %s, %v", target, response.Status, err)
				}
			}
		})
	}
	// A body that trickles does not hold a connection for ever: it ends with an answer.
	for target, body := range map[string]string{
		"/v1/projects":  `{"slug":"a",`,
		"/v1/projects?": `{"slug":"a","name":"` + strings.Repeat("x", 100<<10),
		"/v1/sessions/import?projectId=01a20700-0000-7000-8000-000000000001": `{"info":{"id":`,
	} {
		group.Go(func() {
			start := time.Now()
			head := fast.admin.head("POST", target, fmt.Sprintf("\nContent-Type: application/json\nContent-Length: %d", len(body)+10))
			a := fast.raw(t, head, body, false)
			if p := a.problem(t); a.status != 400 || p.Code != "body_incomplete" {
				t.Errorf("%s: %s", target, a.body)
			}
			if took := time.Since(start); took < 4*time.Second {
				t.Errorf("%s: it took %s", target, took)
			}
		})
	}
	group.Wait()
}

// A reader that does not read: its export holds no connection to the database, and no other export's turn.
func TestReadersThatDoNotRead(t *testing.T) {
	t.Parallel()
	h := newHub(t, func(_ *api.Config, p *pgxpool.Config) { p.MaxConns = 1 })
	session := h.newSession(t)
	message := h.do(t, "POST", "/v1/sessions/"+session+"/messages", `{"messages":[{"role":"user"}]}`).wants(t, 201).messages(t)[0].ID
	h.exec(t, "INSERT INTO parts (org_id, session_id, message_id, type, data) SELECT $1, $2, $3, 'text', jsonb_build_object('text', repeat('x', 1 << 20)) FROM generate_series(1, 24)", h.admin.org, session, message)
	for range 3 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, strings.ReplaceAll(h.admin.head("GET", "/v1/sessions/"+session+"/export", "\n\n"), "\n", "\r\n")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 100)); err != nil { // it has begun
			t.Fatal(err)
		}
	}
	h.do(t, "GET", "/v1/projects", nil).wants(t, 200)
	if o := outlineOf(t, h.export(t, session)); o.parts() != 24 {
		t.Errorf("%d parts", o.parts())
	}
}

// Imports and exports wait for their turn: connections stay free for all other requests.
func TestTransfersLeaveConnectionsFree(t *testing.T) {
	t.Parallel()
	h := newHub(t, func(c *api.Config, p *pgxpool.Config) {
		c.ImportTimeout, c.Transfers, p.MaxConns = 20*time.Second, 2, 4
	})
	project := h.newProject(t, "p")
	session := h.newSession(t)
	locked := h.begin(t)
	locked("SELECT FROM projects WHERE id = $1 FOR UPDATE", project) // what every import waits for
	var group sync.WaitGroup
	for i := range 6 {
		group.Go(func() { h.importFile(t, h.admin, project, export{id: fmt.Sprintf("ses_%d", i)}).wants(t, 201) })
	}
	eventually(t, "two imports wait for the lock", func() bool { return h.waiting() == 2 })
	for range 3 {
		counts := h.race(t, 4, func(int) int { return h.do(t, "GET", "/v1/sessions/"+session, nil).status })
		if counts[200] != 4 {
			t.Errorf("%v", counts)
		}
	}
	if n := h.waiting(); n != 2 {
		t.Errorf("%d imports wait for the lock, want 2", n)
	}
	locked("ROLLBACK")
	group.Wait()
	if n := h.count(t, "SELECT count(*) FROM sessions WHERE source IS NOT NULL"); n != 6 {
		t.Errorf("%d imports came through", n)
	}
}

// HEAD and OPTIONS are not part of the contract; they do no harm.
func TestOtherMethods(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	before := h.tables(t)
	for _, op := range operations(t) {
		for _, method := range []string{"HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "X"} {
			a := h.raw(t, h.admin.head(method, op.anyPath(), "\nContent-Length: 0\nConnection: close"), "", false)
			if a.status >= 500 || a.status < 300 && method != "OPTIONS" {
				t.Errorf("%s %s: status %d: %s", method, op.path, a.status, a.body)
			}
		}
	}
	h.unchanged(t, before, "other methods")
}
