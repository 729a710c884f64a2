package api_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/internal/api"
	"github.com/alkdev/hub/internal/pgjson/jsonequal"
)

// A session that was born here and is here still is not imported a second time; once it is gone, its export brings it back.
func TestC02_ASessionBornHereIsNotImportedBesideItself(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	file := h.export(t, f.session)
	before := h.tables(t)
	h.importFile(t, h.admin, f.project, file).refused(t, 409, "session_born_here", "/info/id")
	h.unchanged(t, before, "a refused import")
	h.do(t, "DELETE", "/v1/sessions/"+f.session, nil).wants(t, 204)
	h.importFile(t, h.admin, f.project, file).wants(t, 201)
}

// Broken files leave nothing: no session, no message, no role.
func TestImportRefusesBrokenFiles(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	h.imports(t, project, numbered("ses_there", "5000", "a", 2, 2), "created")
	before := h.tables(t)
	good := `{"info":{"id":"ses_x","slug":"s","title":"t","version":"1","parentID":"ses_y","agent":"fresh","time":{"created":1,"updated":2,"archived":3}},
		"messages":[{"info":{"id":"m0","sessionID":"ses_x","role":"user","agent":"fresh","time":{"created":4}},"parts":[]},
		{"info":{"id":"m1","sessionID":"ses_x","role":"assistant","time":{"created":5}},"parts":[{"id":"p0","sessionID":"ses_x","messageID":"m1","type":"text","text":"hello"},
		{"id":"p1","sessionID":"ses_x","messageID":"m1","type":"x"}]}]}`
	long := `"` + strings.Repeat("é", 101) + `"`
	for _, w := range []struct{ old, new, pointer string }{
		{`"id":"ses_x"`, `"id":5`, "/info/id"},
		{`"id":"ses_x"`, `"id":null`, "/info/id"},
		{`"id":"ses_x"`, `"id":""`, "/info/id"},
		{`"id":"ses_x"`, `"id":["ses_x"]`, "/info/id"},
		{`"id":"ses_x"`, `"id":` + long, "/info/id"},
		{`"id":"ses_x"`, `"id":"ses_x\u0000"`, "/info/id"},
		{`"id":"ses_x"`, `"id":"ses_x\ud83d"`, "/info/id"},
		{`"id":"ses_x",`, ``, "/info/id"},
		{`"id":"ses_x"`, `"id":"ses_z"`, "/messages/0/info/sessionID"},
		{`"title":"t"`, `"title":5`, "/info/title"},
		{`"title":"t"`, `"title":null`, "/info/title"},
		{`"title":"t",`, ``, "/info/title"},
		{`"version":"1"`, `"version":1`, "/info/version"},
		{`"version":"1",`, ``, "/info/version"},
		{`"parentID":"ses_y"`, `"parentID":5`, "/info/parentID"},
		{`"parentID":"ses_y"`, `"parentID":""`, "/info/parentID"},
		{`"parentID":"ses_y"`, `"parentID":"ses_x"`, "/info/parentID"},
		{`"agent":"fresh","time":{"created":1`, `"agent":5,"time":{"created":1`, "/info/agent"},
		{`"agent":"fresh","time":{"created":1`, `"agent":"\u0000","time":{"created":1`, "/info/agent"},
		{`"agent":"fresh","time":{"created":4`, `"agent":` + long + `,"time":{"created":4`, "/messages/0/info/agent"},
		{`"time":{"created":1,"updated":2,"archived":3}`, `"time":5`, "/info/time"},
		{`,"time":{"created":1,"updated":2,"archived":3}`, ``, "/info/time"},
		{`"created":1,`, ``, "/info/time/created"},
		{`"created":1,`, `"created":"1",`, "/info/time/created"},
		{`"created":1,`, `"created":-1,`, "/info/time/created"},
		{`"created":1,`, `"created":1e15,`, "/info/time/created"},
		{`"updated":2,`, ``, "/info/time/updated"},
		{`"updated":2,`, `"updated":null,`, "/info/time/updated"},
		{`"archived":3`, `"archived":true`, "/info/time/archived"},
		{`"messages":[`, `"other":[`, "/messages"},
		{`"messages":[`, `"messages":5,"other":[`, "/messages"},
		{`"messages":[`, `"messages":null,"other":[`, "/messages"},
		{`"messages":[`, `"messages":{},"other":[`, "/messages"},
		{`"messages":[`, `"messages":[5,`, "/messages/0"},
		{`"messages":[`, `"messages":[null,`, "/messages/0"},
		{`"messages":[`, `"messages":[{"parts":[]},`, "/messages/0/info"},
		{`"messages":[`, `"messages":[{"info":[],"parts":[]},`, "/messages/0/info"},
		{`"info":{"id":"ses_x"`, `"other":{"id":"ses_x"`, "/info"},
		{`"id":"m0"`, `"id":0`, "/messages/0/info/id"},
		{`"id":"m0",`, ``, "/messages/0/info/id"},
		{`"id":"m1"`, `"id":"m0"`, "/messages/1/info/id"},
		{`"sessionID":"ses_x","role":"user"`, `"sessionID":"ses_there","role":"user"`, "/messages/0/info/sessionID"},
		{`"sessionID":"ses_x","role":"user"`, `"role":"user"`, "/messages/0/info/sessionID"},
		{`"role":"user"`, `"role":"User"`, "/messages/0/info/role"},
		{`"role":"user"`, `"role":5`, "/messages/0/info/role"},
		{`"role":"user",`, ``, "/messages/0/info/role"},
		{`"time":{"created":4}`, `"time":{}`, "/messages/0/info/time/created"},
		{`"time":{"created":4}`, `"time":[]`, "/messages/0/info/time"},
		{`,"time":{"created":4}`, ``, "/messages/0/info/time"},
		{`"parts":[]`, `"parts":{}`, "/messages/0/parts"},
		{`"parts":[]`, `"parts":null`, "/messages/0/parts"},
		{`,"parts":[]`, ``, "/messages/0/parts"},
		{`"parts":[]`, `"parts":[5]`, "/messages/0/parts/0"},
		{`"id":"p0"`, `"id":0`, "/messages/1/parts/0/id"},
		{`"id":"p0",`, ``, "/messages/1/parts/0/id"},
		{`"id":"p1"`, `"id":"p0"`, "/messages/1/parts/1/id"},
		{`"sessionID":"ses_x","messageID":"m1","type":"text"`, `"sessionID":"ses_there","messageID":"m1","type":"text"`, "/messages/1/parts/0/sessionID"},
		{`"messageID":"m1","type":"text"`, `"messageID":"m0","type":"text"`, "/messages/1/parts/0/messageID"},
		{`"messageID":"m1","type":"text"`, `"type":"text"`, "/messages/1/parts/0/messageID"},
		{`"type":"text"`, `"type":5`, "/messages/1/parts/0/type"},
		{`"type":"text"`, `"type":""`, "/messages/1/parts/0/type"},
		{`"type":"text"`, `"type":"\u0000"`, "/messages/1/parts/0/type"},
		{`"type":"text",`, ``, "/messages/1/parts/0/type"},
		{`"text":"hello"`, `"text":"hello","text":"twice"`, "/messages/1/parts/0/text"},
		{`"text":"hello"`, "\"text\":\"\xff\"", "/messages/1/parts/0/text"},
		{`"text":"hello"`, `"text":` + strings.Repeat("[", 256) + strings.Repeat("]", 256), "/messages/1/parts/0/text" + strings.Repeat("/0", 255)},
		{`"text":"hello"`, `"text":1e401`, "/messages/1/parts/0/text"},
		{`"text":"hello"`, `"text":` + strings.Repeat("1", 1001), "/messages/1/parts/0/text"},
		{`"type":"x"}]}]}`, `"type":"x"}]}]} {}`, ""},
		{`"type":"x"}]}]}`, `"type":"x"}]}],"info":{}}`, "/info"},
		{`"type":"x"}]}]}`, `"type":"x"}]}],"messages":[]}`, "/messages"},
	} {
		broken := strings.Replace(good, w.old, w.new, 1)
		if broken == good {
			t.Fatalf("%s does not occur", w.old)
		}
		a := h.importFile(t, h.admin, project, broken)
		if a.status != 400 {
			t.Errorf("%.60s for %.60s: status %d: %s", w.new, w.old, a.status, a.body)
			continue
		}
		if p := a.problem(t); p.Code != "invalid_json" || len(p.Errors) != 1 || p.Errors[0].Pointer != w.pointer {
			t.Errorf("%.60s for %.60s: want a pointer to %s: %s", w.new, w.old, w.pointer, a.body)
		}
	}
	for name, body := range map[string]string{"nothing": "", "white space": "\n", "an array": "[]", "null": "null", "text": "nonsense", "NULs": strings.Repeat("\x00", 100), "HTML": "<html>", "two files": good + good} {
		if a := h.importFile(t, h.admin, project, body); a.status != 400 || a.problem(t).Code != "invalid_json" {
			t.Errorf("%s: status %d: %s", name, a.status, a.body)
		}
	}
	for _, media := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/gzip", ""} {
		h.do(t, "POST", "/v1/sessions/import?projectId="+project, good, "Content-Type", media).refused(t, 415, "unsupported_media_type", "header:Content-Type")
	}
	h.unchanged(t, before, "broken files")

	// Cut short at many places.
	for _, name := range []string{"03-tool-and-provider-errors.json", "15-tree-root.json"} {
		file := bytes.TrimSpace(realExports(t)[name])
		for i := 0; i < len(file); i += 1 + len(file)/150 {
			if a := h.importFile(t, h.admin, project, file[:i]); a.status != 400 || a.problem(t).Code != "invalid_json" {
				t.Fatalf("%s cut at byte %d: status %d: %s", name, i, a.status, a.body)
			}
		}
		h.importFile(t, h.admin, project, file[:len(file)-1]).refused(t, 400, "invalid_json", "")
	}
	h.unchanged(t, before, "files that were cut short")

	// The twins.
	h.imports(t, project, good, "created")
	h.imports(t, project, realExports(t)["03-tool-and-provider-errors.json"], "created")
}

