package api_test

import (
	"context"
	"encoding/binary"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/internal/api"
)

// wire counts what goes to PostgreSQL: round trips (a write after a read) and statements (Execute and Query messages).
type wire struct {
	mu                sync.Mutex
	trips, statements int
}

func (w *wire) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trips, w.statements = 0, 0
}

func (w *wire) counts() (trips, statements int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.trips, w.statements
}

func (w *wire) configure(_ *api.Config, c *pgxpool.Config) {
	dial := c.ConnConfig.DialFunc
	c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return &countedConn{Conn: conn, wire: w, reading: true}, err
	}
	c.MaxConns, c.MinConns = 1, 1 // each statement is prepared once
}

type countedConn struct {
	net.Conn
	wire    *wire
	reading bool
	started bool
	rest    []byte
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.wire.mu.Lock()
		c.reading = true
		c.wire.mu.Unlock()
	}
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.wire.mu.Lock()
	if c.reading {
		c.wire.trips++
		c.reading = false
	}
	c.rest = append(c.rest, p...)
	if !c.started && len(c.rest) >= 4 { // the startup message has no type byte
		n := int(binary.BigEndian.Uint32(c.rest))
		if len(c.rest) >= n {
			c.rest, c.started = c.rest[n:], true
		}
	}
	for c.started && len(c.rest) >= 5 {
		n := 1 + int(binary.BigEndian.Uint32(c.rest[1:]))
		if len(c.rest) < n {
			break
		}
		if c.rest[0] == 'E' || c.rest[0] == 'Q' {
			c.wire.statements++
		}
		c.rest = c.rest[n:]
	}
	c.wire.mu.Unlock()
	return c.Conn.Write(p)
}

