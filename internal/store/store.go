// Package store is the way to the database: a pool whose every statement runs as the caller that the context carries.
//
// A request that needs one statement costs one round trip. The statement travels in a pipeline behind authenticate(), which
// finds the key, checks its scopes and sets the tenant for exactly this implicit transaction, or raises, and then the
// statement does not run. There is no session state, so it works behind a pooler in transaction mode.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	pgxuuid "github.com/vgarvardt/pgx-google-uuid/v5"

	"github.com/alkdev/hub/gen/db"
)

// Caller is who a request acts as, and what it needs to be allowed.
type Caller struct {
	KeyHash   []byte     // SHA-256 of the key
	Scopes    []string   // all of which the key must cover
	Level     string     // the membership level that its account must have
	SessionID *uuid.UUID // the agent's session in which it acts, for the audit log; nil where it names none

	// Known once the first statement has run; zero before.
	OrgID, AccountID, KeyID uuid.UUID
}

type callerKey struct{}

// WithCaller returns a context whose statements run as c.
func WithCaller(ctx context.Context, c *Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerFrom returns the caller of ctx, or nil.
func CallerFrom(ctx context.Context) *Caller {
	c, _ := ctx.Value(callerKey{}).(*Caller)
	return c
}

// ErrNoCaller is a bug: a statement was sent on behalf of nobody.
var ErrNoCaller = errors.New("store: the context carries no caller")

// DB runs statements as the caller of their context. It is what sqlc's queries take.
type DB struct {
	pool    *pgxpool.Pool
	unbound bool // the login is not hub_app's, and becomes hub_app within each transaction
	uses    uses
}

// Config says how to reach the database.
type Config struct {
	URL string
	Log *slog.Logger
	// Connections is how many the pool opens at most; 0 stands for 16.
	Connections int32
	// Configure may change the pool's configuration before it opens; nil in production.
	Configure func(*pgxpool.Config)
}

const defaultConnections = 16

// Open connects, and refuses a login that row-level security would not bind. A login that owns the schema or is a superuser
// becomes hub_app for each transaction, with a warning: it is kept from other tenants' rows, but could step back out.
func Open(ctx context.Context, cfg Config) (*DB, error) {
	config, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("the database URL: %w", err)
	}
	config.ConnConfig.RuntimeParams["application_name"] = "hub"
	config.ConnConfig.RuntimeParams["timezone"] = "UTC"
	config.MaxConnIdleTime = 5 * time.Minute
	config.MaxConns = defaultConnections
	if cfg.Connections > 0 {
		config.MaxConns = cfg.Connections
	}
	if cfg.Configure != nil {
		cfg.Configure(config)
	}

	probe, err := pgx.ConnectConfig(ctx, config.ConnConfig.Copy())
	if err != nil {
		return nil, err
	}
	becomesHubApp := false
	unbound, err := whyUnbound(ctx, probe)
	if err == nil && unbound != "" {
		cfg.Log.Warn("the database login is not bound by row-level security; statements run as hub_app, but a login of its own would be safer (README, Configuration)", "login", config.ConnConfig.User, "why", unbound)
		if _, err = probe.Exec(ctx, "SET ROLE hub_app"); err == nil {
			if unbound, err = whyUnbound(ctx, probe); err == nil && unbound != "" {
				err = fmt.Errorf("hub does not serve as a role that row-level security does not bind: hub_app %s", unbound)
			}
		}
		becomesHubApp = true
	}
	if err == nil {
		err = tenantTablesFenced(ctx, probe)
	}
	probe.Close(context.WithoutCancel(ctx))
	if err != nil {
		return nil, err
	}

	config.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		pgxuuid.Register(conn.TypeMap())
		conn.TypeMap().RegisterType(&pgtype.Type{Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC}})
		return nil
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return &DB{pool: pool, unbound: becomesHubApp}, nil
}

// Close waits for the statements under way and closes all connections.
func (d *DB) Close() { d.pool.Close() }