// A message or part that another session has: refused as a whole, with pointers to all of them in the batch.
func TestC04_ImportRefusesMessagesOfAnotherSession(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	h.imports(t, project, numbered("ses_a", "5000", "a", 3, 2), "created")
	before := h.tables(t)

	thief := numbered("ses_b", "5000", "b", 4, 2)
	thief.info = `,"agent":"a-new-role"`
	thief.messages[1].id = "ses_a_m0"
	thief.messages[3].id = "ses_a_m2"
	h.importFile(t, h.admin, project, thief).refused(t, 409, "messages_session_immutable", "/messages/1/info/id", "/messages/3/info/id")

	parts := numbered("ses_b", "5000", "b", 4, 3)
	parts.messages[0].parts[2].id = "ses_a_m1_p0"
	parts.messages[2].parts[0].id = "ses_a_m0_p1"
	h.importFile(t, h.admin, project, parts).refused(t, 409, "parts_session_immutable", "/messages/0/parts/2/id", "/messages/2/parts/0/id")

	// Beyond the first batch.
	large := numbered("ses_b", "5000", "b", 450, 1)
	large.messages[433].id = "ses_a_m1"
	h.importFile(t, h.admin, project, large).refused(t, 409, "messages_session_immutable", "/messages/433/info/id")
	large = numbered("ses_b", "5000", "b", 450, 1)
	large.messages[433].parts[0].id = "ses_a_m1_p1"
	h.importFile(t, h.admin, project, large).refused(t, 409, "parts_session_immutable", "/messages/433/parts/0/id")
	h.unchanged(t, before, "stolen messages")

	// A part that moves between messages of its own session.
	moved := numbered("ses_a", "6000", "a", 3, 2)
	moved.messages[0].parts, moved.messages[1].parts = moved.messages[0].parts[:1], append(moved.messages[1].parts, moved.messages[0].parts[1])
	h.importFile(t, h.admin, project, moved).refused(t, 409, "parts_session_immutable", "/messages/1/parts/2/id")
	h.unchanged(t, before, "a part that moved")

	// The twin, which differs in the ids.
	h.imports(t, project, numbered("ses_b", "5000", "b", 4, 2), "created")
	// Another organisation may have the same ids.
	stranger := h.newCaller(t, uuid.Nil, "*")
	theirs := h.as(t, stranger, "POST", "/v1/projects", `{"slug":"p","name":"p"}`).wants(t, 201).id(t)
	h.importFile(t, stranger, theirs, thief).wants(t, 201)
}

