package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/gen/client"
	"github.com/alkdev/hub/internal/api"
	"github.com/alkdev/hub/internal/store"
	"github.com/alkdev/hub/internal/upkeep"
)

// live makes event streams, and requests that wait, go on until the test ends.
func live(t testing.TB) func(*api.Config, *pgxpool.Config) {
	return func(c *api.Config, _ *pgxpool.Config) { c.Stopping = t.Context().Done() }
}

// sequence runs a sequencer until the test ends, or the function that it returns is called.
func (h *hub) sequence(t testing.TB) (stop func()) {
	t.Helper()
	database, err := store.Open(t.Context(), store.Config{URL: h.database, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		upkeep.Sequence(ctx, database, slog.New(slog.DiscardHandler))
	}()
	stop = sync.OnceFunc(func() { cancel(); <-ended; database.Close() })
	t.Cleanup(stop)
	return stop
}

// sse is one server-sent event: what a browser would make of its lines.
type sse struct{ id, name, data, comment string }

func (e sse) event(t testing.TB) (ev client.Event) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(e.data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&ev); err != nil {
		t.Fatalf("%v: %+v", err, e)
	}
	if e.id != strconv.FormatInt(ev.Position, 10) || e.name != "" {
		t.Errorf("%+v", e)
	}
	return ev
}

// follow opens the feed; next returns its events, and ok false when the stream has ended.
func follow(t testing.TB, c caller, url, query, lastEventID string) (next func() (e sse, ok bool), cut func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "GET", url+"/v1/events"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.key)
	if lastEventID != "" {
		r.Header.Set("Last-Event-ID", lastEventID)
	}
	transport := &http.Transport{}
	response, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	cut = func() { cancel(); response.Body.Close(); transport.CloseIdleConnections() }
	t.Cleanup(cut)
	if response.StatusCode != 200 || response.Header.Get("Content-Type") != "text/event-stream" || response.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%s %v", response.Status, response.Header)
	}
	lines := bufio.NewScanner(response.Body)
	return func() (e sse, ok bool) {
		for lines.Scan() {
			field, value, _ := strings.Cut(lines.Text(), ": ")
			switch field {
			case "id":
				e.id = value
			case "event":
				e.name = value
			case "data":
				e.data = value
			case "":
				if value == "" {
					return e, true
				}
				e.comment = value
			case "retry":
			default:
				t.Errorf("a line %q", lines.Text())
			}
		}
		return e, false
	}, cut
}