// Conn lends a connection with the login's own rights, on behalf of nobody, for checks of the database itself.
func (d *DB) Conn(ctx context.Context, fn func(*pgx.Conn) error) error {
	return d.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return fn(c.Conn()) })
}

// Nobody runs statements on behalf of nobody, each in a transaction of its own: the functions that do the hub's own upkeep.
// Of tenants' rows it sees none.
func (d *DB) Nobody(ctx context.Context, fn func(*db.Queries) error) error {
	return d.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return fn(db.New(c)) })
}

// whyUnbound says why row-level security would not bind the current role, or "".
func whyUnbound(ctx context.Context, conn *pgx.Conn) (why string, err error) {
	err = conn.QueryRow(ctx, `
		SELECT CASE
			WHEN r.rolsuper THEN 'is a superuser'
			WHEN r.rolbypassrls THEN 'has BYPASSRLS'
			WHEN EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND pg_has_role(r.oid, c.relowner, 'MEMBER')) THEN 'owns tables'
			WHEN NOT pg_has_role(r.oid, 'hub_app', 'MEMBER') THEN 'is not a member of hub_app'
			WHEN EXISTS (SELECT FROM unnest('{hub_auth,hub_system,hub_search}'::text[]) d WHERE pg_has_role(r.oid, d::regrole::oid, 'MEMBER')) THEN 'is a member of a privileged role of hub'
			ELSE '' END
		FROM pg_roles r WHERE r.rolname = current_user`).Scan(&why)
	return why, err
}

// tenantTablesFenced is the other half: each table of tenants, and the control plane, has row-level security, forced.
func tenantTablesFenced(ctx context.Context, conn *pgx.Conn) error {
	var open []string
	err := conn.QueryRow(ctx, `
		SELECT coalesce(array_agg(c.relname::text ORDER BY c.relname), '{}')
		FROM pg_class c
		WHERE (c.relname IN ('accounts', 'organizations') OR EXISTS (
			SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname IN ('org_id', 'chain_id') AND NOT a.attisdropped))
		  AND c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT (c.relrowsecurity AND c.relforcerowsecurity)`).Scan(&open)
	if err == nil && len(open) > 0 {
		err = fmt.Errorf("hub does not serve: row-level security is off on %v", open)
	}
	return err
}

// The statement in front -------------------------------------------------------------------------------------------

// authenticateSQL is written here and not in sql/queries, because sqlc cannot put one query in front of another.
const authenticateSQL = "SELECT org_id, account_id, key_id FROM authenticate($1, $2, $3, $4)"

// A list with optional filters ("$2 IS NULL OR project_id = $2") is planned for the filters that are given: the plan that serves
// all of them, which PostgreSQL may settle on after five executions, uses no filter's index. So are the statements of
// transactions, which take long arrays of ids: the plan for an array of any length reads whole sessions.
const (
	optionalFilter             = " IS NULL OR "
	authenticateForCustomPlans = "SELECT org_id, account_id, key_id FROM authenticate($1, $2, $3, $4), set_config('plan_cache_mode', 'force_custom_plan', true)"
)

// behindAuthentication sends sql behind authenticate() in one pipeline, which PostgreSQL runs as one implicit transaction.
func (d *DB) behindAuthentication(ctx context.Context, conn *pgxpool.Conn, sql string, args []any) (pgx.BatchResults, error) {
	caller := CallerFrom(ctx)
	if caller == nil {
		return nil, ErrNoCaller
	}
	batch := &pgx.Batch{}
	statement := authenticateSQL
	if strings.Contains(sql, optionalFilter) {
		statement = authenticateForCustomPlans
	}
	d.queueAuthentication(batch, statement, caller)
	batch.Queue(sql, args...)
	results := conn.SendBatch(ctx, batch)
	for range batch.Len() - 2 {
		if _, err := results.Exec(); err != nil {
			results.Close()
			return nil, err
		}
	}
	if err := results.QueryRow().Scan(&caller.OrgID, &caller.AccountID, &caller.KeyID); err != nil {
		results.Close()
		return nil, err
	}
	d.noteUse(caller)
	return results, nil
}

