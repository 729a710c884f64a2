package api_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/internal/api"
)

type taken struct {
	ID, Operation string
	Attempt       int
	Input         json.RawMessage
}

func (s *spoke) take(t testing.TB, wait int) (calls []taken, stopped []string) {
	t.Helper()
	var got struct {
		Calls   []taken
		Stopped []string
	}
	s.h.as(t, s.c, "POST", "/v1/spokes/"+s.ID+"/take", fmt.Sprintf(`{"epoch":%d,"maxCalls":5,"waitSeconds":%d}`, s.Epoch, wait)).wants(t, 200).into(t, &got)
	return got.Calls, got.Stopped
}

func (s *spoke) step(t testing.TB, call, verb, more string) answer {
	t.Helper()
	return s.h.as(t, s.c, "POST", "/v1/calls/"+call+"/"+verb, fmt.Sprintf(`{"spokeId":%q,"epoch":%d%s}`, s.ID, s.Epoch, more))
}

// called is what came of a call.
type called struct {
	Call struct {
		ID, Status, Operation       string
		ErrorCode, EndedBy, SpokeID *string
		Input, Output               json.RawMessage
		Attempts                    int
	}
	Output json.RawMessage
	Exact  bool
}

func (h *hub) call(t testing.TB, c caller, name, body string, status int) (got called) {
	t.Helper()
	h.as(t, c, "POST", "/v1/operations/"+name+"/call", body).wants(t, status).into(t, &got)
	return got
}

// A call goes to a spoke and its output comes back, to the letter, though what is written down is redacted and truncated.
func TestW18_CallsPassToTheLetter(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t))
	s := h.newSpoke(t, h.admin, "builder", readFile)
	input := `{"apiKey":"sk-planted","nul":"a\u0000b","lone":"\ud83d","number":1.50e+2,"long":"` + strings.Repeat("ä", 9000) + `"}`
	done := make(chan called, 1)
	go func() {
		defer close(done) // also where the call is refused
		done <- h.call(t, h.admin, "fs.read", `{"input":`+input+`}`, 200)
	}()
	calls, _ := s.take(t, 20)
	if len(calls) != 1 || string(calls[0].Input) != input || calls[0].Operation != "fs.read" || calls[0].Attempt != 1 {
		t.Fatalf("%.300v", calls)
	}
	s.step(t, calls[0].ID, "complete", `,"output":1`).refused(t, 409, "calls_status_transition", "/status") // it has not started
	s.step(t, calls[0].ID, "start", "").wants(t, 200)
	s.step(t, calls[0].ID, "start", "").refused(t, 409, "call_started_once")
	s.step(t, calls[0].ID, "complete", `,"output":{"exp":1E300}`).wants(t, 200)
	got := <-done
	if got.Call.Status != "completed" || !got.Exact || string(got.Output) != `{"exp":1E300}` {
		t.Errorf("%s %v %s", got.Call.Status, got.Exact, got.Output)
	}
	s.step(t, calls[0].ID, "fail", `,"code":"x"`).refused(t, 409, "call_not_over")
	stored := string(h.do(t, "GET", "/v1/calls/"+calls[0].ID, nil).wants(t, 200).body)
	if strings.Contains(stored, "sk-planted") || !strings.Contains(stored, "_truncated") {
		t.Errorf("%.600s", stored)
	}
	if n := h.count(t, "SELECT count(*) FROM call_payloads"); n != 0 {
		t.Errorf("%d payloads are left of a call that is delivered", n)
	}
}

// Payloads on their way are encrypted.
func TestW18_PayloadsOnTheirWayAreEncrypted(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t))
	h.newSpoke(t, h.admin, "builder", readFile)
	h.call(t, h.admin, "fs.read", `{"input":{"text":"sk-planted"},"waitSeconds":0}`, 202)
	if n := h.count(t, "SELECT count(*) FROM call_payloads WHERE position('sk-planted' IN encode(ciphertext, 'escape')) = 0 AND octet_length(ciphertext) > 29"); n != 1 {
		t.Errorf("%d payloads that do not show what they hold", n)
	}
	without := newHub(t, func(c *api.Config, _ *pgxpool.Config) { c.Keys = nil })
	without.newSpoke(t, without.admin, "builder", readFile)
	without.do(t, "POST", "/v1/operations/fs.read/call", `{}`).refused(t, 424, "encryption_not_configured")
}