// A request that needs one query costs one round trip: authentication, tenant and scope check travel with it.
func TestRoundTripsPerOperation(t *testing.T) {
	t.Parallel()
	w := &wire{}
	h := newHub(t, w.configure)
	project := h.newProject(t, "trips")
	session := h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`).wants(t, 201).id(t)
	messages := "/v1/sessions/" + session + "/messages"
	body := `{"messages":[{"role":"user","parts":[{"type":"text","data":{"text":"a"}},{"type":"x"}]},{"role":"assistant","parts":[{"type":"x"}]}]}`
	var appended struct {
		Items []struct {
			ID    string
			Parts []struct{ ID string }
		}
	}
	h.do(t, "POST", messages, body).wants(t, 201).into(t, &appended)

	client := h.newClient(t)
	h.put(t, client, "s", "hush").wants(t, 201)

	for _, op := range []struct {
		name, method, path, body string
		status                   int
		trips, statements        int
	}{
		{"createClient", "POST", "/v1/clients", `{"name":"x","type":"webhook","config":{"url":"https://x/"}}`, 409, 1, 2},
		{"getClient", "GET", "/v1/clients/" + client, "", 200, 1, 2},
		{"listClients", "GET", "/v1/clients?type=http-api", "", 200, 1, 2},
		{"updateClient", "PATCH", "/v1/clients/" + client, `{"description":"x"}`, 200, 1, 2},
		{"updateClient with a config", "PATCH", "/v1/clients/" + client, `{"config":{"timeoutSeconds":1}}`, 200, 2, 4},
		{"putClientSecret", "PUT", secretPath(client, "s"), `{"value":"x"}`, 200, 1, 2},
		{"getClientSecret", "GET", secretPath(client, "s"), "", 200, 1, 2},
		{"listClientSecrets", "GET", "/v1/clients/" + client + "/secrets", "", 200, 1, 2},
		{"revealClientSecret", "POST", secretPath(client, "s") + "/reveal", "", 200, 1, 2},
		{"deleteClient", "DELETE", "/v1/clients/" + client, "", 204, 1, 2},
		{"getHealth", "GET", "/healthz", "", 200, 0, 0},
		{"getVersion", "GET", "/v1/version", "", 200, 0, 0},
		{"listProjects", "GET", "/v1/projects", "", 200, 1, 2},
		{"getProject", "GET", "/v1/projects/" + project, "", 200, 1, 2},
		{"updateProject", "PATCH", "/v1/projects/" + project, `{"name":"x"}`, 200, 1, 2},
		{"createSession", "POST", "/v1/sessions", `{"projectId":"` + project + `"}`, 201, 1, 2},
		{"listSessions", "GET", "/v1/sessions?projectId=" + project, "", 200, 1, 2},
		{"getSession", "GET", "/v1/sessions/" + session, "", 200, 1, 2},
		{"updateSession", "PATCH", "/v1/sessions/" + session, `{"title":"x"}`, 200, 1, 2},
		{"appendMessage", "POST", messages, body, 201, 1, 2},
		{"listMessages", "GET", messages, "", 200, 1, 2},
		{"getMessage", "GET", messages + "/" + appended.Items[0].ID, "", 200, 1, 2},
		{"appendParts", "POST", "/v1/sessions/" + session + "/parts", `{"messageId":"` + appended.Items[0].ID + `","parts":[{"type":"x"},{"type":"text","data":{"text":""}}]}`, 201, 1, 2},
		{"listParts", "GET", "/v1/sessions/" + session + "/parts", "", 200, 1, 2},
		{"getPart", "GET", "/v1/sessions/" + session + "/parts/" + appended.Items[0].Parts[0].ID, "", 200, 1, 2},
		{"deleteSession", "DELETE", "/v1/sessions/" + session, "", 204, 1, 2},
		// What is refused costs no more: nobody reads before writing to see whether a write would be refused.
		{"unauthenticated", "GET", "/v1/sessions?limit=0", "", 400, 1, 1},
		{"not found", "GET", "/v1/sessions/" + project, "", 404, 1, 2},
	} {
		var body any
		if op.body != "" {
			body = op.body
		}
		if op.method != "DELETE" {
			h.do(t, op.method, op.path, body) // the first time a connection also prepares the statement
		} else {
			h.do(t, op.method, op.path[:strings.LastIndexByte(op.path, '/')+1]+project, nil).wants(t, 404)
		}
		w.reset()
		h.do(t, op.method, op.path, body).wants(t, op.status)
		if trips, statements := w.counts(); trips != op.trips || statements != op.statements {
			t.Errorf("%s: %d round trips with %d statements, want %d with %d", op.name, trips, statements, op.trips, op.statements)
		}
	}
}

// Every operation, by its sample: one round trip with its statement and authentication in front of it, but for the ones that are listed.
func TestRoundTripsOfEveryOperation(t *testing.T) {
	t.Parallel()
	type cost struct{ trips, statements int }
	costs := map[string]cost{ // a transaction: BEGIN with the authentication, each statement, COMMIT
		"listClientTypes":     {1, 1}, // the types are the program's
		"startSecretRotation": {2, 4}, // and how far it is
		"updateClient":        {2, 4}, // with a config: it is judged as it will be
		"addMember":           {4, 5}, // the account can be seen only when the member is there
		"deactivateAccount":   {4, 5}, // and what it owns
		"exportAuditLogs":     {3, 4}, // one more for each thousand entries
		"exportSession":       {5, 6}, // the session, its messages, their parts
		"exportSessionTree":   {6, 7}, // and which sessions there are
		"forkSession":         {6, 7}, // the original, the fork, the copies, the fork again
		"listChildSessions":   {2, 4}, // there are none: is there the session?
		"updatePart":          {6, 7}, // the part, locked and read and judged and written

		"createTask": {5, 6}, "updateTask": {4, 5}, // what depends on what, what is locked first, and the whole row behind it
		"addDependency":    {2, 4},                                                           // and the task as it is then
		"claimNextTask":    {3, 6},                                                           // nothing is ready: because there is no such project or session?
		"listDependencies": {2, 4}, "listTaskNotes": {2, 4}, "listTaskStatusChanges": {2, 4}, // nothing: because there is no such task?
		"getTaskGraph": {2, 4}, "getTaskCosts": {2, 4}, // tasks, and their dependencies
		"syncTasks": {10, 14}, // read, locked, read again, written

		"callOperation": {2, 4}, "completeCall": {2, 4}, // the schema, then what it is held against
		"addCallEdges": {2, 4}, "listCallEdges": {2, 4}, // is there the call?
	}
	retried := map[string]cost{"startSecretRotation": {6, 7}, "forkSession": {8, 9}, "appendPartDelta": {6, 7}, "addMember": {6, 7}, "deactivateAccount": {6, 7}, "addDependency": {6, 7}, "claimNextTask": {7, 8}, "createTask": {7, 8}, "syncTasks": {12, 13}, "callOperation": {6, 7}, "completeCall": {6, 7}, "addCallEdges": {6, 7}}
	w := &wire{}
	h := newHub(t, w.configure)
	read := h.newFamily(t, h.admin) // what only looks needs none of its own
	for _, op := range operations(t) {
		if op.streamed || op.id == "getReadiness" {
			continue
		}
		measured := func(send func(s sample) answer) (c cost) {
			t.Helper()
			for range 2 { // the first time a connection also prepares its statements
				f := read
				if op.method != "GET" {
					f = h.newFamily(t, h.admin)
				}
				s, ok := f.sampleOf(t, op)
				if !ok {
					return c
				}
				w.reset()
				send(s).wants(t, s.status)
				c.trips, c.statements = w.counts()
			}
			return c
		}
		if op.id == "followEvents" { // a stream looks again and again
			continue
		}
		if op.id == "validateClients" { // it reads them in batches, and each family has some
			h.exec(t, "DELETE FROM clients")
		}
		want, ok := costs[op.id]
		switch {
		case op.public:
			want = cost{}
		case !ok:
			want = cost{1, 2}
		}
		if got := measured(func(s sample) answer { return h.send(t, h.admin, s) }); got != want {
			t.Errorf("%s: %d round trips with %d statements, want %d with %d", op.id, got.trips, got.statements, want.trips, want.statements)
		}
		if op.method != "POST" {
			continue
		}
		// With a retry's key: a transaction, which looks for the answer first and keeps it at last.
		want, ok = retried[op.id]
		if !ok {
			want = cost{5, 6}
		}
		if got := measured(func(s sample) answer { return h.retry(t, h.admin, s, uuid.NewString()) }); got != want {
			t.Errorf("%s with an Idempotency-Key: %d round trips with %d statements, want %d with %d", op.id, got.trips, got.statements, want.trips, want.statements)
		}
	}
}