// counter counts what is read of an endless text.
type counter struct {
	read   atomic.Int64
	prefix string
	text   []byte
	limit  int64
}

func (c *counter) Read(p []byte) (int, error) {
	at := c.read.Load()
	if at >= c.limit {
		return 0, io.EOF
	}
	n := 0
	if at < int64(len(c.prefix)) {
		n = copy(p, c.prefix[at:])
	} else {
		for n < len(p) {
			n += copy(p[n:], c.text[int(at+int64(n))%len(c.text):])
		}
	}
	c.read.Add(int64(n))
	return n, nil
}

// Nonsense is refused as soon as it is seen: what follows is not read, let alone kept.
func TestImportRefusesNonsenseEarly(t *testing.T) {
	t.Parallel()
	const size, enough = 300 << 20, 24 << 20 // what lies in the buffers of two sockets is not read, but sent
	h := newHub(t)
	project := h.newProject(t, "p")
	reader := h.newCaller(t, h.admin.org, "sessions:read")
	before := h.tables(t)
	good := export{id: "ses_n", messages: []exportMessage{{id: "m"}}}.String()
	for name, c := range map[string]*counter{
		"nonsense":                {text: []byte("nonsense ")},
		"zeros":                   {text: []byte("\x00\x00\x00")},
		"brackets":                {text: []byte("[")},
		"objects in each other":   {text: []byte(`{"info":`)},
		"nonsense behind a file":  {prefix: good, text: []byte("nonsense ")},
		"nonsense among messages": {prefix: strings.TrimSuffix(good, "]}"), text: []byte(`,{"info":{}}`)},
		"the same message":        {prefix: strings.TrimSuffix(good, "]}"), text: []byte(`,{"info":{"id":"m","sessionID":"ses_n","role":"user","time":{"created":1}},"parts":[]}`)},
		"many digits":             {prefix: `{"x":`, text: []byte("123456789")},
	} {
		c.limit = size
		a := h.importFile(t, h.admin, project, struct{ io.Reader }{c})
		if a.status != 400 || a.problem(t).Code != "invalid_json" {
			t.Errorf("%s: status %d: %.300s", name, a.status, a.body)
		}
		if c.read.Load() > enough {
			t.Errorf("%s: %d MB were read", name, c.read.Load()>>20)
		}
	}
	// The same for those who may not import: nothing is read at all, but what the sockets hold.
	for _, c := range []caller{{}, {key: unknownKey()}, reader} {
		text := &counter{prefix: good[:len(good)-1], text: []byte(" "), limit: size}
		if a := h.importFile(t, c, project, struct{ io.Reader }{text}); a.status != 401 && a.status != 403 || text.read.Load() > enough {
			t.Errorf("status %d after %d MB", a.status, text.read.Load()>>20)
		}
	}
	h.unchanged(t, before, "nonsense")
}