// What the operation takes is asked for before anybody is bothered; what it puts out before anybody gets it.
func TestCallsAreHeldAgainstSchemas(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t))
	s := h.newSpoke(t, h.admin, "builder", `{"namespace":"fs","name":"read","kind":"query","inputSchema":{"type":"object","required":["path"],"properties":{"path":{"type":"string"},"depth":{"type":"integer","maximum":9}}},"outputSchema":{"type":"object","required":["text"]}}`)
	call := func(body string) answer { return h.do(t, "POST", "/v1/operations/fs.read/call", body) }
	call(`{"input":{}}`).refused(t, 422, "call_input_invalid", "/input/path")
	call(`{"input":{"path":1,"depth":10}}`).refused(t, 422, "call_input_invalid", "/input/depth", "/input/path")
	call(`{}`).refused(t, 422, "call_input_invalid", "/input/path")
	call(`{"input":{"path":"x"},"parentId":"`+uuid.NewString()+`"}`).refused(t, 422, "calls_parent_id_fkey", "/parentId")
	h.do(t, "POST", "/v1/operations/fs.write/call", `{}`).refused(t, 404, "operation_not_found")
	h.do(t, "POST", "/v1/operations/nonsense/call", `{}`).refused(t, 404, "operation_not_found")
	if n := h.count(t, "SELECT count(*) FROM calls"); n != 0 {
		t.Errorf("%d calls after refusals", n)
	}
	call(`{"input":{"path":"x"},"waitSeconds":0}`).wants(t, 202)
	calls, _ := s.take(t, 0)
	s.step(t, calls[0].ID, "start", "").wants(t, 200)
	s.step(t, calls[0].ID, "complete", `,"output":{}`).refused(t, 422, "call_output_invalid", "/output/text")
	s.step(t, calls[0].ID, "complete", `,"output":{"text":"x"}`).wants(t, 200)
}

// An operation's scopes are those of the caller's key: all of the ones, any of the others.
func TestCallsTakeTheOperationsScopes(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t))
	h.newSpoke(t, h.admin, "builder", `{"namespace":"fs","name":"read","kind":"query","scopesAll":["projects:read"],"scopesAny":["tasks:read","tasks:write"]}`)
	for scopes, ok := range map[string]bool{"calls:write": false, "calls:write projects:read": false, "calls:write tasks:read": false, "calls:write projects:read tasks:write": true, "*": true} {
		c := h.newCaller(t, h.admin.org, strings.Fields(scopes)...)
		a := h.as(t, c, "POST", "/v1/operations/fs.read/call", `{"waitSeconds":0}`)
		if ok {
			a.wants(t, 202)
		} else {
			a.refused(t, 403, "operation_scopes_covered")
		}
	}
}

// W04: a qualified name finds its spoke, another one the least busy.
func TestW04_CallsFindTheirSpoke(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t))
	a, b := h.newSpoke(t, h.admin, "a", readFile), h.newSpoke(t, h.admin, "b", readFile)
	on := map[string]int{}
	for range 3 {
		on[*h.call(t, h.admin, "fs."+a.ID+".read", `{"waitSeconds":0}`, 202).Call.SpokeID]++
	}
	if on[a.ID] != 3 {
		t.Fatal(on)
	}
	for range 5 { // b catches up, and then they share
		on[*h.call(t, h.admin, "fs.read", `{"waitSeconds":0}`, 202).Call.SpokeID]++
	}
	if on[a.ID] != 4 || on[b.ID] != 4 {
		t.Error(on)
	}
	a.say(t, "disconnect").wants(t, 200)
	b.say(t, "disconnect").wants(t, 200)
	h.do(t, "POST", "/v1/operations/fs.read/call", `{}`).refused(t, 404, "operation_not_found")
}

