package sql_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/alkdev/hub/internal/migrate"
	"github.com/alkdev/hub/internal/postgres/pgtest"
)

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, migrate.Fresh, "hub_app"))
}

// What a new domain adds to: its fixture, its refusals and its deletions.
var (
	fixtures    = []string{identityFixture, projectsFixture, sessionsFixture, searchFixture, eventsFixture, idempotencyFixture, tasksFixture, spokesFixture, coordinationFixture, servicesFixture, callsFixture, detectionsFixture}
	ruleCases   = slices.Concat(identityRules, projectsRules, sessionsRules, searchRules, eventsRules, auditRules, idempotencyRules, tasksRules, coordinationRules, servicesRules, spokesRules, callsRules, detectionsRules)
	deleteCases = slices.Concat(identityDeletes, projectsDeletes, sessionsDeletes, searchDeletes, auditDeletes, idempotencyDeletes, tasksDeletes, coordinationDeletes, servicesDeletes, spokesDeletes, callsDeletes, detectionsDeletes)
)

// ids are the fixtures' rows by the names that statements use: @org, @session. Each table has at least one row of @org's
// and one of @other_org's.
var ids = map[string]string{
	"org": "00000000-0000-7000-8000-0000000a0001", "other_org": "00000000-0000-7000-8000-0000000b0001",
	"owner": "00000000-0000-7000-8000-0000000a0002", "other_owner": "00000000-0000-7000-8000-0000000b0002",
	"co_owner": "00000000-0000-7000-8000-0000000a0003", "member": "00000000-0000-7000-8000-0000000a0004",
	"admin":  "00000000-0000-7000-8000-0000000a0011",
	"nobody": "00000000-0000-7000-8000-0000000c0001", // an account without a membership
	"system": "00000000-0000-7000-8000-000000000001",
	"key":    "00000000-0000-7000-8000-0000000a0005", "other_key": "00000000-0000-7000-8000-0000000b0005",
	"owner_key": "00000000-0000-7000-8000-0000000a0012",
	"project":   "00000000-0000-7000-8000-0000000a0006", "other_project": "00000000-0000-7000-8000-0000000b0006",
	"empty_project": "00000000-0000-7000-8000-0000000a0007",
	"role":          "00000000-0000-7000-8000-0000000a0008", "other_role": "00000000-0000-7000-8000-0000000b0008",
	"session": "00000000-0000-7000-8000-0000000a0009", "other_session": "00000000-0000-7000-8000-0000000b0009",
	"child": "00000000-0000-7000-8000-0000000a000a", "imported": "00000000-0000-7000-8000-0000000a000b",
	"message": "00000000-0000-7000-8000-0000000a000c", "other_message": "00000000-0000-7000-8000-0000000b000c",
	"child_message": "00000000-0000-7000-8000-0000000a000d", "second_message": "00000000-0000-7000-8000-0000000a0010",
	"part": "00000000-0000-7000-8000-0000000a000e", "other_part": "00000000-0000-7000-8000-0000000b000e",
	"client": "00000000-0000-7000-8000-0000000a0051", "other_client": "00000000-0000-7000-8000-0000000b0051", "second_client": "00000000-0000-7000-8000-0000000a0052",
	"secret": "00000000-0000-7000-8000-0000000a0053", "other_secret": "00000000-0000-7000-8000-0000000b0053",
	"rotation": "00000000-0000-7000-8000-0000000c0054", "ended_rotation": "00000000-0000-7000-8000-0000000c0055",
	"tool":         "00000000-0000-7000-8000-0000000a0021",
	"task_project": "00000000-0000-7000-8000-0000000a0100", "task": "00000000-0000-7000-8000-0000000a0101", "other_task": "00000000-0000-7000-8000-0000000b0101",
	"waiting_task": "00000000-0000-7000-8000-0000000a0102", "other_waiting_task": "00000000-0000-7000-8000-0000000b0102",
	"free_task": "00000000-0000-7000-8000-0000000a0103", "held_task": "00000000-0000-7000-8000-0000000a0104", "empty_task": "00000000-0000-7000-8000-0000000a0105",
	"mapping": "00000000-0000-7000-8000-0000000a0106", "other_mapping": "00000000-0000-7000-8000-0000000b0106", "delegation": "00000000-0000-7000-8000-0000000a0107",
	"workspace": "00000000-0000-7000-8000-0000000a0110", "other_workspace": "00000000-0000-7000-8000-0000000b0110", "task_workspace": "00000000-0000-7000-8000-0000000a0111",
	"placement": "00000000-0000-7000-8000-0000000a0112",
	"detection": "00000000-0000-7000-8000-0000000a0130", "other_detection": "00000000-0000-7000-8000-0000000b0130", "resolved_detection": "00000000-0000-7000-8000-0000000a0131",
	"anomaly_type": "00000000-0000-7000-8000-0000000a0132",
	"spoke":        "00000000-0000-7000-8000-0000000a0120", "other_spoke": "00000000-0000-7000-8000-0000000b0120",
	"idle_spoke": "00000000-0000-7000-8000-0000000a0121", "gone_spoke": "00000000-0000-7000-8000-0000000a0122",
	"spec": "00000000-0000-7000-8000-0000000a0123", "other_spec": "00000000-0000-7000-8000-0000000b0123",
	"call": "00000000-0000-7000-8000-0000000a0030", "other_call": "00000000-0000-7000-8000-0000000b0030",
	"held_call":  "00000000-0000-7000-8000-0000000a0032",
	"child_call": "00000000-0000-7000-8000-0000000a0031", "other_child_call": "00000000-0000-7000-8000-0000000b0031",
	"new":  "00000000-0000-7000-8000-0000000c000f", // nobody's yet
	"high": "ffffffff-0000-7000-8000-000000000001", // of a clock that is far ahead
	"zero": "00000000-0000-7000-8000-000000000000",

	// of a test of its own
	"third_org": "00000000-0000-7000-8000-0000000d0001", "third_owner": "00000000-0000-7000-8000-0000000d0002", "third_key": "00000000-0000-7000-8000-0000000d0005",

	"platform": "00000000-0000-0000-0000-000000000000", // its audit chain
}