func TestImportOverTheLimit(t *testing.T) {
	t.Parallel()
	const limit = 3 << 20
	dir := t.TempDir()
	h := newHub(t, func(c *api.Config, _ *pgxpool.Config) { c.MaxImport, c.MaxBody, c.TempDir = limit, 1000, dir })
	project := h.newProject(t, "p")
	file := func(size int) string {
		e := numbered("ses_l", "5000", "a", 2, 1).String()
		return strings.Replace(e, `"a 1 0"`, `"`+strings.Repeat("x", size-len(e)+5)+`"`, 1)
	}
	before := h.tables(t)
	for _, size := range []int{limit + 1, limit + 1000} {
		text := file(size)
		if len(text) != size {
			t.Fatal(len(text))
		}
		h.importFile(t, h.admin, project, text).refused(t, 413, "body_too_large", "")
		h.importFile(t, h.admin, project, struct{ io.Reader }{strings.NewReader(text)}).refused(t, 413, "body_too_large", "") // chunked
	}
	h.unchanged(t, before, "imports over the limit")
	h.importFile(t, h.admin, project, struct{ io.Reader }{strings.NewReader(file(limit))}).wants(t, 201)
	// Nothing is left where files are put aside.
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// Where a file cannot be put aside, a small one does not need to.
func TestImportWithoutRoomForFiles(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure, func(c *api.Config, _ *pgxpool.Config) { c.TempDir = "/nowhere/at/all" })
	project := h.newProject(t, "p")
	large := numbered("ses_large", "5000", strings.Repeat("x", 3000), 400, 1)
	before := h.tables(t)
	a := h.importFile(t, h.admin, project, large)
	a.refused(t, 503, "storage_unavailable")
	if strings.Contains(string(a.body), "nowhere") {
		t.Errorf("the answer tells where: %s", a.body)
	}
	log.waitFor(t, "/nowhere/at/all")
	h.unchanged(t, before, "an import without room")
	h.imports(t, project, export{id: "ses_small"}, "created")
}

// Two different exports of one session, by eight at once: whichever comes first, the later one stands at the end, whole.
func TestImportOfTwoVersionsAtOnce(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	for round := range 5 {
		id := fmt.Sprintf("ses_%d", round)
		old, later := numbered(id, "5000", "old", 30, 2), numbered(id, "6000", "later", 25, 3)
		later.messages = later.messages[5:]
		same := numbered(id, "6000", "same time", 22, 1)
		files := []export{old, later}
		if round%2 == 1 {
			files = []export{same, later}
		}
		counts := h.race(t, 8, func(i int) int { return h.importFile(t, h.admin, project, files[i%2]).status })
		if counts[201] != 1 || counts[200] != 7 {
			t.Fatalf("%v", counts)
		}
		var list struct{ Items []sessionBody }
		h.do(t, "GET", "/v1/sessions?sourceId="+id, nil).into(t, &list)
		got := h.export(t, list.Items[0].ID)
		if d := jsonequal.Diff([]byte(later.String()), got); d != nil && (round%2 == 0 || jsonequal.Diff([]byte(same.String()), got) != nil) {
			t.Errorf("round %d: neither one nor the other: %v", round, d)
		}
	}
}