// queueAuthentication queues what stands in front of the first statement of every transaction. Nothing of it outlives the
// transaction, so that a pooler may give the connection to somebody else afterwards.
func (d *DB) queueAuthentication(batch *pgx.Batch, statement string, caller *Caller) *pgx.QueuedQuery {
	if d.unbound {
		batch.Queue("SELECT set_config('role', 'hub_app', true)")
	}
	return batch.Queue(statement, caller.KeyHash, caller.Scopes, caller.Level, caller.SessionID)
}

// Exec implements db.DBTX.
func (d *DB) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if tx := txFrom(ctx); tx != nil {
		return tx.Exec(ctx, sql, args...)
	}
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	defer conn.Release()
	results, err := d.behindAuthentication(ctx, conn, sql, args)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	tag, err := results.Exec()
	if closeErr := results.Close(); err == nil { // repeats err where there is one
		err = closeErr
	}
	return tag, err
}

// Query implements db.DBTX. The rows hold a connection until they are closed.
func (d *DB) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if tx := txFrom(ctx); tx != nil {
		return tx.Query(ctx, sql, args...) //nolint:sqlclosecheck // the caller closes them
	}
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	handedOver := false
	defer func() { // also when something panics
		if !handedOver {
			conn.Release()
		}
	}()
	results, err := d.behindAuthentication(ctx, conn, sql, args)
	if err != nil {
		return nil, err
	}
	rows, err := results.Query()
	if err != nil {
		results.Close()
		return nil, err
	}
	handedOver = true
	return &pipelinedRows{Rows: rows, results: results, conn: conn}, nil
}

// QueryRow implements db.DBTX.
func (d *DB) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	rows, err := d.Query(ctx, sql, args...)
	return row{rows, err}
}

// pipelinedRows gives the connection back when the rows are closed or read to their end. The commit comes last in the
// pipeline, so its error (a deferred constraint) belongs to the rows.
type pipelinedRows struct {
	pgx.Rows
	results pgx.BatchResults
	conn    *pgxpool.Conn
	err     error
}

func (r *pipelinedRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

func (r *pipelinedRows) Close() {
	r.Rows.Close()
	if r.conn == nil {
		return
	}
	r.err = r.results.Close()
	r.conn.Release()
	r.conn = nil
}

func (r *pipelinedRows) Err() error {
	if err := r.Rows.Err(); err != nil {
		return err
	}
	return r.err
}

type row struct {
	rows pgx.Rows
	err  error
}

func (r row) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	r.rows.Close()
	return r.rows.Err()
}

// Transactions -----------------------------------------------------------------------------------------------------

// Isolation is how much of others' work a transaction sees.
type Isolation string

// The isolation levels in use. A Snapshot only reads.
const (
	ReadCommitted Isolation = "BEGIN"
	Snapshot      Isolation = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
)

// Tx runs fn in a transaction of ctx's caller: one round trip more than its statements to begin (authentication rides along)
// and one to commit. Whatever fn returns as an error rolls back.
//
// Within WithTx's function it is a part of that transaction.
func (d *DB) Tx(ctx context.Context, isolation Isolation, fn func(*db.Queries) error) error {
	if tx := txFrom(ctx); tx != nil {
		return fn(db.New(tx))
	}
	return d.WithTx(ctx, isolation, func(ctx context.Context) error { return fn(db.New(txFrom(ctx))) })
}

type txKey struct{}

func txFrom(ctx context.Context) *pgxpool.Conn {
	conn, _ := ctx.Value(txKey{}).(*pgxpool.Conn)
	return conn
}

