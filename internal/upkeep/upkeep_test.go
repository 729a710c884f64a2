package upkeep_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/internal/migrate"
	"github.com/alkdev/hub/internal/postgres/pgtest"
	"github.com/alkdev/hub/internal/store"
	"github.com/alkdev/hub/internal/upkeep"
)

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, migrate.Fresh, "hub_app"))
}

// A round does all that is due, for the login of the application and for one that owns the schema, and a second one finds nothing.
func TestRoundDoesAllThatIsDue(t *testing.T) {
	t.Parallel()
	for _, login := range []string{"hub_app", "hub"} {
		t.Run(login, func(t *testing.T) {
			t.Parallel()
			pgtest.Database(t)
			owner, err := pgx.Connect(t.Context(), pgtest.URL(t, "hub"))
			if err != nil {
				t.Fatal(err)
			}
			defer owner.Close(context.Background())
			var log bytes.Buffer
			db, err := store.Open(t.Context(), store.Config{URL: pgtest.URL(t, login), Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if _, err := owner.Exec(t.Context(), `
				SELECT bootstrap_hub('kept', 'Kept', 'a', sha256('kept'));
				SELECT make_organization('gone', 'Gone', (SELECT id FROM accounts WHERE kind = 'human'), '{}', '{}', hub_uuidv7(), 'k', sha256('gone'), '{*}');
				INSERT INTO projects (org_id, slug, name) SELECT o.id, 'p' || n, 'p' FROM organizations o, generate_series(1, 2500) n;
				INSERT INTO idempotency_keys (org_id, account_id, key, request, status, created_at)
					SELECT o.id, o.owner_id, 'k' || n, sha256('r'), 200, now() - n * interval '20 hours' FROM organizations o, generate_series(0, 2) n;
				UPDATE organizations SET deleted_at = now() WHERE slug = 'gone'`); err != nil {
				t.Fatal(err)
			}
			ctx := store.WithCaller(t.Context(), &store.Caller{KeyHash: hash(t, owner, "kept"), Level: "member"})
			if err := db.Authenticate(ctx); err != nil {
				t.Fatal(err)
			}
			logger := slog.New(slog.NewTextHandler(&log, nil))
			upkeep.Round(t.Context(), db, logger)
			var left string
			if err := owner.QueryRow(t.Context(), `SELECT concat_ws(' ', (SELECT string_agg(slug, ',') FROM organizations), (SELECT count(*) FROM projects),
				(SELECT string_agg(key, ',' ORDER BY key) FROM idempotency_keys), (SELECT count(*) FROM api_keys WHERE last_used_at IS NOT NULL))`).Scan(&left); err != nil {
				t.Fatal(err)
			}
			if left != "kept 2500 k0,k1 1" {
				t.Errorf("left: %s", left)
			}
			if strings.Contains(log.String(), "ERROR") || !strings.Contains(log.String(), "purge organizations") {
				t.Error(log.String())
			}
			log.Reset()
			upkeep.Round(t.Context(), db, logger)
			if log.Len() > 0 {
				t.Errorf("a second round: %s", &log)
			}
		})
	}
}

// Run stops when it is told to, and writes down what is left.
func TestRunWritesWhatIsLeftWhenItEnds(t *testing.T) {
	t.Parallel()
	pgtest.Database(t)
	owner, err := pgx.Connect(t.Context(), pgtest.URL(t, "hub"))
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(context.Background())
	if _, err := owner.Exec(t.Context(), "SELECT bootstrap_hub('a', 'A', 'a', sha256('kept'))"); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), store.Config{URL: pgtest.URL(t, "hub_app"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Authenticate(store.WithCaller(t.Context(), &store.Caller{KeyHash: hash(t, owner, "kept"), Level: "member"})); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	upkeep.Run(ctx, db, slog.New(slog.DiscardHandler), time.Hour)
	var used bool
	if err := owner.QueryRow(t.Context(), "SELECT last_used_at > now() - interval '1 hour' FROM api_keys").Scan(&used); err != nil || !used {
		t.Errorf("last used: %v, %v", used, err)
	}
}

func hash(t *testing.T, owner *pgx.Conn, key string) (sum []byte) {
	t.Helper()
	if err := owner.QueryRow(t.Context(), "SELECT sha256($1::text::bytea)", key).Scan(&sum); err != nil {
		t.Fatal(err)
	}
	return sum
}