// The same request id is the same call, which may be waited for again; another's is not to be had.
func TestCallsAreIdempotentByRequestID(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t))
	s := h.newSpoke(t, h.admin, "builder", readFile, strings.Replace(readFile, "read", "list", 1))
	first := h.call(t, h.admin, "fs.read", `{"requestId":"r1","waitSeconds":0}`, 202)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if again := h.call(t, h.admin, "fs.read", `{"requestId":"r1","waitSeconds":0}`, 202); again.Call.ID != first.Call.ID {
				t.Errorf("%s, then %s", first.Call.ID, again.Call.ID)
			}
		})
	}
	wg.Wait()
	h.do(t, "POST", "/v1/operations/fs.list/call", `{"requestId":"r1"}`).refused(t, 409, "calls_request_id_key", "/requestId")
	h.as(t, h.newCaller(t, h.admin.org, "*"), "POST", "/v1/operations/fs.read/call", `{"requestId":"r1"}`).refused(t, 409, "calls_request_id_key", "/requestId")
	calls, _ := s.take(t, 0)
	if len(calls) != 1 {
		t.Fatalf("%d calls", len(calls))
	}
	s.step(t, calls[0].ID, "start", "").wants(t, 200)
	s.step(t, calls[0].ID, "complete", `,"output":null`).wants(t, 200)
	for _, exact := range []bool{true, false} { // to the letter once
		if got := h.call(t, h.admin, "fs.read", `{"requestId":"r1"}`, 200); got.Exact != exact || string(got.Output) != "null" {
			t.Errorf("%v %s", got.Exact, got.Output)
		}
	}
	// With an Idempotency-Key nobody waits, for the call is there when the answer is.
	key := []string{"Idempotency-Key", "k1"}
	one := h.do(t, "POST", "/v1/operations/fs.read/call", `{"waitSeconds":20}`, key...).wants(t, 202)
	if two := h.do(t, "POST", "/v1/operations/fs.read/call", `{"waitSeconds":20}`, key...).wants(t, 202); string(one.body) != string(two.body) {
		t.Errorf("%s\n%s", one.body, two.body)
	}
}

// An abort reaches the spoke with its next take, and what it says of the call afterwards is refused. What the call made is aborted too.
func TestAbortReachesTheSpoke(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t))
	s := h.newSpoke(t, h.admin, "builder", readFile)
	parent := h.call(t, h.admin, "fs.read", `{"waitSeconds":0}`, 202).Call.ID
	calls, _ := s.take(t, 0)
	s.step(t, calls[0].ID, "start", "").wants(t, 200)
	child := h.call(t, h.admin, "fs.read", `{"waitSeconds":0,"parentId":"`+parent+`"}`, 202).Call.ID
	h.as(t, h.newCaller(t, h.admin.org, "*"), "POST", "/v1/calls/"+parent+"/abort", `{}`).refused(t, 403, "call_aborted_by_caller")
	waiting := make(chan []string, 1)
	if calls, _ = s.take(t, 0); len(calls) != 1 || calls[0].ID != child {
		t.Fatal(calls)
	}
	go func() {
		defer close(waiting)
		_, stopped := s.take(t, 20)
		waiting <- stopped
	}()
	time.Sleep(50 * time.Millisecond)
	h.do(t, "POST", "/v1/calls/"+parent+"/abort", `{"reason":"enough"}`).wants(t, 200)
	stopped := strings.Join(<-waiting, " ")
	if !strings.Contains(stopped, parent) || !strings.Contains(stopped, child) {
		t.Errorf("the spoke is told to stop %q, not %s and %s", stopped, parent, child)
	}
	s.step(t, parent, "complete", `,"output":1`).refused(t, 409, "call_not_over")
	var got called
	h.do(t, "GET", "/v1/calls/"+child, nil).wants(t, 200).into(t, &got.Call)
	if got.Call.Status != "aborted" || *got.Call.EndedBy != "parent" {
		t.Errorf("%+v", got.Call)
	}
	h.do(t, "POST", "/v1/operations/fs.read/call", `{"parentId":"`+parent+`"}`).refused(t, 409, "calls_parent_alive", "/parentId")
}