// Sixteen writers on two servers, and a reader that is cut off at random two hundred times and comes back to either server: it sees
// every change once, each row's revisions in order. So does one that is never cut off, and one that comes when all is over.
func TestX05_EveryChangeIsSeenOnce(t *testing.T) {
	t.Parallel()
	const writers, cuts = 16, 200
	h := newHub(t, live(t))
	urls := []string{h.url, h.replica(t, live(t)).url}
	h.sequence(t)
	h.sequence(t)
	project := h.newProject(t, "feed")

	type place struct{ session, part string }
	var places []place
	for range 6 {
		session := h.do(t, "POST", "/v1/sessions", `{"projectId":"`+project+`"}`).wants(t, 201).id(t)
		var list struct{ Items []messageBody }
		h.do(t, "POST", "/v1/sessions/"+session+"/messages", `{"messages":[{"role":"user","parts":[{"type":"x"}]}]}`).wants(t, 201).into(t, &list)
		places = append(places, place{"/v1/sessions/" + session, "/v1/sessions/" + session + "/parts/" + list.Items[0].Parts[0].ID})
	}

	var stop atomic.Bool
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 2))
			for i := 0; !stop.Load(); i++ {
				p := places[r.IntN(len(places))]
				method, path, body := "PATCH", p.session, fmt.Sprintf(`{"title":"%d %d"}`, w, i)
				switch r.IntN(5) {
				case 0:
					method, path, body = "POST", p.session+"/messages", `{"messages":[{"role":"user","parts":[{"type":"x"},{"type":"x"}]},{"role":"user"}]}`
				case 1:
					path, body = p.part, fmt.Sprintf(`{"metadata":{"_w":{"n":"%d %d"}}}`, w, i)
				case 2:
					path, body = p.part, fmt.Sprintf(`{"data":{"n":"%d %d"}}`, w, i)
				}
				request, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), method, urls[r.IntN(2)]+path, strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				request.Header.Set("Authorization", "Bearer "+h.admin.key)
				request.Header.Set("Content-Type", "application/json")
				response, err := http.DefaultClient.Do(request)
				if err != nil {
					t.Error(err)
					return
				}
				response.Body.Close()
				if response.StatusCode >= 300 && response.StatusCode != 503 {
					t.Errorf("%s %s: %s", method, path, response.Status)
				}
				time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
			}
		})
	}

	wholeNext, wholeCut := follow(t, h.admin, urls[1], "", "0")
	var whole []client.Event
	var wholeMu sync.Mutex
	wholeEnded := make(chan struct{})
	go func() {
		defer close(wholeEnded)
		for {
			e, ok := wholeNext()
			if !ok {
				return
			}
			if e.data != "" {
				wholeMu.Lock()
				whole = append(whole, e.event(t))
				wholeMu.Unlock()
			}
		}
	}()

	var seen []client.Event
	last, r := "0", rand.New(rand.NewPCG(1, 3))
	for range cuts {
		next, cut := follow(t, h.admin, urls[r.IntN(2)], "", last)
		cutOff := time.AfterFunc(time.Duration(r.IntN(40))*time.Millisecond, cut)
		for patience := r.IntN(60); patience > 0; patience-- {
			e, ok := next()
			if !ok {
				break // also in the middle of an event: then it does not count
			}
			if e.name != "" {
				t.Fatalf("%+v", e)
			}
			last = e.id
			if e.data != "" {
				seen = append(seen, e.event(t))
			}
		}
		cutOff.Stop()
		cut()
	}
	stop.Store(true)
	group.Wait()
	eventually(t, "all changes are numbered", func() bool { return h.count(t, "SELECT count(*) FROM pending_events") == 0 })
	head := int64(h.count(t, "SELECT last_position FROM event_heads WHERE org_id = $1", h.admin.org))
	rest := func(last string, seen []client.Event) []client.Event {
		next, cut := follow(t, h.admin, urls[0], "", last)
		defer cut()
		for len(seen) == 0 || seen[len(seen)-1].Position < head {
			e, ok := next()
			if !ok {
				t.Fatal("the stream ended")
			}
			if e.data != "" {
				seen = append(seen, e.event(t))
			}
		}
		return seen
	}
	eventually(t, "the reader that was never cut off has all", func() bool {
		wholeMu.Lock()
		defer wholeMu.Unlock()
		return len(whole) > 0 && whole[len(whole)-1].Position == head
	})
	wholeCut()
	<-wholeEnded
	seen = rest(last, seen)
	t.Logf("%d events", head)
	if head < 500 {
		t.Errorf("only %d events", head)
	}
	revisions := map[string]map[uuid.UUID]int32{}
	for name, events := range map[string][]client.Event{"cut off": seen, "never cut off": whole, "late": rest("0", nil)} {
		revisions[name] = map[uuid.UUID]int32{}
		for i, e := range events {
			if e.Position != int64(i+1) {
				t.Fatalf("%s: after %d events comes %d", name, i, e.Position)
			}
			// Each change of a row is a transaction of its own here, so none is skipped.
			if before := revisions[name][e.Id]; e.Revision != before+1 || (e.Action == client.EventActionCreated) != (before == 0) {
				t.Fatalf("%s: after revision %d: %+v", name, before, e)
			}
			revisions[name][e.Id] = e.Revision
		}
		if len(events) != int(head) {
			t.Errorf("%s: %d events of %d", name, len(events), head)
		}
	}
	// And nothing has happened that nobody was told of.
	stored := map[uuid.UUID]int32{}
	rows, err := h.owner.Query(t.Context(), "SELECT id, revision FROM sessions UNION ALL SELECT id, revision FROM messages UNION ALL SELECT id, revision FROM parts")
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var id uuid.UUID
		var revision int32
		if err := rows.Scan(&id, &revision); err != nil {
			t.Fatal(err)
		}
		stored[id] = revision
	}
	if rows.Err() != nil || !maps.Equal(stored, revisions["cut off"]) {
		t.Errorf("%d rows are stored, %d were told of: %v", len(stored), len(revisions["cut off"]), rows.Err())
	}
}

