package store_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

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
	return d, store.WithCaller(t.Context(), &store.Caller{KeyHash: hash, Scopes: []string{"projects:read"}})
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

// The hub's own work sees one organisation, or none, as hub_app, and leaves nothing behind.
func TestX01_TheHubWorksWithinOneOrganisation(t *testing.T) {
	t.Parallel()
	for _, login := range []string{"hub_app", "hub"} {
		t.Run(login, func(t *testing.T) {
			t.Parallel()
			d, _ := open(t, login)
			ctx := t.Context()
			var org uuid.UUID
			owner, err := pgx.Connect(ctx, pgtest.URL(t, "hub"))
			if err != nil {
				t.Fatal(err)
			}
			defer owner.Close(context.Background())
			if err := owner.QueryRow(ctx, "SELECT id FROM organizations").Scan(&org); err != nil {
				t.Fatal(err)
			}
			if _, err := owner.Exec(ctx, "INSERT INTO projects (org_id, slug, name) VALUES ($1, 'p', 'P')", org); err != nil {
				t.Fatal(err)
			}
			stranger := uuid.Must(uuid.NewV7())
			for within, want := range map[uuid.UUID]int{org: 1, uuid.Nil: 0, stranger: 0} {
				for range 2 { // on the same connection
					err := d.AsHub(ctx, within, func(q *db.Queries) error {
						rows, err := q.ListProjects(ctx, db.ListProjectsParams{RowLimit: 10})
						if err == nil && len(rows) != want {
							t.Errorf("within %v: %d projects, want %d", within, len(rows), want)
						}
						return err
					})
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			failed := errors.New("failed")
			err = d.AsHub(ctx, org, func(q *db.Queries) error {
				if _, err := q.CreateProject(ctx, db.CreateProjectParams{Slug: "q", Name: "Q", Data: []byte("{}"), Metadata: []byte("{}")}); err != nil {
					return err
				}
				return failed
			})
			if !errors.Is(err, failed) {
				t.Error(err)
			}
			var left string
			err = d.Conn(ctx, func(conn *pgx.Conn) error {
				return conn.QueryRow(ctx, "SELECT concat(current_setting('hub.org_id', true), current_setting('plan_cache_mode'), CASE WHEN current_user <> session_user THEN current_user END)").Scan(&left)
			})
			if err != nil || left != "auto" {
				t.Errorf("left on the connection: %q %v", left, err)
			}
			var projects int
			if err := owner.QueryRow(ctx, "SELECT count(*) FROM projects").Scan(&projects); err != nil || projects != 1 {
				t.Errorf("%d projects: what failed was not rolled back (%v)", projects, err)
			}
		})
	}
}