// An import that changed nothing, because somebody else was faster with the same file, says so.
func TestImportOfTheSameFileAtOnceIsUnchanged(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	for round := range 10 {
		e := numbered(fmt.Sprintf("ses_%d", round), "5000", "a", 20, 5)
		var mu sync.Mutex
		results := map[string]int{}
		h.race(t, 8, func(int) int {
			a := h.importFile(t, h.admin, project, e)
			var in imported
			a.into(t, &in)
			mu.Lock()
			defer mu.Unlock()
			results[in.Result]++
			return a.status
		})
		if results["created"] != 1 || results["unchanged"] != 7 {
			t.Fatalf("round %d: %v", round, results)
		}
	}
}

// A client that gives up in the middle leaves nothing, neither in the database nor among the files, and nothing hangs.
func TestImportThatIsCancelled(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	dir := t.TempDir()
	h := newHub(t, log.configure, func(c *api.Config, p *pgxpool.Config) { c.TempDir, p.MaxConns = dir, 3 })
	project := h.newProject(t, "p")
	file := numbered("ses_cancel", "5000", strings.Repeat("x", 200), 2000, 3).String()
	before := h.tables(t)
	send := func(body io.Reader, cancelled func(cancel func())) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url+"/v1/sessions/import?projectId="+project, body)
		if err != nil {
			t.Fatal(err)
		}
		id := uuid.NewString()
		r.Header.Set("Authorization", "Bearer "+h.admin.key)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("X-Request-Id", id)
		go cancelled(cancel)
		if response, err := http.DefaultClient.Do(r); err == nil { // the refusal may be faster than the end
			response.Body.Close()
			if response.StatusCode != http.StatusBadRequest {
				t.Errorf("there was an answer: %s", response.Status)
			}
		}
		log.waitFor(t, `"msg":"request","requestId":"`+id+`"`)
	}
	for _, part := range []int{10, len(file) / 3, len(file) - 1} {
		pipe, w := io.Pipe()
		send(pipe, func(cancel func()) {
			_, _ = io.WriteString(w, file[:part])
			time.Sleep(20 * time.Millisecond)
			cancel()
			w.Close() // the client waits for its reader
		})
	}
	h.unchanged(t, before, "imports that broke off")

	// All of the body was sent; the rows are being written, behind somebody who holds the project.
	locked := h.begin(t)
	locked("SELECT FROM projects WHERE id = $1 FOR UPDATE", project)
	send(strings.NewReader(file), func(cancel func()) {
		for h.waiting() == 0 {
			time.Sleep(5 * time.Millisecond)
		}
		cancel()
	})
	locked("ROLLBACK")
	h.unchanged(t, before, "an import that was cancelled in its transaction")
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	// All connections still serve.
	if counts := h.race(t, 6, func(int) int { return h.do(t, "GET", "/v1/projects", nil).status }); counts[200] != 6 {
		t.Errorf("%v", counts)
	}
	h.imports(t, project, file, "created")
}

