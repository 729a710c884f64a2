package store

import (
	"context"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/gen/db"
)

// AsHub runs fn in a transaction of the hub's own work in the background: as hub_app within one organisation, or with uuid.Nil
// within none, where only the platform's tables and functions are to be reached. Whatever fn returns as an error rolls back.
func (d *DB) AsHub(ctx context.Context, org uuid.UUID, fn func(*db.Queries) error) error {
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release() // in the middle of a transaction: the pool closes the connection, which rolls back
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		if d.unbound {
			batch.Queue("SELECT set_config('role', 'hub_app', true)")
		}
		if org != uuid.Nil {
			batch.Queue("SELECT set_config('hub.org_id', $1, true)", org.String())
		}
		batch.Queue("SELECT set_config('hub.actor_source', 'worker', true), set_config('plan_cache_mode', 'force_custom_plan', true)")
		if err := tx.SendBatch(ctx, batch).Close(); err != nil {
			return err
		}
		return fn(db.New(tx))
	})
}
