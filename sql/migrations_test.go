package sql_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/internal/migrate"
	"github.com/alkdev/hub/internal/postgres"
	"github.com/alkdev/hub/internal/postgres/pgtest"
	hubsql "github.com/alkdev/hub/sql"
)

var quiet = slog.New(slog.DiscardHandler)

// restrict is what pg_dump says by chance.
var restrict = regexp.MustCompile(`(?m)^\\(un)?restrict .*\n`)

// dump is the schema that a database has, privileges and comments included, but for the two tables that remember the
// migrations.
func dump(t testing.TB, url string) string {
	t.Helper()
	install, err := postgres.Find(t.Context(), os.Getenv("HUB_POSTGRES_BIN"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := osexec.CommandContext(t.Context(), filepath.Join(install.BinDir, "pg_dump"), "--schema-only", "--exclude-table=schema_migration*", url)
	cmd.Env = append(os.Environ(), install.Env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("pg_dump: %v\n%s", err, stderr.Bytes())
	}
	return string(restrict.ReplaceAll(text, nil))
}

// sameSchema fails the test with the first line that differs.
func sameSchema(t testing.TB, what, got, want string) {
	t.Helper()
	a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(a), len(b)) {
		line := func(lines []string) string {
			if i < len(lines) {
				return lines[i]
			}
			return "(the end)"
		}
		if line(a) != line(b) {
			t.Errorf("%s: line %d is\n\t%s\nand not\n\t%s", what, i+1, line(a), line(b))
			return
		}
	}
}

func up(t testing.TB, url string) {
	t.Helper()
	if err := migrate.Up(t.Context(), url, quiet); err != nil {
		t.Fatal(err)
	}
}

func down(t testing.TB, url string, n int) {
	t.Helper()
	if err := migrate.Down(t.Context(), url, n); err != nil {
		t.Fatal(err)
	}
}

func version(t testing.TB, url string, want int64) {
	t.Helper()
	if got, err := migrate.Version(t.Context(), url); err != nil || got != want {
		t.Errorf("the version is %d, want %d (%v)", got, want, err)
	}
}

func script(t testing.TB, name string) string {
	t.Helper()
	text, err := fs.ReadFile(hubsql.Migrations, "migrations/"+name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func migrationFiles(t testing.TB) []migrate.File {
	t.Helper()
	files, err := migrate.Files()
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	return files
}

func TestMigrations_AreNumberedAndComeInPairs(t *testing.T) {
	t.Parallel()
	files := migrationFiles(t)
	for i, file := range files {
		if i > 0 && file.Version <= files[i-1].Version || !regexp.MustCompile(fmt.Sprintf(`^%04d_[a-z]+$`, file.Version)).MatchString(file.Name) {
			t.Errorf("%s is number %d", file.Name, file.Version)
		}
		for _, direction := range []string{"up", "down"} {
			text := script(t, file.Name+"."+direction+".sql")
			if regexp.MustCompile(`(?mi)^\s*(BEGIN|COMMIT|ROLLBACK)\s*(TRANSACTION|WORK)?\s*;`).MatchString(text) {
				t.Errorf("%s.%s ends its own transaction: what it did and that it did it would no longer be one", file.Name, direction)
			}
		}
	}
	if names, err := fs.Glob(hubsql.Migrations, "migrations/*"); err != nil || len(names) != 2*len(files) {
		t.Errorf("%v %v", names, err)
	}
	if migrate.Latest() != files[len(files)-1].Version {
		t.Errorf("the latest is %d", migrate.Latest())
	}
}

// Going down undoes exactly what going up did, one by one, and leaves nothing behind.
func TestMigrations_GoUpAndDown(t *testing.T) {
	t.Parallel()
	migrated, stepwise := pgtest.Empty(t), pgtest.Empty(t)
	steps := connect(t, stepwise)
	files := migrationFiles(t)
	// The schema of each version, as its files alone make it.
	schemas, numbers := []string{dump(t, stepwise)}, []int64{0}
	for _, file := range files {
		numbers = append(numbers, file.Version)
		runFile(t, steps, script(t, file.Name+".up.sql"))
		schemas = append(schemas, dump(t, stepwise))
	}

	up(t, migrated)
	version(t, migrated, migrate.Latest())
	sameSchema(t, "up", dump(t, migrated), schemas[len(files)])
	for n := len(files) - 1; n >= 0; n-- {
		down(t, migrated, 1)
		version(t, migrated, numbers[n])
		sameSchema(t, fmt.Sprintf("down to %d", n), dump(t, migrated), schemas[n])
	}
	conn := connect(t, migrated)
	if got := list[string](t, conn, `
		SELECT pg_describe_object(classid, objid, 0) FROM pg_depend
		WHERE refclassid = 'pg_namespace'::regclass AND refobjid = 'public'::regnamespace AND classid <> 'pg_constraint'::regclass AND pg_describe_object(classid, objid, 0) !~ 'schema_migration'`); len(got) > 0 {
		t.Errorf("left behind: %v", got)
	}
	if got, want := get[string](t, conn, publicPrivileges), get[string](t, connect(t, pgtest.Empty(t)), publicPrivileges); got != want {
		t.Errorf("the privileges on the schema are %s, and were %s", got, want)
	}
	if got := get[int](t, conn, "SELECT count(*) FROM schema_migration_checksums"); got != 0 {
		t.Errorf("%d checksums", got)
	}
	down(t, migrated, 1) // there is nothing left to take back
	down(t, migrated, 0)
	up(t, migrated)
	sameSchema(t, "up again", dump(t, migrated), schemas[len(files)])
	down(t, migrated, 0)
	version(t, migrated, 0)
	sameSchema(t, "all the way down", dump(t, migrated), schemas[0])

	for n := range files { // from each version
		if n > 0 {
			down(t, migrated, len(files)-n)
		}
		up(t, migrated)
		sameSchema(t, fmt.Sprintf("up from %d", n), dump(t, migrated), schemas[len(files)])
	}
}

const publicPrivileges = "SELECT string_agg(format('%s:%s', a.grantee::regrole, a.privilege_type), ' ' ORDER BY a.grantee, a.privilege_type) FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname = 'public'"

// runFile runs a file as golang-migrate does: as one command, which is one transaction.
func runFile(t testing.TB, conn *pgx.Conn, text string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), text); err != nil {
		t.Fatal(err)
	}
}

func TestMigrations_SeveralReplicasMigrateAtOnce(t *testing.T) {
	t.Parallel()
	url := pgtest.Empty(t)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if err := migrate.Up(t.Context(), url, quiet); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	version(t, url, migrate.Latest())
	if got := get[int](t, connect(t, url), "SELECT count(*) FROM schema_migration_checksums"); got != len(migrationFiles(t)) {
		t.Errorf("%d checksums", got)
	}
}

func TestMigrations_AnEditedMigrationIsRefused(t *testing.T) {
	t.Parallel()
	pgtest.Database(t)
	url := pgtest.URL(t, "hub")
	conn := connect(t, url)
	for _, file := range migrationFiles(t) {
		exec(t, conn, fmt.Sprintf("UPDATE schema_migration_checksums SET sha256 = sha256('edited') WHERE version = %d", file.Version))
		for what, err := range map[string]error{"up": migrate.Up(t.Context(), url, quiet), "check": migrate.Check(t.Context(), conn)} {
			if err == nil || !strings.Contains(err.Error(), file.Name) {
				t.Errorf("%s: %s was edited: %v", what, file.Name, err)
			}
		}
		if err := migrate.Force(t.Context(), url, migrate.Latest()); err != nil { // somebody vouches for the schema
			t.Fatal(err)
		}
		up(t, url)
		if err := migrate.Check(t.Context(), conn); err != nil {
			t.Error(err)
		}
	}
}

func TestMigrations_ANewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	pgtest.Database(t)
	url := pgtest.URL(t, "hub")
	conn := connect(t, url)
	if err := migrate.Check(t.Context(), conn); err != nil {
		t.Error(err)
	}
	newer := migrate.Latest() + 1
	exec(t, conn, fmt.Sprintf("INSERT INTO schema_migration_checksums (version, name, sha256) VALUES (%d, 'next', sha256('next'))", newer))
	exec(t, conn, fmt.Sprintf("UPDATE schema_migrations SET version = %d", newer))
	before := dump(t, url)
	for what, err := range map[string]error{"up": migrate.Up(t.Context(), url, quiet), "check": migrate.Check(t.Context(), conn)} {
		if err == nil || !strings.Contains(err.Error(), "newer") || !strings.Contains(err.Error(), fmt.Sprint(newer)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	version(t, url, newer)
	sameSchema(t, "refused", dump(t, url), before)
}

func TestMigrations_AnOlderSchemaIsNotServed(t *testing.T) {
	t.Parallel()
	pgtest.Database(t)
	url := pgtest.URL(t, "hub")
	conn := connect(t, pgtest.URL(t, "hub_app"))
	down(t, url, 1)
	if err := migrate.Check(t.Context(), conn); err == nil || !strings.Contains(err.Error(), fmt.Sprint(migrate.Latest())) {
		t.Errorf("one migration is missing: %v", err)
	}
	up(t, url)
	if err := migrate.Check(t.Context(), conn); err != nil {
		t.Error(err)
	}
	// Where nothing is missing, reading is enough.
	if err := migrate.Up(t.Context(), pgtest.URL(t, "hub_app"), quiet); err != nil {
		t.Error(err)
	}
}

// golang-migrate notes a version as dirty, applies it, and notes it as clean, in three transactions: it may be killed between
// them. The checksums are written with the migration itself.
func TestMigrations_AKilledMigrationHeals(t *testing.T) {
	t.Parallel()
	pgtest.Database(t)
	url := pgtest.URL(t, "hub")
	conn := connect(t, url)
	whole := dump(t, url)
	numbers := []int64{0} // of the versions, none first; a branch may leave some out
	for _, file := range migrationFiles(t) {
		numbers = append(numbers, file.Version)
	}
	latest := len(numbers) - 1
	for applied := 0; applied <= latest; applied++ {
		for _, noted := range []int{applied + 1, applied, applied - 1} { // before going up; after; on the way down
			if noted > latest || noted < 0 {
				continue
			}
			number := numbers[noted]
			if noted == 0 {
				number = -1 // golang-migrate's spelling of none
			}
			if applied < latest {
				down(t, url, latest-applied)
			}
			exec(t, conn, fmt.Sprintf("DELETE FROM schema_migrations; INSERT INTO schema_migrations (version, dirty) VALUES (%d, true)", number))
			version(t, url, numbers[applied])
			if applied == latest { // what is killed then does not keep anybody from serving
				if err := migrate.Check(t.Context(), conn); err != nil {
					t.Error(err)
				}
			}
			if err := migrate.Up(t.Context(), url, quiet); err != nil {
				t.Errorf("%d applied, %d noted: %v", applied, noted, err)
				continue
			}
			version(t, url, numbers[latest])
			if got := get[string](t, conn, "SELECT version || ' ' || dirty FROM schema_migrations"); got != fmt.Sprintf("%d false", numbers[latest]) {
				t.Errorf("%d applied, %d noted: then %s", applied, noted, got)
			}
		}
		sameSchema(t, fmt.Sprintf("%d applied", applied), dump(t, url), whole)
	}
	// Down heals as well.
	exec(t, conn, "UPDATE schema_migrations SET dirty = true")
	down(t, url, 1)
	version(t, url, numbers[latest-1])
}

// A migration that fails leaves nothing, and is tried again.
func TestMigrations_AFailedMigrationLeavesNothing(t *testing.T) {
	t.Parallel()
	url := pgtest.Empty(t)
	conn := connect(t, url)
	files := migrationFiles(t)
	exec(t, conn, "CREATE TABLE messages (id integer)") // is in the way of one of the last
	if err := migrate.Up(t.Context(), url, quiet); err == nil {
		t.Fatal("nothing was in the way")
	}
	applied, err := migrate.Version(t.Context(), url)
	if err != nil || applied == 0 || applied >= int64(len(files)) {
		t.Fatal(applied, err)
	}
	failed := files[applied].Name
	if !strings.Contains(script(t, failed+".up.sql"), "CREATE TABLE messages") {
		t.Errorf("%s has failed", failed)
	}
	if got := get[bool](t, conn, "SELECT to_regclass('sessions') IS NOT NULL"); got {
		t.Errorf("%s has left something", failed)
	}
	exec(t, conn, "DROP TABLE messages")
	up(t, url)
	version(t, url, migrate.Latest())
	pgtest.Database(t)
	sameSchema(t, "after a failure", dump(t, url), dump(t, pgtest.URL(t, "hub")))
}

func TestMigrations_ForceAfterMendingByHand(t *testing.T) {
	t.Parallel()
	pgtest.Database(t)
	url := pgtest.URL(t, "hub")
	whole := dump(t, url)
	files := migrationFiles(t)
	last, before := files[len(files)-1], files[len(files)-2].Version
	runFile(t, connect(t, url), script(t, last.Name+".down.sql"))
	version(t, url, last.Version)
	if err := migrate.Force(t.Context(), url, before); err != nil {
		t.Fatal(err)
	}
	version(t, url, before)
	up(t, url)
	sameSchema(t, "forced", dump(t, url), whole)
	if err := migrate.Force(t.Context(), url, 0); err != nil {
		t.Fatal(err)
	}
	version(t, url, 0)
}

// The schema's owner need be no superuser. Then row level security binds even the foreign keys' own work, so everything is
// tried once.
func TestX01_AnOwnerThatIsNoSuperuser(t *testing.T) {
	t.Parallel()
	super := pgtest.Empty(t)
	admin := connect(t, super)
	ownerName := admin.Config().Database // roles belong to the whole server, and no two databases of it have the same name
	exec(t, admin, fmt.Sprintf("CREATE ROLE %s LOGIN CREATEROLE; ALTER DATABASE %[1]s OWNER TO %[1]s", ownerName))
	ownerURL := withUser(t, super, ownerName)
	for range 2 {
		up(t, ownerURL)
		version(t, ownerURL, migrate.Latest())
		down(t, ownerURL, 0)
		version(t, ownerURL, 0)
	}
	up(t, ownerURL)
	pgtest.Database(t)
	sameSchema(t, "another owner", strings.ReplaceAll(dump(t, super), ownerName, "hub"), dump(t, pgtest.URL(t, "hub")))

	for _, fixture := range fixtures {
		exec(t, admin, fixture)
	}
	exec(t, admin, views)
	// The owner is bound too: outside of migrations it is no member of hub's roles.
	owner := connect(t, ownerURL)
	for _, table := range list[string](t, admin, "SELECT name FROM tables WHERE (tenant IS NOT NULL OR control_plane) AND name NOT IN ('encryption_keys', 'secret_rotations')") { // fingerprints and counts are nobody's secret
		if got := get[int](t, owner, "SELECT count(*) FROM "+table); got != 0 {
			t.Errorf("the owner sees %d rows of %s", got, table)
		}
		if tag := exec(t, owner, "DELETE FROM "+table); tag.RowsAffected() != 0 {
			t.Errorf("the owner deletes from %s: %s", table, tag)
		}
	}

	app := connect(t, withUser(t, super, "hub_app"))
	exec(t, app, acting("org", "owner", false))
	for _, statement := range []string{
		"INSERT INTO sessions (org_id, project_id, source, source_id, source_updated_at, source_parent_id) VALUES (@org, @project, 'x', 'child', now(), 'parent')",
		"INSERT INTO sessions (org_id, project_id, source, source_id, source_updated_at) VALUES (@org, @project, 'x', 'parent', now())",
		"INSERT INTO messages (org_id, session_id, role) SELECT org_id, id, 'user' FROM sessions",
		"INSERT INTO parts (org_id, session_id, message_id, type) SELECT org_id, session_id, id, 'text' FROM messages",
		"UPDATE sessions SET run_state = 'running', parent_id = coalesce(parent_id, (SELECT id FROM sessions WHERE source_id = 'parent')) WHERE id = @imported",
		"UPDATE roles SET name = 'maker' WHERE name = 'builder'",
		"DELETE FROM roles WHERE name = 'maker'",
		"DELETE FROM messages WHERE id = @message",
		"DELETE FROM sessions WHERE id = @session",
		"DELETE FROM sessions WHERE source_id = 'parent'",
		"INSERT INTO accounts (kind, display_name, home_org_id) VALUES ('human', 'Jane Doe', @org)",
		"INSERT INTO organization_members (org_id, account_id) SELECT @org, id FROM accounts WHERE display_name = 'Jane Doe'",
		"INSERT INTO api_keys (org_id, account_id, name, key_hash) SELECT @org, id, 'x', sha256('jane') FROM accounts WHERE display_name = 'Jane Doe'",
		"SELECT id FROM search_accounts('jan do', 10)",
		"SELECT authenticate(sha256('jane'), '{}', 'member', NULL)",
		"UPDATE retention_policies SET audit_days = 30",
		"INSERT INTO idempotency_keys (org_id, account_id, key, request, status) VALUES (@org, @owner, 'x', sha256('x'), 200)",
		"SELECT transfer_organization(@org, @co_owner)",
		"BEGIN;" + as("co_owner", "platform", "'on'", "session_id", "@imported") + "UPDATE accounts SET status = 'deactivated' WHERE display_name = 'Jane Doe'; COMMIT; SELECT 1",
		"SELECT create_organization('new', 'New', NULL, '{}', '{}', @new, sha256('new')) FROM set_config('hub.platform', 'on', true)",
	} {
		if tag := exec(t, app, statement); tag.RowsAffected() == 0 {
			t.Errorf("%s: %s", statement, tag)
		}
	}
	if got := get[string](t, app, "SELECT count(*) || ' ' || count(parent_id) || ' ' || count(role_name) FROM sessions"); got != "3 0 0" {
		t.Errorf("sessions, with a parent, with a role: %s", got)
	}
	if tag := exec(t, admin, "DELETE FROM accounts WHERE id = @member"); tag.RowsAffected() != 1 {
		t.Error(tag)
	}
	if got := get[bool](t, admin, "SELECT revoked_at IS NOT NULL FROM api_keys WHERE key_hash = sha256('jane')"); !got {
		t.Error("a deactivated account's key is not revoked")
	}
	// X03: the owner adds nothing to the log, takes nothing from it and empties it not.
	for _, sql := range []string{"UPDATE audit_logs SET action = 'x.y'", "DELETE FROM audit_logs", "DELETE FROM audit_chains", "UPDATE audit_chains SET position = 0"} {
		if tag := exec(t, owner, sql); tag.RowsAffected() != 0 {
			t.Errorf("the owner: %s: %s", sql, tag)
		}
	}
	for _, sql := range []string{"TRUNCATE audit_logs", "TRUNCATE audit_chains CASCADE"} {
		_, err := attempt(t, owner, "", sql)
		refuses(t, err, "23514", "audit_logs_never_truncated")
	}
	_, err := attempt(t, owner, "", "INSERT INTO audit_logs (chain_id, position, owner_id, actor_source, database_user, action, target_type, previous_hash, hash) VALUES (@org, 99, @owner, 'api', 'x', 'x.y', 'x', sha256('x'), sha256('x'))")
	refuses(t, err, "42501", "")
	_, err = attempt(t, app, "", "UPDATE sessions SET parent_id = id")
	refuses(t, err, "23514", "sessions_not_own_parent_check")
	_, err = attempt(t, app, "", "DELETE FROM projects WHERE id = @project")
	refuses(t, err, "23503", "sessions_project_id_fkey")
	if got := get[string](t, app, "SELECT org_id::text FROM authenticate(sha256('other key'), '{projects:read}', 'member', NULL)"); got != ids["other_org"] {
		t.Error(got)
	}

	// W12: and purging, which deletes what row-level security hides from the owner.
	exec(t, app, "UPDATE organizations SET deleted_at = now() WHERE id = @org")
	nobody := connect(t, withUser(t, super, "hub_app"))
	for range 100 {
		if get[int](t, nobody, "SELECT purge_organizations(5)") == 0 {
			break
		}
	}
	for _, purge := range []string{"SELECT purge_audit_logs(5)", "SELECT purge_idempotency_keys(5)"} {
		if got := get[int](t, nobody, purge); got != 0 {
			t.Errorf("%s: %d", purge, got)
		}
	}
	for _, table := range list[string](t, admin, "SELECT name FROM tables WHERE tenant = 'org_id'") {
		if got := get[int](t, admin, "SELECT count(*) FROM "+table+" WHERE org_id = @org"); got != 0 {
			t.Errorf("%d rows of %s are left", got, table)
		}
	}
	for _, chain := range []string{"@org", "@other_org", "@platform"} {
		if got := get[string](t, admin, "SELECT coalesce(broken_how, 'intact') || ' ' || (entries > 1)::text FROM verify_audit_chain("+chain+")"); got != "intact true" {
			t.Errorf("the chain of %s: %s", chain, got)
		}
	}
}

func withUser(t testing.TB, address, user string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(user)
	return u.String()
}