// Numbers as they were spelled, unknown members everywhere, strings that no text column holds, members in any order.
func TestX07_ImportKeepsEveryValue(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	digits := strings.Repeat("9", 1000)
	for i, file := range []string{
		export{id: "s"}.String(),
		export{id: "s", messages: []exportMessage{{id: "m"}}}.String(),
		export{id: "s", title: `""`}.String(),
		export{id: "s", title: `"a \u0000 \ud83d \ude00 \u0010 b"`}.String(),
		export{id: "s", title: `"` + strings.Repeat(`\u0000`, 10001) + `"`}.String(),
		export{id: "s", title: `"` + strings.Repeat(`é`, 30000) + `"`}.String(),
		export{id: "s", times: `{"created":1.0e3,"updated":2000.5,"archived":null,"compacting":-0.0}`}.String(),
		export{id: "s", times: `{"created":0,"updated":0}`}.String(),
		export{id: "s", times: `{"created":253402300799999,"updated":253402300799999.9,"archived":253402300799999}`}.String(),
		export{id: "s", times: `{"created":9000,"updated":10,"archived":0}`}.String(),
		export{id: "s", info: `,"cost":0.0,"tokens":{"input":1E5,"output":-0,"n":[1e-400,1e400,` + digits + `,0.` + digits[1:] + `]}`}.String(),
		export{id: "s", info: `,"parentID":null,"agent":null,"revert":{"messageID":null}`}.String(),
		export{id: "s", info: `,"":{"":""},"\u0000":"\u0000","\ud83d":1,"\ud83e":2,"\u0010":3,"a/b~c":4,"__proto__":5`}.String(),
		export{id: "s", more: `,"todos":[1.50,-0.0,"\u0000\ud83d"],"children":[{"a":{"b":1e2}}],"\u0000":null`}.String(),
		export{id: "s", messages: []exportMessage{{id: "m", more: `,"x":[1.50,"\u0000"],"":{}`, parts: []exportPart{{id: "p", kind: "a kind of its own 😀", more: `,"n":-0.0,"o":{"\ud83d":"\u0010"}`}}}}}.String(),
		export{id: "s", messages: []exportMessage{{id: "b", created: "5"}, {id: "a", created: "5"}, {id: "c", created: "4"}, {id: "d", created: "0"}}}.String(),
		`{"messages":[{"parts":[{"type":"t","messageID":"m","sessionID":"s","id":"p"}],"info":{"time":{"x":1,"created":1.5},"role":"system","sessionID":"s","id":"m"}}],"x":1,"info":{"time":{"updated":2,"created":1},"version":"","title":"","id":"s"}}`,
		" \n\t{ \"info\" : { \"id\" : \"s\" , \"title\" : \"\" , \"version\" : \"\" , \"time\" : { \"created\" : 1 , \"updated\" : 1 } } , \"messages\" : [ ] } \r\n ",
		`{"\u0069nfo":{"\u0069d":"\u0073","title":"","version":"\u0000","time":{"created":1,"updated":1}},"messages":[]}`,
		export{id: "s", info: `,"deep":` + strings.Repeat("[", 254) + strings.Repeat("]", 254)}.String(),
		export{id: strings.Repeat("é", 100), messages: []exportMessage{{id: strings.Repeat("m", 200), parts: []exportPart{{id: strings.Repeat("p", 200), kind: strings.Repeat("k", 200)}}}}}.String(),
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			in := h.imports(t, project, file, "created")
			h.wantExport(t, in.ID, []byte(file))
			before := h.tables(t)
			h.imports(t, project, file, "unchanged")
			h.unchanged(t, before, "importing again")
			h.do(t, "DELETE", "/v1/sessions/"+in.ID, nil).wants(t, 204)
		})
	}
}

// A large export: 3,000 messages and 12,000 parts.
func TestImportOfALargeExport(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	file := []byte(numbered("ses_large", "5000", "large "+strings.Repeat("x", 300), 3000, 4).String())
	start := time.Now()
	in := h.imports(t, project, file, "created")
	if in.Messages.Created != 3000 || in.Parts.Created != 12000 {
		t.Errorf("%+v", in)
	}
	created := time.Since(start)
	before := h.tables(t)
	start = time.Now()
	if again := h.imports(t, project, file, "unchanged"); again.Messages.Unchanged != 3000 || again.Parts.Unchanged != 12000 {
		t.Errorf("again: %+v", again)
	}
	unchanged := time.Since(start)
	h.unchanged(t, before, "importing again")
	start = time.Now()
	h.wantExport(t, in.ID, file)
	t.Logf("%d MB: imported in %s, again in %s, exported in %s", len(file)>>20, created, unchanged, time.Since(start))
	later := []byte(numbered("ses_large", "6000", "later", 2900, 3).String())
	if in := h.imports(t, project, later, "updated"); in.Messages != (importCounts{0, 2900, 100, 0}) || in.Parts != (importCounts{0, 8700, 3300, 0}) {
		t.Errorf("later: %+v", in)
	}
	h.wantExport(t, in.ID, later)
}

// An export that is read while others write: one moment of the session, each message with all its parts.
func TestExportIsOneMoment(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	session := h.newSession(t)
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				h.do(t, "POST", "/v1/sessions/"+session+"/messages", `{"messages":[{"role":"user","parts":[{"type":"a"},{"type":"b"}]},{"role":"assistant","parts":[{"type":"c"},{"type":"d"}]}]}`).wants(t, 201)
			}
		})
	}
	var last outline
	for round := 0; round < 40 || len(last.Messages) < 20; round++ {
		o := outlineOf(t, h.export(t, session))
		if len(o.Messages)%2 != 0 || o.parts() != 2*len(o.Messages) || len(o.Messages) < len(last.Messages) {
			t.Errorf("%d messages with %d parts, before %d", len(o.Messages), o.parts(), len(last.Messages))
		}
		for i, m := range last.Messages {
			if o.Messages[i].Info.ID != m.Info.ID {
				t.Errorf("message %d is another one now", i)
			}
		}
		last = o
	}
	close(stop)
	group.Wait()
	if len(last.Messages) == 0 {
		t.Error("nothing was written meanwhile")
	}
}