// A take waits without a connection to the database, and is woken by what another server does.
func TestTakesWaitWithoutHoldingConnections(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t), func(_ *api.Config, c *pgxpool.Config) { c.MaxConns = 2 })
	var wg sync.WaitGroup
	var got atomic.Int32
	for i := range 6 { // more than there are connections
		s := h.newSpoke(t, h.admin, fmt.Sprintf("s%d", i), readFile)
		wg.Go(func() { calls, _ := s.take(t, 20); got.Add(int32(len(calls))) })
	}
	eventually(t, "six takes wait", func() bool { return h.count(t, "SELECT count(*) FROM spokes WHERE take_expires_at > now()") == 6 })
	h.do(t, "GET", "/v1/projects", nil).wants(t, 200)
	h.exec(t, `INSERT INTO calls (org_id, routed, operation, spoke_id, deadline_at) SELECT org_id, true, 'fs.read', id, now() + interval '1 hour' FROM spokes`)
	rows, err := h.owner.Query(t.Context(), "SELECT org_id, id FROM calls")
	if err != nil {
		t.Fatal(err)
	}
	var ids [][2]uuid.UUID
	for rows.Next() {
		var pair [2]uuid.UUID
		if err := rows.Scan(&pair[0], &pair[1]); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, pair)
	}
	for _, pair := range ids {
		context := append(append(append([]byte("hub/call-payload\x00"), pair[0][:]...), pair[1][:]...), "input"...)
		sealed, err := testKeys.Seal(1, []byte(`{}`), context)
		if err != nil {
			t.Fatal(err)
		}
		h.exec(t, "INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) VALUES ($1, $2, 'input', 1, $3)", pair[0], pair[1], sealed)
	}
	wg.Wait()
	if got.Load() != 6 {
		t.Errorf("%d of 6 calls were taken", got.Load())
	}
}

