// Package migrate brings a database's schema to the version that this program carries, and says no where it cannot know
// what it has before it: a migration that was edited after it was applied, or a newer schema.
package migrate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/database"
	pgxmigrate "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	"github.com/golang-migrate/migrate/v4/source"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	hubsql "github.com/alkdev/hub/sql"
)

// lockKey is the advisory lock under which one process at a time migrates a database ("hub" in ASCII).
const lockKey = 0x687562

// migrationsTable is golang-migrate's own; hub makes it beforehand, so that it has comments and times like every table.
const migrationsTable = "schema_migrations"

// File is one migration that the program carries.
type File struct {
	Version int64
	Name    string // "0004_sessions"
	SHA256  [sha256.Size]byte
}

// Files lists the migrations in their order.
func Files() ([]File, error) {
	names, err := fs.Glob(hubsql.Migrations, "migrations/*.up.sql")
	if err != nil {
		return nil, err
	}
	files := make([]File, len(names)) // Glob sorts
	for i, name := range names {
		text, err := fs.ReadFile(hubsql.Migrations, name)
		if err != nil {
			return nil, err
		}
		base := strings.TrimSuffix(path.Base(name), ".up.sql")
		number, _, _ := strings.Cut(base, "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: a migration's name starts with its number", name)
		}
		files[i] = File{Version: version, Name: base, SHA256: sha256.Sum256(text)}
	}
	return files, nil
}

// Latest is the version of the newest migration that the program carries.
func Latest() int64 {
	files, err := Files()
	if err != nil || len(files) == 0 {
		panic(fmt.Sprintf("the embedded migrations cannot be read: %v", err)) // a broken build
	}
	return files[len(files)-1].Version
}

// Up applies what is missing. Several processes may call it at once: they queue. ctx bounds the wait and the work between
// migrations. The login of url must own the schema; where nothing is missing, reading rights are enough.
func Up(ctx context.Context, url string, log *slog.Logger) error {
	return exclusively(ctx, url, func(conn *pgx.Conn) error {
		state, err := read(ctx, conn)
		if err != nil {
			return err
		}
		if err := state.verify(); err != nil {
			return err
		}
		if state.version == Latest() && !state.dirty {
			return nil
		}
		if err := prepare(ctx, conn); err != nil {
			return err
		}
		log.Info("migrating", "from", state.version, "to", Latest())
		return errors.Join(state.step(url, (*migrate.Migrate).Up), stepBack(ctx, conn))
	})
}

// Fresh prepares a throw-away database on a server of its own, for tests: the roles, with hub_app signing in, and all migrations.
func Fresh(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := EnsureRoles(ctx, conn, true); err != nil {
		return err
	}
	return Up(ctx, url, slog.New(slog.DiscardHandler))
}

// Down takes back the newest n migrations, or all of them for n = 0.
func Down(ctx context.Context, url string, n int) error {
	return exclusively(ctx, url, func(conn *pgx.Conn) error {
		state, err := read(ctx, conn)
		if err != nil || state.version == 0 {
			return err
		}
		if err := EnsureRoles(ctx, conn, false); err != nil {
			return err
		}
		err = state.step(url, func(m *migrate.Migrate) error {
			if n == 0 {
				return m.Down()
			}
			return m.Steps(-n)
		})
		return errors.Join(err, stepBack(ctx, conn))
	})
}

// Force says that the schema stands at version, as this program's migrations make it, after somebody has mended it by hand.
func Force(ctx context.Context, url string, version int64) error {
	return exclusively(ctx, url, func(conn *pgx.Conn) error {
		if err := prepare(ctx, conn); err != nil {
			return err
		}
		files, err := Files()
		if err != nil {
			return err
		}
		batch := &pgx.Batch{}
		batch.Queue("DELETE FROM schema_migration_checksums")
		for _, file := range files {
			if file.Version <= version {
				batch.Queue(file.recordUp())
			}
		}
		if err := conn.SendBatch(ctx, batch).Close(); err != nil {
			return err
		}
		return state{version: version}.step(url, func(m *migrate.Migrate) error { return m.Force(nilWhenZero(version)) })
	})
}

// Version is the schema's version in the database; 0 means that no migration is applied.
func Version(ctx context.Context, url string) (int64, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	state, err := read(ctx, conn)
	return state.version, err
}