// The same while the session is imported again and again: one version, not the messages of several. The export takes more than
// one batch of messages.
func TestExportIsOneVersion(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	version := func(n int) export { return numbered("ses_v", fmt.Sprint(5000+n), fmt.Sprintf("v%d", n), 420, 1) }
	id := h.imports(t, project, version(0), "created").ID
	stop := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			h.imports(t, project, version(n), "updated")
		}
	})
	seen := map[string]bool{}
	for range 30 {
		marks := map[string]bool{}
		for _, found := range regexp.MustCompile(`"v\d+`).FindAllString(string(h.export(t, id)), -1) {
			marks[found] = true
			seen[found] = true
		}
		if len(marks) != 1 {
			t.Errorf("an export of several versions: %v", marks)
		}
	}
	close(stop)
	group.Wait()
	if len(seen) < 2 {
		t.Error("nothing was imported meanwhile")
	}
}

// Random exports, of unknown members, nested values and texts of all kinds: in and out, and in again.
func TestX07_RandomExportsComeBack(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	for seed := range uint64(120) {
		g := &generator{rand.New(rand.NewPCG(seed, 20261123))}
		id := fmt.Sprintf("ses_%d", seed)
		file := []byte(g.export(id, 2000))
		a := h.importFile(t, h.admin, project, file)
		if a.status != 201 {
			t.Fatalf("seed %d: status %d: %s\n%s", seed, a.status, a.body, file)
		}
		if d := jsonequal.Diff(file, h.export(t, a.id(t))); d != nil {
			t.Fatalf("seed %d: %v\n%s", seed, d, file)
		}
		if again := h.importFile(t, h.admin, project, file).wants(t, 200); !strings.Contains(string(again.body), `"unchanged"`) {
			t.Errorf("seed %d: again: %s\n%s", seed, again.body, file)
		}
		// Another random export of the same session, later: that one, exactly.
		later := []byte(g.export(id, 3000))
		h.importFile(t, h.admin, project, later).wants(t, 200)
		if d := jsonequal.Diff(later, h.export(t, a.id(t))); d != nil {
			t.Fatalf("seed %d, later: %v\n%s\n%s", seed, d, file, later)
		}
	}
}

// generator makes random JSON.
type generator struct{ *rand.Rand }

func (g *generator) pick(list ...string) string { return list[g.IntN(len(list))] }

func (g *generator) text() string {
	var b strings.Builder
	b.WriteByte('"')
	for range g.IntN(6) {
		b.WriteString(g.pick("a", "Z", " ", "é", "😀", "\u2028", `\u2029`, `\"`, `\\`, `\/`, `\n`, `\b`, `\u0000`, `\u0001`, `\u0010`, `\u00100`, `\u0010ud83d`, `\ud83d`, `\ude00`, `\uD83D\uDE00`,
			`\ude00\ud83d`, `\ud83d\ud83d\ude00`, "<", "&", "'", "%", "$1", `\u007f`, "\u007f", "\u0085", "שלום", "e\u0301", `\uffff`))
	}
	b.WriteByte('"')
	return b.String()
}

func (g *generator) number() string {
	return g.pick("0", "-0", "0.0", "-0.0", "1", "-1", "1.0", "1.50", "1e2", "1E2", "1e+2", "1e-2", "100", "0.1e1", "-12.340e-05", "12345678901234567890", "0.1234567890123456789012345678901234567890",
		"1e400", "1e-400", "3.141592653589793", "9007199254740993", "0e0", "-0e-0", fmt.Sprint(g.Int64()))
}

func (g *generator) value(depth int) string {
	switch n := g.IntN(9); {
	case n < 2 && depth > 0:
		return "{" + strings.TrimPrefix(g.members(depth-1, ""), ",") + "}"
	case n == 2 && depth > 0:
		var elements []string
		for range g.IntN(4) {
			elements = append(elements, g.value(depth-1))
		}
		return "[" + strings.Join(elements, g.pick(",", " , ", ",\n")) + "]"
	case n < 5:
		return g.number()
	case n == 5:
		return g.pick("true", "false", "null")
	default:
		return g.text()
	}
}

// members returns random members, each with a comma before it; the names differ, also from the known ones.
func (g *generator) members(depth int, prefix string) string {
	var b strings.Builder
	for i := range g.IntN(5) {
		name := g.text()
		fmt.Fprintf(&b, `,"%s%d%s:%s`, prefix, i, name[1:], g.value(depth))
	}
	return b.String()
}