// Two servers, spokes that die at random, callers that do not care: each call ends exactly once, and is done by whoever said that it began last.
func TestCallsEndExactlyOnceUnderChaos(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t), func(c *api.Config, _ *pgxpool.Config) { c.RateLimit = -1 })
	const spokes, callers, each = 5, 4, 15
	done := make(chan struct{})
	var work, calls sync.WaitGroup
	var finished sync.Map
	op := `{"namespace":"fs","name":"read","kind":"query","maxAttempts":10}`
	for i := range spokes {
		work.Go(func() {
			s := h.newSpoke(t, h.admin, fmt.Sprintf("s%d", i), op)
			for {
				select {
				case <-done:
					return
				default:
				}
				switch rand.IntN(10) {
				case 0: // it dies, and comes back as another connection
					s.register(t, `,"leaseSeconds":3600`)
					continue
				case 1: // it goes for good, and comes back
					s.say(t, "disconnect").wants(t, 200)
					s.register(t, `,"leaseSeconds":3600`)
					s.put(t, op).wants(t, 200)
				}
				taken, _ := s.take(t, 1)
				for _, c := range taken {
					if rand.IntN(6) == 0 {
						continue // it dies before it starts
					}
					if a := s.step(t, c.ID, "start", ""); a.status != 200 {
						t.Errorf("start: %s", a.body)
						continue
					}
					if rand.IntN(6) == 0 {
						s.register(t, `,"leaseSeconds":3600`) // it dies while it works, and has lost what it took
						break
					}
					if a := s.step(t, c.ID, "complete", fmt.Sprintf(`,"output":{"n":%d}`, c.Attempt)); a.status == 200 {
						if _, twice := finished.LoadOrStore(c.ID, true); twice {
							t.Errorf("%s ended twice", c.ID)
						}
					} else {
						t.Errorf("complete: %s", a.body)
					}
				}
				if rand.IntN(4) == 0 {
					h.as(t, h.admin, "POST", "/v1/spokes", `{"name":"`+s.name+`"}`).wants(t, http.StatusOK).into(t, s) // what it took and did not start goes back
				}
			}
		})
	}
	eventually(t, "there are spokes", func() bool { return h.count(t, "SELECT count(*) FROM operation_specs") > 0 })
	for range callers {
		calls.Go(func() {
			for range each {
				for { // nobody may be connected at this moment
					a := h.as(t, h.admin, "POST", "/v1/operations/fs.read/call", `{"waitSeconds":0,"timeoutSeconds":600}`)
					if a.status == 202 {
						break
					}
					if a.status != 409 && a.status != 404 && a.status != 503 {
						t.Errorf("%s", a.body)
						return
					}
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}
	calls.Wait()
	eventually(t, "all calls end", func() bool { return h.count(t, "SELECT count(*) FROM calls WHERE ended_at IS NULL") == 0 })
	close(done)
	work.Wait()
	if n := h.count(t, "SELECT count(*) FROM calls"); n != callers*each {
		t.Errorf("%d calls", n)
	}
	completed := 0
	finished.Range(func(any, any) bool { completed++; return true })
	if n := h.count(t, "SELECT count(*) FROM calls WHERE status = 'completed'"); n != completed {
		t.Errorf("%d calls are completed, and spokes were told of %d", n, completed)
	}
	if n := h.count(t, "SELECT count(*) FROM calls WHERE status = 'failed' AND error_code <> 'spoke_lost'"); n != 0 {
		t.Errorf("%d calls failed for no reason", n)
	}
}

// recordCall is idempotent, completes what was begun, and takes nothing back.
func TestRecordCall(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t))
	record := func(body string) answer { return h.do(t, "POST", "/v1/calls", body) }
	first := record(`{"requestId":"r1","operation":"llm.chat","status":"running","input":{"messages":["a\u0000"],"api_key":"sk-planted"}}`).wants(t, 201)
	if strings.Contains(string(first.body), "sk-planted") || !strings.Contains(string(first.body), `a\u0000`) {
		t.Errorf("%s", first.body)
	}
	id := first.id(t)
	record(`{"requestId":"r1","operation":"llm.chat","status":"completed","output":[1.50,null]}`).wants(t, 200)
	again := record(`{"requestId":"r1","operation":"llm.chat","status":"running"}`).wants(t, 200) // late news
	if again.id(t) != id || !strings.Contains(string(again.body), `"completed"`) {
		t.Errorf("%s", again.body)
	}
	record(`{"requestId":"r1","operation":"llm.chat","status":"completed"}`).wants(t, 200)
	record(`{"requestId":"r1","operation":"llm.chat","status":"failed"}`).refused(t, 409, "calls_status_transition", "/status")
	record(`{"requestId":"r1","operation":"llm.other","status":"completed"}`).refused(t, 409, "calls_request_id_key", "/requestId")
	record(`{"requestId":"r2","operation":"x","status":"running","endedAt":"2026-01-01T00:00:00Z"}`).refused(t, 400, "invalid_request", "/endedAt")
	record(`{"requestId":"r2","operation":"x","status":"failed","startedAt":"2026-01-02T00:00:00Z","endedAt":"2026-01-01T00:00:00Z"}`).refused(t, 422, "calls_started_before_ended_check", "/endedAt")
	h.as(t, h.newCaller(t, h.admin.org, "*"), "POST", "/v1/calls", `{"requestId":"r1","operation":"llm.chat","status":"completed","error":"mine"}`).refused(t, 403, "calls_recorded_by_caller")
}

// A tree comes breadth first, bounded, with its edges; stats count and time.
func TestC10_CallTreeEdgesAndStats(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t))
	var ids []string
	for i := range 13 { // each has two children
		body := fmt.Sprintf(`{"requestId":"r%d","operation":"x.op%d","status":"%s","startedAt":"2026-01-01T00:00:00Z","endedAt":"2026-01-01T00:00:00.%03dZ"`, i, i%2, []string{"completed", "failed"}[i%2], 10*(i+1))
		if i > 0 {
			body += fmt.Sprintf(`,"parentId":%q`, ids[(i-1)/2])
		}
		ids = append(ids, h.do(t, "POST", "/v1/calls", body+"}").wants(t, 201).id(t))
	}
	h.do(t, "POST", "/v1/calls/"+ids[1]+"/edges", fmt.Sprintf(`{"edges":[{"targetCallId":%q,"type":"depends_on"},{"targetCallId":%q,"type":"requested_by"}]}`, ids[2], ids[3])).wants(t, 200)
	h.do(t, "POST", "/v1/calls/"+ids[1]+"/edges", fmt.Sprintf(`{"edges":[{"targetCallId":%q,"type":"depends_on"}]}`, ids[2])).wants(t, 200) // S18: again
	h.do(t, "POST", "/v1/calls/"+ids[1]+"/edges", fmt.Sprintf(`{"edges":[{"targetCallId":%q,"type":"triggered"}]}`, ids[2])).refused(t, 422, "call_edge_rows_not_triggered_check", "/edges/0/type")
	h.do(t, "POST", "/v1/calls/"+ids[1]+"/edges", fmt.Sprintf(`{"edges":[{"targetCallId":%q,"type":"blocks"}]}`, ids[2])).refused(t, 422, "call_edge_rows_type_fkey", "/edges")
	tree := func(query string) (nodes int, deepest, edges int, truncated bool) {
		t.Helper()
		var got struct {
			Nodes     []struct{ Depth int }
			Edges     []struct{ SourceCallID, TargetCallID, Type string }
			Truncated bool
		}
		h.do(t, "GET", "/v1/calls/"+ids[0]+"/tree"+query, nil).wants(t, 200).into(t, &got)
		return len(got.Nodes), got.Nodes[len(got.Nodes)-1].Depth, len(got.Edges), got.Truncated
	}
	for query, want := range map[string]string{"": "13 3 14 false", "?depth=1": "3 1 3 false", "?depth=0": "1 0 0 false", "?limit=3": "3 1 3 true"} {
		n, d, e, tr := tree(query)
		if got := fmt.Sprint(n, d, e, tr); got != want {
			t.Errorf("%q: %s, want %s", query, got, want)
		}
	}
	var page struct{ Items []struct{ Type string } }
	h.do(t, "GET", "/v1/calls/"+ids[1]+"/edges", nil).wants(t, 200).into(t, &page)
	if len(page.Items) != 5 { // its parent, two children, two of its own
		t.Errorf("%+v", page)
	}
	var stats struct {
		Items []struct {
			Operation                string
			Calls, Completed, Failed int
			PerSecond, ErrorRate     float64
			P50Ms, P95Ms, P99Ms      *float64
		}
	}
	h.do(t, "GET", "/v1/calls/stats?since=2026-01-01T00:00:00Z&until=2026-01-01T00:00:10Z", nil).wants(t, 200).into(t, &stats)
	if len(stats.Items) != 2 || stats.Items[0].Calls != 7 || stats.Items[0].Completed != 7 || stats.Items[1].ErrorRate != 1 || *stats.Items[0].P50Ms != 70 || stats.Items[0].PerSecond != 0.7 {
		t.Errorf("%+v", stats)
	}
	h.do(t, "GET", "/v1/calls/stats?since=2026-01-01T00:00:10Z&until=2026-01-01T00:00:10Z", nil).refused(t, 400, "invalid_request", "query:until")
}