func TestX05_FiltersAndWhereTheStreamBegins(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t), func(c *api.Config, _ *pgxpool.Config) { c.Heartbeat = 50 * time.Millisecond })
	h.sequence(t)
	a, b := h.newWork(t, h.admin), h.newWork(t, h.admin)
	stranger := h.newWork(t, h.newCaller(t, uuid.Nil, "*"))
	_ = stranger
	settled := func() string {
		eventually(t, "all changes are numbered", func() bool { return h.count(t, "SELECT count(*) FROM pending_events") == 0 })
		return strconv.Itoa(h.count(t, "SELECT last_position FROM event_heads WHERE org_id = $1", h.admin.org))
	}
	head := settled()
	read := func(query, last string, until string) (kinds []string) {
		t.Helper()
		next, cut := follow(t, h.admin, h.url, query, last)
		defer cut()
		for {
			e, ok := next()
			if !ok {
				t.Fatal("the stream ended")
			}
			if e.data != "" {
				ev := e.event(t)
				kinds = append(kinds, fmt.Sprintf("%s %s", ev.Kind, ev.Action))
			}
			if e.id == until {
				return kinds
			}
		}
	}
	wants := func(got []string, want ...string) {
		t.Helper()
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	created := []string{"session created", "message created", "part created"}
	wants(read("", "0", head), append(created, created...)...)
	wants(read("?after=0", "", head), append(created, created...)...)
	wants(read("?after=0", "3", head), created...)
	wants(read("?after=3", "", head), created...)
	// Filtered, the heartbeats tell how far the feed has come.
	wants(read("?sessionId="+b.session, "0", head), created...)
	wants(read("?projectId="+a.project, "0", head), created...)
	wants(read("?kind=session", "0", head), "session created", "session created")
	wants(read("?kind=part,message&sessionId="+a.session, "0", head), "message created", "part created")
	wants(read("?projectId="+uuid.NewString(), "0", head))

	// From now on: the first line says where that is, and nothing is lost between it and the next stream.
	next, cut := follow(t, h.admin, h.url, "", "")
	if hello, _ := next(); hello.id != head || hello.data != "" {
		t.Errorf("%+v, want %s", hello, head)
	}
	cut()
	h.do(t, "PATCH", "/v1/sessions/"+a.session, `{"title":"x"}`).wants(t, 200)
	h.do(t, "POST", "/v1/sessions/"+a.session+"/parts/"+a.part+"/deltas", delta(5, `" there"`)).wants(t, 200)
	wants(read("", head, settled()), "session updated", "part streamed")
	beats := 0
	next, _ = follow(t, h.admin, h.url, "", "")
	for beats < 3 {
		e, ok := next()
		if !ok {
			t.Fatal("the stream ended")
		}
		if e.comment == "alive" && e.id == settled() {
			beats++
		}
	}

	for query, pointer := range map[string]string{"?kind=sessions": "query:kind", "?kind=": "query:kind", "?after=-1": "query:after", "?after=x": "query:after", "?sessionId=x": "query:sessionId", "?types=part": "query:types"} {
		h.do(t, "GET", "/v1/events"+query, nil).refused(t, 400, "invalid_request", pointer)
	}
	h.do(t, "GET", "/v1/events", nil, "Last-Event-ID", "x").refused(t, 400, "invalid_request", "header:Last-Event-ID")
}

// Who comes back after what is kept is told what to read anew, and goes on from there.
func TestX05_Reset(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t))
	h.sequence(t)
	f := h.newWork(t, h.admin)
	eventually(t, "all changes are numbered", func() bool { return h.count(t, "SELECT count(*) FROM pending_events") == 0 })
	h.exec(t, "ALTER TABLE events DISABLE TRIGGER events_append_only")
	h.exec(t, "UPDATE events SET created_at = created_at - interval '8 days' WHERE position <= 2")
	if n := h.count(t, "SELECT purge_events(100)"); n != 2 {
		t.Fatalf("%d purged", n)
	}
	for _, c := range []struct {
		query, last string
		reread      []string
	}{
		{"", "1", []string{"/v1/sessions", "/v1/projects", "/v1/spokes", "/v1/detections"}},
		{"", "99", []string{"/v1/sessions", "/v1/projects", "/v1/spokes", "/v1/detections"}},
		{"?projectId=" + f.project, "0", []string{"/v1/sessions?projectId=" + f.project, "/v1/projects/" + f.project + "/tasks", "/v1/projects/" + f.project + "/mappings", "/v1/detections?projectId=" + f.project}},
		{"?kind=part&sessionId=" + f.session, "1", []string{"/v1/sessions/" + f.session, "/v1/sessions/" + f.session + "/messages", "/v1/detections?sessionId=" + f.session}},
	} {
		next, cut := follow(t, h.admin, h.url, c.query, c.last)
		e, _ := next()
		var reset client.EventReset
		if err := json.Unmarshal([]byte(e.data), &reset); err != nil || e.name != "reset" || e.id != "3" || reset.Position != 3 || strings.Join(reset.Reread, " ") != strings.Join(c.reread, " ") {
			t.Errorf("%+v: %+v %v", c, e, err)
		}
		cut()
	}
	next, cut := follow(t, h.admin, h.url, "", "2")
	defer cut()
	if e, _ := next(); e.name != "" {
		t.Errorf("%+v", e)
	}
	if e, _ := next(); e.id != "3" {
		t.Errorf("%+v", e)
	}
}