// Check reports as an error why the database is not what this program needs; it changes nothing.
func Check(ctx context.Context, conn *pgx.Conn) error {
	state, err := read(ctx, conn)
	if err != nil {
		return err
	}
	if err := state.verify(); err != nil {
		return err
	}
	if state.version != Latest() {
		return fmt.Errorf("the schema is at version %d, this hub needs %d: run `hub migrate up` as the schema's owner", state.version, Latest())
	}
	return nil
}

// EnsureRoles makes the roles that the migrations grant to. They belong to the whole server, so they are made once and
// never dropped. login says whether hub_app itself may sign in, as it does on hub's own PostgreSQL.
func EnsureRoles(ctx context.Context, conn *pgx.Conn, login bool) error {
	for _, role := range []string{"hub_app", "hub_auth", "hub_system", "hub_search"} {
		// CREATE ROLE has no IF NOT EXISTS, and two databases of one server may get here at once. A login that does not
		// own the server must be a member to hand functions over; from PostgreSQL 16 on, having made a role is not enough.
		_, err := conn.Exec(ctx, fmt.Sprintf(`DO $$ BEGIN
			IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '%[1]s') THEN
				BEGIN
					CREATE ROLE %[1]s NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB;
				EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
				END;
			END IF;
			IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AND NOT pg_has_role(current_user, '%[1]s', 'USAGE') THEN
				GRANT %[1]s TO CURRENT_USER;
			END IF;
		END $$`, role))
		if err != nil {
			return fmt.Errorf("making the role %s: %w: HUB_MIGRATE_URL must name a superuser or a login with CREATEROLE that owns the database", role, err)
		}
	}
	if login {
		if _, err := conn.Exec(ctx, "ALTER ROLE hub_app LOGIN"); err != nil {
			return err
		}
	}
	return nil
}

// stepBack takes the owner's login out of the roles that EnsureRoles made it a member of: it needs them to hand functions over or
// drop them, and outside of migrations row-level security is to bind it like everybody.
func stepBack(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `DO $$ BEGIN
		IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
			REVOKE hub_auth, hub_system, hub_search FROM CURRENT_USER;
		END IF;
	END $$`)
	return err
}

