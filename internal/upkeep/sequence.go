package upkeep

import (
	"context"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/store"
)

const (
	numberedAtOnce = 5000                  // events per transaction
	numberEvery    = 25 * time.Millisecond // in office
	applyEvery     = time.Second           // out of office; a lease lasts three
)

// Sequence is a candidate for the office of the sequencer until ctx ends (X05): one server at a time numbers what has happened, so that
// it can be followed. Another takes over within seconds of its death, and at once when it stops.
func Sequence(ctx context.Context, store *store.DB, log *slog.Logger) {
	holder := uuid.New()
	failing := false
	for {
		var numbered int32
		err := store.Nobody(ctx, func(q *db.Queries) (err error) {
			numbered, err = q.NumberEvents(ctx, db.NumberEventsParams{Holder: holder, RowLimit: numberedAtOnce})
			return err
		})
		pause := numberEvery
		switch {
		case ctx.Err() != nil:
		case err != nil:
			if !failing {
				log.Error("numbering events", "cause", err)
			}
			pause = applyEvery
		case numbered < 0:
			pause = applyEvery
		case numbered == numberedAtOnce:
			pause = 0
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			if err := store.Nobody(last, func(q *db.Queries) error { return q.LeaveEventOffice(last, holder) }); err != nil {
				log.Warn("leaving the office of the sequencer", "cause", err)
			}
			return
		case <-time.After(pause):
		}
	}
}
