package sql_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

const eventsFixture = `
INSERT INTO event_heads (org_id, last_position) VALUES (@org, 1), (@other_org, 1);
INSERT INTO events (org_id, position, kind, action, row_id, row_revision, project_id, session_id, changed_at) VALUES
	(@org, 1, 'session', 'created', @session, 1, @project, @session, now()), (@other_org, 1, 'session', 'created', @other_session, 1, @other_project, @other_session, now());`

var eventsRules = []ruleCase{
	{
		rule: "pending_events_pkey", hub: true, before: "INSERT INTO pending_events (org_id, writer, kind, row_id, action, row_revision) VALUES (@org, '5', 'part', @part, 'updated', 2)",
		sql: "INSERT INTO pending_events (org_id, writer, kind, row_id, action, row_revision) VALUES (??, 'updated', 2)",
		bad: []string{"@org, '5', 'part', @part"}, good: []string{"@org, '6', 'part', @part", "@org, '5', 'message', @part", "@org, '5', 'part', @tool", "@other_org, '5', 'part', @part"},
	},
	{rule: "pending_events_kind_check", hub: true, sql: "INSERT INTO pending_events (org_id, row_id, action, row_revision, kind) VALUES (@org, @new, 'updated', 2, ??)", bad: []string{"''", "'parts'", "'Part'"}, good: []string{"'session'", "'message'", "'part'"}},
	{rule: "pending_events_action_check", hub: true, sql: "INSERT INTO pending_events (org_id, row_id, kind, row_revision, action) VALUES (@org, @new, 'part', 2, ??)", bad: []string{"''", "'changed'"}, good: []string{"'created'", "'updated'", "'deleted'", "'streamed'"}},
	{rule: "event_heads_pkey", hub: true, sql: "INSERT INTO event_heads (org_id) VALUES (??)", bad: []string{"@org"}, good: []string{"@new"}},
	{rule: "event_heads_purged_behind_last_check", hub: true, sql: "UPDATE event_heads SET purged_position = ?? WHERE org_id = @org", bad: []string{"-1", "2"}, good: []string{"0", "1"}},
	{
		rule: "events_pkey", hub: true, sql: "INSERT INTO events (org_id, position, kind, action, row_id, row_revision, changed_at) VALUES (??, 'part', 'updated', @part, 2, now())",
		bad: []string{"@org, 1"}, good: []string{"@org, 2", "@new, 1"},
	},
	{rule: "events_append_only", hub: true, sql: "UPDATE ?? SET org_id = org_id", bad: []string{"events"}, good: []string{"event_heads"}},
	{rule: "event_sequencers_pkey", hub: true, sql: "??", bad: []string{"INSERT INTO event_sequencers DEFAULT VALUES"}, good: []string{"UPDATE event_sequencers SET holder = NULL"}},
	{rule: "event_sequencers_singleton_check", hub: true, sql: "UPDATE event_sequencers SET singleton = ??", bad: []string{"false"}, good: []string{"true"}},
}

func TestX02_EventsRules(t *testing.T) {
	t.Parallel()
	checkRules(t, eventsRules)
}

// sequence numbers what has committed, as this holder (two hex digits), and returns how many changes it took.
func sequence(t testing.TB, conn *pgx.Conn, holder string, rows int) int {
	t.Helper()
	return get[int](t, conn, fmt.Sprintf("SELECT number_events('00000000-0000-7000-8000-0000000000%s', %d)", holder, rows))
}

// feed is what @org's feed holds behind a position.
func feed(t testing.TB, conn *pgx.Conn, after int) []string {
	t.Helper()
	return list[string](t, conn, fmt.Sprintf("SELECT concat_ws(' ', position, kind, action, row_id, row_revision, text_offset) FROM events WHERE org_id = @org AND position > %d ORDER BY position", after))
}