func (g *generator) maybe(text string) string {
	if g.IntN(2) == 0 {
		return ""
	}
	return text
}

func (g *generator) export(id string, updated int) string {
	e := export{
		id: id, title: g.text(), more: g.members(3, "x"),
		times: fmt.Sprintf(`{"created":%s,"updated":%d%s%s}`, g.pick("1000", "1e3", "1000.0", "999.9"), updated, g.maybe(`,"archived":`+g.pick("null", "1", "1795441960748", "2.5")), g.members(1, "t")),
		info: g.maybe(`,"agent":`+g.pick("null", `""`, `"build"`, `"é😀"`)) + g.maybe(`,"parentID":`+g.pick("null", `"ses_nowhere"`)) + g.maybe(`,"slug":`+g.value(1)) +
			g.maybe(`,"cost":`+g.number()) + g.members(4, "i"),
	}
	for m := range g.IntN(6) {
		message := exportMessage{
			id: fmt.Sprintf("%s_m%d", id, m), role: g.pick("user", "assistant", "system"), created: g.pick("1000", "1000", "1001", "999", "1e3", "0"),
			info: g.maybe(`,"agent":`+g.pick("null", `""`, `"build"`, `"plan"`)) + g.members(3, "i"), more: g.maybe(g.members(2, "x")),
		}
		for p := range g.IntN(5) {
			message.parts = append(message.parts, exportPart{id: fmt.Sprintf("%s_m%d_p%d", id, m, p), kind: g.pick("text", "tool", "x y", "é"), more: g.members(4, "p")})
		}
		g.Shuffle(len(message.parts), func(i, j int) { message.parts[i], message.parts[j] = message.parts[j], message.parts[i] })
		e.messages = append(e.messages, message)
	}
	g.Shuffle(len(e.messages), func(i, j int) { e.messages[i], e.messages[j] = e.messages[j], e.messages[i] })
	return e.String()
}

// The messages of an import sort by their time and then by their place in the file, whatever their ids are (C02).
func TestC02_ImportedMessagesSortByTimeAndPlace(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	project := h.newProject(t, "p")
	e := export{id: "ses_o"}
	for i, created := range []string{"1795441960748", "1795441960748", "1795441960747", "5", "1795441960748", "253402300799999", "1795441960749"} {
		e.messages = append(e.messages, exportMessage{id: fmt.Sprintf("msg_%d", (i*3)%7), created: created, parts: []exportPart{{id: fmt.Sprintf("z%d", i)}, {id: fmt.Sprintf("a%d", i)}, {id: fmt.Sprintf("m%d", i)}}})
	}
	in := h.imports(t, project, e, "created")
	h.wantExport(t, in.ID, []byte(e.String()))
	sorted := slices.Clone(e.messages)
	slices.SortStableFunc(sorted, func(a, b exportMessage) int {
		if len(a.created) != len(b.created) {
			return len(a.created) - len(b.created)
		}
		return strings.Compare(a.created, b.created)
	})
	listed := h.do(t, "GET", "/v1/sessions/"+in.ID+"/messages", nil).messages(t)
	var got, want, gotParts, wantParts []string
	for i, m := range listed {
		got, want = append(got, value(m.SourceID)), append(want, sorted[i].id)
		for j, p := range m.Parts {
			gotParts, wantParts = append(gotParts, value(p.SourceID)), append(wantParts, sorted[i].parts[j].id)
		}
	}
	if !slices.Equal(got, want) || !slices.Equal(gotParts, wantParts) {
		t.Errorf("%v, want %v\n%v, want %v", got, want, gotParts, wantParts)
	}
	// The ids depend on the file alone: in another organisation they are the same.
	other := h.newCaller(t, uuid.Nil, "*")
	theirs := h.as(t, other, "POST", "/v1/projects", `{"slug":"p","name":"p"}`).wants(t, 201).id(t)
	if id := h.importFile(t, other, theirs, e).wants(t, 201).id(t); id != in.ID {
		t.Errorf("the session is %s there, here %s", id, in.ID)
	}
	if !regexp.MustCompile(`^[0-9a-f-]{14}7`).MatchString(in.ID) {
		t.Errorf("%s is no UUIDv7", in.ID)
	}
	// What is written here comes behind all of them, also behind the one from the year 9999.
	last := h.do(t, "POST", "/v1/sessions/"+in.ID+"/messages", `{"messages":[{"role":"user"}]}`).wants(t, 201).messages(t)[0].ID
	if all := h.pages(t, h.admin, "/v1/sessions/"+in.ID+"/messages", "id", 200); all[len(all)-1] != last {
		t.Errorf("the message that was appended is not the last: %v", all)
	}
}