// W09: how far removing calls has come is seen in the policy.
func TestW09_ThePolicyTellsWhatIsThere(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	oldest := func() (calls, payloads *time.Time) {
		var policy struct{ OldestCallAt, OldestCallPayloadsAt *time.Time }
		h.do(t, "GET", "/v1/retention-policy", nil).wants(t, 200).into(t, &policy)
		return policy.OldestCallAt, policy.OldestCallPayloadsAt
	}
	if calls, payloads := oldest(); calls != nil || payloads != nil {
		t.Errorf("of no calls: %v %v", calls, payloads)
	}
	var first struct{ CreatedAt time.Time }
	for i := range 2 {
		a := h.do(t, "POST", "/v1/calls", fmt.Sprintf(`{"requestId":"r%d","operation":"x.y","status":"running"}`, i)).wants(t, 201)
		if i == 0 {
			a.into(t, &first)
		}
	}
	calls, payloads := oldest()
	if calls == nil || payloads == nil || calls.Sub(first.CreatedAt).Abs() > time.Second || !calls.Equal(*payloads) {
		t.Errorf("%v %v, made at %v", calls, payloads, first.CreatedAt)
	}
	h.exec(t, "UPDATE calls SET payloads_expired_at = now()")
	if calls, payloads := oldest(); calls == nil || payloads != nil {
		t.Errorf("without payloads: %v %v", calls, payloads)
	}
}