func wantFeed(t testing.TB, got []string, want ...string) {
	t.Helper()
	for i, w := range want {
		for name, id := range ids {
			w = strings.ReplaceAll(w, "@"+name+" ", id+" ")
		}
		want[i] = w
	}
	if !slices.Equal(got, want) {
		t.Errorf("the feed holds\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// What is noted, for whom, and how it is coalesced.
func TestX05_WhatTheFeedTells(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for sequence(t, w.app, "aa", 3) == 3 { // the fixtures' own
	}
	start := get[int](t, w.app, "SELECT last_position FROM event_heads")
	if n := get[int](t, w.app, "SELECT count(*) FROM pending_events"); n != 0 {
		t.Errorf("%d are left over", n)
	}
	if n := get[int](t, w.hub, "SELECT count(*) FROM events WHERE org_id = @org"); n != start {
		t.Errorf("%d events up to %d", n, start)
	}
	next := func(statements ...string) []string {
		t.Helper()
		for _, statement := range statements {
			exec(t, w.app, statement)
		}
		sequence(t, w.app, "aa", 1000)
		all := feed(t, w.app, start)
		start += len(all)
		for i := range all {
			_, all[i], _ = strings.Cut(all[i], " ")
		}
		return all
	}
	wantFeed(t, next("UPDATE sessions SET title = 'a' WHERE id = @session"), "session updated @session 2")
	wantFeed(t, next("UPDATE sessions SET title = 'a' WHERE id = @session")) // nothing has changed
	wantFeed(t, next("BEGIN; UPDATE sessions SET title = 'b' WHERE id = @session; UPDATE sessions SET title = 'c' WHERE id = @session; COMMIT"), "session updated @session 4")
	wantFeed(t, next("BEGIN; UPDATE sessions SET title = 'd' WHERE id = @session; ROLLBACK"))
	wantFeed(t, next("UPDATE sessions SET title = 'e' WHERE id = @session", "UPDATE sessions SET title = 'f' WHERE id = @session"), "session updated @session 5", "session updated @session 6")
	wantFeed(t, next(`BEGIN; INSERT INTO messages (org_id, id, session_id, role) VALUES (@org, @high, @session, 'user'); INSERT INTO parts (org_id, id, session_id, message_id, type) VALUES (@org, @high, @session, @high, 'text');
		UPDATE parts SET metadata = '{"_x": {}}' WHERE id = @high; COMMIT`), "message created @high 1", "part created @high 2")
	// A text that streams in: the latest is enough.
	grow := "INSERT INTO part_deltas (org_id, part_id, start_offset, text) VALUES (@org, @high, %d, 'abc')"
	wantFeed(t, next(fmt.Sprintf(grow, 0)), "part streamed @high 2 3")
	wantFeed(t, next(fmt.Sprintf(grow, 3), fmt.Sprintf(grow, 6), "UPDATE sessions SET title = 'g' WHERE id = @session", fmt.Sprintf(grow, 9)), "session updated @session 7", "part streamed @high 2 12")
	wantFeed(t, next(fmt.Sprintf(grow, 12), `UPDATE parts SET data = '{"text": ""}' WHERE id = @high`), "part updated @high 3")
	// What goes with something else is not told of.
	wantFeed(t, next("DELETE FROM parts WHERE id = @high"), "part deleted @high 3")
	wantFeed(t, next("DELETE FROM messages WHERE id = @message"), "message deleted @message 1")
	wantFeed(t, next("DELETE FROM sessions WHERE id = @session"), "session deleted @session 7", "session updated @child 2", "task updated @held_task 3")

	// Nobody else's; and a key that is limited to projects sees those.
	other := w.connect(t, "other_org", "other_owner")
	if n := get[int](t, other, "SELECT count(*) FROM events WHERE org_id <> @other_org"); n != 0 {
		t.Errorf("@other_org sees %d", n)
	}
	limited := w.connect(t, "org", "owner")
	exec(t, limited, "SELECT set_config('hub.project_ids', '{' || @empty_project::text || '}', false)")
	if n := get[int](t, limited, "SELECT count(*) FROM events"); n != 0 {
		t.Errorf("a key for another project sees %d", n)
	}
	exec(t, limited, "SELECT set_config('hub.project_ids', '{' || @project::text || '}', false)")
	if a, b := get[int](t, limited, "SELECT count(*) FROM events"), get[int](t, w.app, "SELECT count(*) FROM events WHERE project_id = @project"); a != b {
		t.Errorf("a key for the project sees %d of %d", a, b)
	}
	for _, statement := range []string{"INSERT INTO events (org_id, position, kind, action, row_id, row_revision, changed_at) VALUES (@org, 99, 'part', 'updated', @part, 1, now())", "DELETE FROM pending_events", "UPDATE event_heads SET last_position = 0", "SELECT FROM event_sequencers"} {
		_, err := attempt(t, w.app, "", statement)
		refuses(t, err, "42501", "")
	}
}

// A transaction that idles, or takes long, holds nobody up; what it has noted comes when it commits.
func TestX05_TransactionsUnderWayStallNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for sequence(t, w.app, "aa", 1000) > 0 {
	}
	long := w.connect(t, "org", "owner")
	exec(t, long, "BEGIN; UPDATE sessions SET title = 'long' WHERE id = @session")
	idle := connect(t, w.url)
	exec(t, idle, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id()")
	start := get[int](t, w.app, "SELECT last_position FROM event_heads")
	for i := range 3 {
		exec(t, w.app, fmt.Sprintf("UPDATE sessions SET title = '%d' WHERE id = @child", i))
		if n := sequence(t, w.app, "aa", 1000); n != 1 {
			t.Fatalf("%d numbered while others are under way", n)
		}
		if n := sequence(t, w.app, "aa", 1000); n != 0 {
			t.Fatalf("%d numbered again", n)
		}
	}
	// Nor does what was numbered, and cannot be vacuumed for them, slow the sequencer down.
	reads := func() int { // blocks: how long it takes says more of the machine
		var all []int
		for range 30 {
			exec(t, w.app, "UPDATE sessions SET title = title || '.' WHERE id = @child")
			var plan []struct {
				Plan struct {
					Hit  int `json:"Shared Hit Blocks"`
					Read int `json:"Shared Read Blocks"`
				}
			}
			text := get[string](t, w.app, "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT number_events('00000000-0000-7000-8000-0000000000aa', 1000)")
			if err := json.Unmarshal([]byte(text), &plan); err != nil {
				t.Fatal(err)
			}
			all = append(all, plan[0].Plan.Hit+plan[0].Plan.Read)
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	before := reads()
	for range 10 {
		exec(t, w.app, "INSERT INTO messages (org_id, session_id, role) SELECT @org, @child, 'user' FROM generate_series(1, 3000)")
		for sequence(t, w.app, "aa", 1000) > 0 {
		}
	}
	for _, known := range []string{ // whatever autovacuum has told the planner
		"SELECT", "ANALYZE pending_events", "VACUUM ANALYZE pending_events",
		"INSERT INTO messages (org_id, session_id, role) SELECT @org, @child, 'user' FROM generate_series(1, 3000); ANALYZE pending_events",
	} {
		exec(t, w.hub, known)
		for sequence(t, w.app, "aa", 1000) > 0 {
		}
		after := reads()
		t.Logf("%d blocks, behind 30,000 dead rows %d (%s)", before, after, known)
		if after > 4*before {
			t.Errorf("behind 30,000 dead rows the sequencer reads %d blocks, before %d (%s)", after, before, known)
		}
	}
	exec(t, long, "COMMIT")
	last := get[int](t, w.app, "SELECT last_position FROM event_heads")
	if last != start+3+5*30+33_000 {
		t.Errorf("%d events", last-start)
	}
	if n := sequence(t, w.app, "aa", 1000); n != 1 {
		t.Fatalf("%d numbered of the long transaction", n)
	}
	wantFeed(t, feed(t, w.app, last), fmt.Sprintf("%d session updated @session 2", last+1))
}

// There is one sequencer; another takes over when its lease has ended, or it has left.
func TestX05_OneSequencer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if n := sequence(t, w.app, "aa", 1); n != 1 {
		t.Fatal(n)
	}
	if n := sequence(t, w.app, "bb", 1); n != -1 {
		t.Errorf("a second sequencer got %d", n)
	}
	exec(t, w.hub, "UPDATE event_sequencers SET lease_expires_at = clock_timestamp() - interval '1 second'")
	if n := sequence(t, w.app, "bb", 1); n != 1 {
		t.Errorf("after the lease: %d", n)
	}
	if n := sequence(t, w.app, "aa", 1); n != -1 {
		t.Errorf("the first one, back from the dead: %d", n)
	}
	exec(t, w.app, "SELECT leave_event_office('00000000-0000-7000-8000-0000000000aa')") // not in office
	if n := sequence(t, w.app, "aa", 1); n != -1 {
		t.Errorf("who left for another: %d", n)
	}
	exec(t, w.app, "SELECT leave_event_office('00000000-0000-7000-8000-0000000000bb')")
	if n := sequence(t, w.app, "aa", 1); n != 1 {
		t.Errorf("after the other left: %d", n)
	}
	// While one is at it, the other does not wait.
	exec(t, w.hub, "UPDATE event_sequencers SET lease_expires_at = '-infinity'")
	holder := connect(t, w.url)
	exec(t, holder, "BEGIN")
	sequence(t, holder, "cc", 1)
	if n := sequence(t, w.app, "aa", 1); n != -1 {
		t.Errorf("beside a transaction of another: %d", n)
	}
	exec(t, holder, "ROLLBACK")
	if n := sequence(t, w.app, "aa", 1); n != 1 {
		t.Errorf("after it was rolled back: %d", n)
	}
}

// A dump that is restored where transactions' ids are lower goes on; organisations that are gone are no stumbling block.
func TestX05_TheSequencerSurvives(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, "UPDATE event_sequencers SET seen = '4000000000000:4000000000000:'; UPDATE pending_events SET writer = '3999999999999' WHERE org_id = @org AND kind = 'part'")
	waiting := get[int](t, w.hub, "SELECT count(*) FROM pending_events")
	if n := sequence(t, w.app, "aa", 1000); n != waiting {
		t.Errorf("%d numbered, %d waited", n, waiting)
	}
	exec(t, w.app, "UPDATE sessions SET title = 'x' WHERE id = @session")
	if n := sequence(t, w.app, "aa", 1000); n != 1 {
		t.Errorf("%d numbered afterwards", n)
	}
	exec(t, w.hub, "INSERT INTO pending_events (org_id, kind, row_id, action, row_revision) VALUES (@new, 'session', @new, 'deleted', 1), (@org, 'session', @new, 'deleted', 1)")
	if n := sequence(t, w.app, "aa", 1000); n != 2 || get[int](t, w.hub, "SELECT count(*) FROM events WHERE org_id = @new") != 0 {
		t.Errorf("%d numbered", n)
	}
}

// Sixteen writers, some of whom give up: each row's revisions come in order, and every one comes.
func TestX05_RevisionsComeInOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const writers, changes = 16, 40
	done := make(chan struct{})
	var group sync.WaitGroup
	for n := range writers {
		conn := w.connect(t, "org", "owner")
		group.Go(func() {
			for i := range changes {
				end := "COMMIT"
				if i%7 == 3 {
					end = "ROLLBACK"
				}
				session := []string{"@session", "@child", "@imported"}[(n+i)%3]
				if _, err := run(t.Context(), conn, fmt.Sprintf("BEGIN; UPDATE sessions SET title = '%d %d' WHERE id = %s; SELECT pg_sleep(%g); %s", n, i, session, float64(i%3)/1000, end)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { group.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		sequence(t, w.app, "aa", 7)
	}
	for sequence(t, w.app, "aa", 7) > 0 {
	}
	if gaps := get[int](t, w.app, `SELECT count(*) FROM (
		SELECT row_revision, lag(row_revision, 1, 0) OVER (PARTITION BY row_id ORDER BY position) AS before FROM events WHERE kind = 'session' AND position > 1) e WHERE row_revision <> before + 1`); gaps != 0 {
		t.Errorf("%d revisions that do not follow the one before", gaps)
	}
	if missing := get[int](t, w.app, "SELECT count(*) FROM sessions s WHERE revision <> (SELECT max(row_revision) FROM events e WHERE e.row_id = s.id)"); missing != 0 {
		t.Errorf("of %d sessions the last revision is missing", missing)
	}
	if n := get[int](t, w.app, "SELECT max(position) - count(*) FROM events"); n != 0 {
		t.Errorf("%d positions are missing", n)
	}
}

func TestX05_EventsAreKeptSevenDays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for sequence(t, w.app, "aa", 1000) > 0 {
	}
	purge := func(rows int) int { return get[int](t, w.app, fmt.Sprintf("SELECT purge_events(%d)", rows)) }
	if n := purge(100); n != 0 {
		t.Errorf("%d purged", n)
	}
	last := get[int](t, w.app, "SELECT last_position FROM event_heads")
	exec(t, w.hub, "ALTER TABLE events DISABLE TRIGGER events_append_only; UPDATE events SET created_at = created_at - interval '8 days' WHERE org_id = @org AND position <= 5")
	if a, b, c := purge(3), purge(3), purge(3); a != 3 || b != 2 || c != 0 {
		t.Errorf("purged %d, %d, %d", a, b, c)
	}
	if got := get[string](t, w.app, "SELECT concat_ws(' ', min(position), max(position), (SELECT purged_position FROM event_heads)) FROM events"); got != fmt.Sprintf("6 %d 5", last) {
		t.Error(got)
	}
	exec(t, w.hub, "INSERT INTO event_heads (org_id, last_position) VALUES (@new, 2); INSERT INTO events (org_id, position, kind, action, row_id, row_revision, changed_at) SELECT @new, n, 'part', 'updated', @new, 1, now() FROM generate_series(1, 2) n")
	if a, b, c := purge(100), purge(100), purge(100); a != 2 || b != 1 || c != 0 {
		t.Errorf("of an organisation that is gone: purged %d, %d, %d", a, b, c)
	}
}

// A long session is deleted by a mark, and its rows go later: it is told of once, then.
func TestX05_ADeletedSessionIsToldOfOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, "DELETE FROM pending_events; SELECT mark_sessions_deleted(@org, ARRAY[@session]::uuid[])")
	if got := list[string](t, w.hub, "SELECT kind || ' ' || action FROM pending_events WHERE row_id = @session"); len(got) != 1 || got[0] != "session deleted" {
		t.Errorf("the mark: %v", got)
	}
	exec(t, w.hub, "DELETE FROM pending_events")
	if get[int64](t, w.hub, "SELECT purge_deleted_sessions(100000)") == 0 || get[bool](t, w.hub, "SELECT EXISTS (SELECT FROM sessions WHERE id = @session)") {
		t.Error("it was not purged")
	}
	if got := list[string](t, w.hub, "SELECT kind || ' ' || action FROM pending_events WHERE session_id = @session"); len(got) != 0 {
		t.Errorf("the purge: %v", got)
	}
}