// InTx says whether ctx's statements are part of a transaction that has begun.
func InTx(ctx context.Context) bool { return txFrom(ctx) != nil }

// WithTx is Tx for work that is not written as one function of queries: every statement of the context that fn gets is part
// of the transaction.
func (d *DB) WithTx(ctx context.Context, isolation Isolation, fn func(context.Context) error) error {
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release() // in the middle of a transaction: the pool closes the connection, which rolls back
	caller := CallerFrom(ctx)
	if caller == nil {
		return ErrNoCaller
	}
	batch := &pgx.Batch{}
	batch.Queue(string(isolation))
	d.queueAuthentication(batch, authenticateForCustomPlans, caller).QueryRow(func(r pgx.Row) error {
		return r.Scan(&caller.OrgID, &caller.AccountID, &caller.KeyID)
	})
	err = conn.SendBatch(ctx, batch).Close()
	if err == nil {
		d.noteUse(caller)
		err = fn(context.WithValue(ctx, txKey{}, conn))
	}
	if err == nil {
		tag, err := conn.Exec(ctx, "COMMIT")
		if err == nil && tag.String() != "COMMIT" {
			err = errors.New("store: a statement had failed, so the transaction was rolled back")
		}
		return err
	}
	// Not on ctx, which may have ended; an unanswered ROLLBACK costs the connection, not the caller's patience.
	rollback, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if !conn.Conn().IsClosed() && conn.Conn().PgConn().TxStatus() != 'I' {
		_, _ = conn.Exec(rollback, "ROLLBACK")
	}
	return err
}

// Authenticate checks the caller alone, before work that should not be done for just anybody.
func (d *DB) Authenticate(ctx context.Context) error {
	caller := CallerFrom(ctx)
	if caller == nil {
		return ErrNoCaller
	}
	batch := &pgx.Batch{}
	d.queueAuthentication(batch, authenticateSQL, caller).QueryRow(func(r pgx.Row) error {
		return r.Scan(&caller.OrgID, &caller.AccountID, &caller.KeyID)
	})
	err := d.pool.SendBatch(ctx, batch).Close()
	if err == nil {
		d.noteUse(caller)
	}
	return err
}

// Last used --------------------------------------------------------------------------------------------------------

// uses are the keys that were used since they were last written down: never a write per request.
type uses struct {
	mu sync.Mutex
	at map[[2]uuid.UUID]time.Time // by organisation and key
}

func (d *DB) noteUse(caller *Caller) {
	d.uses.mu.Lock()
	defer d.uses.mu.Unlock()
	if d.uses.at == nil {
		d.uses.at = map[[2]uuid.UUID]time.Time{}
	}
	d.uses.at[[2]uuid.UUID{caller.OrgID, caller.KeyID}] = time.Now()
}

// WriteUses writes down when keys were last used. What cannot be written is kept for the next time.
func (d *DB) WriteUses(ctx context.Context) error {
	d.uses.mu.Lock()
	taken := d.uses.at
	d.uses.at = nil
	d.uses.mu.Unlock()
	if len(taken) == 0 {
		return nil
	}
	var params db.RecordKeyUsesParams
	for key, at := range taken {
		params.OrgIds, params.KeyIds, params.Times = append(params.OrgIds, key[0]), append(params.KeyIds, key[1]), append(params.Times, at)
	}
	err := d.Nobody(ctx, func(q *db.Queries) error { return q.RecordKeyUses(ctx, params) })
	if err != nil {
		d.uses.mu.Lock()
		defer d.uses.mu.Unlock()
		if d.uses.at == nil {
			d.uses.at = map[[2]uuid.UUID]time.Time{}
		}
		for key, at := range taken {
			if d.uses.at[key].Before(at) {
				d.uses.at[key] = at
			}
		}
	}
	return err
}

// Retryable says whether the same transaction may succeed when it is run again: a deadlock or a serialization failure.
func Retryable(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "40P01" || pgErr.Code == "40001")
}
