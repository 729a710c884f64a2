package upkeep

import (
	"context"
	"log/slog"
	"time"

	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/store"
)

// every is how often what others wait for is done: leases that ran out, deadlines that passed.
const every = time.Second

// urgent are tasks like those of a round, that cannot wait for one.
var urgent = map[string]func(*db.Queries, context.Context, int32) (int64, error){
	"sweep spokes": (*db.Queries).SweepSpokes,
	"sweep calls":  (*db.Queries).SweepCalls,
}

// runUrgent works until ctx ends.
func runUrgent(ctx context.Context, store *store.DB, log *slog.Logger) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for name, run := range urgent {
			if rows := once(ctx, store, log, name, run); rows > 0 {
				log.Info("upkeep: "+name, "rows", rows)
			}
		}
	}
}