// A stream ends when its key is revoked, and when the server stops; not when the database is away for a moment.
func TestX05_StreamsEnd(t *testing.T) {
	t.Parallel()
	streams, stop := context.WithCancel(t.Context())
	h := newHub(t, func(c *api.Config, _ *pgxpool.Config) { c.Stopping = streams.Done() })
	c := h.newCaller(t, h.admin.org, "events:read")
	revoked, _ := follow(t, c, h.url, "", "")
	other, _ := follow(t, h.admin, h.url, "", "")
	ended := func(next func() (sse, bool)) <-chan struct{} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				if _, ok := next(); !ok {
					return
				}
			}
		}()
		return done
	}
	revokedEnds, otherEnds := ended(revoked), ended(other)
	h.exec(t, "UPDATE api_keys SET enabled = false WHERE account_id = $1", c.account)
	select {
	case <-revokedEnds:
	case <-time.After(30 * time.Second):
		t.Fatal("the revoked key's stream goes on")
	}
	select {
	case <-otherEnds:
		t.Fatal("so did the other one")
	default:
	}
	stop()
	select {
	case <-otherEnds:
	case <-time.After(30 * time.Second):
		t.Fatal("the stream goes on while the server stops")
	}
}

// A reader that does not read is cut off, and neither others nor writers notice; it comes back and misses nothing.
func TestX05_SlowReaders(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t), func(c *api.Config, _ *pgxpool.Config) { c.SlowReader = 300 * time.Millisecond })
	h.sequence(t)
	const events = 60_000
	h.exec(t, "INSERT INTO pending_events (org_id, kind, row_id, action, row_revision, session_id) SELECT $1, 'part', gen_random_uuid(), 'created', 1, gen_random_uuid() FROM generate_series(1, $2::integer)", h.admin.org, events)
	eventually(t, "all changes are numbered", func() bool { return h.count(t, "SELECT count(*) FROM pending_events") == 0 })
	conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(1 << 16); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "%s\r\n\r\n", strings.ReplaceAll(h.admin.head("GET", "/v1/events?after=0", ""), "\n", "\r\n"))
	time.Sleep(2 * time.Second) // it sleeps, and is cut off
	if err := conn.SetReadDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	last := ""
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			last = id
		}
	}
	got, err := strconv.Atoi(last)
	if err != nil || got >= events {
		t.Fatalf("it was sent everything: %s %v %v", last, err, lines.Err())
	}
	next, cut := follow(t, h.admin, h.url, "", strconv.Itoa(got-1))
	defer cut()
	for want := got; want <= events; {
		e, ok := next()
		if !ok {
			t.Fatal("the stream ended")
		}
		if e.data != "" {
			if ev := e.event(t); ev.Position != int64(want) {
				t.Fatalf("%d comes where %d belongs", ev.Position, want)
			}
			want++
		}
	}
}

// The death of the sequencer moves the office: here of one that nobody has ever seen again.
func TestX05_TheOfficeMovesOn(t *testing.T) {
	t.Parallel()
	h := newHub(t, live(t))
	h.exec(t, "UPDATE event_sequencers SET holder = gen_random_uuid(), lease_expires_at = clock_timestamp() + interval '3 seconds'")
	first := h.sequence(t)
	next, _ := follow(t, h.admin, h.url, "", "0")
	h.newSession(t)
	for {
		e, ok := next()
		if !ok {
			t.Fatal("the stream ended")
		}
		if e.data != "" {
			break
		}
	}
	h.sequence(t)
	first()
	h.newSession(t)
	for {
		e, ok := next()
		if !ok {
			t.Fatal("the stream ended")
		}
		if e.data != "" {
			return
		}
	}
}