// callers are the fixtures' accounts that sign in: their membership level, and the key they do it with.
var callers = map[string]struct{ level, key string }{
	"owner": {"owner", "owner_key"}, "co_owner": {"owner", ""}, "admin": {"admin", ""}, "member": {"member", "key"}, "other_owner": {"owner", "other_key"}, "nobody": {"", ""},
	"third_owner": {"owner", "third_key"},
}

// acting sets what authenticate() sets when an account of the fixtures signs in with a key for everything: for the transaction, or
// for all of them. changed are setting, SQL, ....
func acting(org, account string, transaction bool, changed ...string) string {
	caller, ok := callers[account]
	if !ok {
		panic("no caller is called " + account)
	}
	values := []string{
		"org_id", "@" + org, "account_id", "@" + account, "key_id", "''", "key_scopes", "'*'", "project_ids", "''",
		"membership_level", "'" + caller.level + "'", "platform", "''", "session_id", "''", "actor_source", "'api'",
	}
	if caller.key != "" {
		values[5] = "@" + caller.key
	}
	for i := 0; i < len(changed); i += 2 {
		values[slices.Index(values, changed[i])+1] = changed[i+1]
	}
	var calls []string
	for i := 0; i < len(values); i += 2 {
		calls = append(calls, fmt.Sprintf("set_config('hub.%s', %s, %v)", values[i], values[i+1], transaction))
	}
	return "SELECT " + strings.Join(calls, ", ") + ";"
}

// as is acting for one transaction, in @org.
func as(account string, changed ...string) string { return acting("org", account, true, changed...) }

// world is a database with the fixtures, and two connections to it.
type world struct {
	app *pgx.Conn // hub_app, as @owner of @org
	hub *pgx.Conn // the superuser: where hub_app's privileges would hide a rule, and to look behind it
	url string    // for hub_app
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{url: pgtest.Database(t)}
	w.hub = connect(t, pgtest.URL(t, "hub"))
	w.app = w.connect(t, "org", "owner")
	for _, fixture := range fixtures {
		exec(t, w.hub, fixture)
	}
	return w
}

// connect opens another connection as hub_app, that acts for an organisation, and an account, of the fixtures,
// signed in with a key for everything.
func (w *world) connect(t testing.TB, org, account string) *pgx.Conn {
	t.Helper()
	conn := connect(t, w.url)
	exec(t, conn, acting(org, account, false))
	return conn
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

var atName = regexp.MustCompile(`(^|[^\w'])@([a-z_]+)`)

// named puts the fixtures' ids where their @names are. (In an e-mail address a letter stands before the @.)
func named(sql string) string {
	return atName.ReplaceAllStringFunc(sql, func(match string) string {
		before, name, _ := strings.Cut(match, "@")
		id, ok := ids[name]
		if !ok {
			panic("no fixture is called " + name + ": " + sql)
		}
		return before + "'" + id + "'"
	})
}

// run executes statements with @names in them.
func run(ctx context.Context, conn *pgx.Conn, sql string) (pgconn.CommandTag, error) {
	return conn.Exec(ctx, named(sql), pgx.QueryExecModeSimpleProtocol)
}

func exec(t testing.TB, conn *pgx.Conn, sql string) pgconn.CommandTag {
	t.Helper()
	tag, err := run(t.Context(), conn, sql)
	if err != nil {
		t.Fatalf("%s\n%v", sql, err)
	}
	return tag
}

// get is the one value that a query returns.
func get[T any](t testing.TB, conn *pgx.Conn, sql string) T {
	t.Helper()
	values := list[T](t, conn, sql)
	if len(values) != 1 {
		t.Fatalf("%s\nreturned %d rows, not one", sql, len(values))
	}
	return values[0]
}

// list is the one column that a query returns.
func list[T any](t testing.TB, conn *pgx.Conn, sql string) []T {
	t.Helper()
	rows, err := conn.Query(t.Context(), named(sql), pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatalf("%s\n%v", sql, err)
	}
	values, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s\n%v", sql, err)
	}
	return values
}

