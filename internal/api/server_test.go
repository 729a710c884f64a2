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

// A schema of another version, or one whose migration broke off, is not one to serve on.
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
	for _, spoilt := range []struct{ spoil, mend string }{
		{"UPDATE schema_migrations SET version = version + 1", "UPDATE schema_migrations SET version = version - 1"},
		{"UPDATE schema_migrations SET version = version - 1", "UPDATE schema_migrations SET version = version + 1"},
		{"UPDATE schema_migrations SET dirty = true", "UPDATE schema_migrations SET dirty = false"},
		{"ALTER TABLE schema_migrations RENAME TO hidden", "ALTER TABLE hidden RENAME TO schema_migrations"},
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

// A connection lives on after a request; the deadlines of one request must not hit the next, whatever that asks for.
func TestConnectionsOutliveARequestsDeadline(t *testing.T) {
	t.Parallel()
	h := newHub(t, func(c *api.Config, _ *pgxpool.Config) { c.RequestTimeout = 100 * time.Millisecond }) // and 5 s for the connection
	var conns []net.Conn
	paths := []string{"/openapi.json", "/healthz", "/v1/nothing", "/docs/"}
	ask := func(conn net.Conn, path string) (*http.Response, error) {
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\nHost: hub\n\n", path); err != nil {
			return nil, err
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err == nil {
			_, err = io.Copy(io.Discard, response.Body)
		}
		return response, err
	}
	for range paths {
		conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := ask(conn, "/healthz"); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	time.Sleep(5500 * time.Millisecond)
	for i, path := range paths {
		if response, err := ask(conns[i], path); err != nil {
			t.Errorf("%s on a connection that had served before: %v", path, err)
		} else if response.StatusCode >= 500 {
			t.Errorf("%s: %s", path, response.Status)
		}
	}
}

// A body that trickles does not hold a connection for ever: it ends with an answer, once the request's time and 5 s are over.
func TestSlowBodies(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure, func(c *api.Config, _ *pgxpool.Config) {
		c.RequestTimeout, c.ImportTimeout = 100*time.Millisecond, 100*time.Millisecond
	})
	project := h.newProject(t, "slow")
	for name, r := range map[string]struct{ target, body string }{
		"small":  {"/v1/projects", `{"slug":"a",`},
		"large":  {"/v1/projects", `{"slug":"a","name":"` + strings.Repeat("x", 100<<10)},
		"import": {"/v1/sessions/import?projectId=" + project, `{"info":{"id":`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			a := h.raw(t, h.admin.head("POST", r.target, fmt.Sprintf("\nContent-Type: application/json\nContent-Length: %d", len(r.body)+10)), r.body, false)
			a.refused(t, 400, "body_incomplete", "")
			if took := time.Since(start); took < 4*time.Second || took > 40*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// A reader that does not read: the export gives its database connection back.
func TestReadersThatDoNotRead(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure, func(c *api.Config, p *pgxpool.Config) { c.ImportTimeout, p.MaxConns = 2*time.Second, 1 })
	project := h.newProject(t, "p")
	e := export{id: "ses_wide"}
	for i := range 20 {
		e.messages = append(e.messages, exportMessage{id: fmt.Sprint("m", i), parts: []exportPart{{id: fmt.Sprint("p", i), more: `,"text":"` + strings.Repeat("x", 1<<20) + `"`}}})
	}
	in := h.imports(t, project, e, "created")
	conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, strings.ReplaceAll(h.admin.head("GET", "/v1/sessions/"+in.ID+"/export", "\n\n"), "\n", "\r\n")); err != nil {
		t.Fatal(err)
	}
	log.waitFor(t, "the answer broke off") // 7 s later
	h.do(t, "GET", "/v1/projects", nil).wants(t, 200)
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	if n, err := io.Copy(io.Discard, conn); err == nil && n > 20<<20 {
		t.Errorf("all %d bytes came", n)
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
