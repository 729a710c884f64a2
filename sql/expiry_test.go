package sql_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// pauseOfUpkeep is that of internal/upkeep between two batches.
const pauseOfUpkeep = 100 * time.Millisecond

// W09: calls expire, half of them whole and of half the payloads, as many as HUB_TEST_EXPIRE says, while 500 others are written each second.
// Who writes is never locked out: its lock_timeout would say so.
func TestW09_ExpiryLocksNobodyOut(t *testing.T) {
	t.Parallel()
	const perSecond, writers = 500, 10
	calls := 3000
	if text := os.Getenv("HUB_TEST_EXPIRE"); text != "" {
		var err error
		if calls, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t)
	exec(t, w.hub, "SET session_replication_role = replica") // the past, without its triggers: trees of ten, with edges
	exec(t, w.hub, fmt.Sprintf(`INSERT INTO calls (org_id, id, request_id, routed, operation, kind, status, caller_account_id, spoke_id, spoke_epoch, input, output, deadline_at, dispatched_at, started_at, ended_at, ended_by, attempts)
		SELECT @org, hub_uuidv7_at(began + n), 'old-' || n, true, 'x.op' || mod(n, 20), 'query', 'completed', @owner, @spoke, 1,
		       jsonb_build_object('n', n, 'text', repeat('x', 200)), jsonb_build_object('n', n), now(), now(), now(), now(), 'spoke', 1
		FROM generate_series(0, %d) n, LATERAL (SELECT (extract(epoch FROM now() - CASE WHEN n < %d THEN interval '40 days' ELSE interval '10 days' END) * 4096000)::bigint AS began) b`, calls-1, calls/2))
	exec(t, w.hub, `INSERT INTO call_edge_rows (org_id, source_call_id, target_call_id, type)
		SELECT @org, a, b, 'depends_on' FROM (SELECT id AS a, lead(id) OVER (ORDER BY id) AS b, row_number() OVER (ORDER BY id) AS n FROM calls WHERE request_id LIKE 'old-%') e WHERE mod(n, 5) = 1 AND b IS NOT NULL`)
	exec(t, w.hub, "UPDATE calls c SET parent_id = e.source_call_id FROM call_edge_rows e WHERE e.target_call_id = c.id AND c.request_id LIKE 'old-%'")
	exec(t, w.hub, `UPDATE retention_policies SET call_days = 30, call_payload_days = 7 WHERE org_id = @org; UPDATE retention_policies SET call_days = NULL WHERE org_id = @other_org; SET session_replication_role = origin`)
	exec(t, w.hub, "ANALYZE calls; ANALYZE call_edge_rows")

	var mu sync.Mutex
	var times []time.Duration
	write, stop := context.WithCancel(t.Context())
	defer stop()
	var group sync.WaitGroup
	for i := range writers {
		conn := w.connect(t, "org", "owner")
		exec(t, conn, "SET lock_timeout = '5s'")
		group.Go(func() {
			tick := time.NewTicker(writers * time.Second / perSecond)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-write.Done():
					return
				case <-tick.C:
				}
				begun := time.Now()
				if _, err := conn.Exec(context.Background(), named(fmt.Sprintf(`INSERT INTO calls (org_id, request_id, routed, operation, status, started_at, ended_at, ended_by, input, output)
					VALUES (@org, 'new-%d-%d', false, 'x.new', 'completed', now(), now(), 'recorder', '{"path": "a", "token": "x"}', '{"text": "b"}')`, i, n))); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				times = append(times, time.Since(begun))
				mu.Unlock()
			}
		})
	}
	measured := func() (count int, p50, p99, most time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		sorted := slices.Sorted(slices.Values(times))
		times = nil
		if len(sorted) == 0 {
			return 0, 1, 1, 1
		}
		return len(sorted), sorted[len(sorted)/2], sorted[len(sorted)*99/100], sorted[len(sorted)-1]
	}
	time.Sleep(time.Second)
	measured() // they have warmed up
	span := time.Second
	if calls > 100_000 {
		span = 15 * time.Second
	}
	time.Sleep(span)
	n, p50, p99, most := measured()
	t.Logf("without the sweep: %.0f calls/s, p50 %v, p99 %v, most %v", float64(n)/span.Seconds(), p50, p99, most)

	// As internal/upkeep does it.
	begun, done, batches := time.Now(), 0, 0
	var slowest time.Duration
	for begin := time.Now(); ; begin = time.Now() {
		rows := get[int](t, w.app, "SELECT purge_calls(1000)")
		slowest = max(slowest, time.Since(begin))
		if rows == 0 {
			break
		}
		done, batches = done+rows, batches+1
		if batches%200 == 0 {
			t.Logf("%d rows in %v, this batch in %v", done, time.Since(begun).Round(time.Second), time.Since(begin))
		}
		time.Sleep(pauseOfUpkeep)
	}
	swept := time.Since(begun)
	n, p50With, p99With, mostWith := measured()
	stop()
	group.Wait()
	t.Logf("with it: %.0f calls/s, p50 %v (x%.2f), p99 %v (x%.2f), most %v", float64(n)/swept.Seconds(), p50With, float64(p50With)/float64(p50), p99With, float64(p99With)/float64(p99), mostWith)
	t.Logf("%d calls went or lost their payloads, in %d batches and %v, the slowest in %v", calls, batches, swept.Round(time.Second), slowest)
	for what, sql := range map[string]string{
		"calls":    "SELECT count(*) FROM calls WHERE request_id LIKE 'old-%' AND id < hub_uuidv7_at((extract(epoch FROM now() - interval '30 days') * 4096000)::bigint)",
		"payloads": "SELECT count(*) FROM calls WHERE request_id LIKE 'old-%' AND num_nonnulls(input, output) > 0",
		"edges":    "SELECT count(*) FROM call_edge_rows e WHERE NOT EXISTS (SELECT FROM calls c WHERE (c.org_id, c.id) = (e.org_id, e.source_call_id))",
	} {
		if left := get[int](t, w.hub, sql); left != 0 {
			t.Errorf("%d %s are left", left, what)
		}
	}
	if n == 0 {
		t.Error("nobody wrote")
	}
}