// exclusively runs fn under the advisory lock, on the connection that holds it. It polls: golang-migrate's own lock waits
// inside the server, where several starting replicas can deadlock with a migration that needs a quiet database.
func exclusively(ctx context.Context, url string, fn func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) // also gives the lock back
	for {
		var locked bool
		if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", lockKey).Scan(&locked); err != nil {
			return err
		}
		if locked {
			return fn(conn)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("another process is migrating this database: %w", ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// prepare makes the roles and the two tables that lie outside the migrations because they outlive them.
func prepare(ctx context.Context, conn *pgx.Conn) error {
	if err := EnsureRoles(ctx, conn, false); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, `
		CREATE TABLE IF NOT EXISTS schema_migrations (
			version    bigint      NOT NULL,
			dirty      boolean     NOT NULL,
			created_at timestamptz NOT NULL DEFAULT now(),
			updated_at timestamptz NOT NULL DEFAULT now(),
			CONSTRAINT schema_migrations_pkey PRIMARY KEY (version)
		);
		COMMENT ON TABLE schema_migrations IS 'The version that the schema stands at: one row, kept by golang-migrate, which replaces it with each migration.';
		COMMENT ON COLUMN schema_migrations.dirty IS 'A migration was begun; schema_migration_checksums knows whether it was applied.';
		CREATE TABLE IF NOT EXISTS schema_migration_checksums (
			version    bigint      NOT NULL,
			name       text        NOT NULL,
			sha256     bytea       NOT NULL,
			created_at timestamptz NOT NULL DEFAULT now(),
			CONSTRAINT schema_migration_checksums_pkey PRIMARY KEY (version),
			CONSTRAINT schema_migration_checksums_sha256_length_check CHECK (octet_length(sha256) = 32)
		);
		COMMENT ON TABLE schema_migration_checksums IS 'What each applied migration''s file hashed to: an edited one is noticed at the next start. Written in the migration''s own transaction.';
		GRANT SELECT ON schema_migrations, schema_migration_checksums TO hub_app;`)
	return err
}

// recordUp and recordDown are run with a migration's file, in its transaction: whatever is killed when, the checksums say
// which migrations are applied. (golang-migrate notes its version before and after the file, in transactions of their own.)
func (f File) recordUp() string {
	return fmt.Sprintf("INSERT INTO schema_migration_checksums (version, name, sha256) VALUES (%d, '%s', '\\x%x');", f.Version, f.Name, f.SHA256)
}

func (f File) recordDown() string {
	return fmt.Sprintf("DELETE FROM schema_migration_checksums WHERE version = %d;", f.Version)
}

// recorder is the embedded migrations, each with the statement that records it.
type recorder struct {
	source.Driver
	files map[uint]File
}

func (r recorder) ReadUp(version uint) (io.ReadCloser, string, error) {
	text, name, err := r.Driver.ReadUp(version)
	return withStatement(text, r.files[version].recordUp()), name, err
}

func (r recorder) ReadDown(version uint) (io.ReadCloser, string, error) {
	text, name, err := r.Driver.ReadDown(version)
	return withStatement(text, r.files[version].recordDown()), name, err
}

func withStatement(text io.ReadCloser, statement string) io.ReadCloser {
	if text == nil {
		return nil
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(text, strings.NewReader("\n"+statement)), text}
}

// step opens golang-migrate on a connection of its own, puts right what a killed predecessor left in its table, and calls fn.
// Nothing to do is no error.
func (s state) step(url string, fn func(*migrate.Migrate) error) error {
	files, err := Files()
	if err != nil {
		return err
	}
	embedded, err := iofs.New(hubsql.Migrations, "migrations")
	if err != nil {
		return err
	}
	migrations := recorder{Driver: embedded, files: map[uint]File{}}
	for _, file := range files {
		migrations.files[uint(file.Version)] = file
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return err
	}
	target, err := pgxmigrate.WithInstance(stdlib.OpenDB(*config), &pgxmigrate.Config{MigrationsTable: migrationsTable})
	if err != nil {
		return err
	}
	m, err := migrate.NewWithInstance("embedded", migrations, "pgx5", target)
	if err != nil {
		return err
	}
	defer m.Close()
	if s.dirty {
		if err := m.Force(nilWhenZero(s.version)); err != nil {
			return err
		}
	}
	if err := fn(m); err != nil && !errors.Is(err, migrate.ErrNoChange) {
		return fmt.Errorf("migrating: %w", err)
	}
	return nil
}

// nilWhenZero is golang-migrate's spelling of "no migration".
func nilWhenZero(version int64) int {
	if version == 0 {
		return database.NilVersion
	}
	return int(version)
}

// state is what a database says about itself.
type state struct {
	version   int64 // of the newest migration that is applied; 0 when none is
	dirty     bool  // golang-migrate was killed between noting a version and applying it
	checksums map[int64][]byte
}

func read(ctx context.Context, conn *pgx.Conn) (state, error) {
	s := state{checksums: map[int64][]byte{}}
	var exists bool
	err := conn.QueryRow(ctx, "SELECT to_regclass('schema_migrations') IS NOT NULL AND to_regclass('schema_migration_checksums') IS NOT NULL").Scan(&exists)
	if err != nil || !exists {
		return s, err
	}
	var noted int64
	err = conn.QueryRow(ctx, "SELECT version, dirty FROM schema_migrations").Scan(&noted, &s.dirty)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return s, err
	}
	rows, err := conn.Query(ctx, "SELECT version, sha256 FROM schema_migration_checksums")
	if err != nil {
		return s, err
	}
	var version int64
	var sum []byte
	_, err = pgx.ForEachRow(rows, []any{&version, &sum}, func() error {
		s.checksums[version] = bytes.Clone(sum)
		s.version = max(s.version, version)
		return nil
	})
	s.dirty = s.dirty || noted != s.version
	return s, err
}

// verify refuses a schema that is newer than the program, or was made by other migrations than it carries.
func (s state) verify() error {
	if latest := Latest(); s.version > latest {
		return fmt.Errorf("the schema is at version %d, which is newer than this hub's %d: run a newer hub", s.version, latest)
	}
	files, err := Files()
	if err != nil {
		return err
	}
	for _, file := range files {
		if sum, ok := s.checksums[file.Version]; ok && !bytes.Equal(sum, file.SHA256[:]) {
			return fmt.Errorf("migration %s was changed after it was applied to this database: run the hub that applied it, or start with an empty database", file.Name)
		}
	}
	return nil
}