// attempt executes statements in a transaction of their own that is rolled back, deferred constraints included. before
// must pass; the error is that of sql.
func attempt(t testing.TB, conn *pgx.Conn, before, sql string) (pgconn.CommandTag, error) {
	t.Helper()
	ctx := t.Context()
	exec(t, conn, "BEGIN")
	defer func() {
		if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
			t.Fatal(err)
		}
	}()
	if before != "" {
		exec(t, conn, before)
	}
	tag, err := run(ctx, conn, sql)
	if err == nil {
		_, err = conn.Exec(ctx, "SET CONSTRAINTS ALL IMMEDIATE")
	}
	return tag, err
}

// refuses fails the test unless err is PostgreSQL's refusal with this SQLSTATE and constraint.
func refuses(t testing.TB, err error, sqlstate, constraint string) {
	t.Helper()
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != sqlstate || pgErr.ConstraintName != constraint {
		t.Errorf("refused with %s, want %s %q", spell(err), sqlstate, constraint)
	}
}

func spell(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code + " \"" + pgErr.ConstraintName + "\" (" + pgErr.Message + ")"
	}
	if err == nil {
		return "nothing: it passed"
	}
	return err.Error()
}

// ruleCase is one rule of the schema: a statement that the rule refuses for each of the bad values and lets pass for each of
// the good ones. The statement is the same but for that value, which stands where ?? is.
type ruleCase struct {
	// rule is the constraint's name, the trigger's, or the name that a function raises; of a foreign key that is in the way of
	// a deletion with _in_use; of row level security the policy's.
	rule   string
	before string // statements that make the situation
	sql    string
	bad    []string
	good   []string
	state  string // the SQLSTATE; where it is empty, what the rule's name says
	hub    bool   // as the superuser, for hub_app has no privilege to come so far
}

func (c ruleCase) refusal() (sqlstate, constraint string) {
	name := strings.TrimSuffix(c.rule, "_in_use")
	switch {
	case c.state != "":
		return c.state, name
	case strings.HasSuffix(name, "_tenant"), strings.HasSuffix(name, "_visible"), strings.HasSuffix(name, "_limited"):
		return "42501", "" // row level security names no constraint
	case strings.HasSuffix(name, "_fkey"):
		return "23503", name
	case strings.HasSuffix(name, "_pkey"), strings.HasSuffix(name, "_key"):
		return "23505", name
	default:
		return "23514", name
	}
}

func checkRules(t *testing.T, cases []ruleCase) {
	t.Helper()
	w := newWorld(t)
	for _, c := range cases {
		t.Run(c.rule, func(t *testing.T) {
			conn := w.app
			if c.hub {
				conn = w.hub
			}
			if !strings.Contains(c.sql, "??") || len(c.bad) == 0 || len(c.good) == 0 {
				t.Fatal("a case has ??, a bad value and a good one")
			}
			for _, value := range c.bad {
				sqlstate, constraint := c.refusal()
				_, err := attempt(t, conn, c.before, strings.ReplaceAll(c.sql, "??", value))
				var pgErr *pgconn.PgError
				if !errors.As(err, &pgErr) || pgErr.Code != sqlstate || pgErr.ConstraintName != constraint {
					t.Errorf("%s: refused with %s, want %s %q", value, spell(err), sqlstate, constraint)
				}
			}
			for _, value := range c.good {
				tag, err := attempt(t, conn, c.before, strings.ReplaceAll(c.sql, "??", value))
				if err != nil {
					t.Errorf("%s: refused with %s", value, spell(err))
				} else if tag.RowsAffected() == 0 {
					t.Errorf("%s: passed, but only because there was no row to refuse", value)
				}
			}
		})
	}
}

// deleteCase is what becomes of a row when what it refers to is deleted.
type deleteCase struct {
	fk     string
	before string
	delete string
	gone   string // a query for what must be true afterwards, and false before
}

func checkDeletes(t *testing.T, cases []deleteCase) {
	t.Helper()
	w := newWorld(t)
	for _, c := range cases {
		t.Run(c.fk, func(t *testing.T) {
			exec(t, w.hub, "BEGIN; SET CONSTRAINTS ALL IMMEDIATE;"+c.before)
			defer exec(t, w.hub, "ROLLBACK")
			if get[bool](t, w.hub, c.gone) {
				t.Fatalf("%s is true before anything is deleted", c.gone)
			}
			if exec(t, w.hub, c.delete).RowsAffected() == 0 {
				t.Fatalf("%s deletes nothing", c.delete)
			}
			if !get[bool](t, w.hub, c.gone) {
				t.Errorf("%s is false afterwards", c.gone)
			}
		})
	}
}
