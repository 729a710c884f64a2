// Package upkeep does in the background what no request waits for: it removes what is no longer kept, in batches that lock nobody
// out, and writes down when keys were last used. Several servers of one database may do so at once.
package upkeep

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/store"
)

const (
	batch = 1000                   // rows per transaction
	pause = 100 * time.Millisecond // between the batches of a task
	most  = 50                     // batches of a task in a round: then it is another's turn, and what is left is done in the next round
)

// tasks are functions of the database that know what is due, do one batch of it, and return its number of rows: 0 when nothing is due.
// A new one is such a function, its query, and a line here.
var tasks = map[string]func(*db.Queries, context.Context, int32) (int64, error){
	"purge organizations":    (*db.Queries).PurgeOrganizations,
	"purge audit logs":       (*db.Queries).PurgeAuditLogs,
	"expire sessions":        (*db.Queries).ExpireSessions,
	"purge deleted sessions": (*db.Queries).PurgeDeletedSessions,
	"purge idempotency keys": (*db.Queries).PurgeIdempotencyKeys,
	"purge events":           (*db.Queries).PurgeEvents,
	"fold part deltas":       (*db.Queries).FoldPartDeltas,
	"return expired tasks":   (*db.Queries).ReturnExpiredTasks,
	"purge calls":            (*db.Queries).PurgeCalls,
	"purge call payloads":    (*db.Queries).PurgeCallPayloads,
	"watch sessions":         (*db.Queries).WatchSessions,
}

// Run works until ctx ends: a round every interval, or a little later, so that servers that start together do not stay together.
func Run(ctx context.Context, store *store.DB, log *slog.Logger, interval time.Duration) {
	ended := make(chan struct{})
	go func() { defer close(ended); runUrgent(ctx, store, log) }()
	defer func() { <-ended }()
	jittered := func() time.Duration { return interval + rand.N(interval/4) } //nolint:gosec // no secret
	for wait := jittered(); ; {
		select {
		case <-ctx.Done():
			// What is left of the last interval. The requests are over.
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			if err := store.WriteUses(last); err != nil {
				log.Warn("upkeep: writing when keys were last used", "cause", err)
			}
			return
		case <-time.After(wait):
		}
		wait = jittered()
		if Round(ctx, store, log) {
			wait = 0
		}
	}
}

// Round does what is due, and says whether some is left for the next round. What fails is logged, and tried again then.
func Round(ctx context.Context, store *store.DB, log *slog.Logger) (more bool) {
	if err := store.WriteUses(ctx); err != nil && ctx.Err() == nil {
		log.Error("upkeep: writing when keys were last used", "cause", err)
	}
	for name, run := range tasks {
		var total int64
		left := false
		for n := 0; ctx.Err() == nil; n++ {
			if left = n == most; left {
				break
			}
			rows := once(ctx, store, log, name, run)
			if rows == 0 {
				break
			}
			total += rows
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
		if total > 0 {
			log.Info("upkeep: "+name, "rows", total, "left", left)
		}
		more = more || left
	}
	return more
}

// once does one batch of a task, and returns its number of rows; 0 when nothing is due, or it failed, which is logged.
func once(ctx context.Context, store *store.DB, log *slog.Logger, name string, run func(*db.Queries, context.Context, int32) (int64, error)) (rows int64) {
	err := store.Nobody(ctx, func(q *db.Queries) (err error) { rows, err = run(q, ctx, batch); return err })
	if err == nil {
		return rows
	}
	if ctx.Err() == nil {
		log.Error("upkeep: "+name, "cause", err)
	}
	return 0
}
