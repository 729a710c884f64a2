package store_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/apikey"
	"github.com/alkdev/hub/internal/migrate"
	"github.com/alkdev/hub/internal/postgres/pgtest"
	"github.com/alkdev/hub/internal/store"
)

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, migrate.Fresh, "hub_app"))
}

// open opens a store of one connection for this login, on a database with one organisation, and a context of its admin.
func open(t *testing.T, login string) (*store.DB, context.Context) {
	t.Helper()
	pgtest.Database(t)
	owner, err := pgx.Connect(t.Context(), pgtest.URL(t, "hub"))
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(context.Background())
	hash, err := apikey.Hash(apikey.New())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := owner.Exec(t.Context(), "SELECT bootstrap_hub('default', 'Default', 'admin', $1)", hash); err != nil {
		t.Fatal(err)
	}
	d, err := store.Open(t.Context(), store.Config{URL: pgtest.URL(t, login), Log: slog.New(slog.DiscardHandler), Configure: func(c *pgxpool.Config) { c.MaxConns = 1 }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d, store.WithCaller(t.Context(), &store.Caller{KeyHash: hash, Scopes: []string{"projects:read"}, Level: "member"})
}

// X01: whatever the login is, statements run as hub_app for the caller's organisation, and nothing of that stays on the
// connection, which a pooler may give to somebody else.
func TestX01_NothingStaysOnTheConnection(t *testing.T) {
	t.Parallel()
	for _, login := range []string{"hub_app", "hub"} {
		t.Run(login, func(t *testing.T) {
			t.Parallel()
			d, ctx := open(t, login)
			var role string
			var org *uuid.UUID
			const who = "SELECT current_user::text, current_org_id()"
			inside := func(what string) {
				t.Helper()
				if role != "hub_app" || org == nil || *org != store.CallerFrom(ctx).OrgID {
					t.Errorf("%s: %s in %v", what, role, org)
				}
				role, org = "", nil
			}
			if err := d.QueryRow(ctx, who).Scan(&role, &org); err != nil {
				t.Fatal(err)
			}
			inside("a statement")
			if err := d.Tx(ctx, store.ReadCommitted, func(q *db.Queries) error {
				_, err := q.ListProjects(ctx, db.ListProjectsParams{RowLimit: 1})
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Exec(ctx, "SELECT 1"); err != nil {
				t.Fatal(err)
			}
			if err := d.Authenticate(ctx); err != nil {
				t.Fatal(err)
			}
			err := d.Conn(t.Context(), func(conn *pgx.Conn) error { return conn.QueryRow(t.Context(), who).Scan(&role, &org) })
			if err != nil || role != login || org != nil {
				t.Errorf("afterwards: %s in %v, %v; want %s in none", role, org, err, login)
			}
		})
	}
}

// A statement does not run where the key is refused, and none runs on behalf of nobody.
func TestStatementsNeedACaller(t *testing.T) {
	t.Parallel()
	d, ctx := open(t, "hub_app")
	if _, err := d.Exec(ctx, "SELECT 1"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Exec(t.Context(), "SELECT 1"); !errors.Is(err, store.ErrNoCaller) {
		t.Errorf("nobody: %v", err)
	}
	stranger := store.WithCaller(t.Context(), &store.Caller{KeyHash: make([]byte, 32)})
	ran := false
	for name, err := range map[string]error{
		"Exec":     func() error { _, err := d.Exec(stranger, "SELECT 1"); return err }(),
		"QueryRow": d.QueryRow(stranger, "SELECT 1").Scan(new(int)),
		"Tx":       d.Tx(stranger, store.ReadCommitted, func(*db.Queries) error { ran = true; return nil }),
	} {
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != "28000" || pgErr.ConstraintName != "unauthenticated" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if ran {
		t.Error("a transaction ran for a stranger")
	}
}

// What a caller must have is asked with the statement: the scopes, the level, the session that it says to act in. What it is, is known
// afterwards, and to the statement itself.
func TestX01_CallersAreCheckedWithTheirStatement(t *testing.T) {
	t.Parallel()
	for _, login := range []string{"hub_app", "hub"} {
		t.Run(login, func(t *testing.T) {
			t.Parallel()
			d, ctx := open(t, login)
			owner := owner(t)
			good := *store.CallerFrom(ctx)
			var member, session uuid.UUID
			hash, err := apikey.Hash(apikey.New())
			if err != nil {
				t.Fatal(err)
			}
			if err := owner.QueryRow(ctx, `WITH a AS (INSERT INTO accounts (kind, display_name) VALUES ('llm', 'member') RETURNING id),
				m AS (INSERT INTO organization_members (org_id, account_id, membership_level) SELECT o.id, a.id, 'admin' FROM organizations o, a RETURNING org_id, account_id)
				SELECT account_id FROM m`).Scan(&member); err != nil {
				t.Fatal(err)
			}
			if _, err := owner.Exec(ctx, "INSERT INTO api_keys (org_id, account_id, name, key_hash, scopes) SELECT id, $1, 'k', $2, '{projects:read}' FROM organizations", member, hash); err != nil {
				t.Fatal(err)
			}
			if err := owner.QueryRow(ctx, `WITH p AS (INSERT INTO projects (org_id, slug, name) SELECT id, 'p', 'p' FROM organizations RETURNING org_id, id)
				INSERT INTO sessions (org_id, project_id) SELECT org_id, id FROM p RETURNING id`).Scan(&session); err != nil {
				t.Fatal(err)
			}
			nowhere := uuid.New()
			for name, w := range map[string]struct {
				caller     store.Caller
				constraint string // "" where it goes through
			}{
				"as it should be":    {store.Caller{KeyHash: hash, Scopes: []string{"projects:read"}, Level: "admin", SessionID: &session}, ""},
				"no scope wanted":    {store.Caller{KeyHash: hash, Scopes: []string{}, Level: "member"}, ""},
				"no scopes at all":   {store.Caller{KeyHash: hash, Level: "member"}, ""},
				"a scope it lacks":   {store.Caller{KeyHash: hash, Scopes: []string{"projects:read", "projects:write"}, Level: "member"}, "insufficient_scope"},
				"a level above":      {store.Caller{KeyHash: hash, Scopes: []string{"projects:read"}, Level: "owner"}, "insufficient_level"},
				"an unknown level":   {store.Caller{KeyHash: hash, Scopes: []string{"projects:read"}, Level: "Member"}, "insufficient_level"},
				"no level":           {store.Caller{KeyHash: hash, Scopes: []string{"projects:read"}}, "insufficient_level"},
				"a session nowhere":  {store.Caller{KeyHash: hash, Scopes: []string{"projects:read"}, Level: "member", SessionID: &nowhere}, "acting_session_not_found"},
				"an unknown key":     {store.Caller{KeyHash: make([]byte, 32), Scopes: []string{}, Level: "member"}, "unauthenticated"},
				"an unknown key too": {store.Caller{KeyHash: make([]byte, 32), Scopes: []string{"projects:write"}, Level: "owner", SessionID: &nowhere}, "unauthenticated"},
				"the admin's":        {store.Caller{KeyHash: good.KeyHash, Scopes: []string{"platform:*"}, Level: "owner"}, ""},
			} {
				for how, run := range map[string]func(context.Context) (current, acting *uuid.UUID, err error){
					"a statement": func(ctx context.Context) (current, acting *uuid.UUID, err error) {
						err = d.QueryRow(ctx, "SELECT current_account_id(), current_session_id()").Scan(&current, &acting)
						return current, acting, err
					},
					"a transaction": func(ctx context.Context) (current, acting *uuid.UUID, err error) {
						err = d.WithTx(ctx, store.ReadCommitted, func(ctx context.Context) error {
							return d.QueryRow(ctx, "SELECT current_account_id(), current_session_id()").Scan(&current, &acting)
						})
						return current, acting, err
					},
				} {
					caller := w.caller
					current, acting, err := run(store.WithCaller(t.Context(), &caller))
					if constraint(err) != w.constraint || (err == nil) != (w.constraint == "") {
						t.Errorf("%s, %s: %v", name, how, err)
						continue
					}
					if err == nil && (caller.AccountID == uuid.Nil || current == nil || *current != caller.AccountID || caller.OrgID == uuid.Nil || caller.KeyID == uuid.Nil) {
						t.Errorf("%s, %s: %+v, in the statement %v", name, how, caller, current)
					}
					if err != nil && caller.KeyID != uuid.Nil {
						t.Errorf("%s, %s: known although refused: %+v", name, how, caller)
					}
					if err == nil && (acting == nil) != (w.caller.SessionID == nil) {
						t.Errorf("%s, %s: acts in %v", name, how, acting)
					}
				}
				caller := w.caller
				if err := d.Authenticate(store.WithCaller(t.Context(), &caller)); constraint(err) != w.constraint {
					t.Errorf("%s, alone: %v", name, err)
				}
			}
		})
	}
}

func constraint(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.ConstraintName
	}
	return ""
}

// owner is a superuser's connection to the test's database.
func owner(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pgtest.URL(t, "hub"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// Every statement of the context that WithTx gives belongs to its transaction, also those of a Tx within; none of another context.
func TestX09_WithTxIsOneTransaction(t *testing.T) {
	t.Parallel()
	d, ctx := open(t, "hub_app")
	q := db.New(d)
	create := func(ctx context.Context, slug string) error {
		_, err := q.CreateProject(ctx, db.CreateProjectParams{Slug: slug, Name: "x", Data: []byte("{}"), Metadata: []byte("{}")})
		return err
	}
	count := func() (n int) {
		t.Helper()
		if err := owner(t).QueryRow(ctx, "SELECT count(*) FROM projects").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if store.InTx(ctx) {
		t.Error("in a transaction that has not begun")
	}
	failed := errors.New("no")
	work := func(end error) func(context.Context) error {
		return func(ctx context.Context) error {
			if !store.InTx(ctx) {
				t.Error("not in the transaction")
			}
			if err := create(ctx, "a"); err != nil {
				return err
			}
			err := d.Tx(ctx, store.ReadCommitted, func(q *db.Queries) error {
				_, err := q.CreateProject(ctx, db.CreateProjectParams{Slug: "b", Name: "x", Data: []byte("{}"), Metadata: []byte("{}")})
				return err
			})
			if err != nil {
				return err
			}
			if tag, err := d.Exec(ctx, "UPDATE projects SET name = 'y'"); err != nil || tag.RowsAffected() != 2 {
				t.Errorf("%v, %v", tag, err)
			}
			if count() != 0 {
				t.Error("seen from outside before the commit")
			}
			return end
		}
	}
	if err := d.WithTx(ctx, store.ReadCommitted, work(failed)); !errors.Is(err, failed) || count() != 0 {
		t.Errorf("%v, %d projects", err, count())
	}
	func() {
		defer func() {
			if recover() != "it broke" {
				t.Error("the panic was swallowed")
			}
		}()
		_ = d.WithTx(ctx, store.ReadCommitted, func(ctx context.Context) error {
			_ = work(nil)(ctx)
			panic("it broke")
		})
	}()
	if count() != 0 {
		t.Error("a panic committed")
	}
	cancelled, cancel := context.WithCancel(ctx)
	if err := d.WithTx(cancelled, store.ReadCommitted, func(ctx context.Context) error { err := work(nil)(ctx); cancel(); return err }); err == nil || count() != 0 {
		t.Errorf("%v, %d projects", err, count())
	}
	if err := d.WithTx(ctx, store.Snapshot, func(ctx context.Context) error { return create(ctx, "a") }); err == nil {
		t.Error("a snapshot writes")
	}
	if err := d.WithTx(t.Context(), store.ReadCommitted, work(nil)); !errors.Is(err, store.ErrNoCaller) {
		t.Errorf("nobody: %v", err)
	}
	// The one connection that there is still serves.
	if err := d.WithTx(ctx, store.ReadCommitted, work(nil)); err != nil || count() != 2 {
		t.Errorf("the passing twin: %v, %d projects", err, count())
	}
}

// Nobody sees no tenant's rows, and nothing of a caller is left for it.
func TestX01_NobodySeesNothing(t *testing.T) {
	t.Parallel()
	d, ctx := open(t, "hub_app")
	if _, err := d.Exec(ctx, "SELECT 1"); err != nil {
		t.Fatal(err)
	}
	err := d.Nobody(t.Context(), func(q *db.Queries) error {
		projects, err := q.ListProjects(t.Context(), db.ListProjectsParams{RowLimit: 10})
		if err != nil {
			return err
		}
		organizations, err := q.ListOrganizations(t.Context(), db.ListOrganizationsParams{RowLimit: 10})
		if len(projects)+len(organizations) > 0 {
			t.Errorf("%v %v", projects, organizations)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Uses that are noted while others are written down are not lost, and the latest counts.
func TestUsesAreNotLost(t *testing.T) {
	t.Parallel()
	d, ctx := open(t, "hub_app")
	conn := owner(t)
	reset := func() {
		t.Helper()
		if _, err := conn.Exec(ctx, "UPDATE api_keys SET last_used_at = NULL"); err != nil {
			t.Fatal(err)
		}
	}
	used := func() (at *time.Time) {
		t.Helper()
		if err := conn.QueryRow(ctx, "SELECT last_used_at FROM api_keys").Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 50 {
				if _, err := d.Exec(store.WithCaller(t.Context(), &store.Caller{KeyHash: store.CallerFrom(ctx).KeyHash, Scopes: []string{}, Level: "member"}), "SELECT 1"); err != nil {
					t.Error(err)
				}
				if err := d.WriteUses(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	reset()
	for name, use := range map[string]func() error{
		"a statement":   func() error { _, err := d.Exec(ctx, "SELECT 1"); return err },
		"a transaction": func() error { return d.WithTx(ctx, store.ReadCommitted, func(context.Context) error { return nil }) },
		"alone":         func() error { return d.Authenticate(ctx) },
	} {
		if err := use(); err != nil {
			t.Fatal(err)
		}
		if err := d.WriteUses(t.Context()); err != nil {
			t.Fatal(err)
		}
		if used() == nil {
			t.Errorf("%s: not noted", name)
		}
		reset()
		if err := d.WriteUses(t.Context()); err != nil || used() != nil {
			t.Errorf("%s: written twice, %v", name, err)
		}
	}
	// What cannot be written is kept.
	if _, err := d.Exec(ctx, "SELECT 1"); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.WriteUses(ended); err == nil || used() != nil {
		t.Errorf("written after the end: %v", err)
	}
	if err := d.WriteUses(t.Context()); err != nil || used() == nil {
		t.Errorf("lost: %v", err)
	}
	// Who is refused has used nothing.
	reset()
	if _, err := conn.Exec(ctx, "UPDATE api_keys SET enabled = false"); err != nil {
		t.Fatal(err)
	}
	_, _ = d.Exec(ctx, "SELECT 1")
	_ = d.Authenticate(ctx)
	_ = d.WithTx(ctx, store.ReadCommitted, func(context.Context) error { return nil })
	if err := d.WriteUses(t.Context()); err != nil || used() != nil {
		t.Errorf("a refused key was noted: %v", err)
	}
}

// X01: hub does not serve where a tenant's table is not fenced, or as a login that cannot become hub_app.
func TestX01_OpenRefusesWhatIsNotFenced(t *testing.T) {
	t.Parallel()
	pgtest.Database(t)
	conn := owner(t)
	try := func(login string) error {
		d, err := store.Open(t.Context(), store.Config{URL: pgtest.URL(t, login), Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			d.Close()
		}
		return err
	}
	for _, table := range []string{"projects", "api_keys", "audit_logs", "idempotency_keys", "retention_policies"} {
		for spoil, mend := range map[string]string{"NO FORCE": "FORCE", "DISABLE": "ENABLE"} {
			if _, err := conn.Exec(t.Context(), "ALTER TABLE "+table+" "+spoil+" ROW LEVEL SECURITY"); err != nil {
				t.Fatal(err)
			}
			for _, login := range []string{"hub_app", "hub"} {
				if err := try(login); err == nil || !strings.Contains(err.Error(), table) {
					t.Errorf("%s, %s as %s: %v", table, spoil, login, err)
				}
			}
			if _, err := conn.Exec(t.Context(), "ALTER TABLE "+table+" "+mend+" ROW LEVEL SECURITY"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := conn.Exec(t.Context(), "CREATE ROLE nobody_of_hub LOGIN"); err != nil {
		t.Fatal(err)
	}
	if err := try("nobody_of_hub"); err == nil {
		t.Error("it serves as a login that has nothing to do with hub")
	}
	for _, login := range []string{"hub_app", "hub"} {
		if err := try(login); err != nil {
			t.Errorf("%s: %v", login, err)
		}
	}
}

// A transaction whose function fails, or swallows a failed statement, leaves nothing.
func TestTransactionsAreWholeOrNothing(t *testing.T) {
	t.Parallel()
	d, ctx := open(t, "hub_app")
	create := func(q *db.Queries, slug string) error {
		_, err := q.CreateProject(ctx, db.CreateProjectParams{Slug: slug, Name: "x", Data: []byte("{}"), Metadata: []byte("{}")})
		return err
	}
	count := func() (n int) {
		t.Helper()
		if err := d.QueryRow(ctx, "SELECT count(*) FROM projects").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	failed := errors.New("no")
	if err := d.Tx(ctx, store.ReadCommitted, func(q *db.Queries) error { return errors.Join(create(q, "a"), failed) }); !errors.Is(err, failed) || count() != 0 {
		t.Errorf("a function that fails: %v, %d projects", err, count())
	}
	err := d.Tx(ctx, store.ReadCommitted, func(q *db.Queries) error {
		if err := create(q, "a"); err != nil {
			return err
		}
		_ = create(q, "NOT A SLUG")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "rolled back") || count() != 0 {
		t.Errorf("a function that swallows an error: %v, %d projects", err, count())
	}
	if err := d.Tx(ctx, store.ReadCommitted, func(q *db.Queries) error { return create(q, "a") }); err != nil || count() != 1 {
		t.Errorf("the passing twin: %v, %d projects", err, count())
	}
}
